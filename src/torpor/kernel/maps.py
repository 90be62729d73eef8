# SPDX-License-Identifier: Apache-2.0
r"""The areas of an address space: /proc/PID/maps and smaps (proc_pid_maps(5), proc_pid_smaps(5)).

What the file shows and what it hides:

- Of all bytes of a path only the newline is escaped, as ``\012``; a backslash is not.  A file whose name really has the
  four characters ``\012`` in it therefore looks like one with a newline.  ``/proc/PID/map_files/START-END`` knows.
- " (deleted)" at the end of a path means that the name is gone, or that the file is really called so.  `Area.deleted`
  says what is shown; the truth needs the inode (fstat of map_files, st_nlink).
- Shared anonymous memory is a deleted file on a file system of the kernel's own: "/dev/zero (deleted)",
  "/memfd:NAME (deleted)", "/SYSVkey (deleted)", all with the device number that `shm_device` finds out.  The inode of
  a SysV segment is its shmid.
- An area with a name from PR_SET_VMA_ANON_NAME is "[anon:NAME]", a shared one "[anon_shmem:NAME]": then the path no
  longer says /dev/zero, and [heap] and [stack] lose to the name too.
- The kernel sets MAP_GROWSDOWN and friends aside: they are in smaps only, as two-letter VmFlags.  smaps walks the page
  tables: 12 ms a GB where maps takes 0.1 ms.  Read it after the thaw, or when an area may need it.
- "[vsyscall]" is not an area of the task at all; it is shown at the end of every map on x86_64.

PROCMAP_QUERY (6.11) was considered: one ioctl an area is slower than the file from Python, and it has no VmFlags.
What only it has is the page size of a hugetlb area and an unescaped path, which map_files gives as well.
"""

import mmap
import os

from torpor.kernel.procfs import LARGE, ParseError, read_all
from torpor.typed import NamedTuple

DELETED = " (deleted)"

PROT_READ, PROT_WRITE, PROT_EXEC = mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC
MAP_SHARED, MAP_PRIVATE = mmap.MAP_SHARED, mmap.MAP_PRIVATE


class Area(NamedTuple):
    """One line of /proc/PID/maps (struct vm_area_struct)."""

    start: int
    end: int
    prot: int  # PROT_READ | PROT_WRITE | PROT_EXEC
    flags: int  # MAP_SHARED or MAP_PRIVATE
    offset: int  # in the file; of a private anonymous area always 0
    dev: tuple[int, int]  # (major, minor); (0, 0): no file
    inode: int
    path: str  # as shown, surrogateescape; "" for a nameless anonymous area

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def shared(self) -> bool:
        return self.flags == MAP_SHARED

    @property
    def deleted(self) -> bool:
        """Whether the path is shown as deleted.  The file may really be called so: see the module's docstring."""
        return self.path.endswith(DELETED)

    @property
    def has_file(self) -> bool:
        """Whether the kernel has a file behind it (shared anonymous memory has one too)."""
        return self.inode != 0 or self.dev != (0, 0)


_PERMS = {
    f"{r}{w}{x}{s}".encode(): (
        (PROT_READ if r == "r" else 0) | (PROT_WRITE if w == "w" else 0) | (PROT_EXEC if x == "x" else 0),
        MAP_PRIVATE if s == "p" else MAP_SHARED,
    )
    for r in "r-"
    for w in "w-"
    for x in "x-"
    for s in "ps"
}


def _tail(dev: bytes, inode: bytes, path: bytes) -> tuple[tuple[int, int], int, str]:
    major, _, minor = dev.partition(b":")
    text = os.fsdecode(path.lstrip(b" "))
    if "\\012" in text:
        text = text.replace("\\012", "\n")
    return (int(major, 16), int(minor, 16)), int(inode), text


def parse_maps(data: bytes) -> list[Area]:
    """The areas of a /proc/PID/maps file, in the order of their addresses.  ParseError for anything else."""
    # 10,000 areas have few different permissions and files: what repeats is looked up, not parsed again.
    areas: list[Area] = []
    add, new, perms = areas.append, tuple.__new__, _PERMS
    tails: dict[bytes, tuple[tuple[int, int], int, str]] = {}
    lines = data.split(b"\n")
    line = lines.pop()
    try:
        if line:
            raise ValueError  # the last line is cut
        for line in lines:
            span, mode, offset, tail = line.split(b" ", 3)
            start, end = span.split(b"-")
            prot, flags = perms[mode]
            known = tails.get(tail)
            if known is None:
                dev, inode, path = (tail + b" ").split(b" ", 2)
                known = tails[tail] = _tail(dev, inode, path[:-1])
            add(new(Area, (int(start, 16), int(end, 16), prot, flags, int(offset, 16), *known)))
    except (ValueError, KeyError):
        raise ParseError("maps", line) from None
    return areas


_last: tuple[bytes, list[Area]] = b"", []  # a maps file, and what is in it: that of a forked task is often the same


def read_maps(pid: int) -> list[Area]:
    """The areas of task `pid`; empty for a zombie and a kernel thread.  A TID works as well as a PID."""
    global _last
    data = read_all(f"/proc/{pid}/maps", LARGE)
    if data != _last[0]:
        _last = data, parse_maps(data)
    areas = [*_last[1]]
    if b"\\012" in data:
        areas = [area._replace(path=_true_path(pid, area)) if "\n" in area.path else area for area in areas]
    return areas


def _true_path(pid: int, area: Area) -> str:
    try:
        return os.readlink(f"/proc/{pid}/map_files/{area.start:x}-{area.end:x}")
    except OSError:  # it is gone meanwhile, or we are not root
        return area.path


def parse_vm_flags(data: bytes) -> dict[int, frozenset[str]]:
    """From the content of smaps: start address -> two-letter flags (Documentation/filesystems/proc.rst, VmFlags).

    Also "pkey" where the area has a protection key (pkeys(7)), which smaps shows on a line of its own.
    """
    sets: dict[bytes, frozenset[str]] = {}
    flags: list[frozenset[str]] = []
    start = data[:17].partition(b"-")[0]
    starts = [start]
    try:
        # Flags are the last line of an area's: what follows them begins with the next one's address.  Of all that
        # smaps says, 700 bytes an area, these two are looked at.
        _, *parts = data.split(b"\nVmFlags:")
        for part in parts:
            end = part.index(b"\n")
            known = sets.get(line := part[:end])
            if known is None:
                known = sets[line] = frozenset(line.decode("ascii").split())
            flags.append(known)
            start = part[end + 1 : end + 18].partition(b"-")[0]
            starts.append(start)
        if starts.pop() or data.count(b"\nSize:") != len(flags):
            raise ValueError
        found = dict(zip([int(start, 16) for start in starts], flags, strict=True))
    except ValueError:
        raise ParseError("smaps", start) from None
    if data.count(b"ProtectionKey:") != data.count(b"ProtectionKey:         0\n"):
        _add_keys(data, found)
    return found


def vm_flags_of(data: bytes, start: int, since: int = 0) -> tuple[list[str], int]:
    """From the content of smaps: the two-letter flags of one area, and the offset behind them.  `since`: such an offset
    of an area before it, from where to search.  Raises ParseError where there is no such area."""
    head = b"%08x-" % start
    at = 0 if data.startswith(head) else data.find(b"\n" + head, since)
    before, name, rest = data[at : at + (1 << 15)].partition(b"\nVmFlags:")
    if at < 0 or not name:
        raise ParseError("smaps", head)
    flags = rest[: rest.index(b"\n")]
    return flags.decode("ascii").split(), at + len(before) + len(name) + len(flags)


PROTECTION_KEY = "pkey"  # not one of the kernel's flags: the area has a protection key other than 0


def _add_keys(data: bytes, found: dict[int, frozenset[str]]) -> None:
    import re

    for part in re.split(rb"^(?=[0-9a-f]+-)", data, flags=re.M):
        if re.search(rb"^ProtectionKey: +[1-9]", part, re.M):
            start = int(part.partition(b"-")[0], 16)
            found[start] |= {PROTECTION_KEY}


def read_vm_flags(pid: int) -> dict[int, frozenset[str]]:
    """VmFlags of every area by its start address.  Slow: see the module's docstring."""
    return parse_vm_flags(read_all(f"/proc/{pid}/smaps", LARGE))


_shm_device: tuple[int, int] | None = None


def shm_device() -> tuple[int, int]:
    """(major, minor) of the kernel's own tmpfs, where memfds, SysV segments and shared anonymous memory live."""
    global _shm_device
    if _shm_device is None:
        fd = os.memfd_create("torpor", os.MFD_CLOEXEC)
        try:
            dev = os.fstat(fd).st_dev
        finally:
            os.close(fd)
        _shm_device = (os.major(dev), os.minor(dev))
    return _shm_device


# Areas that the kernel itself put there, by the name that it shows.
SPECIAL = {
    "[vdso]": "vdso",
    "[vvar]": "vvar",
    "[vvar_vclock]": "vvar_vclock",
    "[vsyscall]": "vsyscall",
    "[uprobes]": "uprobes",
    "[sigpage]": "sigpage",
    "[vectors]": "vectors",
}

# Everything `kind` can say.
KINDS = frozenset(SPECIAL.values()) | {
    "anon", "heap", "stack", "shmem", "memfd", "memfd-huge", "sysv", "sysv-huge", "anon-huge",
    "aio", "socket", "io_uring", "perf", "anon_inode", "dmabuf", "file", "special",
}  # fmt: skip


def kind(area: Area) -> str:
    """What sort of memory an area is: one word of `KINDS`.

    anon, heap, stack: private anonymous (named ones too).  shmem: shared anonymous.  memfd, sysv: by their names, and
    with -huge when on hugetlbfs; anon-huge: MAP_ANONYMOUS|MAP_HUGETLB, private or shared.  file: a file with a name,
    regular or device (stat tells), private or shared.  special: a name in brackets that this version does not know.
    """
    path = area.path
    if not path:
        return "anon" if not area.has_file else "file"
    first = path[0]
    if first == "/":
        if not path.endswith(DELETED) or area.dev[0] != 0:
            return "file"  # major 0: no block device; a file of the kernel's own always has it
        return _kernel_file(area, path, on_shm=area.dev == shm_device())
    if first == "[":
        return SPECIAL.get(path) or _bracketed(area, path)
    if path.startswith("socket:["):
        return "socket"
    if path.startswith("anon_inode:"):
        return {"[io_uring]": "io_uring", "[perf_event]": "perf"}.get(path[11:], "anon_inode")
    return "file"


def _kernel_file(area: Area, path: str, on_shm: bool) -> str:
    if path.startswith("/memfd:"):
        return "memfd" if on_shm else "memfd-huge"
    if path.startswith("/SYSV"):
        return "sysv" if on_shm else "sysv-huge"
    if path == "/dev/zero (deleted)" and on_shm:
        return "shmem"
    if path == "/anon_hugepage (deleted)":
        return "anon-huge"
    if path == "/[aio] (deleted)":
        return "aio"
    if path == "/secretmem (deleted)":
        return "secretmem"
    if path.startswith("/dmabuf:"):
        return "dmabuf"
    return "file"


def _bracketed(area: Area, path: str) -> str:
    if path == "[heap]":
        return "heap"
    if path == "[stack]":
        return "stack"
    if path.startswith("[anon_shmem:"):
        return "shmem"
    if path.startswith("[anon:"):
        return "anon"
    return "special"
