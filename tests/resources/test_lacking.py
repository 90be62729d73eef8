# SPDX-License-Identifier: Apache-2.0
"""What images have and this kernel lacks is refused by the checks, in words (the guests' newer.py has real kernels)."""

import ctypes
import errno
import socket

import pytest
from attributekit import be, restore, task, thread

from torpor.arch import native
from torpor.arch.base import ERESTARTSYS, Call, Registers
from torpor.engine.program import Program
from torpor.errors import Refusal
from torpor.images.schema.rseq import RseqEntry
from torpor.images.schema.torpor import TaskExtraEntry
from torpor.images.schema.torpor_file import TorporFileEntry
from torpor.kernel.procfs import read_all
from torpor.resources import inet_options, lacking, switches, threads

PR_SET_NAME = 15


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    be(monkeypatch)


def test_calls_that_change_a_process_are_tried_elsewhere() -> None:
    tried = restore()
    assert lacking.error_of(tried, "madvise", 0, 0, 4000) == errno.EINVAL
    assert lacking.error_in_child(tried, "exit_group", 1) == -1
    assert lacking.error_in_child(tried, "dup3", 1, 1, 0) == errno.EINVAL
    name = ctypes.create_string_buffer(b"another", 16)
    before = read_all("/proc/self/comm")
    assert lacking.error_in_child(tried, "prctl", PR_SET_NAME, ctypes.addressof(name)) == 0
    assert read_all("/proc/self/comm") == before


def test_a_setting_that_cannot_be_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked = task(), restore()
    found: list[Refusal] = []
    monkeypatch.setattr(asked, "problem", found.append, raising=False)
    made.extras.process = TaskExtraEntry(mdwe=1 << 20)
    asked.state["extras"] = {made.pid: made.extras}
    switches.Switches().check(made, asked)
    assert [one.code for one in found] == ["needs-kernel"]
    assert "PR_SET_MDWE" in str(found[0])


@pytest.mark.parametrize(
    ("wanted", "ours", "refused"),
    [(5, 2, True), (9, 2, True), (3, 2, False), (5, 0, False), (5, 4, False), (5, 3, False)],
)
def test_speculation_that_nobody_can_turn_off_here(
    monkeypatch: pytest.MonkeyPatch, wanted: int, ours: int, refused: bool
) -> None:
    """Bits of PR_GET_SPECULATION_CTRL: 1, each may choose; 2, on; 4, off; 8, off for good.  0: there is no need."""
    made, asked, program = task(), restore(), Program()
    found: list[Refusal] = []
    monkeypatch.setattr(asked, "problem", found.append, raising=False)
    monkeypatch.setattr(switches, "own_speculation", lambda which: ours)
    made.extras.process = TaskExtraEntry(store_bypass=wanted)
    asked.state["extras"] = {made.pid: made.extras}
    switches.Switches().check(made, asked)
    assert bool(found) == refused
    switches.Switches().place(made, program)
    assert len(program) == (ours & 1)


@pytest.mark.parametrize("size", [20, 33])
def test_an_area_for_rseq_of_a_size_that_no_kernel_takes(size: int) -> None:
    made = task()
    asked = restore()
    asked.state["rseq kept"] = threads.RSEQ_KEPT if size > threads.RSEQ_SIZE else 28
    thread(made).rseq_entry = RseqEntry(rseq_abi_pointer=4096, rseq_abi_size=size, signature=1)
    with pytest.raises(Refusal, match=rf"an area of {size} bytes for rseq\(2\)"):
        threads.Rseq().check(made, asked)
    thread(made).rseq_entry = RseqEntry(rseq_abi_pointer=4096, rseq_abi_size=threads.RSEQ_SIZE, signature=1)
    threads.Rseq().check(made, asked)


def test_options_of_internet_sockets() -> None:
    assert inet_options.lacks(socket.AF_INET, socket.SOCK_STREAM, TorporFileEntry(id=1)) == ""
    own = TorporFileEntry(id=1, congestion="none such")
    assert inet_options.lacks(socket.AF_INET, socket.SOCK_STREAM, own) == "its congestion control is none such"


def test_a_call_that_this_kernel_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked, arch = task(), restore(), native()
    found: list[Refusal] = []
    monkeypatch.setattr(asked, "problem", found.append, raising=False)
    monkeypatch.setattr(lacking, "NEW_CALLS", ("futex_wait",))
    monkeypatch.setattr(lacking, "error_of", lambda *_: errno.ENOSYS)
    waits, _ = arch.inside_call(bytes(27 * 8), Call(arch.SYSCALLS["futex_wait"], [0] * 6), ERESTARTSYS)
    elsewhere, _ = arch.inside_call(bytes(27 * 8), Call(arch.SYSCALLS["read"], [0] * 6), ERESTARTSYS)
    lacking.check_calls(asked, made, {made.pid: Registers(elsewhere, {})})
    assert not found
    lacking.check_calls(asked, made, {made.pid: Registers(waits, {})})
    assert "waits in the system call futex_wait" in str(found[0])
