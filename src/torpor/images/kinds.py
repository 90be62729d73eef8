# SPDX-License-Identifier: Apache-2.0
"""The kinds of images: their files' names, magic numbers, messages, and the raw bytes among the messages.

A kind is typed by its message, so `reader.one(CORE, 42)` is a CoreEntry.  Some facts that surprise:

* `inventory.img` starts with its own magic; every other image has a common word before it (two: service images have
  another one).  Images of img_version 1 have no common word at all.
* tcp-stream and ghost-file names carry their number in hexadecimal, all others in decimal.
* pagemaps are the only images whose first entry is of another message than the rest.
* Images whose magic is 0 are raw from the first byte.
"""

from __future__ import annotations

from torpor.images.payloads import (
    bpfmap_data,
    ipc_msg,
    ipc_sem,
    ipc_shm,
    pipe_data,
    rest,
    sk_packet,
    tcp_stream,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, Generic, TypeVar

    from torpor.images.message import Message
    from torpor.images.payloads import Source
    from torpor.images.schema.apparmor import ApparmorEntry
    from torpor.images.schema.autofs import AutofsEntry
    from torpor.images.schema.binfmt_misc import BinfmtMiscEntry
    from torpor.images.schema.bpfmap_data import BpfmapDataEntry
    from torpor.images.schema.bpfmap_file import BpfmapFileEntry
    from torpor.images.schema.cgroup import CgroupEntry
    from torpor.images.schema.core import CoreEntry, TaskKobjIdsEntry
    from torpor.images.schema.cpuinfo import CpuinfoEntry
    from torpor.images.schema.creds import CredsEntry
    from torpor.images.schema.eventfd import EventfdFileEntry
    from torpor.images.schema.eventpoll import EventpollFileEntry, EventpollTfdEntry
    from torpor.images.schema.ext_file import ExtFileEntry
    from torpor.images.schema.fdinfo import FdinfoEntry, FileEntry
    from torpor.images.schema.fh import IrmapCacheEntry
    from torpor.images.schema.fifo import FifoEntry
    from torpor.images.schema.file_lock import FileLockEntry
    from torpor.images.schema.fs import FsEntry
    from torpor.images.schema.fsnotify import FanotifyFileEntry, FanotifyMarkEntry, InotifyFileEntry, InotifyWdEntry
    from torpor.images.schema.ghost_file import GhostFileEntry
    from torpor.images.schema.inventory import InventoryEntry
    from torpor.images.schema.ipc_msg import IpcMsgEntry
    from torpor.images.schema.ipc_sem import IpcSemEntry
    from torpor.images.schema.ipc_shm import IpcShmEntry
    from torpor.images.schema.ipc_var import IpcVarEntry
    from torpor.images.schema.memfd import MemfdInodeEntry
    from torpor.images.schema.mm import MmEntry
    from torpor.images.schema.mnt import MntEntry
    from torpor.images.schema.netdev import NetDeviceEntry, NetnsEntry
    from torpor.images.schema.ns import NsFileEntry
    from torpor.images.schema.packet_sock import PacketSockEntry
    from torpor.images.schema.pagemap import PagemapEntry
    from torpor.images.schema.pidfd import PidfdEntry
    from torpor.images.schema.pidns import PidnsEntry
    from torpor.images.schema.pipe import PipeEntry
    from torpor.images.schema.pipe_data import PipeDataEntry
    from torpor.images.schema.pstree import PstreeEntry
    from torpor.images.schema.regfile import RegFileEntry
    from torpor.images.schema.remap_file_path import RemapFilePathEntry
    from torpor.images.schema.rlimit import RlimitEntry
    from torpor.images.schema.sa import SaEntry
    from torpor.images.schema.seccomp import SeccompEntry
    from torpor.images.schema.siginfo import SiginfoEntry
    from torpor.images.schema.signalfd import SignalfdEntry
    from torpor.images.schema.sk_inet import InetSkEntry
    from torpor.images.schema.sk_netlink import NetlinkSkEntry
    from torpor.images.schema.sk_packet import SkPacketEntry
    from torpor.images.schema.sk_unix import UnixSkEntry
    from torpor.images.schema.stats import StatsEntry
    from torpor.images.schema.tcp_stream import TcpStreamEntry
    from torpor.images.schema.timens import TimensEntry
    from torpor.images.schema.timer import ItimerEntry, PosixTimerEntry
    from torpor.images.schema.timerfd import TimerfdEntry
    from torpor.images.schema.torpor import TorporTaskEntry
    from torpor.images.schema.torpor_cpu import TorporCpuEntry
    from torpor.images.schema.torpor_file import TorporFileEntry
    from torpor.images.schema.torpor_host import TorporHostEntry
    from torpor.images.schema.tty import TtyDataEntry, TtyFileEntry, TtyInfoEntry
    from torpor.images.schema.tun import TunfileEntry
    from torpor.images.schema.userns import UsernsEntry
    from torpor.images.schema.utsns import UtsnsEntry
    from torpor.images.schema.vma import VmaEntry

    M = TypeVar("M", bound=Message)
else:
    M = None

    class Generic:
        def __class_getitem__(cls, _):
            return cls


IMG_COMMON: Final = 0x54564319
IMG_SERVICE: Final = 0x55105940
ONE: Final = "one"
MANY: Final = "many"
RAW: Final = "raw"


class ImageKind(Generic[M]):
    """One kind of image.  `shape` is ONE entry, MANY entries, or RAW bytes; `old`: read, no longer written."""

    __slots__ = ("_class", "magic", "message_name", "name", "old", "pattern", "payload", "shape")

    def __init__(
        self,
        name: str,
        pattern: str,
        magic: int,
        message_name: str,
        shape: str,
        payload: Callable[[Any, Source, int], int] | None = None,
    ) -> None:
        self.name, self.pattern, self.magic, self.message_name = name, pattern, magic, message_name
        self.shape = shape
        self.payload = payload  # (entry, image, where the entry ends) -> where its payload ends
        self.old = False
        self._class: type[M] | None = None

    def __repr__(self) -> str:
        return f"<image kind {self.name}>"

    @property
    def message(self) -> type[M]:
        """The class of the entries (of all but a pagemap's first)."""
        if self._class is None:
            module, name = self.message_name.split(".")
            self._class = getattr(__import__(f"torpor.images.schema.{module}", fromlist=[name]), name)
        assert self._class is not None
        return self._class

    @property
    def is_service(self) -> bool:
        return self.magic in (0x57093306, 0x57004059)

    @property
    def has_head(self) -> bool:
        """Whether the first entry is a PagemapHead."""
        return self.magic == 0x56084025

    def file_name(self, id: int | str | None = None) -> str:
        """The name of the file.  `id` is a number, or "dump" or "restore" for STATS."""
        if "{" not in self.pattern:
            if id is not None:
                raise ValueError(f"{self.pattern} has no id, not {id!r}")
            return self.pattern
        if self is STATS:
            if id not in ("dump", "restore"):
                raise ValueError(f"no statistics of {id!r}")
            return f"stats-{id}"
        if not isinstance(id, int) or id < 0:
            raise ValueError(f"{self.pattern} needs a number, not {id!r}")
        return self.pattern.replace("{id:x}", f"{id:x}").replace("{id}", str(id))

    def id_of(self, file_name: str) -> int | str | None:
        """The id in a file's name: None when the name has none, ValueError when it is not of this kind."""
        if "{" not in self.pattern:
            if file_name == self.pattern:
                return None
            raise ValueError(file_name)
        prefix, _, rest = self.pattern.partition("{")
        field, _, suffix = rest.partition("}")
        if file_name.startswith(prefix) and file_name.endswith(suffix) and file_name.isascii():
            id = file_name[len(prefix) : len(file_name) - len(suffix)]
            if self is STATS:
                return id
            if len(id) < 20 and (id.isdigit() if field == "id" else id.isalnum()):
                return int(id, 10 if field == "id" else 16)
        raise ValueError(file_name)


KINDS: Final[dict[str, ImageKind[Any]]] = {}


def _kind(
    name: str,
    pattern: str,
    magic: int,
    message: str,
    shape: str,
    payload: Callable[[Any, Source, int], int] | None = None,
) -> ImageKind[Any]:
    kind: ImageKind[Any] = ImageKind(name, pattern, magic, message, shape, payload)
    KINDS[name] = kind
    return kind


def _old_kind(name: str, pattern: str, magic: int, message: str, shape: str) -> ImageKind[Any]:
    kind = _kind(name, pattern, magic, message, shape)
    kind.old = True
    return kind


def kind_of_file(file_name: str) -> tuple[ImageKind[Any], int | str | None] | None:
    """The kind and id that a file's name says, None for a file that is no image."""
    for kind in KINDS.values():
        try:
            return kind, kind.id_of(file_name)
        except ValueError:
            pass
    return None


# ---- all kinds -------------------------------------------------------------------------------------------------------

INVENTORY: ImageKind[InventoryEntry] = _kind("INVENTORY", "inventory.img", 0x58313116, "inventory.InventoryEntry", ONE)
FDINFO: ImageKind[FdinfoEntry] = _kind("FDINFO", "fdinfo-{id}.img", 0x56213732, "fdinfo.FdinfoEntry", MANY)
PAGEMAP: ImageKind[PagemapEntry] = _kind("PAGEMAP", "pagemap-{id}.img", 0x56084025, "pagemap.PagemapEntry", MANY)
SHMEM_PAGEMAP: ImageKind[PagemapEntry] = _kind(
    "SHMEM_PAGEMAP", "pagemap-shmem-{id}.img", 0x56084025, "pagemap.PagemapEntry", MANY
)
CORE: ImageKind[CoreEntry] = _kind("CORE", "core-{id}.img", 0x55053847, "core.CoreEntry", ONE)
IDS: ImageKind[TaskKobjIdsEntry] = _kind("IDS", "ids-{id}.img", 0x54432030, "core.TaskKobjIdsEntry", ONE)
MM: ImageKind[MmEntry] = _kind("MM", "mm-{id}.img", 0x57492820, "mm.MmEntry", ONE)
PIPES_DATA: ImageKind[PipeDataEntry] = _kind(
    "PIPES_DATA", "pipes-data.img", 0x56453709, "pipe_data.PipeDataEntry", MANY, pipe_data
)
FIFO_DATA: ImageKind[PipeDataEntry] = _kind(
    "FIFO_DATA", "fifo-data.img", 0x59333054, "pipe_data.PipeDataEntry", MANY, pipe_data
)
PSTREE: ImageKind[PstreeEntry] = _kind("PSTREE", "pstree.img", 0x50273030, "pstree.PstreeEntry", MANY)
SK_QUEUES: ImageKind[SkPacketEntry] = _kind(
    "SK_QUEUES", "sk-queues.img", 0x56264026, "sk_packet.SkPacketEntry", MANY, sk_packet
)
UTSNS: ImageKind[UtsnsEntry] = _kind("UTSNS", "utsns-{id}.img", 0x54473203, "utsns.UtsnsEntry", ONE)
IPC_VAR: ImageKind[IpcVarEntry] = _kind("IPC_VAR", "ipcns-var-{id}.img", 0x53115007, "ipc_var.IpcVarEntry", ONE)
IPCNS_SHM: ImageKind[IpcShmEntry] = _kind(
    "IPCNS_SHM", "ipcns-shm-{id}.img", 0x46283044, "ipc_shm.IpcShmEntry", MANY, ipc_shm
)
IPCNS_MSG: ImageKind[IpcMsgEntry] = _kind(
    "IPCNS_MSG", "ipcns-msg-{id}.img", 0x55453737, "ipc_msg.IpcMsgEntry", MANY, ipc_msg
)
IPCNS_SEM: ImageKind[IpcSemEntry] = _kind(
    "IPCNS_SEM", "ipcns-sem-{id}.img", 0x59573019, "ipc_sem.IpcSemEntry", MANY, ipc_sem
)
FS: ImageKind[FsEntry] = _kind("FS", "fs-{id}.img", 0x51403912, "fs.FsEntry", ONE)
REMAP_FPATH: ImageKind[RemapFilePathEntry] = _kind(
    "REMAP_FPATH", "remap-fpath.img", 0x59133954, "remap_file_path.RemapFilePathEntry", MANY
)
GHOST_FILE: ImageKind[GhostFileEntry] = _kind(
    "GHOST_FILE", "ghost-file-{id:x}.img", 0x52583605, "ghost_file.GhostFileEntry", MANY, rest
)
MEMFD_INODE: ImageKind[MemfdInodeEntry] = _kind("MEMFD_INODE", "memfd.img", 0x48453499, "memfd.MemfdInodeEntry", MANY)
TCP_STREAM: ImageKind[TcpStreamEntry] = _kind(
    "TCP_STREAM", "tcp-stream-{id:x}.img", 0x51465506, "tcp_stream.TcpStreamEntry", ONE, tcp_stream
)
MNTS: ImageKind[MntEntry] = _kind("MNTS", "mountpoints-{id}.img", 0x55563928, "mnt.MntEntry", MANY)
NETDEV: ImageKind[NetDeviceEntry] = _kind("NETDEV", "netdev-{id}.img", 0x57373951, "netdev.NetDeviceEntry", MANY)
NETNS: ImageKind[NetnsEntry] = _kind("NETNS", "netns-{id}.img", 0x55933752, "netdev.NetnsEntry", ONE)
IFADDR: ImageKind[Message] = _kind("IFADDR", "ifaddr-{id}.img", 0, "", RAW)
ROUTE: ImageKind[Message] = _kind("ROUTE", "route-{id}.img", 0, "", RAW)
ROUTE6: ImageKind[Message] = _kind("ROUTE6", "route6-{id}.img", 0, "", RAW)
RULE: ImageKind[Message] = _kind("RULE", "rule-{id}.img", 0, "", RAW)
IPTABLES: ImageKind[Message] = _kind("IPTABLES", "iptables-{id}.img", 0, "", RAW)
IP6TABLES: ImageKind[Message] = _kind("IP6TABLES", "ip6tables-{id}.img", 0, "", RAW)
NFTABLES: ImageKind[Message] = _kind("NFTABLES", "nftables-{id}.img", 0, "", RAW)
TMPFS_DEV: ImageKind[Message] = _kind("TMPFS_DEV", "tmpfs-dev-{id}.tar.gz.img", 0, "", RAW)
AUTOFS: ImageKind[AutofsEntry] = _kind("AUTOFS", "autofs-{id}.img", 0x49353943, "autofs.AutofsEntry", MANY)
BINFMT_MISC: ImageKind[BinfmtMiscEntry] = _kind(
    "BINFMT_MISC", "binfmt-misc.img", 0x67343323, "binfmt_misc.BinfmtMiscEntry", MANY
)
TTY_INFO: ImageKind[TtyInfoEntry] = _kind("TTY_INFO", "tty-info.img", 0x59453036, "tty.TtyInfoEntry", MANY)
TTY_DATA: ImageKind[TtyDataEntry] = _kind("TTY_DATA", "tty-data.img", 0x59413026, "tty.TtyDataEntry", MANY)
FILE_LOCKS: ImageKind[FileLockEntry] = _kind("FILE_LOCKS", "filelocks.img", 0x54323616, "file_lock.FileLockEntry", MANY)
PAGES: ImageKind[Message] = _kind("PAGES", "pages-{id}.img", 0, "", RAW)
CGROUP: ImageKind[CgroupEntry] = _kind("CGROUP", "cgroup.img", 0x59383330, "cgroup.CgroupEntry", ONE)
CPUINFO: ImageKind[CpuinfoEntry] = _kind("CPUINFO", "cpuinfo.img", 0x61404013, "cpuinfo.CpuinfoEntry", ONE)
SECCOMP: ImageKind[SeccompEntry] = _kind("SECCOMP", "seccomp.img", 0x64413049, "seccomp.SeccompEntry", ONE)
USERNS: ImageKind[UsernsEntry] = _kind("USERNS", "userns-{id}.img", 0x55474906, "userns.UsernsEntry", ONE)
NETNF_CT: ImageKind[Message] = _kind("NETNF_CT", "netns-ct-{id}.img", 0, "", RAW)
NETNF_EXP: ImageKind[Message] = _kind("NETNF_EXP", "netns-exp-{id}.img", 0, "", RAW)
FILES: ImageKind[FileEntry] = _kind("FILES", "files.img", 0x56303138, "fdinfo.FileEntry", MANY)
TIMENS: ImageKind[TimensEntry] = _kind("TIMENS", "timens-{id}.img", 0x43114433, "timens.TimensEntry", ONE)
PIDNS: ImageKind[PidnsEntry] = _kind("PIDNS", "pidns-{id}.img", 0x61157326, "pidns.PidnsEntry", ONE)
BPFMAP_DATA: ImageKind[BpfmapDataEntry] = _kind(
    "BPFMAP_DATA", "bpfmap-data.img", 0x64324033, "bpfmap_data.BpfmapDataEntry", MANY, bpfmap_data
)
APPARMOR: ImageKind[ApparmorEntry] = _kind("APPARMOR", "apparmor.img", 0x59423047, "apparmor.ApparmorEntry", MANY)
STATS: ImageKind[StatsEntry] = _kind("STATS", "stats-{id}", 0x57093306, "stats.StatsEntry", ONE)
IRMAP_CACHE: ImageKind[IrmapCacheEntry] = _kind("IRMAP_CACHE", "irmap-cache", 0x57004059, "fh.IrmapCacheEntry", MANY)

# Torpor's own, which CRIU does not look at.
TORPOR_TASK: ImageKind[TorporTaskEntry] = _kind(
    "TORPOR_TASK", "torpor-{id}.img", 0x54525052, "torpor.TorporTaskEntry", ONE
)
TORPOR_TAGS: ImageKind[Message] = _kind("TORPOR_TAGS", "torpor-tags-{id}.img", 0, "", RAW)
TORPOR_FILES: ImageKind[TorporFileEntry] = _kind(
    "TORPOR_FILES", "torpor-files.img", 0x54525046, "torpor_file.TorporFileEntry", MANY
)
TORPOR_HOST: ImageKind[TorporHostEntry] = _kind(
    "TORPOR_HOST", "torpor-host.img", 0x54525048, "torpor_host.TorporHostEntry", ONE
)
TORPOR_CPU: ImageKind[TorporCpuEntry] = _kind(
    "TORPOR_CPU", "torpor-cpu.img", 0x54525043, "torpor_cpu.TorporCpuEntry", ONE
)

# What older CRIU wrote and 4.2 still reads.
REG_FILES: ImageKind[RegFileEntry] = _old_kind("REG_FILES", "reg-files.img", 0x50363636, "regfile.RegFileEntry", MANY)
EXT_FILES: ImageKind[ExtFileEntry] = _old_kind("EXT_FILES", "ext-files.img", 0x59255641, "ext_file.ExtFileEntry", MANY)
NS_FILES: ImageKind[NsFileEntry] = _old_kind("NS_FILES", "ns-files.img", 0x61394011, "ns.NsFileEntry", MANY)
EVENTFD_FILE: ImageKind[EventfdFileEntry] = _old_kind(
    "EVENTFD_FILE", "eventfd.img", 0x44523722, "eventfd.EventfdFileEntry", MANY
)
EVENTPOLL_FILE: ImageKind[EventpollFileEntry] = _old_kind(
    "EVENTPOLL_FILE", "eventpoll.img", 0x45023858, "eventpoll.EventpollFileEntry", MANY
)
EVENTPOLL_TFD: ImageKind[EventpollTfdEntry] = _old_kind(
    "EVENTPOLL_TFD", "eventpoll-tfd.img", 0x44433746, "eventpoll.EventpollTfdEntry", MANY
)
SIGNALFD: ImageKind[SignalfdEntry] = _old_kind("SIGNALFD", "signalfd.img", 0x57323820, "signalfd.SignalfdEntry", MANY)
INOTIFY_FILE: ImageKind[InotifyFileEntry] = _old_kind(
    "INOTIFY_FILE", "inotify.img", 0x48424431, "fsnotify.InotifyFileEntry", MANY
)
INOTIFY_WD: ImageKind[InotifyWdEntry] = _old_kind(
    "INOTIFY_WD", "inotify-wd.img", 0x54562009, "fsnotify.InotifyWdEntry", MANY
)
FANOTIFY_FILE: ImageKind[FanotifyFileEntry] = _old_kind(
    "FANOTIFY_FILE", "fanotify.img", 0x55096122, "fsnotify.FanotifyFileEntry", MANY
)
FANOTIFY_MARK: ImageKind[FanotifyMarkEntry] = _old_kind(
    "FANOTIFY_MARK", "fanotify-mark.img", 0x56506035, "fsnotify.FanotifyMarkEntry", MANY
)
VMAS: ImageKind[VmaEntry] = _old_kind("VMAS", "vmas-{id}.img", 0x54123737, "vma.VmaEntry", MANY)
PIPES: ImageKind[PipeEntry] = _old_kind("PIPES", "pipes.img", 0x56513555, "pipe.PipeEntry", MANY)
FIFO: ImageKind[FifoEntry] = _old_kind("FIFO", "fifo.img", 0x58364939, "fifo.FifoEntry", MANY)
SIGACT: ImageKind[SaEntry] = _old_kind("SIGACT", "sigacts-{id}.img", 0x55344201, "sa.SaEntry", MANY)
UNIXSK: ImageKind[UnixSkEntry] = _old_kind("UNIXSK", "unixsk.img", 0x54373943, "sk_unix.UnixSkEntry", MANY)
INETSK: ImageKind[InetSkEntry] = _old_kind("INETSK", "inetsk.img", 0x56443851, "sk_inet.InetSkEntry", MANY)
PACKETSK: ImageKind[PacketSockEntry] = _old_kind(
    "PACKETSK", "packetsk.img", 0x60454618, "packet_sock.PacketSockEntry", MANY
)
NETLINK_SK: ImageKind[NetlinkSkEntry] = _old_kind(
    "NETLINK_SK", "netlinksk.img", 0x58005614, "sk_netlink.NetlinkSkEntry", MANY
)
ITIMERS: ImageKind[ItimerEntry] = _old_kind("ITIMERS", "itimers-{id}.img", 0x57464056, "timer.ItimerEntry", MANY)
POSIX_TIMERS: ImageKind[PosixTimerEntry] = _old_kind(
    "POSIX_TIMERS", "posix-timers-{id}.img", 0x52603957, "timer.PosixTimerEntry", MANY
)
CREDS: ImageKind[CredsEntry] = _old_kind("CREDS", "creds-{id}.img", 0x54023547, "creds.CredsEntry", MANY)
TMPFS_IMG: ImageKind[Message] = _old_kind("TMPFS_IMG", "tmpfs-{id}.tar.gz.img", 0, "", RAW)
BINFMT_MISC_OLD: ImageKind[BinfmtMiscEntry] = _old_kind(
    "BINFMT_MISC_OLD", "binfmt-misc-{id}.img", 0x67343323, "binfmt_misc.BinfmtMiscEntry", MANY
)
TTY_FILES: ImageKind[TtyFileEntry] = _old_kind("TTY_FILES", "tty.img", 0x59433025, "tty.TtyFileEntry", MANY)
RLIMIT: ImageKind[RlimitEntry] = _old_kind("RLIMIT", "rlimit-{id}.img", 0x57113925, "rlimit.RlimitEntry", MANY)
SIGNAL: ImageKind[SiginfoEntry] = _old_kind("SIGNAL", "signal-s-{id}.img", 0x59255647, "siginfo.SiginfoEntry", MANY)
PSIGNAL: ImageKind[SiginfoEntry] = _old_kind("PSIGNAL", "signal-p-{id}.img", 0x59255647, "siginfo.SiginfoEntry", MANY)
TUNFILE: ImageKind[TunfileEntry] = _old_kind("TUNFILE", "tunfile.img", 0x57143751, "tun.TunfileEntry", MANY)
TIMERFD: ImageKind[TimerfdEntry] = _old_kind("TIMERFD", "timerfd.img", 0x50493712, "timerfd.TimerfdEntry", MANY)
BPFMAP_FILE: ImageKind[BpfmapFileEntry] = _old_kind(
    "BPFMAP_FILE", "bpfmap-file.img", 0x57506142, "bpfmap_file.BpfmapFileEntry", MANY
)
PIDFD: ImageKind[PidfdEntry] = _old_kind("PIDFD", "pidfd.img", 0x54435556, "pidfd.PidfdEntry", MANY)
