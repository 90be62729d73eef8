# SPDX-License-Identifier: Apache-2.0
"""Open files and sockets in a few words.

Names in images may hold anything; `errors.clean` makes them fit for a terminal.  An Internet address is stored as
words in network order that were read as if they were little-endian, so that 127.0.0.1 is 16777343.
"""

from __future__ import annotations

import sys

from torpor.errors import clean
from torpor.images.asjson import message_to_json, open_flags
from torpor.images.summary import file_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torpor.images.schema.sk_inet import InetSkEntry
    from torpor.images.schema.sk_unix import UnixSkEntry
    from torpor.images.summary import Summary


def sort_of(found: Summary, id: int) -> str:
    """What an open file is, in one word."""
    first = describe(found, id).split(" ", 1)[0]
    return f"{first} socket" if first in _SOCKETS else first


_SOCKETS = ("unix", "netlink", "tcp", "udp", "udplite", "icmp", "sctp", "raw")

# The flags that tell something about an open file: O_ACCMODE, O_APPEND, O_NONBLOCK, O_DSYNC, O_DIRECT, O_PATH.
_WORTH = 3 | 0o2000 | 0o4000 | 0o10000 | 0o40000 | 0o10000000

TCP = (
    "", "established", "syn sent", "syn received", "fin wait 1", "fin wait 2", "time wait", "close", "close wait",
    "last ack", "listening", "closing",
)  # fmt: skip


def describe(found: Summary, id: int) -> str:
    """An open file in a few words; the first says what it is."""
    file = found.files.get(id)
    if file is None:
        return f"missing from files.img ({id})"
    if file.reg:
        mode = (file.reg.mode or 0) >> 12
        sort = {4: "directory", 2: "device", 6: "device", 1: "fifo"}.get(mode, "file")
        flags = open_flags(file.reg.flags & _WORTH).replace("O_", "").lower()
        where = f" at {file.reg.pos:,}" if file.reg.pos else ""
        length = f" of {file.reg.size:,}" if file.reg.size is not None else ""
        gone = {0: " deleted, link kept", 1: " deleted", 2: " of a dead process"}.get(found.remaps.get(id, -1), "")
        return f"{sort} {clean(file.reg.name)} ({flags}{where}{length}){gone}"
    if file.pipe:
        return f"pipe {file.pipe.pipe_id} ({'write' if file.pipe.flags & 3 == 1 else 'read'} end)"
    if file.fifo:
        return f"fifo {clean(file_name(found, file.fifo.regf_id or 0))}".rstrip()
    if file.isk:
        return _inet(file.isk)
    if file.usk:
        return _unix(file.usk)
    if file.memfd:
        return f"memfd {clean(file_name(found, id).removeprefix('memfd:'))}"
    if file.epfd:
        return f"epoll watching {', '.join(str(watch.tfd) for watch in file.epfd.tfd[:12]) or 'nothing'}"
    if file.efd:
        return f"eventfd counter {file.efd.counter}"
    if file.tfd:
        return f"timerfd clock {file.tfd.clockid}"
    if file.sgfd:
        return f"signalfd mask {file.sgfd.sigmask:#x}"
    if file.tty:
        return f"tty {clean(file_name(found, file.tty.regf_id or 0))}".rstrip()
    if file.nlsk:
        return f"netlink socket, protocol {file.nlsk.protocol}"
    return next((f"{name}" for name in message_to_json(file) if name not in ("type", "id")), "unknown")


def _inet(sk: InetSkEntry) -> str:
    if sk.type in (1, 5) and sk.proto in (0, 6):
        sort = "tcp"
    else:
        sort = {17: "udp", 136: "udplite", 1: "icmp", 132: "sctp"}.get(sk.proto, "udp" if not sk.proto else "raw")
    state = TCP[sk.state] if sk.state < len(TCP) else str(sk.state)
    ends = _address(sk.family, sk.src_addr, sk.src_port)
    if sk.dst_port:
        ends += f" → {_address(sk.family, sk.dst_addr, sk.dst_port)}"
    return f"{sort} {ends}{f' ({state})' if sort == 'tcp' else ''}"


def _address(family: int, words: list[int], port: int) -> str:
    raw = b"".join((word & 0xFFFFFFFF).to_bytes(4, sys.byteorder) for word in words)
    if family == 2 and len(raw) >= 4:
        return ".".join(str(byte) for byte in raw[:4]) + f":{port}"
    if len(raw) >= 16:
        import ipaddress

        return f"[{ipaddress.IPv6Address(raw[:16])}]:{port}"
    return f"?:{port}"


def _unix(sk: UnixSkEntry) -> str:
    sort = {1: "stream", 2: "datagram", 5: "seqpacket"}.get(sk.type, str(sk.type))
    name = sk.name.decode("utf-8", "surrogateescape")
    name = "@" + name[1:] if name.startswith("\0") else name.rstrip("\0")
    name = f" {clean(name)}" if name else ""
    state = " (listening)" if sk.state == 10 else f" → inode {sk.peer}" if sk.peer else ""
    return f"unix socket, {sort}{name}, inode {sk.ino}{state}"
