# SPDX-License-Identifier: Apache-2.0
"""Reading messages: the other half of message.py.

A restore reads tens of thousands of messages before it can begin, and most of what is in them is alike: what follows
an area's two addresses is that of a hundred others, nobody owns the signals of most files, threads have one set of
credentials.  So nested messages that are alike, byte for byte, are decoded once, shared and therefore frozen; and of
messages of many numbers the first two are read and the rest is looked up.  (Measured on 10,000 areas: 3 µs instead of
7 each.)
"""

from __future__ import annotations

import struct

from torpor.errors import ImageError
from torpor.images.frozen import freeze
from torpor.images.wire import ALWAYS, BYTES, FIXED64, INT32, LONG, STRING, read_varint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, TypeVar

    from torpor.images.message import Message

    M = TypeVar("M", bound=Message)

MAX_DEPTH: Final = 64  # CRIU's deepest message (cgroups) nests as deep as its directories; protobuf itself says 100
_RUN: Final = 512  # bytes of a run of zeros that are looked at together
_KNOWN: Final = 1024  # messages of a field, or rests of a class, that are remembered
_UNKNOWN: Final = None, -1
_KNOWN_SIZE: Final = 2048  # bytes of a message that is remembered
_MANY: Final = 8  # a message with that many numbers, and nothing else, is read by its rest

# What a row of the tables says about a field.  From _MESSAGE on it has a length before it.
_NUMBER, _ODD_NUMBER, _NUMBERS, _FIXED_NUMBER, _FIXED_NUMBERS = 0, 1, 2, 3, 4
_MESSAGE, _MESSAGES, _STRING, _STRINGS, _BYTES, _BYTESES, _PACKED = 5, 6, 7, 8, 9, 10, 11


class _Decoder:
    """What is known of a class of messages.  table: tag -> (what, name, what else is needed)."""

    __slots__ = ("lists", "needed", "numbers", "rests", "table")

    def __init__(self, cls: type[Message]) -> None:
        fields = cls._fields.values()
        self.table: dict[int, tuple[int, str, Any]] = {}
        for field in fields:
            name, tag, many = field.name, field.number << 3, field.label == "repeated"
            kind = INT32 if field.is_enum else field.kind
            if field.is_message:
                self.table[tag | 2] = _MESSAGES if many else _MESSAGE, name, (field, {})
            elif kind in (BYTES, STRING):
                what = (_BYTESES if many else _BYTES) if kind == BYTES else (_STRINGS if many else _STRING)
                self.table[tag | 2] = what, name, None
            elif kind == FIXED64:
                self.table[tag | 1] = _FIXED_NUMBERS if many else _FIXED_NUMBER, name, None
                if many:
                    self.table[tag | 2] = _PACKED, name, None
            elif many:
                convert = ALWAYS.get(kind) or LONG[kind] or int
                self.table[tag] = _NUMBERS, name, convert
                self.table[tag | 2] = _PACKED, name, convert
            elif kind in ALWAYS:
                self.table[tag] = _ODD_NUMBER, name, ALWAYS[kind]
            else:
                self.table[tag] = _NUMBER, name, LONG[kind]
        self.needed = dict.fromkeys(field.name for field in fields if field.label == "required").keys()
        self.numbers = frozenset(field.number for field in fields)
        self.lists = cls._lists
        only_numbers = all(what in (_NUMBER, _ODD_NUMBER) for what, _, _ in self.table.values())
        self.rests: dict[bytes, dict[str, Any]] | None = {} if only_numbers and len(self.table) >= _MANY else None


def decode(cls: type[M], data: bytes, depth: int = 0) -> M:
    """The message that `data` holds, or ImageError."""
    decoder = cls._decoder
    if decoder is None:
        decoder = cls._decoder = _Decoder(cls)
    if depth > MAX_DEPTH:
        raise ImageError("a message is mangled", "it is nested too deeply")
    values: dict[str, Any] = {name: [] for name in decoder.lists} if decoder.lists else {}
    try:
        if decoder.rests is None:
            _read(cls, decoder, data, 0, values, depth)
        else:
            _read_numbers(cls, decoder, data, values)
    except (IndexError, struct.error):
        raise ImageError(f"a message ({cls.__name__}) is mangled", "it ends in the middle of a field") from None
    if not values.keys() >= decoder.needed:
        for name in decoder.needed - values.keys():
            default = cls._fields[name].default
            if default is None:
                raise ImageError(f"a message ({cls.__name__}) is mangled", f"its field {name} is missing")
            values[name] = default
    message = cls.__new__(cls)
    message.__dict__ = values
    return message


def _read_numbers(cls: type[Message], decoder: _Decoder, data: bytes, values: dict[str, Any]) -> None:
    """The two numbers that come first are this message's own (addresses, registers); the rest may be known."""
    at, rests = 0, decoder.rests
    assert rests is not None
    for _ in range(2):
        if at < len(data) and (row := decoder.table.get(data[at])) is not None and row[0] == _NUMBER:
            value, at = read_varint(data, at + 1)
            values[row[1]] = row[2](value) if row[2] else value
    tail = data[at:]
    rest = rests.get(tail)
    if rest is None:
        rest = {}
        _read(cls, decoder, tail, 0, rest, 0)
        if len(rests) < _KNOWN:
            rests[tail] = rest
    values.update(rest)


def _read(cls: type[Message], decoder: _Decoder, data: bytes, at: int, values: dict[str, Any], depth: int) -> None:
    """Read the fields from `at` to the end into `values`."""
    table, end = decoder.table, len(data)
    while at < end:
        tag = data[at]
        at += 1
        if tag > 127:
            byte = data[at]
            if byte > 127:
                tag, at = read_varint(data, at - 1)
            else:
                tag = tag & 127 | byte << 7
                at += 1
        row = table.get(tag)
        if row is None:
            at = _skip(cls, decoder, data, tag, at)
            continue
        what, name, more = row
        if what == _NUMBER:
            value = data[at]
            if value > 127:
                value, at = read_varint(data, at)
                values[name] = more(value) if more else value
            else:
                values[name] = value
                at += 1
        elif what >= _MESSAGE:
            size = data[at]
            if size > 127:
                size, at = read_varint(data, at)
            else:
                at += 1
            start, at = at, at + size
            if at > end:
                raise IndexError
            body = data[start:at]
            if what <= _MESSAGES:
                field, known = more
                message, deepest = known.get(body, _UNKNOWN) if known is not None else _UNKNOWN
                if depth > deepest:  # it may hold others: only where it was as deep, or deeper, is it not too deep
                    message = decode(field.loaded or field.load(), body, depth + 1)
                    if known is not None and size <= _KNOWN_SIZE and len(known) < _KNOWN:
                        freeze(message)
                        known[body] = message, depth
                        if field.loaded._decoder.rests is not None:  # areas, registers: no two are alike
                            table[tag] = what, name, (field, None)
                if what == _MESSAGE:
                    values[name] = message
                else:
                    values[name].append(message)
            elif what == _STRING:
                values[name] = _text(cls, body)
            elif what == _BYTES:
                values[name] = body
            elif what == _PACKED:
                values[name] += _unpack(body, more)
            else:
                values[name].append(body if what == _BYTESES else _text(cls, body))
        elif what == _ODD_NUMBER:
            value, at = read_varint(data, at)
            values[name] = more(value)
        elif what == _NUMBERS:
            value = data[at]
            if value > 127:
                value, at = read_varint(data, at)
            else:
                at += 1
                if not value and data[at : at + 2] == data[at - 2 : at] and tag < 128:
                    # Registers are mostly zeros: take a run of them at once.
                    run = data[at : at + _RUN]
                    count = (len(run) - len(run.lstrip(data[at - 2 : at]))) // 2
                    if run[1 : 2 * count : 2].count(0) == count == run[: 2 * count : 2].count(tag):
                        values[name] += [more(0)] * count
                        at += 2 * count
            values[name].append(more(value))
        else:
            (value,) = struct.unpack_from("<Q", data, at)
            at += 8
            if what == _FIXED_NUMBER:
                values[name] = value
            else:
                values[name].append(value)


def _text(cls: type[Message], body: bytes) -> str:
    """Texts are names, which C programs write: a NUL ends them."""
    if 0 in body:
        raise ImageError(f"a message ({cls.__name__}) is mangled", "there is a NUL in a text")
    return body.decode("utf-8", "surrogateescape")


def _unpack(body: bytes, convert: Any) -> list[int]:
    if convert is None:
        if len(body) % 8:
            raise IndexError
        return list(struct.unpack(f"<{len(body) // 8}Q", body))
    found, at = [], 0
    while at < len(body):
        value, at = read_varint(body, at)
        found.append(convert(value))
    return found


def _skip(cls: type[Message], decoder: _Decoder, data: bytes, tag: int, at: int) -> int:
    """The end of a field that `cls` does not know."""
    number, wire = tag >> 3, tag & 7
    if not 0 < number < 1 << 29 or wire in (3, 4, 6, 7) or number in decoder.numbers:
        raise ImageError(f"a message ({cls.__name__}) is mangled", f"field {number} is of a wrong type ({wire})")
    if wire == 0:
        at = read_varint(data, at)[1]
    elif wire == 2:
        size, at = read_varint(data, at)
        at += size
    else:
        at += 8 if wire == 1 else 4
    if at > len(data):
        raise IndexError
    return at
