# SPDX-License-Identifier: Apache-2.0
"""A disk with a volatile write cache, for guests whose power fails: an NBD server over a raw image.

Killing QEMU loses what the guest has not yet given to its disk, but nothing that the disk has taken: that is in the
host's page cache.  A real disk loses what it has taken and was not told to flush.  So this one keeps writes in memory,
as they come, until the guest flushes; when the power fails, of those that were not flushed some blocks have reached the
image and some have not, in no order, and of a block that was written several times any of its contents.  A block of
4096 bytes, a disk's physical sector, is written whole; ext4 relies on that.

The power can be made to fail at a request (`fail_at`): a write whose blocks may then have reached the image or not, a
flush of which only some may have.

Facts: the NBD protocol's doc/proto.md, fixed newstyle handshake, simple replies.
"""

import os
import random
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

SECTOR, BLOCK = 512, 4096
_GO, _EXPORT_NAME, _ABORT = 7, 1, 2
_ACK, _INFO, _UNSUPPORTED = 1, 3, (1 << 31) + 1
_READ, _WRITE, _DISCONNECT, _FLUSH = range(4)
_FLAGS = 1 | 4 | 8  # flags are there, flush, force unit access
_FUA = 1
_EINVAL = 22


class VolatileDisk:
    """Serves the image `path` at a UNIX socket, to one client."""

    def __init__(self, path: Path, at: Path) -> None:
        self._image = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.size = os.fstat(self._image).st_size
        self._cache: dict[int, list[bytes]] = {}  # blocks not flushed: all that was written to each, in order
        self.requests = 0  # writes and flushes, so far
        self._last: int | None = None  # of the requests, at which the power fails
        self._cut: Callable[[], object] | None = None
        self.at = at
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(at))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def arguments(self) -> list[str]:
        """QEMU's, for a guest that sees it as /dev/vda."""
        return [
            "-blockdev", f"driver=nbd,node-name=disk,server.type=unix,server.path={self.at}",
            "-device", f"virtio-blk-pci,drive=disk,write-cache=on,physical_block_size={BLOCK}",
        ]  # fmt: skip

    def fail_at(self, request: int, cut: Callable[[], object]) -> None:
        """The power fails at the so-manyth request from now: `cut` is called, in a thread, and nothing is answered any
        longer."""
        self._cut, self._last = cut, self.requests + request

    def fail(self, chance: random.Random, share: float) -> tuple[int, int]:
        """The power fails; each block that was not flushed is written with the probability `share`.  Returns how many
        were lost, of how many.  The client has gone."""
        self._thread.join(20)
        assert not self._thread.is_alive(), "QEMU is still connected"
        lost = 0
        for block, contents in self._cache.items():
            if chance.random() < share:
                os.pwrite(self._image, chance.choice(contents), block * BLOCK)
            else:
                lost += 1
        total = len(self._cache)
        os.close(self._image)
        return lost, total

    # -- the protocol -----------------------------------------------------------------------------------------------
    def _serve(self) -> None:
        client, _ = self._listener.accept()
        self._listener.close()
        self.at.unlink()
        with client, client.makefile("rb") as stream:
            try:
                client.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 1))
                self._read(stream, 4)
                if self._options(client, stream):
                    while self._request(client, stream):
                        pass
            except (EOFError, OSError):
                pass  # the power has failed

    @staticmethod
    def _read(stream: "socket.SocketIO | object", length: int) -> bytes:
        data: bytes = stream.read(length)  # type: ignore[attr-defined]
        if len(data) < length:
            raise EOFError
        return data

    def _options(self, client: socket.socket, stream: object) -> bool:
        while True:
            magic, option, length = struct.unpack(">8sII", self._read(stream, 16))
            assert magic == b"IHAVEOPT"
            self._read(stream, length)
            if option == _EXPORT_NAME:
                client.sendall(struct.pack(">QH124x", self.size, _FLAGS))
                return True
            if option == _GO:
                self._reply(client, option, _INFO, struct.pack(">HQH", 0, self.size, _FLAGS))
                self._reply(client, option, _ACK)
                return True
            if option == _ABORT:
                self._reply(client, option, _ACK)
                return False
            self._reply(client, option, _UNSUPPORTED)

    @staticmethod
    def _reply(client: socket.socket, option: int, kind: int, data: bytes = b"") -> None:
        client.sendall(struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data)

    def _request(self, client: socket.socket, stream: object) -> bool:
        magic, flags, kind, handle, offset, length = struct.unpack(">IHHQQI", self._read(stream, 28))
        assert magic == 0x25609513
        error, data = 0, b""
        if kind == _READ:
            data = self._load(offset, length)
        elif kind == _WRITE:
            self._store(offset, self._read(stream, length))
            if self._fails(stream):
                return False
            if flags & _FUA:
                self._flush()
        elif kind == _FLUSH:
            if self._fails(stream):
                return False
            self._flush()
        elif kind == _DISCONNECT:
            return False
        else:
            error = _EINVAL
        client.sendall(struct.pack(">IIQ", 0x67446698, error, handle) + data)
        return True

    def _fails(self, stream: object) -> bool:
        """Count a request; whether the power fails at it."""
        self.requests += 1
        if self._cut is None or self._last is None or self.requests < self._last:
            return False
        self._cut()
        while stream.read(1 << 16):  # type: ignore[attr-defined]
            pass  # until QEMU has gone
        return True

    def _block(self, block: int) -> bytes:
        contents = self._cache.get(block)
        return contents[-1] if contents else os.pread(self._image, BLOCK, block * BLOCK)

    def _load(self, offset: int, length: int) -> bytes:
        assert offset % SECTOR == length % SECTOR == 0
        first, end = offset // BLOCK, -(-(offset + length) // BLOCK)
        data = bytearray(os.pread(self._image, (end - first) * BLOCK, first * BLOCK))
        for block in range(first, end):
            if block in self._cache:
                data[(block - first) * BLOCK : (block - first + 1) * BLOCK] = self._cache[block][-1]
        return bytes(data[offset - first * BLOCK :][:length])

    def _store(self, offset: int, data: bytes) -> None:
        assert offset % SECTOR == len(data) % SECTOR == 0
        at = 0
        while at < len(data):
            block, begin = divmod(offset + at, BLOCK)
            part = data[at : at + BLOCK - begin]
            if len(part) < BLOCK:
                whole = self._block(block)
                part_of = whole[:begin] + part + whole[begin + len(part) :]
            else:
                part_of = part
            self._cache.setdefault(block, []).append(part_of)
            at += len(part)

    def _flush(self) -> None:
        """All that was written before is on the medium."""
        for block, contents in self._cache.items():
            os.pwrite(self._image, contents[-1], block * BLOCK)
        self._cache.clear()
