# SPDX-License-Identifier: Apache-2.0
"""Giving back files whose name was deleted: each gets its name for a moment, is opened under it, and loses it again.

/proc then shows "NAME (deleted)" as before, and whoever opens the descriptor again in /proc reaches the same file.
Surprising facts:

- A file that once had no links cannot be linked again, so all its names are made first, then all descriptions are
  opened, then all names go.  An O_TMPFILE inode is the exception until its first link: so content is written while the
  file has no name at all, and nothing is left behind if we are killed then.
- The directory may be gone too: it is made for the moment, empty, with its parents.
- The name may be taken by another file (programs are replaced so).  That file is never touched: the ghost gets
  ".torpor" after its name, which only /proc shows.
- A description opened with O_TMPFILE can be given a name by linkat(2); one that lost its name cannot.  So such a
  description is made by O_TMPFILE again.
"""

import errno
import os
import stat as st

from torpor.errors import ImageError, RestoreFailed
from torpor.kernel import file_facts
from torpor.kernel.process import open_exactly
from torpor.resources import ghost, inode, link_remap
from torpor.resources.regular import NEVER, TMPFILE, open_as
from torpor.typed import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from torpor.images.schema.fdinfo import FileEntry
    from torpor.images.schema.regfile import RegFileEntry
    from torpor.images.schema.remap_file_path import RemapFilePathEntry
    from torpor.images.schema.torpor_file import TorporFileEntry
    from torpor.resources.context import Restore

NAME_MAX = 255
TRIES = 100
_NO_TMPFILE = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL})


class Place:
    """A directory that holds a name for a moment; it is made if it is missing, and removed again."""

    def __init__(self, name: str) -> None:
        self.directory, self.base = os.path.split(name)
        self.made: list[str] = []
        self.links: list[str] = []
        try:
            self._make_parents()
            self.fd = os.open(self.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except BaseException:
            self._remove_parents()
            raise

    def _make_parents(self) -> None:
        missing = []
        path = self.directory
        while not file_facts.is_directory(path):
            missing.append(path)
            path = os.path.dirname(path)
        for path in reversed(missing):
            os.mkdir(path, 0o700)
            self.made.append(path)

    def put(self, action: Callable[[str, int], object]) -> str:
        """action(name, directory) under the first name that is free; it goes again with `remove`."""
        for attempt in range(TRIES):
            suffix = "" if attempt == 0 else f".torpor{attempt if attempt > 1 else ''}"
            encoded = os.fsencode(self.base)
            name = os.fsdecode(encoded[: NAME_MAX - len(suffix)]) + suffix
            try:
                action(name, self.fd)
            except FileExistsError:
                continue
            self.links.append(name)
            return name
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self.base)

    def remove(self) -> None:
        """Take the names away, and the directories that were made."""
        for name in self.links:
            if st.S_ISDIR(file_facts.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode):
                os.rmdir(name, dir_fd=self.fd)
            else:
                os.unlink(name, dir_fd=self.fd)
        self.links.clear()
        os.close(self.fd)
        self._remove_parents()

    def _remove_parents(self) -> None:
        while self.made:
            os.rmdir(self.made.pop())


def make(restore: "Restore", remap: "RemapFilePathEntry") -> dict[int, int]:
    """Open all descriptions of the file behind `remap`: file id -> descriptor."""
    entries = _together(restore)[remap.remap_type or 0, remap.remap_id]
    regs = [entry.reg for entry in entries if entry.reg is not None]
    made: dict[int, int] = {}
    try:
        _open_all(_source(restore, remap, regs), regs, made)
    except OSError as error:
        _close(made)
        raise RestoreFailed(
            f"cannot give back the deleted file {regs[0].name}",
            f"{os.strerror(error.errno or 0)}{f' ({error.filename})' if error.filename else ''}",
        ) from error
    except BaseException:
        _close(made)
        raise
    return made


def _source(restore: "Restore", remap: "RemapFilePathEntry", regs: "list[RegFileEntry]") -> "_Source":
    if remap.remap_type == ghost.GHOST:
        return _Ghost(restore, remap.remap_id, regs)
    return _Linked(restore, remap.remap_id, regs)


def _open_all(source: "_Source", regs: "list[RegFileEntry]", made: dict[int, int]) -> None:
    """Give the inode its names, open it as often as it is wanted, take the names away."""
    places: dict[str, Place] = {}
    names: dict[str, str] = {}
    try:
        for reg in regs:
            if reg.name not in names and source.tmpfile is None:
                place = places[reg.name] = Place(reg.name)
                names[reg.name] = source.link(place)
        for reg in regs:
            if source.tmpfile is not None:
                made[reg.id] = source.take_tmpfile(reg)
            else:
                made[reg.id] = open_as(reg, names[reg.name], places[reg.name].fd)
        source.finish()
    finally:
        source.close()
        for place in reversed(places.values()):
            place.remove()


def _close(made: dict[int, int]) -> None:
    for fd in made.values():
        os.close(fd)


def _together(restore: "Restore") -> "dict[tuple[int, int], list[FileEntry]]":
    """Entries of files.img by what they are to be remapped to."""
    found: dict[tuple[int, int], list[FileEntry]] | None = restore.state.get("remapped")
    if found is None:
        found = restore.state["remapped"] = {}
        for id, remap in ghost.load(restore).items():
            entry = restore.files.get(id)
            if entry is not None and entry.reg is not None:
                found.setdefault((remap.remap_type or 0, remap.remap_id), []).append(entry)
    return found


class _Source:
    """Where the inode comes from."""

    tmpfile: "RegFileEntry | None" = None

    def link(self, place: Place) -> str:
        """Give the inode a name there; returns which."""
        raise NotImplementedError

    def take_tmpfile(self, reg: "RegFileEntry") -> int:
        """A description of an inode that never gets a name."""
        raise NotImplementedError

    def finish(self) -> None:
        """All is open."""

    def close(self) -> None:
        """All is open, or has failed."""


class _Linked(_Source):
    """An inode that has another name: link_remap.N, or one that only the file system knows."""

    def __init__(self, restore: "Restore", id: int, regs: "list[RegFileEntry]") -> None:
        self.restore, self.id = restore, id
        self.fd = link_remap.open_again(restore, id, regs)

    def link(self, place: Place) -> str:
        return place.put(lambda name, directory: link_fd(self.fd, name, directory))

    def finish(self) -> None:
        link_remap.forget_later(self.restore, self.id)

    def close(self) -> None:
        os.close(self.fd)


def link_fd(fd: int, name: str, dir_fd: int) -> None:
    """linkat(2) of an open file; dir_fd makes Python follow the link in /proc."""
    os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=dir_fd, follow_symlinks=True)


class _Ghost(_Source):
    """An inode that is made from its image."""

    def __init__(self, restore: "Restore", number: int, regs: "list[RegFileEntry]") -> None:
        self.restore, self.number, self.regs = restore, number, regs
        self.entry = ghost.check(restore, number)
        self.kind = st.S_IFMT(self.entry.mode)
        self.fd = -1  # of a regular file, while it has no name; of others, O_PATH
        self.spare: Place | None = None  # holds a name that keeps a file alive where there is no O_TMPFILE
        if self.kind == st.S_IFREG:
            self.tmpfile = next((reg for reg in regs if reg.flags & TMPFILE), None)
            try:
                self._make_regular()
            except BaseException:
                self.close()
                raise

    def _make_regular(self) -> None:
        place = Place(self.regs[0].name)
        try:
            flags = self.tmpfile.flags & ~NEVER if self.tmpfile else os.O_TMPFILE | os.O_RDWR
            try:
                self.fd = open_exactly(".", flags | os.O_CLOEXEC, place.fd, 0o600)
            except OSError as error:
                if self.tmpfile or error.errno not in _NO_TMPFILE:
                    raise
                self._make_hidden(place)
        except BaseException:
            self.spare = None
            place.remove()
            raise
        if self.spare is None:
            place.remove()
        # Ours, and with O_LARGEFILE: `self.fd` may have been made without, and content may lie beyond 2 GiB.
        writer = os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            ghost.fill(self.restore, self.number, writer)
        finally:
            os.close(writer)
        self._set_attributes(f"/proc/self/fd/{self.fd}")
        if self.tmpfile and self.tmpfile.pos:
            os.lseek(self.fd, self.tmpfile.pos, os.SEEK_SET)

    def _make_hidden(self, place: Place) -> None:
        """No O_TMPFILE on this file system: a name that nobody looks for."""
        place.base = f".torpor-{os.urandom(8).hex()}"
        flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDWR | os.O_CLOEXEC

        def create(name: str, directory: int) -> None:
            self.fd = os.open(name, flags, 0o600, dir_fd=directory)

        place.put(create)
        self.spare = place

    def link(self, place: Place) -> str:
        if self.fd >= 0:
            if self.kind == st.S_IFDIR:
                raise ImageError("remap-fpath.img is mangled", "a deleted directory has two names")
            return place.put(lambda name, directory: link_fd(self.fd, name, directory))
        name = place.put(self._make_other)
        self.fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.fd)
        if self.kind == st.S_IFLNK:
            self._set_attributes(name, place.fd)
        else:
            self._set_attributes(f"/proc/self/fd/{self.fd}")
        return name

    def _make_other(self, name: str, directory: int) -> None:
        if self.kind == st.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=directory)
        elif self.kind == st.S_IFLNK:
            os.symlink(self.entry.symlnk_target or "", name, dir_fd=directory)
        else:
            os.mknod(name, self.kind | 0o600, self.entry.rdev or 0, dir_fd=directory)

    def _set_attributes(self, path: str, dir_fd: int | None = None) -> None:
        """Owner first (it clears set-user-ID), then mode, then times."""
        entry = self.entry
        link = self.kind == st.S_IFLNK
        os.chown(path, entry.uid, entry.gid, dir_fd=dir_fd, follow_symlinks=not link)
        if not link:
            os.chmod(path, entry.mode & 0o7777)
        ids = [reg.id for reg in self.regs]
        own = ghost.own_entry(self.restore, ids)
        if own is not None:
            self._set_extras(own)
        times = ghost.times(self.restore, entry, ids)
        if times is not None:
            file_facts.utime(path, ns=times, dir_fd=dir_fd, follow_symlinks=not link)

    def _set_extras(self, own: "TorporFileEntry") -> None:
        path = f"/proc/self/fd/{self.fd}"
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if self.kind in (st.S_IFREG, st.S_IFDIR) else -1
        try:
            inode.restore(own, path, opened)
        finally:
            if opened >= 0:
                os.close(opened)

    def take_tmpfile(self, reg: "RegFileEntry") -> int:
        if reg is self.tmpfile:
            return os.dup(self.fd)
        return open_as(reg, f"/proc/self/fd/{self.fd}", follow=True)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self.spare is not None:
            self.spare.remove()
            self.spare = None
