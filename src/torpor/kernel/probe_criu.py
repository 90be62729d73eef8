# SPDX-License-Identifier: Apache-2.0
"""Probes behind the names of ``criu check --feature`` that Torpor does not use itself (yet).

They answer the question about the kernel, as CRIU's do, except where a yes would make a script use what Torpor refuses:
tracking memory (``--track-mem``), lazy pages and 32-bit programs.
"""

import ctypes
import fcntl
import os
import struct
import tempfile
from contextlib import contextmanager

from torpor.kernel import probe_memory as memory
from torpor.kernel import probe_net as net
from torpor.kernel import process, ptrace
from torpor.kernel.ioctls import io, iow
from torpor.kernel.probe import OPTIONAL, Missing, Probe, in_child
from torpor.kernel.probe_tasks import stopped_child
from torpor.kernel.syscall import call, map_memory
from torpor.typed import Iterator

# In the order of criu --help.
_NAMES = """
mnt_id mem_dirty_track aio_remap timerfd tun tun_ns userns fdinfo_lock seccomp_suspend seccomp_filters loginuid cgroupns
autofs tcp_half_closed compat_cr uffd uffd-noncoop can_map_vdso sk_ns sk_unix_file net_diag_raw nsid link_nsid
kcmp_epoll timens external_net_ns clone3_set_tid newifindex nftables has_ipt_legacy pidfd_store ns_pid
apparmor_stacking network_lock_nftables sockopt_buf_lock memfd_hugetlb move_mount_set_group openat2 get_rseq_conf
ipv6_freebind pagemap_scan timer_cr_ids overlayfs_maps breakpoints pagemap_scan_guard_pages
"""
NAMES = tuple(_NAMES.split())

_TUNSETIFF, _TUNGETDEVNETNS = iow("T", 202, 4), io("T", 227)
_ARCH_MAP_VDSO_64 = 0x2003
_SECCOMP_GET_FILTER, _POKEUSER = 0x420C, 6
_DEBUG_REGISTERS = 848  # offsetof(struct user, u_debugreg), x86_64
_MOVE_MOUNT_SET_GROUP = 0x100
_MS_REC, _MS_PRIVATE, _MS_SHARED, _MS_BIND = 0x4000, 1 << 18, 1 << 20, 0x1000
_AT_FDCWD = -100


def probes() -> Iterator[Probe]:
    tests = {
        "mem_dirty_track": _tracking,
        "aio_remap": aio_remap,
        "tun": tun,
        "tun_ns": tun_namespace,
        "userns": user_namespace,
        "fdinfo_lock": fdinfo_lock,
        "seccomp_filters": seccomp_filters,
        "loginuid": loginuid,
        "cgroupns": cgroup_namespace,
        "autofs": autofs,
        "tcp_half_closed": net.tcp_half_closed,
        "compat_cr": _compat,
        "uffd": _lazy,
        "uffd-noncoop": _lazy,
        "can_map_vdso": map_vdso,
        "sk_ns": net.socket_namespace,
        "sk_unix_file": net.unix_file,
        "net_diag_raw": net.raw_diag,
        "nsid": net.namespace_id,
        "link_nsid": net.link_namespace_id,
        "external_net_ns": net.foreign_namespace,
        "newifindex": net.interface_index,
        "nftables": net.nftables,
        "has_ipt_legacy": iptables_legacy,
        "ns_pid": pid_in_namespace,
        "apparmor_stacking": apparmor_stacking,
        "network_lock_nftables": net.nftables,
        "move_mount_set_group": move_mount_set_group,
        "ipv6_freebind": net.freebind,
        "overlayfs_maps": overlayfs_maps,
        "breakpoints": breakpoints,
    }
    for name, test in tests.items():
        yield Probe(name, OPTIONAL, "", "", test, "")


def _tracking() -> None:
    try:
        memory.soft_dirty()
    except Missing:
        memory.wp_async()
    raise Missing("this kernel could, but Torpor does not track memory yet")


def _lazy() -> None:
    memory.uffd()
    memory.uffd_noncoop()
    raise Missing("this kernel could, but Torpor has no lazy pages yet")


def _compat() -> None:
    raise Missing("Torpor does not handle 32-bit programs")


def aio_remap() -> None:
    context = ctypes.c_ulong()
    call("io_setup", 1, ctypes.addressof(context))
    with open("/proc/self/maps") as maps:
        line = next(line for line in maps if line.startswith(f"{context.value:x}-"))
    start, end = (int(word, 16) for word in line.split()[0].split("-"))
    size = end - start
    place = map_memory(size, 0, 0x22)
    call("mremap", start, size, size, 3, place)  # MREMAP_MAYMOVE | MREMAP_FIXED
    try:
        call("io_destroy", place)
    except OSError:
        raise Missing("a ring does not work where it was moved to") from None


@contextmanager
def _tun() -> Iterator[int]:
    process.unshare(process.CLONE_NEWNET)
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("=16sH22x", b"torpor0", 1))  # IFF_TUN
    yield fd
    os.close(fd)


@in_child
def tun() -> None:
    with _tun():
        pass


@in_child
def tun_namespace() -> None:
    with _tun() as fd:
        os.close(process.ioctl(fd, _TUNGETDEVNETNS))


@in_child
def user_namespace() -> None:
    process.unshare(process.CLONE_NEWUSER)


@in_child
def cgroup_namespace() -> None:
    process.unshare(process.CLONE_NEWCGROUP)


def fdinfo_lock() -> None:
    with tempfile.TemporaryFile() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with open(f"/proc/self/fdinfo/{file.fileno()}") as info:
            if "lock:" not in info.read():
                raise Missing("locks are not shown")


def seccomp_filters() -> None:
    with stopped_child() as pid:
        try:
            ptrace.request(_SECCOMP_GET_FILTER, pid, 0, 0)
        except OSError as error:
            if error.errno not in (2, 22):  # ENOENT, EINVAL: it has no filter
                raise


@in_child
def loginuid() -> None:
    with open("/proc/self/loginuid", "r+") as file:
        uid = file.read()
        file.seek(0)
        file.write(uid)


def autofs() -> None:
    os.close(call("fsopen", ctypes.addressof(ctypes.create_string_buffer(b"autofs")), 1))


def map_vdso() -> None:
    if os.uname().machine != "x86_64":
        return  # elsewhere the vDSO is moved by mremap
    try:
        call("arch_prctl", _ARCH_MAP_VDSO_64, 0)
    except FileExistsError:
        pass  # one is enough; the call is there


def iptables_legacy() -> None:
    import shutil
    import subprocess

    if shutil.which("iptables-legacy-save"):
        return
    if not shutil.which("iptables-save"):
        raise Missing("there is no iptables-save")
    if "nf_tables" in subprocess.run(["iptables-save", "-V"], capture_output=True, text=True, check=False).stdout:
        raise Missing("iptables-save uses nf_tables")


def pid_in_namespace() -> None:
    with open("/proc/self/status") as status:
        if f"\nNSpid:\t{os.getpid()}" not in status.read():
            raise Missing("PIDs in namespaces are not shown")


def apparmor_stacking() -> None:
    with open("/sys/kernel/security/apparmor/features/domain/stack") as answer:
        if answer.read().strip() != "yes":
            raise Missing("AppArmor has no stacking")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    words = [ctypes.create_string_buffer(word.encode()) for word in (source, target, kind, data)]
    a, b, c, d = (ctypes.addressof(word) for word in words)
    call("mount", a, b, c, flags, d)


@contextmanager
def _private_tmpfs() -> Iterator[str]:
    """A directory of our own that goes away with the child that we are in."""
    place = "/tmp" if os.path.isdir("/tmp") else "/"
    process.unshare(process.CLONE_NEWNS)
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    _mount("torpor", place, "tmpfs", 0)
    yield place


@in_child
def move_mount_set_group() -> None:
    with _private_tmpfs() as place:
        os.mkdir(f"{place}/a")
        os.mkdir(f"{place}/b")
        for name in ("a", "b"):
            _mount(place, f"{place}/{name}", "", _MS_BIND)
            _mount("none", f"{place}/{name}", "", _MS_PRIVATE)
        _mount("none", f"{place}/a", "", _MS_SHARED)
        one, other = (ctypes.create_string_buffer(f"{place}/{name}".encode()) for name in ("a", "b"))
        call("move_mount", _AT_FDCWD, ctypes.addressof(one), _AT_FDCWD, ctypes.addressof(other), _MOVE_MOUNT_SET_GROUP)


@in_child
def overlayfs_maps() -> None:
    with _private_tmpfs() as place:
        for name in ("lower", "upper", "work", "all"):
            os.mkdir(f"{place}/{name}")
        with open(f"{place}/lower/file", "wb") as file:
            file.write(bytes(4096))
        options = f"lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work"
        _mount("torpor", f"{place}/all", "overlay", 0, options)
        fd = os.open(f"{place}/all/file", os.O_RDONLY)
        with memory.page(1, fd=fd) as at, open("/proc/self/maps") as maps:
            line = next(line for line in maps if line.startswith(f"{at:x}-"))
        about = os.fstat(fd)
        if f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x} {about.st_ino}" not in line:
            raise Missing("maps shows a layer's file, not the overlay's")


def breakpoints() -> None:
    if os.uname().machine != "x86_64":
        raise Missing(f"not tried on {os.uname().machine}")
    with stopped_child() as pid:
        ptrace.request(_POKEUSER, pid, _DEBUG_REGISTERS, 0x1000)
        ptrace.request(_POKEUSER, pid, _DEBUG_REGISTERS + 7 * 8, 1)
