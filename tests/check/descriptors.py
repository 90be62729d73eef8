# SPDX-License-Identifier: Apache-2.0
"""Every kind of descriptor that this machine can make, and a victim that holds one: ``python descriptors.py NAME``.

The victim says "ready", and at SIGTERM "pass" if its descriptor is still what it was.
"""

import ctypes
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../src"))

from torpor.kernel.syscall import call

LIBC = ctypes.CDLL(None, use_errno=True)
AF_ALG, AF_KEY, AF_VSOCK, AF_XDP, AF_QIPCRTR, AF_CAN, AF_BLUETOOTH = 38, 15, 40, 44, 42, 29, 31


def _of_libc(name: str, *args: int | bytes) -> int:
    fd: int = getattr(LIBC, name)(*args)
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fd


def _buffer(data: bytes, size: int = 0) -> int:
    kept = ctypes.create_string_buffer(data, max(size, len(data)))
    _KEPT.append(kept)
    return ctypes.addressof(kept)


_KEPT: list[object] = []


def _socket(family: int, kind: int = socket.SOCK_RAW, protocol: int = 0) -> Callable[[], int]:
    return lambda: socket.socket(family, kind, protocol).detach()


def _io_uring() -> int:
    return call("io_uring_setup", 4, _buffer(b"", 120))


def _perf_event() -> int:
    attr = struct.pack("=IIQ", 1, 128, 0)  # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_CLOCK
    return call("perf_event_open", _buffer(attr, 128), 0, -1, -1, 0)


def _bpf_map() -> int:
    return call("bpf", 0, _buffer(struct.pack("=IIII", 2, 4, 4, 1), 128), 128)  # BPF_MAP_CREATE, an array


def _bpf_program() -> int:
    code = _buffer(struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0))  # r0 = 0; exit
    attr = struct.pack("=IIQQ", 1, 2, code, _buffer(b"GPL\0"))
    return call("bpf", 5, _buffer(attr, 128), 128)


def _mqueue() -> int:
    name = f"/torpor-test-{os.getpid()}".encode()
    fd = _of_libc("mq_open", name, os.O_RDWR | os.O_CREAT, 0o600, None)  # type: ignore[arg-type]
    LIBC.mq_unlink(name)
    return fd


def _pidfd() -> int:
    return os.pidfd_open(os.getpid())


def _landlock() -> int:
    return call("landlock_create_ruleset", _buffer(struct.pack("=QQ", 1, 0)), 8, 0)


def _seccomp_notify() -> int:
    """A filter that asks a supervisor about nothing."""
    code = _buffer(struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000))  # BPF_RET, SECCOMP_RET_ALLOW
    LIBC.prctl(38, 1, 0, 0, 0)
    return call("seccomp", 1, 8, _buffer(struct.pack("=HxxxxxxQ", 1, code)))


def _open(path: str, flags: int = os.O_RDONLY) -> Callable[[], int]:
    return lambda: os.open(path, flags)


def _timerfd() -> int:
    return call("timerfd_create", 1, 0)


def _signalfd() -> int:
    return call("signalfd4", -1, _buffer(bytes(8)), 8, 0)


def _epoll() -> int:
    return call("epoll_create1", 0)


def _terminal() -> int:
    master, slave = os.openpty()
    os.close(master)
    return slave


def _dma_buffer() -> int:
    """A udmabuf: made of a memfd that may not shrink."""
    import fcntl

    memfd = os.memfd_create("torpor", os.MFD_ALLOW_SEALING)
    os.ftruncate(memfd, 4096)
    fcntl.fcntl(memfd, 1033, 2)
    device = os.open("/dev/udmabuf", os.O_RDWR)
    return fcntl.ioctl(device, 0x40187542, struct.pack("=IIQQ", memfd, 0, 0, 4096))


def _kvm_machine() -> int:
    import fcntl

    return fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR), 0xAE01, 0)


def _tun() -> int:
    return os.open("/dev/net/tun", os.O_RDWR)


MAKERS: dict[str, Callable[[], int]] = {
    "regular": _open(__file__),
    "directory": _open("/"),
    "null": _open("/dev/null"),
    "path": _open("/etc", os.O_PATH),
    "pipe": lambda: os.pipe()[0],
    "memfd": lambda: os.memfd_create("torpor"),
    "eventfd": lambda: os.eventfd(0),
    "epoll": _epoll,
    "timerfd": _timerfd,
    "signalfd": _signalfd,
    "terminal": _terminal,
    "unix": _socket(socket.AF_UNIX, socket.SOCK_STREAM),
    "tcp": _socket(socket.AF_INET, socket.SOCK_STREAM),
    "udp6": _socket(socket.AF_INET6, socket.SOCK_DGRAM),
    "raw": _socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    "inotify": lambda: call("inotify_init1", 0),
    "fanotify": lambda: call("fanotify_init", 0, 0),
    "userfaultfd": lambda: call("userfaultfd", 1),
    "io_uring": _io_uring,
    "perf_event": _perf_event,
    "bpf-map": _bpf_map,
    "bpf-program": _bpf_program,
    "pidfd": _pidfd,
    "namespace": _open("/proc/self/ns/net"),
    "netlink": _socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
    "packet": _socket(socket.AF_PACKET, socket.SOCK_RAW, 0),
    "vsock": _socket(AF_VSOCK, socket.SOCK_STREAM),
    "af_alg": _socket(AF_ALG, socket.SOCK_SEQPACKET),
    "af_key": _socket(AF_KEY, socket.SOCK_RAW, 2),
    "xdp": _socket(AF_XDP),
    "can": _socket(AF_CAN, socket.SOCK_RAW, 1),
    "bluetooth": _socket(AF_BLUETOOTH),
    "mqueue": _mqueue,
    "memfd_secret": lambda: call("memfd_secret", 0),
    "landlock": _landlock,
    "seccomp_notify": _seccomp_notify,
    "fsopen": lambda: call("fsopen", _buffer(b"tmpfs\0"), 0),
    "udmabuf": _dma_buffer,
    "kvm": _kvm_machine,
    "tun": _tun,
    "fuse": _open("/dev/fuse", os.O_RDWR),
    "loop_control": _open("/dev/loop-control", os.O_RDWR),
    "ntsync": _open("/dev/ntsync", os.O_RDWR),
    "watchdog-like": _open("/dev/rtc0"),
    "kmsg": _open("/dev/kmsg"),
    "block": _open("/dev/vda"),
}


def main() -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        fd = MAKERS[sys.argv[1]]()
    except (OSError, AttributeError) as error:
        print(f"cannot: {error}", flush=True)
        return 0
    before = os.fstat(fd)[:6], os.readlink(f"/proc/self/fd/{fd}")
    print("ready", flush=True)
    signal.sigwait([signal.SIGTERM])
    after = os.fstat(fd)[:6], os.readlink(f"/proc/self/fd/{fd}")
    print("pass" if before == after else f"fail: {before} became {after}", flush=True)
    return before != after


if __name__ == "__main__":
    sys.exit(main())
