# SPDX-License-Identifier: Apache-2.0
"""The executor: runs whole programs inside a task, and sends the task home if the controller dies.

It comes into a task by one stepped mmap (killed while stepping, a victim dies: so only that).  From then on it helps
itself: the first program makes a socket pair, waits on one end and, ten seconds long at most, for the controller to
fetch the other through pidfd_getfd.  Once the task has closed that other end, end-of-file means that the controller is
gone, and the task goes home: undo program, then rt_sigreturn into what it was doing.

Threads share the page of code.  Each has its own data area; they run one program each, announce it on a second socket
pair, and wait there for an end-of-file that only the controller's death brings: `ThreadTeam`.
"""

import errno
import os
import struct
import time
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_CLOEXEC, SOCK_SEQPACKET, SOL_SOCKET, socket

from torpor.arch import base as arch_base
from torpor.arch.base import Arch
from torpor.engine import journal
from torpor.engine.area import PAGE, Area, frame_size
from torpor.engine.program import CALL_WORDS, LIST_WORDS, Batch, CallFailed, Load32, Pointer, Program, batches
from torpor.engine.tracee import Tracee
from torpor.engine.waiting import is_readable, wait_readable
from torpor.errors import TaskGone, TorporError
from torpor.kernel import ptrace
from torpor.kernel.syscall import call
from torpor.typed import Generator, Iterator, Sequence

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
MAP_PRIVATE, MAP_FIXED_NOREPLACE, MAP_ANONYMOUS = 2, 0x100000, 0x20
SCM_MAX_FD, MSG_CMSG_CLOEXEC, MSG_DONTWAIT = 253, 0x40000000, 0x40
_GRACE_S = 10
_SPIN_S = 0.0002  # a task that has a processor is there by then
_POLLIN = 1
_BELL, _NO_BELL = b"\1" * 8, b"\0" * 8  # the executor starts on the one, and passes over the other
LEADER_AREA = (1 << 18) + (1 << 16)  # the longest call, setgroups(2), takes 65,536 groups of four bytes
_UNDO_ROOM = 1 << 13

_blobs: dict[str, bytes] = {}


class CannotInstall(Exception):
    """No executor can come into this task (full fd table, no memory); stepping still works."""


def blob(arch: Arch) -> bytes:
    """The executor's code.  Raises TorporError where it was not built."""
    if arch.name not in _blobs:
        try:
            with open(f"{os.path.dirname(arch_base.__file__)}/blobs/{arch.name}.bin", "rb") as file:
                _blobs[arch.name] = file.read()
        except FileNotFoundError:
            raise TorporError(
                f"the executor for {arch.name} is not built",
                "this is a checkout, not a released package",
                "run `make setup` (it needs gcc)",
                code="not-built",
            ) from None
    return _blobs[arch.name]


class Executor:
    """The executor inside one task (a thread-group leader, or any thread with an fd table of its own)."""

    def __init__(self, tracee: Tracee, hole: int = 0, tight: bool = True) -> None:
        """Install it; at address `hole`, or where the kernel likes.  Raises CannotInstall, leaving nothing behind.

        `tight`: the task may be at a limit (vm.max_map_count, RLIMIT_DATA, what may be committed) that lets it map the
        area, but not write there.
        """
        self.tracee = tracee
        self.arch = tracee.arch
        self.socket: socket | None = None
        self.fd = -1
        self._undo_slot = 0
        self.inherited = False  # entered through memory that a fork left there
        self.running = False
        self._fds_at = 0
        code = blob(self.arch)
        registers = tracee.registers()
        tracee.block_signals()
        flags = MAP_PRIVATE | MAP_ANONYMOUS | (MAP_FIXED_NOREPLACE if hole else 0)
        self.size = PAGE + LEADER_AREA
        self.base = tracee.step_map(hole, self.size, PROT_READ | PROT_EXEC, flags)
        tracee.rewind()  # should the engine die while it prepares the rest, the task goes on as it was
        if -4096 < self.base < 0:
            raise CannotInstall(os.strerror(-self.base))
        self.area = Area(self.arch, self.base + PAGE, LEADER_AREA, frame_size(self.arch, registers), _UNDO_ROOM)
        try:
            self._enter(code, tight)
        except BaseException:
            self._abandon()
            raise

    @classmethod
    def entered(cls, tracee: Tracee, base: int, size: int, area: Area, control: socket, fd: int) -> "Executor":
        """The executor in a new task that has its pages and its socket from the task that made it, and starts with an
        empty program: `finish` awaits that.  Such a task has no home to go to (see engine/spawn.py)."""
        executor = cls.__new__(cls)
        executor.tracee, executor.arch, executor.socket, executor.fd = tracee, tracee.arch, control, fd
        executor.base, executor.size, executor.area, executor._undo_slot = base, size, area, 0
        executor.inherited = False
        executor.running, executor._batch = True, Batch([], {}, 2 * tracee.arch.word_size)
        return executor

    def move_fd(self, number: int) -> "Generator[Program, None, None]":
        """Have the task's end of the socket at `number`, too, and use that from then on; the old one is to be closed.

        The bell of a program rings before the executor reads again, perhaps from the number it has just looked up: both
        numbers have to be good until it has done another program.
        """
        program = Program()
        program.call("dup3", self.fd, number, os.O_CLOEXEC)
        yield program
        self.tracee.write(self.area.fds_address(), struct.pack(f"{self.arch.word[0]}ii", number, number))
        self.fd = number

    def await_close(self) -> None:
        """Wait until the task has closed its end, as its last program asked it to."""
        assert self.socket is not None
        wait_readable(self.socket.fileno(), self.tracee.notice)
        if self.socket.recv(8):
            raise TaskGone(f"task {self.tracee.tid} did not end its work")
        self.close()

    def close(self) -> None:
        """Give up our end of the socket; the task has ended, or is parked for good."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def _enter(self, code: bytes, tight: bool) -> None:
        tracee, area, order = self.tracee, self.area, self.arch.word[0]
        frame, home = area.home_frame(tracee.registers(), tracee.mask)
        tracee.write(self.base, code)
        tracee.write(area.frame, frame)
        first = Program()
        # theirs, ours; ours is also the beginning of a struct pollfd.
        fds = first.put(struct.pack(f"{order}iihh", -1, -1, _POLLIN, 0))
        first.call("socketpair", AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds)
        # Not recvfrom with a timeout: that would return EINTR if somebody stops the task just now; ppoll is restarted.
        first.call("ppoll", fds + 4, 1, self._grace(first), 0)
        first.call("recvfrom", Load32(fds + 4), first.space(8), 8, MSG_DONTWAIT, 0, 0)
        first.call("close", Load32(fds))  # fetched, or the call before had failed
        (batch,) = batches(first, self.arch.word, area.room)
        fds_at = area.work + batch.pointers[fds]
        tracee.write(area.base, area.header(-1, -1, tracee.tid, home))
        tracee.write(area.work, batch.encode(area.work, self.arch))
        self._fds_at = fds_at
        self._set_undo_closing(fds_at)
        tracee.touch()
        journal.note("pair", tracee.tid, fds_at)
        tracee.set_general(
            self.arch.enter_executor(
                tracee.general, self.base, (area.base, area.size, PROT_READ | PROT_WRITE), area.stack_top
            )
        )
        tracee.block_signals()  # not before: from here on, the task itself would put its mask back
        journal.note("inside", tracee.tid)
        # Its first call is the mprotect that lets it write there; should that fail, its next instruction kills it.
        if tight and (result := tracee.step_over_call()) < 0:
            raise CannotInstall(os.strerror(-result))
        ptrace.cont(tracee.tid)
        tracee.stopped = False
        self.fd, theirs = self._await_pair(fds_at)
        pidfd = call("pidfd_open", tracee.pid, 0)
        try:
            self.socket = socket(fileno=_fetch(pidfd, theirs))
        finally:
            os.close(pidfd)
        journal.note_ours(tracee.pid, self.fd, theirs)
        journal.note("control", tracee.tid, self.socket.fileno(), self.fd)  # before it goes home at the socket's end
        self.set_undo(Program(), theirs)
        tracee.write(area.base, struct.pack(f"{order}ii", self.fd, self.fd))
        self.running = True
        self.socket.send(_NO_BELL)  # the program itself receives it
        self._finish(batch)
        self.set_undo(Program())

    def _set_undo_closing(self, fds_at: int) -> None:
        """Until we know the numbers of the pair: close what lies at this address then.  And wait: where the pair could
        not be made, we are still here to take the task out."""
        program = Program()
        for offset in (0, 4):
            program.call("close", Load32(fds_at + offset), may_fail=True)
        self._pause(program)
        self._write_undo(program)

    def result_at(self) -> int:
        """Where the first call of a program leaves its result."""
        return self.area.work + (LIST_WORDS + CALL_WORDS - 1) * self.arch.word_size

    def _pause(self, program: Program) -> None:
        program.call("ppoll", 0, 0, self._grace(program), 0, may_fail=True)

    def _grace(self, program: Program) -> Pointer:
        return program.put(struct.pack(f"{self.arch.word[0]}2{self.arch.word[1]}", _GRACE_S, 0))

    def _abandon(self) -> None:
        """The task did not come in, or not all the way: take it out again."""
        tracee = self.tracee
        try:
            tracee.stop_program()
            journal.note("left", tracee.tid)
            pair = struct.unpack(f"{self.arch.word[0]}ii", tracee.read(self._fds_at, 8)) if self._fds_at else ()
            tracee.block_signals()
            for fd in pair:
                if fd >= 0:
                    tracee.step("close", fd)
            tracee.step_unmap(self.base, self.size)
            tracee.rewind()
        except (OSError, TorporError):
            pass  # it has ended
        self.close()

    def _await_pair(self, fds_at: int) -> tuple[int, int]:
        """(ours, theirs): the pair's numbers appear in the task's memory (20 µs); nothing else can tell us yet."""
        deadline = time.monotonic() + _GRACE_S
        while True:
            theirs, ours = struct.unpack(f"{self.arch.word[0]}ii", self.tracee.read(fds_at, 8))
            if ours >= 0 and theirs >= 0:
                return ours, theirs
            self.tracee.notice()
            error = struct.unpack(self.arch.word.lower(), self.tracee.read(self.result_at(), self.arch.word_size))[0]
            if error < 0:
                raise CannotInstall(os.strerror(-error))
            now = time.monotonic()
            if now > deadline:
                raise TorporError(f"task {self.tracee.tid} does not start the executor", code="executor-stuck")
            if now < deadline - _GRACE_S + _SPIN_S:
                os.sched_yield()
            else:
                time.sleep(_SPIN_S)

    # -- programs -------------------------------------------------------------------------------------------------
    def run(self, program: Program) -> None:
        """Behind what the task is at already."""
        if self.running:
            self.finish()
        for batch in self.batches(program):
            self.start(batch)
            self.finish()

    def batches(self, program: Program) -> Iterator[Batch]:
        return batches(program, self.arch.word, self.area.room)

    def start(self, batch: Batch) -> None:
        """Set the task to work on one batch; `finish` collects."""
        assert self.socket is not None and not self.running
        self._batch = batch
        self.tracee.write(self.area.work, batch.encode(self.area.work, self.arch))
        self.running = True
        self.socket.send(_BELL)
        for call_ in batch.calls:
            if call_.fds:
                self._post(call_.fds)

    def is_done(self) -> bool:
        """Whether `finish` would not have to wait."""
        assert self.socket is not None
        return is_readable(self.socket.fileno())

    def finish(self) -> None:
        self._finish(self._batch)

    def _finish(self, batch: Batch) -> None:
        assert self.socket is not None
        wait_readable(self.socket.fileno(), self.tracee.notice)
        bell = self.socket.recv(8)
        self.running = False
        if len(bell) != 8:
            self.tracee.notice()
            raise TaskGone(f"task {self.tracee.tid} left the executor")
        size = batch.size if any(p.data for p in batch.pointers) else batch.results_size(self.arch.word)
        batch.decode(self.tracee.tid, self.tracee.read(self.area.work, size), self.arch.word)

    def set_undo(self, program: Program, *also_close: int) -> None:
        """What the task is to run before it goes home, should the controller die from now on."""
        whole = Program()
        whole.calls = list(program.calls)
        for fd in (self.fd, *also_close):
            whole.call("close", fd, may_fail=True)
        self._write_undo(whole)

    def _write_undo(self, whole: Program) -> None:
        (batch,) = batches(whole, self.arch.word, self.area.undo_room)
        pointer = self.area.undo[self._undo_slot]
        self._undo_slot ^= 1
        self.tracee.write(pointer, batch.encode(pointer, self.arch))
        self.tracee.write(self.area.undo_pointer(), struct.pack(self.arch.word, pointer))

    # -- descriptors ------------------------------------------------------------------------------------------------
    def send_fds(self, program: Program, fds: Sequence[int], flags: int = MSG_CMSG_CLOEXEC) -> Pointer:
        """Append the recvmsg that takes these descriptors of ours (253 at most, SCM_MAX_FD); `start` sends them.

        Returns where the numbers will lie, four bytes each: `Load32(pointer + 4 * i)` in later calls of this program
        and, after the run, `received(pointer)`.
        """
        assert 0 < len(fds) <= SCM_MAX_FD
        pointer = append_recvmsg(program, self.arch.word, len(fds), self.fd, flags)
        program.calls[-1].fds = fds
        return pointer

    def _post(self, fds: Sequence[int]) -> None:
        """Send descriptors to the task, which waits for them."""
        assert self.socket is not None
        message = [(SOL_SOCKET, SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))]
        deadline = time.monotonic() + _GRACE_S
        while True:
            try:
                self.socket.sendmsg([_NO_BELL], message)
                return
            except OSError as error:
                # Too many are under way in the whole system: other tasks take theirs by themselves.
                if error.errno != errno.ETOOMANYREFS or time.monotonic() > deadline:
                    self.socket.send(_NO_BELL)  # the task finds -1 for each
                    raise
            time.sleep(_SPIN_S)

    # -- the way out ----------------------------------------------------------------------------------------------
    def remove(self) -> None:
        """Close the socket, unmap everything, put back what was found; the task stays stopped.

        A program that runs still is awaited: what it has opened, it also closes."""
        if self.socket is None:
            return  # done, or nearly, when something failed
        tracee = self.tracee
        if self.running and not tracee.stopped:
            try:
                self.finish()
            except CallFailed:
                pass
        if not tracee.stopped:
            last = Program()
            last.call("close", self.fd)
            # Should the controller die here, the task goes home by itself after this.
            self._pause(last)
            self.start(next(self.batches(last)))
            wait_readable(self.socket.fileno(), tracee.notice)  # end-of-file: closed
            tracee.stop_program()
            journal.note("left", tracee.tid)
        else:
            journal.note("left", tracee.tid)
            tracee.step("close", self.fd)
        tracee.step_unmap(self.base, self.size)
        self.close()
        tracee.rewind()


def _fetch(pidfd: int, fd: int) -> int:
    """A descriptor of the task's pair.  socketpair(2) tells the numbers a moment before they are valid."""
    deadline = time.monotonic() + _GRACE_S
    while True:
        try:
            return call("pidfd_getfd", pidfd, fd, 0)
        except OSError as error:
            if error.errno != errno.EBADF or time.monotonic() > deadline:
                raise
            os.sched_yield()


def append_recvmsg(program: Program, word: str, count: int, fd: int, flags: int = MSG_CMSG_CLOEXEC) -> Pointer:
    """Append recvmsg(2) for `count` descriptors; returns the pointer to the first number."""
    width = struct.calcsize(word)
    order, code = word[0], word[1]
    header = 2 * width if width == 8 else 12  # struct cmsghdr
    data = program.space(8)
    vector = program.put(struct.pack(f"{order}2{code}", 0, 8), [(0, data)])
    # -1 until the kernel puts numbers there: where no descriptors come, no other is taken for one.
    control = program.put(b"\xff" * ((header + 4 * count + width - 1) // width * width))
    message = program.put(
        struct.pack(f"{order}7{code}", 0, 0, 0, 1, 0, len(control), 0), [(2 * width, vector), (4 * width, control)]
    )
    program.call("recvmsg", fd, message, flags)
    return control + header


def received(pointer: Pointer, count: int, word: str) -> list[int]:
    """The numbers that the descriptors got in the task."""
    return list(struct.unpack_from(f"{word[0]}{count}i", pointer.root.data, pointer.offset))
