# SPDX-License-Identifier: Apache-2.0
"""The disk of test_power.py, by itself, without a guest: it loses what was not flushed, and nothing else."""

import random
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from vmlab.volatile import BLOCK, SECTOR, VolatileDisk

READ, WRITE, DISCONNECT, FLUSH = range(4)
FUA = 1


class Client:
    """As QEMU is, but one that asks what it is told to."""

    def __init__(self, at: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._socket.connect(str(at))
        assert self._take(18) == b"NBDMAGICIHAVEOPT\0\1"
        self._socket.sendall(struct.pack(">I8sII", 1, b"IHAVEOPT", 1, 0))  # the default export
        (self.size, self.flags) = struct.unpack(">QH124x", self._take(134))

    def _take(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self._socket.recv(length - len(data))
            assert more, "the disk has gone"
            data += more
        return data

    def send(self, kind: int, offset: int = 0, data: bytes = b"", length: int = 0, flags: int = 0) -> None:
        self._socket.sendall(struct.pack(">IHHQQI", 0x25609513, flags, kind, 7, offset, length or len(data)) + data)

    def ask(self, kind: int, offset: int = 0, data: bytes = b"", length: int = 0, flags: int = 0) -> bytes:
        self.send(kind, offset, data, length, flags)
        assert struct.unpack(">IIQ", self._take(16)) == (0x67446698, 0, 7)
        return self._take(length) if kind == READ else b""

    def go(self) -> None:
        self._socket.close()


class Lab:
    def __init__(self, directory: Path) -> None:
        self.image = directory / "image"
        self.image.write_bytes(bytes(16 * BLOCK))
        self.disk = VolatileDisk(self.image, directory / "socket")
        self.client = Client(self.disk.at)

    def fail(self, share: float, seed: int = 0) -> tuple[bytes, tuple[int, int]]:
        """What is left on the image, and how many blocks were lost of how many."""
        self.client.go()
        counts = self.disk.fail(random.Random(seed), share)
        return self.image.read_bytes(), counts


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.client.go()


def block(letter: str) -> bytes:
    return letter.encode() * BLOCK


def test_what_was_not_flushed_is_lost(lab: Lab) -> None:
    lab.client.ask(WRITE, 0, block("a") + block("b"))
    assert lab.client.ask(READ, BLOCK, length=BLOCK) == block("b")  # the disk itself knows it
    assert lab.image.read_bytes() == bytes(16 * BLOCK)
    left, counts = lab.fail(0)
    assert left == bytes(16 * BLOCK)
    assert counts == (2, 2)


def test_what_was_flushed_is_kept(lab: Lab) -> None:
    lab.client.ask(WRITE, 0, block("a"))
    lab.client.ask(FLUSH)
    lab.client.ask(WRITE, 0, block("b"))
    lab.client.ask(WRITE, BLOCK, block("c"))
    left, counts = lab.fail(0)
    assert left[: 2 * BLOCK] == block("a") + bytes(BLOCK)
    assert counts == (2, 2)


def test_a_write_that_is_forced_is_kept(lab: Lab) -> None:
    lab.client.ask(WRITE, 0, block("a"), flags=FUA)
    assert lab.fail(0)[0][:BLOCK] == block("a")


def test_any_of_the_blocks_may_have_reached_the_medium_with_any_content(tmp_path: Path) -> None:
    seen = set()
    for seed in range(40):
        directory = tmp_path / str(seed)
        directory.mkdir()
        lab = Lab(directory)
        lab.client.ask(WRITE, 0, block("a") + block("b"))
        lab.client.ask(WRITE, 0, block("c"))
        left, _ = lab.fail(0.5, seed)
        assert left[:BLOCK] in (bytes(BLOCK), block("a"), block("c"))  # never a part of one
        assert left[BLOCK : 2 * BLOCK] in (bytes(BLOCK), block("b"))
        seen.add((left[0], left[BLOCK]))
    assert len(seen) == 6, "all combinations"


def test_a_part_of_a_block_is_written_with_the_rest_of_it(lab: Lab) -> None:
    lab.client.ask(WRITE, 0, block("a"))
    lab.client.ask(FLUSH)
    lab.client.ask(WRITE, SECTOR, b"b" * SECTOR)
    assert lab.fail(1)[0][:BLOCK] == b"a" * SECTOR + b"b" * SECTOR + b"a" * (BLOCK - 2 * SECTOR)


@pytest.mark.parametrize("at", [WRITE, FLUSH])
def test_the_power_fails_at_a_request(lab: Lab, at: int) -> None:
    """That one is not answered; a write may have come through, a flush has done nothing that is certain."""
    failed = threading.Event()
    lab.client.ask(WRITE, 0, block("a"))
    lab.disk.fail_at(3, failed.set)
    lab.client.ask(WRITE, BLOCK, block("b"))
    lab.client.ask(WRITE, 2 * BLOCK, block("c"))
    assert not failed.is_set()
    lab.client.send(at, 3 * BLOCK, block("d") if at == WRITE else b"")
    assert failed.wait(10)
    lab.client.send(FLUSH)  # too late
    left, (lost, of) = lab.fail(0)
    assert left == bytes(16 * BLOCK)
    assert lost == of == (4 if at == WRITE else 3)
