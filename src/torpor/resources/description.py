# SPDX-License-Identifier: Apache-2.0
"""What every open file description has, whatever its kind: status flags, an owner for signals, and Torpor's extras.

The owner (F_SETOWN, F_SETSIG) is who gets SIGIO.  Surprising facts:

- The kernel remembers the ids of whoever *set* the owner and uses them to decide whether the signal may be sent, so
  they are put back by setting the owner under these ids.
- O_ASYNC registers the *number* of the descriptor through which it was set: that is what the signal's si_fd says.  So
  it is set inside the task that has the description, never by us.
- An owner may be a thread, and threads come late: owners are set when the whole tree stands.
- fcntl(2) on an O_PATH descriptor knows no owner.
"""

import fcntl
import os
import struct

from torpor.errors import ImageError, RestoreFailed
from torpor.images import kinds
from torpor.images.frozen import freeze
from torpor.images.schema.fown import FownEntry
from torpor.images.schema.torpor_file import TorporFileEntry
from torpor.kernel.syscall import call
from torpor.resources.base import FileKind
from torpor.typed import TYPE_CHECKING, ClassVar, Sequence

if TYPE_CHECKING:
    from torpor.engine.program import Program
    from torpor.images.schema.fdinfo import FileEntry
    from torpor.resources.context import Dump, Restore, RestoreTask

# linux/fcntl.h, asm-generic/fcntl.h
F_SETSIG, F_GETSIG, F_SETOWN_EX, F_GETOWN_EX, F_GETOWNER_UIDS = 10, 11, 15, 16, 17
F_SETFL = 4
SETTABLE = os.O_APPEND | os.O_NONBLOCK | os.O_DIRECT | os.O_NOATIME  # what F_SETFL can change; O_ASYNC apart
O_ASYNC = os.O_ASYNC

_OWNER = struct.Struct("=ii")
_IDS = struct.Struct("=II")
_SIGNALS = 64
_NOTHING = bytes(_OWNER.size)
NOBODY = FownEntry(uid=0, euid=0, signum=0, pid_type=0, pid=0)  # one for all
freeze(NOBODY)


def save_owner(fd: int) -> FownEntry:
    """The owner of a description, and the signal it is to get; `fd` is ours, or an O_PATH descriptor (no owner)."""
    try:
        owner = fcntl.fcntl(fd, F_GETOWN_EX, _NOTHING)
        signum = fcntl.fcntl(fd, F_GETSIG)
        if owner == _NOTHING and not signum:
            return NOBODY
        ids = fcntl.fcntl(fd, F_GETOWNER_UIDS, bytes(_IDS.size))
    except OSError:  # EBADF: O_PATH
        return NOBODY
    kind, pid = _OWNER.unpack(owner)
    uid, euid = _IDS.unpack(ids) if pid else (0, 0)
    return FownEntry(uid=uid, euid=euid, signum=signum, pid_type=kind, pid=pid)


def check_owner(id: int, owner: FownEntry) -> None:
    """Whether there can be such an owner.  Raises ImageError."""
    if owner.pid >= 1 << 31 or owner.signum > _SIGNALS or owner.pid_type not in _RECEIVERS:
        raise ImageError(f"files.img, file {id}", "its signals have an impossible receiver")


def set_owner(fd: int, owner: FownEntry) -> None:
    """Put the owner back.  Its process, group or thread must exist.  Raises OSError, RestoreFailed."""
    if owner.signum:
        fcntl.fcntl(fd, F_SETSIG, owner.signum)
    if not owner.pid:
        return
    argument = _OWNER.pack(owner.pid_type, owner.pid)
    ours = os.getresuid()
    if (owner.uid, owner.euid) != ours[:2]:
        call("setresuid", owner.uid, owner.euid, ours[0])  # of this thread alone; the saved id leads back
    try:
        fcntl.fcntl(fd, F_SETOWN_EX, argument)
    except ProcessLookupError:
        raise RestoreFailed(
            f"the signals of {os.readlink(f'/proc/self/fd/{fd}')} cannot be sent any more",
            f"their {_RECEIVERS.get(owner.pid_type, 'receiver')} {owner.pid} is not there",
            "dump it together with the tree",
        ) from None
    finally:
        if os.getresuid() != ours:
            call("setresuid", *ours)


_RECEIVERS = {0: "thread", 1: "process", 2: "process group"}


def set_flags(fd: int, flags: int) -> None:
    """Set the status flags that can be set afterwards, except O_ASYNC."""
    fcntl.fcntl(fd, F_SETFL, flags & SETTABLE)


class Described(FileKind):
    """A kind whose message in FileEntry has `flags` and `fown`: these two are saved and brought back alike for all."""

    field: ClassVar[str] = ""  # name of the message in FileEntry

    def place(self, entry: "FileEntry", task: "RestoreTask", number: int, program: "Program") -> None:
        flags = getattr(entry, self.field).flags
        if flags & O_ASYNC:
            program.call("fcntl", number, F_SETFL, flags & (SETTABLE | O_ASYNC))

    def owner(self, entry: "FileEntry") -> FownEntry:
        owner: FownEntry = getattr(entry, self.field).fown
        return owner

    def last(self, entry: "FileEntry", fd: int, restore: "Restore") -> None:
        owner = self.owner(entry)
        if owner.pid or owner.signum:
            set_owner(fd, owner)


def extra(dump: "Dump", id: int) -> TorporFileEntry:
    """Torpor's own entry of a file, for this dump, to be filled in."""
    entries: dict[int, TorporFileEntry] = dump.setdefault("file extras", {})
    if id not in entries:
        entries[id] = TorporFileEntry(id=id)
    return entries[id]


def in_order(entries: Sequence["FileEntry"]) -> list["FileEntry"]:
    """In the order of their ids, but of two UNIX sockets that are connected the second first: CRIU begins with the one
    that it has read last, whose descriptors must be the first."""
    by_inode = {entry.usk.ino: entry for entry in entries if entry.usk}

    def place(entry: "FileEntry") -> tuple[int, int]:
        peer = by_inode.get(entry.usk.peer) if entry.usk else None
        mutual = peer is not None and peer.usk is not None and entry.usk is not None and peer.usk.peer == entry.usk.ino
        return (max(entry.id, peer.id), -entry.id) if peer and mutual else (entry.id, 0)

    return sorted(entries, key=place)


def write_extras(dump: "Dump") -> None:
    """Write torpor-files.img, or remove an old one, when all files have been saved."""
    entries: dict[int, TorporFileEntry] = dump.state.get("file extras", {})
    dump.images.write(kinds.TORPOR_FILES, entries.values())


def extras(restore: "Restore") -> dict[int, TorporFileEntry]:
    """Torpor's own entries by file id; empty when CRIU made the images."""
    if "file extras" not in restore.state:
        restore.state["file extras"] = {entry.id: entry for entry in restore.images.entries(kinds.TORPOR_FILES)}
    found: dict[int, TorporFileEntry] = restore.state["file extras"]
    return found
