# SPDX-License-Identifier: Apache-2.0
"""Signals: what a process does about them, alternate stacks, and those that are pending, with their siginfo.

Masks are the engine's business: it blocks all signals while programs run, and puts the mask back with the registers.

- Handlers belong to the process, alternate stacks to the thread; pending signals are queued for either.
- Pending signals are read by ptrace without being taken (PTRACE_PEEKSIGINFO).  When the queue was full a signal is
  pending without a siginfo; the kernel then tells the receiver SI_USER from nobody, and so do we.
- A process may forge siginfo only to itself, so each thread queues its own.
- The kernel shows SS_ONSTACK where the stack pointer is inside, and does not want it back.
- How large a signal's frame is, is a matter of the CPU: a program that chose its alternate stack by what another one
  needs (AT_MINSIGSTKSZ) is ended by SIGSEGV where the frame does not fit.
"""

import struct

from torpor.arch import native
from torpor.errors import ImageError
from torpor.images.frozen import freeze
from torpor.images.message import Encoded
from torpor.images.schema.core import TaskCoreEntry, ThreadSasEntry
from torpor.images.schema.sa import SaEntry
from torpor.images.schema.siginfo import SiginfoEntry, SignalQueueEntry
from torpor.kernel import ptrace
from torpor.kernel.proc import parse_auxv
from torpor.kernel.procfs import read_all
from torpor.resources import overruns
from torpor.resources.base import Attribute
from torpor.resources.timers import pending_periodic
from torpor.typed import TYPE_CHECKING, Any, Mapping

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.engine.program import Call, Pointer, Program
    from torpor.engine.tracee import Tracee
    from torpor.images.schema.core import CoreEntry
    from torpor.resources.context import Dump, DumpTask, Restore, RestoreTask

SIGKILL, SIGSTOP = 9, 19
NUMBERS = [n for n in range(1, 65) if n not in (SIGKILL, SIGSTOP)]
SS_ONSTACK, SS_DISABLE, SS_AUTODISARM = 1, 2, 1 << 31
SIGALRM, SI_USER, SI_KERNEL = 14, 0, 0x80
AT_MINSIGSTKSZ = 51
SHARED = 0  # in DumpTask.pending: the process's queue


def _action(word: str) -> struct.Struct:
    """struct sigaction of the kernel: handler, flags, restorer, mask."""
    return struct.Struct(f"{word[0]}3{word[1]}Q")


class Actions(Attribute):
    covers = frozenset({"task:sigactions"})

    def __init__(self) -> None:
        self._questions: tuple[Sequence[Call], Pointer, struct.Struct] | None = None
        self._known: dict[bytes, Any] = {}  # Encoded: forked tasks mostly have the same

    def examine(self, task: "DumpTask", dump: "Dump") -> None:
        if task.running:
            self._prepare(task)

    def _prepare(self, task: "DumpTask") -> "tuple[Sequence[Call], Pointer, struct.Struct]":
        """62 calls, which take 0.2 ms to put together: not in the freeze, and once for all tasks."""
        from torpor.engine.program import Program

        if self._questions is None:
            program, action = Program(), _action(task.leader.arch.word)
            space = program.space(action.size * len(NUMBERS))
            for i, number in enumerate(NUMBERS):
                program.call("rt_sigaction", number, 0, space + i * action.size, 8)
            self._questions = program.calls, space, action
        return self._questions

    def ask(self, task: "DumpTask", program: "Program") -> "tuple[Pointer, struct.Struct]":
        calls, space, action = self._prepare(task)
        return program.extend(calls, space), action

    def save(self, task: "DumpTask", answer: "tuple[Pointer, struct.Struct]", core: "CoreEntry") -> None:
        assert core.tc is not None
        space, action = answer
        entries: Any = self._known.get(space.data)
        if entries is None:
            all_of_them = [
                SaEntry(sigaction=handler, flags=flags, restorer=restorer, mask=mask, compat_sigaction=False)
                for handler, flags, restorer, mask in action.iter_unpack(space.data)
            ]
            entries = self._known[space.data] = Encoded(TaskCoreEntry.writer("sigactions")(all_of_them))
        core.tc.sigactions = entries

    def check(self, task: "RestoreTask", restore: "Restore") -> None:
        assert task.core.tc is not None
        actions = task.core.tc.sigactions
        if len(actions) not in (0, len(NUMBERS)):
            raise ImageError(f"the core image of task {task.pid} is mangled", f"it has {len(actions)} signal actions")
        if any(entry.compat_sigaction for entry in actions):
            raise task.refusal("it has signal handlers of 32-bit code, which Torpor does not restore yet")

    def place(self, task: "RestoreTask", program: "Program") -> None:
        """All that are not the default, as which the first task has made all (resources/tree.py)."""
        assert task.core.tc is not None and task.tracee is not None
        action = _action(task.tracee.arch.word)
        blobs: dict[bytes, Pointer] = {}
        for number, entry in zip(NUMBERS, task.core.tc.sigactions, strict=False):
            if not (entry.sigaction or entry.flags or entry.restorer or entry.mask):
                continue
            data = action.pack(entry.sigaction, entry.flags, entry.restorer, entry.mask)
            if data not in blobs:
                blobs[data] = program.put(data)
            program.call("rt_sigaction", number, blobs[data], 0, 8)


class AltStack(Attribute):
    covers = frozenset({"thread:altstack"})

    def __init__(self) -> None:
        self._known: dict[bytes, ThreadSasEntry] = {}  # of threads without such a stack: most

    def ask_thread(self, task: "DumpTask", program: "Program") -> "Pointer":
        space = program.space(3 * task.leader.arch.word_size)
        program.call("sigaltstack", 0, space)
        return space

    def save_thread(self, task: "DumpTask", thread: "Tracee", answer: "Pointer", core: "CoreEntry") -> None:
        assert core.thread_core is not None
        entry = self._known.get(answer.data)
        if entry is None:
            address, flags, size = struct.unpack(_stack(thread.arch.word), answer.data)
            entry = ThreadSasEntry(ss_sp=address, ss_size=size, ss_flags=flags & ~SS_ONSTACK)
            if not size:
                freeze(entry)
                self._known[answer.data] = entry
        core.thread_core.sas = entry

    def check(self, task: "RestoreTask", restore: "Restore") -> None:
        """Frames may be larger here.  A stack that was too small there already is the program's own affair, and so is
        one of a kernel that did not tell what it needs (before 5.14)."""
        stacks = {tid: stack for tid, core in task.cores.items() if (stack := _alternate(core)) is not None}
        there = _frame_room(_vector(task, restore)) if stacks else 0
        if not there:
            return
        here: int = restore.state.get("frame room") or restore.state.setdefault(
            "frame room", _frame_room(dict(parse_auxv(read_all("/proc/self/auxv"))))
        )
        small = {tid: stack.ss_size for tid, stack in stacks.items() if there <= stack.ss_size < here}
        for tid, size in [*small.items()][:1]:
            others = f" (and {len(small) - 1} more of them)" if len(small) > 1 else ""
            raise task.refusal(
                f"its thread {tid}{others} has an alternate signal stack of {size} bytes: where it comes from, a "
                f"signal took up to {there}; here it takes up to {here}, for more registers, and would end the program",
                "restore it on a CPU with fewer extended registers, like the one that it comes from; to move to this "
                "one, the program has to be started with larger alternate stacks", code="cpu-feature",
            )  # fmt: skip

    def place_thread(self, task: "RestoreTask", tid: int, core: "CoreEntry", program: "Program") -> None:
        assert task.tracee is not None
        stack = _alternate(core)
        if stack is None:
            return  # as threads begin
        word = task.tracee.arch.word
        data = struct.pack(_stack(word), stack.ss_sp, stack.ss_flags & SS_AUTODISARM, stack.ss_size)
        program.call("sigaltstack", program.put(data), 0)


def _alternate(core: "CoreEntry") -> ThreadSasEntry | None:
    """A thread's alternate stack, if it has one."""
    stack = core.thread_core.sas if core.thread_core is not None else None
    return None if stack is None or stack.ss_flags & SS_DISABLE or not stack.ss_size else stack


def _vector(task: "RestoreTask", restore: "Restore") -> dict[int, int]:
    """The auxiliary vector that the program began with; it may live in another task's memory (CLONE_VM)."""
    mm = task.mm
    if mm is None and (ids := task.ids) is not None:
        shared = (one.mm for one in restore.tasks.values() if one.ids is not None and one.ids.vm_id == ids.vm_id)
        mm = next((one for one in shared if one is not None), None)
    vector = mm.mm_saved_auxv if mm is not None else []
    return dict(zip(vector[::2], vector[1::2], strict=False))


def _frame_room(vector: Mapping[int, int]) -> int:
    """How many bytes a signal's frame takes at most, by what the kernel tells programs; 0: it does not."""
    return native().frame_room(vector.get(AT_MINSIGSTKSZ, 0))


def _stack(word: str) -> str:
    """struct of stack_t; the flags are an int, padded where words are wider."""
    return f"{word[0]}{word[1]}I{4 if word[1] == 'Q' else 0}x{word[1]}"


def look_at_pending(task: "DumpTask") -> None:
    """Of a task that stands still, by its statuses."""
    assert task.status is not None
    task.pending.clear()
    task.pending[SHARED] = peek(task.leader.tid, task.status.shared_pending, shared=True)
    for tid, status in task.thread_statuses.items():
        if status.pending:
            task.pending[tid] = peek(tid, status.pending, shared=False)


class Pending(Attribute):
    """Queued signals.  ptrace tells them, of tasks that stand still: before programs run in them.

    Some come later: timers go on while the task stands still, and so do its friends.  What is pending by the time that
    timers have been read is added; there is no telling who sent it, but what timers send looks like this.
    """

    covers = frozenset({"task:pending", "thread:pending"})

    def examine(self, task: "DumpTask", dump: "Dump") -> None:
        if not task.running:
            look_at_pending(task)

    def ask(self, task: "DumpTask", program: "Program") -> "Pointer":
        space = program.space(8)
        program.call("rt_sigpending", space, 8)
        return space

    def save(self, task: "DumpTask", answer: "Pointer", core: "CoreEntry") -> None:
        assert core.tc is not None
        seen = [*task.pending[SHARED], *task.pending.get(task.leader.tid, ())]
        late = struct.unpack("=Q", answer.data)[0] & ~sum(1 << n - 1 for n in {_number(info) for info in seen})
        core.tc.signals_s = _entries([*task.pending[SHARED], *_unknown(late)])

    def save_thread(self, task: "DumpTask", thread: "Tracee", answer: None, core: "CoreEntry") -> None:
        assert core.thread_core is not None
        core.thread_core.signals_p = _entries(task.pending.get(thread.tid, ()))

    def check(self, task: "RestoreTask", restore: "Restore") -> None:
        for tid, core in task.cores.items():
            if core.thread_core is not None:
                _check(core.thread_core.signals_p, f"thread {tid}")
        assert task.core.tc is not None
        _check(task.core.tc.signals_s, f"task {task.pid}")

    def place_thread(self, task: "RestoreTask", tid: int, core: "CoreEntry", program: "Program") -> None:
        assert core.thread_core is not None
        for number, info in _siginfos(task, core.thread_core.signals_p):
            program.call("rt_tgsigqueueinfo", task.pid, tid, number, program.put(info))

    def last(self, task: "RestoreTask", program: "Program") -> None:
        assert task.core.tc is not None
        for number, info in _siginfos(task, task.core.tc.signals_s):
            program.call("rt_sigqueueinfo", task.pid, number, program.put(info))


def peek(tid: int, pending: int, shared: bool) -> list[bytes]:
    if not pending:
        return []
    found = ptrace.peek_signals(tid, shared)
    for info in found:
        pending &= ~(1 << _number(info) - 1)
    return found + _unknown(pending)


def _number(info: bytes) -> int:
    number: int = struct.unpack_from("=i", info)[0]
    return number


def _unknown(pending: int) -> list[bytes]:
    """Siginfo of signals of which nothing but the number is known."""
    return [
        struct.pack("=iii116x", n, 0, SI_KERNEL if n == SIGALRM else SI_USER)
        for n in range(1, 65)
        if pending >> n - 1 & 1
    ]


def _entries(found: "Sequence[bytes]") -> SignalQueueEntry:
    return SignalQueueEntry(signals=[SiginfoEntry(siginfo=info) for info in found]) if found else _NONE


_NONE = SignalQueueEntry()  # most threads have no signal that waits
freeze(_NONE)


def _check(queue: SignalQueueEntry | None, where: str) -> None:
    for entry in queue.signals if queue is not None else ():
        if len(entry.siginfo) != ptrace.SIGINFO_SIZE or not 1 <= _number(entry.siginfo) <= 64:
            raise ImageError(f"the core image of {where} is mangled", "a pending signal makes no sense")


def _siginfos(task: "RestoreTask", queue: SignalQueueEntry | None) -> list[tuple[int, bytes]]:
    """Signals to be queued.  Not those of periodic timers, which do that themselves."""
    infos = [entry.siginfo for entry in (queue.signals if queue is not None else ())]
    if not infos:
        return []
    timers = pending_periodic(task)
    found = []
    for info in infos:
        told = overruns.notice(info)
        if told is None:
            found.append((_number(info), info))
        elif told.timer not in timers:
            found.append((told.signal, overruns.with_overrun(info, told.overrun)))
    return found


ATTRIBUTES = [Actions(), AltStack(), Pending()]
