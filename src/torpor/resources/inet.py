# SPDX-License-Identifier: Apache-2.0
"""TCP and UDP sockets: listening, bound, unconnected, and connected UDP.

Established TCP connections are refused, or given up by --tcp-close: the socket comes back closed and unconnected.
A listening socket's port may still be held by what is left of old connections, so binding is done with SO_REUSEADDR,
and every option gets its value after all sockets are bound.  A socket belongs to whoever made it (its inode's owner,
which netfilter and ss look at): fchown gives it back.
"""

import errno
import os
import select
import socket
import struct

from torpor.errors import ImageError, KernelError, Refusal
from torpor.images.schema.fdinfo import FileEntry
from torpor.images.schema.sk_inet import InetSkEntry, IpOptsEntry
from torpor.images.schema.tcp_stream import TcpOptsEntry
from torpor.kernel.polling import poll_events
from torpor.kernel.sockdiag import SockDiag
from torpor.resources import inet_groups, inet_options, inet_places, inet_ports, lacking, socket_options, socket_trial
from torpor.resources.description import Described, extra, extras, save_owner, set_flags
from torpor.resources.socket_options import has_peer
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.resources.context import Dump, Restore, SeenFile

INETSK = 4  # FdTypes
ESTABLISHED, CLOSE, LISTEN = 1, 7, 10  # include/net/tcp_states.h
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
SO_PROTOCOL, SO_MEMINFO, SO_NETNS_COOKIE = 38, 55, 71
NET_NS = 2  # number of the network namespace in the images
IP_TOS, IP_TTL, IP_OPTIONS, IP_PKTINFO, IP_FREEBIND = 1, 2, 4, 8, 15
IPV6_PKTINFO, IPV6_V6ONLY, IPV6_FREEBIND = 49, 26, 78
TCP_NODELAY, TCP_CORK, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT = 1, 3, 4, 5, 6
MAX_BACKLOG = 1 << 16
KIND = "internet socket"  # what it is called


class Inet(Described):
    covers = frozenset({"fd:inet"})
    type = INETSK
    field = "isk"

    def examine(self, seen: "SeenFile", dump: "Dump") -> None:
        with socket_options.opened(seen.fd) as sock:
            protocol = sock.getsockopt(socket.SOL_SOCKET, SO_PROTOCOL)
            if (sock.type, protocol) not in ((socket.SOCK_STREAM, TCP), (socket.SOCK_DGRAM, UDP)):
                raise seen.refusal(
                    f"sockets of type {sock.type}, protocol {protocol} cannot be dumped", "close it first"
                )
            if "inet:own namespace" not in dump.state:
                dump.state["inet:own namespace"] = _own_namespace()
            if _namespace(sock) != dump.state["inet:own namespace"]:
                why = "it was made in another network namespace than the program is in, which Torpor does not restore"
                raise seen.refusal(why, "close it first")
            socket_options.refuse_filter(seen)
            if sock.family == socket.AF_INET and sock.getsockopt(socket.IPPROTO_IP, IP_OPTIONS, 40):
                raise seen.refusal("what it sends has IP options, which Torpor does not restore", "close it first")
            if protocol == UDP:
                _datagrams(sock, seen, dump)
                return
            state = _state(sock)
            if (
                state == CLOSE
                and not dump.options.tcp_close
                and poll_events(sock.fileno(), select.POLLRDHUP) & select.POLLERR
            ):
                why = "its connection has failed, and it has not heard of that yet"
                raise seen.refusal(why, "try again in a moment, or use --tcp-close (the error is lost)")
            if state == LISTEN:
                _listening(seen, dump)
            elif state != CLOSE and not dump.options.tcp_close:
                raise seen.refusal(
                    f"it is connected to {_peer(sock)}",
                    "close the connection, or use --tcp-close (it comes back closed)",
                )

    def examined(self, dump: "Dump") -> None:
        unread: list[SeenFile] = dump.state.get("inet:unread", [])
        if unread:
            others = f" and {len(unread) - 1:,} more" if len(unread) > 1 else ""
            lost = (
                "datagrams that it has not read yet will be missing after a restore, and errors, as on a busy network"
            )
            dump.warn(f"{unread[0].subject}{others}: {lost}")

    def settle(self, dump: "Dump") -> None:
        self.examined(dump)

    def save(self, seen: "SeenFile", dump: "Dump") -> FileEntry:
        with socket_options.opened(seen.fd) as sock:
            protocol = sock.getsockopt(socket.SOL_SOCKET, SO_PROTOCOL)
            state = _state(sock)
            listening = None
            if protocol == TCP and state == LISTEN:
                listening = _listening(seen, dump)
            elif protocol == TCP and state != CLOSE:
                state = CLOSE
            # A connection of TCP comes back closed: it has changed its address and options, and they mean nothing then.
            closed = protocol == TCP and state == CLOSE
            segments = inet_ports.segments(sock) if closed else (0, 0)
            kept = protocol == UDP or not (has_peer(sock) or any(segments))
            bound = kept and not (closed and inet_ports.is_given_back(sock, dump))
            source, source_port = _split(sock.family, sock.getsockname()) if bound else (_nowhere(sock.family), 0)
            peer, peer_port = _nowhere(sock.family), 0
            if protocol == UDP and state == ESTABLISHED:
                peer, peer_port = _split(sock.family, sock.getpeername())
            entry = InetSkEntry(
                id=seen.id,
                ino=seen.stat.st_ino & 0xFFFFFFFF,
                family=sock.family,
                type=sock.type,
                proto=protocol,
                state=state,
                src_port=source_port,
                dst_port=peer_port,
                flags=seen.info.status_flags,
                backlog=listening or 0,
                src_addr=source,
                dst_addr=peer,
                fown=save_owner(seen.fd),
                opts=socket_options.save(sock),
                ip_opts=_ip_options(sock),
                ns_id=NET_NS,
                tcp_opts=_tcp_options(sock) if protocol == TCP else TcpOptsEntry(),
            )
            if sock.family == socket.AF_INET6:
                entry.v6only = bool(sock.getsockopt(socket.IPPROTO_IPV6, IPV6_V6ONLY))
                scope = sock.getsockname()[3]
                if scope:
                    entry.ifname = socket.if_indextoname(scope)
            if kept:
                differing = inet_options.differing(sock)
                if any(differing):
                    inet_options.save(differing, extra(dump, seen.id))
            if protocol == UDP:
                inet_groups.save(sock, seen, dump)
            # One that has ended gives its reader the end of file; what never was one, but refused, can be tried again.
            if (kept or (segments[1] > 1 and not has_peer(sock))) and (shut := _shut_down(sock, seen, dump)):
                entry.shutdown = shut
        if seen.stat.st_uid or seen.stat.st_gid:
            own = extra(dump, seen.id)
            own.uid, own.gid = seen.stat.st_uid, seen.stat.st_gid
        return FileEntry(type=INETSK, id=seen.id, isk=entry)

    def check(self, entry: FileEntry, restore: "Restore") -> None:
        isk = entry.isk
        where = f"files.img, socket {entry.id}"
        if isk is None:
            raise ImageError(where, "it has no entry")
        words = {int(socket.AF_INET): 1, int(socket.AF_INET6): 4}.get(isk.family)
        if words is None or len(isk.src_addr) != words or len(isk.dst_addr) != words:
            raise ImageError(where, "impossible address")
        if (isk.type, isk.proto) not in ((socket.SOCK_STREAM, TCP), (socket.SOCK_DGRAM, UDP)):
            raise Refusal(where, f"sockets of type {isk.type}, protocol {isk.proto} cannot be restored")
        if isk.src_port > 0xFFFF or isk.dst_port > 0xFFFF or isk.backlog > 0x7FFFFFFF:
            raise ImageError(where, "impossible port or backlog")
        socket_options.check(where, isk.opts)
        own = extras(restore).get(entry.id)
        if own is not None and not inet_groups.are_possible(own):
            raise ImageError(where, "impossible multicast group")
        socket_trial.check(restore, entry.id, KIND, (isk.family, isk.type), isk.opts, own, inet_options.try_all)
        if isk.proto == TCP and isk.state not in (LISTEN, CLOSE) and not restore.options.tcp_close:
            raise Refusal(
                where, f"it was connected (state {isk.state})", "restore with --tcp-close: it comes back closed"
            )
        inet_places.check(restore, entry.id, KIND, isk, own)

    def make(self, entry: FileEntry, restore: "Restore") -> int:
        isk = entry.isk
        assert isk is not None
        sock = socket.socket(isk.family, isk.type | socket.SOCK_CLOEXEC, isk.proto)
        try:
            inet_places.prepare(sock, isk, extras(restore).get(entry.id))
            if inet_places.is_bound(isk):
                inet_places.bind(sock, isk)
            if isk.proto == TCP and isk.state == LISTEN:
                sock.listen(min(isk.backlog, MAX_BACKLOG))
            return sock.detach()
        finally:
            sock.close()

    def wire(self, entry: FileEntry, fd: int, restore: "Restore") -> None:
        try:
            self._wire(entry, fd, restore)
        except KernelError as error:
            error.what = f"{lacking.file_subject(restore, entry.id, KIND)}: {error.what}"
            raise

    def _wire(self, entry: FileEntry, fd: int, restore: "Restore") -> None:
        isk = entry.isk
        assert isk is not None
        with socket_options.opened(fd) as sock:
            if isk.proto == UDP and isk.state == ESTABLISHED:
                inet_places.connect(sock, isk)
            socket_options.restore(sock, isk.opts)
            if isk.ip_opts:
                _set_ip_options(sock, isk.ip_opts)
            if isk.proto == TCP:
                _set_tcp_options(sock, isk)
            own = extras(restore).get(entry.id)
            if own is not None:
                inet_options.restore(sock, own)
                inet_groups.restore(sock, own)
            if isk.shutdown in (1, 2, 3) and (isk.proto == UDP or isk.state == CLOSE):
                try:
                    sock.shutdown(isk.shutdown - 1)
                except OSError as error:  # of one that is not connected it is said so, and done
                    if error.errno != errno.ENOTCONN:
                        raise
        owner = ((own.uid or 0), (own.gid or 0)) if own else (0, 0)
        facts = os.fstat(fd)
        if owner != (facts.st_uid, facts.st_gid):
            os.fchown(fd, *owner)
        set_flags(fd, isk.flags)


def _namespace(sock: socket.socket) -> bytes:
    """What tells network namespaces apart (5.14)."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    except OSError:
        return b""


def _own_namespace() -> bytes:
    with socket.socket() as own:
        return _namespace(own)


def _datagrams(sock: socket.socket, seen: "SeenFile", dump: "Dump") -> None:
    """Note a UDP socket with datagrams in its queue.  Raises Refusal where it holds back what it has been given."""
    received, _, unsent = struct.unpack_from("=3I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 12))
    if unsent:
        raise seen.refusal("it holds data that it has not sent yet (MSG_MORE, UDP_CORK)", "try again in a moment")
    if received or poll_events(sock.fileno(), select.POLLRDHUP) & select.POLLERR:
        dump.setdefault("inet:unread", []).append(seen)


def _shut_down(sock: socket.socket, seen: "SeenFile", dump: "Dump") -> int:
    """What shutdown(2) has ended: 1 receiving, 2 sending.  Of a TCP socket that is not connected poll(2) tells only the
    first; then both are taken to have ended, as mostly they have: it can send nothing anyhow."""
    if sock.type == socket.SOCK_STREAM:
        return 3 if poll_events(sock.fileno(), select.POLLRDHUP) & select.POLLRDHUP else 0
    if "inet:udp" not in dump.state:
        with SockDiag() as diag:
            listed = [s for family in (socket.AF_INET, socket.AF_INET6) for s in diag.inet(family, UDP)]
        dump.state["inet:udp"] = {s.ino: s.shutdown for s in listed}
    found: int = dump.state["inet:udp"].get(seen.stat.st_ino, 0)
    return found


def _state(sock: socket.socket) -> int:
    if sock.type == socket.SOCK_STREAM:
        return sock.getsockopt(TCP, inet_ports.TCP_INFO, 1)[0]
    return ESTABLISHED if has_peer(sock) else CLOSE


def _peer(sock: socket.socket) -> str:
    try:
        address = sock.getpeername()
    except OSError:
        return "a peer that is gone"
    return f"{address[0]}:{address[1]}"


def _listening(seen: "SeenFile", dump: "Dump") -> int:
    """The backlog of a listening socket.  Raises Refusal where connections wait in it."""
    if "inet:listening" not in dump.state:
        with SockDiag() as diag:
            found = [s for family in (socket.AF_INET, socket.AF_INET6) for s in diag.inet(family, TCP, 1 << LISTEN)]
        dump.state["inet:listening"] = {s.ino: s for s in found}
    facts = dump.state["inet:listening"].get(seen.stat.st_ino)
    if facts is None:
        return 0
    if facts.rqueue and not dump.options.skip_in_flight and not dump.options.tcp_close:
        waiting = f"{facts.rqueue} connections wait" if facts.rqueue > 1 else "a connection waits"
        raise seen.refusal(f"{waiting} to be accepted", "try again, or use --skip-in-flight (what waits is lost)")
    if facts.signed:
        raise seen.refusal("it wants signed connections (TCP_MD5SIG), whose keys Torpor does not restore",
                           "take the keys away first, or close it")  # fmt: skip
    backlog: int = facts.wqueue
    return backlog


def _split(family: int, address: tuple[str, int]) -> tuple[list[int], int]:
    """Address as words, and port."""
    raw = socket.inet_pton(family, address[0].partition("%")[0])
    return list(struct.unpack(f"={len(raw) // 4}I", raw)), address[1]


def _nowhere(family: int) -> list[int]:
    return [0] if family == socket.AF_INET else [0, 0, 0, 0]


def _ip_options(sock: socket.socket) -> IpOptsEntry:
    entry = IpOptsEntry()
    if sock.family == socket.AF_INET:
        level, pktinfo, freebind = socket.IPPROTO_IP, IP_PKTINFO, IP_FREEBIND
        entry.ttl = sock.getsockopt(level, IP_TTL)
        entry.tos = sock.getsockopt(level, IP_TOS) or None
    else:
        level, pktinfo, freebind = socket.IPPROTO_IPV6, IPV6_PKTINFO, IPV6_FREEBIND
    entry.freebind = bool(sock.getsockopt(level, freebind)) or None
    entry.pktinfo = bool(sock.getsockopt(level, pktinfo)) or None
    return entry


def _set_ip_options(sock: socket.socket, entry: IpOptsEntry) -> None:
    if sock.family == socket.AF_INET:
        level, pktinfo, freebind = socket.IPPROTO_IP, IP_PKTINFO, IP_FREEBIND
        if entry.ttl and sock.getsockopt(level, IP_TTL) != entry.ttl:
            sock.setsockopt(level, IP_TTL, socket_options.as_int(entry.ttl))
        if entry.tos:
            sock.setsockopt(level, IP_TOS, socket_options.as_int(entry.tos))
    else:
        level, pktinfo, freebind = socket.IPPROTO_IPV6, IPV6_PKTINFO, IPV6_FREEBIND
    if entry.freebind:
        sock.setsockopt(level, freebind, 1)
    if entry.pktinfo:
        sock.setsockopt(level, pktinfo, 1)


def _tcp_options(sock: socket.socket) -> TcpOptsEntry:
    return TcpOptsEntry(
        cork=bool(sock.getsockopt(TCP, TCP_CORK)) or None,
        nodelay=bool(sock.getsockopt(TCP, TCP_NODELAY)) or None,
        keepcnt=sock.getsockopt(TCP, TCP_KEEPCNT),
        keepidle=sock.getsockopt(TCP, TCP_KEEPIDLE),
        keepintvl=sock.getsockopt(TCP, TCP_KEEPINTVL),
    )


def _set_tcp_options(sock: socket.socket, isk: InetSkEntry) -> None:
    entry = isk.tcp_opts
    # Older images have the keepalive times among the general options.
    for option, value in (
        (TCP_KEEPCNT, (entry and entry.keepcnt) or isk.opts.tcp_keepcnt),
        (TCP_KEEPIDLE, (entry and entry.keepidle) or isk.opts.tcp_keepidle),
        (TCP_KEEPINTVL, (entry and entry.keepintvl) or isk.opts.tcp_keepintvl),
    ):
        if value and sock.getsockopt(TCP, option) != value:
            sock.setsockopt(TCP, option, socket_options.as_int(value))
    if entry and entry.nodelay:
        sock.setsockopt(TCP, TCP_NODELAY, 1)
    if entry and entry.cork:
        sock.setsockopt(TCP, TCP_CORK, 1)


FILE_KINDS = [Inet()]
