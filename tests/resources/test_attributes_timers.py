# SPDX-License-Identifier: Apache-2.0
"""Timers without a kernel: what images say becomes programs, refusals, or complaints."""

import struct
import time
from types import SimpleNamespace
from typing import Any

import pytest
from attributekit import PID, TID, be, calls, queue, restore, siginfo, task, thread

from torpor.arch.arm import ARCH as ARM
from torpor.engine.program import Program
from torpor.errors import ImageError, Refusal
from torpor.images.schema.timer import ItimerEntry, PosixTimerEntry, TaskTimersEntry
from torpor.images.schema.torpor import ThreadExtraEntry
from torpor.kernel.proc import Timer
from torpor.resources import overruns, signals, timers
from torpor.resources.context import RestoreTask


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    be(monkeypatch)


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


def test_timers_of_more_than_2_31_seconds_on_32_bit_arm(chooses: bool) -> None:
    program = Program()
    timers.PosixTimers().last(timed(posix(0, isec=5 * 10**9, vsec=6 * 10**9)), program)
    name, *_, spec, _ = calls(program)[-1]
    assert name == "timer_settime" and struct.unpack("=4q", spec) == (5 * 10**9, 0, 6 * 10**9, 0)
    assert [ARM.SYSCALLS[f"timer_{verb}time"] for verb in ("get", "set")] == [408, 409]
    assert ARM.SYSCALLS["clock_gettime"] == 403


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
