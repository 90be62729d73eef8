# SPDX-License-Identifier: Apache-2.0
"""Ghosts: files without any name, that live only because they are open, mapped or somebody's working directory.

Their content goes into the images (ghost-file-ID.img), once for all descriptions and areas of one inode; entries of
remap-fpath.img say who uses it.  Surprising facts:

- The content must be copied while the tree stands still, so it is bounded (--ghost-limit, by the blocks on disk).
- Our descriptor of a task's file shares its position: it is opened again for reading, by its link in /proc.
- Access times change by reading: O_NOATIME.
- Images keep times in microseconds; Torpor's own image has the rest.
- Directories, FIFOs, symbolic links and device nodes can be ghosts too; a deleted directory is always empty.
"""

from __future__ import annotations

import errno
import os
import stat as st

from torpor.errors import ImageError, Refusal
from torpor.images import kinds
from torpor.images.payloads import GHOST_CHUNK_THRESHOLD, ghost_chunk, ghost_pieces
from torpor.kernel.process import MOST_SENT
from torpor.resources import inode
from torpor.resources.description import extra, extras
from torpor.resources.registry import MEMORY_DEVICES
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.images.schema.ghost_file import GhostFileEntry
    from torpor.images.schema.remap_file_path import RemapFilePathEntry
    from torpor.images.schema.time import Timeval
    from torpor.images.schema.torpor_file import TorporFileEntry
    from torpor.resources.context import Dump, Restore

LINKED, GHOST, PROCFS = 0, 1, 2  # RemapType
MAX_SIZE = 1 << 60
_U64, _LATEST = (1 << 64) - 1, 1 << 62  # seconds
KINDS = frozenset({st.S_IFREG, st.S_IFDIR, st.S_IFIFO, st.S_IFCHR, st.S_IFLNK})

# -- dump -------------------------------------------------------------------------------------------------------------


def save(dump: Dump, subject: str, id: int, stat: os.stat_result, path: str) -> None:
    """Frozen: let file `id` of files.img be a ghost; `path` in /proc leads to the open file.  Raises Refusal."""
    from torpor.images.schema.remap_file_path import RemapFilePathEntry

    numbers: dict[tuple[int, int], int] = dump.setdefault("ghosts", {})
    key = (stat.st_dev, stat.st_ino)
    if key not in numbers:
        numbers[key] = number = len(numbers) + 1
        own = extra(dump, id)
        own.atime_nsec, own.mtime_nsec = stat.st_atime_ns % 10**9, stat.st_mtime_ns % 10**9
        _write(dump, subject, number, stat, path, own)
    remaps(dump).append(RemapFilePathEntry(orig_id=id, remap_id=numbers[key], remap_type=GHOST))


def remaps(dump: Dump) -> list[RemapFilePathEntry]:
    """What becomes remap-fpath.img."""
    found: list[RemapFilePathEntry] = dump.setdefault("remaps", [])
    return found


def examine(dump: Dump, subject: str, stat: os.stat_result) -> None:
    """Raises Refusal for what cannot become a ghost."""
    if st.S_IFMT(stat.st_mode) not in KINDS:
        raise Refusal(subject, "files of this kind whose name was deleted cannot be dumped", "close it first")
    if st.S_ISCHR(stat.st_mode) and (os.major(stat.st_rdev), os.minor(stat.st_rdev)) not in MEMORY_DEVICES:
        raise Refusal(subject, "the device's name was deleted, and Torpor makes no devices", "close it first")
    limit = dump.options.ghost_limit
    if st.S_ISREG(stat.st_mode) and stat.st_blocks * 512 > limit:
        raise Refusal(
            subject,
            f"the file was deleted and its {stat.st_blocks * 512} bytes are more than the limit of {limit}",
            f"raise the limit with --ghost-limit {stat.st_blocks * 512}",
            code="ghost-limit",
        )


def _write(dump: Dump, subject: str, number: int, stat: os.stat_result, path: str, own: TorporFileEntry) -> None:
    examine(dump, subject, stat)
    opened = _open_quietly(path) if st.S_IFMT(stat.st_mode) in (st.S_IFREG, st.S_IFDIR) else -1
    try:
        inode.save(own, subject, path, opened)
        _write_image(dump, number, stat, path, opened)
    finally:
        if opened >= 0:
            os.close(opened)


def _write_image(dump: Dump, number: int, stat: os.stat_result, path: str, opened: int) -> None:
    from torpor.images.schema.ghost_file import GhostFileEntry

    entry = GhostFileEntry(
        uid=stat.st_uid,
        gid=stat.st_gid,
        mode=stat.st_mode,
        dev=os.major(stat.st_dev) << 20 | os.minor(stat.st_dev),
        ino=stat.st_ino,
        rdev=stat.st_rdev if st.S_ISCHR(stat.st_mode) else None,
        atim=_timeval(stat.st_atime_ns),
        mtim=_timeval(stat.st_mtime_ns),
    )
    if st.S_ISLNK(stat.st_mode):
        entry.symlnk_target = _target(path)
    regular = st.S_ISREG(stat.st_mode)
    if regular and stat.st_size >= GHOST_CHUNK_THRESHOLD:
        entry.chunks, entry.size = True, stat.st_size
    out = dump.images.open_raw(kinds.GHOST_FILE, number, entry)
    try:
        if regular and stat.st_size:
            dump.images.bytes_written += _copy(opened, out, bool(entry.chunks), stat.st_size)
    finally:
        os.close(out)


def _timeval(ns: int) -> Timeval:
    from torpor.images.schema.time import Timeval

    return Timeval(tv_sec=ns // 10**9 & _U64, tv_usec=ns // 1000 % 10**6)


def _seconds(time: Timeval) -> int:
    """Before 1970 they are negative, though the message's field is unsigned."""
    return time.tv_sec - (time.tv_sec >> 63 << 64)


def _target(path: str) -> str:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)  # the link in /proc is followed, the one it leads to is not
    try:
        return os.readlink("", dir_fd=fd)
    finally:
        os.close(fd)


def _copy(source: int, out: int, chunks: bool, size: int) -> int:
    """Append the content; in chunks with the holes left out, or as it is.  Returns how many bytes that makes."""
    appended = 0
    at = 0
    while at < size:
        start, at = _data(source, at, size) if chunks else (at, size)
        if start >= size:
            break
        if chunks:
            appended += os.write(out, ghost_chunk(start, at - start))
        appended += at - start
        while start < at:
            sent = os.sendfile(out, source, start, min(at - start, MOST_SENT))
            if sent == 0:
                raise OSError(errno.EIO, "a deleted file became shorter while it was read")
            start += sent
    return appended


def _open_quietly(path: str) -> int:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:  # somebody else's file, and no CAP_FOWNER
        return os.open(path, flags)


def _data(fd: int, at: int, size: int) -> tuple[int, int]:
    """The next part that is no hole: (start, end)."""
    try:
        start = os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size, size
        raise
    return start, min(size, os.lseek(fd, start, os.SEEK_HOLE))


# -- restore ----------------------------------------------------------------------------------------------------------


def load(restore: Restore) -> dict[int, RemapFilePathEntry]:
    """Remaps by the id of the file that they are for.  Raises ImageError."""
    if "remaps" not in restore.state:
        found: dict[int, RemapFilePathEntry] = {}
        for remap in restore.images.entries(kinds.REMAP_FPATH):
            if remap.orig_id in found:
                raise ImageError("remap-fpath.img is mangled", f"file {remap.orig_id} is there twice")
            found[remap.orig_id] = remap
        restore.state["remaps"] = found
    result: dict[int, RemapFilePathEntry] = restore.state["remaps"]
    return result


def check(restore: Restore, number: int) -> GhostFileEntry:
    """Before anything is created: the ghost's image is there and sane."""
    known: dict[int, GhostFileEntry] = restore.state.setdefault("ghosts", {})
    if number not in known:
        entry, fd, at = restore.images.open_payload(kinds.GHOST_FILE, number)
        try:
            _check(f"{kinds.GHOST_FILE.file_name(number)} is mangled", entry, fd, at)
        finally:
            os.close(fd)
        known[number] = entry
    return known[number]


def _check(what: str, entry: GhostFileEntry, fd: int, at: int) -> None:
    kind = st.S_IFMT(entry.mode)
    if kind not in KINDS or entry.mode >> 16:
        raise ImageError(what, f"no such file can be made (mode {entry.mode:#o})")
    if kind == st.S_IFCHR and (os.major(entry.rdev or 0), os.minor(entry.rdev or 0)) not in MEMORY_DEVICES:
        raise ImageError(what, "it is a device other than null, zero, full, random and urandom")
    if kind == st.S_IFLNK and not 0 < len(os.fsencode(entry.symlnk_target or "").partition(b"\0")[0]) < 4096:
        raise ImageError(what, "it is a symbolic link to nowhere")
    if 0xFFFFFFFF in (entry.uid, entry.gid):
        raise ImageError(what, "it belongs to nobody")
    for time in (entry.atim, entry.mtim):
        if time is not None and not (abs(_seconds(time)) < _LATEST and 0 <= time.tv_usec < 10**6):
            raise ImageError(what, "its times make no sense")
    if entry.chunks and not 0 <= (entry.size or 0) < MAX_SIZE:
        raise ImageError(what, f"a size of {entry.size} bytes")
    if kind == st.S_IFREG:
        for _ in ghost_pieces(fd, entry, at):
            pass


def fill(restore: Restore, number: int, target: int) -> None:
    """Write a regular ghost's content into an empty file; holes stay holes."""
    entry, source, at = restore.images.open_payload(kinds.GHOST_FILE, number)
    try:
        for position, offset, length in ghost_pieces(source, entry, at):
            os.lseek(target, offset, os.SEEK_SET)
            while length > 0:
                sent = os.sendfile(target, source, position, min(length, MOST_SENT))
                if sent == 0:
                    raise ImageError("a ghost file's image is mangled", "it is too short")
                position, length = position + sent, length - sent
        if entry.chunks and entry.size is not None:
            os.ftruncate(target, entry.size)
    finally:
        os.close(source)


def own_entry(restore: Restore, ids: list[int]) -> TorporFileEntry | None:
    """Torpor's own entry of a ghost that these files use."""
    return next((own for id in ids if (own := extras(restore).get(id)) and own.mtime_nsec is not None), None)


def times(restore: Restore, entry: GhostFileEntry, ids: list[int]) -> tuple[int, int] | None:
    """(atime, mtime) in nanoseconds; `ids`: of the files that use this ghost."""
    if entry.atim is None or entry.mtim is None:
        return None
    own = own_entry(restore, ids)
    found = []
    for time, nsec in ((entry.atim, own and own.atime_nsec), (entry.mtim, own and own.mtime_nsec)):
        found.append(_seconds(time) * 10**9 + ((nsec or 0) % 10**9 if own else time.tv_usec * 1000))
    return found[0], found[1]
