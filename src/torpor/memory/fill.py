# SPDX-License-Identifier: Apache-2.0
"""Stored pages go back into a task.

The task reads them itself: one preadv(2) fills up to 1,024 runs from the page cache, in one copy.  Surprising facts,
all measured on 1 GB:

- To have the kernel make the pages first (MADV_POPULATE_WRITE, Linux 5.14), half a megabyte at a time, so that they
  are still in the processor's cache when they are filled: 450 ms instead of 600, which a page fault each took.
- The engine has nothing to do meanwhile.  Where there is much to read it reads from the other end and copies by
  process_vm_writev(2): 270 ms, if there is a second processor.
- Huge pages would take 250 ms, but an area that asks for them (MADV_HUGEPAGE) cannot be told to stop asking.
"""

import os
import struct

from torpor.engine.executor import Executor
from torpor.engine.program import Load32, Program, Result
from torpor.engine.waiting import check_cancelled
from torpor.errors import ImageError
from torpor.kernel.process import process_vm_writev
from torpor.memory import cow
from torpor.typed import TYPE_CHECKING, Sequence

if TYPE_CHECKING:
    from torpor.engine.tracee import Tracee

COPY = 1 << 20
MADV_POPULATE_WRITE = 23
MAX_IOVECS, CHUNK = 1024, 1 << 19
LARGE = 1 << 25  # from here on the engine helps
_POPULATED = 1 << 18  # a run this long is made before it is filled


def append_reads(
    program: Program, runner: Executor, runs: Sequence[cow.Run], opened: list[int]
) -> list[tuple[Result, int]]:
    """Append the reading of these runs; returns what each call has to return, for `check_reads`.  The descriptors in
    `opened` are to be closed when it has run."""
    reads: list[tuple[Result, int]] = []
    for level, some in cow.by_level(runs):
        opened.append(level.open_pages())
        remote = _append_open(program, runner, opened[-1])
        for group in cow.groups(some, MAX_IOVECS, CHUNK):
            reads.append(_append_read(program, runner.arch.word, remote, group))
        program.call("close", remote)
    return reads


def _append_open(program: Program, runner: Executor, fd: int) -> Result:
    """Let the task have a descriptor of ours; its number is a result, so that later batches can use it too."""
    numbers = runner.send_fds(program, [fd])
    remote = program.call("fcntl", Load32(numbers), 0, 0)  # F_DUPFD
    program.call("close", Load32(numbers))
    return remote


def _append_read(program: Program, word: str, remote: Result | int, group: Sequence[cow.Run]) -> tuple[Result, int]:
    total = 0
    for run in group:
        total += run.length
        if run.length >= _POPULATED:
            program.call("madvise", run.start, run.length, MADV_POPULATE_WRITE, may_fail=True)
    vector = struct.pack(f"{word[0]}{2 * len(group)}{word[1]}", *[n for run in group for n in (run.start, run.length)])
    return program.call("preadv", remote, program.put(vector), len(group), group[0].offset), total


def check_reads(pid: int, reads: Sequence[tuple[Result, int]]) -> None:
    if any(result.value != total for result, total in reads):
        raise ImageError(f"the pages of task {pid} cannot be read", "the image is too short")


def read_large(pid: int, runner: Executor, runs: Sequence[cow.Run]) -> None:
    """Fill many pages: the task from the front, the engine from the back, until they meet."""
    for level, some in cow.by_level(runs):
        fd = level.open_pages()
        try:
            program = Program()
            remote = _append_open(program, runner, fd)
            runner.run(program)
            _meet(pid, runner, remote.value, fd, list(cow.groups(some, MAX_IOVECS, CHUNK)))
            program = Program()
            program.call("close", remote.value)
            runner.run(program)
        finally:
            os.close(fd)


def _meet(pid: int, runner: Executor, remote: int, fd: int, groups: Sequence[Sequence[cow.Run]]) -> None:
    front, back, helping = 0, len(groups), True
    while front < back:
        check_cancelled()
        share = min(back - front, max(8, (back - front) // 4) if helping else 1024)
        program = Program()
        reads = [_append_read(program, runner.arch.word, remote, group) for group in groups[front : front + share]]
        front += share
        for batch in runner.batches(program):
            runner.start(batch)
            while helping and front < back and not runner.is_done():
                helping = _copy(pid, fd, groups[back - 1])
                back -= helping
            runner.finish()
        check_reads(pid, reads)


_buffer = bytearray(CHUNK)


def _copy(pid: int, fd: int, group: Sequence[cow.Run]) -> bool:
    """Fill these pages from outside; False: the kernel does not want that."""
    total = sum(run.length for run in group)
    data = memoryview(_buffer)[:total]
    try:
        return (
            os.preadv(fd, [data], group[0].offset) == total
            and process_vm_writev(pid, data, [(run.start, run.end) for run in group]) == total
        )
    except OSError:
        return False


def poke(tracee: "Tracee", runs: Sequence[cow.Run]) -> None:
    """Write changed pages of program text from outside: to map it writable would leave traces (VM_ACCOUNT)."""
    for level, some in cow.by_level(runs):
        fd = level.open_pages()
        try:
            for run in some:
                for at in range(0, run.length, COPY):
                    size = min(COPY, run.length - at)
                    tracee.write(run.start + at, os.pread(fd, size, run.offset + at))
        finally:
            os.close(fd)
