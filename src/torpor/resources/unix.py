# SPDX-License-Identifier: Apache-2.0
"""UNIX sockets: pairs, listening, connected, waiting in a backlog, bound or not, and what is in their queues.  unix(7).

A socket's peer, what waits in a backlog and the inode behind a name are told by sock_diag alone, which is asked once a
dump.  Both ends of a connection must be in the tree.  Surprising facts:

- A client that nobody has accepted yet has no peer that could be named; the listener's list of clients tells.  CRIU's
  images give it the listener as its peer.  What it has sent already is in a socket that only accept(2) brings out: it
  is refused.
- An accepted socket has its listener's name, and shares its file.
- A datagram socket is ESTABLISHED as soon as somebody else has connected to it, so its state says nothing.
- SO_PEERCRED is who made the pair, or called listen(2) or connect(2), with the ids of that moment.

Making them again is in unix_restore.py, queues in unix_queue.py, names in unix_names.py.
"""

import os
import select
import socket
import struct

from torpor.errors import ImageError, RestoreFailed
from torpor.images import kinds
from torpor.images.schema.fdinfo import FileEntry
from torpor.images.schema.sk_packet import ScmEntry, SkPacketEntry
from torpor.images.schema.sk_unix import FilePermsEntry, UnixSkEntry
from torpor.images.schema.torpor_file import SenderEntry
from torpor.kernel.polling import poll_events
from torpor.kernel.sockdiag import CLOSE, ESTABLISHED, LISTEN, SockDiag, UnixSocket
from torpor.resources import socket_options, socket_trial, unix_names, unix_queue
from torpor.resources.description import Described, extra, extras, save_owner
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.images.schema.torpor_file import TorporFileEntry
    from torpor.resources.context import Dump, Restore, SeenFile

UNIXSK = 5  # FdTypes
NET_NS = 2  # number of the network namespace in the images
STREAM, DGRAM, SEQPACKET = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET
RECEIVE_SHUT = 1
SO_PEERCRED = socket.SO_PEERCRED
SOL = socket.SOL_SOCKET
# Those of SOL_SOCKET that say something to a UNIX socket, and what they are at first.
MORE_OPTIONS = {29: 0, 35: 0, 37: 0, 40: 0, 44: 0, 63: 0, 64: 0, 65: 0, 76: 0, 83: 1}
NAMES = {
    29: "SO_TIMESTAMP", 35: "SO_TIMESTAMPNS", 37: "SO_TIMESTAMPING", 40: "SO_RXQ_OVFL", 44: "SO_LOCK_FILTER",
    63: "SO_TIMESTAMP_NEW", 64: "SO_TIMESTAMPNS_NEW", 65: "SO_TIMESTAMPING_NEW", 76: "SO_PASSPIDFD",
    83: "SO_PASSRIGHTS",
}  # fmt: skip


class Unix(Described):
    covers = frozenset({"fd:unix"})
    type = UNIXSK
    field = "usk"
    carries = True

    # -- dump ---------------------------------------------------------------------------------------------------------
    def examine(self, seen: "SeenFile", dump: "Dump") -> None:
        facts = _facts(seen, dump)
        dump.setdefault("unix examined", {})[facts.ino] = (seen, facts)
        socket_options.refuse_filter(seen)
        if facts.name and unix_names.is_path(facts.name):
            _file(seen, facts)
        if facts.type == STREAM and facts.state == ESTABLISHED and facts.rqueue:
            with socket_options.opened(seen.fd) as sock:
                unix_queue.refuse_urgent(sock, seen)

    def examined(self, dump: "Dump") -> None:
        """Is every peer in the tree, and has nobody sent what only accept(2) brings out?"""
        known: dict[int, tuple[SeenFile, UnixSocket]] = dump.state.get("unix examined", {})
        for seen, facts in known.values():
            strangers = [ino for ino in facts.backlog if ino not in known]
            if strangers and not dump.options.skip_in_flight:
                dump.refuse(
                    seen.refusal(
                        f"a connection from outside the tree waits to be accepted{_owner(strangers[0])}",
                        "try again, or use --skip-in-flight (it is lost)",
                    )
                )
            if facts.peer and facts.peer not in known:
                dump.refuse(
                    seen.refusal(
                        f"it is connected to a socket outside the tree{_owner(facts.peer)}",
                        "dump that process too (with a common parent), or close the connection first",
                    )
                )
            for client, its in (known[ino] for ino in facts.backlog if ino in known):
                if its.wqueue:
                    why = "it has sent data over a connection that nobody has accepted yet"
                    dump.refuse(client.refusal(why, "try again when it was accepted"))

    def save(self, seen: "SeenFile", dump: "Dump") -> FileEntry:
        facts = _facts(seen, dump)
        name = facts.name or b""
        with socket_options.opened(seen.fd) as sock:
            own = extra(dump, seen.id)
            entry = UnixSkEntry(
                id=seen.id,
                ino=facts.ino,
                type=facts.type,
                state=facts.state,
                flags=seen.info.status_flags,
                uflags=0,
                backlog=facts.wqueue,
                peer=facts.peer or 0,
                fown=save_owner(seen.fd),
                opts=socket_options.save(sock),
                name=name,
                shutdown=facts.shutdown or None,
                ns_id=NET_NS,
            )
            entry.opts.so_passcred = bool(sock.getsockopt(SOL, socket_options.SO_PASSCRED))
            entry.opts.so_passsec = bool(sock.getsockopt(SOL, socket_options.SO_PASSSEC))
            if unix_names.is_path(name):
                file = _file(seen, facts)
                entry.file_perms = FilePermsEntry(mode=file.mode, uid=file.uid, gid=file.gid)
                entry.name_dir = file.place.directory
                entry.deleted = file.deleted or None
                own.name_root, own.socket_file = file.place.root, file.moved
            if facts.state == LISTEN:
                self._backlog(seen, dump, facts, own)
            else:
                self._peer_gone(sock, facts, own)
                self._queue(sock, seen, dump, facts)
            _more_options(sock, own)
            if seen.stat.st_uid or seen.stat.st_gid:
                own.uid, own.gid = seen.stat.st_uid, seen.stat.st_gid
        dump.setdefault("unix seen", {})[facts.ino] = (seen, entry)
        return FileEntry(type=UNIXSK, id=seen.id, usk=entry)

    @staticmethod
    def _backlog(seen: "SeenFile", dump: "Dump", facts: UnixSocket, own: "TorporFileEntry") -> None:
        if not facts.backlog:
            return
        clients: dict[int, int] = dump.setdefault("unix clients", {})
        clients.update((ino, facts.ino) for ino in facts.backlog)
        own.waiting = list(facts.backlog)

    @staticmethod
    def _peer_gone(sock: socket.socket, facts: UnixSocket, own: "TorporFileEntry") -> None:
        """The socket is connected to one that was closed: what can still be seen of that."""
        pid, uid, gid = struct.unpack("=iII", sock.getsockopt(SOL, SO_PEERCRED, 12))
        if pid > 0:
            own.peer_pid, own.peer_uid, own.peer_gid = pid, uid, gid
        if facts.peer or facts.state != ESTABLISHED:
            return
        try:
            name = unix_queue.name_of(sock.getpeername())
        except OSError:
            return  # somebody connected to it, that is all
        own.peer_gone = True
        own.peer_name = name
        if facts.type != DGRAM:
            own.reset = bool(poll_events(sock.fileno()) & select.POLLERR) or None

    @staticmethod
    def _queue(sock: socket.socket, seen: "SeenFile", dump: "Dump", facts: UnixSocket) -> None:
        offset = sock.getsockopt(SOL, unix_queue.SO_PEEK_OFF)
        if offset >= 0:
            extra(dump, seen.id).peek_offset = offset
        if facts.type != DGRAM and facts.state == CLOSE:
            return
        messages = unix_queue.look(sock, seen, facts.rqueue, bool(facts.shutdown & RECEIVE_SHUT))
        if not messages:
            return
        dump.setdefault("unix queues", {})[seen.id] = messages
        for index, message in enumerate(messages):
            if message.sender is not None or message.credentials is not None:
                pid, uid, gid = message.credentials or (None, None, None)
                sender = SenderEntry(index=index, name=message.sender, pid=pid, uid=uid, gid=gid)
                extra(dump, seen.id).senders.append(sender)

    def settle(self, dump: "Dump") -> None:
        """All open files are known: what is in flight, and who is connected to a listener."""
        self._rights(dump)
        self.examined(dump)
        known: dict[int, tuple[SeenFile, UnixSkEntry]] = dump.state.get("unix seen", {})
        for listener, _ in list(known.values()):
            own = extra(dump, listener.id)
            own.waiting = [ino for ino in own.waiting if ino in known]
        for ino, listener_ino in dump.state.get("unix clients", {}).items():
            if ino not in known:
                continue
            seen, entry = known[ino]
            entry.peer = listener_ino
            extra(dump, seen.id).peer_gone = extra(dump, seen.id).peer_name = None

    @staticmethod
    def _rights(dump: "Dump") -> None:
        """Descriptors in messages.  They may bring sockets with messages of their own."""
        adopt = dump.state["adopt"]
        queues: dict[int, list[unix_queue.Message]] = dump.state.get("unix queues", {})
        rights: dict[int, list[list[int]]] = dump.setdefault("unix rights", {})
        while new := queues.keys() - rights.keys():
            for id in new:
                rights[id] = [[adopt(dump, fd) for fd in message.rights] for message in queues[id]]

    def late(self, dump: "Dump") -> None:
        queues: dict[int, list[unix_queue.Message]] = dump.state.get("unix queues", {})
        rights: dict[int, list[list[int]]] = dump.state.get("unix rights", {})
        dump.images.write(
            kinds.SK_QUEUES,
            (
                (
                    SkPacketEntry(
                        id_for=id,
                        length=len(message.data),
                        scm=[ScmEntry(type=unix_queue.SCM_RIGHTS, rights=rights[id][i])] if message.rights else [],
                    ),
                    message.data,
                )
                for id, messages in queues.items()
                for i, message in enumerate(messages)
            ),
        )

    # -- restore ------------------------------------------------------------------------------------------------------
    def check(self, entry: FileEntry, restore: "Restore") -> None:
        from torpor.resources import unix_plan, unix_restore

        unix_plan.check(entry, restore)
        _check_options(entry, restore)
        unix_restore.sockets(restore)

    def needs(self, entry: FileEntry, restore: "Restore") -> list[int]:
        from torpor.resources import unix_restore

        return unix_restore.sockets(restore).needs

    def make(self, entry: FileEntry, restore: "Restore") -> int:
        from torpor.resources import unix_restore

        return unix_restore.sockets(restore).make(entry.id)

    def wire(self, entry: FileEntry, fd: int, restore: "Restore") -> None:
        from torpor.resources import unix_finish, unix_restore

        try:
            unix_finish.finish(unix_restore.sockets(restore))
        except OSError as error:
            raise RestoreFailed(
                "the UNIX sockets cannot come back as they were", os.strerror(error.errno or 0)
            ) from error


def _facts(seen: "SeenFile", dump: "Dump") -> UnixSocket:
    """What sock_diag says of a socket.  It is asked once a dump: frozen tasks' sockets do not move."""
    ino = seen.stat.st_ino & 0xFFFFFFFF
    if ino not in dump.state.get("unix", {}):  # the first, or one that was made since, by a task that runs
        with SockDiag() as diag:
            dump.state["unix"] = diag.unix()
    facts: UnixSocket | None = dump.state["unix"].get(ino)
    if facts is None:
        raise seen.refusal(
            "the kernel does not list it in Torpor's network namespace", "run Torpor in the one it was made in"
        )
    return facts


def _file(seen: "SeenFile", facts: UnixSocket) -> unix_names.SocketFile:
    """The file that a path name leads to.  Raises Refusal."""
    name = facts.name or b""
    try:
        return unix_names.look(seen.fd, name, facts.vfs, seen.pid)
    except (OSError, ValueError) as error:
        raise seen.refusal(
            f"its name {unix_names.printable(name)} cannot come back: {error}",
            "close it, or remove the other names of its file",
        ) from None


def _more_options(sock: socket.socket, own: "TorporFileEntry") -> None:
    for option, usual in MORE_OPTIONS.items():
        try:
            value = sock.getsockopt(SOL, option)
        except OSError:
            continue  # the kernel does not know it
        if value != usual:
            own.option_numbers.append(option)
            own.option_values.append(value & 0xFFFFFFFF)


def _check_options(entry: FileEntry, restore: "Restore") -> None:
    own, usk = extras(restore).get(entry.id), entry.usk
    assert usk is not None  # unix_plan.check
    for option in own.option_numbers if own is not None else ():
        if option not in MORE_OPTIONS:
            raise ImageError(f"torpor-files.img, UNIX socket {entry.id}", f"impossible option {option}")
    socket_trial.check(restore, entry.id, "UNIX socket", (socket.AF_UNIX, usk.type), usk.opts, own, put_more)


def put_more(sock: socket.socket, own: "TorporFileEntry") -> None:
    """Set the rarer options.  Raises OptionRefused."""
    for option, value in zip(own.option_numbers, own.option_values, strict=False):
        socket_options.put(sock, NAMES[option], SOL, option, socket_options.as_int(value))


def _owner(ino: int) -> str:
    """Who has this socket, for people; "" if nobody can be found."""
    if not ino:
        return ", whose process is gone"
    wanted = f"socket:[{ino}]"
    for pid in os.listdir("/proc"):
        if not pid.isdecimal():
            continue
        try:
            for number in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{number}") == wanted:
                    with open(f"/proc/{pid}/comm") as comm:
                        return f" (fd {number} of process {pid}, {comm.read().strip()})"
        except OSError:
            continue
    return ""


FILE_KINDS = [Unix()]
