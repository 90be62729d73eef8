# SPDX-License-Identifier: Apache-2.0
"""Names of UNIX sockets: which file is behind one, and how a socket gets the same name again.  unix(7).

A name is what was given to bind(2): abstract with a leading NUL, or a path with a trailing NUL; a relative path stays
relative, whatever becomes of the working directory.  What counts for connect(2) is the file's inode, which the socket
holds for ever.  Surprising facts:

- ioctl(SIOCUNIXFILE, 4.15, CAP_NET_ADMIN) opens the file of a socket wherever it is now, also removed.  Where a server
  linked it to another name and removed the first (supervisord), it knows only the first.
- connect(2) follows /proc/self/fd/N to it, so that a socket can be reached whose name is gone.
- The name of a removed file, or of a sender that is closed, is a mere string: it is bound on an empty tmpfs that nobody
  else sees (a detached mount, chroot(2) into it), so that nothing in the real directory is touched.
"""

import ctypes
import fcntl
import os
import stat as st
import sys
from contextlib import contextmanager

from torpor.errors import KernelError, Refusal
from torpor.kernel import file_facts
from torpor.kernel.syscall import call
from torpor.typed import Iterator, NamedTuple

AF_UNIX = 1
SIOCUNIXFILE = 0x89E0
_FSCONFIG_CREATE = 6
_MAX_CHILDREN = 2000  # directories looked into, one level deep, for what a relative name may be relative to


class Place(NamedTuple):
    """A path name as at bind(2): the directory of a relative one, the root directory of an absolute one."""

    name: bytes  # without the trailing NUL
    directory: str | None = None
    root: str | None = None

    @property
    def path(self) -> bytes:
        """Where that is, seen from here."""
        base = os.fsencode(self.directory if self.directory is not None else self.root or "")
        return base + b"/" + self.name if base else self.name


class SocketFile(NamedTuple):
    """The file of a socket at dump.  `moved`: where it is, if it is not at its place any more but not removed."""

    place: Place
    deleted: bool
    moved: str | None
    mode: int
    uid: int
    gid: int


def is_path(name: bytes) -> bool:
    return bool(name) and name[0] != 0


def printable(name: bytes) -> str:
    """A name for people: abstract ones with @."""
    if not name:
        return "without a name"
    return os.fsdecode(name.rstrip(b"\0")) if is_path(name) else "@" + os.fsdecode(name[1:])


# -- dump -------------------------------------------------------------------------------------------------------------


def look(fd: int, name: bytes, vfs: tuple[int, int] | None, pid: int) -> SocketFile:
    """The file behind a path name; `vfs` is what sock_diag says of it.  Raises OSError, ValueError: it is lost."""
    plain = name.rstrip(b"\0")
    try:
        handle = fcntl.ioctl(fd, SIOCUNIXFILE)
    except OSError:  # no CAP_NET_ADMIN
        handle = -1
    if handle >= 0:
        try:
            facts: os.stat_result | None = file_facts.fstat(handle)
            now = os.readlink(f"/proc/self/fd/{handle}")
        finally:
            os.close(handle)
        assert facts is not None
        inode = (facts.st_dev, facts.st_ino)
    elif vfs is not None:
        inode, facts, now = (os.makedev(vfs[1] >> 20, vfs[1] & 0xFFFFF), vfs[0]), None, ""
    else:
        raise ValueError("the kernel does not tell its file")
    place, there = _place(plain, inode, now, pid)
    if there is None:
        place = place or Place(plain, _directory_by_text(plain, now, pid))
    facts = there or facts
    if there is not None and there.st_nlink > 1:  # bind(2) makes a new inode; the others would lead to the old one
        names = f"its file has {there.st_nlink} names"
        raise ValueError(f"{names}, of which only this one would lead to the restored socket")
    moved = None
    if there is None and now:
        moved = now if _is(now, inode) else _linked(now, inode, facts)
    if facts is None:
        return SocketFile(place or Place(plain), True, None, st.S_IFSOCK | 0o755, 0, 0)
    return SocketFile(place or Place(plain), there is None, moved, facts.st_mode, facts.st_uid, facts.st_gid)


def _is(path: "str | bytes", inode: tuple[int, int]) -> os.stat_result | None:
    try:
        facts = file_facts.lstat(path)
    except (OSError, ValueError):
        return None
    return facts if (facts.st_dev, facts.st_ino) == inode else None


def _linked(now: str, inode: tuple[int, int], facts: os.stat_result | None) -> str | None:
    """The other name of a file whose first name is gone; None: it has none.  Raises ValueError: it is elsewhere."""
    if facts is None or not facts.st_nlink:
        return None
    above = os.path.dirname(now)
    with os.scandir(above) as entries:
        for entry in entries:
            if entry.inode() == inode[1] and _is(entry.path, inode):
                return entry.path
    raise ValueError(f"it was removed, and the other name of its file is not in {above}")


def _place(name: bytes, inode: tuple[int, int], now: str, pid: int) -> tuple[Place | None, os.stat_result | None]:
    """Where this name leads to this inode, and the file's facts there."""
    if name[:1] == b"/":
        root = os.readlink(f"/proc/{pid}/root")
        places = [Place(name, None, root), Place(name)] if root != "/" else [Place(name)]
        for place in places:
            if there := _is(place.path, inode):
                return place, there
        return places[0], None
    for directory in _candidates(name, now, pid):
        place = Place(name, directory)
        if there := _is(place.path, inode):
            return place, there
    return None, None


def _candidates(name: bytes, now: str, pid: int) -> Iterator[str]:
    """Directories that a relative name may be relative to, the likeliest first."""
    text = os.fsdecode(name)
    if now.endswith("/" + text):
        yield now[: -len(text) - 1] or "/"
    cwd = os.readlink(f"/proc/{pid}/cwd")
    yield cwd
    above = []
    for start in (os.path.dirname(now), cwd):
        while start.startswith("/") and start != "/":
            above.append(start)
            start = os.path.dirname(start)
    yield from above
    count = 0
    for directory in above:
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    count += 1
                    if count > _MAX_CHILDREN:
                        return
                    if entry.is_dir(follow_symlinks=False):
                        yield entry.path
        except OSError:
            continue


def _directory_by_text(name: bytes, now: str, pid: int) -> str | None:
    """For a relative name whose file is gone: where it was, as far as that can be known."""
    if name[:1] == b"/":
        return None
    text, was = os.fsdecode(name), now.removesuffix(" (deleted)")
    return (was[: -len(text) - 1] or "/") if was.endswith("/" + text) else os.readlink(f"/proc/{pid}/cwd")


# -- restore ----------------------------------------------------------------------------------------------------------


class Address:
    """sockaddr_un in memory.  Python's own connect() and bind() do not take names of the full 108 bytes."""

    def __init__(self, name: bytes) -> None:
        path = name.rstrip(b"\0") if is_path(name) else name
        self._buffer = ctypes.create_string_buffer(AF_UNIX.to_bytes(2, sys.byteorder) + path + b"\0")
        self.length = 2 + len(path) + (1 if is_path(name) and len(path) < 108 else 0)
        self.pointer = ctypes.addressof(self._buffer)

    @property
    def raw(self) -> bytes:
        return self._buffer.raw[: self.length]


def bind(fd: int, name: bytes) -> None:
    """bind(2) by this very string.  Raises OSError."""
    address = Address(name)
    call("bind", fd, address.pointer, address.length)


def disconnect(fd: int) -> None:
    """Let go of a datagram socket's peer.  Raises OSError."""
    buffer = ctypes.create_string_buffer(16)  # AF_UNSPEC
    call("connect", fd, ctypes.addressof(buffer), 2)


class Names:
    """Binds sockets to names at restore.  Changes root and working directory for a moment: the engine is alone."""

    def __init__(self) -> None:
        self._root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._cwd = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._scratch = -1
        self.made: list[Place] = []  # files that bind_at made, to be removed if the restore fails
        self.replaced: list[tuple[bytes, os.stat_result]] = []  # and old ones, of sockets that nobody has any more

    def close(self) -> None:
        for fd in (self._root, self._cwd, self._scratch):
            if fd >= 0:
                os.close(fd)
        self._root = self._cwd = self._scratch = -1

    def undo(self) -> None:
        """Remove the files that were made, and put back those that stood in their places."""
        for place in self.made:
            try:
                os.unlink(place.path)
            except OSError:
                pass
        for path, facts in self.replaced:
            try:
                os.mknod(path, st.S_IFSOCK | mask_of(facts.st_mode))
                os.chown(path, facts.st_uid, facts.st_gid)
                os.chmod(path, mask_of(facts.st_mode))
            except OSError:
                pass

    @contextmanager
    def _standing(self, root: int | str | None, directory: int | str | None) -> Iterator[None]:
        mask = os.umask(0)
        os.umask(mask)
        try:
            if root is not None:
                os.chdir(root)
                os.chroot(".")
            if directory is not None:
                os.chdir(directory)
            yield
        finally:
            os.umask(mask)
            if root is not None:
                os.fchdir(self._root)
                os.chroot(".")
            os.fchdir(self._cwd)

    def bind_at(self, fd: int, place: Place, mode: int, uid: int, gid: int, moved: str | None = None) -> int:
        """Bind at a real place; an old socket file there goes.  Returns a handle (O_PATH).  Raises OSError, Refusal."""
        old = check_free(place, None)
        with self._standing(place.root, place.directory):
            if old is not None:
                os.unlink(place.name)
                self.replaced.append((place.path, old))
            os.umask(~mask_of(mode) & 0o777)
            try:
                bind(fd, place.name)
            except OSError as error:
                raise KernelError(
                    f"cannot bind a UNIX socket to {os.fsdecode(place.path)}", error, "see that its directory exists"
                ) from None
            self.made.append(place)
            handle = os.open(place.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            path = f"/proc/self/fd/{handle}"
            facts = file_facts.fstat(handle)
            if (facts.st_uid, facts.st_gid) != (uid, gid):
                os.chown(path, uid, gid)
            if mask_of(facts.st_mode) != mask_of(mode):
                os.chmod(path, mask_of(mode))
            if moved is not None:
                final = Place(os.fsencode(moved))
                if (old := check_free(final, None)) is not None:
                    self.replaced.append((final.path, old))
                os.rename(place.path, moved)
                self.made[-1] = final
        except BaseException:
            os.close(handle)
            raise
        return handle

    def bind_unseen(self, fd: int, name: bytes) -> int:
        """Bind to a path that nobody can find, and remove it, so that the next dump finds it removed.  Returns a handle
        (O_PATH).  Raises OSError."""
        if self._scratch < 0:
            self._scratch = _detached_tmpfs()
        plain = name.rstrip(b"\0")
        with self._standing(self._scratch, None):
            if plain[:1] != b"/":
                for level in range(plain.count(b"..") + 1):
                    _directories(b"%d" % level)
                    os.chdir(b"%d" % level)
            _directories(os.path.dirname(plain))
            bind(fd, plain)
            handle = os.open(plain, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            os.unlink(plain)
            return handle


def mask_of(mode: int) -> int:
    return mode & 0o7777


def _directories(path: bytes) -> None:
    """mkdir -p, one component after the other: ".." means the directory above, whatever the path says."""
    at = b"/" if path[:1] == b"/" else b""
    for part in path.split(b"/"):
        if part in (b"", b"."):
            continue
        at += part
        if part != b"..":
            try:
                os.mkdir(at, 0o700)
            except FileExistsError:
                pass
        at += b"/"


def _detached_tmpfs() -> int:
    """A new tmpfs that is mounted nowhere (5.2)."""
    kind = ctypes.create_string_buffer(b"tmpfs")
    context = call("fsopen", ctypes.addressof(kind), 1)
    try:
        call("fsconfig", context, _FSCONFIG_CREATE, 0, 0, 0)
        return call("fsmount", context, 1, 0)
    finally:
        os.close(context)


def check_free(place: Place, living: "dict[tuple[int, int], int] | None") -> os.stat_result | None:
    """Refuse a place where something is that must not be removed; returns what an old socket's file there is like.

    `living`: inodes that sockets hold, as sock_diag tells them (inode, kernel dev_t)."""
    shown = os.fsdecode(place.path)
    try:
        facts = file_facts.lstat(place.path)
    except FileNotFoundError:
        above = os.path.dirname(place.path) or b"."
        if not file_facts.is_directory(above):
            raise Refusal(
                f"the UNIX socket {shown}", f"its directory {os.fsdecode(above)} is not there", "create it first"
            ) from None
        return None
    if not st.S_ISSOCK(facts.st_mode):
        raise Refusal(f"the UNIX socket {shown}", "a file that is no socket has its name", "move that file away")
    key = (facts.st_ino & 0xFFFFFFFF, os.major(facts.st_dev) << 20 | os.minor(facts.st_dev))
    if living and key in living:
        raise Refusal(f"the UNIX socket {shown}", "another process has a socket of this name", "end that process first")
    return facts
