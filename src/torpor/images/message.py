# SPDX-License-Identifier: Apache-2.0
"""Protocol buffer messages (proto2), declared as classes.

    class PagemapHead(Message):
        pages_id: int = required(1, UINT32)

An instance is built from keywords, a field that is not set reads as None (a repeated one as an empty list), enums are
plain integers, strings hold file names the way `os.fsdecode` gives them.  `encode` writes fields in the order of their
numbers, as CRIU does, so what CRIU wrote comes out byte for byte when decoded and encoded again.

What is decoded may come from a stranger: whatever is wrong with it is an `ImageError`, nesting is bounded, and nothing
is allocated because a length says so.  Unknown fields are skipped (a newer CRIU may have written them) and not kept.

Importing this costs next to nothing, neither does declaring a message: the tables that drive the codec are made when a
class is first encoded or decoded.  They are tables and not generated functions because compiling a function takes
longer than a small dump has.  `typing` alone takes longer to import than all else here together, so only type checkers
do it (they take any TYPE_CHECKING for true).
"""

from __future__ import annotations

from _operator import attrgetter  # operator itself has forty functions in Python besides

from torpor.errors import ImageError
from torpor.images.encoder import Encoded, tag_of, why_not, writer_of
from torpor.images.wire import BOOL, BYTES, FIXED64, INT32, INT64, SINT32, SINT64, STRING, UINT32, UINT64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, ClassVar, Final, Self, TypeVar, dataclass_transform

    M = TypeVar("M", bound="Message")
else:

    def dataclass_transform(**_):
        return lambda cls: cls


__all__ = [
    "BOOL", "BYTES", "FIXED64", "INT32", "INT64", "SINT32", "SINT64", "STRING", "UINT32", "UINT64",
    "Encoded", "Field", "Message", "optional", "repeated", "required",
]  # fmt: skip

_SCHEMA: Final = "torpor.images.schema."
_PLANS: Final = 64  # of a class


class Field:
    """One field of a message.  `kind` is a scalar's name, or "module.Class" of a message or ("enums.Class") an enum.

    `unset` is what the format says an optional field means when it is not there.
    """

    __slots__ = ("default", "kind", "label", "loaded", "name", "number", "unset")

    def __init__(self, label: str, number: int, kind: str, default: Any, unset: Any) -> None:
        self.label, self.number, self.kind = label, number, kind
        self.default, self.unset = default, unset
        self.name, self.loaded = "", None

    @property
    def is_enum(self) -> bool:
        return self.kind.startswith("enums.")

    @property
    def is_message(self) -> bool:
        return "." in self.kind and not self.is_enum

    def load(self) -> Any:
        """The class that `kind` names: of a message or of an enum."""
        if self.loaded is None:
            module, name = self.kind.split(".")
            self.loaded = getattr(__import__(_SCHEMA + module, fromlist=[name]), name)
        return self.loaded


def required(number: int, kind: str, *, default: Any = None) -> Any:
    """A field that must be there (where the format gives a default, it may be left out)."""
    return Field("required", number, kind, default, default)


def optional(number: int, kind: str, *, default: None, unset: Any = None) -> Any:
    """A field that reads as None when it is not there."""
    return Field("optional", number, kind, default, unset)


def repeated(number: int, kind: str, *, default_factory: type[list[Any]]) -> Any:
    """A list, never packed when written; packed ones are read as well."""
    return Field("repeated", number, kind, None, None)


# ---- the codec -------------------------------------------------------------------------------------------------------


@dataclass_transform(kw_only_default=True, field_specifiers=(required, optional, repeated))
class Message:
    """Base of all messages; see the module's text."""

    _fields: ClassVar[dict[str, Field]] = {}
    _lists: ClassVar[tuple[str, ...]] = ()
    _shapes: ClassVar[dict[tuple[str, ...], tuple[str, ...]]] = {}  # by the fields that a message is built from
    _writers: ClassVar[dict[str, Any]] = {}  # by field (encoder.py)
    _plans: ClassVar[dict[tuple[str, ...], Any]] = {}  # by the fields that are set: how such a message is encoded
    _decoder: ClassVar[Any] = None
    _frozen: ClassVar[Any] = None  # the class of those that are shared (images/frozen.py)

    def __init_subclass__(cls, frozen: bool = False) -> None:
        if frozen:
            return
        found = {name: field for name, field in cls.__dict__.items() if type(field) is Field}
        lists = []
        for name, field in found.items():
            field.name = name
            setattr(cls, name, field.default)
            if field.label == "repeated":
                lists.append(name)
        cls._fields, cls._lists = found, tuple(lists)
        cls._shapes, cls._writers, cls._plans = {}, {}, {}

    def __init__(self, **values: Any) -> None:
        shape = tuple(values)
        lists = self._shapes.get(shape)
        if lists is None:
            lists = self._shape(shape)
        for name in lists:
            values[name] = []
        self.__dict__ = values

    @classmethod
    def _shape(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        """Which lists a message that is built from these fields still needs."""
        if unknown := ", ".join(sorted(set(given) - cls._fields.keys())):
            raise TypeError(f"{cls.__name__} has no field {unknown}")
        lists = cls._shapes[given] = tuple([name for name in cls._lists if name not in given])
        return lists

    @classmethod
    def fields(cls) -> dict[str, Field]:
        """The declaration, for those who print messages."""
        return cls._fields

    def get(self, name: str) -> Any:
        """The field's value, or what the format says it means when it is not set."""
        value = getattr(self, name)
        return self._fields[name].unset if value is None else value

    def items(self) -> Iterator[tuple[Field, Any]]:
        """The fields that are set, in the order of their declaration."""
        for name, field in self._fields.items():
            value = getattr(self, name)
            if value is not None and (value or field.label != "repeated"):
                yield field, value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message) or self._fields is not other._fields:
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self._fields)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{field.name}={value!r}' for field, value in self.items())})"

    def encode(self) -> bytes:
        """The message's bytes.  A required field that is not set, or a value that does not fit, is an ImageError."""
        given = tuple(self.__dict__)
        try:
            get, writers = self._plans.get(given) or self._plan(given)
            values = self.__dict__.values() if get is None else get(self)
            return b"".join([write(value) for write, value in zip(writers, values, strict=False)])
        except (TypeError, ValueError, AttributeError) as error:
            raise why_not(self, error) from error

    @classmethod
    def _plan(cls, given: tuple[str, ...]) -> Any:
        """How to encode a message in which these fields are set: what gets their values (None: they are in order), and
        what writes each."""
        needed = [name for name, field in cls._fields.items() if field.label == "required"]
        names = sorted({*given, *needed}, key=cls._number_of)
        if len(cls._plans) >= _PLANS:  # of messages that were read: their fields may have come in any order
            cls._plans.clear()
        # attrgetter of one name gives no tuple: name it twice, zip drops the second
        get = None if names == [*given] else attrgetter(*names, *names[:1])
        plan = get, [cls.writer(name) for name in names]
        cls._plans[given] = plan
        return plan

    @classmethod
    def writer(cls, name: str) -> Callable[[Any], bytes]:
        """A function that makes the field's bytes of a value (`encoder.writer_of`)."""
        writer: Callable[[Any], bytes] | None = cls._writers.get(name)
        if writer is None:
            writer = cls._writers[name] = writer_of(cls._fields[name])
        return writer

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> Self:
        """The message that `data` holds, or ImageError.  Messages inside of it may be shared with others, and cannot be
        changed then; a copy (`copy`, `deepcopy`) can."""
        from torpor.images.decoder import decode

        return decode(cls, data if type(data) is bytes else bytes(data))

    @classmethod
    def tag(cls, name: str) -> bytes:
        """The bytes that a field begins with."""
        return tag_of(cls._fields[name])

    @classmethod
    def part(cls, **numbers: int | None) -> bytes:
        """The bytes of these fields, single numbers, without the others: such parts are a message when they follow each
        other in the order of the fields' numbers.  Raises ImageError as `encode` does."""
        try:
            return b"".join([cls.writer(name)(numbers[name]) for name in sorted(numbers, key=cls._number_of)])
        except (TypeError, ValueError) as error:
            raise ImageError(f"a part of {cls.__name__} cannot be written", str(error), code="bad-value") from error

    @classmethod
    def _number_of(cls, name: str) -> int:
        return cls._fields[name].number
