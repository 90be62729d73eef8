# SPDX-License-Identifier: Apache-2.0
"""UNIX sockets at restore: all are made at once, for they hang together.

The order that the kernel asks for:

1. sockets that listen or are merely bound, datagram sockets, pairs;
2. connections: a pair without names by socketpair(2); one with a name through a listener of that name (the tree's own,
   or one that is closed again), because only accept(2) gives several sockets one name;
3. connections that were not accepted, then listen(2) with the real backlog;
4. when all other files exist, what unix_finish.py does.
"""

import os
import socket

from torpor.errors import KernelError
from torpor.kernel.sockdiag import ESTABLISHED, LISTEN
from torpor.resources import unix_names
from torpor.resources.unix_makers import Makers, Who
from torpor.resources.unix_names import AF_UNIX, Names, is_path
from torpor.resources.unix_plan import DGRAM, Plan, place_of
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.images.schema.sk_unix import UnixSkEntry
    from torpor.resources.context import Restore

MANY = 1 << 16  # for backlogs while connections are made


def sockets(restore: "Restore") -> "Sockets":
    """The one set of UNIX sockets of a restore."""
    if "unix sockets" not in restore.state:
        restore.state["unix sockets"] = Sockets(restore)
    found: Sockets = restore.state["unix sockets"]
    return found


class Acceptor:
    """A listening socket that gives its name to those that it accepts.  handle: O_PATH of its file, or -1."""

    def __init__(self, sock: socket.socket, handle: int, name: bytes) -> None:
        self.sock, self.handle, self.name = sock, handle, name


class Sockets:
    """All UNIX sockets of a restore; `made` by file id.  Until `finish` they are Python's, then the restore's."""

    def __init__(self, restore: "Restore") -> None:
        self.restore = restore
        self.plan = Plan(restore)
        self.needs = self.plan.needs()
        self.made: dict[int, socket.socket] = {}
        self.ghosts: dict[int, socket.socket] = {}  # the closed peers of sockets
        self.temporary: list[socket.socket] = []
        self.handles: dict[int, int] = {}  # O_PATH descriptors of socket files
        self._more_handles: list[int] = []
        self._acceptors: dict[tuple[object, ...], Acceptor] = {}
        self.finished = False

    def make(self, id: int) -> int:
        """The descriptor of one; all are made when the first is asked for."""
        if not self.made:
            self.names = Names()
            self.restore.state.setdefault("undo", []).append(self.names.undo)
            self.makers = Makers(self.restore)
            try:
                self._make_all()
            except BaseException:
                for sock in self.made.values():
                    sock.close()
                raise
            self.restore.made.update((one, sock.fileno()) for one, sock in self.made.items() if one != id)
        return self.made[id].fileno()

    def close(self) -> None:
        """Everything that is not the restore's."""
        for sock in (*self.temporary, *self.ghosts.values()):
            sock.close()
        for fd in (*self.handles.values(), *self._more_handles):
            os.close(fd)
        self.names.close()
        self.makers.close()

    def _make_all(self) -> None:
        entries = self.plan.entries
        # Those first whose file goes elsewhere at once.
        for id in sorted(entries, key=lambda id: not self.plan.extras[id].socket_file):
            usk = entries[id]
            if id in self.made:
                continue
            if usk.type == DGRAM:
                self._make_dgram(id, usk)
            elif usk.state != ESTABLISHED:
                self._new(id, usk)
        self._acceptors.update(
            (self.plan.key(id), Acceptor(self.made[id], self.handles.get(id, -1), usk.name))
            for id, usk in entries.items()
            if usk.state == LISTEN
        )
        for id, usk in entries.items():
            peer = self.plan.peers[id]
            if id in self.made or self.plan.waits(id):
                continue
            if peer is None:
                self._make_widow(id, usk)
            else:
                self._make_connection(id, peer)
        self._make_waiting()
        for id, usk in entries.items():
            if usk.state == LISTEN:
                self.makers.listen(self.made[id].fileno(), min(usk.backlog, 0x7FFFFFFF), self.plan.who(id))

    # -- single sockets -----------------------------------------------------------------------------------------------
    def _keep(self, id: int, sock: socket.socket) -> None:
        self.made[id] = sock
        own = self.plan.extras[id]
        facts = os.fstat(sock.fileno())
        if (facts.st_uid, facts.st_gid) != (own.uid or 0, own.gid or 0):
            os.fchown(sock.fileno(), own.uid or 0, own.gid or 0)

    def _new(self, id: int, usk: "UnixSkEntry") -> None:
        """A socket that is bound if it has a name."""
        self._keep(id, new(usk.type))
        self._bind(id, self.made[id])

    def _pair(self, kind: int, who: Who | None) -> tuple[socket.socket, socket.socket]:
        first, second = self.makers.pair(kind, who)
        return socket.socket(fileno=first), socket.socket(fileno=second)

    def _bind(self, id: int, sock: socket.socket) -> None:
        """Give `sock` the name of socket `id`, if it has one."""
        usk, own = self.plan.entries[id], self.plan.extras[id]
        if not usk.name:
            return
        if not is_path(usk.name):
            _bind_abstract(sock, usk.name)
        elif usk.deleted and not own.socket_file:
            self.handles[id] = self.names.bind_unseen(sock.fileno(), usk.name)
        else:
            perms = usk.file_perms
            mode, uid, gid = (perms.mode, perms.uid, perms.gid) if perms else (0o755, 0, 0)
            place = place_of(usk, own)
            self.handles[id] = self.names.bind_at(sock.fileno(), place, mode, uid, gid, own.socket_file)

    def bind_seen(self, sock: socket.socket, name: bytes) -> int:
        """Bind by a name that is to be read, not to be found; returns a handle, -1 for an abstract one."""
        if not is_path(name):
            _bind_abstract(sock, name)
            return -1
        handle = self.names.bind_unseen(sock.fileno(), name)
        self._more_handles.append(handle)
        return handle

    # -- connections --------------------------------------------------------------------------------------------------
    def _acceptor(self, id: int) -> Acceptor:
        """Who gives socket `id` its name: a listener of the tree, or one for the moment."""
        key = self.plan.key(id)
        if key not in self._acceptors:
            usk = self.plan.entries[id]
            sock = new(usk.type)
            self.temporary.append(sock)
            self._bind(id, sock)
            self._acceptors[key] = Acceptor(sock, self.handles.get(id, -1), usk.name)
        return self._acceptors[key]

    def _acceptor_named(self, kind: int, name: bytes) -> Acceptor:
        """One for a closed peer of this name; an abstract name can only be had once."""
        if not is_path(name):
            for acceptor in self._acceptors.values():
                if acceptor.name == name:
                    return acceptor
        key = ("gone", kind, name)
        if key not in self._acceptors:
            sock = new(kind)
            self.temporary.append(sock)
            self._acceptors[key] = Acceptor(sock, self.bind_seen(sock, name), name)
        return self._acceptors[key]

    def _connect(self, client: socket.socket, to: Acceptor, listens: Who | None, connects: Who | None) -> socket.socket:
        """Connect and accept; returns the accepted end."""
        self.makers.listen(to.sock.fileno(), MANY, listens)
        self.makers.connect(client.fileno(), to.name, to.handle, connects)
        return to.sock.accept()[0]

    def _make_connection(self, one: int, other: int) -> None:
        usk = self.plan.entries[one]
        named = [id for id in (one, other) if self.plan.entries[id].name]
        if not named:
            first, second = self._pair(usk.type, self.plan.who(one))
            self._keep(one, first)
            self._keep(other, second)
            return
        server = max(named, key=self.plan.sharers)
        client = other if server == one else one
        self._new(client, usk)
        self._keep(
            server,
            self._connect(self.made[client], self._acceptor(server), self.plan.who(client), self.plan.who(server)),
        )

    def _make_widow(self, id: int, usk: "UnixSkEntry") -> None:
        """A connected socket whose peer was closed: the peer is made too, and closed in the end."""
        peer_name, who = self.plan.extras[id].peer_name, self.plan.who(id)
        if usk.name and self.plan.sharers(id) > 1:  # it was accepted
            ghost = new(usk.type)
            if peer_name:
                self.bind_seen(ghost, peer_name)
            self._keep(id, self._connect(ghost, self._acceptor(id), who, who))
        elif peer_name:
            self._new(id, usk)
            ghost = self._connect(self.made[id], self._acceptor_named(usk.type, peer_name), who, who)
        else:
            sock, ghost = self._pair(usk.type, who)
            self._keep(id, sock)
            self._bind(id, sock)
        self.ghosts[id] = ghost

    def _make_waiting(self) -> None:
        """Clients that nobody has accepted yet, in their order."""
        waiting: dict[int, list[int]] = {}
        for id, peer in self.plan.peers.items():
            if peer is not None and self.plan.waits(id):
                waiting.setdefault(peer, []).append(id)
        for listener, clients in waiting.items():
            order = {ino: place for place, ino in enumerate(self.plan.extras[listener].waiting)}
            clients.sort(key=lambda id: (order.get(self.plan.entries[id].ino, len(order)), id))
            handle, name = self.handles.get(listener, -1), self.plan.entries[listener].name
            for id in clients:
                self._new(id, self.plan.entries[id])
                self.makers.listen(self.made[listener].fileno(), MANY, self.plan.who(id))
                self.makers.connect(self.made[id].fileno(), name, handle, self.plan.holder(id))

    # -- datagram sockets ---------------------------------------------------------------------------------------------
    def _make_dgram(self, id: int, usk: "UnixSkEntry") -> None:
        """Connected only where socketpair(2) has to do it: when one end has no name to connect to."""
        peer, own = self.plan.peers[id], self.plan.extras[id]
        if peer is not None and peer != id and peer not in self.made:
            name, mutual = self.plan.entries[peer].name, self.plan.is_mutual(id)
            if not name or (mutual and not usk.name):
                first, second = self._pair(DGRAM, self.plan.who(id))
                self._keep(id, first)
                self._keep(peer, second)
                self._bind(id, first)
                self._bind(peer, second)
                if not mutual:  # the other end has let go of this one since, which this one noticed
                    unix_names.disconnect(second.fileno())
                    first.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                return
        if own.peer_gone:
            if own.peer_name:
                self.ghosts[id] = new(DGRAM)
                self._new(id, usk)
            else:
                sock, self.ghosts[id] = self._pair(DGRAM, self.plan.who(id))
                self._keep(id, sock)
                self._bind(id, sock)
            return
        self._new(id, usk)


def new(kind: int) -> socket.socket:
    return socket.socket(AF_UNIX, kind | socket.SOCK_CLOEXEC)


def _bind_abstract(sock: socket.socket, name: bytes) -> None:
    try:
        unix_names.bind(sock.fileno(), name)
    except OSError as error:
        shown = unix_names.printable(name)
        raise KernelError(f"cannot bind a UNIX socket to {shown}", error, "end the process that has it") from None
