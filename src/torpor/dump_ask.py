# SPDX-License-Identifier: Apache-2.0
"""What a dump lets tasks do themselves: an executor comes into each, asks what only it can tell and has it write its
pages; afterwards all are put back."""

import os
import time
from resource import RLIMIT_DATA, RLIMIT_NOFILE

from torpor import dump_files
from torpor import signals as signal
from torpor.engine.descriptors import raise_limit, shortage
from torpor.engine.executor import CannotInstall, Executor
from torpor.engine.program import Program
from torpor.engine.stepper import Stepper
from torpor.engine.team import Answers, ThreadTeam
from torpor.engine.thaw import thaw, thaw_somehow
from torpor.engine.waiting import check_cancelled, forget_cancellation
from torpor.errors import DumpFailed, TaskGone, TorporError
from torpor.kernel.proc import INFINITY, parse_stat
from torpor.kernel.procfs import read_all
from torpor.memory import segments as shared
from torpor.memory.areas import SPARE_AREAS
from torpor.memory.dump import AddressSpace
from torpor.resources.context import DumpTask
from torpor.typed import TYPE_CHECKING, Any, Iterable

if TYPE_CHECKING:
    from torpor.engine.freeze import FrozenTree
    from torpor.engine.tracee import Tracee
    from torpor.resources.base import Attribute
    from torpor.resources.context import Dump

STOPPING_S = 5.0  # until every task has come to its stop
AT_ONCE = 32  # tasks that run programs at the same time


def allow_descriptors(number: int) -> None:
    """Before the freeze: let the engine have the descriptors that so many tasks need.  Raises DumpFailed."""
    short = shortage(number, 2 * min(number, AT_ONCE), raise_limit())
    if short is not None:
        raise DumpFailed("cannot dump this tree", *short, code="no-descriptors")


def install(dump: "Dump") -> None:
    """Bring an executor into every task that is alive."""
    for task in dump.tasks.values():
        if task.zombie:
            continue
        check_cancelled()
        try:
            if task.leader.tid != task.pid or _table_full(task):
                raise CannotInstall
            task.runner = Executor(task.leader, tight=_is_tight(dump, task))
        except CannotInstall:
            task.runner = Stepper(task.leader)


def _is_tight(dump: "Dump", task: DumpTask) -> bool:
    """Whether memory that could be mapped may yet be refused to be written."""
    strict: bool = dump.state["strict overcommit"]
    few = 0 < len(task.areas) < dump.state["most areas"] - 2 * SPARE_AREAS  # none: it lives in another's memory
    return strict or not few or task.limits[RLIMIT_DATA].soft != INFINITY


def _table_full(task: DumpTask) -> bool:
    """Whether the socket pair would not fit into the task's fd table."""
    limit = task.limits[RLIMIT_NOFILE].soft
    return 0 <= limit < len(task.numbers[task.leader.tid]) + 4


class Asked:
    """Answers of all tasks: per PID, in the order of the attributes; and per TID, in that of those `of_threads`."""

    def __init__(self, attributes: "list[Attribute]") -> None:
        self.task: dict[int, list[Any]] = {}
        self.of_threads = [attribute for attribute in attributes if attribute.of_threads]
        self._lookers = [(at, attribute) for at, attribute in enumerate(self.of_threads) if attribute.looks]
        self._seen: dict[int, list[Any]] = {}
        self._answers: dict[int, tuple[list[Any], Answers | None]] = {}

    def ask(self, task: DumpTask, threads: "Iterable[Tracee]", program: Program) -> list[Any]:
        """Append what threads are asked, and look at them.  Returns the answers-to-be."""
        answers = [attribute.ask_thread(task, program) for attribute in self.of_threads]
        for thread in threads:
            self._seen[thread.tid] = [attribute.look_thread(task, thread) for _, attribute in self._lookers]
            self._answers[thread.tid] = answers, None
        return answers

    def answered(self, threads: "Iterable[Tracee]", answers: list[Any], told: Answers) -> None:
        """By a program that these threads have run one and all."""
        for thread in threads:
            self._answers[thread.tid] = answers, told

    def thread(self, tid: int) -> list[Any]:
        """A thread's answers, until another's are asked for."""
        answers, told = self._answers[tid]
        if told is not None:
            told.recall(tid)
        for (at, _), seen in zip(self._lookers, self._seen[tid], strict=True):
            answers[at] = seen
        return answers


def gather(dump: "Dump", memory: list[AddressSpace]) -> Asked:
    """Let every task write its pages, and tell what only it can tell; look at everything else meanwhile.

    Some tasks run at a time.  Each begins with its pages, which takes it a while: the questions are made up meanwhile.
    """
    asked = Asked(dump.state["attributes"])
    spaces = {space.task.pid: space for space in memory}
    alive = [task for task in dump.tasks.values() if not task.zombie]
    pages_id = 0
    for at in range(0, len(alive), AT_ONCE):
        check_cancelled()
        some = alive[at : at + AT_ONCE]
        writers = {}
        for task in some:
            if task.pid in spaces:  # else it lives in another's address space
                pages_id += 1
                writers[task.pid] = spaces[task.pid].write(dump, pages_id)
        for task in some:
            program = _questions(dump, task, asked, spaces.get(task.pid))
            if task.pid in writers:
                writers[task.pid].then(program)
            else:
                task.run(program)
        for task in some:
            dump_files.look(dump, task)
            if task.pid in spaces:
                spaces[task.pid].look(dump)
        for writer in writers.values():
            writer.join()
    dump_files.settle(dump)
    shared.store(dump, pages_id + 1)
    for task in alive:
        if len(task.threads) > 1:
            _ask_threads(task, asked)
    return asked


def _questions(dump: "Dump", task: DumpTask, asked: Asked, space: AddressSpace | None) -> Program:
    attributes = dump.state["attributes"]
    program = Program()
    if space is not None:
        space.ask(program)
    asked.task[task.pid] = [attribute.ask(task, program) for attribute in attributes]
    asked.ask(task, [task.leader], program)
    return program


def _ask_threads(task: DumpTask, asked: Asked) -> None:
    together = []
    for thread in task.threads[1:]:
        if isinstance(task.runner, Executor) and thread.tid not in task.own_files:
            together.append(thread)
            continue
        program = Program()  # the team's socket is not in its fd table
        asked.ask(task, [thread], program)
        stepper = Stepper(thread)
        stepper.run(program)
        stepper.remove()
    if isinstance(task.runner, Executor) and together:
        program = Program()
        answers = asked.ask(task, together, program)
        task.team = ThreadTeam(task.runner)
        asked.answered(together, answers, task.team.ask(together, program))
        task.team.close()
        task.team = None


# -- putting back -----------------------------------------------------------------------------------------------------


def cure(dump: "Dump", stop: bool = False) -> None:
    """Take the executors out and let every task go on as it was (or stay stopped, by SIGSTOP)."""
    forget_cancellation()
    put_back(dump, stop)


def put_back(dump: "Dump", stop: bool = False) -> None:
    """As `cure`, where other work follows, which may be cancelled."""
    for task in dump.tasks.values():
        if task.runner is not None:
            task.runner.remove()
            task.runner = None
    if stop:
        for task in dump.tasks.values():
            # One that is stopped already would keep a second SIGSTOP pending.
            if not task.zombie and not task.leader.group_stop:
                os.kill(task.pid, signal.SIGSTOP)
    for task in dump.tasks.values():
        thaw(thread for thread in task.threads if thread.stopped)
        if task.pidfd >= 0:
            os.close(task.pidfd)
            task.pidfd = -1
    if stop:
        _await_stops([thread.tid for task in dump.tasks.values() for thread in task.threads])


def _await_stops(tids: list[int]) -> None:
    """A thread stops when the kernel lets it run next: on a busy machine after we would have said that all is done."""
    deadline = time.monotonic() + STOPPING_S
    for tid in tids:
        try:
            while parse_stat(read_all(f"/proc/{tid}/stat")).state not in "TtZX" and time.monotonic() < deadline:
                time.sleep(0.0005)
        except (OSError, TaskGone):
            pass  # it has ended


def cure_all(dump: "Dump", tree: "FrozenTree") -> None:
    """After a failure: put back whatever can be put back, whatever state it is in."""
    forget_cancellation()
    put_all_back(dump, tree)


def put_all_back(dump: "Dump", tree: "FrozenTree") -> None:
    """As `cure_all`, where other work follows, which may be cancelled."""
    for task in dump.tasks.values():
        try:
            if task.team is not None:
                task.team.abandon(task.threads[1:])
        except (OSError, TorporError):
            pass
        try:
            if task.runner is not None:
                task.runner.remove()
        except (OSError, TorporError):
            pass
    for process in tree.processes.values():
        thaw_somehow(process.threads.values())
