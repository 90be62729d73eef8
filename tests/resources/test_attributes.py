# SPDX-License-Identifier: Apache-2.0
"""Attributes of tasks and threads without a kernel: what images say becomes programs, refusals, or complaints."""

import struct
import time
from types import SimpleNamespace
from typing import Any

import pytest

from torpor.arch import native
from torpor.engine.program import Program
from torpor.errors import ImageError, Refusal
from torpor.images.schema.core import (
    CoreEntry,
    TaskCoreEntry,
    TaskRlimitsEntry,
    ThreadCoreEntry,
    ThreadSasEntry,
)
from torpor.images.schema.creds import CredsEntry
from torpor.images.schema.rlimit import RlimitEntry
from torpor.images.schema.rseq import RseqEntry
from torpor.images.schema.sa import SaEntry
from torpor.images.schema.siginfo import SiginfoEntry, SignalQueueEntry
from torpor.images.schema.timer import ItimerEntry, PosixTimerEntry, TaskTimersEntry
from torpor.images.schema.torpor import TaskExtraEntry, ThreadExtraEntry
from torpor.kernel.proc import INFINITY, Limit, Timer
from torpor.kernel.sched import SCHED_DEADLINE, SCHED_FIFO, SchedAttr
from torpor.kernel.status import Credentials
from torpor.resources import creds, names, overruns, own, prctl, rlimits, sched, security, signals, threads, timers
from torpor.resources.context import RestoreTask
from torpor.resources.extras import Extras

PID, TID = 100, 101
ALL = (1 << 41) - 1
LIMITS = {number: Limit(100, 1000) for number in range(16)}


def facts(**changes: Any) -> own.Facts:
    """A Torpor that is root."""
    mine = Credentials((0, 0, 0, 0), (0, 0, 0, 0), (), 0, ALL, ALL, ALL, 0, 0, 0, 0)
    mine = mine._replace(**{name: changes.pop(name) for name in list(changes) if name in Credentials._fields})
    whole = own.Facts(mine, 0, LIMITS, SchedAttr(0), 0, 50000, b"\3", 0, None, 0x33)
    return whole._replace(**changes)


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    be(monkeypatch)


def be(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    mine = facts(**changes)
    monkeypatch.setattr(own, "facts", lambda: mine)


def credentials(**changes: Any) -> CredsEntry:
    words = {"cap_inh": 0, "cap_prm": ALL, "cap_eff": ALL, "cap_bnd": ALL, "cap_amb": 0}
    words |= {name: changes.pop(name) for name in list(changes) if name in words}
    fields: dict[str, Any] = dict.fromkeys(
        ("uid", "gid", "euid", "egid", "suid", "sgid", "fsuid", "fsgid", "secbits"), 0
    )
    fields |= {name: [mask & 0xFFFFFFFF, mask >> 32] for name, mask in words.items()}
    return CredsEntry(**(fields | changes))


def task(threads: int = 1, **tc: Any) -> RestoreTask:
    made = RestoreTask(PID, 1, PID, PID, [PID + i for i in range(threads)])
    made.tracee = SimpleNamespace(arch=native())  # type: ignore[assignment]
    made.extras = Extras(True, TaskExtraEntry(), {})
    for tid in made.threads:
        core = CoreEntry(mtype=1, thread_core=ThreadCoreEntry(futex_rla=0, futex_rla_len=0))
        made.cores[tid] = core
    made.core.tc = TaskCoreEntry(
        **({"task_state": 1, "exit_code": 0, "personality": 0, "flags": 0, "blk_sigset": 0, "comm": "x"} | tc)
    )
    return made


def thread(made: RestoreTask, tid: int = PID) -> ThreadCoreEntry:
    core = made.cores[tid].thread_core
    assert core is not None
    return core


def restore(**state: Any) -> Any:
    return SimpleNamespace(state=state, options=SimpleNamespace(manage_cgroups="soft"))


def calls(program: Program) -> list[tuple[Any, ...]]:
    """Name and arguments; pointers as their bytes, results as "$n"."""

    def plain(arg: Any) -> Any:
        if hasattr(arg, "root"):
            return arg.root.data
        return arg if isinstance(arg, int) else f"${arg.index}"

    return [(call.name, *map(plain, call.args)) for call in program.calls]


def siginfo(number: int, code: int = 0, timer: int = 0, overrun: int = 0) -> bytes:
    return struct.pack("=iii4xii", number, 0, code, timer, overrun).ljust(128, b"\0")


def queue(*infos: bytes) -> SignalQueueEntry:
    return SignalQueueEntry(signals=[SiginfoEntry(siginfo=info) for info in infos])


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
    made = task(rlimits=limits(n7=(5000, INFINITY)))
    rlimits.Rlimits().check(made, restore())
    early, late = Program(), Program()
    rlimits.Rlimits().place(made, early)
    rlimits.Rlimits().last(made, late)
    assert calls(early) == [("prlimit64", 0, 7, struct.pack("=QQ", 100, INFINITY), 0)]
    assert len(late.calls) == 16
    assert calls(late)[7] == ("prlimit64", 0, 7, struct.pack("=QQ", 5000, INFINITY), 0)


def test_hard_limits_that_cannot_be_raised_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    be(monkeypatch, effective=ALL & ~(1 << own.CAP_SYS_RESOURCE))
    with pytest.raises(Refusal, match=r"max open files \(unlimited\).*CAP_SYS_RESOURCE.*ulimit -H -n unlimited"):
        rlimits.Rlimits().check(task(rlimits=limits(n7=(5000, INFINITY))), restore())


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


# -- timers -----------------------------------------------------------------------------------------------------------


def posix(number: int, **changes: Any) -> PosixTimerEntry:
    fields: dict[str, Any] = {
        "it_id": number, "clock_id": 1, "si_signo": 40, "it_sigev_notify": 0, "sival_ptr": 0xABC, "overrun": 0,
        "isec": 0, "insec": 0, "vsec": 0, "vnsec": 0,
    }  # fmt: skip
    return PosixTimerEntry(**(fields | changes))


def timed(*entries: PosixTimerEntry, real: tuple[int, int] = (0, 0), **more: Any) -> RestoreTask:
    none = ItimerEntry(isec=0, iusec=0, vsec=0, vusec=0)
    first = ItimerEntry(isec=0, iusec=real[0], vsec=0, vusec=real[1])
    return task(timers=TaskTimersEntry(real=first, virt=none, prof=none, posix=list(entries)), **more)


@pytest.fixture(params=[True, False], ids=["ids-can-be-chosen", "ids-in-turn"])
def chooses(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(timers, "_chooses", request.param)
    return bool(request.param)


def test_timer_ids(chooses: bool) -> None:
    made = timed(posix(3), posix(1, vsec=5))
    timers.PosixTimers().check(made, restore())
    program = Program()
    timers.PosixTimers().last(made, program)
    done = [call[0] for call in calls(program)]
    armed = calls(program)[-1]
    assert armed == ("timer_settime", 1, 0, struct.pack("=4Q", 0, 0, 5, 0), 0)
    if chooses:
        assert done == ["prctl", "timer_create", "timer_create", "prctl", "timer_settime"]
        assert [call[3] for call in calls(program)[1:3]] == [struct.pack("=i", 1), struct.pack("=i", 3)]
    else:
        deleted = [call[1] for call in calls(program) if call[0] == "timer_delete"]
        assert done.count("timer_create") == 4
        assert deleted == [0, 2]


def test_timer_ids_out_of_reach(chooses: bool) -> None:
    made = timed(posix(1 << 20))
    if chooses:
        timers.PosixTimers().check(made, restore())
    else:
        with pytest.raises(Refusal, match=r"6\.15"):
            timers.PosixTimers().check(made, restore())


def test_timers_that_make_no_sense() -> None:
    for bad in ([posix(1), posix(1)], [posix(1 << 31)], [posix(1, vnsec=10**9)], [posix(1, isec=1 << 63)]):
        with pytest.raises(ImageError):
            timers.PosixTimers().check(timed(*bad), restore())
    with pytest.raises(ImageError):
        timers.Itimers().check(timed(real=(0, 10**6)), restore())


def test_alarm_clocks_need_a_right_and_come_before_it_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "_chooses", True)
    made = timed(posix(0), posix(1, clock_id=8))
    early, late = Program(), Program()
    timers.PosixTimers().place(made, early)
    timers.PosixTimers().last(made, late)
    assert [call[0] for call in calls(early)].count("timer_create") == 2
    assert "timer_create" not in [call[0] for call in calls(late)]
    be(monkeypatch, effective=0)
    with pytest.raises(Refusal, match="CAP_WAKE_ALARM"):
        timers.PosixTimers().check(made, restore())


def test_timers_on_a_threads_clock_are_made_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "_chooses", True)
    made = timed(posix(0), posix(1, clock_id=0xFFFFFFFE), threads=2)
    made.extras.threads[TID] = ThreadExtraEntry(tid=TID, cpu_timers=[1])
    program, last = Program(), Program()
    timers.PosixTimers().place_thread(made, TID, made.cores[TID], program)
    timers.PosixTimers().last(made, last)
    assert [call[:2] for call in calls(program) if call[0] == "timer_create"] == [("timer_create", -2)]
    assert [call[:2] for call in calls(last) if call[0] == "timer_create"] == [("timer_create", 1)]


def test_periodic_timers_queue_their_signals_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "_chooses", True)
    made = timed(
        posix(0, insec=10**6, vnsec=500000), posix(1), signals_s=queue(siginfo(40, -2, 0, 59), siginfo(40, -2, 1, 0))
    )
    program = Program()
    before = time.clock_gettime_ns(1)
    timers.PosixTimers().last(made, program)
    signals.Pending().last(made, program)
    *_, arm, queued = calls(program)
    assert arm[:3] == ("timer_settime", 0, overruns.TIMER_ABSTIME)
    isec, insec, sec, nsec = struct.unpack("=4Q", arm[3])
    assert (isec, insec) == (0, 10**6)
    late = before + 500000 - 60 * 10**6
    assert late <= sec * 10**9 + nsec < late + 10**9
    assert queued == ("rt_sigqueueinfo", PID, 40, siginfo(40, -2, 1, 0))


def test_overruns_that_were_told_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "_chooses", True)
    program = Program()
    timers.PosixTimers().last(timed(posix(0, insec=10**6, vnsec=1, overrun=7)), program)
    assert [call[0] for call in calls(program)][-2:] == ["timer_settime", "rt_sigtimedwait"]
    # Not where another signal would be taken.
    made = timed(posix(0, insec=10**6, vnsec=1, overrun=7))
    thread(made).signals_p = queue(siginfo(40))
    program = Program()
    timers.PosixTimers().last(made, program)
    assert [call[0] for call in calls(program)][-1] == "timer_settime"


def test_counts_are_looked_up_where_that_is_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overruns, "_take", lambda task, timer: 5)
    leader = SimpleNamespace(tid=PID)

    def count(*infos: bytes, private: int = 0, clock: int = 1) -> list[bytes]:
        dumped: Any = SimpleNamespace(
            pending={0: list(infos)}, leader=leader, thread_statuses={PID: SimpleNamespace(pending=private)}
        )
        overruns.count_pending(dumped, [Timer(3, 40, 0, "signal", False, PID, clock)])
        return list(dumped.pending[0])

    told = siginfo(40, -2, 3)
    assert count(told) == [siginfo(40, -2, 3, 5)]
    assert count(told, siginfo(40, -1)) == [told, siginfo(40, -1)]  # two of that number: which one would be taken?
    assert count(told, private=1 << 39) == [told]
    assert count(told, clock=-6) == [told]
    assert count(siginfo(40)) == [siginfo(40)]


def test_alarm_that_waits_for_its_signal() -> None:
    program = Program()
    timers.Itimers().last(timed(real=(20000, 0)), program)
    assert calls(program) == [("setitimer", 0, struct.pack("=4Q", 0, 20000, 0, 1), 0)]


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


# -- credentials ------------------------------------------------------------------------------------------------------


def place_creds(made: RestoreTask, tid: int = PID) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    creds.Credentials().check(made, restore())
    first, then = Program(), Program()
    creds.Credentials().place(made, first)
    creds.Credentials().place_thread(made, tid, made.cores[tid], then)
    return calls(first), calls(then)


def test_nothing_to_do_for_what_is_like_torpor() -> None:
    made = task()
    thread(made).creds = credentials()
    assert place_creds(made) == ([], [])


def test_a_user_without_rights() -> None:
    made = task()
    ids = dict.fromkeys(("uid", "euid", "suid", "fsuid"), 33) | dict.fromkeys(("gid", "egid", "sgid", "fsgid"), 44)
    thread(made).creds = credentials(**ids, groups=[5, 70000], cap_prm=0, cap_eff=0, cap_bnd=ALL & ~3, no_new_privs=1)
    first, then = place_creds(made)
    assert first == [
        ("setgroups", 2, struct.pack("=2I", 5, 70000)),
        ("prctl", 28, 4, 0, 0, 0),  # SECBIT_NO_SETUID_FIXUP: rights stay
        ("setresgid", 44, 44, 44),
        ("setresuid", 33, 33, 33),
        ("prctl", 24, 0, 0, 0, 0),
        ("prctl", 24, 1, 0, 0, 0),
    ]
    assert then[0] == ("prctl", 28, 0, 0, 0, 0)
    assert then[1][0] == "capset"
    assert then[1][2] == bytes(24)
    assert then[2] == ("prctl", 38, 1, 0, 0, 0)


def test_file_system_ids_of_their_own() -> None:
    made = task()
    thread(made).creds = credentials(fsuid=7, fsgid=8)
    first, _ = place_creds(made)
    assert ("setfsuid", 7) in first
    assert ("setfsgid", 8) in first


def test_inheritable_before_bounding_and_ambient_before_locks() -> None:
    made = task()
    kill = 1 << 5
    thread(made).creds = credentials(
        cap_inh=kill, cap_prm=kill, cap_eff=0, cap_bnd=0, cap_amb=kill, secbits=1 << 6 | 1 << 7
    )
    first, then = place_creds(made)
    assert first[0][0] == "capset"
    assert [call[0] for call in first[1:]] == ["prctl"] * 41
    assert then[0] == ("prctl", 47, 2, 5, 0, 0)
    assert then[1] == ("prctl", 28, 0xC0, 0, 0, 0)
    assert then[2][0] == "capset"


def test_threads_with_credentials_of_their_own() -> None:
    made = task(2)
    thread(made).creds = credentials(uid=1, euid=1, suid=1, fsuid=1, cap_bnd=ALL & ~1)
    thread(made, TID).creds = credentials(uid=2, euid=2, suid=2, fsuid=2, cap_bnd=ALL & ~3)
    first, then = place_creds(made, TID)
    assert ("setresuid", 1, 1, 1) in first
    assert ("prctl", 24, 0, 0, 0, 0) in first
    assert ("prctl", 24, 1, 0, 0, 0) not in first
    assert ("setresuid", 2, 2, 2) in then
    assert ("prctl", 24, 1, 0, 0, 0) in then


@pytest.mark.parametrize(
    ("mine", "theirs", "words"),
    [
        ({"permitted": ALL & ~(1 << 24)}, {}, "it has CAP_SYS_RESOURCE, which Torpor itself lacks"),
        ({"bounding": ALL & ~(1 << 21)}, {}, r"may gain .*CAP_SYS_ADMIN"),
        ({"effective": ALL & ~(1 << 7)}, {"uid": 5}, "needs CAP_SETUID"),
        ({"effective": ALL & ~(1 << 6)}, {"groups": [1]}, "needs CAP_SETGID"),
        ({"effective": ALL & ~(1 << 8)}, {"cap_bnd": 0}, "needs CAP_SETPCAP"),
        ({"securebits": 0xF}, {}, "securebits are locked"),
        ({"no_new_privs": 1}, {}, "no_new_privs"),
    ],
)
def test_rights_that_torpor_lacks(
    mine: dict[str, int], theirs: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    be(monkeypatch, **mine)
    made = task()
    thread(made).creds = credentials(**theirs)
    with pytest.raises(Refusal, match=words):
        creds.Credentials().check(made, restore())


def test_credentials_that_make_no_sense() -> None:
    for bad in ({"cap_prm": 0}, {"cap_amb": 1}, {"groups": list(range(70000))}):
        made = task()
        thread(made).creds = credentials(**bad)
        with pytest.raises(ImageError):
            creds.Credentials().check(made, restore())


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


def test_switches_are_set_only_where_they_were() -> None:
    made = task()
    program = Program()
    prctl.Switches().place(made, program)
    prctl.Switches().last(made, program)
    assert not calls(program)
    made.extras.process = TaskExtraEntry(tsc=2, mce_kill=1, store_bypass=5, mdwe=1, thp_disable=3)
    prctl.Switches().place(made, program)
    prctl.Switches().last(made, program)
    assert calls(program) == [
        ("prctl", 26, 2, 0, 0, 0),
        ("prctl", 33, 1, 1, 0, 0),
        ("prctl", 53, 0, 4, 0, 0),
        ("prctl", 41, 1, 2, 0, 0),
        ("prctl", 65, 1, 0, 0, 0),
    ]
