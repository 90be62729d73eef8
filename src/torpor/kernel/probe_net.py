# SPDX-License-Identifier: Apache-2.0
"""Probes about sockets and network namespaces.  See `torpor.kernel.probe`."""

import errno
import os
import socket
import struct

from torpor.kernel import process
from torpor.kernel.probe import Missing, in_child
from torpor.kernel.sockdiag import AF_INET, AF_INET6, SockDiag, messages

_TCP_REPAIR, _TCP_REPAIR_QUEUE, _TCP_QUEUE_SEQ = 19, 20, 21
_SO_BUF_LOCK, _IP_FREEBIND, _IPV6_FREEBIND = 72, 15, 78
_SIOCGSKNS, _SIOCUNIXFILE = 0x894C, 0x89E0
_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
_RTM_NEWLINK, _RTM_GETLINK, _RTM_GETNSID = 16, 18, 90
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_NET_NS_PID, _IFLA_LINK_NETNSID = 3, 18, 19, 37
_REQUEST, _ACK, _CREATE, _DUMP = 1, 4, 0x400, 0x300


def unix_diag() -> None:
    one, other = socket.socketpair()
    with one, other, SockDiag() as diag:
        inode = os.fstat(one.fileno()).st_ino
        found = diag.unix().get(inode)
        if found is None or found.peer != os.fstat(other.fileno()).st_ino:
            raise Missing("a pair of sockets is not shown")


def inet_diag() -> None:
    with SockDiag() as diag, socket.socket() as listener:
        listener.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)  # a loopback device need not have its address
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        inode = os.fstat(listener.fileno()).st_ino
        if not any(one.ino == inode for one in diag.inet(AF_INET, socket.IPPROTO_TCP)):
            raise Missing("a listening TCP socket is not shown")
        diag.inet(AF_INET, socket.IPPROTO_UDP)
        try:
            diag.inet(AF_INET6, socket.IPPROTO_TCP)
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:
                raise


def raw_diag() -> None:
    with SockDiag() as diag:
        diag.inet(AF_INET, socket.IPPROTO_RAW)


def tcp_repair() -> None:
    with socket.socket() as one:
        one.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
        one.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, 2)
        one.setsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ, 4711)
        if one.getsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ) != 4711:
            raise Missing("sequence numbers do not come back as they were set")
        one.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 0)


def tcp_half_closed() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()) as one:
            one.shutdown(socket.SHUT_WR)
            one.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
            one.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, -1)  # off, without a probe of the window


def buf_lock() -> None:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, 3)
        if one.getsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK) != 3:
            raise Missing("the lock is not shown")


def freebind() -> None:
    with socket.socket(socket.AF_INET6) as one:
        one.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)


def socket_namespace() -> None:
    with socket.socket() as one:
        fd = process.ioctl(one.fileno(), _SIOCGSKNS)
    same = os.fstat(fd).st_ino == os.stat("/proc/self/ns/net").st_ino
    os.close(fd)
    if not same:
        raise Missing("it is another namespace")


def unix_file() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX) as one:
        one.bind(f"{place}/socket")
        fd = process.ioctl(one.fileno(), _SIOCUNIXFILE)
        same = os.fstat(fd).st_ino == os.stat(f"{place}/socket").st_ino
        os.close(fd)
    if not same:
        raise Missing("it is another file")


def netlink(protocol: int, kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
    """One netlink(7) request; (type, body) of each answer.  Raises OSError if an answer is an error."""
    answers: list[tuple[int, bytes]] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as link:
        link.settimeout(2)
        link.send(struct.pack("=IHHII", 16 + len(body), kind, flags | _REQUEST, 1, 0) + body)
        while True:
            for what, _, _, answer in messages(link.recv(1 << 17)):
                if what == 2 and (number := -struct.unpack_from("=i", answer)[0]):
                    raise OSError(number, os.strerror(number))
                if what in (2, 3):
                    return answers
                answers.append((what, answer))
                if not flags & (_DUMP | _ACK):
                    return answers


def attribute(kind: int, body: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(body), kind) + body + bytes(-len(body) % 4)


def namespace_id() -> None:
    answers = netlink(_NETLINK_ROUTE, _RTM_GETNSID, 0, bytes(4) + attribute(2, struct.pack("=I", os.getpid())))
    if not answers:
        raise Missing("no answer")


@in_child
def interface_index() -> None:
    process.unshare(process.CLONE_NEWNET)
    veth(11, 0)
    if socket.if_nametoindex("torpor0") != 11:
        raise Missing("the interface has another number than wanted")


@in_child
def link_namespace_id() -> None:
    process.unshare(process.CLONE_NEWNET)
    theirs, ours = os.pipe()
    pid = os.fork()
    if pid == 0:
        process.unshare(process.CLONE_NEWNET)
        os.write(ours, b".")
        os.close(ours)
        import signal

        signal.pause()
    try:
        os.read(theirs, 1)
        veth(0, pid)
        answers = netlink(_NETLINK_ROUTE, _RTM_GETLINK, _DUMP, struct.pack("=BxHiII", 0, 0, 0, 0, 0))
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    if not any(_IFLA_LINK_NETNSID in _kinds(body[16:]) for _, body in answers):
        raise Missing("the namespace of a link's other end is not shown")


def veth(index: int, pid: int) -> None:
    """A pair of interfaces, torpor0 and torpor1, the first with this number; the second goes to another's namespace."""
    inside = attribute(_IFLA_IFNAME, b"torpor1\0") + (
        attribute(_IFLA_NET_NS_PID, struct.pack("=I", pid)) if pid else b""
    )
    peer = attribute(1, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + inside)  # VETH_INFO_PEER
    info = attribute(1, b"veth\0") + attribute(2, peer)
    body = struct.pack("=BxHiII", 0, 0, index, 0, 0) + attribute(_IFLA_IFNAME, b"torpor0\0")
    netlink(_NETLINK_ROUTE, _RTM_NEWLINK, _CREATE | _ACK, body + attribute(_IFLA_LINKINFO, info))


def _kinds(data: bytes) -> set[int]:
    kinds, at = set(), 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        kinds.add(kind & 0x3FFF)
        at += max(4, length + -length % 4)
    return kinds


@in_child
def nftables() -> None:
    process.unshare(process.CLONE_NEWNET)
    netlink(_NETLINK_NETFILTER, 10 << 8 | 1, _DUMP, struct.pack("=BBH", 0, 0, 0))  # NFT_MSG_GETTABLE


@in_child
def foreign_namespace() -> None:
    before = os.open("/proc/self/ns/net", os.O_RDONLY)
    process.unshare(process.CLONE_NEWNET)
    process.setns(before, process.CLONE_NEWNET)
