# SPDX-License-Identifier: Apache-2.0
"""Messages out of their declarations: hypothesis makes any of them, with any of its fields."""

import importlib
import pkgutil
from functools import cache
from typing import Any

from hypothesis import strategies as st

from torpor.images import schema
from torpor.images.message import Field, Message

NUMBERS = {
    "uint32": st.integers(0, 2**32 - 1),
    "uint64": st.integers(0, 2**64 - 1),
    "fixed64": st.integers(0, 2**64 - 1),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "sint32": st.integers(-(2**31), 2**31 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "sint64": st.integers(-(2**63), 2**63 - 1),
    "bool": st.booleans(),
    "bytes": st.binary(max_size=40),
    # what os.fsdecode gives: any bytes at all but NUL
    "string": st.binary(max_size=40).map(lambda raw: raw.replace(b"\0", b"").decode("utf-8", "surrogateescape")),
}


@cache
def all_messages() -> list[type[Message]]:
    found: list[type[Message]] = []
    for module in pkgutil.iter_modules(schema.__path__):
        namespace = vars(importlib.import_module(f"{schema.__name__}.{module.name}"))
        found += [
            value
            for value in namespace.values()
            if isinstance(value, type) and issubclass(value, Message) and value is not Message
        ]
    return found


def values_of(field: Field, depth: int) -> st.SearchStrategy[Any]:
    if field.is_message:
        return messages(field.load(), depth - 1)
    return NUMBERS["int32" if field.is_enum else field.kind]


@cache
def messages(cls: type[Message], depth: int = 3) -> st.SearchStrategy[Message]:
    """Instances of `cls`; below `depth` only what is required."""
    needed: dict[str, st.SearchStrategy[Any]] = {}
    more: dict[str, st.SearchStrategy[Any]] = {}
    for name, field in cls.fields().items():
        if field.label == "required":
            needed[name] = values_of(field, depth)
        elif depth > 0 or not field.is_message:
            one = values_of(field, depth)
            more[name] = st.lists(one, max_size=3) if field.label == "repeated" else one
    return st.fixed_dictionaries(needed, optional=more).map(lambda values: cls(**values))
