# SPDX-License-Identifier: Apache-2.0
"""Which call a stop has ended, on aarch64 and armv7: what proves it, by registers as kernels show them; on any machine.
What kernels do is shown by the workload sys_in_turn."""

import struct
from importlib import import_module
from typing import Any

import pytest

from torpor.arch.base import EINTR, Arch, Registers
from torpor.engine import entered
from torpor.kernel.inside import RUNNING, UNSEEN, SeenCall

ARM: Arch = import_module("torpor.arch.arm").ARCH
AARCH64: Arch = import_module("torpor.arch.aarch64").ARCH
PC, SP, FIRST, OTHER = 0x10000, 0x7000F000, 7, 8
LIBRARY = 1 << 31 | 1 << 32  # signals 32 and 33
ARGS = (0x2000, 1, 0, 0, 0)


class Thread:
    """A stopped thread, of which the kernel keeps that it was entered with `kept`."""

    tid = 1

    def __init__(self, arch: Arch, kept: int, caught: int, stack: bytes = b"") -> None:
        self.arch, self.kept, self._caught, self.stack = arch, kept, caught, stack
        self.number = -1

    def caught(self) -> int:
        return self._caught

    def code(self, address: int, length: int) -> bytes:
        start = address - (SP - len(self.stack))
        return self.stack[start : start + length] if start >= 0 and start + length <= len(self.stack) else b""

    def general(self, call: str, result: int = -EINTR) -> bytes:
        nr = self.arch.SYSCALLS[call]
        if self.arch is ARM:
            words = [result & 0xFFFFFFFF, *ARGS, 0, nr, *[0] * 10]
            words[13], words[15], words[16], words[17] = SP, PC, 0x10, self.kept
            return struct.pack("<18I", *words)
        words = [result & (1 << 64) - 1, *ARGS, 0, 0, nr, *[0] * 25]
        words[31], words[32] = SP, PC
        return struct.pack("<34Q", *words)


def prove(monkeypatch: pytest.MonkeyPatch, thread: Any, before: SeenCall, call: str = "recvfrom") -> SeenCall:
    def set_regset(_tid: int, which: int, data: bytes) -> None:
        assert which == 0x404
        thread.number = struct.unpack("=i", data)[0]

    def seen_call(_tid: int) -> SeenCall:
        return SeenCall(thread.number, (thread.kept, *ARGS), SP, PC)

    monkeypatch.setattr(entered.ptrace, "get_regset", lambda *_: struct.pack("=i", thread.number))
    monkeypatch.setattr(entered.ptrace, "set_regset", set_regset)
    monkeypatch.setattr(entered, "seen_call", seen_call)
    general = thread.general(call)
    found = entered.prove(thread, general, before)
    assert thread.number == -1, "the kernel believes that it is in a call"
    assert found.proven == (thread.arch.again(general, {}, found) is not None)
    return found


def seen(arch: Arch, first: int, call: str = "recvfrom") -> SeenCall:
    return SeenCall(arch.SYSCALLS[call], (first, *ARGS), SP, PC)


@pytest.mark.parametrize("arch", [ARM, AARCH64], ids=["arm", "aarch64"])
@pytest.mark.parametrize("first", [FIRST, OTHER], ids=["seen_in_it", "seen_in_the_one_before"])
def test_the_call_is_the_one_that_the_kernel_keeps(monkeypatch: pytest.MonkeyPatch, arch: Arch, first: int) -> None:
    thread = Thread(arch, FIRST, LIBRARY)
    found = prove(monkeypatch, thread, seen(arch, first))
    assert found == seen(arch, FIRST)._replace(proven=True)
    assert prove(monkeypatch, thread, found) == found
    again = arch.again(thread.general("recvfrom"), {}, found)
    assert again is not None and arch.result(again) == FIRST


@pytest.mark.parametrize("arch", [ARM, AARCH64], ids=["arm", "aarch64"])
@pytest.mark.parametrize("before", [UNSEEN, SeenCall(RUNNING)], ids=["unseen", "running"])
def test_where_no_handler_can_have_returned_it_need_not_have_been_seen(
    monkeypatch: pytest.MonkeyPatch, arch: Arch, before: SeenCall
) -> None:
    assert prove(monkeypatch, Thread(arch, FIRST, LIBRARY), before).proven
    assert prove(monkeypatch, Thread(arch, FIRST, LIBRARY | 1 << 13), before) == before


@pytest.mark.parametrize("arch", [ARM, AARCH64], ids=["arm", "aarch64"])
def test_a_handler_may_have_returned_to_the_call(monkeypatch: pytest.MonkeyPatch, arch: Arch) -> None:
    """What the kernel keeps is then what the handler has left."""
    handles = LIBRARY | 1 << 13
    assert not prove(monkeypatch, Thread(arch, 999, handles), seen(arch, FIRST)).proven
    assert not prove(monkeypatch, Thread(arch, FIRST, handles), seen(arch, FIRST)._replace(pc=PC + 4)).proven
    assert prove(monkeypatch, Thread(arch, FIRST, handles), seen(arch, FIRST)).proven


@pytest.mark.parametrize("arch", [ARM, AARCH64], ids=["arm", "aarch64"])
@pytest.mark.parametrize("pc", [PC, PC + 8], ids=["to_here", "elsewhere"])
def test_a_handler_of_the_librarys_has_left_its_frame(monkeypatch: pytest.MonkeyPatch, arch: Arch, pc: int) -> None:
    thread = Thread(arch, 999, LIBRARY)
    sets = {which: bytes(528) for which in arch.regsets} | {0x400: bytes(260)}
    general = arch.with_pc(thread.general("recvfrom"), pc)
    frame, _ = arch.signal_frame(Registers(general, sets), 0, SP - 6144)
    thread.stack = (bytes(2048) + frame).ljust(8192, b"\0")
    assert prove(monkeypatch, thread, UNSEEN).proven == (pc != PC)


@pytest.mark.parametrize("arch", [ARM, AARCH64], ids=["arm", "aarch64"])
def test_calls_that_no_stop_ends_are_not_asked_about(monkeypatch: pytest.MonkeyPatch, arch: Arch) -> None:
    thread = Thread(arch, FIRST, LIBRARY)
    assert arch.may_have_ended(thread.general("recvfrom", 5)) is None
    assert arch.may_have_ended(thread.general("close")) is None
    assert prove(monkeypatch, thread, seen(arch, FIRST, "close"), "close") == seen(arch, FIRST, "close")


MINUS = (1 << 64) - EINTR  # what a kernel shows that does not keep it, or shows it nowhere


def waiting(first: int) -> SeenCall:
    return seen(AARCH64, first, "epoll_pwait")


@pytest.mark.parametrize(
    ("sleeps", "before", "proven"),
    [
        (6, waiting(FIRST)._replace(sleeps=5), True),
        (7, waiting(FIRST)._replace(sleeps=5), False),  # it has slept elsewhere meanwhile
        (6, waiting(FIRST), False),
        (-1, waiting(FIRST)._replace(sleeps=-1), False),  # this kernel does not count
        (9, waiting(FIRST)._replace(sleeps=entered.VOUCHED), True),
        (6, waiting(FIRST)._replace(sleeps=5, sp=SP - 16), False),
        (6, waiting(FIRST)._replace(sleeps=5, args=(FIRST, 1, *ARGS[1:])), False),
        (6, SeenCall(RUNNING)._replace(sleeps=5), False),
        (6, UNSEEN, False),
    ],
    ids=[
        "slept_on",
        "twice",
        "unknown",
        "uncounted",
        "vouched",
        "another_stack",
        "other_arguments",
        "running",
        "unseen",
    ],
)
def test_where_the_kernel_does_not_show_it(
    monkeypatch: pytest.MonkeyPatch, sleeps: int, before: SeenCall, proven: bool
) -> None:
    monkeypatch.setattr(entered, "sleeps", lambda _: sleeps)
    found = prove(monkeypatch, Thread(AARCH64, MINUS, 0), before, "epoll_pwait")
    assert found == (waiting(FIRST)._replace(proven=True) if proven else before)
    # Of a socket it is not made again all the same: it might be another one's.
    of_a_socket = before._replace(number=AARCH64.SYSCALLS["recvfrom"])
    assert prove(monkeypatch, Thread(AARCH64, MINUS, 0), of_a_socket) == of_a_socket


def test_what_is_noted_before_the_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sleeps are counted before the look that counts, and where they may be asked for."""
    looks: list[str] = []

    def look(_tid: int) -> SeenCall:
        looks.append("look")
        return seen(AARCH64, FIRST, call)

    def count(_tid: int) -> int:
        looks.append("count")
        return 5

    monkeypatch.setattr(entered, "seen_call", look)
    monkeypatch.setattr(entered, "sleeps", count)
    call = "close"
    assert (entered.note(AARCH64, 1).sleeps, looks) == (-1, ["look"])
    call = "recvfrom"
    assert (entered.note(ARM, 1).sleeps, looks) == (-1, ["look"] * 2)
    del looks[:]
    noted = entered.note(AARCH64, 1)
    assert (noted, looks) == (seen(AARCH64, FIRST)._replace(sleeps=5), ["look", "count", "look"])
    monkeypatch.setattr(entered, "sleeps", lambda _: 6)
    assert entered.vouched(noted, 1).sleeps == entered.VOUCHED
    monkeypatch.setattr(entered, "sleeps", lambda _: 7)
    assert entered.vouched(noted, 1) == noted
