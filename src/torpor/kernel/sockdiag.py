# SPDX-License-Identifier: Apache-2.0
"""Sockets as the kernel lists them: sock_diag(7), over netlink, without any third-party package.

A socket's peer, the sockets that wait in a listener's backlog and the inode behind a path name are shown nowhere else:
getpeername(2) of a UNIX socket gives a name, not an identity, and /proc/net/unix has neither peer nor queue.

Surprising facts:

- The listing is of the network namespace that the *netlink socket* was made in, not of the caller's current one.
- Inodes are 32 bits wide here.  A connection that was not accepted yet has no inode: it is 0, and `UnixSocket.backlog`
  of its listener names the *client's* inode, in the order in which accept(2) will return them (0: the client is gone).
- A UNIX name is shown as sun_path: with its trailing NUL when it is a path, with its leading NUL when it is abstract.
  `vfs` (inode, kernel dev_t) stays the same when the socket file was renamed, unlinked or replaced; for a file system
  with a device of its own per subvolume it differs from stat(2).
- rqueue and wqueue mean bytes for a connected socket (a datagram socket: the first datagram's size), but connections
  waiting and the limit of listen(2) for a listening one.
- TCP sockets that are neither bound nor connected are in no table and are not listed.  Bound, not listening ones are
  listed from 6.8 on (state BOUND_INACTIVE) and only when asked for by that state.
- TIME_WAIT and half-open connections have inode 0: no file is behind them any more, or not yet.
- A listing is made in steps while the system runs on.  The kernel says so with NLM_F_DUMP_INTR when it noticed; it may
  list a socket twice or miss one that is being made.  Sockets of frozen tasks do not move.
"""

import _socket  # `socket` costs 10 ms to import, and nothing of what it adds is needed
import errno
import os
import struct

from torpor.typed import Iterator, NamedTuple, Self

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY, SOCK_DESTROY = 20, 21
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR = 0x1, 0x4, 0x300, 0x10

# include/net/tcp_states.h; UNIX sockets use ESTABLISHED, CLOSE and LISTEN
ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSE = range(1, 8)
CLOSE_WAIT, LAST_ACK, LISTEN, CLOSING, NEW_SYN_RECV, BOUND_INACTIVE = range(8, 14)
ALL_STATES = 0xFFFFFFFF

# linux/unix_diag.h
UDIAG_SHOW_ALL = 0x7F  # NAME VFS PEER ICONS RQLEN MEMINFO UID
UNIX_DIAG_NAME, UNIX_DIAG_VFS, UNIX_DIAG_PEER, UNIX_DIAG_ICONS = range(4)
UNIX_DIAG_RQLEN, UNIX_DIAG_MEMINFO, UNIX_DIAG_SHUTDOWN, UNIX_DIAG_UID = range(4, 8)

# linux/inet_diag.h
INET_DIAG_MEMINFO, INET_DIAG_INFO, INET_DIAG_SKMEMINFO, INET_DIAG_SHUTDOWN, INET_DIAG_SKV6ONLY = 1, 2, 7, 8, 11
INET_DIAG_MD5SIG = 18
_INET_EXTENSIONS = 1 << (INET_DIAG_SKMEMINFO - 1) | 1 << (INET_DIAG_INFO - 1)

_NLMSGHDR = struct.Struct("=IHHII")
_NLATTR = struct.Struct("=HH")
_UNIX_REQUEST = struct.Struct("=BBHIII2I")
_UNIX_MESSAGE = struct.Struct("=BBBBI2I")
_INET_REQUEST = struct.Struct("=BBBBI")
_SOCKID = struct.Struct(">HH16s16s")
_SOCKID_TAIL = struct.Struct("=I2I")
_INET_MESSAGE = struct.Struct("=BBBB48sIIIII")


class UnixSocket(NamedTuple):
    """One UNIX socket (struct unix_diag_msg and its attributes).

    type: SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET.  name: sun_path, None if unnamed.  vfs: inode, dev of a path name.
    peer: inode of the peer, 0 if it was closed or waits in a backlog, None if there is none.  backlog: see above.
    shutdown: 1 = RCV_SHUTDOWN, 2 = SEND_SHUTDOWN.
    """

    ino: int
    type: int
    state: int
    cookie: int
    name: bytes | None = None
    vfs: tuple[int, int] | None = None
    peer: int | None = None
    backlog: tuple[int, ...] = ()
    rqueue: int = 0
    wqueue: int = 0
    memory: tuple[int, ...] = ()
    shutdown: int = 0
    uid: int | None = None


class InetSocket(NamedTuple):
    """One TCP, UDP or other IP socket (struct inet_diag_msg).  Addresses are packed: 4 or 16 bytes.

    signed: TCP_MD5SIG keys are set, which only CAP_NET_ADMIN is told."""

    family: int
    state: int
    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    interface: int
    cookie: int
    rqueue: int
    wqueue: int
    uid: int
    ino: int
    shutdown: int = 0
    v6only: bool | None = None
    memory: tuple[int, ...] = ()
    signed: bool = False


class SockDiag:
    """A sock_diag netlink socket of the network namespace that the calling thread is in; a context manager."""

    def __init__(self) -> None:
        """Raises OSError: EPROTONOSUPPORT without CONFIG_INET_DIAG and CONFIG_UNIX_DIAG's common part."""
        self._socket = _socket.socket(AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the netlink socket."""
        self._socket.close()

    def unix(self) -> dict[int, UnixSocket]:
        """All UNIX sockets that have an inode, by inode.  OSError ENOENT: the kernel has no unix_diag."""
        request = _UNIX_REQUEST.pack(AF_UNIX, 0, 0, ALL_STATES, 0, UDIAG_SHOW_ALL, 0, 0)
        listed = (unix_socket(body) for body in self._dump(request))
        return {sock.ino: sock for sock in listed if sock.ino}

    def inet(self, family: int, protocol: int, states: int = ALL_STATES) -> list[InetSocket]:
        """All sockets of AF_INET or AF_INET6 and IPPROTO_TCP, UDP, UDPLITE, RAW or SCTP in one of `states`.

        `states` is a mask of ``1 << state``.  AF_INET6 lists v6 sockets only, v4-mapped ones among them.
        OSError ENOENT: the kernel has no diag module for that protocol.
        """
        request = _INET_REQUEST.pack(family, protocol, _INET_EXTENSIONS, 0, states) + bytes(48)
        return [inet_socket(body) for body in self._dump(request)]

    def destroy(self, protocol: int, sock: InetSocket) -> None:
        """Make the kernel forget a socket (SOCK_DESTROY, 4.5), in TIME_WAIT too.

        OSError EOPNOTSUPP: CONFIG_INET_DIAG_DESTROY is off; EPERM: needs CAP_NET_ADMIN; ENOENT: it has gone by itself.
        """
        request = _INET_REQUEST.pack(sock.family, protocol, 0, 0, ALL_STATES)
        request += _SOCKID.pack(
            sock.source_port, sock.destination_port, sock.source.ljust(16, b"\0"), sock.destination.ljust(16, b"\0")
        )
        request += _SOCKID_TAIL.pack(sock.interface, sock.cookie & 0xFFFFFFFF, sock.cookie >> 32)
        self._sequence += 1
        flags = NLM_F_REQUEST | NLM_F_ACK
        head = _NLMSGHDR.pack(_NLMSGHDR.size + len(request), SOCK_DESTROY, flags, self._sequence, 0)
        self._socket.send(head + request)
        self._collect([])

    def _dump(self, request: bytes) -> list[bytes]:
        """Send a dump request and collect the bodies of its answers; starts again if the tables moved, three times."""
        for _ in range(3):
            self._sequence += 1
            head = _NLMSGHDR.pack(
                _NLMSGHDR.size + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, self._sequence, 0
            )
            self._socket.send(head + request)
            bodies: list[bytes] = []
            moved = self._collect(bodies)
            if not moved:
                break
        return bodies

    def _collect(self, bodies: list[bytes]) -> bool:
        """Receive answers until the end of the dump; true if the kernel says that it was interrupted."""
        moved = False
        while True:
            data = self._socket.recv(1 << 18)
            for kind, flags, sequence, body in messages(data):
                if sequence != self._sequence:
                    continue  # what is left of a dump that was given up
                moved |= bool(flags & NLM_F_DUMP_INTR)
                if kind in (NLMSG_DONE, NLMSG_ERROR):  # both carry a negative errno, or 0
                    number = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
                    if number > 0:
                        raise OSError(number, f"sock_diag: {os.strerror(number)}")
                    return moved
                if kind == SOCK_DIAG_BY_FAMILY:
                    bodies.append(body)


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Split a datagram of netlink(7) messages into (type, flags, sequence, body); OSError EBADMSG if it is cut off."""
    offset, end = 0, len(data)
    while end - offset >= _NLMSGHDR.size:
        length, kind, flags, sequence, _ = _NLMSGHDR.unpack_from(data, offset)
        if not _NLMSGHDR.size <= length <= end - offset:
            raise OSError(errno.EBADMSG, "sock_diag: truncated netlink message")
        yield kind, flags, sequence, data[offset + _NLMSGHDR.size : offset + length]
        offset += length + 3 & ~3


def attributes(data: bytes, offset: int) -> dict[int, bytes]:
    """The netlink attributes that follow a message's fixed part, by type; a mangled rest is left out."""
    found = {}
    while len(data) - offset >= _NLATTR.size:
        length, kind = _NLATTR.unpack_from(data, offset)
        if not _NLATTR.size <= length <= len(data) - offset:
            break
        found[kind & 0x3FFF] = data[offset + _NLATTR.size : offset + length]
        offset += length + 3 & ~3
    return found


def unix_socket(body: bytes) -> UnixSocket:
    """Parse one unix_diag_msg with its attributes."""
    _, kind, state, _, ino, low, high = _UNIX_MESSAGE.unpack_from(body)
    found = attributes(body, _UNIX_MESSAGE.size)
    rqueue, wqueue = _words(found, UNIX_DIAG_RQLEN, 2) or (0, 0)
    vfs, peer, uid = (_words(found, *which) for which in ((UNIX_DIAG_VFS, 2), (UNIX_DIAG_PEER, 1), (UNIX_DIAG_UID, 1)))
    shutdown = found.get(UNIX_DIAG_SHUTDOWN)
    return UnixSocket(
        ino=ino,
        type=kind,
        state=state,
        cookie=high << 32 | low,
        name=found.get(UNIX_DIAG_NAME),
        vfs=(vfs[0], vfs[1]) if vfs else None,
        peer=peer[0] if peer else None,
        backlog=_words(found, UNIX_DIAG_ICONS),
        rqueue=rqueue,
        wqueue=wqueue,
        memory=_words(found, UNIX_DIAG_MEMINFO),
        shutdown=shutdown[0] if shutdown else 0,
        uid=uid[0] if uid else None,
    )


def inet_socket(body: bytes) -> InetSocket:
    """Parse one inet_diag_msg with its attributes."""
    family, state, _, _, sockid, _, rqueue, wqueue, uid, ino = _INET_MESSAGE.unpack_from(body)
    source_port, destination_port, source, destination = _SOCKID.unpack_from(sockid)
    interface, low, high = _SOCKID_TAIL.unpack_from(sockid, _SOCKID.size)
    size = 4 if family == AF_INET else 16
    found = attributes(body, _INET_MESSAGE.size)
    shutdown, v6only = found.get(INET_DIAG_SHUTDOWN), found.get(INET_DIAG_SKV6ONLY)
    return InetSocket(
        family=family,
        state=state,
        source=source[:size],
        source_port=source_port,
        destination=destination[:size],
        destination_port=destination_port,
        interface=interface,
        cookie=high << 32 | low,
        rqueue=rqueue,
        wqueue=wqueue,
        uid=uid,
        ino=ino,
        shutdown=shutdown[0] if shutdown else 0,
        v6only=bool(v6only[0]) if v6only else None,
        memory=_words(found, INET_DIAG_SKMEMINFO),
        signed=INET_DIAG_MD5SIG in found,
    )


def _words(found: dict[int, bytes], kind: int, count: int = 0) -> tuple[int, ...]:
    """An attribute of u32 words; empty if it is missing or shorter than `count` words."""
    data = found.get(kind, b"")
    words: tuple[int, ...] = struct.unpack_from(f"={len(data) // 4}I", data)
    return words if len(words) >= count else ()
