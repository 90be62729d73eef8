# SPDX-License-Identifier: Apache-2.0
"""Dumps whose engine is killed at a moment that is told by counting.

A step is what the engine does to a task (a ptrace request, a write to the task's memory, a message to its executor),
and what it writes into its journal; but not while it rehearses with a child of its own.  To die before each of them in
turn visits every state in which a task can be.
"""

import os
import random
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.events import children_of, describe, wait_end
from harness.warm import WARM, start
from torpor import rehearsal
from torpor.arch.base import Arch
from torpor.engine import journal
from torpor.engine.executor import Executor
from torpor.engine.program import CALL_WORDS, LIST_WORDS, Batch
from torpor.engine.tracee import Tracee
from torpor.kernel import ptrace

NO_CALL = 5000  # the number of none
SURE = frozenset({"close", "exit", "exit_group", "munmap", "ppoll"})  # no kernel does without these
SETTLE_S = 40.0  # for a guardian to put back what it can
MOMENTS = int(os.environ.get("TORPOR_MOMENTS") or (2 if os.environ.get("WL_FEWER") else 4))


class Steps:
    """Counts those of the engine: the front's child.  (The guardian, its grandchild, takes the same ones.)"""

    def __init__(self, deed: Callable[[int], object], tell: Callable[[int], object]) -> None:
        """`deed` is told which step comes next; `tell`, in an engine that ends by itself, how many there were."""
        self.deed, self.tell = deed, tell
        self.front = os.getpid()
        self.process = self.count = 0  # which process that is, and is it the engine?
        self.is_engine = self.rehearsing = False

    def step(self) -> None:
        if self.process != os.getpid():
            self.process, self.is_engine = os.getpid(), os.getppid() == self.front
        if self.is_engine and not self.rehearsing:
            self.count += 1
            self.deed(self.count)

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            self.step()
            return function(*arguments, **named)

        return wrapped

    def uncounted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> None:
            self.rehearsing = True
            try:
                function(*arguments)
            finally:
                self.rehearsing = False

        return wrapped

    def begin(self) -> None:
        ptrace.request = self.counted(ptrace.request)
        journal.note = self.counted(journal.note)
        Tracee.write = self.counted(Tracee.write)  # type: ignore[method-assign]
        socket.socket.send = self.counted(socket.socket.send)  # type: ignore[method-assign]
        self._until_the_end()

    def begin_calls(self, at: int) -> None:
        """Count what tasks are told to call instead; the kernel does not know the call `at` (ENOSYS)."""
        Batch.encode = self._failing(Batch.encode, at)  # type: ignore[method-assign]
        Executor._write_undo = self.uncounted(Executor._write_undo)  # type: ignore[method-assign]
        self._until_the_end()

    def _failing(self, encode: Callable[[Batch, int, Arch], bytes], at: int) -> Callable[[Batch, int, Arch], bytes]:
        chosen: dict[Batch, int | None] = {}  # a batch is encoded several times where many tasks get it

        def choose(batch: Batch) -> int | None:
            found = None
            for which, call in enumerate(batch.calls):
                if call.name not in SURE:
                    before = self.count
                    self.step()
                    found = which if before < at == self.count else found
            return found

        def encoded(batch: Batch, address: int, arch: Arch) -> bytes:
            body = bytearray(encode(batch, address, arch))
            if batch not in chosen:
                chosen[batch] = choose(batch)
            if (which := chosen[batch]) is not None:
                place = (LIST_WORDS + CALL_WORDS * which) * arch.word_size
                struct.pack_into(arch.word, body, place, NO_CALL)
            return bytes(body)

        return encoded

    def _until_the_end(self) -> None:
        rehearsal.rehearse = self.uncounted(rehearsal.rehearse)
        leave = os._exit

        def leaving(status: int) -> Any:
            if self.is_engine and self.process == os.getpid():
                self.tell(self.count)
            leave(status)

        os._exit = leaving


def some(steps: int, number: int = MOMENTS) -> Iterator[int]:
    """About so many of the steps, spread evenly, others each time."""
    stride = max(1, steps // number)
    yield from range(random.randrange(stride) + 1, steps + 1, stride)


def dump(pid: int, images: Path, at: int, *options: str) -> tuple[int, int, str]:
    """A dump whose engine is killed before its step `at` (0: never).  Its exit status; how many steps it took, 0 if it
    was killed; its words.  All that it started has ended then."""
    images.mkdir(parents=True)
    heard, said = os.pipe()
    words = os.memfd_create("words")
    before = set(children_of(os.getpid()))

    def deed(step: int) -> None:
        if step == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def count() -> None:
        Steps(deed, lambda steps: os.write(3, b"%d" % steps)).begin()

    with open(os.devnull) as nothing:
        command = [WARM, "dump", "-t", str(pid), "-D", str(images), "-R", *options]
        front = start(command, (nothing.fileno(), words, words, said), count)
    os.close(said)
    try:
        status = os.waitstatus_to_exitcode(wait_end(front, SETTLE_S))
        deadline = time.monotonic() + SETTLE_S
        while left := [one for one in children_of(os.getpid()) if one not in before]:  # the guardian became ours
            for one in left:
                os.waitpid(one, os.WNOHANG)
            assert time.monotonic() < deadline, f"left behind: {'; '.join(map(describe, left))}"
            time.sleep(0.002)
        text = os.pread(words, 10000, 0).decode(errors="replace")
        return status, int(os.read(heard, 100) or b"0"), text
    finally:
        os.close(heard)
        os.close(words)
