# SPDX-License-Identifier: Apache-2.0
"""Interval timers (setitimer(2)) and POSIX timers (timer_create(2)).  Their time goes on where it stood at the dump.

- ITIMER_REAL is started anew when its SIGALRM is taken: while that is pending, a periodic one shows no time left.  It
  comes back by being let fire at once: the second SIGALRM is the same as the first.
- /proc/PID/timers tells how a POSIX timer was made, only timer_gettime(2) in the process what it is set to.
- Ids are given in turn.  prctl(PR_TIMER_CREATE_RESTORE_IDS) (6.15) lets the caller choose; before, timers are made
  and deleted until the number comes.  One that counts the time of a thread has to be made by that thread, so threads
  take turns then (`in_turn`).
- Time goes on while the task stands still.  A timer that fires then is either asked later, and shows no time left, or
  before: so pending signals are read again after the timers.
- A timer that notifies a thread needs that thread, so POSIX timers are made when the whole tree stands.  By then the
  task has given up its rights; only alarm clocks need one (CAP_WAKE_ALARM) and are made earlier.
"""

import ctypes
import struct

from torpor.arch import native
from torpor.engine.program import Program
from torpor.errors import ImageError
from torpor.images.schema.timer import ItimerEntry, PosixTimerEntry, TaskTimersEntry
from torpor.kernel.proc import Timer, parse_timers
from torpor.kernel.procfs import read_all
from torpor.resources import extras, lacking, overruns, own
from torpor.resources.base import Attribute
from torpor.typed import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from torpor.engine.program import Pointer
    from torpor.engine.tracee import Tracee
    from torpor.images.schema.core import CoreEntry
    from torpor.resources.context import DumpTask, Restore, RestoreTask

_NUMBER = ctypes.create_string_buffer(4)  # for that of a timer which nobody is interested in
ITIMERS = 3  # ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF
SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD, SIGEV_THREAD_ID = 0, 1, 2, 4
NOTIFY = {"signal": SIGEV_SIGNAL, "none": SIGEV_NONE, "thread": SIGEV_THREAD}
CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM = 8, 9
THREAD_CLOCK = -2  # CPU time of the thread that made the timer
PR_TIMER_CREATE_RESTORE_IDS, OFF, ON, GET = 77, 0, 1, 2
_LONGEST = 1 << 8 * native().word_size - 1  # seconds of interval timers: setitimer(2) has no 64-bit variant
MAX_TRIES = 4096  # ids that are tried in turn on older kernels


class Itimers(Attribute):
    covers = frozenset({"task:itimers"})

    def ask(self, task: "DumpTask", program: Program) -> "list[Pointer]":
        spaces = [program.space(4 * task.leader.arch.word_size) for _ in range(ITIMERS)]
        for which, space in enumerate(spaces):
            program.call("getitimer", which, space)
        return spaces

    def save(self, task: "DumpTask", answer: "list[Pointer]", core: "CoreEntry") -> None:
        word = task.leader.arch.word
        entries = []
        for space in answer:
            isec, iusec, vsec, vusec = struct.unpack(f"{word[0]}4{word[1]}", space.data)
            entries.append(ItimerEntry(isec=isec, iusec=iusec, vsec=vsec, vusec=vusec))
        assert core.tc is not None
        core.tc.timers = TaskTimersEntry(real=_at_once(entries[0]), virt=entries[1], prof=entries[2])

    def check(self, task: "RestoreTask", restore: "Restore") -> None:
        for entry in _itimers(task):
            if max(entry.iusec, entry.vusec) >= 10**6 or max(entry.isec, entry.vsec) >= _LONGEST:
                raise ImageError(f"the core image of task {task.pid} is mangled", "an interval timer makes no sense")

    def last(self, task: "RestoreTask", program: Program) -> None:
        assert task.tracee is not None
        word = task.tracee.arch.word
        entries = _itimers(task)
        if entries:
            entries = [_at_once(entries[0]), *entries[1:]]
        for which, entry in enumerate(entries):
            if entry.vsec or entry.vusec:
                spec = struct.pack(f"{word[0]}4{word[1]}", entry.isec, entry.iusec, entry.vsec, entry.vusec)
                program.call("setitimer", which, program.put(spec), 0)


def _at_once(entry: ItimerEntry) -> ItimerEntry:
    """A periodic timer that waits for its signal to be taken: it is to expire at once."""
    if (entry.isec or entry.iusec) and not (entry.vsec or entry.vusec):
        return ItimerEntry(isec=entry.isec, iusec=entry.iusec, vsec=0, vusec=1)
    return entry


def _itimers(task: "RestoreTask") -> list[ItimerEntry]:
    timers = task.core.tc.timers if task.core.tc is not None else None
    return [timers.real, timers.virt, timers.prof] if timers is not None else []


class _Asked(NamedTuple):
    timer: Timer
    spec: "Pointer"
    overrun: Any


class PosixTimers(Attribute):
    covers = frozenset({"task:timers"})

    def ask(self, task: "DumpTask", program: Program) -> list[_Asked]:
        asked = []
        timers = sorted(parse_timers(read_all(f"/proc/{task.pid}/timers")))
        if not timers or task.running:
            return []
        if len(task.threads) > 1:
            task.thread_timers = [timer.id for timer in timers if timer.clock == THREAD_CLOCK]
        at_once = Program()
        for timer in timers:
            spec = program.space(overruns.SPEC.size)
            at_once.call("timer_gettime", timer.id, spec)
            asked.append(_Asked(timer, spec, at_once.call("timer_getoverrun", timer.id)))
        task.run(at_once)
        overruns.peek_again(task, timers)
        overruns.count_pending(task, timers)
        return asked

    def ask_thread(self, task: "DumpTask", program: Program) -> "list[tuple[int, Pointer]]":
        """Whose CPU time a timer counts, nothing tells: but only in that thread does it run while we look."""
        asked = []
        for number in task.thread_timers:
            size = overruns.SPEC.size
            twice = program.space(2 * size)
            program.call("timer_gettime", number, twice)
            program.call("timer_gettime", number, twice + size)
            asked.append((number, twice))
        return asked

    def save_thread(
        self, task: "DumpTask", thread: "Tracee", answer: "list[tuple[int, Pointer]]", core: "CoreEntry"
    ) -> None:
        for number, twice in answer:
            half = len(twice.data) // 2
            if twice.data[:half] != twice.data[half:] and thread is not task.leader:
                extras.of_thread(task, thread.tid).cpu_timers.append(number)

    def save(self, task: "DumpTask", answer: list[_Asked], core: "CoreEntry") -> None:
        """Itimers has made tc.timers."""
        assert core.tc is not None and core.tc.timers is not None
        infos = [info for queue in task.pending.values() for info in queue]
        fired = {told.timer for info in infos if (told := overruns.notice(info)) is not None}
        for timer, space, overrun in answer:
            isec, insec, vsec, vnsec = overruns.SPEC.unpack(space.data)
            if timer.id in fired and not (isec or insec):
                vsec = vnsec = 0  # since it was asked
            core.tc.timers.posix.append(
                PosixTimerEntry(
                    it_id=timer.id,
                    clock_id=timer.clock & 0xFFFFFFFF,
                    si_signo=timer.signal,
                    it_sigev_notify=NOTIFY[timer.notify] | (SIGEV_THREAD_ID if timer.to_thread else 0),
                    sival_ptr=timer.value,
                    overrun=overrun.value,
                    isec=isec,
                    insec=insec,
                    vsec=vsec,
                    vnsec=vnsec,
                    notify_thread_id=timer.target if timer.to_thread else None,
                )
            )

    def check(self, task: "RestoreTask", restore: "Restore") -> None:
        timers = _posix(task)
        if len({t.it_id for t in timers}) < len(timers) or any(
            t.it_id >= 1 << 31 or max(t.insec, t.vnsec) >= 10**9 or max(t.isec, t.vsec) >= 1 << 63 for t in timers
        ):
            raise ImageError(f"the core image of task {task.pid} is mangled", "a POSIX timer makes no sense")
        if any(_is_alarm(t) for t in timers) and not own.facts().has(own.CAP_WAKE_ALARM):
            raise task.refusal("it has a timer on an alarm clock", "run Torpor with CAP_WAKE_ALARM")
        for clock in {t.clock_id for t in timers if _is_alarm(t)}:
            if error := lacking.error_in_child(restore, "timer_create", clock, 0, ctypes.addressof(_NUMBER)):
                raise lacking.refused(task.subject, "it has a timer on an alarm clock, which wakes the machine", error)
        if timers and not _can_choose() and max(t.it_id for t in timers) >= MAX_TRIES:
            raise task.refusal(
                f"this kernel cannot make a timer with the id {max(t.it_id for t in timers)} in bounded time",
                "restore on Linux 6.15 or later",
            )
        if any(map(_is_alarm, timers)) and any(map(_to_thread, timers)) and not _can_choose():
            raise task.refusal(
                "this kernel cannot make its timers, some on alarm clocks and some for threads, with their ids",
                "restore on Linux 6.15 or later",
            )
        if any(map(_is_alarm, timers)) and _taking_turns(task):
            raise task.refusal(
                "this kernel cannot make its timers, some on alarm clocks and some that count a thread's CPU time, "
                "with their ids",
                "restore on Linux 6.15 or later",
            )

    def place(self, task: "RestoreTask", program: Program) -> None:
        if any(map(_is_alarm, _posix(task))):
            self._make([t for t in _posix(task) if not _to_thread(t)], task, program)

    def place_thread(self, task: "RestoreTask", tid: int, core: "CoreEntry", program: Program) -> None:
        """Timers that count this thread's time."""
        numbers = _cpu_timers(task, tid) if _can_choose() else []
        self._make([t for t in _posix(task) if t.it_id in numbers], task, program)

    def in_turn(self, task: "RestoreTask", run: "Callable[[int, Program], None]") -> None:
        makers = _taking_turns(task)
        if not makers:
            return
        assert task.tracee is not None
        word = task.tracee.arch.word
        wanted = {timer.it_id: timer for timer in _posix(task)}
        program, maker = Program(), task.pid
        for number in range(max(wanted) + 1):
            if makers.get(number, task.pid) != maker:
                run(maker, program)
                program, maker = Program(), makers.get(number, task.pid)
            _make_next(number, wanted.get(number), word, program)
        run(maker, program)

    def last(self, task: "RestoreTask", program: Program) -> None:
        timers = _posix(task)
        early = any(map(_is_alarm, timers))
        if not _taking_turns(task):
            made = {n for tid in task.threads for n in _cpu_timers(task, tid)} if _can_choose() else set()
            self._make([t for t in timers if t.it_id not in made and (not early or _to_thread(t))], task, program)
        pending = pending_periodic(task)
        for timer in timers:
            if timer.it_id in pending and overruns.arm(timer, pending[timer.it_id], program):
                continue
            if timer.overrun and _may_take(task, timer) and overruns.arm(timer, timer.overrun, program):
                overruns.take(timer, program)
            elif timer.vsec or timer.vnsec:
                spec = overruns.SPEC.pack(timer.isec, timer.insec, timer.vsec, timer.vnsec)
                program.call("timer_settime", timer.it_id, 0, program.put(spec), 0)

    def _make(self, timers: list[PosixTimerEntry], task: "RestoreTask", program: Program) -> None:
        assert task.tracee is not None
        word = task.tracee.arch.word
        if not timers:
            return
        if _can_choose():
            program.call("prctl", PR_TIMER_CREATE_RESTORE_IDS, ON, 0, 0, 0)
            for timer in timers:
                wish = program.put(struct.pack(f"{word[0]}i", timer.it_id))
                program.call("timer_create", _clock(timer), _event(timer, word, program), wish)
            program.call("prctl", PR_TIMER_CREATE_RESTORE_IDS, OFF, 0, 0, 0)
            return
        wanted = {timer.it_id: timer for timer in timers}
        for number in range(max(wanted) + 1):
            _make_next(number, wanted.get(number), word, program)


def _make_next(number: int, timer: PosixTimerEntry | None, word: str, program: Program) -> None:
    """Append the timer whose id is the next that the kernel gives; None: go past that id."""
    scratch = program.space(4)
    if timer is not None:
        program.call("timer_create", _clock(timer), _event(timer, word, program), scratch)
    else:
        program.call("timer_create", 1, 0, scratch)
        program.call("timer_delete", number)


def _taking_turns(task: "RestoreTask") -> dict[int, int]:
    """By the ids of timers, the threads other than the first that have to make them, where ids come in turn."""
    if _can_choose():
        return {}
    there = {timer.it_id for timer in _posix(task)}
    return {n: tid for tid in task.threads[1:] for n in _cpu_timers(task, tid) if n in there}


def _posix(task: "RestoreTask") -> list[PosixTimerEntry]:
    timers = task.core.tc.timers if task.core.tc is not None else None
    return sorted(timers.posix, key=lambda timer: timer.it_id) if timers is not None else []


def pending_periodic(task: "RestoreTask") -> dict[int, int]:
    """Timers that will queue their pending signals themselves, and how many overruns those have."""
    if task.pending_timers is None:
        task.pending_timers = _pending_periodic(task)
    return task.pending_timers


def _pending_periodic(task: "RestoreTask") -> dict[int, int]:
    suited = {timer.it_id for timer in _posix(task) if overruns.is_suited(timer)}
    if not suited:
        return {}
    queues = [core.thread_core.signals_p for core in task.cores.values() if core.thread_core is not None]
    if task.core.tc is not None:
        queues.append(task.core.tc.signals_s)
    notices = [overruns.notice(entry.siginfo) for queue in queues if queue is not None for entry in queue.signals]
    return {n.timer: max(n.overrun, 0) for n in notices if n is not None and n.timer in suited}


def _may_take(task: "RestoreTask", timer: PosixTimerEntry) -> bool:
    """Whether the leader can take the timer's signal and surely no other."""
    leader = task.core.thread_core
    queued = leader.signals_p.signals if leader is not None and leader.signals_p is not None else []
    return (
        overruns.is_suited(timer)
        and timer.it_sigev_notify == SIGEV_SIGNAL
        and not any(overruns.SIGINFO.unpack_from(entry.siginfo)[0] == timer.si_signo for entry in queued)
    )


def _cpu_timers(task: "RestoreTask", tid: int) -> list[int]:
    extra = task.extras.threads.get(tid)
    return extra.cpu_timers if extra is not None else []


def _is_alarm(timer: PosixTimerEntry) -> bool:
    return timer.clock_id in (CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM)


def _to_thread(timer: PosixTimerEntry) -> bool:
    return bool(timer.it_sigev_notify & SIGEV_THREAD_ID)


def _clock(timer: PosixTimerEntry) -> int:
    """Clocks of processes and threads are negative."""
    return timer.clock_id - (1 << 32) if timer.clock_id >> 31 else timer.clock_id


def _event(timer: PosixTimerEntry, word: str, program: Program) -> "Pointer":
    """struct sigevent."""
    fields = struct.pack(
        f"{word[0]}{word[1]}iii", timer.sival_ptr, timer.si_signo, timer.it_sigev_notify, timer.notify_thread_id or 0
    )
    return program.put(fields.ljust(64, b"\0"))


_chooses: bool | None = None


def _can_choose() -> bool:
    """Whether this kernel lets a process choose the ids of its timers."""
    global _chooses
    if _chooses is None:
        from torpor.kernel.process import prctl

        try:
            prctl(PR_TIMER_CREATE_RESTORE_IDS, GET)
            _chooses = True
        except OSError:
            _chooses = False
    return _chooses


ATTRIBUTES = [Itimers(), PosixTimers()]
