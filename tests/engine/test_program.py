# SPDX-License-Identifier: Apache-2.0
"""Programs as bytes: laid out for one address or for many, and calls that many programs have in common."""

from __future__ import annotations

import struct
from importlib import import_module

import pytest

from torpor.arch import MODULES
from torpor.arch.base import Arch
from torpor.engine.program import CALL_WORDS, LIST_WORDS, Batch, CallFailed, Load32, Program, Stencil, batches

ARCHES: dict[str, Arch] = {name: import_module(f"torpor.arch.{name}").ARCH for name in sorted(set(MODULES.values()))}


def sample() -> Program:
    program = Program()
    text = program.put(b"/etc/hostname\0")
    made = program.call("openat", -100, text, 0, 0)
    vector = program.put(bytes(32), [(0, text), (16, program.space(48) + 8)])
    program.call("readv", made, vector, 2)
    program.call("close", Load32(vector + 4), may_fail=True)
    return program


@pytest.mark.parametrize("name", sorted(ARCHES))
def test_a_stencil_lies_anywhere(name: str) -> None:
    arch = ARCHES[name]
    (batch,) = batches(sample(), arch.word, 4096)
    stencil = Stencil(batch, arch)
    for address in (0, 0x10000, 0x7FFF_F000 if arch.word_size == 4 else 0x7FFF_FFFF_F000):
        assert stencil.encode(address) == batch.encode(address, arch)


def answered(batch: Batch, arch: Arch, values: list[int], data: bytes) -> bytes:
    """What a task makes of a batch in which all data are of one pointer."""
    code, width = arch.word[1], arch.word_size
    body = bytearray(batch.encode(0, arch))
    struct.pack_into(arch.word, body, width, len(batch.calls))
    for i, value in enumerate(values):
        at = (LIST_WORDS + CALL_WORDS * i + CALL_WORDS - 1) * width
        struct.pack_into(f"{arch.word[0]}{code.lower()}", body, at, value)
    ((_, offset),) = batch.pointers.items()
    body[offset : offset + len(data)] = data
    return bytes(body)


def test_programs_that_share_calls_have_answers_of_their_own() -> None:
    arch = ARCHES["x86_64"]
    common = Program()
    space = common.space(16)
    common.call("rt_sigpending", space, 8)
    common.call("rt_sigpending", space + 8, 8)
    first, second = Program(), Program()
    first.call("getpid")
    result = second.call("getuid")
    second.call("dup", result)
    one, other = first.extend(common.calls, space), second.extend(common.calls, space)
    (batch,), (another,) = batches(first, arch.word, 4096), batches(second, arch.word, 4096)
    batch.decode(7, answered(batch, arch, [1, 0, 0], b"a" * 16), arch.word)
    another.decode(8, answered(another, arch, [2, 3, 0, 0], b"b" * 16), arch.word)
    assert (one.data, other.data, space.data) == (b"a" * 16, b"b" * 16, bytes(16))
    assert result.value == 2


def test_shared_calls_may_be_cut_into_several_batches() -> None:
    """As for a task that is stepped, in little room: the second batch must not undo what the first brought back."""
    arch = ARCHES["x86_64"]
    common = Program()
    space = common.space(16)
    for at in (0, 8):
        common.call("rt_sigpending", space + at, 8)
    program = Program()
    own = program.extend(common.calls, space)
    parts = list(batches(program, arch.word, LIST_WORDS * 8 + CALL_WORDS * 8 + 16 + 16))
    assert len(parts) == 2
    parts[0].decode(7, answered(parts[0], arch, [0], b"12345678"), arch.word)
    body = answered(parts[1], arch, [0], b"")
    parts[1].decode(7, body[:-8] + b"abcdefgh", arch.word)
    assert own.data == b"12345678abcdefgh"


@pytest.mark.parametrize(("name", "error", "told"), [("mmap", 12, True), ("mremap", 12, True), ("mmap", 22, False),
                                                     ("openat", 12, False)])  # fmt: skip
def test_who_gets_no_memory_is_told_what_to_do(name: str, error: int, told: bool) -> None:
    arch = ARCHES["x86_64"]
    program = Program()
    program.call(name, program.space(8), 1 << 32, 0, 0)
    (batch,) = batches(program, arch.word, 4096)
    body = bytearray(answered(batch, arch, [-error], bytes(8)))
    struct.pack_into(arch.word, body, arch.word_size, 0)  # so many were made
    with pytest.raises(CallFailed) as failure:
        batch.decode(7, bytes(body), arch.word)
    assert ("vm.overcommit_memory and vm.overcommit_ratio" in str(failure.value)) is told
