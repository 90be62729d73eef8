# SPDX-License-Identifier: Apache-2.0
"""Numbers as protocol buffers write them: varints, plain and zigzag, and eight bytes for fixed64.

A negative int32 or enum takes ten bytes, as if it had 64 bits.  Reading takes what does not fit by its low bits, as
every other decoder does; writing refuses it.
"""

from __future__ import annotations

import struct

from torpor.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

BOOL: Final = "bool"
BYTES: Final = "bytes"
FIXED64: Final = "fixed64"
INT32: Final = "int32"
INT64: Final = "int64"
SINT32: Final = "sint32"
SINT64: Final = "sint64"
STRING: Final = "string"
UINT32: Final = "uint32"
UINT64: Final = "uint64"

_U64: Final = (1 << 64) - 1
_U32: Final = (1 << 32) - 1
_REMEMBERED: Final = 256  # numbers of a field: flags and the like repeat, addresses do not


_lowers: dict[int, bytes] = {}  # of addresses, by their low 21 bits: where pages begin, there are 512 of these
_uppers: dict[int, bytes] = {}  # by what is above: few differ in that


def varint(value: int) -> bytes:
    if value < 128:
        return bytes((value,))
    if value < 1 << 14:
        return bytes((value & 127 | 128, value >> 7))
    if 1 << 42 <= value < 1 << 49:  # most addresses of user space: seven bytes
        if value & 0xFFF:
            return bytes(
                (value & 127 | 128, value >> 7 & 127 | 128, value >> 14 & 127 | 128, value >> 21 & 127 | 128,
                 value >> 28 & 127 | 128, value >> 35 & 127 | 128, value >> 42)
            )  # fmt: skip
        low, high = value & 0x1FFFFF, value >> 21
        lower, upper = _lowers.get(low), _uppers.get(high)
        if lower is None:
            lower = bytes((low & 127 | 128, low >> 7 & 127 | 128, low >> 14 | 128))
            if len(_lowers) < 1024:
                _lowers[low] = lower
        if upper is None:
            upper = bytes((high & 127 | 128, high >> 7 & 127 | 128, high >> 14 & 127 | 128, high >> 21))
            if len(_uppers) < 1024:
                _uppers[high] = upper
        return lower + upper
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


class _Varints(dict[int, bytes]):
    """The encoded form of the integers of one kind.  Most numbers in an image are flags and ids: they repeat."""

    def __init__(self, low: int, high: int, zigzag: bool = False) -> None:
        super().__init__()
        self.low, self.high, self.zigzag = low, high, zigzag
        self.plain = -1 if zigzag else high  # up to here a number that is not negative is written as it is

    def __missing__(self, value: int) -> bytes:
        if not isinstance(value, int):
            raise TypeError(f"{value!r} is not an integer")
        if not self.low <= value <= self.high:
            raise ValueError(f"{value} is not between {self.low} and {self.high}")
        encoded = varint((value << 1 ^ value >> 63) if self.zigzag else value & _U64)
        if len(self) >= 4096:
            self.clear()  # an area begins where the one before ends: what was met last is met again
        self[value] = encoded
        return encoded


class Tagged(dict["int | None", bytes]):
    """The encoded form of the numbers of one field, the tag before them; of an unset optional one: nothing."""

    def __init__(self, tag: bytes, encoded: _Varints | _Fixed, optional: bool) -> None:
        self.tag, self.encoded, self.plain = tag, encoded, encoded.plain
        if optional:
            self[None] = b""

    def __missing__(self, value: int) -> bytes:
        whole = self.tag + (varint(value) if 0 <= value <= self.plain else self.encoded[value])
        if len(self) < _REMEMBERED:
            self[value] = whole
        return whole


class _Fixed(dict[int, bytes]):
    """The same face for fixed64: nothing is kept."""

    plain = -1

    def __missing__(self, value: int) -> bytes:
        if not 0 <= value <= _U64:
            raise ValueError(f"{value} is not between 0 and {_U64}")
        return struct.pack("<Q", value)


ENCODED: Final[dict[str, _Varints | _Fixed]] = {
    UINT32: _Varints(0, _U32),
    UINT64: _Varints(0, _U64),
    INT32: _Varints(-(1 << 31), (1 << 31) - 1),
    INT64: _Varints(-(1 << 63), (1 << 63) - 1),
    SINT32: _Varints(-(1 << 31), (1 << 31) - 1, True),
    SINT64: _Varints(-(1 << 63), (1 << 63) - 1, True),
    BOOL: _Varints(0, 1),
    FIXED64: _Fixed(),
}
LENGTH: Final = ENCODED[UINT64]


def _signed32(value: int) -> int:
    value &= _U32
    return value - (1 << 32) if value >> 31 else value


def _signed64(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _zigzag(value: int) -> int:
    return value >> 1 ^ -(value & 1)


def _zigzag32(value: int) -> int:
    value &= _U32
    return value >> 1 ^ -(value & 1)


# What makes a value of a varint.  Those of the first table leave numbers below 128 as they are.
LONG: Final[dict[str, Any]] = {UINT32: _U32.__and__, UINT64: None, INT32: _signed32, INT64: _signed64}
ALWAYS: Final[dict[str, Any]] = {SINT32: _zigzag32, SINT64: _zigzag, BOOL: bool}


_high: dict[bytes, int] = {}  # the upper four bytes of addresses, which few differ in


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends.  Short ones are quick, and those of seven bytes: most addresses."""
    first = data[at]
    if first < 128:
        return first, at + 1
    second = data[at + 1]
    if second < 128:
        return (first & 127) + (second << 7), at + 2
    third = data[at + 2]
    low = (first & 127) + ((second & 127) << 7)
    if third < 128:
        return low + (third << 14), at + 3
    low += (third & 127) << 14
    upper = data[at + 3 : at + 7]
    if upper in _high:
        return low + _high[upper], at + 7
    value, shift, start = low, 21, at
    at += 3
    while shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if at == start + 7 and len(_high) < 1024:
                _high[upper] = value - low
            return value & _U64, at
        shift += 7
    raise ImageError("a message is mangled", "a number in it is longer than ten bytes")
