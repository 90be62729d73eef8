# SPDX-License-Identifier: Apache-2.0
"""Run system calls inside another process, and leave it as it was.

    from torpor import infect

    with infect.stopped(pid) as task:
        print(task.getcwd())                      # its own getcwd, from inside
        task.call("close", 7)                     # close a descriptor of its
        address = task.mmap(1 << 20)              # give it a megabyte of memory

Inside the block all threads of the process stand still; at its end the process goes on where it was, with what the
calls changed and nothing else.  Should your program be killed inside the block, the process goes home by itself.

Many calls travel as one program, in which a call may use results of earlier ones (see torpor.engine.program)::

        program = infect.Program()
        fd = program.call("openat", infect.AT_FDCWD, program.string("/etc/hostname"), 0, 0)
        text = program.space(256)
        length = program.call("read", fd, text, 256)
        program.call("close", fd)
        task.run(program)
        print(text.data[: length.value])

ptrace belongs to a thread: a block must be left by the thread that entered it.  Signals for that thread wait while the
task is being stopped, runs calls, or is let go, so that no handler of yours (Ctrl-C has one) raises an exception
halfway.  In a program with several threads, let another than the main one do this: Python runs handlers in the main
thread, whichever the signal came to.  Needs the rights of PTRACE_MODE_ATTACH (ptrace(2)).  Nothing here waits for
anybody's children but the task's own stops.
"""

import os
from contextlib import contextmanager

from torpor.engine.executor import CannotInstall, Executor
from torpor.engine.freeze import FrozenProcess, freeze
from torpor.engine.program import CallFailed, Load32, Pointer, Program, Result
from torpor.engine.stepper import Stepper
from torpor.engine.thaw import thaw
from torpor.errors import TaskGone, TorporError
from torpor.signals import SIG_BLOCK, SIG_SETMASK, pthread_sigmask, valid_signals
from torpor.typed import Any, Iterator

AT_FDCWD = -100
_PROT_READ, _PROT_WRITE, _MAP_PRIVATE, _MAP_ANONYMOUS = 1, 2, 2, 0x20
_PATH_MAX = 4096


class _Undisturbed:
    """Signals for this thread wait until the ``with`` block is over, and so does what a handler has raised on its way
    in: the block is run in any case."""

    def __enter__(self) -> None:
        self._raised: BaseException | None = None
        self._before: set[Any] | None = None
        try:
            self._before = pthread_sigmask(SIG_BLOCK, ())
            pthread_sigmask(SIG_BLOCK, valid_signals())
        except BaseException as error:
            self._raised = error
            before = pthread_sigmask(SIG_BLOCK, valid_signals())
            self._before = before if self._before is None else self._before

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        assert self._before is not None
        pthread_sigmask(SIG_SETMASK, self._before)
        if self._raised is not None and error is None:
            raise self._raised


class Task:
    """A stopped process, while inside `stopped`."""

    def __init__(self, process: FrozenProcess) -> None:
        self.pid = process.pid
        self._threads = list(process.threads.values())
        leader = self._threads[0]
        self._runner: Executor | Stepper
        try:
            if leader.tid != process.pid:
                raise CannotInstall("the leader has ended")
            self._runner = Executor(leader)
        except CannotInstall:
            self._runner = Stepper(leader)

    def run(self, program: Program) -> None:
        """Run a program.  Raises CallFailed for the first call that fails and may not; results before it are there."""
        with _Undisturbed():
            self._runner.run(program)

    def call(self, name: str, *args: int | bytes | str) -> int:
        """One system call by name; bytes and text are passed by address, text with a NUL behind it.

        Returns its result; raises CallFailed.
        """
        program = Program()
        passed: list[int | Pointer] = [
            program.string(arg) if isinstance(arg, str) else program.put(arg) if isinstance(arg, bytes) else arg
            for arg in args
        ]
        result = program.call(name, *passed)
        self.run(program)
        return result.value

    def getcwd(self) -> str:
        """Its working directory, as it sees it."""
        program = Program()
        buffer = program.space(_PATH_MAX)
        length = program.call("getcwd", buffer, _PATH_MAX)
        self.run(program)
        return os.fsdecode(buffer.data[: length.value - 1])

    def mmap(self, size: int) -> int:
        """Map `size` bytes of zeroed private memory in it; returns the address.  It stays when the task goes on."""
        return self.call("mmap", 0, size, _PROT_READ | _PROT_WRITE, _MAP_PRIVATE | _MAP_ANONYMOUS, -1, 0)

    def read(self, address: int, size: int) -> bytes:
        """Its memory.  Raises OSError (EIO) where nothing is mapped."""
        return self._threads[0].read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Change its memory, write-protected pages too (they become its own).  Raises OSError."""
        self._threads[0].write(address, data)

    def _let_go(self) -> None:
        try:
            self._runner.remove()
        finally:
            for thread in reversed(self._threads):
                try:
                    thread.stop_program()
                    thread.let_go()
                except (OSError, TaskGone):
                    pass


@contextmanager
def stopped(pid: int) -> Iterator[Task]:
    """Stop process `pid`, all its threads and not its children, for the length of a ``with`` block.

    Raises TaskGone, Refusal (traced already, no rights).
    """
    if pid == os.getpid():
        raise TorporError("a process cannot stop itself", code="usage")
    process: FrozenProcess | None = None
    task: Task | None = None
    try:
        with _Undisturbed():
            process = freeze(pid, children=False).processes[pid]
            if not process.threads:
                raise TaskGone(f"process {pid} has ended", "only its exit status is left")
            task = Task(process)
        yield task
    finally:
        with _Undisturbed():
            if task is not None:
                task._let_go()
            elif process is not None:
                thaw(process.threads.values())


__all__ = ["AT_FDCWD", "CallFailed", "Load32", "Pointer", "Program", "Result", "Task", "stopped"]
