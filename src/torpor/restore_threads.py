# SPDX-License-Identifier: Apache-2.0
"""The threads of a restored process: made when all that they share stands, and given what is each one's own.

Most run their programs side by side, through their process's executor (engine/team.py).  A thread with a table of
descriptors of its own cannot use the executor's socket: it gets an executor of its own, first of all.
"""

from torpor.engine.program import Program
from torpor.engine.team import ThreadTeam
from torpor.resources.fdtable import thread_tables
from torpor.typed import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from torpor.engine.executor import Executor
    from torpor.engine.spawn import Spawner
    from torpor.engine.tracee import Tracee
    from torpor.resources.base import Attribute
    from torpor.resources.context import RestoreTask
    from torpor.resources.fdtable import Files

    Place = Callable[[RestoreTask, int, Program], None]  # what a thread (by its TID) has to do for its attributes


def bring_back(
    task: "RestoreTask", spawner: "Spawner", files: "Files", limit: int, place: "Place", in_turn: "list[Attribute]"
) -> None:
    """Make the other threads; then everything that is a thread's own, the leader's last.  `limit`: of descriptors, the
    hard one; `in_turn`: attributes that the threads restore one after the other."""
    others = task.threads[1:]
    if others:
        _make(task, others, spawner, files, limit, place, in_turn)
    if not task.leader_ended:
        program = Program()
        place(task, task.pid, program)
        task.executor.run(program)


def _make(
    task: "RestoreTask", others: list[int], spawner: "Spawner", files: "Files", limit: int, place: "Place",
    in_turn: "list[Attribute]",
) -> None:  # fmt: skip
    assert task.tracee is not None and task.restore is not None
    tables = thread_tables(task.restore, task)
    programs: dict[Tracee, Program] = {}
    runners: dict[int, Executor] = {task.pid: task.executor}
    for thread in spawner.threads(task.executor, others):
        task.tracees[thread.tid] = thread
        if thread.tid in tables:
            thread.share_memory(task.tracee)
            runner = runners[thread.tid] = spawner.enter_thread(task.executor, thread)
            program = files.fill_thread(task, runner, tables[thread.tid], limit)
            place(task, thread.tid, program)
            runner.run(program)
        else:
            programs[thread] = Program()
            place(task, thread.tid, programs[thread])
    team = ThreadTeam(task.executor)
    team.run(programs)

    def run(tid: int, program: Program) -> None:
        if tid in runners:
            runners[tid].run(program)
        else:
            team.run({task.tracees[tid]: program})

    for attribute in in_turn:
        attribute.in_turn(task, run)
    team.close()
