# SPDX-License-Identifier: Apache-2.0
"""UNIX sockets in images: checked, and who is connected to whom.  Makes nothing; unix_restore.py does."""

import os
import socket

from torpor.errors import ImageError, Refusal
from torpor.images import kinds
from torpor.images.schema.torpor_file import TorporFileEntry
from torpor.kernel.sockdiag import CLOSE, ESTABLISHED, LISTEN, SockDiag
from torpor.resources import socket_options, unix_names, unix_queue
from torpor.resources.description import extras
from torpor.resources.unix_makers import Who
from torpor.resources.unix_names import Place, is_path
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.images.schema.fdinfo import FileEntry
    from torpor.images.schema.sk_unix import UnixSkEntry
    from torpor.resources.context import Restore

STREAM, DGRAM, SEQPACKET = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET
MAX_NAME = 109  # 108 bytes of sun_path, and the NUL that the kernel adds


def check(entry: "FileEntry", restore: "Restore") -> None:
    """One entry alone.  Raises ImageError, Refusal."""
    usk = entry.usk
    where = f"files.img, UNIX socket {entry.id}"
    if usk is None:
        raise ImageError(where, "it has no entry")
    if usk.type not in (STREAM, DGRAM, SEQPACKET) or usk.state not in (ESTABLISHED, CLOSE, LISTEN):
        raise ImageError(where, f"impossible type {usk.type} or state {usk.state}")
    if usk.state == LISTEN and (usk.type == DGRAM or not usk.name):
        raise ImageError(where, "it listens, but it cannot")
    socket_options.check(where, usk.opts)
    if len(usk.name) > MAX_NAME or (is_path(usk.name) and b"\0" in usk.name[:-1]):
        raise ImageError(where, "impossible name")
    if usk.uflags:
        raise Refusal(where, "it was dumped with an option that leaves one end outside (--ext-unix-sk or the like)")
    if is_path(usk.name) and not usk.deleted:
        if usk.name[:1] != b"/" and usk.name_dir is None:
            raise ImageError(where, f"the name {unix_names.printable(usk.name)} is relative, but to nothing")
        unix_names.check_free(place_of(usk, extras(restore).get(entry.id)), _living(restore))
    elif is_path(usk.name) and (own := extras(restore).get(entry.id)) is not None and own.socket_file:
        if "\0" in own.socket_file:
            raise ImageError(where, "impossible name of its file")
        unix_names.check_free(place_of(usk, own), _living(restore))  # where it is for a moment
        unix_names.check_free(Place(os.fsencode(own.socket_file)), _living(restore))


def _living(restore: "Restore") -> dict[tuple[int, int], int]:
    """Inodes of files that sockets hold now."""
    if "unix living" not in restore.state:
        with SockDiag() as diag:
            restore.state["unix living"] = {one.vfs: one.ino for one in diag.unix().values() if one.vfs}
    found: dict[tuple[int, int], int] = restore.state["unix living"]
    return found


def place_of(usk: "UnixSkEntry", own: TorporFileEntry | None) -> Place:
    return Place(usk.name.rstrip(b"\0"), usk.name_dir, own.name_root if own else None)


class Plan:
    """All UNIX sockets of the images.  Raises ImageError, Refusal.

    entries, extras, peers (file id of the peer, or None), queues (bytes, ids of descriptors in flight): by file id.
    """

    def __init__(self, restore: "Restore") -> None:
        self.restore = restore
        self.entries = {id: file.usk for id, file in restore.files.items() if file.usk is not None}
        self.extras = {id: extras(restore).get(id) or TorporFileEntry(id=id) for id in self.entries}
        self.ours = bool(extras(restore))
        by_ino = {usk.ino: id for id, usk in self.entries.items()}
        if len(by_ino) != len(self.entries):
            raise ImageError("files.img is mangled", "two UNIX sockets have the same inode")
        self.peers = {id: self._peer(id, by_ino) for id in self.entries}
        self.queues = self._load_queues()
        if not self.ours:
            self._guess_widows()
        self._counts: dict[tuple[object, ...], int] = {}
        for id, usk in self.entries.items():
            if usk.name:
                self._counts[self.key(id)] = self._counts.get(self.key(id), 0) + 1
        self._holders: dict[int, int] | None = None

    def _peer(self, id: int, by_ino: dict[int, int]) -> int | None:
        """The file id of the peer.  Raises ImageError."""
        usk = self.entries[id]
        if not usk.peer:
            return None
        peer = by_ino.get(usk.peer)
        if peer is None:
            raise ImageError("files.img is incomplete", f"the peer of UNIX socket {id} is not there")
        other = self.entries[peer]
        if other.type != usk.type:
            raise ImageError("files.img is mangled", f"UNIX sockets {id} and {peer} differ in type")
        if usk.type != DGRAM and other.state != LISTEN and (other.peer != usk.ino or peer == id):
            raise ImageError("files.img is mangled", f"UNIX socket {id} is connected in one direction only")
        return peer

    def _guess_widows(self) -> None:
        """CRIU's images do not tell a datagram socket whose peer was closed from one that never had any."""
        targets = set(self.peers.values())
        for id, usk in self.entries.items():
            alone = self.peers[id] is None and id not in targets
            if usk.type == DGRAM and usk.state == ESTABLISHED and not usk.name and alone:
                self.extras[id].peer_gone = True

    def _load_queues(self) -> dict[int, list[tuple[bytes, list[int]]]]:
        found: dict[int, list[tuple[bytes, list[int]]]] = {}
        for packet, data in self.restore.images.entries_with_payload(kinds.SK_QUEUES):
            rights: list[int] = []
            for scm in packet.scm:
                if scm.type != unix_queue.SCM_RIGHTS:
                    raise Refusal("sk-queues.img", f"control messages of type {scm.type} cannot be sent again")
                rights += scm.rights
            if len(rights) > unix_queue.MAX_DESCRIPTORS or any(id not in self.restore.files for id in rights):
                raise ImageError("sk-queues.img is mangled", "descriptors in a message that cannot be")
            found.setdefault(packet.id_for, []).append((data, rights))
        return found

    def needs(self) -> list[int]:
        """Files that are in flight to any of these sockets, which are all made together."""
        return sorted({
            right
            for messages in self.queues.values()
            for _, rights in messages
            for right in rights
            if right not in self.entries
        })  # fmt: skip

    def key(self, id: int) -> tuple[object, ...]:
        """What sockets with the same name, and the same file behind it, have in common."""
        usk = self.entries[id]
        return usk.type, usk.name, usk.name_dir, bool(usk.deleted), self.extras[id].name_root

    def sharers(self, id: int) -> int:
        """How many sockets have this one's name and file."""
        return self._counts[self.key(id)]

    def is_mutual(self, id: int) -> bool:
        """Two sockets are each other's peers."""
        peer = self.peers[id]
        return peer is not None and peer != id and self.peers[peer] == id

    def waits(self, id: int) -> bool:
        """A client that nobody has accepted yet."""
        peer = self.peers[id]
        return peer is not None and self.entries[peer].state == LISTEN

    def who(self, id: int) -> Who | None:
        """Whom the socket's SO_PEERCRED shows; where the images do not tell, a holder of it."""
        own = self.extras[id]
        if own.peer_pid:
            return Who(own.peer_pid, own.peer_uid or 0, own.peer_gid or 0)
        return None if self.ours else self.holder(id)

    def holder(self, id: int) -> Who | None:
        """The first process that has a socket."""
        if self._holders is None:
            self._holders = {}
            for pid, task in self.restore.tasks.items():
                for fd in task.fds:
                    if fd.id in self.entries:
                        self._holders.setdefault(fd.id, pid)
        if id not in self._holders:
            return None
        pid = self._holders[id]
        core = self.restore.tasks[pid].core.thread_core
        creds = core.creds if core is not None else None
        return Who(pid, creds.euid if creds else 0, creds.egid if creds else 0)
