# SPDX-License-Identifier: Apache-2.0
"""What /proc/PID/fdinfo/FD says about an open file description: proc_pid_fdinfo(5), fs/proc/fd.c.

Every file shows ``pos``, ``flags``, ``mnt_id`` (3.15) and ``ino`` (5.14); the kind of file decides what follows.

Surprising facts:

- ``flags`` are those of the description, in octal, plus O_CLOEXEC, which belongs to the *descriptor* and is the only
  bit that differs between two numbers of one description.  O_CREAT, O_EXCL, O_NOCTTY and O_TRUNC are gone, O_LARGEFILE
  (0o100000 on x86) is shown although the C library defines it as 0.
- ``pos`` of a directory is the file system's private cookie.
- Numbers change their base from line to line: epoll's ``tfd`` is decimal, its events, data, ino and sdev are not, and
  ``sdev`` is the kernel's internal dev_t (major << 20 | minor), the encoding that CRIU's images use too.
- An epoll target that was closed, while a dup or a fork of it lives on, stays in the list under a number that no longer
  exists or means another file: only ino, sdev and kcmp(KCMP_EPOLL_TFD) tell.  The order is that of kernel addresses.
- ``it_value`` of a timerfd is the time left, also when it was armed with an absolute time; (0, 0) is disarmed, or
  expired: a periodic timer that expired shows one tick and no time left until it is read or timerfd_gettime(2) is
  called on it, which makes the missed ticks up.
- ``Pid`` of a pidfd is 0 for a task of a PID namespace that is not visible here and -1 for one that was reaped.
- File names never appear, so nothing a victim chooses stands in these files except numbers, a tun device's name and an
  exporter's name of a DMA buffer: still, lines that are not understood are kept in `FdInfo.other`, never an error.
"""

import os

from torpor.typed import TYPE_CHECKING, Any, Callable, NamedTuple

if TYPE_CHECKING:
    import re


class Eventfd(NamedTuple):
    """An eventfd: its counter and whether it was made with EFD_SEMAPHORE (shown since 6.5; None on older kernels)."""

    counter: int
    semaphore: bool | None


class EpollTarget(NamedTuple):
    """One registration: the number it was made with, its events and data, and which inode is behind it."""

    tfd: int
    events: int
    data: int
    pos: int | None
    ino: int | None
    sdev: int | None


class Timerfd(NamedTuple):
    """A timerfd; times are (seconds, nanoseconds), `value` is the time left."""

    clockid: int
    ticks: int
    settime_flags: int
    value: tuple[int, int]
    interval: tuple[int, int]


class InotifyWatch(NamedTuple):
    """One watch of an inotify descriptor; `handle` is (type, bytes) of the watched inode's file handle."""

    wd: int
    ino: int
    sdev: int
    mask: int
    ignored_mask: int
    handle: tuple[int, bytes] | None


class FileLock(NamedTuple):
    """A lock held through this file: flock(2), or a POSIX, OFD or lease lock.  `end` None is end of file."""

    kind: str
    mandatory: bool
    access: str
    pid: int
    start: int
    end: int | None


class FdInfo(NamedTuple):
    """One fdinfo file.  Everything after `ino` is None or empty unless the file is of that kind."""

    pos: int
    flags: int
    mnt_id: int
    ino: int | None = None
    eventfd: Eventfd | None = None
    epoll: tuple[EpollTarget, ...] = ()
    sigmask: int | None = None
    timerfd: Timerfd | None = None
    pid: int | None = None
    ns_pids: tuple[int, ...] = ()
    scm_fds: int | None = None
    tty_index: int | None = None
    tun: str | None = None
    inotify: tuple[InotifyWatch, ...] = ()
    fanotify: tuple[str, ...] = ()
    locks: tuple[FileLock, ...] = ()
    other: tuple[tuple[str, str], ...] = ()

    @property
    def cloexec(self) -> bool:
        """True if this descriptor has FD_CLOEXEC (fcntl(2)); a property of the number, not of the description."""
        return bool(self.flags & os.O_CLOEXEC)

    @property
    def status_flags(self) -> int:
        """The description's flags, as fcntl(F_GETFL) would show them."""
        return self.flags & ~os.O_CLOEXEC


# Patterns are compiled when such a file is met: most tasks have none.
_EPOLL = (
    r"\s*(-?\d{1,20})\s+events:\s*([0-9a-f]+)\s+data:\s*([0-9a-f]+)"
    r"(?:\s+pos:(-?\d{1,20})\s+ino:([0-9a-f]+)\s+sdev:([0-9a-f]+))?\s*\Z"
)
_PAIR = r"\((\d{1,20}), (\d{1,20})\)\Z"
_INOTIFY = (
    r"inotify wd:([0-9a-f]+) ino:([0-9a-f]+) sdev:([0-9a-f]+) mask:([0-9a-f]+) ignored_mask:([0-9a-f]+)"
    r"(?:\s+fhandle-bytes:[0-9a-f]+ fhandle-type:([0-9a-f]+) f_handle:((?:[0-9a-f]{2})*))?\s*\Z"
)
_LOCK = r"\s*\d+: (\S+)\s+(\S+)\s+(\S+) (-?\d{1,20}) \S+ (\d{1,20}) (\d{1,20}|EOF)\s*\Z"


def _match(pattern: str, text: str) -> "re.Match[str] | None":
    import re

    return re.match(pattern, text, re.ASCII)


_NO_MORE = FdInfo(0, 0, 0, 0)[4:]


def parse(text: str) -> FdInfo:
    """Parse the text of an fdinfo file; unknown lines go to `other`.  ValueError if it begins otherwise."""
    try:
        match text.split():
            case ["pos:", pos, "flags:", flags, "mnt_id:", mount, "ino:", inode]:  # nothing else: a file, since 5.14
                return FdInfo._make((int(pos), int(flags, 8), int(mount), int(inode), *_NO_MORE))
        pos, flags, mount, rest = text.split("\n", 3)
        if pos[:5] != "pos:\t" or flags[:7] != "flags:\t" or mount[:8] != "mnt_id:\t":
            raise ValueError
        ino = None
        if rest[:5] == "ino:\t":
            first, _, rest = rest.partition("\n")
            ino = int(first[5:])
        info = FdInfo(int(pos[5:]), int(flags[7:], 8), int(mount[8:]), ino)
    except ValueError:
        raise ValueError(f"not an fdinfo file: {text[:80]!r}") from None
    return info._replace(**_details(rest)) if rest else info


def read(pid: int | str, fd: int) -> FdInfo:
    """Read and parse /proc/PID/fdinfo/FD; `pid` may be a thread id, or "self".  Raises OSError as open(2) does."""
    return _read_path(f"/proc/{pid}/fdinfo/{fd}")


def read_at(directory: int, fd: int) -> FdInfo:
    """The same through a descriptor of /proc/PID/fdinfo, which saves finding the task each time."""
    return _read_path(str(fd), directory)


def read_all(pid: int | str) -> dict[int, FdInfo]:
    """All of a task's descriptors, in ascending order.  A descriptor that vanishes meanwhile is left out."""
    directory = f"/proc/{pid}/fdinfo"
    found = {}
    for number in sorted(map(int, os.listdir(directory))):
        try:
            found[number] = _read_path(f"{directory}/{number}")
        except FileNotFoundError:
            continue
    return found


def _read_path(path: str, dir_fd: int | None = None) -> FdInfo:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        data = os.read(fd, 4096)
        # seq_file hands out whole lines and may stop early: only an empty read is the end.
        while len(data) >= 2048 and (more := os.read(fd, 1 << 16)):
            data += more
    finally:
        os.close(fd)
    return parse(data.decode("ascii", "surrogateescape"))


def _details(text: str) -> dict[str, Any]:
    """Everything below the common lines, as fields of FdInfo."""
    fields: dict[str, Any] = {}
    single: dict[str, str] = {}
    lists: dict[str, list[Any]] = {}
    for line in text.split("\n"):
        key, _, value = line.partition(":")
        if key == "tfd" and (match := _match(_EPOLL, value)):
            lists.setdefault("epoll", []).append(_epoll_target(match))
        elif key == "inotify wd" and (match := _match(_INOTIFY, line)):
            lists.setdefault("inotify", []).append(_inotify_watch(match))
        elif key == "lock" and (match := _match(_LOCK, value)):
            lists.setdefault("locks", []).append(_lock(match))
        elif key.startswith("fanotify "):
            lists.setdefault("fanotify", []).append(line)
        elif key in _SINGLE and key not in single:
            single[key] = value.strip()
        elif line:
            lists.setdefault("other", []).append((key, value.strip()))
    for field, names, build in _GROUPS:
        try:
            fields[field] = build(*[single[name] for name in names])
        except (KeyError, ValueError):
            continue
        for name in names:
            del single[name]
    single.pop("eventfd-id", None)
    if "eventfd-semaphore" in single and "eventfd" in fields:
        fields["eventfd"] = Eventfd(fields["eventfd"].counter, single.pop("eventfd-semaphore") != "0")
    if single:
        lists.setdefault("other", []).extend(single.items())
    fields.update((field, tuple(found)) for field, found in lists.items())
    return fields


def _epoll_target(match: "re.Match[str]") -> EpollTarget:
    tfd, events, data, pos, ino, sdev = match.groups()
    where = (None, None, None) if pos is None else (int(pos), int(ino, 16), int(sdev, 16))
    return EpollTarget(int(tfd), int(events, 16), int(data, 16), *where)


def _inotify_watch(match: "re.Match[str]") -> InotifyWatch:
    wd, ino, sdev, mask, ignored = (int(part, 16) for part in match.groups()[:5])
    kind, handle = match.group(6), match.group(7)
    return InotifyWatch(wd, ino, sdev, mask, ignored, None if kind is None else (int(kind, 16), bytes.fromhex(handle)))


def _lock(match: "re.Match[str]") -> FileLock:
    kind, mandatory, access, pid, start, end = match.groups()
    return FileLock(kind, mandatory == "MANDATORY", access, int(pid), int(start), None if end == "EOF" else int(end))


def _timerfd(clock: str, ticks: str, flags: str, value: str, interval: str) -> Timerfd:
    return Timerfd(int(clock), int(ticks), int(flags, 8), _pair(value), _pair(interval))


def _pair(text: str) -> tuple[int, int]:
    match = _match(_PAIR, text)
    if match is None:
        raise ValueError(text)
    return int(match.group(1)), int(match.group(2))


# Field of FdInfo, the lines it is made of, and how.  If one is missing or makes no sense, all go to `other`.
_GROUPS: tuple[tuple[str, tuple[str, ...], Callable[..., Any]], ...] = (
    ("eventfd", ("eventfd-count",), lambda count: Eventfd(int(count, 16), None)),
    ("timerfd", ("clockid", "ticks", "settime flags", "it_value", "it_interval"), _timerfd),
    ("sigmask", ("sigmask",), lambda mask: int(mask, 16)),
    ("pid", ("Pid",), int),
    ("ns_pids", ("NSpid",), lambda pids: tuple(map(int, pids.split()))),
    ("scm_fds", ("scm_fds",), int),
    ("tty_index", ("tty-index",), int),
    ("tun", ("iff",), str),
)
_SINGLE = frozenset(name for _, names, _ in _GROUPS for name in names) | {"eventfd-id", "eventfd-semaphore"}
