# SPDX-License-Identifier: Apache-2.0
"""sock_diag: sockets that this process makes are the oracle; invented messages must never crash the parser."""

import errno
import fcntl
import os
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.kernel import probe_net, sockdiag
from torpor.kernel.probe import in_child
from torpor.kernel.process import CLONE_NEWNET, unshare


def ino(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def unix(sock: socket.socket) -> sockdiag.UnixSocket:
    with sockdiag.SockDiag() as diag:
        return diag.unix()[ino(sock)]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_pair(kind: socket.SocketKind) -> None:
    one, two = socket.socketpair(socket.AF_UNIX, kind)
    with one, two:
        one.send(b"hello")
        seen = unix(two)
        assert (seen.type, seen.state, seen.peer) == (kind, sockdiag.ESTABLISHED, ino(one))
        assert (seen.name, seen.vfs, seen.rqueue, seen.uid) == (None, None, 5, os.geteuid())
        assert unix(one).wqueue > 0
        two.shutdown(socket.SHUT_WR)
        assert (unix(two).shutdown, unix(one).shutdown) == ((2, 1) if kind != socket.SOCK_DGRAM else (2, 0))


def test_listening_with_backlog(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(7)
        clients = []
        for _ in range(3):
            client = socket.socket(socket.AF_UNIX)
            client.connect(path)
            clients.append(client)
        seen = unix(server)
        assert (seen.state, seen.name) == (sockdiag.LISTEN, path.encode() + b"\0")
        assert seen.backlog == tuple(map(ino, clients))
        assert (seen.rqueue, seen.wqueue) == (3, 7)
        stat = os.stat(path)
        assert seen.vfs == (stat.st_ino, os.major(stat.st_dev) << 20 | os.minor(stat.st_dev))
        os.unlink(path)
        assert unix(server).vfs == seen.vfs
        assert unix(clients[0]).peer == 0
        accepted, _ = server.accept()
        assert unix(clients[0]).peer == ino(accepted)
        for sock in (*clients, accepted):
            sock.close()


def test_abstract_datagram() -> None:
    name = f"\0torpor-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name)
        seen = unix(sock)
        assert (seen.name, seen.vfs, seen.peer, seen.state) == (name.encode(), None, None, sockdiag.CLOSE)


def test_many_sockets_are_all_listed() -> None:
    pairs = [socket.socketpair() for _ in range(200)]
    with sockdiag.SockDiag() as diag:
        listed = diag.unix()
    for one, two in pairs:
        assert listed[ino(one)].peer == ino(two)
        one.close()
        two.close()


def test_tcp_listening_v4_and_v6() -> None:
    with sockdiag.SockDiag() as diag, socket.socket() as four, socket.socket(socket.AF_INET6) as six:
        six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        four.bind(("127.0.0.1", 0))
        six.bind(("::1", 0))
        for sock in (four, six):
            sock.listen(9)
        for sock, family, host in ((four, socket.AF_INET, "127.0.0.1"), (six, socket.AF_INET6, "::1")):
            listed = diag.inet(family, socket.IPPROTO_TCP, 1 << sockdiag.LISTEN)
            (seen,) = (entry for entry in listed if entry.ino == ino(sock))
            assert seen.source == socket.inet_pton(family, host)
            assert seen.source_port == sock.getsockname()[1]
            assert (seen.wqueue, seen.v6only) == (9, None if family == socket.AF_INET else True)


def test_udp_connected() -> None:
    with sockdiag.SockDiag() as diag, socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.connect(("127.0.0.1", 9))
        (seen,) = (entry for entry in diag.inet(socket.AF_INET, socket.IPPROTO_UDP) if entry.ino == ino(sock))
        assert (seen.state, seen.destination, seen.destination_port) == (sockdiag.ESTABLISHED, b"\x7f\0\0\1", 9)


def test_unknown_protocol_is_an_oserror() -> None:
    with sockdiag.SockDiag() as diag, pytest.raises(OSError, match="sock_diag"):
        diag.inet(socket.AF_INET, 254)


@given(st.binary(min_size=16, max_size=200))
def test_any_unix_message_parses(body: bytes) -> None:
    assert sockdiag.unix_socket(body).ino == int.from_bytes(body[4:8], "little")


@given(st.binary(min_size=72, max_size=200))
def test_any_inet_message_parses(body: bytes) -> None:
    assert sockdiag.inet_socket(body).family == body[0]


@given(st.binary(max_size=200))
def test_any_datagram_splits_or_is_an_oserror(data: bytes) -> None:
    try:
        assert sum(len(body) + 16 for *_, body in sockdiag.messages(data)) <= len(data)
    except OSError:
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a network namespace")
def test_the_probe_needs_no_address() -> None:
    """The loopback device is up, and has none."""

    @in_child
    def alone() -> None:
        unshare(CLONE_NEWNET)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, socket.socket() as other:
            fcntl.ioctl(one, 0x8914, struct.pack("16sH14x", b"lo", 0x49))  # SIOCSIFFLAGS: IFF_UP and what it has
            fcntl.ioctl(one, 0x8916, struct.pack("16sH14x", b"lo", socket.AF_INET))  # SIOCSIFADDR: none
            try:
                other.bind(("127.0.0.1", 0))
                raise OSError(errno.EEXIST, "it has an address")
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
        probe_net.inet_diag()

    alone()
