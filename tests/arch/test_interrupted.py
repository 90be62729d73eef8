# SPDX-License-Identifier: Apache-2.0
"""What an image has of an interrupted call, and what the kernel is shown of it after a restore, is what the kernel had
shown; on any machine.  What kernels make of that is shown by the workload sys_caught."""

import struct
from importlib import import_module
from typing import cast

import pytest

from torpor.arch import MODULES, interrupted
from torpor.arch.base import EINTR, ERESTART_RESTARTBLOCK, ERESTARTNOHAND, ERESTARTSYS, RESTARTED, Arch, Call
from torpor.arch.s390x import NT_S390_SYSTEM_CALL
from torpor.engine import reenter
from torpor.engine.tracee import Tracee
from torpor.kernel.inside import UNSEEN, SeenCall

ARCHES: dict[str, Arch] = {name: import_module(f"torpor.arch.{name}").ARCH for name in sorted(set(MODULES.values()))}
PC, FIRST, SECOND = 0x1000, 77, 88


def words(code: str, known: dict[int, int]) -> bytes:
    layout = struct.Struct(code)
    return layout.pack(*(known.get(i, 1000 + i) for i in range(layout.size // struct.calcsize(code[0] + code[-1]))))


def about_to_call(name: str, nr: int) -> tuple[bytes, bytes]:
    """Registers of a thread that is about to make a call, and the instruction that makes it."""
    return {
        "x86_64": lambda: (words("<27Q", {10: nr, 13: SECOND, 14: FIRST, 15: (1 << 64) - 1, 16: PC}), b"\x0f\x05HH"),
        "aarch64": lambda: (words("<34Q", {0: FIRST, 1: SECOND, 8: nr, 32: PC}), b"\x01\x00\x00\xd4"),
        "arm": lambda: (words("<18I", {0: FIRST, 1: SECOND, 7: nr, 15: PC, 16: 0x30, 17: FIRST}), b"\x00\xdf\x00\xbf"),
        "ppc64le": lambda: (words("<48Q", {0: nr, 3: FIRST, 4: SECOND, 32: PC, 38: 1 << 28, 40: 0, 43: 0}),
                            b"\x02\x00\x00\x44"),
        "s390x": lambda: (words(">18Q", {1: PC, 3: nr, 4: FIRST, 5: SECOND}) + bytes(64) + struct.pack(">Q", FIRST),
                          b"\x0a\x00\x07\xf4"),
    }[name]()  # fmt: skip


@pytest.mark.parametrize("name", ARCHES)
@pytest.mark.parametrize("how", RESTARTED)
def test_there_and_back(name: str, how: int) -> None:
    arch = ARCHES[name]
    nr = arch.SYSCALLS["read"]
    general, code = about_to_call(name, nr)
    call = arch.call_at(general, code)
    assert call is not None and (call.nr, *call.args[:2]) == (nr, FIRST, SECOND)
    inside, more = arch.inside_call(general, call, how)
    assert arch.pc(inside) == PC + {"x86_64": 2, "arm": 2, "s390x": 2}.get(name, 4)
    assert arch.result(inside) == -how
    if not arch.images_tell:  # the kernel rewinds it itself
        before = arch.before_call(general, call)
        assert before is not None and arch.pc(before) == PC
        return
    assert arch.before_call(general, call) is None
    settled = arch.settled(inside, more, UNSEEN)
    if name == "x86_64":  # orig_rax has it in the image
        settled = settled[: 8 * 15] + general[8 * 15 : 8 * 16] + settled[8 * 16 :]
    else:
        assert arch.interruption(inside, more, UNSEEN) == (how, call.word)
    if name == "ppc64le":
        settled = settled[: 8 * 34] + general[8 * 34 : 8 * 35] + settled[8 * 35 :]  # orig_gpr3
    assert settled == general


@pytest.mark.parametrize("name", ARCHES)
def test_other_instructions_make_no_calls(name: str) -> None:
    general, code = about_to_call(name, 0)
    assert ARCHES[name].call_at(general, code[::-1]) is None
    assert ARCHES[name].call_at(general, b"") is None


@pytest.mark.parametrize("name", ["ppc64le", "s390x"])
def test_the_kernels_word_is_kept(name: str) -> None:
    general, _ = about_to_call(name, 3)
    code, word = {"ppc64le": (b"\x01\x00\x00\x44", 0x3000), "s390x": (b"\x0a\x5a\x00\x00", 2 << 16 | 90)}[name]
    call = ARCHES[name].call_at(general, code)
    assert call is not None and call.word == word
    inside, more = ARCHES[name].inside_call(general, call, ERESTARTSYS)
    assert ARCHES[name].interruption(inside, more, UNSEEN) == (ERESTARTSYS, word)


@pytest.mark.parametrize(("code", "failed"), [(b"\x02\x00\x00\x44", 4), (b"\x01\x00\x00\x44", (1 << 64) - 4)])
@pytest.mark.parametrize(
    ("call", "made_again"),
    [("poll", True), ("epoll_wait", True), ("recvfrom", True), ("nanosleep", False), ("pause", False)],
)
def test_calls_that_have_ended_in_images_of_criu(call: str, made_again: bool, code: bytes, failed: int) -> None:
    """Those of ppc64le hold all of a call that has failed with EINTR but how it was entered."""
    arch = ARCHES["ppc64le"]
    nr = arch.SYSCALLS[call]
    ended = words(
        "<48Q", {0: nr, 3: failed, 4: SECOND, 32: PC + 4, 34: FIRST, 38: 1 << 28 if failed == 4 else 0, 40: 0}
    )
    again = arch.ended_call(ended, code)
    if not made_again:
        assert again is None
        return
    assert again is not None and arch.pc(again) == PC
    made = arch.call_at(again, code)
    assert made is not None and (made.nr, *made.args[:2]) == (nr, FIRST, SECOND)
    assert interrupted.how(arch, made) in (ERESTARTNOHAND, ERESTARTSYS)
    for other in (code[::-1], b""):
        assert arch.ended_call(ended, other) is None
    succeeded = words("<48Q", {0: nr, 3: 1, 34: FIRST, 38: 1 << 28 if failed == 4 else 0, 40: 0})
    assert arch.ended_call(succeeded, code) is None


class Thread:
    """What reenter.find wants of one."""

    arch = ARCHES["ppc64le"]
    pid = 0

    def __init__(self, waiting: int) -> None:
        self.awaiting = lambda: waiting

    def code(self, address: int, length: int) -> bytes:
        return b"\x01\x00\x00\x44" if address == PC else b""

    read = code


@pytest.mark.parametrize(
    ("mask", "waiting", "made_again"), [(0, 0, True), (0x7000, 0, False), (0, 1 << 9, True), (0x7000, 1 << 9, True)]
)
def test_calls_that_let_signals_in_may_be_over(mask: int, waiting: int, made_again: bool) -> None:
    arch = ARCHES["ppc64le"]
    ended = words("<48Q", {0: arch.SYSCALLS["epoll_pwait"], 3: (1 << 64) - 4, 7: mask, 32: PC + 4, 34: FIRST})
    found = reenter.find(cast(Tracee, Thread(waiting)), ended, None, exact=False)
    assert (found is not None) == made_again
    if found is not None:
        assert (arch.pc(found.general), found.how, found.call.args[0]) == (PC, ERESTARTNOHAND, FIRST)
    assert reenter.find(cast(Tracee, Thread(waiting)), ended, None, exact=True) is None


@pytest.mark.parametrize("name", sorted(set(ARCHES) - {"ppc64le"}))
def test_nothing_is_made_again_without_its_arguments(name: str) -> None:
    """x86_64 sees by its registers what to do (test_x86_64_core.py); armv7 has no images of CRIU's."""
    general, code = about_to_call(name, ARCHES[name].SYSCALLS["read"])
    assert ARCHES[name].ended_call(general, code) is None


@pytest.mark.parametrize("name", ARCHES)
@pytest.mark.parametrize(
    ("call", "args", "expected"),
    [
        ("read", (), ERESTARTSYS), ("wait4", (), ERESTARTSYS), ("ppoll", (), ERESTARTNOHAND),
        ("nanosleep", (), ERESTARTNOHAND), ("semtimedop", (), ERESTARTNOHAND),
        ("futex", (0, 128, 0, 0), ERESTARTSYS), ("futex", (0, 128, 0, 1), ERESTARTNOHAND),
        ("futex", (0, 129, 0, 0), 0), ("getpid", (), 0), ("mmap", (), 0), ("clone", (), 0), ("exit", (), 0),
    ],
)  # fmt: skip
def test_how_calls_are_interrupted(name: str, call: str, args: tuple[int, ...], expected: int) -> None:
    arch = ARCHES[name]
    assert interrupted.how(arch, Call(arch.SYSCALLS[call], args or (0,) * 6)) == expected


def test_by_way_of_another_call() -> None:
    arch = ARCHES["s390x"]
    ipc, socketcall = arch.SYSCALLS["ipc"], arch.SYSCALLS["socketcall"]
    assert interrupted.how(arch, Call(ipc, (1, 0))) == ERESTARTNOHAND  # SEMOP
    assert interrupted.how(arch, Call(ipc, (2, 0))) == 0  # SEMGET
    assert arch.ends_by_a_stop(ipc, 4) and not arch.ends_by_a_stop(ipc, 11)  # SEMTIMEDOP, MSGSND
    assert arch.ends_by_a_stop(socketcall, 10) and not arch.ends_by_a_stop(socketcall, 3)  # recv, connect


ADDRESS, LIMIT, BITSET = 0x5000, 0x6000, 0xFFFFFFFF
UNTIL = (ADDRESS, 0x189, 1, LIMIT, 0, BITSET)  # the arguments of a futex that is waited for until a point in time


def moves(name: str, nr: int) -> bytes:
    """Instructions before the next one that load the number of a call, and on x86_64 and s390x make it."""
    return {"x86_64": b"\x90\xb8" + nr.to_bytes(4, "little") + b"\x0f\x05",
            "aarch64": struct.pack("<3I", 0xD2800008 | nr << 5, 0xAA0203E3, 0x93407C21),
            "s390x": bytes((0x0A, nr & 0xFF))}[name]  # fmt: skip


def continued(name: str, args: tuple[int, ...]) -> tuple[bytes, dict[int, bytes], SeenCall]:
    """What a thread shows whose call the kernel has continued by restart_syscall when it is interrupted again:
    registers, register sets, and the call that it was seen in before that."""
    restart = ARCHES[name].SYSCALLS["restart_syscall"]
    ended = (1 << 64) - ERESTART_RESTARTBLOCK
    if name == "x86_64":
        known = {10: ended, 15: restart, 16: PC} | dict(zip((14, 13, 12, 7, 9, 8), args, strict=True))
        return words("<27Q", known), {}, UNSEEN
    if name == "aarch64":
        known = {8: restart, 32: PC} | dict(enumerate(args))
        return words("<34Q", known), {}, SeenCall(restart, args, 0, PC + 4)
    general = words(">18Q", {1: PC, 4: ended} | dict(enumerate(args[1:], 5))) + bytes(64) + struct.pack(">Q", args[0])
    return general, {NT_S390_SYSTEM_CALL: struct.pack(">I", 2 << 16 | restart)}, UNSEEN


def found_number(name: str, args: tuple[int, ...], code: bytes, nanoseconds: int = 5) -> int:
    """Which call such a thread is said to be in, with memory in two pages and `code` before its next instruction."""
    arch = ARCHES[name]
    general, specials, before = continued(name, args)
    memory = struct.pack(arch.word[0] + "2q", 1, nanoseconds)

    def read(address: int, length: int) -> bytes:
        if PC - 64 <= address < PC:
            return code[-length:]
        if address >> 12 not in (ADDRESS >> 12, LIMIT >> 12):
            return b""
        return memory[:length] if address == LIMIT else bytes(length)

    general, specials, before = arch.first_interrupted(general, specials, before, read)
    if name == "x86_64":
        return int.from_bytes(general[8 * 15 : 8 * 16], "little")
    if name == "s390x":
        return int.from_bytes(specials[NT_S390_SYSTEM_CALL][2:], "big")
    assert before.number == int.from_bytes(general[8 * 8 : 8 * 9], "little")
    return before.number


@pytest.mark.parametrize("name", ["x86_64", "aarch64", "s390x"])
def test_a_continued_call_gets_its_number_back(name: str) -> None:
    futex, restart = (ARCHES[name].SYSCALLS[call] for call in ("futex", "restart_syscall"))
    assert found_number(name, UNTIL, moves(name, futex)) == futex
    assert found_number(name, UNTIL, b"") == (futex if name == "aarch64" else restart)


@pytest.mark.parametrize("nr", [3, 7, 57, 73, 98, 202])
@pytest.mark.parametrize(
    "args",
    [(ADDRESS, LIMIT, 0, LIMIT, 0, BITSET), (ADDRESS, 0, 0, 0, 0, 0),  # nanosleep
     (0, 0, LIMIT, LIMIT, 0, BITSET), (1, 0, LIMIT, 0, 0, 0),  # clock_nanosleep
     (ADDRESS, 0x80, 1, LIMIT, 0, BITSET)],  # a futex for a while
)  # fmt: skip
@pytest.mark.parametrize("name", ["x86_64", "aarch64"])
def test_no_other_call_is_made(name: str, args: tuple[int, ...], nr: int) -> None:
    """Whatever number the instructions in front of the call load: it may have been jumped to."""
    arch = ARCHES[name]
    assert found_number(name, args, moves(name, nr)) == arch.SYSCALLS["restart_syscall"]
    general, specials, before = continued(name, args)
    assert arch.result(settled := arch.settled(general, specials, before)) == -EINTR
    assert arch.pc(settled) == PC + (4 if name == "aarch64" else 0)


@pytest.mark.parametrize(
    ("args", "again"),
    [
        ((ADDRESS, 1, 600000, 0, 0, 0), True), ((0, 0, 600000, 0, 0, 0), True),
        ((ADDRESS, 9, BITSET, LIMIT, 0, 0), True),
        ((ADDRESS, 0, 600000, 0, 0, 0), False),  # may be a nanosleep
        ((0x7000, 1, 600000, 0, 0, 0), False),  # no array
        (UNTIL, False),
    ],
)  # fmt: skip
def test_poll_is_told_by_its_arguments(args: tuple[int, ...], again: bool) -> None:
    poll, restart = (ARCHES["x86_64"].SYSCALLS[call] for call in ("poll", "restart_syscall"))
    assert found_number("x86_64", args, moves("x86_64", poll)) == (poll if again else restart)


@pytest.mark.parametrize("name", ["x86_64", "aarch64", "s390x"])
@pytest.mark.parametrize("args", [(ADDRESS, 0x189, 1, 0, 0, BITSET), (ADDRESS + 1, *UNTIL[1:]), (*UNTIL[:5], 0)])
def test_a_futex_has_to_be_one(name: str, args: tuple[int, ...]) -> None:
    futex, restart = (ARCHES[name].SYSCALLS[call] for call in ("futex", "restart_syscall"))
    assert found_number(name, args, moves(name, futex)) == restart
    assert found_number(name, UNTIL, moves(name, futex), 1000000000) == restart


@pytest.mark.parametrize(
    ("trap", "r3", "expected"),
    [(0xC00, ERESTARTSYS, (ERESTARTSYS, 0xC00)), (0x3000, -ERESTARTSYS, (ERESTARTSYS, 0x3000)),
     (0xC00, EINTR, None), (0x3000, -EINTR, (0, 0x3000)), (0x3001, 5, (0, 0x3000)), (0x900, 5, None)],
)  # fmt: skip
def test_calls_by_scv_are_told(trap: int, r3: int, expected: tuple[int, int] | None) -> None:
    """Those that are not made again, too: the thread will make more of them."""
    general = words("<48Q", {0: ARCHES["ppc64le"].SYSCALLS["pause"], 3: r3 & (1 << 64) - 1, 38: 1 << 28, 40: trap})
    assert ARCHES["ppc64le"].interruption(general, {}, UNSEEN) == expected


@pytest.mark.parametrize("has", [False, True])
def test_a_cpu_without_scv(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    monkeypatch.setattr("torpor.arch.ppc64le._has_scv", lambda: has)
    assert ARCHES["ppc64le"].lacks_entry(0x3000) == ("" if has else "scv")
    assert not ARCHES["ppc64le"].lacks_entry(0xC00) and not ARCHES["s390x"].lacks_entry(0x3000)
