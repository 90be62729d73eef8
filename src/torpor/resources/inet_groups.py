# SPDX-License-Identifier: Apache-2.0
"""Multicast groups that a UDP socket has joined (ip(7), ipv6(7), RFC 3678).

Nothing lists a socket's groups.  But /proc/net/igmp and igmp6 list those of all sockets together, by interface, and
MCAST_MSFILTER tells whether one socket is in a given group, and which senders it hears there.  A socket of IPv6 may be
in groups of IPv4, too.  What every interface is in by itself is not asked for, unless somebody else has joined it.
"""

import errno
import socket
import struct
from ctypes import addressof, create_string_buffer

from torpor.errors import KernelError
from torpor.images.schema.torpor_file import GroupEntry
from torpor.kernel.procfs import read_all
from torpor.kernel.syscall import call
from torpor.resources.description import extra
from torpor.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torpor.images.schema.torpor_file import TorporFileEntry
    from torpor.resources.context import Dump, SeenFile

MCAST_JOIN_GROUP, MCAST_MSFILTER = 42, 48
_LEVELS = {4: (socket.IPPROTO_IP, socket.AF_INET), 16: (socket.IPPROTO_IPV6, socket.AF_INET6)}  # by address length
_ALIGNMENT = struct.calcsize("P")
_STORAGE = 128  # struct sockaddr_storage
_FILTER = struct.Struct(f"@I{_ALIGNMENT - 4}x{_STORAGE}sII")  # struct group_filter without senders
_EXCLUDE = 0  # MCAST_EXCLUDE: everybody is heard but those that are listed


class Group(NamedTuple):
    interface: int
    address: bytes


def _all() -> list[Group]:
    """What sockets here may be in."""
    found = []
    interface = 0
    for line in _lines("/proc/net/igmp"):
        if line[:1].isdigit():
            interface = int(line.split(None, 1)[0])
        elif len(words := line.split()) >= 2 and line[:1].isspace():
            address = struct.pack("=I", int(words[0], 16))
            if address != b"\xe0\0\0\1" or int(words[1]) > 1:
                found.append(Group(interface, address))
    for line in _lines("/proc/net/igmp6"):
        number, _, group, users, *_ = line.split()
        address = bytes.fromhex(group)
        if int(users) > 1 or not _is_automatic(address):
            found.append(Group(int(number), address))
    return found


def _lines(path: str) -> list[str]:
    try:
        return read_all(path).decode("ascii", "replace").splitlines()
    except OSError:  # no such protocol here
        return []


def _is_automatic(address: bytes) -> bool:
    """All nodes, all routers, solicited nodes (RFC 4291)."""
    return (address[2:15] == bytes(13) and address[15] in (1, 2)) or address[2:13] == bytes(9) + b"\1\xff"


def save(sock: socket.socket, seen: "SeenFile", dump: "Dump") -> None:
    """Enter the groups of a socket.  Raises Refusal where it hears chosen senders only."""
    if "inet groups" not in dump.state:
        dump.state["inet groups"] = _all()
    groups: list[Group] = dump.state["inet groups"]
    for group in groups:
        if len(group.address) == 16 and sock.family == socket.AF_INET:
            continue
        mode = _mode(sock.fileno(), group)
        if mode is None:
            continue
        name = socket.if_indextoname(group.interface)
        if mode != (_EXCLUDE, 0):
            text = socket.inet_ntop(_LEVELS[len(group.address)][1], group.address)
            raise seen.refusal(
                f"it hears chosen senders only of multicast group {text} on {name}, which Torpor does not restore yet",
                "let it leave the group, or join it for all senders",
            )
        extra(dump, seen.id).groups.append(GroupEntry(interface=name, group=group.address))


def _mode(fd: int, group: Group) -> tuple[int, int] | None:
    """(gf_fmode, gf_numsrc); None: the socket is not in this group."""
    level, _ = _LEVELS[len(group.address)]
    data = create_string_buffer(_FILTER.pack(group.interface, _address(group.address), 0, 0), _FILTER.size)
    length = create_string_buffer(struct.pack("=I", _FILTER.size), 4)
    try:
        call("getsockopt", fd, level, MCAST_MSFILTER, addressof(data), addressof(length))
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV):
            return None
        raise
    _, _, mode, senders = _FILTER.unpack(data.raw)
    return mode, senders


def _address(address: bytes) -> bytes:
    """As a struct sockaddr."""
    if len(address) == 4:
        return struct.pack("=HH4s", socket.AF_INET, 0, address)
    return struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, address, 0)


def are_possible(own: "TorporFileEntry") -> bool:
    return all(len(entry.group) in _LEVELS for entry in own.groups)


def restore(sock: socket.socket, own: "TorporFileEntry") -> None:
    """Join them again.  Raises KernelError."""
    for entry in own.groups:
        level, family = _LEVELS[len(entry.group)]
        try:
            request = struct.pack(
                f"@I{_ALIGNMENT - 4}x{_STORAGE}s", socket.if_nametoindex(entry.interface), _address(entry.group)
            )
            sock.setsockopt(level, MCAST_JOIN_GROUP, request)
        except OSError as error:
            what = f"cannot join the multicast group {socket.inet_ntop(family, entry.group)} on {entry.interface}"
            raise KernelError(what, error, "restore where that interface exists") from None
