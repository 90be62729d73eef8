# SPDX-License-Identifier: Apache-2.0
"""Files whose name was deleted while other names are left, nobody knows where (--link-remap).

At dump such a file gets one more name, link_remap.N in the directory of the deleted one, where N is its number in
files.img; the entry of that number names it, and a LINKED entry of remap-fpath.img points there.  The restore opens it
under its old name for a moment (`torpor.resources.unlinked`) and removes link_remap.N.

A tree that goes on must not notice the extra link, so it is removed again when the dump is done, as CRIU does with
--leave-running; CRIU's images cannot be restored then.  Torpor's can, on file systems that have handles: the file's
handle (name_to_handle_at(2)) finds it as long as any name is left.  With --leave-stopped, where the tree may go on or
be ended, the link stays if there is no handle.
"""

from __future__ import annotations

import ctypes
import os
import stat as st
import struct

from torpor.errors import ImageError, Refusal
from torpor.images.schema.fdinfo import FileEntry
from torpor.images.schema.regfile import RegFileEntry
from torpor.kernel.syscall import call
from torpor.resources import ghost
from torpor.resources.description import NOBODY, extra, extras
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.resources.context import Dump, Restore

REG = 1  # FdTypes
AT_FDCWD, AT_SYMLINK_FOLLOW = -100, 0x400
MAX_HANDLE = 128
MADE, NO_HANDLE = "link remaps", "link remaps without handle"

# -- dump -------------------------------------------------------------------------------------------------------------


def examine(dump: Dump, subject: str, name: str, stat: os.stat_result) -> None:
    """Raises Refusal."""
    if st.S_ISDIR(stat.st_mode):
        raise Refusal(subject, f"{name} does not lead to this directory", "was something mounted over it?")
    if not dump.options.link_remap:
        raise Refusal(
            subject,
            f"the name {name} was deleted, or leads to another file now, while the file has other names",
            "give it a temporary name with --link-remap",
            code="link-remap",
        )


def save(dump: Dump, subject: str, id: int, name: str, stat: os.stat_result, path: str) -> None:
    """Frozen: give the file behind `path` (in /proc) another name beside `name`.  Raises Refusal."""
    examine(dump, subject, name, stat)
    directory = os.path.dirname(name)
    made: list[str] = dump.setdefault(MADE, [])
    while True:
        number = dump.new_file_id()
        link = os.path.join(directory, f"link_remap.{number}")
        try:
            directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.link(path, os.path.basename(link), dst_dir_fd=directory_fd, follow_symlinks=True)
            finally:
                os.close(directory_fd)
            break
        except FileExistsError:
            continue
        except OSError as error:
            raise Refusal(
                subject,
                f"its other names are unknown, and it cannot be given the name {link}: {os.strerror(error.errno or 0)}",
                "close it first",
            ) from None
    made.append(link)
    dump.setdefault("directories changed", set()).add(directory)
    if len(made) == 1:
        dump.setdefault("undo", []).append(lambda: remove(dump))
    reg = RegFileEntry(id=number, flags=0, pos=0, fown=NOBODY, name=link, mode=0)
    dump.file_entries.append(FileEntry(type=REG, id=number, reg=reg))
    from torpor.images.schema.remap_file_path import RemapFilePathEntry

    ghost.remaps(dump).append(RemapFilePathEntry(orig_id=id, remap_id=number, remap_type=ghost.LINKED))
    handle = _handle(path, directory)
    if handle is not None:
        own = extra(dump, number)
        own.handle_type, own.handle = handle
    else:
        dump.state[NO_HANDLE] = True


def late(dump: Dump) -> None:
    """A tree that goes on does not keep the names."""
    if dump.options.leave_running or (dump.options.leave_stopped and not dump.state.get(NO_HANDLE)):
        remove(dump)


def remove(dump: Dump) -> None:
    """Take all the names away."""
    made: list[str] = dump.setdefault(MADE, [])
    while made:
        try:
            os.unlink(made.pop())
        except OSError:
            pass  # gone already, or the whole directory is


def _handle(path: str, directory: str) -> tuple[int, bytes] | None:
    """name_to_handle_at(2): (type, bytes); None where the file cannot be found by it."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    buffer = ctypes.create_string_buffer(struct.pack("=Ii", MAX_HANDLE, 0), 8 + MAX_HANDLE)
    mount = ctypes.c_int(0)
    places = ctypes.addressof(name), ctypes.addressof(buffer), ctypes.addressof(mount)
    try:
        call("name_to_handle_at", AT_FDCWD, *places, AT_SYMLINK_FOLLOW)
        size, kind = struct.unpack_from("=Ii", buffer)
        handle = buffer.raw[8 : 8 + size]
        os.close(_open_by_handle(directory, kind, handle))
    except OSError:
        return None
    return kind, handle


# -- restore ----------------------------------------------------------------------------------------------------------


def check(restore: Restore, id: int, name: str) -> None:
    """Before anything is created: the file (deleted name: `name`) can be reached."""
    os.close(_open(restore, id, name))


def open_again(restore: Restore, id: int, regs: list[RegFileEntry]) -> int:
    """An O_PATH descriptor of the file."""
    return _open(restore, id, regs[0].name)


def _is_ours(link: str) -> bool:
    """Whether a dump gives such names: a restore removes them, and no others."""
    directory, _, base = link.rpartition("/")
    number = base.removeprefix("link_remap.")
    good = number != base and len(number) <= 10 and number.isascii() and number.isdigit()
    return good and (link.startswith("/") or not directory) and "\0" not in link


def _open(restore: Restore, id: int, name: str) -> int:
    entry = restore.files.get(id)
    if entry is None or entry.reg is None:
        raise ImageError("files.img is incomplete", f"{id}, another name of {name}, is not there")
    link = entry.reg.name
    if not _is_ours(link):
        raise ImageError("files.img is mangled", f"{link} is not a name that a dump gives")
    try:
        return os.open(link, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        own = extras(restore).get(id)
        if own is not None and own.handle is not None and own.handle_type is not None:
            try:
                return _open_by_handle(os.path.dirname(link), own.handle_type, own.handle)
            except OSError:
                pass
    raise Refusal(
        f"the deleted file {name}",
        f"the name that the dump gave it, {link}, is gone",
        "a dump with --leave-running takes it away again; dump without",
        code="changed-file",
    )


def _open_by_handle(directory: str, kind: int, handle: bytes) -> int:
    """open_by_handle_at(2) on the file system of `directory`."""
    if len(handle) > MAX_HANDLE:
        raise ImageError("torpor-files.img is mangled", "a file handle is too long")
    buffer = ctypes.create_string_buffer(struct.pack("=Ii", len(handle), kind) + handle)
    mount = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return call("open_by_handle_at", mount, ctypes.addressof(buffer), os.O_PATH | os.O_CLOEXEC)
    finally:
        os.close(mount)


def forget_later(restore: Restore, id: int) -> None:
    """Remove link_remap.N when the whole tree stands: if the restore fails, it is needed once more."""
    entry = restore.files[id]
    assert entry.reg is not None
    name = entry.reg.name

    def remove() -> None:
        try:
            os.unlink(name)
        except FileNotFoundError:
            pass

    restore.state.setdefault("at end", []).append(remove)
