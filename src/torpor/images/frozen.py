# SPDX-License-Identifier: Apache-2.0
"""Messages that cannot be changed: the decoder gives out one message for all that are alike (decoder.py), a dump makes
one for what a thousand threads have in common, and whoever changed one would change all of them.

A frozen message is of a subclass of its class, made when it is first needed, which refuses to set a field; its lists
refuse, too.  So building and reading messages costs what it did.  Copies (`copy`, `deepcopy`) can be changed.
It also remembers how it is encoded, as this cannot change either.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, NoReturn

    from torpor.images.message import Message


def _refuse(self: Any, *_: Any, **__: Any) -> NoReturn:
    raise TypeError("a message from an image that is shared with others cannot be changed; change a copy of it")


class FrozenList(list):  # type: ignore[type-arg]
    """A list in such a message."""

    __slots__ = ()
    append = extend = insert = pop = remove = clear = sort = reverse = _refuse
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse

    def __reduce_ex__(self, _: Any) -> Any:
        return list, (list(self),)


_EMPTY: Final = FrozenList()
_ENCODED: Final = ""  # what a frozen message keeps its bytes under, among its fields


def freeze(message: Message) -> None:
    """Freeze a message and all that is in it."""
    cls: Any = type(message)
    frozen = cls._frozen or _make(cls)
    if cls is frozen:
        return
    values = message.__dict__
    for name in cls._lists:
        items = values[name]
        if frozen._messages and name in frozen._messages:
            for item in items:
                freeze(item)
        values[name] = FrozenList(items) if items else _EMPTY
    for name in frozen._message:
        if (inner := values.get(name)) is not None:
            freeze(inner)
    message.__class__ = frozen


def _make(cls: Any) -> Any:
    fields = [field for field in cls._fields.values() if field.is_message]

    def encode(self: Any) -> bytes:
        values = self.__dict__
        if _ENCODED not in values:
            values[_ENCODED] = cls.encode(self)
        data: bytes = values[_ENCODED]
        return data

    def __reduce_ex__(self: Any, _: Any) -> Any:
        # Lists of their own already here: deepcopy() copies a list that two fields share, as empty ones do, only once.
        values = {name: [*value] if type(value) is FrozenList else value for name, value in self.__dict__.items()}
        values.pop(_ENCODED, None)
        return _thaw, (cls, values)

    more = {
        "__slots__": (), "encode": encode,
        "__setattr__": _refuse, "__delattr__": _refuse, "__reduce_ex__": __reduce_ex__,
        "__qualname__": cls.__qualname__, "__module__": cls.__module__,
        "_message": [field.name for field in fields if field.label != "repeated"],
        "_messages": [field.name for field in fields if field.label == "repeated"],
    }  # fmt: skip
    cls._frozen = type(cls)(cls.__name__, (cls,), more, frozen=True)
    return cls._frozen


def _thaw(cls: Any, values: dict[str, Any]) -> Any:
    return cls(**values)
