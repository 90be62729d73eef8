# SPDX-License-Identifier: Apache-2.0
"""UNIX sockets of this process: saved and made again; names, queues, and what images must not say."""

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from torpor.errors import ImageError, Refusal, TorporError
from torpor.images import kinds
from torpor.images.directory import ImageReader, ImageWriter
from torpor.images.schema.fdinfo import FileEntry
from torpor.images.schema.sk_unix import UnixSkEntry
from torpor.kernel import fdinfo
from torpor.options import Options
from torpor.resources import description, unix, unix_names, unix_plan
from torpor.resources.context import Dump, Restore, SeenFile

STREAM, DGRAM, SEQPACKET = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET
KIND = unix.FILE_KINDS[0]
Saved = tuple[Dump, list[int]]


class Session:
    """Saves sockets of this process, and makes them again from the images."""

    def __init__(self, images: Path, stack: contextlib.ExitStack) -> None:
        images.mkdir()
        self.stack, self.images = stack, images
        self.dir_fd = os.open(images, os.O_RDONLY)
        stack.callback(os.close, self.dir_fd)
        self.pidfd = os.pidfd_open(os.getpid())
        stack.callback(os.close, self.pidfd)

    def save(self, *socks: socket.socket, change: Callable[[UnixSkEntry], None] | None = None, **options: bool) -> Dump:
        dump = Dump(Options(images_dir=str(self.images), **options), ImageWriter(self.dir_fd))
        dump.state["adopt"] = None
        for sock in socks:
            fd = sock.fileno()
            link = os.readlink(f"/proc/self/fd/{fd}")
            info = fdinfo.read("self", fd)
            seen = SeenFile(dump.new_file_id(), os.getpid(), fd, link, os.fstat(fd), info, self.pidfd)
            KIND.examine(seen, dump)
            dump.file_entries.append(KIND.save(seen, dump))
            seen.close()
        KIND.settle(dump)
        for entry in dump.file_entries:
            if change and entry.usk is not None:
                change(entry.usk)
        KIND.late(dump)
        dump.images.write(kinds.FILES, dump.file_entries)
        description.write_extras(dump)
        return dump

    def load(self) -> Restore:
        restore = Restore(Options(images_dir=str(self.images)), ImageReader(self.dir_fd))
        restore.files = {entry.id: entry for entry in restore.images.entries(kinds.FILES)}
        for entry in restore.files.values():
            KIND.check(entry, restore)
        return restore

    def restore(self) -> list[socket.socket]:
        restore = self.load()
        for id, entry in restore.files.items():
            if id not in restore.made:
                restore.made[id] = KIND.make(entry, restore)
        for id, entry in restore.files.items():
            KIND.wire(entry, restore.made[id], restore)
        return [self.stack.enter_context(socket.socket(fileno=restore.made[id])) for id in sorted(restore.made)]

    def again(self, *socks: socket.socket) -> list[socket.socket]:
        """Save, close the originals, restore."""
        self.save(*socks)
        for sock in socks:
            sock.close()
        return self.restore()


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    monkeypatch.chdir(tmp_path)
    with contextlib.ExitStack() as stack:
        yield Session(tmp_path / "images", stack)


def new(kind: int = STREAM, name: str | bytes = "") -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind)
    if name:
        sock.bind(name)
    return sock


@pytest.mark.parametrize("kind", [STREAM, DGRAM, SEQPACKET])
def test_pair_with_queues(session: Session, kind: int) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, kind)
    left.setblocking(False)
    for message in (b"one", b"two", b"x" * 70_000):
        right.send(message)
    left.send(b"back")
    left, right = session.again(left, right)
    expected = [b"onetwo" + b"x" * 70_000] if kind == STREAM else [b"one", b"two", b"x" * 70_000]
    for message in expected:
        assert left.recv(100_000) == message
    assert right.recv(100) == b"back"
    assert not left.getblocking() or os.get_blocking(left.fileno()) is False


@pytest.mark.parametrize("kind", [STREAM, DGRAM, SEQPACKET])
def test_the_original_keeps_its_queue(session: Session, kind: int) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, kind)
    right.send(b"one")
    right.send(b"two")
    left.setsockopt(socket.SOL_SOCKET, 42, 1)  # SO_PEEK_OFF
    session.save(left, right)
    assert left.getsockopt(socket.SOL_SOCKET, 42) == 1
    assert left.recv(100) + (b"" if kind == STREAM else left.recv(100)) == b"onetwo"
    left.close()
    right.close()


def test_accepted_sockets_share_the_listeners_name(session: Session) -> None:
    server = new(STREAM, "server")
    os.chmod("server", 0o600)
    server.listen(3)
    clients = [new() for _ in range(3)]
    for client in clients[:2]:
        client.connect("server")
    accepted = [server.accept()[0] for _ in range(2)]
    clients[2].connect("server")  # waits
    server, a, b, c, x, y = session.again(server, *clients, *accepted)
    assert server.getsockname() == x.getsockname() == y.getsockname() == "server"
    assert stat.S_IMODE(os.stat("server").st_mode) == 0o600
    a.send(b"a"), b.send(b"b"), c.send(b"c")
    assert x.recv(9) == b"a" and y.recv(9) == b"b"
    waiting, _ = server.accept()
    assert waiting.recv(9) == b"c"
    late = new()
    late.connect("server")
    waiting.close()
    late.close()


def test_abstract_name_of_a_closed_listener(session: Session) -> None:
    name = f"\0torpor-test-{os.getpid()}".encode()
    server, client = new(STREAM, name), new()
    server.listen()
    client.connect(name)
    accepted, _ = server.accept()
    server.close()
    client, accepted = session.again(client, accepted)
    assert accepted.getsockname() == client.getpeername() == name
    accepted.send(b"hello")
    assert client.recv(9) == b"hello"


def test_names_that_are_gone_touch_nothing(session: Session) -> None:
    Path("dir").mkdir()
    server, client = new(STREAM, "dir/gone"), new()
    server.listen()
    client.connect("dir/gone")
    os.unlink("dir/gone")
    Path("dir/gone").write_text("another file")
    server, client = server.accept()[0], client
    server, client = session.again(server, client)
    assert client.getpeername() == "dir/gone"
    assert Path("dir/gone").read_text() == "another file" and os.listdir("dir") == ["gone"]


def test_renamed_socket_file(session: Session, tmp_path: Path) -> None:
    server = new(STREAM, str(tmp_path / "temporary"))
    server.listen()
    os.rename("temporary", "final")
    (server,) = session.again(server)
    assert server.getsockname() == str(tmp_path / "temporary") and not Path("temporary").exists()
    client = new()
    client.connect("final")
    client.close()


def test_file_with_two_names(session: Session, tmp_path: Path) -> None:
    """Only one of them would get the new socket."""
    sock = session.stack.enter_context(socket.socket(socket.AF_UNIX, STREAM))
    sock.bind(str(tmp_path / "one"))
    os.link(tmp_path / "one", tmp_path / "two")
    with pytest.raises(Refusal, match="2 names"):
        session.save(sock)


def test_peer_that_was_closed_with_unread_data(session: Session) -> None:
    left, right = socket.socketpair()
    left.send(b"never read")
    right.send(b"last words")
    right.close()
    (left,) = session.again(left)
    assert left.recv(100) == b"last words"
    with pytest.raises(ConnectionResetError):
        left.recv(100)
    assert left.recv(100) == b""


def test_peer_outside_is_named(session: Session) -> None:
    left, right = socket.socketpair()
    with pytest.raises(Refusal) as caught:
        session.save(left)
    assert "outside the tree" in str(caught.value) and f"process {os.getpid()}" in str(caught.value)
    left.close()
    right.close()


def test_stranger_in_the_backlog(session: Session) -> None:
    server, client = new(STREAM, "server"), new()
    server.listen()
    client.connect("server")
    with pytest.raises(Refusal, match="--skip-in-flight"):
        session.save(server)
    session.save(server, skip_in_flight=True)
    server.close()
    client.close()
    (server,) = session.restore()
    server.setblocking(False)
    with pytest.raises(BlockingIOError):
        server.accept()


def test_data_before_accept_is_refused(session: Session) -> None:
    server, client = new(STREAM, "server"), new()
    server.listen()
    client.connect("server")
    client.send(b"early")
    with pytest.raises(Refusal, match="nobody has accepted"):
        session.save(server, client)
    server.close()
    client.close()


def test_living_owner_of_the_name(session: Session) -> None:
    server = new(STREAM, "server")
    server.listen()
    session.save(server)
    with pytest.raises(Refusal, match="another process has a socket of this name"):
        session.load()
    server.close()
    assert session.load()
    os.unlink("server")
    Path("server").write_text("")
    with pytest.raises(Refusal, match="no socket"):
        session.load()


def test_credentials_of_this_process(session: Session) -> None:
    left, right = session.again(*socket.socketpair())
    pid, uid, gid = struct.unpack("=iII", left.getsockopt(socket.SOL_SOCKET, 17, 12))
    assert (pid, uid, gid) == (os.getpid(), os.geteuid(), os.getegid())
    right.send(b"x")


def broken_peer(usk: UnixSkEntry) -> None:
    usk.peer = 77


def one_way(usk: UnixSkEntry) -> None:
    usk.peer = usk.ino


def bad_type(usk: UnixSkEntry) -> None:
    usk.type = 3


def bad_name(usk: UnixSkEntry) -> None:
    usk.name = b"a\0b\0"


def long_name(usk: UnixSkEntry) -> None:
    usk.name = b"a" * 300


def listening_dgram(usk: UnixSkEntry) -> None:
    usk.state, usk.type, usk.name, usk.peer = 10, DGRAM, b"a\0", 0


@pytest.mark.parametrize("change", [broken_peer, one_way, bad_type, bad_name, long_name, listening_dgram])
def test_impossible_images(session: Session, change: Callable[[UnixSkEntry], None]) -> None:
    pair = socket.socketpair()
    session.save(*pair, change=change)
    with pytest.raises((ImageError, Refusal)):
        session.load()
    for sock in pair:
        sock.close()


def test_relative_names_are_found_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with new(DGRAM, "../up") as sock:
        monkeypatch.chdir(tmp_path)
        file = unix_names.look(sock.fileno(), b"../up\0", None, os.getpid())
    assert not file.deleted and file.place.directory is not None
    assert os.path.samefile(os.path.join(file.place.directory, "../up"), tmp_path / "up")


@pytest.mark.parametrize("name", [b"plain", b"/absolute/deep/name", b"../../up", b"./a/../b", b"x" * 107, b"y" * 108])
def test_unseen_names(name: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = unix_names.Names()
    with new() as sock:
        os.close(names.bind_unseen(sock.fileno(), name))
        assert os.fsencode(sock.getsockname()) == name
    names.close()
    assert os.getcwd() == str(tmp_path) and not os.listdir(tmp_path)


def test_errors_are_torpors() -> None:
    with pytest.raises(TorporError):
        unix_plan.check(FileEntry(type=5, id=1), Restore(Options(), None))  # type: ignore[arg-type]
