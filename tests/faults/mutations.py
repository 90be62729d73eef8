# SPDX-License-Identifier: Apache-2.0
"""Images that somebody has changed: a mutation is four numbers that hypothesis chooses, applied to a checkpoint.

A third of the mutations change bytes; the others decode an image, change its messages (a number, a length, a reference
to something else, a name; entries doubled, lost, three thousand times there; a field more or less) and encode it again,
so that what comes after the decoder sees nonsense, too.
"""

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from torpor.errors import ImageError
from torpor.images.container import encode_entries, parse_image, start_of
from torpor.images.kinds import RAW, kind_of_file
from torpor.images.message import Field, Message

PATIENCE_S = 30.0  # a case takes 20 ms
MANY, LARGE = 3000, 500_000  # times, bytes
BITS = {"bool": 1, "int32": 32, "sint32": 32, "uint32": 32, "int64": 64, "sint64": 64, "uint64": 64, "fixed64": 64}
NAMES = ["", "/", ".", "..", "/proc/self/mem", "a/../../b", "x" + chr(0) + "y", "/dev/mem", "n" * 5000, "%s%n", " "]
NUMBERS = (0, 1, 2, 3, 4095, 4096, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 47, 1 << 63, -1)

Entry = tuple[Message, bytes]


class Mutation(NamedTuple):
    """Which image, where in it, what, and with which value: the numbers are taken modulo what there is."""

    image: int
    where: int
    what: int
    value: int


numbers = st.integers(0, (1 << 64) - 1)
mutations = st.lists(st.builds(Mutation, numbers, numbers, numbers, numbers), min_size=1, max_size=3)


class Site(NamedTuple):
    """A field of a message somewhere in an image; `name` says where."""

    message: Message
    field: Field
    name: str


class Mutator:
    """Changes copies of the images in a directory."""

    def __init__(self, images: Path, target: Path) -> None:
        self.images, self.target = images, target
        shutil.copytree(images, target)
        files = [path for path in sorted(images.iterdir()) if path.is_file() and not path.name.startswith("stats")]
        self.original = {path.name: path.read_bytes() for path in files}
        by_kind: dict[str, list[str]] = {}
        for name in self.original:
            by_kind.setdefault(name.rstrip("0123456789.img-"), []).append(name)
        self.kinds = list(by_kind.values())  # an image of each kind is as likely as one of any other
        self.pool = sorted({value for name in self.original for value in self._references(name)})
        self.changed: dict[str, bytes | None] = {}

    def _references(self, name: str) -> Iterator[int]:
        """Numbers that stand for something: to be taken for others."""
        for site in _sites(self._entries(name, self.original[name]) or []):
            value = getattr(site.message, site.field.name)
            if isinstance(value, int) and ("id" in site.field.name or site.field.name in ("start", "peer")):
                yield value

    # -- a case -------------------------------------------------------------------------------------------------------
    def apply(self, chosen: Sequence[Mutation]) -> str:
        """Write the mutated images; returns what was changed, in words."""
        self.revert()
        told = [self._mutate(mutation) for mutation in chosen]
        for name, data in self.changed.items():
            if data is None:
                (self.target / name).unlink(missing_ok=True)
            else:
                (self.target / name).write_bytes(data)
        return "; ".join(told)

    def revert(self) -> None:
        for name in self.changed:
            (self.target / name).write_bytes(self.original[name])
        self.changed = {}

    def _mutate(self, mutation: Mutation) -> str:
        names = self.kinds[mutation.image % len(self.kinds)]
        name = names[(mutation.image >> 32) % len(names)]
        data = self.changed.get(name, self.original[name])
        if data is None:
            return f"{name} is gone"
        dice = random.Random(mutation.value)
        what = mutation.what % 16
        if what == 0:
            self.changed[name] = None
            return f"{name} is gone"
        if what == 1:
            other = dice.choice(dice.choice(self.kinds))
            self.changed[name] = self.original[other]
            return f"{name} is a copy of {other}"
        entries = self._entries(name, data) if what > 5 else None
        if not entries:
            told, self.changed[name] = _change_bytes(data, mutation.where, mutation.what >> 4, dice)
        else:
            told = self._change_entries(entries, mutation.where, mutation.what >> 4, dice)
            self.changed[name] = _encoded(name, entries)
        return f"{name}: {told}"

    def _entries(self, name: str, data: bytes) -> list[Entry] | None:
        known = kind_of_file(name)
        if known is None or known[0].shape == RAW:
            return None
        try:
            return deepcopy(list(parse_image(known[0], data, name)))  # messages that are alike are shared
        except ImageError:
            return None

    # -- messages -----------------------------------------------------------------------------------------------------
    def _change_entries(self, entries: list[Entry], where: int, what: int, dice: random.Random) -> str:
        if what % 8 == 0:
            at = where % len(entries)
            told, entries[:] = _change_list(entries, at, dice)
            return f"entry {at} {told}"
        sites = list(_sites(entries))
        return self._change(sites[where % len(sites)], dice)

    def _change(self, site: Site, dice: random.Random) -> str:
        message, field, name = site
        value = getattr(message, field.name)
        if field.label == "repeated":
            if not value:
                value.append(self._other(field, None, dice))
            at = dice.randrange(len(value))
            if not isinstance(value[at], Message) and dice.random() < 0.5:
                value[at] = self._other(field, value[at], dice)
                return f"{name}[{at}] = {_short(value[at])}"
            told, changed = _change_list(value, at, dice)
            setattr(message, field.name, changed)
            return f"{name}[{at}] {told}"
        if value is not None and field.label == "optional" and dice.random() < 0.2:
            setattr(message, field.name, None)
            return f"{name} is not set"
        new = self._other(field, value, dice)
        setattr(message, field.name, new)
        return f"{name} = {_short(new)}, was {_short(value)}"

    def _other(self, field: Field, value: Any, dice: random.Random) -> Any:
        """A value that a field of this type can have."""
        if field.is_message:
            return _empty(field.load())
        kind = "int32" if field.is_enum else field.kind
        if kind == "bytes":
            return dice.choice([b"", dice.randbytes(dice.randrange(300)), (value or b"")[:-1], (value or b"") * 3])
        if kind == "string":
            text = value or ""
            return dice.choice([*NAMES, text[:-1], text + "x", text + "/" + text, text[::-1]])
        bits, old = BITS[kind], int(value or 0)
        new = dice.choice([
            dice.choice(NUMBERS), old + dice.choice((-4096, -2, -1, 1, 2, 4096)), old ^ 1 << dice.randrange(bits),
            dice.choice(self.pool or [0]), dice.getrandbits(bits), -old,
        ]) & (1 << bits) - 1  # fmt: skip
        return new - (1 << bits) if kind.startswith(("int", "sint")) and new >> bits - 1 else new


def _sites(entries: list[Entry]) -> Iterator[Site]:
    for number, (message, _) in enumerate(entries):
        yield from _fields(message, f"[{number}]")


def _fields(message: Message, name: str) -> Iterator[Site]:
    for field in message.fields().values():
        path = f"{name}.{field.name}"
        yield Site(message, field, path)
        value = getattr(message, field.name)
        if isinstance(value, Message):
            yield from _fields(value, path)
        elif field.is_message and field.label == "repeated":
            for at, one in enumerate(value):
                yield from _fields(one, f"{path}[{at}]")


def _change_list(items: list[Any], at: int, dice: random.Random) -> tuple[str, list[Any]]:
    one = items[at]
    whole, payload = one if isinstance(one, tuple) else (one, None)  # an entry comes with its payload
    size = (len(whole.encode()) if isinstance(whole, Message) else 0) + len(payload or b"") + 1
    many = max(2, min(MANY, LARGE // size)) if len(items) < 1000 else 2
    return dice.choice([
        ("is lost", items[:at] + items[at + 1 :]),
        ("is there twice", [*items[:at], one, *items[at:]]),
        ("is the last", [*items[:at], *items[at + 1 :], one]),
        (f"is there {many} times", items[:at] + [one] * many + items[at:]),
        ("is the only one", [one]),
        ("and all, backwards", items[::-1]),
        ("and all, are lost", []),
    ])  # fmt: skip


def _empty(cls: type[Message]) -> Message:
    values: dict[str, Any] = {}
    for name, field in cls.fields().items():
        if field.label == "required" and field.default is None:
            plain: Any = {"bytes": b"", "string": ""}.get(field.kind, 0)
            values[name] = _empty(field.load()) if field.is_message else plain
    return cls(**values)


def _encoded(name: str, entries: list[Entry]) -> bytes:
    known = kind_of_file(name)
    assert known is not None
    return start_of(known[0]) + b"".join(encode_entries(entries))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:50]}… ({len(text)} characters)"


# -- bytes ------------------------------------------------------------------------------------------------------------


def _change_bytes(data: bytes, where: int, what: int, dice: random.Random) -> tuple[str, bytes]:
    at = where % (len(data) + 1)
    size = min(dice.choice((1, 1, 2, 4, 8, 100)), len(data) - at)
    piece = data[at : at + size]
    other = bytes(byte ^ 1 << dice.randrange(8) for byte in piece)
    large = dice.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, len(data) & 0xFFFFFFFF)).to_bytes(4, "little")
    rest = min(len(data) - at, 10000)
    return [
        (f"{size} bytes at {at} changed", data[:at] + other + data[at + size :]),
        (f"cut off at {at}", data[:at]),
        (f"{size} bytes at {at} lost", data[:at] + data[at + size :]),
        (f"{size} bytes at {at} twice", data[:at] + piece + data[at:]),
        (f"noise of {size} bytes at {at}", data[:at] + dice.randbytes(size) + data[at:]),
        (f"number at {at} is {large.hex()}", data[:at] + large + data[at + 4 :]),
        (f"noise from {at}", data[:at] + dice.randbytes(rest)),
        (f"noise of {size} bytes behind the end", data + dice.randbytes(size)),
    ][what % 8]


@contextmanager
def in_time() -> Iterator[None]:
    """SIGALRM comes where this takes too long; what it does then is the fixture `bounded`'s."""
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def for_each_mutated(mutator: Mutator, count: int, look: Callable[[], None]) -> None:
    """Call `look` for so many mutated checkpoints; others each time where TORPOR_MUTATIONS is set."""

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize="TORPOR_MUTATIONS" not in os.environ,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(mutations)
    def one(chosen: list[Mutation]) -> None:
        told = mutator.apply(chosen)
        try:
            look()
        except BaseException as error:
            error.add_note(f"the mutation: {told}")
            raise

    one()
