# SPDX-License-Identifier: Apache-2.0
"""UNIX sockets at restore, when all other files exist: queues, datagram connections, ends that are closed, options.

A datagram socket that is connected takes messages from its peer alone, and nobody else may connect to it.  So each is
filled, and connected to, before it connects: those that nobody is connected to come first.  A message comes from the
socket whose name it bears, or from one that has borrowed the name.

Send buffers are as large as can be while queues are filled; every socket gets its options afterwards, shutdown(2) too.
"""

import socket

from torpor.errors import KernelError
from torpor.resources import lacking, socket_options, unix, unix_queue
from torpor.resources.description import set_flags
from torpor.resources.socket_options import has_peer
from torpor.resources.unix_names import is_path
from torpor.resources.unix_plan import DGRAM
from torpor.resources.unix_queue import Message
from torpor.resources.unix_restore import new
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.images.schema.sk_unix import UnixSkEntry
    from torpor.resources.unix_restore import Sockets

SOL = socket.SOL_SOCKET
HUGE = (1 << 30) - 1


def finish(sockets: "Sockets") -> None:
    """Once, for all sockets."""
    if sockets.finished:
        return
    sockets.finished = True
    plan = sockets.plan
    try:
        for id in plan.entries:
            if plan.entries[id].type != DGRAM and id in plan.queues:
                _fill_connected(sockets, id)
        senders = _Senders(sockets)
        for id in _in_order(sockets):
            _dgram(sockets, senders, id)
        for id, ghost in sockets.ghosts.items():
            if plan.extras[id].reset:
                sockets.made[id].send(b"\0")  # what the peer has not read when it closes
            ghost.close()
        for id, usk in plan.entries.items():
            if usk.shutdown and id not in sockets.ghosts:
                sockets.made[id].shutdown(usk.shutdown - 1)
        for id, usk in plan.entries.items():
            _options(sockets, id, usk)
    finally:
        sockets.close()
        for sock in sockets.made.values():
            sock.detach()  # the restore closes it


def _message(sockets: "Sockets", id: int, index: int) -> Message:
    data, rights = sockets.plan.queues[id][index]
    made = tuple(sockets.restore.made[right] for right in rights)
    for sender in sockets.plan.extras[id].senders:
        if sender.index == index:
            credentials = None if sender.pid is None else (sender.pid, sender.uid or 0, sender.gid or 0)
            return Message(data, sender.name, credentials, made)
    return Message(data, None, None, made)


def _enlarge(sock: socket.socket) -> None:
    try:
        sock.setsockopt(SOL, socket_options.SO_SNDBUFFORCE, HUGE)
    except PermissionError:
        sock.setsockopt(SOL, socket_options.SO_SNDBUF, HUGE)


def _fill_connected(sockets: "Sockets", id: int) -> None:
    peer = sockets.plan.peers[id]
    sender = sockets.ghosts[id] if id in sockets.ghosts else sockets.made[peer] if peer is not None else None
    if sender is None or sockets.plan.waits(id):
        return
    _enlarge(sender)
    for index in range(len(sockets.plan.queues[id])):
        unix_queue.send(sender, _message(sockets, id, index))


class _Senders:
    """Datagram sockets to send from, by the name that the receiver is to see."""

    def __init__(self, sockets: "Sockets") -> None:
        self.sockets = sockets
        self._by_name: dict[bytes | None, socket.socket] = {}
        for id, usk in sockets.plan.entries.items():
            if usk.type == DGRAM and usk.name:
                self._by_name[usk.name] = sockets.made[id]
        self._unnamed: dict[int, list[int]] = {}  # sockets without a name, by their peer
        for id, peer in sockets.plan.peers.items():
            if peer is not None and sockets.plan.entries[id].type == DGRAM and not sockets.plan.entries[id].name:
                self._unnamed.setdefault(peer, []).append(id)

    def get(self, name: bytes | None, target: int) -> socket.socket:
        if name is None and (peers := self._unnamed.get(target)):
            sock = self.sockets.made[peers[0]]
        else:
            if name not in self._by_name:
                self._by_name[name] = sock = new(DGRAM)
                self.sockets.temporary.append(sock)
                if name is not None:
                    self.sockets.bind_seen(sock, name)
            sock = self._by_name[name]
        _enlarge(sock)
        return sock


def _in_order(sockets: "Sockets") -> list[int]:
    """Datagram sockets, each behind all that are connected to it; pairs count as not."""
    plan = sockets.plan
    edges = {}
    for id, peer in plan.peers.items():
        if plan.entries[id].type == DGRAM and peer is not None and peer != id and not plan.is_mutual(id):
            edges[id] = peer
    waiting: dict[int, int] = {}
    for peer in edges.values():
        waiting[peer] = waiting.get(peer, 0) + 1
    order = [id for id, usk in plan.entries.items() if usk.type == DGRAM and id not in waiting]
    for id in order:  # grows
        if id in edges:
            waiting[edges[id]] -= 1
            if not waiting[edges[id]]:
                order.append(edges[id])
    return order


def _dgram(sockets: "Sockets", senders: _Senders, id: int) -> None:
    """Fill a datagram socket, then connect it."""
    plan, sock = sockets.plan, sockets.made[id]
    peer, own = plan.peers[id], plan.extras[id]
    ghost = sockets.ghosts.get(id)
    paired = ghost is not None and not own.peer_name
    for index in range(len(plan.queues.get(id, ()))):
        message = _message(sockets, id, index)
        if paired or has_peer(sock):
            sender = ghost if paired else sockets.made[peer] if peer is not None else None
            assert sender is not None
            _enlarge(sender)
            unix_queue.send(sender, message)
            continue
        sender = senders.get(message.sender, id)
        to = None if has_peer(sender) and not plan.entries[id].name else _address(sockets, id)
        unix_queue.send(sender, message, to)
    if peer is not None and not has_peer(sock):
        handle = sockets.handles.get(peer, -1)
        sockets.makers.connect(sock.fileno(), plan.entries[peer].name, handle, None)
    elif ghost is not None and own.peer_name:
        handle = sockets.bind_seen(ghost, own.peer_name)
        sockets.makers.connect(sock.fileno(), own.peer_name, handle, None)


def _address(sockets: "Sockets", id: int) -> bytes:
    name = sockets.plan.entries[id].name
    return b"/proc/self/fd/%d" % sockets.handles[id] if is_path(name) else name


def _options(sockets: "Sockets", id: int, usk: "UnixSkEntry") -> None:
    sock, own = sockets.made[id], sockets.plan.extras[id]
    try:
        socket_options.restore(sock, usk.opts)
        unix.put_more(sock, own)
    except KernelError as error:
        error.what = f"{lacking.file_subject(sockets.restore, id, 'UNIX socket')}: {error.what}"
        raise
    if own.peek_offset is not None:
        sock.setsockopt(SOL, unix_queue.SO_PEEK_OFF, own.peek_offset)
    set_flags(sock.fileno(), usk.flags)
