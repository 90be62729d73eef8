# SPDX-License-Identifier: Apache-2.0
"""The message codec: the bytes that protocol buffers prescribe, and nothing but ImageError for all others."""

import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imagekit import all_messages, messages

from torpor.errors import ImageError
from torpor.images.message import BYTES, FIXED64, INT32, SINT64, STRING, UINT32, Message, optional, repeated, required
from torpor.images.schema.apparmor import AaNamespace, AaPolicy
from torpor.images.schema.fdinfo import FileEntry
from torpor.images.schema.fown import FownEntry
from torpor.images.schema.mm import MmEntry
from torpor.images.schema.pstree import PstreeEntry
from torpor.images.schema.regfile import RegFileEntry
from torpor.images.schema.rpc import CriuOpts
from torpor.images.schema.vma import VmaEntry


class Sample(Message):
    last: int | None = optional(20, INT32, default=None)
    number: int = required(1, UINT32)
    signed: int | None = optional(2, SINT64, default=None)
    words: list[int] = repeated(3, UINT32, default_factory=list)
    fixed: list[int] = repeated(4, FIXED64, default_factory=list)
    text: str | None = optional(5, STRING, default=None)
    raw: list[bytes] = repeated(6, BYTES, default_factory=list)


@pytest.mark.parametrize(
    ("message", "encoded"),
    [
        (Sample(number=0), "0800"),
        (Sample(number=300), "08ac02"),
        (Sample(number=2**32 - 1), "08ffffffff0f"),
        (Sample(number=1, signed=-1), "08011001"),
        (Sample(number=1, signed=-(2**63)), "080110ffffffffffffffffff01"),
        (Sample(number=1, last=-1), "0801a001ffffffffffffffffff01"),
        (Sample(number=1, words=[1, 300]), "0801180118ac02"),
        (Sample(number=1, fixed=[5]), "0801210500000000000000"),
        (Sample(number=1, text="é"), "08012a02c3a9"),
        (Sample(number=1, text="\udcff"), "08012a01ff"),
        (Sample(number=1, raw=[b"", b"x"]), "0801320032" + "0178"),
        (Sample(last=1, number=2, words=[3]), "08021803a00101"),
    ],
)
def test_bytes(message: Sample, encoded: str) -> None:
    assert message.encode().hex() == encoded
    assert Sample.decode(bytes.fromhex(encoded)) == message


def test_packed_is_read() -> None:
    assert Sample.decode(bytes.fromhex("08011a0301ac02")).words == [1, 300]
    assert Sample.decode(bytes.fromhex("0801" + "2210" + "0500000000000000" + "0600000000000000")).fixed == [5, 6]


def test_unknown_fields_are_skipped() -> None:
    unknown = "c80105" + "ca0103616263" + "c9010000000000000000" + "cd0100000000"
    assert Sample.decode(bytes.fromhex(unknown + "0807" + unknown)) == Sample(number=7)


@pytest.mark.parametrize(
    "encoded",
    [
        "",  # a required field is missing
        "08",  # ends after a tag
        "0880",  # ends in a number
        "08" + "80" * 10 + "01",  # eleven bytes
        "08012a05616263",  # a length beyond the end
        "08012affffffffffffffffff01",
        "080121000000",  # half a fixed64
        "0801220500000000",  # packed fixed64 of no whole number
        "08011a0180",  # packed varints that end in the middle
        "0901",  # a wrong wire type
        "08010b",  # groups
        "080100",  # field 0
        "0801cc01",
        "0801ca01ff7f",  # an unknown field beyond the end
    ],
)
def test_mangled(encoded: str) -> None:
    with pytest.raises(ImageError):
        Sample.decode(bytes.fromhex(encoded))


def test_nesting_is_bounded() -> None:
    space = AaNamespace(name="x")
    for _ in range(60):
        space = AaNamespace(name="x", namespaces=[space])
    assert AaNamespace.decode(space.encode()) == space
    for _ in range(10):
        space = AaNamespace(name="x", namespaces=[space])
    with pytest.raises(ImageError, match="deep"):
        AaNamespace.decode(space.encode())


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"number": -1},
        {"number": 2**32},
        {"number": "7"},
        {"number": 1, "signed": 2**63},
        {"number": 1, "last": 1.5},
        {"number": 1, "fixed": [-1]},
        {"number": 1, "text": b"x"},
        {"number": 1, "text": "\ud800"},
        {"number": 1, "raw": 7},
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ImageError):
        Sample(**values).encode()


def test_instances() -> None:
    message = Sample(number=3, words=[1])
    assert message.text is None and message.raw == [] and message.get("number") == 3
    assert Sample(number=1).words is not Sample(number=1).words
    assert message == Sample(number=3, words=[1]) and message != Sample(number=3)
    assert repr(message) == "Sample(number=3, words=[1])"
    with pytest.raises(TypeError, match="numbr"):
        Sample(numbr=3)  # type: ignore[call-arg]


def test_defaults() -> None:
    options = CriuOpts.decode(b"")  # a required field with a default may be missing
    assert options.images_dir_fd == -1 and options.ghost_limit is None
    assert options.get("ghost_limit") == 1048576 and options.get("pre_dump_mode") == 1 and options.get("root") is None


def test_the_schema_is_sound() -> None:
    found = all_messages()
    ours = [cls for cls in found if cls.__module__.endswith((".torpor", ".torpor_cpu", ".torpor_file", ".torpor_host"))]
    assert ours and len(found) - len(ours) == 173  # as many as the format's tables have
    for cls in found:
        numbers = [field.number for field in cls.fields().values()]
        assert len(set(numbers)) == len(numbers) and min(numbers) > 0 and max(numbers) < 1 << 29
        for field in cls.fields().values():
            if "." in field.kind:
                assert isinstance(field.load(), type)


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_round_trip(data: st.DataObject) -> None:
    message = data.draw(messages(data.draw(st.sampled_from(all_messages()))))
    encoded = message.encode()
    again = type(message).decode(encoded)
    assert again == message
    assert again.encode() == encoded


@given(st.sampled_from(all_messages()), st.binary(max_size=200))
@settings(max_examples=1000, deadline=None)
def test_any_bytes_are_a_message_or_an_image_error(cls: type[Message], data: bytes) -> None:
    try:
        message = cls.decode(data)
    except ImageError as error:
        assert str(error)
    else:
        assert cls.decode(message.encode()) == message


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_mutations(data: st.DataObject) -> None:
    message = data.draw(messages(data.draw(st.sampled_from([FileEntry, MmEntry, PstreeEntry, AaPolicy]))))
    encoded = bytearray(message.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(encoded)))
        cut = data.draw(st.integers(0, 3))
        encoded[at : at + cut] = data.draw(st.binary(max_size=4))
    try:
        type(message).decode(encoded)
    except ImageError:
        pass


def test_speed() -> None:
    """Twenty times the figures of an idle machine: this is for what turns quadratic or slow by an order."""
    areas = [
        VmaEntry(start=0x7F0000000000 + at * 8192, end=0x7F0000001000 + at * 8192, pgoff=0, shmid=0, prot=3, flags=0x22,
                 status=0x201, fd=-1, madv=0)
        for at in range(10_000)
    ]  # fmt: skip
    owner = FownEntry(uid=0, euid=0, signum=0, pid_type=0, pid=0)
    files = [
        FileEntry(type=1, id=at, reg=RegFileEntry(id=at, flags=2, pos=0, fown=owner, name=f"/tmp/{at}", mnt_id=-1))
        for at in range(5_000)
    ]
    for messages_, cls in ((areas, VmaEntry), (files, FileEntry)):
        before = time.process_time()
        encoded = [message.encode() for message in messages_]
        between = time.process_time()
        assert [cls.decode(data) for data in encoded] == messages_
        assert between - before < 1 and time.process_time() - between < 2


def test_import_is_cheap() -> None:
    """What a dump imports at once must not bring in the slow modules of the standard library."""
    code = (
        "import sys; before = set(sys.modules); import torpor.images.directory, torpor.images.pages;"
        "import torpor.images.schema.core;"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert not done.stderr
    slow = {"typing", "re", "enum", "dataclasses", "inspect", "logging", "json", "subprocess", "asyncio", "argparse"}
    assert not slow & set(done.stdout.split())
    assert "torpor.images.schema.core_arm" not in done.stdout
