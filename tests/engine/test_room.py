# SPDX-License-Identifier: Apache-2.0
"""Where a stepped call's arguments lie that it takes from memory; guests show it of s390x (cpu_stackless)."""

import errno
import os
from collections.abc import Sequence

import pytest

from torpor.engine import room
from torpor.engine.tracee import Tracee

NR, BLOCK = 90, b"arguments"


class Spinning(Tracee):
    """A thread of ours with a stack pointer of its own choice, in which calls fail where memory cannot be read."""

    def __init__(self, sp: int, readable: Sequence[int]) -> None:
        super().__init__(os.getpid(), os.getpid())
        self._general = bytes(8 * 19) + sp.to_bytes(8, "little") + bytes(8 * 7)  # of x86_64
        self.readable, self.there, self.calls = readable, dict.fromkeys(readable, b"was there"), [0]

    def read(self, address: int, length: int) -> bytes:
        if address == 0:
            raise OSError(errno.EIO, "no memory")
        return self.there.get(address, b"else")

    def write(self, address: int, data: bytes) -> None:
        self.there[address] = data

    def touch(self) -> None:
        pass

    def _step(self, nr: int, args: Sequence[int]) -> int:
        (address,) = args
        assert (nr, self.there[address]) == (NR, BLOCK)
        self.calls.append(address)
        return 7 if address in self.readable else -errno.EFAULT


@pytest.fixture(autouse=True)
def block(monkeypatch: pytest.MonkeyPatch) -> None:
    from torpor.arch import native

    monkeypatch.setattr(native(), "call_block", lambda nr, args: BLOCK, raising=False)


def test_below_the_stack_pointer() -> None:
    thread = Spinning(0x8100, [0x80C0])
    assert thread.step_number(NR, (1, 2)) == 7
    assert thread.there == {0x80C0: b"was there"}


@pytest.mark.parametrize("sp", [0, 0x8100])
def test_elsewhere_where_there_is_nothing(sp: int) -> None:
    with open("/proc/self/maps") as maps:
        (stack,) = [int(line.partition("-")[0], 16) for line in maps if line.endswith("[stack]\n")]
    thread = Spinning(sp, [stack])
    assert next(iter(room.places(thread))) == (0x80C0 if sp else 0)
    assert thread.step_number(NR, (1, 2)) == 7
    assert thread.there[stack] == b"was there" and thread.calls[-1] == stack


def test_nowhere() -> None:
    assert Spinning(0x8100, []).step_number(NR, (1, 2)) == -errno.EFAULT
