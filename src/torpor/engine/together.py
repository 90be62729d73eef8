# SPDX-License-Identifier: Apache-2.0
"""Many tasks' work, side by side.

What is to be done in one task is a generator that yields programs; between two of them it may look at the results of
the first::

    def work(task):
        program = Program()
        pid = program.call("getpid")
        yield program
        log.info(pid.value)

While one task runs its program, those of others are built, sent and collected: every processor has something to do,
and nobody waits for a task to wake up.  (Measured: a restore of 200 processes took 1.2 s one after the other, with two
programs where there is one now, and takes 0.5 s.)
"""

from torpor.engine.executor import Executor
from torpor.engine.program import Batch, Program
from torpor.engine.waiting import check_cancelled
from torpor.typed import Generator, Iterable, Iterator

Work = Generator[Program, None, None]
WIDTH = 64  # tasks at work at once: descriptors that are under way are limited


class _Worker:
    """One task and where it is in its work."""

    def __init__(self, runner: Executor, work: Iterator[Program]) -> None:
        self.runner, self.work = runner, work
        self.batches: Iterator[Batch] = iter(())
        self.ahead: Batch | None = None  # laid out while the one before it runs

    def go_on(self) -> bool:
        """Start what comes next; False: there is nothing left."""
        batch = self.ahead
        while batch is None:
            program = next(self.work, None)
            if program is None:
                return False
            self.batches = self.runner.batches(program)
            batch = next(self.batches, None)
        self.runner.start(batch)
        self.ahead = next(self.batches, None)
        return True


def run_together(works: "Iterable[tuple[Executor, Iterator[Program]]]") -> None:
    """Do all of it.  Raises what the first that fails raises; others may be in the middle of something then."""
    waiting = iter([_Worker(runner, work) for runner, work in works])
    busy: list[_Worker] = []
    while True:
        check_cancelled()
        while len(busy) < WIDTH and (worker := next(waiting, None)) is not None:
            if worker.go_on():
                busy.append(worker)
        if not busy:
            return
        left = []
        for worker in busy:
            worker.runner.finish()
            if worker.go_on():
                left.append(worker)
        busy = left
