# SPDX-License-Identifier: Apache-2.0
"""Attributes of tasks and threads without a kernel: what images say becomes programs, refusals, or complaints."""

import struct
from types import SimpleNamespace

import pytest
from attributekit import ALL, LIMITS, PID, TID, be, calls, credentials, queue, restore, siginfo, task, thread

from torpor.engine.program import Program
from torpor.errors import ImageError, Refusal
from torpor.images.schema.core import (
    TaskRlimitsEntry,
    ThreadSasEntry,
)
from torpor.images.schema.rlimit import RlimitEntry
from torpor.images.schema.rseq import RseqEntry
from torpor.images.schema.sa import SaEntry
from torpor.images.schema.torpor import TaskExtraEntry
from torpor.kernel.proc import Limit
from torpor.kernel.sched import SCHED_DEADLINE, SCHED_FIFO
from torpor.resources import names, own, prctl, rlimits, sched, security, signals, switches, threads


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    be(monkeypatch)


# -- names, personality -----------------------------------------------------------------------------------------------


def test_threads_are_renamed_only_where_they_differ() -> None:
    made = task(2, comm="leader")
    thread(made).comm, thread(made, TID).comm = "leader", "worker"
    program = Program()
    names.Names().place(made, program)
    names.Names().place_thread(made, PID, made.core, program)
    names.Names().place_thread(made, TID, made.cores[TID], program)
    assert calls(program) == [("prctl", 15, b"leader\0"), ("prctl", 15, b"worker\0")]


@pytest.mark.parametrize(
    ("image", "exact", "number"), [(40000, None, 0x40000), (0, 0xC40000, 0xC40000), (12, None, 0x12)]
)
def test_personality_is_hexadecimal_in_decimal_digits(image: int, exact: int | None, number: int) -> None:
    made = task(personality=image)
    made.extras.process.personality = exact
    program = Program()
    names.Personality().place(made, program)
    assert calls(program) == [("personality", number)]


# -- limits -----------------------------------------------------------------------------------------------------------


def limits(**changes: tuple[int, int]) -> TaskRlimitsEntry:
    entries = [RlimitEntry(cur=10, max=1000) for _ in range(16)]
    for name, (soft, hard) in changes.items():
        entries[int(name[1:])] = RlimitEntry(cur=soft, max=hard)
    return TaskRlimitsEntry(rlimits=entries)


def test_hard_limits_are_raised_early_and_all_are_set_in_the_end() -> None:
    made = task(rlimits=limits(n7=(5000, 50_000)))
    rlimits.Rlimits().check(made, restore())
    early, late = Program(), Program()
    rlimits.Rlimits().place(made, early)
    rlimits.Rlimits().last(made, late)
    assert calls(early) == [("prlimit64", 0, 7, struct.pack("=QQ", 100, 50_000), 0)]
    assert len(late.calls) == 16
    assert calls(late)[7] == ("prlimit64", 0, 7, struct.pack("=QQ", 5000, 50_000), 0)


def test_hard_limits_that_cannot_be_raised_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    be(monkeypatch, effective=ALL & ~(1 << own.CAP_SYS_RESOURCE))
    with pytest.raises(Refusal, match=r"max open files \(50000\).*CAP_SYS_RESOURCE.*ulimit -H -n 50000"):
        rlimits.Rlimits().check(task(rlimits=limits(n7=(5000, 50_000))), restore())


def test_impossible_limits() -> None:
    with pytest.raises(ImageError):
        rlimits.Rlimits().check(task(rlimits=limits(n3=(11, 10))), restore())
    with pytest.raises(ImageError):
        rlimits.Rlimits().check(task(rlimits=TaskRlimitsEntry(rlimits=limits().rlimits * 2)), restore())


# -- scheduling -------------------------------------------------------------------------------------------------------


def test_scheduling_that_needs_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    made = task()
    thread(made).sched_policy, thread(made).sched_prio = SCHED_FIFO, 50
    sched.Scheduling().check(made, restore())
    be(monkeypatch, effective=0, limits=LIMITS | {13: Limit(0, 0), 14: Limit(0, 0)})
    with pytest.raises(Refusal, match="CAP_SYS_NICE"):
        sched.Scheduling().check(made, restore())
    thread(made).sched_policy, thread(made).sched_nice = 0, -5
    with pytest.raises(Refusal, match=r"nice value -5.*CAP_SYS_NICE"):
        sched.Scheduling().check(made, restore())


def test_scheduling_that_makes_no_sense() -> None:
    made = task()
    thread(made).sched_nice = 99
    with pytest.raises(ImageError):
        sched.Scheduling().check(made, restore())
    thread(made).sched_policy = SCHED_DEADLINE
    with pytest.raises(Refusal):
        sched.Scheduling().check(made, restore())


# -- signals ----------------------------------------------------------------------------------------------------------


def test_actions_that_are_not_the_default_are_set() -> None:
    entries = [SaEntry(sigaction=0, flags=0, restorer=0, mask=0) for _ in range(62)]
    entries[signals.NUMBERS.index(10)] = SaEntry(sigaction=0x1234, flags=0x14000000, restorer=0x99, mask=1 << 63)
    entries[signals.NUMBERS.index(64)] = SaEntry(sigaction=0, flags=0, restorer=0, mask=1)
    made = task(sigactions=entries)
    signals.Actions().check(made, restore())
    program = Program()
    signals.Actions().place(made, program)
    assert [call[1] for call in calls(program)] == [10, 64]
    assert calls(program)[0] == ("rt_sigaction", 10, struct.pack("=4Q", 0x1234, 0x14000000, 0x99, 1 << 63), 0, 8)


def test_wrong_numbers_of_actions() -> None:
    with pytest.raises(ImageError):
        signals.Actions().check(task(sigactions=[SaEntry(sigaction=0, flags=0, restorer=0, mask=0)]), restore())


@pytest.mark.parametrize(
    ("flags", "size", "set_to"), [(2, 0, None), (1, 8192, 0), (1 << 31, 8192, 1 << 31), (0, 8192, 0)]
)
def test_alternate_stacks(flags: int, size: int, set_to: int | None) -> None:
    made = task()
    thread(made).sas = ThreadSasEntry(ss_sp=0x7000, ss_size=size, ss_flags=flags)
    program = Program()
    signals.AltStack().place_thread(made, PID, made.core, program)
    wanted = [] if set_to is None else [("sigaltstack", struct.pack("=QI4xQ", 0x7000, set_to, size), 0)]
    assert calls(program) == wanted


def test_threads_queue_their_own_signals() -> None:
    made = task(2, signals_s=queue(siginfo(12), siginfo(40, -1)))
    thread(made, TID).signals_p = queue(siginfo(10, -6))
    signals.Pending().check(made, restore())
    program, last = Program(), Program()
    signals.Pending().place_thread(made, TID, made.cores[TID], program)
    signals.Pending().last(made, last)
    assert calls(program) == [("rt_tgsigqueueinfo", PID, TID, 10, siginfo(10, -6))]
    assert calls(last) == [("rt_sigqueueinfo", PID, 12, siginfo(12)), ("rt_sigqueueinfo", PID, 40, siginfo(40, -1))]


def test_pending_signals_that_make_no_sense() -> None:
    for info in (b"", bytes(128), siginfo(65), siginfo(-1)):
        with pytest.raises(ImageError):
            signals.Pending().check(task(signals_s=queue(info)), restore())


def test_signals_that_came_without_siginfo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals.ptrace, "peek_signals", lambda tid, shared: [siginfo(40, -1), siginfo(40, -1)])
    found = signals.peek(PID, 1 << 39 | 1 << 9 | 1 << 13, shared=True)
    assert found == [siginfo(40, -1), siginfo(40, -1), siginfo(10), siginfo(14, 0x80)]


# -- threads ----------------------------------------------------------------------------------------------------------


def test_what_the_c_library_registered() -> None:
    made = task()
    thread(made).futex_rla, thread(made).futex_rla_len = 0x1000, 24
    thread(made).rseq_entry = RseqEntry(rseq_abi_pointer=0x2000, rseq_abi_size=32, signature=0x53053053)
    program = Program()
    for attribute in threads.ATTRIBUTES:
        attribute.check(made, restore())
        attribute.place_thread(made, PID, made.core, program)
    assert calls(program) == [("set_robust_list", 0x1000, 24), ("rseq", 0x2000, 32, 0, 0x53053053)]
    thread(made).futex_rla_len = 8
    with pytest.raises(ImageError):
        threads.RobustList().check(made, restore())


def test_sequence_that_criu_caught_a_thread_in() -> None:
    written = []
    made = task()
    made.tracees[PID] = SimpleNamespace(write=lambda at, data: written.append((at, data)))  # type: ignore[assignment]
    thread(made).rseq_entry = RseqEntry(
        rseq_abi_pointer=0x2000, rseq_abi_size=32, signature=0x53053053, rseq_cs_pointer=0x3000
    )
    threads.Rseq().outside(made, restore())
    assert written == [(0x2008, struct.pack("=Q", 0x3000))]


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_seccomp_and_labels_in_images() -> None:
    made = task()
    thread(made).seccomp_mode = 2
    with pytest.raises(Refusal, match="seccomp"):
        security.Confinement().check(made, restore())
    made = task()
    thread(made).creds = credentials(lsm_profile="docker-default")
    with pytest.raises(Refusal, match="docker-default"):
        security.Confinement().check(made, restore())
    made = task()
    thread(made).creds = credentials(lsm_profile="unconfined")
    security.Confinement().check(made, restore())


def test_oom_scores_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(task: str, value: int) -> None:
        raise PermissionError

    monkeypatch.setattr(prctl, "_write_oom", forbid)
    with pytest.raises(Refusal, match=r"oom_score_adj of -500.*CAP_SYS_RESOURCE"):
        prctl.OomScore().check(task(oom_score_adj=-500), restore())
    prctl.OomScore().check(task(oom_score_adj=0), restore())


def test_membarrier_registrations_one_by_one() -> None:
    program = Program()
    prctl.Membarrier().place(task(membarrier_registration_mask=0x54), program)
    assert calls(program) == [("membarrier", 4, 0, 0), ("membarrier", 16, 0, 0), ("membarrier", 64, 0, 0)]
    with pytest.raises(Refusal):
        prctl.Membarrier().check(task(membarrier_registration_mask=1), restore())


def test_switches_are_set_only_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switches, "own_speculation", lambda which: 3)
    made = task()
    program = Program()
    switches.Switches().place(made, program)
    switches.Switches().last(made, program)
    assert not calls(program)
    made.extras.process = TaskExtraEntry(tsc=2, mce_kill=1, store_bypass=5, mdwe=1, thp_disable=3)
    switches.Switches().place(made, program)
    switches.Switches().last(made, program)
    assert calls(program) == [
        ("prctl", 26, 2, 0, 0, 0),
        ("prctl", 33, 1, 1, 0, 0),
        ("prctl", 53, 0, 4, 0, 0),
        ("prctl", 41, 1, 2, 0, 0),
        ("prctl", 65, 1, 0, 0, 0),
    ]
