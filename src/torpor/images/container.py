# SPDX-License-Identifier: Apache-2.0
"""One image as bytes: magic words, then entries.

An entry is a u32 length, a message, and for some kinds raw bytes that belong to it (see payloads).  Nothing is read
because a length says so: it has to be inside the bytes that are there.
"""

from __future__ import annotations

import os
import struct
from errno import EIO

from torpor.errors import ImageError
from torpor.images.kinds import IMG_COMMON, IMG_SERVICE, INVENTORY, ONE, RAW, ImageKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, TypeAlias, TypeVar

    from torpor.images.message import Message

    M = TypeVar("M", bound=Message)
    Entry: TypeAlias = Message | tuple[Message, bytes]

MAX_ENTRY = 64 << 20  # an mm image with a million areas has 45 MB
_PIECE = 1 << 20  # bytes read at a time
_U32 = struct.Struct("=I")  # as CRIU does it, in the order of the machine


def start_of(kind: ImageKind[Any]) -> bytes:
    """The magic words that an image of this kind starts with."""
    if kind.shape == RAW:
        return b""
    own = _U32.pack(kind.magic)
    return own if kind is INVENTORY else _U32.pack(IMG_SERVICE if kind.is_service else IMG_COMMON) + own


def encode_entries(entries: Iterable[Entry]) -> list[bytes]:
    """The entries' bytes, lengths between them."""
    parts: list[bytes] = []
    for entry in entries:
        message, payload = entry if isinstance(entry, tuple) else (entry, b"")
        body = message.encode()
        parts += (_U32.pack(len(body)), body, payload) if payload else (_U32.pack(len(body)), body)
    return parts


def check_start(kind: ImageKind[Any], data: bytes, name: str) -> int:
    """Check the magic words; where they end."""
    start = start_of(kind)
    if data.startswith(start):
        return len(start)
    if data.startswith(start[-4:]):
        return 4  # img_version 1: no common word
    if data.startswith((start[3::-1], start[:-5:-1])):
        raise ImageError(f"{name} comes from a machine of the other byte order", code="foreign-architecture")
    raise ImageError(f"{name} is not a {kind.name} image", "it starts with another magic number", code="bad-magic")


class Pieces:
    """The bytes of a large image, of which one piece at a time is in memory: it may be a hole that ends in nothing."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd, self._size = fd, size
        self._at, self._piece = 0, b""

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        """OSError passes through, and comes if the file has become shorter."""
        start, end, _ = part.indices(self._size)
        if start < self._at or end > self._at + len(self._piece):
            self._at, self._piece = start, b""
            left = min(max(end - start, _PIECE), self._size - start)
            while left > 0:
                more = os.pread(self._fd, left, start)
                if not more:
                    raise OSError(EIO, "it has become shorter")
                self._piece += more
                start, left = start + len(more), left - len(more)
            start = self._at
        return self._piece[start - self._at : end - self._at]


def parse_image(kind: ImageKind[M], data: bytes | Pieces, name: str) -> Iterator[tuple[M, bytes]]:
    """The entries of an image with their raw bytes; `name` is for the errors."""
    if kind.shape == RAW:
        raise ValueError(f"{name} has no entries")
    from torpor.images.decoder import decode

    at, end = check_start(kind, data[:8], name), len(data)
    payload, cls, unpack = kind.payload, kind.message, _U32.unpack
    usual = cls
    if kind.has_head:
        from torpor.images.schema.pagemap import PagemapHead

        cls = PagemapHead  # type: ignore[assignment]
    while at < end:
        start = at + 4
        if start > end:
            raise ImageError(f"{name} is mangled", "it ends in the middle of an entry's length")
        (size,) = unpack(data[at:start])
        at = start + size
        if at > end or size > MAX_ENTRY:
            raise ImageError(f"{name} is mangled", f"an entry of {size} bytes goes beyond its end")
        try:
            message = decode(cls, data[start:at])
            if payload is None:
                yield message, b""
            else:
                start, at = at, payload(message, data, at)
                if at > end:
                    raise ImageError("", f"{at - start} bytes after an entry go beyond its end")
                yield message, data[start:at]
        except ImageError as error:
            why = f"{error.what}: {error.why}" if error.what else error.why
            raise ImageError(f"{name} is mangled", why) from None
        if at < end and kind.shape == ONE:
            raise ImageError(f"{name} is mangled", "it has more than one entry")
        cls = usual
