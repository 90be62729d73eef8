# SPDX-License-Identifier: Apache-2.0
"""What Torpor takes from `typing` and `collections.abc` for its annotations, without importing them.

`typing` brings `re` with it, and each of its NamedTuples is compiled from a string: together a tenth of the processor
time of a small dump.  `collections.abc` brings all of `collections` with it, 2 ms.  Type checkers see the real things.
At run time annotations are for nobody: `Any` and its like are empty, and a NamedTuple is made of the same parts as
collections.namedtuple makes it of, but for the compiling.
"""

from __future__ import annotations

import sys

__all__ = [
    "TYPE_CHECKING", "Any", "Callable", "ClassVar", "Generator", "Generic", "Hashable", "Iterable", "Iterator",
    "Mapping", "NamedTuple", "NoReturn", "Protocol", "Self", "Sequence", "TypeVar",
]  # fmt: skip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
    from typing import Any, ClassVar, Generic, NamedTuple, NoReturn, Protocol, Self, TypeVar
else:

    class _Empty:
        def __class_getitem__(cls, _):
            return cls

    class Any(_Empty): ...

    class Generic(_Empty): ...

    class Protocol(_Empty): ...

    # What nobody derives from needs no class of its own: making one takes 50 µs.
    ClassVar = NoReturn = Self = Any
    Callable = Generator = Hashable = Iterable = Iterator = Mapping = Sequence = Any

    def TypeVar(_name, **_options):
        return Any

    if sys.version_info >= (3, 14):  # annotations are evaluated late, and typing has become quick
        from typing import NamedTuple
    else:
        from _collections import _tuplegetter

        class _Maker(type):
            def __new__(cls, name, bases, body):
                fields = tuple(body.get("__annotations__", ()))
                if getattr(bases[0], "_fields", ()):  # derived from a finished one
                    return type.__new__(cls, name, bases, body)
                body.setdefault("__slots__", ())
                body["_fields"] = body["__match_args__"] = fields
                body["_field_defaults"] = defaults = {field: body[field] for field in fields if field in body}
                body["_tail"] = tuple(defaults.values())
                for index, field in enumerate(fields):
                    body[field] = _tuplegetter(index, "")
                return type.__new__(cls, name, bases, body)

        class NamedTuple(tuple, metaclass=_Maker):
            def __new__(cls, *values, **named):
                fields, tail = cls._fields, cls._tail
                left = len(fields) - len(values)
                if not left and not named:
                    return tuple.__new__(cls, values)
                if not values and (*named,) == fields:  # all by name, and in order
                    return tuple.__new__(cls, named.values())
                if not named and 0 <= left <= len(tail):
                    return tuple.__new__(cls, values + tail[len(tail) - left :])
                rest = fields[len(values) :]
                if left < 0 or not all(map(rest.__contains__, named)):
                    raise TypeError(f"{cls.__name__} has the fields {', '.join(fields)}")
                given = {**cls._field_defaults, **named}
                try:
                    return tuple.__new__(cls, (*values, *map(given.__getitem__, rest)))
                except KeyError as error:
                    raise TypeError(f"{cls.__name__} needs its field {error.args[0]}") from None

            # For those who make thousands: a third of the time, no Python being run.  The number is not checked.
            _make = classmethod(tuple.__new__)

            def _replace(self, **changes):
                return type(self)(**{**self._asdict(), **changes})

            def _asdict(self):
                return dict(zip(self._fields, self, strict=True))

            def __getnewargs__(self):
                return tuple(self)

            def __repr__(self):
                facts = ", ".join(f"{field}={value!r}" for field, value in self._asdict().items())
                return f"{type(self).__name__}({facts})"
