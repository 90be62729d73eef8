# SPDX-License-Identifier: Apache-2.0
"""The tree of tasks at restore: births, sessions, process groups, helpers, zombies, stopped tasks.

model/births.py says who makes whom and when; here it is done, by one program for all that a task has to do in a
row.  Each task's memory is filled before it makes children of its own.

Ends come when all are born, and their news are taken back: whenever a child ends, or stops, the kernel queues SIGCHLD
for its parent (or whatever clone(2) was told to send).  The parents are restored with all signals blocked, so it would
stay; ignoring the signal for a moment throws it away again (and the images say which SIGCHLDs there really were).  A
stopped task is stopped before its memory and files are brought back: a traced task runs programs in spite of its
process being stopped, and detached it is simply what it was, without news to anybody.
"""

import os
import struct

from torpor import log
from torpor import signals as signal
from torpor.arch import native
from torpor.engine import stops
from torpor.engine.program import Program
from torpor.engine.spawn import Birth, Spawner
from torpor.engine.stops import Kind
from torpor.engine.together import run_together
from torpor.engine.tracee import ALL_SIGNALS
from torpor.engine.waiting import check_cancelled
from torpor.errors import ImageError, RestoreFailed
from torpor.images.schema.constants import TaskState
from torpor.kernel import ptrace
from torpor.kernel.process import CLONE_PARENT, CLONE_VM
from torpor.model.restore_plan import OUTSIDE, SIBLING, Adopt, Create, End, Lead, Plan, Setsid, Step, Unshare
from torpor.resources import clocks, extras, names, own
from torpor.resources.signals import NUMBERS
from torpor.resources.stops import is_unseen
from torpor.typed import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from torpor.engine.executor import Executor
    from torpor.engine.stub import Cradle
    from torpor.engine.together import Work
    from torpor.images.schema.torpor import TaskExtraEntry
    from torpor.memory.restore import AddressSpaces
    from torpor.resources.context import Restore, RestoreTask

PR_SET_CHILD_SUBREAPER = 36
SIG_IGN = 1
CORE_DUMPED = 0x80  # in a wait status: nothing sets it but dumping core
WNOHANG, WUNTRACED, WALL = 1, 2, 0x40000000
_SIGACTION_SIZE = 64  # struct kernel_sigaction of any architecture fits


class Tree:
    """Makes the tree of a plan."""

    def __init__(self, restore: "Restore", plan: Plan, spawner: Spawner, spaces: "AddressSpaces") -> None:
        self.restore, self.plan, self.spawner, self.spaces = restore, plan, spawner, spaces
        self.pids: dict[int, int] = {}  # helpers whose PID does not matter: number in the plan -> PID
        self._bereaved: dict[int, set[int]] = {}  # tasks that were told of an end or a stop, and by which signals
        self._exit_signals: dict[int, int] = {}  # of everyone who was born: what its end brings its parent
        self._terminals = any(file.tty is not None for file in restore.files.values())
        self._groups: dict[int, list[RestoreTask]] = {}
        for task in restore.tasks.values():
            self._groups.setdefault(task.pgid, []).append(task)

    # -- births -----------------------------------------------------------------------------------------------------
    def build(self, clone_first: "Callable[[Cradle, int], None]", cradle: "Cradle | None") -> None:
        """All births, then who joins which group.  `clone_first` makes the root, from `cradle` if there is one."""
        steps = self.plan.steps
        root = steps[0]
        assert isinstance(root, Create) and root.maker == 0
        executor = self.spawner.first(root.pid, clone_first, cradle)
        program = Program()
        default = program.space(_SIGACTION_SIZE)  # what Torpor ignores, the tree would ignore, too
        for number in NUMBERS:
            program.call("rt_sigaction", number, default, 0, 8)
        executor.run(program)
        clocks.enter(self.restore, executor)
        run_together(self._born(root, executor))
        at = 1
        while at < len(steps):
            check_cancelled()
            actor = _actor(steps[at])
            end = at + 1
            while end < len(steps) and _actor(steps[end]) == actor and not isinstance(steps[end], End):
                end += 1
            self._do(actor, steps[at:end])
            at = end
        self._join_groups()

    def _runner(self, number: int) -> "Executor":
        return self.spawner.executors[self.pids.get(number, number)]

    def _do(self, actor: int, steps: list[Step]) -> None:
        """What one task does in a row, as one program."""
        if isinstance(steps[0], End):
            self._end_helper(steps[0].pid, steps[0].parent)
            steps = steps[1:]
        program = Program()
        births: list[Create] = []
        runner = self._runner(actor) if steps else None
        for step in steps:
            assert runner is not None
            if isinstance(step, Create):
                births.append(step)
                continue
            if births:
                self._bear(runner, program, births)
                program, births = Program(), []
            if isinstance(step, Setsid):
                program.call("setsid")
                if self._terminals:  # now, for children inherit it
                    runner.run(program)
                    program = Program()
                    from torpor.resources import tty_restore

                    tty_restore.take_controlling(self.restore, step.pid, runner)
            elif isinstance(step, Lead):
                program.call("setpgid", 0, 0)
            elif isinstance(step, Unshare):
                program.call("unshare", step.flags)
            elif isinstance(step, Adopt):
                program.call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if births:
            assert runner is not None
            self._bear(runner, program, births)
        elif len(program):
            assert runner is not None
            runner.run(program)

    def _bear(self, runner: "Executor", program: Program, steps: list[Create]) -> None:
        works = []
        births = []
        for step in steps:
            sibling = step.how == SIBLING
            exit_signal = wanted = _exit_signal(self.restore, step.pid)
            if sibling:  # they inherit it
                exit_signal = self._exit_signals.get(step.maker, signal.SIGCHLD)
            if exit_signal != wanted and step.pid in self.restore.tasks:
                log.warning(
                    f"the end of task {step.pid} will bring its parent signal {exit_signal} instead of {wanted}"
                )
            self._exit_signals[step.pid] = exit_signal
            births.append(Birth(max(step.pid, 0), step.flags | (CLONE_PARENT if sibling else 0), exit_signal))
        for step, executor in zip(steps, self.spawner.births(runner, program, births), strict=True):
            if step.pid < 0:
                self.pids[step.pid] = executor.tracee.pid
            works += self._born(step, executor)
        run_together(works)

    def _born(self, step: Create, executor: "Executor") -> "list[tuple[Executor, Work]]":
        """Returns what is to be done in the new task next: its memory."""
        task = self.restore.tasks.get(step.pid)
        if task is None:
            return []
        task.tracee, task.runner = executor.tracee, executor
        task.tracees[task.pid] = executor.tracee
        maker = step.maker
        while maker and (maker not in self.restore.tasks or self.restore.tasks[maker].dead):
            maker = self.plan.makers[maker]
        task.memory_from = maker
        if task.dead or step.flags & CLONE_VM:
            return []
        return [(executor, self.spaces.fill_before_fork(task))]

    def _join_groups(self) -> None:
        for pid, group in self.plan.joins:
            program = Program()
            program.call("setpgid", 0, os.getpgrp() if group == OUTSIDE else group)
            self._runner(pid).run(program)

    # -- ends -------------------------------------------------------------------------------------------------------
    def settle(self) -> None:
        """All are born and in their groups: helpers and zombies end, stopped tasks stop, and nobody has heard of it."""
        for pid, parent in self.plan.helpers.items():
            self._end_helper(pid, parent)
        for task in self.restore.tasks.values():
            tc = task.core.tc
            if task.dead:
                assert tc is not None
                program = Program()
                names.set_name(program, tc.comm)
                _set_owner(program, extras.load(self.restore, task.pid).process)
                self._runner(task.pid).run(program)
                self.spawner.end(task.pid, tc.exit_code)
                self._tell(task.ppid, self._exit_signals.get(task.pid, signal.SIGCHLD))
                if tc.exit_code & CORE_DUMPED:
                    log.warning(f"{task.subject} is a zombie that has dumped core: its status no longer says so")
        for task in self.restore.tasks.values():
            tc = task.core.tc
            if not task.dead and tc is not None and tc.task_state == TaskState.STOPPED:
                self._stop(task, tc.stop_signo or signal.SIGSTOP)
        for pid, news in self._bereaved.items():
            if pid in self.restore.tasks and not self.restore.tasks[pid].dead:
                program = Program()
                ignore = program.put(struct.pack(f"{native().word}", SIG_IGN).ljust(_SIGACTION_SIZE, b"\0"))
                for number in news - {0}:
                    program.call("rt_sigaction", number, ignore, 0, 8)
                    program.call("rt_sigaction", number, program.space(_SIGACTION_SIZE), 0, 8)
                self._runner(pid).run(program)

    def _tell(self, pid: int, number: int) -> None:
        self._bereaved.setdefault(pid, set()).add(number)

    def _end_helper(self, number: int, parent: int) -> None:
        pid = self.pids.get(number, number)
        self.spawner.end(pid, 0)
        program = Program()
        program.call("wait4", pid, 0, WALL, 0)
        self._runner(parent).run(program)
        self._tell(parent, self._exit_signals.get(number, signal.SIGCHLD))

    def _stop(self, task: "RestoreTask", number: int) -> None:
        """Bring a task's process into the stop of job control, and let the parent have seen it, if it had."""
        tracee = task.tracee
        assert tracee is not None
        tracee.stop_program()
        mask = ptrace.get_signal_mask(task.pid)
        # Signals of the terminal do not stop a process group that has no parent in its session to continue it.
        sent = signal.SIGSTOP if self._is_orphaned(task) else number
        # Nothing else is let in: news of its own children are still to be thrown away, and may be of the fatal kind.
        ptrace.set_signal_mask(task.pid, ALL_SIGNALS & ~(1 << sent - 1))
        os.kill(task.pid, sent)
        ptrace.cont(task.pid)
        while (stop := stops.wait(task.pid)).kind == Kind.SIGNAL:
            ptrace.cont(task.pid, stop.signal)
        if stop.kind != Kind.GROUP_STOP:
            raise RestoreFailed(f"cannot stop {task.subject}", f"unexpected stop {stop}")
        tracee.group_stop = number
        ptrace.set_signal_mask(task.pid, mask)
        ptrace.cont(task.pid)
        tracee.stopped = False
        parent = self.restore.tasks.get(task.ppid)
        if parent is not None:
            self._tell(task.ppid, signal.SIGCHLD)
            if not is_unseen(self.restore, task.ppid, task.pid):
                program = Program()
                program.call("wait4", task.pid, 0, WNOHANG | WUNTRACED | WALL, 0, may_fail=True)
                self._runner(task.ppid).run(program)

    def _is_orphaned(self, task: "RestoreTask") -> bool:
        """Whether the task's process group is orphaned (setpgid(2))."""
        tasks = self.restore.tasks
        for member in self._groups.get(task.pgid, ()):
            parent = tasks.get(member.ppid)
            if parent is not None and parent.pgid != task.pgid and parent.sid == task.sid:
                return False
        return True


def _set_owner(program: Program, zombie: "TaskExtraEntry") -> None:
    """Append that a task which is to be a zombie becomes the right user's: its parent may ask whose it was."""
    ours = own.facts().credentials
    uid, gid = zombie.zombie_uid or 0, zombie.zombie_gid or 0
    if (uid, gid) in ((0, 0), (ours.uids[0], ours.gids[0])):
        return
    program.call("setresgid", gid, gid, gid)
    program.call("setresuid", uid, uid, uid)


def check(restore: "Restore") -> None:
    """Can all that be done that the images say about births and ends?"""
    for pid in restore.tasks:
        if not 0 <= _exit_signal(restore, pid) <= 64:
            raise ImageError(f"torpor-{pid}.img is mangled", "there is no such signal as its end should bring")


def _exit_signal(restore: "Restore", pid: int) -> int:
    """What the end of a task brings its parent; helpers and most tasks: SIGCHLD."""
    task = restore.tasks.get(pid)
    found = extras.load(restore, pid).process.exit_signal if task else None
    if found is None or (
        task and task.dead and found in (signal.SIGKILL, signal.SIGSTOP)
    ):  # its parent has survived it
        return signal.SIGCHLD
    return found


def _actor(step: Step) -> int:
    return step.maker if isinstance(step, Create) else step.pid
