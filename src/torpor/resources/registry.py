# SPDX-License-Identifier: Apache-2.0
"""Every kind of object that the kernel can show, and who answers for it.

Keys are "fd:…", "vma:…", "task:…", "thread:…", "ns:…".  A kind is either covered by a resource (its module is imported
when the first such object is met) or stands in REFUSED with the sentence that a user gets.  tests/test_registry.py
fails for a kind that has neither.
"""

import os
import stat as st
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.resources.base import Attribute, FileKind

# Modules of resources/ with the registry keys of open files that they cover; each module has FILE_KINDS.
FILES = {
    "fd:regular": "regular",
    "fd:directory": "regular",
    "fd:symlink": "regular",
    "fd:device": "regular",
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

# Modules with ATTRIBUTES, in the order in which they are placed at restore.
ATTRIBUTES = (
    "names", "sched", "creds", "prctl", "threads", "timers", "signals", "rlimits", "security", "cgroup",
)  # fmt: skip

# Kinds that are recognised and refused, with the reason and what the user can do.
REFUSED: dict[str, tuple[str, str]] = {
    "fd:inotify": ("inotify watches cannot be dumped yet", "end the watching program first"),
    "fd:fanotify": ("fanotify marks cannot be dumped yet", "end the watching program first"),
    "fd:userfaultfd": ("a userfaultfd cannot be dumped", "end the program that handles page faults first"),
    "fd:io_uring": ("io_uring cannot be dumped", "run the program with io_uring turned off"),
    "fd:perf_event": ("perf events cannot be dumped", "stop profiling first"),
    "fd:bpf": ("BPF objects cannot be dumped", "close them, or end the program first"),
    "fd:pidfd": ("pidfds cannot be dumped yet", "close them first"),
    "fd:netlink": ("netlink sockets cannot be dumped yet", "close them first"),
    "fd:packet": ("packet sockets cannot be dumped yet", "close them first"),
    "fd:vsock": ("vsock sockets cannot be dumped", "close them first"),
    "fd:socket": ("this family of sockets cannot be dumped", "close it first"),
    "fd:namespace": ("descriptors of namespaces cannot be dumped yet", "close them first"),
    "fd:secretmem": ("secret memory cannot be read from outside, so not dumped", "close it first"),
    "fd:chardev": ("this device keeps state that Torpor cannot save", "close it first"),
    "fd:blockdev": ("block devices cannot be dumped", "close it first"),
    "fd:mqueue": ("POSIX message queues cannot be dumped yet", "close it first"),
    "fd:anon": ("this kind of descriptor is unknown to Torpor", "close it first"),
}

MEMORY_DEVICES = frozenset({(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)})  # null, zero, full, random, urandom
_TTY_MAJORS = frozenset({4, 5, 136, 137, 138, 139, 140, 141, 142, 143})
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
}


def file_key(link: str, stat: os.stat_result, socket_family: int | None = None) -> str:
    """The registry key of an open file: from its link text, its stat and, for a socket, its address family."""
    mode = stat.st_mode
    if link.startswith("anon_inode:"):
        return _ANON.get(link[11:], "fd:anon")
    if st.S_ISSOCK(mode):
        return {1: "fd:unix", 2: "fd:inet", 10: "fd:inet", 16: "fd:netlink", 17: "fd:packet", 40: "fd:vsock"}.get(
            socket_family or 0, "fd:socket"
        )
    if st.S_ISFIFO(mode):
        return "fd:pipe" if link.startswith("pipe:[") else "fd:fifo"
    if link.startswith("/memfd:") and st.S_ISREG(mode):
        return "fd:memfd"
    if link.startswith("/secretmem"):
        return "fd:secretmem"
    if link.startswith("pidfd:["):
        return "fd:pidfd"
    if ":[" in link and link.endswith("]") and not link.startswith("/"):
        return "fd:namespace"
    if st.S_ISREG(mode):
        return "fd:regular"
    if st.S_ISDIR(mode):
        return "fd:directory"
    if st.S_ISLNK(mode):
        return "fd:symlink"
    if st.S_ISCHR(mode):
        device = (os.major(stat.st_rdev), os.minor(stat.st_rdev))
        if device in MEMORY_DEVICES:
            return "fd:device"
        return "fd:tty" if device[0] in _TTY_MAJORS else "fd:chardev"
    if st.S_ISBLK(mode):
        return "fd:blockdev"
    return "fd:anon"


def import_resource(module: str) -> ModuleType:
    """A module of resources/."""
    return import_module(f"torpor.resources.{module}")


def file_kind(key: str) -> "FileKind | None":
    """The resource for a registry key of an open file; None: refused (see REFUSED)."""
    if key not in FILES:
        return None
    kinds: list[FileKind] = import_resource(FILES[key]).FILE_KINDS
    return next(kind for kind in kinds if key in kind.covers)


def file_kind_of_type(fd_type: int) -> "FileKind | None":
    """The resource that restores entries of an FdTypes number; None: not supported."""
    if fd_type not in FILE_TYPES:
        return None
    kinds: list[FileKind] = import_resource(FILE_TYPES[fd_type]).FILE_KINDS
    return next(kind for kind in kinds if kind.type == fd_type)


def attributes() -> "list[Attribute]":
    """All attributes of tasks and threads, in the order of restore."""
    return [a for name in ATTRIBUTES for a in import_resource(name).ATTRIBUTES]
