# SPDX-License-Identifier: Apache-2.0
"""Every kind of object that the kernel can show, and who answers for it.

Keys are "fd:…", "vma:…", "task:…", "thread:…", "ns:…".  A kind is either covered by a resource (its module is imported
when the first such object is met) or stands in REFUSED with the sentence that a user gets.  tests/test_registry.py
fails for a kind that has neither.
"""

import os
import stat as st

from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

    from torpor.resources.base import Attribute, FileKind

# Modules of resources/ with the registry keys of open files that they cover; each module has FILE_KINDS.
FILES = {
    "fd:regular": "regular",
    "fd:directory": "regular",
    "fd:symlink": "regular",
    "fd:device": "regular",
    "fd:path": "regular",
    "fd:pipe": "pipe",
    "fd:fifo": "fifo",
    "fd:memfd": "memfd",
    "fd:eventfd": "eventfd",
    "fd:eventpoll": "epoll",
    "fd:timerfd": "timerfd",
    "fd:signalfd": "signalfd",
    "fd:tty": "tty",
    "fd:unix": "unix",
    "fd:inet": "inet",
}
# FdTypes of files.img by the same modules, for restore.
FILE_TYPES = {1: "regular", 2: "pipe", 3: "fifo", 4: "inet", 5: "unix", 6: "eventfd", 7: "epoll", 9: "signalfd",
              11: "tty", 17: "timerfd", 18: "memfd"}  # fmt: skip
# … and what the others are, which only CRIU's images have.
REFUSED_TYPES = {8: "fd:inotify", 10: "fd:packet", 12: "fd:fanotify", 13: "fd:netlink", 14: "fd:namespace",
                 15: "fd:tun", 19: "fd:bpf", 20: "fd:pidfd"}  # fmt: skip

# Modules with ATTRIBUTES, in the order in which they are placed at restore.
ATTRIBUTES = (
    "names", "sched", "creds", "prctl", "switches", "dexcr", "threads", "timers", "signals", "rlimits", "security",
    "ports", "pkeys", "cgroup", "stops", "semaphores",
)  # fmt: skip

# What has no resource of its own: saved and brought back by the dump and the restore themselves, in these files.
OTHERS = {
    "task:pid": "resources/tree.py",
    "task:parent": "resources/tree.py",
    "task:session": "resources/tree.py",
    "task:group": "resources/tree.py",
    "task:zombie": "resources/tree.py",
    "task:stopped": "resources/tree.py",
    "task:sharing": "model/identity.py",  # CLONE_VM, CLONE_FILES, CLONE_FS, CLONE_SIGHAND
    "task:descriptors": "resources/fdtable.py",
    "task:umask": "resources/fdtable.py",
    "task:cwd": "resources/fdtable.py",
    "task:root": "resources/fdtable.py",
    "task:memory": "memory/dump.py",
    "task:layout": "memory/restore.py",  # brk, arguments, environment, auxiliary vector, executable
    "thread:tid": "restore.py",
    "thread:registers": "arch/base.py",
    "thread:sigmask": "engine/tracee.py",
    "thread:interrupted_call": "arch/base.py",
    "vma:anon": "memory/areas.py",
    "vma:heap": "memory/areas.py",
    "vma:stack": "memory/areas.py",
    "vma:file": "memory/areas.py",
    "vma:shmem": "memory/segments.py",
    "vma:memfd": "memory/segments.py",
    "vma:sysv": "memory/sysv.py",
    "vma:vdso": "memory/restore.py",
    "vma:vvar": "memory/restore.py",
    "vma:vvar_vclock": "memory/restore.py",
    "vma:vsyscall": "memory/areas.py",
    "vma:sigpage": "memory/restore.py",
    "vma:vectors": "memory/areas.py",
    "vma:tags": "memory/tags.py",
}

# Kinds that are recognised and refused, with the reason and what the user can do.
REFUSED: dict[str, tuple[str, str]] = {
    "fd:inotify": ("inotify watches cannot be dumped yet", "let the program watch no files, or end it first"),
    "fd:fanotify": ("fanotify marks cannot be dumped yet", "end the watching program first"),
    "fd:userfaultfd": ("a userfaultfd cannot be dumped", "end the program that handles page faults first"),
    "fd:io_uring": ("io_uring cannot be dumped", "run the program with io_uring turned off"),
    "fd:perf_event": ("perf events cannot be dumped", "stop profiling first"),
    "fd:bpf": ("BPF objects cannot be dumped", "close them, or end the program first"),
    "fd:pidfd": ("pidfds cannot be dumped yet", "close them first"),
    "fd:netlink": ("netlink sockets cannot be dumped yet", "let the program watch no network, or end it first"),
    "fd:packet": ("packet sockets cannot be dumped yet", "close them first"),
    "fd:vsock": ("vsock sockets cannot be dumped", "close them first"),
    "fd:alg": ("sockets of the kernel's cryptography (AF_ALG) cannot be dumped", "close them first"),
    "fd:socket": ("this family of sockets cannot be dumped", "close it first"),
    "fd:namespace": ("descriptors of namespaces cannot be dumped yet", "close them first"),
    "fd:secretmem": ("secret memory cannot be read from outside, so not dumped", "close it first"),
    "fd:chardev": ("this device keeps state that Torpor cannot save", "close it first"),
    "fd:blockdev": ("block devices cannot be dumped", "close it first"),
    "fd:tun": ("network tunnels (tun, tap) cannot be dumped yet", "close it first"),
    "fd:fuse": ("a file system served by the program (FUSE) cannot be dumped", "unmount it first"),
    "fd:loop_control": ("the control of loop devices cannot be dumped", "close it first"),
    "fd:mqueue": ("POSIX message queues cannot be dumped yet", "close it first"),
    "fd:seccomp_notify": ("the supervisor of a seccomp filter cannot be dumped", "end the supervised program first"),
    "fd:landlock": ("a Landlock ruleset cannot be dumped", "let the program enforce and close it first"),
    "fd:mount_api": ("a file system that is being mounted (fsopen) cannot be dumped", "try again in a moment"),
    "fd:cachefiles": ("on-demand cache files cannot be dumped", "close them first"),
    "fd:sync_file": ("fences of a graphics device cannot be dumped", "close the device first"),
    "fd:dmabuf": ("DMA buffers cannot be dumped", "close the device first"),
    "fd:ntsync": ("NT synchronisation objects (ntsync) cannot be dumped", "run the program without /dev/ntsync"),
    "fd:kvm": ("virtual machines of the kernel's hypervisor cannot be dumped", "save the machine by its own means"),
    "fd:vfio": ("devices given to a program (VFIO, iommufd) cannot be dumped", "close the device first"),
    "fd:hardware": ("handles of hardware cannot be dumped", "close the device first"),
    "fd:anon": ("this kind of descriptor is unknown to Torpor", "close it first"),
}

MEMORY_DEVICES = frozenset({(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)})  # null, zero, full, random, urandom
_TTY_MAJORS = frozenset({4, 5, 136, 137, 138, 139, 140, 141, 142, 143})
# What stands behind "anon_inode:" in /proc/PID/fd, of all of Linux 6.18 (the names that are given to anon_inode_getfd,
# anon_inode_getfile, anon_inode_create_getfile and anon_inode_getfile_fmode; pidfs shows itself so, too).
_ANON = {
    "[eventfd]": "fd:eventfd",
    "[eventpoll]": "fd:eventpoll",
    "[timerfd]": "fd:timerfd",
    "[signalfd]": "fd:signalfd",
    "inotify": "fd:inotify",
    "[fanotify]": "fd:fanotify",
    "[userfaultfd]": "fd:userfaultfd",
    "[io_uring]": "fd:io_uring",
    "[perf_event]": "fd:perf_event",
    "[pidfd]": "fd:pidfd",
    "bpf-map": "fd:bpf",
    "bpf-prog": "fd:bpf",
    "bpf_link": "fd:bpf",
    "bpf_iter": "fd:bpf",
    "bpf-iter": "fd:bpf",
    "bpf-stats": "fd:bpf",
    "btf": "fd:bpf",
    "seccomp notify": "fd:seccomp_notify",
    "[landlock-ruleset]": "fd:landlock",
    "[fscontext]": "fd:mount_api",
    "fscontext": "fd:mount_api",
    "[cachefiles]": "fd:cachefiles",
    "sync_file": "fd:sync_file",
    "syncobj_file": "fd:sync_file",
    "ntsync": "fd:ntsync",
    "drm_lease": "fd:hardware",
    "request": "fd:hardware",  # of the media subsystem
    "[secretmem]": "fd:secretmem",
}
# Names that go on with a number, or come in families.
_ANON_FAMILIES = {
    "kvm": "fd:kvm",
    "[kvm": "fd:kvm",
    "mshv": "fd:kvm",
    "[mshv": "fd:kvm",
    "[vfio": "fd:vfio",
    "vfio": "fd:vfio",
    "[iommufd": "fd:vfio",
    "iio:": "fd:hardware",
    "gpio": "fd:hardware",
    "[infinibandevent]": "fd:hardware",
    "[i915": "fd:hardware",
    "i915": "fd:hardware",
    "[xe": "fd:hardware",
    "[papr": "fd:hardware",
    "[ioasid]": "fd:hardware",
    "bpf": "fd:bpf",
}
_SOCKETS = {1: "fd:unix", 2: "fd:inet", 10: "fd:inet", 16: "fd:netlink", 17: "fd:packet", 38: "fd:alg", 40: "fd:vsock"}
_DEVICES = {(10, 200): "fd:tun", (10, 229): "fd:fuse", (10, 232): "fd:kvm", (10, 237): "fd:loop_control"}
# File systems that are no storage (statfs.f_type); whatever is open there would come back as something else.
MQUEUE_MAGIC, SECRETMEM_MAGIC = 0x19800202, 0x5345434D
_FILE_SYSTEMS = {MQUEUE_MAGIC: "fd:mqueue", SECRETMEM_MAGIC: "fd:secretmem"}


def key_of_link(link: str) -> str:
    """The registry key of an open file as far as its link in /proc tells; "" where it does not."""
    if link.startswith("anon_inode:"):
        name = link[11:]
        if name in _ANON:
            return _ANON[name]
        return next((key for start, key in _ANON_FAMILIES.items() if name.startswith(start)), "fd:anon")
    if link.startswith("/"):
        return "fd:dmabuf" if link.startswith("/dmabuf:") else ""
    if link.startswith("pidfd:["):
        return "fd:pidfd"
    if link.endswith("]") and ":[" in link and not link.startswith(("socket:[", "pipe:[")):
        return "fd:namespace"
    return ""


def modules_of_link(link: str) -> tuple[str, ...]:
    """The modules that an open file with that link in /proc needs, as far as the link tells."""
    if link.startswith("socket:["):
        return "unix", "inet"
    if link.startswith("pipe:["):
        return ("pipe",)
    if link.startswith("/"):
        if link.startswith("/memfd:"):
            return ("memfd",)
        return ("tty", "regular") if link.startswith(("/dev/pts/", "/dev/tty")) else ("regular",)
    key = key_of_link(link)
    return (FILES[key],) if key in FILES else ()


def file_key(link: str, stat: os.stat_result, socket_family: int | None = None, file_system: int = 0) -> str:
    """The registry key of an open file: from its link text and its stat; of a socket also its address family, of a
    regular file the type of its file system (statfs.f_type), where the kernel may have made that up."""
    mode = stat.st_mode
    by_link = key_of_link(link)
    if by_link:
        return by_link
    if st.S_ISSOCK(mode):
        return _SOCKETS.get(socket_family or 0, "fd:socket")
    if st.S_ISFIFO(mode):
        return "fd:pipe" if link.startswith("pipe:[") else "fd:fifo"
    if link.startswith("/memfd:") and link.endswith(" (deleted)") and st.S_ISREG(mode) and not os.major(stat.st_dev):
        return "fd:memfd"
    if st.S_ISREG(mode):
        return _FILE_SYSTEMS.get(file_system, "fd:regular")
    if st.S_ISDIR(mode):
        return "fd:directory"
    if st.S_ISLNK(mode):
        return "fd:symlink"
    if st.S_ISCHR(mode):
        device = (os.major(stat.st_rdev), os.minor(stat.st_rdev))
        if device in MEMORY_DEVICES:
            return "fd:device"
        return "fd:tty" if device[0] in _TTY_MAJORS else _DEVICES.get(device, "fd:chardev")
    if st.S_ISBLK(mode):
        return "fd:blockdev"
    return "fd:anon"


def import_resource(module: str) -> "ModuleType":
    """A module of resources/.  (importlib would import warnings.)"""
    return __import__(f"torpor.resources.{module}", fromlist=[""])


def file_kind(key: str) -> "FileKind | None":
    """The resource for a registry key of an open file; None: refused (see REFUSED)."""
    if key not in FILES:
        return None
    if key not in _kinds:
        kinds: list[FileKind] = import_resource(FILES[key]).FILE_KINDS
        _kinds[key] = next(kind for kind in kinds if key in kind.covers)
    return _kinds[key]


_kinds: "dict[str, FileKind]" = {}  # what was imported already
_kinds_of_types: "dict[int, FileKind]" = {}


def file_kind_of_type(fd_type: int) -> "FileKind | None":
    """The resource that restores entries of an FdTypes number; None: not supported."""
    if fd_type not in FILE_TYPES:
        return None
    if fd_type not in _kinds_of_types:
        kinds: list[FileKind] = import_resource(FILE_TYPES[fd_type]).FILE_KINDS
        _kinds_of_types[fd_type] = next(kind for kind in kinds if kind.type == fd_type)
    return _kinds_of_types[fd_type]


def attributes() -> "list[Attribute]":
    """All attributes of tasks and threads, in the order of restore."""
    return [a for name in ATTRIBUTES for a in import_resource(name).ATTRIBUTES]
