# SPDX-License-Identifier: Apache-2.0
"""Where an internet socket is, its address and the peer of one of UDP; and whether it can be there on this host.

Another host has other addresses and routes, and nothing but binding and connecting tells whether it takes these:
IP_FREEBIND, IP_TRANSPARENT, net.ipv4.ip_nonlocal_bind, multicast groups and interfaces all have a say.  So before
anything is made, a fresh socket of the same kind is bound there without a port (IP_BIND_ADDRESS_NO_PORT), which takes
nothing from anybody; and connected, which for UDP sends nothing.
"""

import errno
import os
import socket
import struct

from torpor.errors import KernelError, Refusal, clean
from torpor.kernel.sockdiag import LISTEN, TIME_WAIT, SockDiag
from torpor.resources import inet_options, lacking, socket_options
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.images.schema.sk_inet import InetSkEntry
    from torpor.images.schema.torpor_file import TorporFileEntry
    from torpor.resources.context import Restore

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
ESTABLISHED, CLOSE = 1, 7  # include/net/tcp_states.h
IPV6_V6ONLY, IP_BIND_ADDRESS_NO_PORT = 26, 24
_FREEBIND = {int(socket.AF_INET): (socket.IPPROTO_IP, 15), int(socket.AF_INET6): (socket.IPPROTO_IPV6, 78)}


def is_bound(isk: "InetSkEntry") -> bool:
    """Whether it comes back with a port: a connection of TCP that was given up does not."""
    return bool(isk.src_port) and (isk.proto != TCP or isk.state in (LISTEN, CLOSE))


def prepare(sock: socket.socket, isk: "InetSkEntry", own: "TorporFileEntry | None") -> None:
    """What has to be set before bind(2).  Raises OSError, OptionRefused."""
    sock.setsockopt(socket.SOL_SOCKET, socket_options.SO_REUSEADDR, 1)
    if isk.opts.so_reuseport:
        sock.setsockopt(socket.SOL_SOCKET, socket_options.SO_REUSEPORT, 1)
    if isk.v6only is not None and isk.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_V6ONLY, int(isk.v6only))
    if own is not None:
        inet_options.restore_early(sock, own)
    if is_bound(isk) and isk.opts.so_bound_dev:  # else it may be another's address
        socket_options.bind_to_device(sock, isk.opts.so_bound_dev)
    if isk.ip_opts and isk.ip_opts.freebind:
        sock.setsockopt(*_FREEBIND[isk.family], 1)


def bind(sock: socket.socket, isk: "InetSkEntry") -> None:
    """Raises KernelError."""
    address = _joined(isk, isk.src_addr, isk.src_port)
    try:
        try:
            sock.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or isk.proto != TCP or not _forget_ended(isk.src_port):
                raise
            sock.bind(address)
    except OSError as error:
        raise KernelError(
            f"cannot bind a socket to {address[0]} port {address[1]}",
            error,
            "end what uses that port" if error.errno == errno.EADDRINUSE else "restore where that address exists",
        ) from None


def connect(sock: socket.socket, isk: "InetSkEntry") -> None:
    """Of UDP: give it its peer.  Which ones it may have, and by which route, depends on these two options."""
    if isk.opts.so_broadcast:
        sock.setsockopt(socket.SOL_SOCKET, socket_options.SO_BROADCAST, 1)
    if isk.opts.so_mark:
        mark = socket_options.as_int(isk.opts.so_mark)
        socket_options.put(sock, "SO_MARK", socket.SOL_SOCKET, socket_options.SO_MARK, mark)
    sock.connect(_joined(isk, isk.dst_addr, isk.dst_port))


def _joined(isk: "InetSkEntry", words: list[int], port: int) -> "tuple[str, int] | tuple[str, int, int, int]":
    text = _text(isk, words)
    if isk.family == socket.AF_INET:
        return text, port
    return text, port, 0, _number(isk.ifname) if isk.ifname else 0


def _text(isk: "InetSkEntry", words: list[int]) -> str:
    return socket.inet_ntop(isk.family, struct.pack(f"={len(words)}I", *words))


def _number(interface: str) -> int:
    """Raises OSError ENODEV."""
    try:
        return socket.if_nametoindex(interface)
    except (OSError, ValueError):  # it has no number
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV)) from None


def _is_here(interface: str) -> bool:
    try:
        return bool(_number(interface))
    except OSError:
        return False


def _forget_ended(port: int) -> int:
    """Ended connections of a port (TIME_WAIT) keep a socket without SO_REUSEADDR from it for a minute: forget them.

    Returns how many there were; 0 too where the kernel cannot (SOCK_DESTROY).
    """
    forgotten = 0
    with SockDiag() as diag:
        for family in (socket.AF_INET, socket.AF_INET6):
            for ended in diag.inet(family, TCP, 1 << TIME_WAIT):
                if ended.source_port == port:
                    try:
                        diag.destroy(TCP, ended)
                        forgotten += 1
                    except OSError:
                        pass
    return forgotten


# -- before anything is made ------------------------------------------------------------------------------------------


def check(restore: "Restore", id: int, kind: str, isk: "InetSkEntry", own: "TorporFileEntry | None") -> None:
    """Of file `id`, a `kind` whose options can be set here.  Raises Refusal where it cannot be where it was."""
    for group in own.groups if own is not None else ():
        if not _is_here(group.interface):
            raise Refusal(
                lacking.file_subject(restore, id, kind),
                f"it is in a multicast group on {clean(group.interface)}, and there is no such interface here",
                f"make the interface {clean(group.interface)}, or restore where it is",
                code="no-address",
            )
    bound = is_bound(isk) and any(isk.src_addr)  # no address at all is everywhere
    connected = isk.proto == UDP and isk.state == ESTABLISHED
    if not bound and not connected:
        return
    key = (
        isk.family, isk.type, tuple(isk.src_addr), isk.ifname, isk.v6only, isk.opts.so_bound_dev,
        bool(isk.ip_opts and isk.ip_opts.freebind), tuple(inet_options.early(own)) if own is not None else (),
        (tuple(isk.dst_addr), isk.dst_port, isk.opts.so_broadcast, isk.opts.so_mark) if connected else None,
    )  # fmt: skip
    known: dict[object, Refusal | None] = restore.state.setdefault("inet places tried", {})
    if key not in known:
        known[key] = None
        try:
            _try(isk, own, bound, connected)
        except Refusal as refusal:
            known[key] = refusal
    if (failed := known[key]) is not None:
        raise Refusal(lacking.file_subject(restore, id, kind), failed.why, failed.remedy, code=failed.code)


def _try(isk: "InetSkEntry", own: "TorporFileEntry | None", bound: bool, connected: bool) -> None:
    """Raises Refusal, of any such socket."""
    at = _text(isk, isk.src_addr)
    device = clean(isk.ifname or "")
    scope = f"%{device}" if device else ""
    with socket.socket(isk.family, isk.type | socket.SOCK_CLOEXEC, isk.proto) as fresh:
        try:
            prepare(fresh, isk, own)
            fresh.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            if bound:
                fresh.bind(_joined(isk, isk.src_addr, 0))
        except OSError as error:
            if error.errno == errno.ENODEV:
                remedy = f"make the interface {device}, with that address, or restore where it is"
                raise Refusal(
                    "", f"it is bound to {at}{scope}, and there is no such interface here", remedy, code="no-address"
                ) from None
            if error.errno == errno.EADDRNOTAVAIL:
                remedy = f"give this host the address (ip addr add {at} dev …), or restore where it is"
                raise Refusal(
                    "",
                    f"it is bound to {at}{scope}, an address that this host does not have",
                    remedy,
                    code="no-address",
                ) from None
            return  # the restore will see
        if not connected:
            return
        try:
            connect(fresh, isk)
        except OSError as error:
            peer, why = f"{_text(isk, isk.dst_addr)}{scope} port {isk.dst_port}", os.strerror(error.errno or 0)
            remedy = "give this host a route to there, or restore where there is one"
            raise Refusal(
                "", f"it is connected to {peer}, to where no way leads from here: {why}", remedy, code="no-route"
            ) from None
