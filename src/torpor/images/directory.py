# SPDX-License-Identifier: Apache-2.0
"""A directory of images, written by one who may be interrupted and read by one who trusts nothing in it.

Writing: `inventory.img` makes a directory a checkpoint.  An old one is removed before the first image is written, the
new one appears by rename after everything else has reached the disk, so that a dump which was cut short never looks
like a whole one.  Files are made anew (0600, never through a link that lies there) and each is written in one go.

Reading: regular files only, no links, sizes bounded by what is really there.  All that is wrong is an `ImageError` that
names the file.
"""

from __future__ import annotations

import os
import stat
import sys
from errno import EACCES

from torpor import log
from torpor.errors import ImageError
from torpor.images import to_disk
from torpor.images.container import MAX_ENTRY, Pieces, check_start, encode_entries, parse_image, start_of
from torpor.images.kinds import INVENTORY, KINDS, STATS, ImageKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any, Self, TypeAlias, TypeVar

    from torpor.images.container import Entry
    from torpor.images.message import Message
    from torpor.images.schema.inventory import InventoryEntry
    from torpor.images.schema.stats import StatsEntry

    M = TypeVar("M", bound=Message)
    Id: TypeAlias = int | str | None

MAX_IMAGE = 1 << 30  # of images that are messages; pages and ghost files are not
IMG_VERSION = 2


def _kind(kind: ImageKind[Any] | str) -> ImageKind[Any]:
    return KINDS[kind] if isinstance(kind, str) else kind


def _write(fd: int, parts: list[bytes]) -> int:
    """Write it all, whatever the kernel takes at a time."""
    data = b"".join(parts)
    written = os.write(fd, data) if data else 0
    left = memoryview(data)[written:] if written < len(data) else b""
    while left:
        left = left[os.write(fd, left) :]
    return len(data)


class ImageWriter:
    """Writes the images of one checkpoint into the directory open at `dir_fd` (which stays the caller's).

    OSError (disk full, no rights) passes through; call `discard` then.
    """

    def __init__(self, dir_fd: int) -> None:
        self.dir_fd = dir_fd
        self.names: dict[str, bool] = {}  # of the files written, in order; True: the disk was told to begin with it
        self.prepared: set[str] = set()  # names of files that wait for whoever will write them
        self.bytes_written = 0  # but for what callers write to raw images: they add that, or count it themselves

    def write(
        self, kind: ImageKind[Any] | str, entries: Iterable[Entry], id: Id = None, *, even_empty: bool = False
    ) -> None:
        """Write an image with these entries.  Without any there is no image, and an old one goes, or an empty one."""
        kind = _kind(kind)
        parts = encode_entries(entries)
        if not parts and not even_empty:
            self.remove(kind, id)
            return
        self._write_whole(kind.file_name(id), [start_of(kind), *parts])

    def open_raw(self, kind: ImageKind[Any] | str, id: Id = None, first: Message | None = None) -> int:
        """Make an image and return its descriptor, to which the caller writes on: behind nothing when the kind is raw,
        else behind the magic words and the entry `first`."""
        kind = _kind(kind)
        fd = self._create(kind.file_name(id))
        if first is not None:
            try:
                self.bytes_written += _write(fd, [start_of(kind), *encode_entries([first])])
            except BaseException:
                os.close(fd)
                raise
        return fd

    def prepare_raw(self, kind: ImageKind[Any], id: Id = None) -> int:
        """Make an image beforehand, for `open_prepared`; returns a descriptor, the caller's, to fill it with zeros."""
        name = kind.file_name(id)
        fd = self._create(name)
        self.prepared.add(name)
        return fd

    def open_prepared(self, kind: ImageKind[Any], id: Id = None) -> int:
        """As `open_raw`, but an image that was prepared is taken, as whoever prepared it left it."""
        name = kind.file_name(id)
        if name not in self.prepared:
            return self._create(name)
        fd = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.dir_fd)
        self.prepared.discard(name)
        return fd

    def blank(self, kind: ImageKind[Any], id: Id, spans: list[tuple[int, int]]) -> None:
        """Put zeros over parts of an image that is written, but not on its way to the disk yet."""
        fd = os.open(kind.file_name(id), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.dir_fd)
        try:
            for start, end in spans:
                while start < end:
                    start += os.pwrite(fd, bytes(min(end - start, 1 << 20)), start)
        finally:
            os.close(fd)

    def has(self, kind: ImageKind[Any], id: Id = None) -> bool:
        """Whether there is such an image, of this dump or left by an earlier one."""
        try:
            os.stat(kind.file_name(id), dir_fd=self.dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def remove(self, kind: ImageKind[Any] | str, id: Id = None) -> None:
        """Remove an image that an earlier dump left here."""
        self._ready()
        self._unlink(_kind(kind).file_name(id))

    def set_parent(self, target: str | None) -> None:
        """Say where the parent checkpoint is: a path relative to this directory, or None for no parent."""
        self._ready()
        self._unlink("parent")
        if target is not None:
            os.symlink(target, "parent", dir_fd=self.dir_fd)

    def finish(self, inventory: InventoryEntry, also: Sequence[Callable[[], None]] = ()) -> None:
        """Bring everything to the disk, then, and only then, make it a checkpoint.  `also`: what else has to get there,
        to be called meanwhile, by several threads."""
        self._ready()
        for name in self.prepared:  # nobody needed it
            self._unlink(name)
            self.names.pop(name)
        # Under another name, so that it goes to the disk together with the others.
        temporary = _temporary(INVENTORY.pattern)
        self._write_whole(temporary, [start_of(INVENTORY), *encode_entries([inventory])])
        self._sync_files(also)
        os.fsync(self.dir_fd)
        os.rename(temporary, INVENTORY.pattern, src_dir_fd=self.dir_fd, dst_dir_fd=self.dir_fd)
        del self.names[temporary]
        os.fsync(self.dir_fd)

    def discard(self) -> None:
        """Remove what was written: the dump failed.  (A checkpoint that lay there before the first image stays.)"""
        if not self.names:
            return
        for name in [INVENTORY.pattern, *self.names]:
            try:
                self._unlink(name)
            except OSError:
                pass
        self.names.clear()

    def _ready(self) -> None:
        """Nothing is written before the old checkpoint stops being one, on the disk, too: a file system need not keep
        the order in which names come and go, and an old inventory.img beside new images would call them complete."""
        if not self.names and self._unlink(INVENTORY.pattern):
            os.fsync(self.dir_fd)

    def _unlink(self, name: str) -> bool:
        """Whether there was one."""
        try:
            os.unlink(name, dir_fd=self.dir_fd)
        except FileNotFoundError:
            return False
        return True

    def _create(self, name: str) -> int:
        self._ready()
        self.names[name] = False
        self.prepared.discard(name)
        return _create(self.dir_fd, name)

    def _write_whole(self, name: str, parts: list[bytes]) -> None:
        """Make a file of these bytes, and let the disk begin with it."""
        fd = self._create(name)
        try:
            self.bytes_written += _write(fd, parts)
            to_disk.start_writing(fd)
            self.names[name] = True
        finally:
            os.close(fd)

    def start_writing(self) -> None:
        """Let the disk begin with what was written in pieces."""
        for name, begun in self.names.items():
            if not begun and name not in self.prepared:
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.dir_fd)
                try:
                    to_disk.start_writing(fd)
                finally:
                    os.close(fd)
                self.names[name] = True

    def _sync_files(self, also: Sequence[Callable[[], None]]) -> None:
        """fsync every file, inventory.img (under its other name) last."""
        self.start_writing()
        *others, inventory = self.names
        to_disk.sync_files(self.dir_fd, others, also)
        to_disk.sync_files(self.dir_fd, [inventory])


def _temporary(name: str) -> str:
    return f".{name}.{os.getpid()}.tmp"


def _create(dir_fd: int, name: str) -> int:
    """Make a new file that only its owner may read; what lies there under that name (a link, perhaps) goes."""
    for _ in range(100):
        try:
            return os.open(
                name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=dir_fd
            )
        except FileExistsError:
            os.unlink(name, dir_fd=dir_fd)
    raise FileExistsError(17, "it keeps coming back", name)


def write_small(dir_fd: int, kind: ImageKind[M], entry: M, id: Id = None, sync: bool = True) -> None:
    """Write an image of one entry by rename, so that either the old or the whole new one is there, and sync it."""
    name = kind.file_name(id)
    temporary = _temporary(name)
    fd = _create(dir_fd, temporary)
    try:
        try:
            _write(fd, [start_of(kind), *encode_entries([entry])])
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        os.unlink(temporary, dir_fd=dir_fd)
        raise
    if sync:
        os.fsync(dir_fd)


def write_stats(directory: str, stats: StatsEntry) -> None:
    """Write stats-dump or stats-restore, whichever `stats` is, into `directory`.  Nothing depends on them: nobody waits
    for the disk, and what fails is a warning."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            write_small(fd, STATS, stats, "dump" if stats.dump is not None else "restore", sync=False)
        finally:
            os.close(fd)
    except OSError as error:
        log.warning(f"the statistics could not be written: {error}")


def _unreadable(what: str, error: OSError) -> ImageError:
    remedy = "images are for whoever made them: do it as that user, or as root" if error.errno == EACCES else ""
    return ImageError(what, error.strerror or str(error), remedy)


class ImageReader:
    """Reads the images in the directory open at `dir_fd` (the caller's, unless `open` made the reader)."""

    def __init__(self, dir_fd: int) -> None:
        self.dir_fd = dir_fd
        self._owned = False

    @classmethod
    def open(cls, path: str, dir_fd: int | None = None) -> Self:
        """A reader that owns its descriptor; close it or use it in `with`."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
        except OSError as error:
            raise _unreadable(f"cannot open the images in {path}", error) from error
        reader = cls(fd)
        reader._owned = True
        return reader

    def close(self) -> None:
        if self._owned:
            self._owned = False
            os.close(self.dir_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def exists(self, kind: ImageKind[Any], id: Id = None) -> bool:
        try:
            return stat.S_ISREG(os.stat(kind.file_name(id), dir_fd=self.dir_fd, follow_symlinks=False).st_mode)
        except OSError:
            return False

    def entries(self, kind: ImageKind[M], id: Id = None) -> list[M]:
        """All entries; none when there is no such image.  (Of a pagemap, the first is a PagemapHead.)"""
        return [message for message, _ in self.entries_with_payload(kind, id)]

    def entries_with_payload(self, kind: ImageKind[M], id: Id = None) -> list[tuple[M, bytes]]:
        """All entries, each with the raw bytes that follow it."""
        return list(self._parse(kind, kind.file_name(id)))

    def one(self, kind: ImageKind[M], id: Id = None) -> M:
        """The only entry of an image that must be there."""
        entry = self.find(kind, id)
        if entry is None:
            raise ImageError(f"{kind.file_name(id)} is missing", code="missing-image")
        return entry

    def find(self, kind: ImageKind[M], id: Id = None) -> M | None:
        """The only entry of an image, None when there is no such image."""
        name = kind.file_name(id)
        found = None
        for entry, _ in self._parse(kind, name):
            if found is not None:  # there may be thousands: they are not read
                raise ImageError(f"{name} is mangled", "it has more than one entry")
            found = entry
        if found is None and self.exists(kind, id):
            raise ImageError(f"{name} is mangled", "it has no entry")
        return found

    def inventory(self) -> InventoryEntry:
        """The inventory, checked for being of a version that we know."""
        inventory = self.find(INVENTORY)
        if inventory is None:
            remedy = "give the directory of a finished dump with -D"
            raise ImageError("there is no checkpoint here", "inventory.img is missing", remedy, code="no-checkpoint")
        if inventory.img_version not in (1, IMG_VERSION):
            raise ImageError("these images are foreign", f"their version is {inventory.img_version}, not {IMG_VERSION}")
        return inventory

    def open_raw(self, kind: ImageKind[Any], id: Id = None) -> int:
        """A descriptor of an image that must be there: a regular file."""
        name = kind.file_name(id)
        fd = self._open(name)
        if fd is None:
            raise ImageError(f"{name} is missing", code="missing-image")
        return fd

    def open_payload(self, kind: ImageKind[M], id: Id = None) -> tuple[M, int, int]:
        """The first entry of an image, a descriptor of the image, and where the entry ends in it (ghost files)."""
        name = kind.file_name(id)
        fd = self.open_raw(kind, id)
        try:
            start = os.pread(fd, 12, 0)
            at = check_start(kind, start, name)
            size = int.from_bytes(start[at : at + 4], sys.byteorder)
            if size > min(MAX_ENTRY, os.fstat(fd).st_size):
                raise ImageError(f"{name} is mangled", "its first entry goes beyond its end")
            message, _ = next(parse_image(kind, os.pread(fd, at + 4 + size, 0), name), (None, b""))
            if message is None:
                raise ImageError(f"{name} is mangled", "it has no entry")
            return message, fd, at + 4 + size
        except BaseException:
            os.close(fd)
            raise

    def parent(self) -> ImageReader | None:
        """The checkpoint that this one builds on: the directory to which the link `parent` points."""
        try:
            os.stat("parent", dir_fd=self.dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return ImageReader.open("parent", self.dir_fd)

    def names(self) -> list[str]:
        """What lies in the directory."""
        return sorted(os.listdir(self.dir_fd))

    def _open(self, name: str) -> int | None:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.dir_fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(f"{name} cannot be read", error) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ImageError(f"{name} is not an image", "it is not a regular file")
        return fd

    def _parse(self, kind: ImageKind[M], name: str) -> Iterator[tuple[M, bytes]]:
        """The entries of an image, if there is one.  No more than what one entry may have is in memory as bytes."""
        fd = self._open(name)
        if fd is None:
            return
        try:
            size = os.fstat(fd).st_size
            if size > MAX_IMAGE:
                raise ImageError(f"{name} is mangled", f"it has {size} bytes, more than any such image can have")
            data = Pieces(fd, size)
            yield from parse_image(kind, data if size > MAX_ENTRY else data[:], name)
        except OSError as error:
            raise ImageError(f"{name} cannot be read", error.strerror or str(error)) from error
        finally:
            os.close(fd)
