# SPDX-License-Identifier: Apache-2.0
"""Writing messages: the half of message.py that makes bytes of fields.

Each field has a *writer*, a function that takes its value and returns the bytes, tag and all.  They are made when they
are first needed: a small dump needs those of three hundred fields.  Of a number it is the look-up in a table of what
was written before, for most numbers in an image repeat.
"""

from __future__ import annotations

from torpor.errors import ImageError
from torpor.images.wire import BYTES, ENCODED, FIXED64, INT32, LENGTH, STRING, Tagged, varint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from torpor.images.message import Field, Message

    Writer: TypeAlias = Callable[[Any], bytes]


class Encoded:
    """What is encoded already: a message inside of another, because there are ten thousand of them, or all messages of
    a repeated field, tags and all, because ten thousand have the same."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def encode(self) -> bytes:
        return self.data


def tag_of(field: Field) -> bytes:
    """The bytes that a field begins with."""
    wire = 0 if field.kind in ENCODED or field.is_enum else 2
    key = field.number << 3 | (1 if field.kind == FIXED64 else wire)
    return bytes((key,)) if key < 128 else varint(key)


def writer_of(field: Field) -> Writer:
    """A function that makes the field's bytes of a value; of an optional field's None it makes nothing.  It raises
    TypeError, ValueError or AttributeError for a value that does not fit, and ImageError for a message in which one
    does not."""
    tag, kind = tag_of(field), field.kind
    if kind in ENCODED or field.is_enum:
        encoded = ENCODED[kind if kind in ENCODED else INT32]
        if field.label != "repeated":
            return Tagged(tag, encoded, optional=field.label == "optional").__getitem__
        return lambda values: tag + tag.join(map(encoded.__getitem__, values)) if values else b""
    body: Writer = _plain if kind == BYTES else _text if kind == STRING else _message
    if field.label == "repeated":
        return lambda values: (
            values.data
            if type(values) is Encoded
            else b"".join([tag + LENGTH[len(data)] + data for data in map(body, values)])
        )
    if field.label == "required":
        return lambda value: tag + LENGTH[len(data := body(value))] + data
    return lambda value: b"" if value is None else tag + LENGTH[len(data := body(value))] + data


def _plain(value: bytes) -> bytes:
    return value


def _text(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


def _message(value: Message) -> bytes:
    return value.encode()


def why_not(message: Message, error: Exception) -> ImageError:
    """Which field cannot be written, after `error`."""
    for field in message.fields().values():
        value = getattr(message, field.name)
        try:
            if value is None and field.label == "required":
                raise ValueError("it is required")
            writer_of(field)(value)
        except (TypeError, ValueError, AttributeError) as reason:
            what = f"{type(message).__name__}.{field.name} cannot be written"
            return ImageError(what, str(reason), code="bad-value")
    return ImageError(f"{type(message).__name__} cannot be written", str(error), code="bad-value")
