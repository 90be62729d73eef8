# SPDX-License-Identifier: Apache-2.0
r"""/proc/PID/mountinfo: the mounts that a task sees (proc_pid_mountinfo(5)).  Pure parsing.

- Blank, tab, newline and backslash in paths are escaped as ``\040 \011 \012 \134``, here in every field (maps escapes
  the newline only); in sources and types "#" (``\043``) too.  So unescaping is exact.
- A mount whose root was deleted shows "//deleted" at the end of `root`.
- Mounts outside the task's root directory are not shown at all; the mount point is relative to that root.
- Optional fields end with a single "-".  The order is that of the mount tree: a mount comes after its parent.
"""

import os

from torpor.kernel.procfs import ParseError, read_all
from torpor.typed import NamedTuple

# Types of file systems without a block device.
MADE_UP = frozenset(  # the kernel makes a file's content when it is read
    {"proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "configfs"}
)
IN_MEMORY = frozenset({"tmpfs", "ramfs"})
WITHOUT_DISK = MADE_UP | IN_MEMORY | {  # nothing of what is written there is brought to a disk
    "devtmpfs", "hugetlbfs", "efivarfs", "bpf", "mqueue", "devpts", "binfmt_misc", "fusectl", "pstore",
}  # fmt: skip


class Mount(NamedTuple):
    """One line of mountinfo (struct mount)."""

    id: int
    parent: int
    dev: tuple[int, int]  # st_dev of its files; on btrfs and overlayfs they may have another
    root: str  # the directory of the file system that is mounted here
    point: str
    options: tuple[str, ...]  # of the mount: rw, nosuid, relatime, ...
    shared: int  # peer group, 0: private
    master: int  # slave of this peer group, 0: none
    propagate_from: int
    unbindable: bool
    fstype: str  # with subtype: "fuse.sshfs"
    source: str
    super_options: tuple[str, ...]  # of the file system


def unescape(field: bytes) -> str:
    r"""Undo ``\ooo`` (seq_escape, mangle_path)."""
    if b"\\" in field:
        import re

        field = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8) & 0xFF]), field)
    return os.fsdecode(field)


def parse_mountinfo(data: bytes) -> list[Mount]:
    mounts: list[Mount] = []
    line = b""
    try:
        for line in data.split(b"\n"):
            if line:
                mounts.append(_mount(line))
    except (ValueError, IndexError):
        raise ParseError("mountinfo", line) from None
    return mounts


def type_of_device(device: int) -> str:
    """The type of a file system without a block device; "" if it is not mounted here."""
    key = (os.major(device), os.minor(device))
    for mount in parse_mountinfo(read_all("/proc/self/mountinfo")):
        if mount.dev == key:
            return mount.fstype.partition(".")[0]
    return ""


def is_made_up(device: int) -> bool:
    """Whether the kernel makes the contents of a device's files when they are read: their sizes say nothing, and change
    with the kernel (/proc/cmdline has one under 6.12, and none under 6.1)."""
    return os.major(device) == 0 and type_of_device(device) in MADE_UP


def _mount(line: bytes) -> Mount:
    number, parent, dev, root, point, options, *rest = line.split(b" ")
    end = rest.index(b"-")
    groups = {b"shared": 0, b"master": 0, b"propagate_from": 0}
    unbindable = False
    for field in rest[:end]:
        key, _, value = field.partition(b":")
        if key in groups:
            groups[key] = int(value)
        elif key == b"unbindable":
            unbindable = True
    major, minor = dev.split(b":")
    return Mount(
        id=int(number),
        parent=int(parent),
        dev=(int(major), int(minor)),
        root=unescape(root),
        point=unescape(point),
        options=tuple(os.fsdecode(options).split(",")),
        shared=groups[b"shared"],
        master=groups[b"master"],
        propagate_from=groups[b"propagate_from"],
        unbindable=unbindable,
        fstype=unescape(rest[end + 1]),
        source=unescape(rest[end + 2]),
        super_options=tuple(os.fsdecode(rest[end + 3]).split(",")),
    )
