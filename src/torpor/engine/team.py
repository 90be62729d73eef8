# SPDX-License-Identifier: Apache-2.0
"""One program in each of many threads of a process, all at once.

Some facts about a thread can be asked, and some set, only inside it (sigaltstack, clear_child_tid, credentials …).
Every thread gets a data area of its own in one mapping made by the leader's executor, runs its program, announces it
on a socket that all share, and waits there.  Nothing is ever sent to them: end-of-file sends them home.
"""

import os
import struct
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, socket

from torpor.engine import journal
from torpor.engine.area import HEADER, Area, frame_size
from torpor.engine.executor import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE, Executor
from torpor.engine.program import Batch, CallFailed, Program, Stencil, batches
from torpor.engine.tracee import Tracee
from torpor.engine.waiting import wait_readable
from torpor.errors import TaskGone
from torpor.kernel import ptrace
from torpor.kernel.syscall import call
from torpor.typed import Callable, Iterable, Mapping

Take = Callable[[int, Batch, bytes], None]  # TID, and what it has brought back; raises CallFailed
_WORK = 2048  # bytes for a thread's program and its data


class Answers:
    """What one program has brought back from many threads: kept as it was read, as threads wait meanwhile."""

    def __init__(self, word: str) -> None:
        self._word = word
        self._parts: dict[int, list[tuple[Batch, bytes]]] = {}

    def keep(self, tid: int, batch: Batch, body: bytes) -> None:
        """Raises CallFailed."""
        if batch.done(body, self._word) < len(batch.calls):
            batch.decode(tid, body, self._word)
        self._parts.setdefault(tid, []).append((batch, body))

    def recall(self, tid: int) -> None:
        """Let the program's Results and Pointers be those of this thread."""
        for batch, body in self._parts[tid]:
            batch.decode(tid, body, self._word)


class ThreadTeam:
    """Runs programs in threads that share the leader's address space and fd table."""

    def __init__(self, leader: Executor) -> None:
        self.leader = leader
        self.socket: socket | None = None
        self.fd = -1
        self._at = 0
        self._size = 0
        self._slots = 0
        self._frame = 0
        self._slot_size = 0

    def _open(self, sample: Tracee, threads: int) -> None:
        """Map an area for `threads` slots and make the socket."""
        arch = self.leader.arch
        self._frame = frame = frame_size(arch, sample.registers())
        self._slot_size = (HEADER + frame + 1024 + 64 + _WORK + 63) & ~63
        self._size = (self._slot_size * threads + 65535) & ~65535
        program = Program()
        at = program.call("mmap", 0, self._size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        pair = program.put(struct.pack(f"{arch.word[0]}ii", -1, -1))
        program.call("socketpair", AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)
        (batch,) = self.leader.batches(program)
        try:
            self._make(batch, batch.pointers[pair])
        except CallFailed as error:
            if error.call.result is not at:  # which was mapped, then
                self._unmap(at.value, Program())
            raise
        self._at, self._slots = at.value, threads
        journal.note("area", self.leader.tracee.pid, self._at, self._size)
        self.fd, theirs = struct.unpack(f"{arch.word[0]}ii", pair.data)
        journal.note_ours(self.leader.tracee.pid, self.fd, theirs)
        pidfd = call("pidfd_open", self.leader.tracee.pid, 0)
        try:
            self.socket = socket(fileno=call("pidfd_getfd", pidfd, theirs, 0))
        finally:
            os.close(pidfd)
        journal.note("held", self.socket.fileno())
        program = Program()
        program.call("close", theirs)
        self.leader.set_undo(Program(), self.fd)
        self.leader.run(program)

    def _make(self, batch: Batch, pair: int) -> None:
        """Run the program, such that the guardian finds what it made, should the engine die before it knows itself."""
        leader = self.leader
        tid, work = leader.tracee.tid, leader.area.work
        leader.tracee.write(work, batch.encode(work, leader.arch))  # no result of an earlier program lies there now
        journal.note("pair", tid, work + pair)
        journal.note("mapped", tid, leader.result_at(), self._size)
        try:
            leader.start(batch)
            leader.finish()
        except CallFailed:
            journal.note("pair", tid, 0)
            journal.note("mapped", tid, 0, 0)
            raise

    def run(self, programs: Mapping[Tracee, Program]) -> None:
        """Run each thread's program and stop the threads again, registers put back.  Small ones run in one go.

        Raises CallFailed for the first that failed.
        """
        word = self.leader.arch.word
        self._run(programs, lambda tid, batch, body: batch.decode(tid, body, word))

    def ask(self, threads: Iterable[Tracee], program: Program) -> Answers:
        """The same with one program for all of these threads, which is laid out once.  No call of it may use the result
        of another."""
        answers = Answers(self.leader.arch.word)
        self._run(dict.fromkeys(threads, program), answers.keep)
        return answers

    def _run(self, programs: Mapping[Tracee, Program], take: Take) -> None:
        threads = [thread for thread, program in programs.items() if len(program)]
        if not threads:
            return
        if self.socket is None:
            largest = threads[0]
            if self.leader.arch.volatile:
                largest = max(threads, key=lambda thread: frame_size(thread.arch, thread.registers()))
            self._open(largest, min(len(threads), 256))
        for at in range(0, len(threads), self._slots):
            self._run_some({t: programs[t] for t in threads[at : at + self._slots]}, take)

    def _run_some(self, programs: Mapping[Tracee, Program], take: Take) -> None:
        arch = self.leader.arch
        todo: list[tuple[Tracee, Area, list[Batch]]] = []
        laid_out: dict[tuple[Program, int], list[Batch]] = {}
        for slot, (thread, program) in enumerate(programs.items()):
            size = frame_size(arch, thread.registers()) if arch.volatile else self._frame
            area = Area(arch, self._at + slot * self._slot_size, self._slot_size, size, 0)
            key = program, area.room
            if key not in laid_out:
                laid_out[key] = list(batches(program, arch.word, area.room))
            todo.append((thread, area, laid_out[key]))
        while todo:
            self._round([(thread, area, left[0]) for thread, area, left in todo], take)
            todo = [(thread, area, left[1:]) for thread, area, left in todo if len(left) > 1]

    def _round(self, parts: list[tuple[Tracee, Area, Batch]], take: Take) -> None:
        """One batch in each thread."""
        assert self.socket is not None
        arch = self.leader.arch
        memory = self.leader.tracee
        running: dict[int, tuple[Tracee, Area, Batch]] = {}
        shared = parts[0][2]  # by all, where they are asked the same
        stencil = Stencil(shared, arch) if len(parts) > 2 and shared is parts[-1][2] else None
        for thread, area, batch in parts:
            registers = thread.registers()
            frame, home = area.home_frame(registers, thread.mask)
            whole = (area.header(self.fd, self.fd, thread.tid, home) + frame).ljust(area.work - area.base, b"\0")
            work = stencil.encode(area.work) if stencil and batch is shared else batch.encode(area.work, arch)
            memory.write(area.base, whole + work)
            thread.touch()
            entry = arch.enter_executor(
                thread.general, self.leader.base, (area.base, 0, PROT_READ | PROT_WRITE), area.stack_top
            )
            thread.set_general(entry)
            thread.block_signals()  # not before: from here on, the thread itself would put its mask back
            journal.note("inside", thread.tid)
            ptrace.cont(thread.tid)
            thread.stopped = False
            running[thread.tid] = thread, area, batch
        failure: CallFailed | None = None
        done = []

        def notice() -> None:
            for thread, _, _ in running.values():
                thread.notice()

        while running:
            wait_readable(self.socket.fileno(), notice)
            bell = self.socket.recv(8)
            if len(bell) != 8:
                raise TaskGone(f"process {memory.pid} ended while programs ran in its threads")
            thread, area, batch = running.pop(struct.unpack_from(arch.word, bell)[0])
            done.append(thread)
            try:
                take(thread.tid, batch, memory.read(area.work, batch.size))
            except CallFailed as error:
                failure = failure or error
        for thread in done:
            ptrace.interrupt(thread.tid)
        for thread in done:
            thread.await_interrupt()
            journal.note("left", thread.tid)
            thread.rewind()
        if failure:
            raise failure

    def close(self) -> None:
        """Unmap the areas and close the socket, through the leader."""
        if self.socket is None:
            return
        program = Program()
        program.call("close", self.fd)
        self.leader.set_undo(Program())
        self._unmap(self._at, program)
        self.socket.close()
        self.socket = None

    def abandon(self, threads: Iterable[Tracee]) -> None:
        """After a failure: take these threads out of their programs, and close."""
        for thread in threads:
            thread.stop_program()
            thread.rewind()
        self.close()

    def _unmap(self, at: int, program: Program) -> None:
        program.call("munmap", at, self._size)
        self.leader.run(program)
        journal.note("gone", self.leader.tracee.pid, at)
