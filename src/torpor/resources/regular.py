# SPDX-License-Identifier: Apache-2.0
"""Files that have a path: regular files, directories, memory devices, and whatever is only held by O_PATH.

Also what is not an open descriptor but names a file: mapped files, executables, working directories and roots, through
`save_path`.  Surprising facts:

- /proc shows a path, and " (deleted)" after it when the name is gone, or when the file is really called so: only a look
  at the name's own inode tells.  The name may lead to another file by now: then ours counts as deleted.
- No links left: a ghost (`torpor.resources.ghost`).  Links left, but not this name: `torpor.resources.link_remap`.
- A description keeps O_NOFOLLOW, O_DIRECTORY, O_TMPFILE and so on as flags; O_CREAT, O_EXCL and O_TRUNC it forgets.
- A file may have changed between dump and restore: CRIU compares type, permissions, size (not of a file that is only
  appended to) and the build id of programs and libraries.  So do we, before anything is made.
- An access mode of 3 (O_WRONLY | O_RDWR) is one: neither to be read nor written, for ioctl(2) alone.
- Files in /proc/PID belong to that very task: they can be opened again when it is back, but not before.
"""

import os
import stat as st

from torpor.errors import ImageError, Refusal
from torpor.images import kinds
from torpor.images.schema.fdinfo import FileEntry
from torpor.images.schema.regfile import RegFileEntry
from torpor.kernel import file_facts
from torpor.kernel.maps import shm_device
from torpor.kernel.process import is_outgrown, open_exactly
from torpor.resources import build_id, ghost, in_memory, inode, link_remap, written
from torpor.resources.description import NOBODY, Described, extras, save_owner
from torpor.resources.registry import MEMORY_DEVICES
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.images.schema.fown import FownEntry
    from torpor.resources.base import FileKind
    from torpor.resources.context import Dump, Restore, SeenFile
    from torpor.resources.tty_restore import Terminals

REG = 1  # FdTypes
DELETED = " (deleted)"
OUTGROWN = "it was opened without O_LARGEFILE, which 32-bit machines need to open a file of 2 GiB or more"
MAX_POSITION = (1 << 63) - 1
MIN_ELF = 64
TERMINALS = "/dev/pts/"
TMPFILE = os.O_TMPFILE & ~os.O_DIRECTORY
NEVER = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_ASYNC
KINDS = frozenset({st.S_IFREG, st.S_IFDIR, st.S_IFLNK, st.S_IFIFO, st.S_IFCHR, st.S_IFBLK, st.S_IFSOCK})
_NO_LATER = ("/task/", "/fdinfo/", "/map_files/")  # what /proc/PID has only when threads, files, areas are back

# -- dump -------------------------------------------------------------------------------------------------------------


def save_path(dump: "Dump", subject: str, link: str, path: str, flags: int) -> int:
    """Enter a file that is known by a /proc link (`path`, e.g. /proc/1/exe, showing `link`) into files.img.

    Equal file and flags give the same id.  `flags`: how it is to be opened, O_RDONLY or O_RDWR.  Raises Refusal.
    """
    stat = file_facts.stat(path)
    known: dict[tuple[int, int, int, str], int] = dump.setdefault("regular:paths", {})
    key = (stat.st_dev, stat.st_ino, flags, link)
    if key not in known:
        if st.S_ISCHR(stat.st_mode) and (os.major(stat.st_rdev), os.minor(stat.st_rdev)) not in MEMORY_DEVICES:
            raise Refusal(f"{subject} ({link})", "this device keeps state that Torpor cannot save", "close it first")
        dump.setdefault("file kinds", {})[id(KIND)] = KIND  # for `late`, where no descriptor is of this kind
        in_memory.note(dump, link, stat)
        known[key] = number = dump.new_file_id()
        dump.file_entries.append(file_entry(dump, subject, number, link, stat, flags, 0, NOBODY, path))
    return known[key]


def file_entry(
    dump: "Dump",
    subject: str,
    id: int,
    link: str,
    stat: os.stat_result,
    flags: int,
    pos: int,
    owner: "FownEntry",
    path: str,
    only_name: bool = False,
) -> FileEntry:
    """The REG entry of a file that /proc shows as `link` at `path`; also makes it a ghost, or gives it a name.

    only_name: it stands for something that is not opened by name (terminals), so its name may be gone.
    """
    name, gone = (link.removesuffix(DELETED), False) if only_name else locate(dump, subject, link, stat)
    mode = stat.st_mode
    regular = st.S_ISREG(mode)
    appended = flags & (os.O_ACCMODE | os.O_APPEND) == os.O_WRONLY | os.O_APPEND  # grows: CRIU does not compare it
    size = stat.st_size if regular and not appended else None
    reg = RegFileEntry(id=id, flags=flags, pos=pos, fown=owner, name=name, size=size, mode=mode)
    if gone:
        if stat.st_nlink == 0:
            ghost.save(dump, f"{subject} ({link})", id, stat, path)
        else:
            link_remap.save(dump, f"{subject} ({link})", id, name, stat, path)
            written.note(dump, subject, path, "", stat, flags)
        return FileEntry(type=REG, id=id, reg=reg)
    written.note(dump, subject, path, name, stat, flags)
    if regular and stat.st_size >= MIN_ELF:
        dump.setdefault("regular:named", []).append((reg, (stat.st_dev, stat.st_ino)))
    return FileEntry(type=REG, id=id, reg=reg)


def locate(dump: "Dump", subject: str, link: str, stat: os.stat_result) -> tuple[str, bool]:
    """The file's name, and whether it is gone (or leads to another file).  Raises Refusal."""
    if link.startswith("/proc/"):
        _examine_proc(dump, subject, link)
    try:
        there = file_facts.lstat(link)
        if there.st_ino == stat.st_ino and there.st_dev == stat.st_dev:
            return link, False
    except PermissionError:
        raise Refusal(f"{subject} ({link})", "no permission to look up its name", "run as root",
                      code="no-rights") from None  # fmt: skip
    except OSError:
        pass
    if not link.startswith("/"):
        raise Refusal(f"{subject} ({link})", "this file has no path", "close it first")
    name = link.removesuffix(DELETED)
    if name != link:
        try:
            there = file_facts.lstat(name)
            if there.st_ino == stat.st_ino and there.st_dev == stat.st_dev:
                return name, False  # the name was deleted and given again
        except OSError:
            pass
    _examine_gone(dump, f"{subject} ({link})", stat)
    return name, True


def _of_task(name: str) -> tuple[int, str] | None:
    """PID and what follows it of a name in /proc/PID; None for any other."""
    if not name.startswith("/proc/"):
        return None
    number, slash, rest = name[6:].partition("/")
    return (int(number), slash + rest) if number.isascii() and number.isdigit() and len(number) <= 10 else None


def _examine_proc(dump: "Dump", subject: str, link: str) -> None:
    found = _of_task(link)
    if found is None:
        return
    subject = f"{subject} ({link})"
    pid, rest = found
    # Whatever is in /proc/PID/net is shown as deleted once somebody has looked it up by name again.
    if link.endswith(DELETED) and not (rest.startswith("/net/") and os.path.exists(link.removesuffix(DELETED))):
        raise Refusal(subject, "it belongs to a task that has ended", "close it first")
    if pid not in dump.tasks:
        raise Refusal(subject, "it belongs to a task outside of the tree, which will be another one", "close it first")
    if rest.startswith(_NO_LATER):
        raise Refusal(subject, "this file of /proc cannot be opened again early enough", "close it first")


def _examine_gone(dump: "Dump", subject: str, stat: os.stat_result) -> None:
    """What looks like a file whose name was deleted, but never had a name here."""
    device = stat.st_dev
    if (os.major(device), os.minor(device)) == shm_device():
        raise Refusal(subject, "shared memory that was opened through /proc cannot be dumped", "close it first")
    if os.major(device) == 0 and in_memory.file_system(dump, device) not in _WITH_GHOSTS:
        raise Refusal(subject, "its name is gone, and its file system cannot be given such a file", "close it first")


_WITH_GHOSTS = frozenset(
    {"tmpfs", "overlay", "btrfs", "nfs", "nfs4", "zfs", "bcachefs", "fuse", "ramfs", "9p", "virtiofs"}
)


def _write_build_ids(dump: "Dump") -> None:
    """After the thaw: of all files that still have their names."""
    if dump.options.file_validation != "buildid":
        return
    known: dict[tuple[int, int], list[int]] = {}
    for reg, there in dump.setdefault("regular:named", []):
        if there not in known:
            # A file of FUSE may be served by a task that stands still.
            slow = os.major(there[0]) == 0 and in_memory.file_system(dump, there[0]) in ("fuse", "proc", "")
            known[there] = [] if slow else build_id.of_path(reg.name, there)
        reg.build_id = known[there]


# -- restore ----------------------------------------------------------------------------------------------------------


def _check_entry(reg: RegFileEntry) -> None:
    what = f"files.img, file {reg.id}"
    name = reg.name
    if (
        not name.startswith("/")
        or "\0" in name
        or (len(name) > 1000 and len(os.fsencode(name)) > 4095)
        or (".." in name and ".." in name.split("/"))
    ):
        raise ImageError(what, f"impossible name {reg.name[:100]!r}")
    if reg.ext:
        raise ImageError(what, "an external file", "Torpor cannot restore those yet")
    if reg.pos > MAX_POSITION:
        raise ImageError(what, f"impossible position {reg.pos}")
    if reg.flags & os.O_ACCMODE == os.O_ACCMODE and reg.flags & os.O_PATH:
        raise ImageError(what, f"impossible flags {reg.flags:#o}")
    if reg.mode and st.S_IFMT(reg.mode) not in KINDS:
        raise ImageError(what, f"impossible mode {reg.mode:#o}")


def _changed(name: str, why: str) -> Refusal:
    return Refusal(f"the file {name}", why, "put it back as it was", code="changed-file")


_KIND_NAMES = {
    st.S_IFREG: "a regular file", st.S_IFDIR: "a directory", st.S_IFLNK: "a symbolic link", st.S_IFIFO: "a FIFO",
    st.S_IFCHR: "a character device", st.S_IFBLK: "a block device", st.S_IFSOCK: "a socket",
}  # fmt: skip


def _check_named(reg: RegFileEntry, restore: "Restore") -> None:
    """Compare the file with what it was at the dump.  Raises Refusal."""
    try:
        stat = file_facts.lstat(reg.name)
    except OSError as error:
        raise _changed(reg.name, f"it cannot be found any more ({os.strerror(error.errno or 0)})") from None
    mode, kind = reg.mode, st.S_IFMT(stat.st_mode)
    if st.S_ISLNK(stat.st_mode) and not (mode and st.S_ISLNK(mode)):
        stat = file_facts.stat(reg.name)
        kind = st.S_IFMT(stat.st_mode)
    if mode:
        if kind != st.S_IFMT(mode):
            raise _changed(
                reg.name, f"at the dump it was {_KIND_NAMES[st.S_IFMT(mode)]}, now it is {_KIND_NAMES[kind]}"
            )
        if stat.st_mode != mode and not restore.options.skip_file_rwx_check:
            raise Refusal(
                f"the file {reg.name}",
                f"its permissions are {stat.st_mode & 0o7777:o}, at the dump they were {mode & 0o7777:o}",
                "put them back with chmod, or ignore that with --skip-file-rwx-check",
                code="changed-file",
            )
    if not reg.flags & os.O_PATH and kind not in (st.S_IFREG, st.S_IFDIR, st.S_IFIFO):
        device = (os.major(stat.st_rdev), os.minor(stat.st_rdev))
        if kind != st.S_IFCHR or device not in MEMORY_DEVICES:
            raise ImageError(f"files.img, file {reg.id}", f"{reg.name} is {_KIND_NAMES[kind]} that is not restored so")
    if reg.size is not None and kind == st.S_IFREG and stat.st_size != reg.size:
        from torpor.kernel.mounts import is_made_up

        if not is_made_up(stat.st_dev):
            raise _changed(reg.name, f"at the dump it had {reg.size} bytes, now it has {stat.st_size}")
    if reg.flags & os.O_ACCMODE == os.O_WRONLY and kind == st.S_IFREG and is_outgrown(stat.st_size, reg.flags):
        raise _changed(reg.name, f"{OUTGROWN}, and has grown since the dump")
    if reg.build_id and kind == st.S_IFREG and restore.options.file_validation == "buildid":
        known: dict[tuple[int, int], list[int]] = restore.state.setdefault("build ids", {})
        key = (stat.st_dev, stat.st_ino)
        if key not in known:
            known[key] = build_id.of_path(reg.name)
        if known[key] != reg.build_id:
            raise _changed(reg.name, "it is another build of that program or library than at the dump")


def open_as(reg: "RegFileEntry", name: str, dir_fd: int | None = None, follow: bool = False) -> int:
    """Open a file by name as its entry says: flags, position.  follow: whatever O_NOFOLLOW says.  OSError."""
    flags = reg.flags & ~(NEVER | os.O_NOFOLLOW if follow else NEVER)
    if flags & TMPFILE:
        flags &= ~os.O_TMPFILE
    if st.S_ISFIFO(reg.mode or 0):
        flags = os.O_PATH  # its ends are opened by resources/fifo.py, through this one
    fd = open_exactly(name, flags | os.O_NOCTTY | os.O_CLOEXEC, dir_fd)
    try:
        if reg.pos and not flags & os.O_PATH:
            os.lseek(fd, reg.pos, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def refuse_outgrown(seen: "SeenFile") -> None:
    if st.S_ISREG(seen.stat.st_mode) and is_outgrown(seen.stat.st_size, seen.info.status_flags):
        raise seen.refusal(f"{OUTGROWN}, and has grown since", "close it, or open it with O_LARGEFILE")


class Regular(Described):
    covers = frozenset({"fd:regular", "fd:directory", "fd:symlink", "fd:device", "fd:path"})
    type = REG
    field = "reg"

    # -- dump ---------------------------------------------------------------------------------------------------------
    def examine(self, seen: "SeenFile", dump: "Dump") -> None:
        if seen.info.pos < 0:  # as /proc/PID/mem allows
            raise seen.refusal("its position lies beyond what Torpor can set", "let the program use pread(2) instead")
        refuse_outgrown(seen)
        in_memory.note(dump, seen.link, seen.stat)

    def save(self, seen: "SeenFile", dump: "Dump") -> FileEntry:
        info = seen.info
        path = f"/proc/{seen.pid}/fd/{seen.number}"
        return file_entry(
            dump, seen.where, seen.id, seen.link, seen.stat, info.status_flags, info.pos, save_owner(seen.fd), path
        )

    def late(self, dump: "Dump") -> None:
        _write_build_ids(dump)
        link_remap.late(dump)
        dump.images.write(kinds.REMAP_FPATH, ghost.remaps(dump))

    # -- restore ------------------------------------------------------------------------------------------------------
    def check(self, entry: FileEntry, restore: "Restore") -> None:
        reg = entry.reg
        if reg is None:
            raise ImageError(f"files.img, file {entry.id}", "a file without its entry")
        _check_entry(reg)
        remap = ghost.load(restore).get(entry.id)
        if remap is None:
            if not self._special(reg, restore):
                _check_named(reg, restore)
        elif remap.remap_type == ghost.GHOST:
            found = ghost.check(restore, remap.remap_id)
            own = extras(restore).get(entry.id)
            if own is not None and not inode.are_possible(own):
                raise ImageError(f"torpor-files.img, file {entry.id}", "impossible attributes")
            if reg.mode and st.S_IFMT(found.mode) != st.S_IFMT(reg.mode):
                raise ImageError("a ghost file's image is mangled", f"{reg.name} is of another kind")
        elif remap.remap_type == ghost.LINKED:
            link_remap.check(restore, remap.remap_id, reg.name)
        elif remap.remap_type == ghost.PROCFS and (_of_task(reg.name) or (0, ""))[0] in restore.tasks:
            self._special(reg, restore)  # CRIU says of all in /proc/PID/net that its task has ended
        else:
            raise Refusal(f"the file {reg.name}", "it belongs to a task that had ended at the dump", "dump without it")

    @staticmethod
    def _special(reg: RegFileEntry, restore: "Restore") -> bool:
        """What is not there yet, or is only a hint for another entry: terminals, tasks in /proc, link_remap.N."""
        if "regular:special" not in restore.state:
            found = {entry.tty.regf_id for entry in restore.files.values() if entry.tty is not None}
            found |= {remap.remap_id for remap in ghost.load(restore).values() if remap.remap_type == ghost.LINKED}
            restore.state["regular:special"] = found
        if reg.id in restore.state["regular:special"]:
            return True
        if reg.flags & os.O_PATH and reg.name.startswith(TERMINALS):
            return _terminals(restore).will_make(reg.name)
        task = _of_task(reg.name)
        if task is None:
            return False
        pid, rest = task
        if pid not in restore.tasks or rest.startswith(_NO_LATER):
            raise Refusal(f"the file {reg.name}", "it belongs to a task that is not restored", "dump without it")
        return True

    def make(self, entry: FileEntry, restore: "Restore") -> int:
        reg = entry.reg
        assert reg is not None  # check
        remap = ghost.load(restore).get(entry.id)
        if remap is None or remap.remap_type == ghost.PROCFS:
            if reg.flags & os.O_PATH and reg.name.startswith(TERMINALS):
                _terminals(restore).make_pairs()
            return open_as(reg, reg.name)
        from torpor.resources import unlinked

        made = unlinked.make(restore, remap)
        fd = made.pop(entry.id)
        restore.made.update(made)
        return fd

    def last(self, entry: FileEntry, fd: int, restore: "Restore") -> None:
        if entry.reg is not None and not st.S_ISFIFO(entry.reg.mode or 0):  # of these, resources/fifo.py does it
            super().last(entry, fd, restore)


def _terminals(restore: "Restore") -> "Terminals":
    from torpor.resources import tty_restore

    return tty_restore.terminals(restore)


KIND = Regular()
FILE_KINDS: "list[FileKind]" = [KIND]
