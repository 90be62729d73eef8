# SPDX-License-Identifier: Apache-2.0
"""Making tasks: the first one out of nothing, all others inside the first.

The first task begins in engine/stub.py.

All others are cloned by programs inside tasks that exist.  CLONE_PTRACE attaches them, EXITKILL included, without
stopping their makers; each stops before its first instruction.  The executor's pages come with the memory, so entering
a child takes no call in it: its own data area is written, and registers are set.  The socket to talk to it comes with
the descriptor table, at the number that it had in the maker.
"""

import errno
import os
import struct
from _socket import AF_UNIX, SOCK_SEQPACKET, socket, socketpair

from torpor import signals as signal
from torpor.arch import native
from torpor.arch.base import Arch
from torpor.engine import stops
from torpor.engine.area import PAGE, Area
from torpor.engine.executor import (
    LEADER_AREA,
    MAP_ANONYMOUS,
    MAP_FIXED_NOREPLACE,
    MAP_PRIVATE,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    SCM_MAX_FD,
    Executor,
    blob,
    received,
)
from torpor.engine.program import CallFailed, Load32, Program, Result, batches
from torpor.engine.stops import Kind
from torpor.engine.stub import FIRST_FD, GO, GO_SHORT, Cradle
from torpor.engine.tracee import ALL_SIGNALS, Tracee
from torpor.errors import KernelError, RestoreFailed, TorporError
from torpor.kernel import ptrace
from torpor.kernel.process import (
    CLONE_FILES,
    CLONE_FS,
    CLONE_PARENT,
    CLONE_PTRACE,
    CLONE_SIGHAND,
    CLONE_SYSVSEM,
    CLONE_THREAD,
    CLONE_VM,
    clone_args,
)
from torpor.typed import Callable, NamedTuple, Sequence

OPTIONS = ptrace.O_TRACESYSGOOD | ptrace.O_EXITKILL
_UNDO_ROOM = 1 << 10
_THREAD = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_PTRACE
_SET_TID_AT = 64  # offset of clone_args.set_tid


class Birth(NamedTuple):
    """A task to be cloned; `pid` 0: any; `flags`: CLONE_VM, CLONE_FILES … that it shares, CLONE_PARENT, with which its
    end brings its parent the same signal as the end of its maker, whatever `exit_signal` says."""

    pid: int
    flags: int = 0
    exit_signal: int = signal.SIGCHLD


class Space:
    """An address space with executors in it: one page of code, and a data area for each task that shares it."""

    def __init__(self, base: int, areas: int = 1) -> None:
        self.base, self.areas, self.users = base, areas, 1

    def area_at(self, number: int) -> int:
        return self.base + PAGE + number * LEADER_AREA

    @property
    def size(self) -> int:
        return PAGE + self.areas * LEADER_AREA


class Spawner:
    """Makes tasks, and knows all that it made: `tracees` by TID, to be killed if something goes wrong."""

    def __init__(self, hole: int, short_stack: bool = False) -> None:
        """`short_stack`: see `torpor.memory.layout.around_stub`."""
        self.arch = native()
        self.hole = hole
        self._go = GO_SHORT if short_stack else GO
        self.tracees: dict[int, Tracee] = {}
        self.executors: dict[int, Executor] = {}  # by TID
        self.spaces: dict[int, Space] = {}  # by TID
        self._area_number: dict[int, int] = {}
        self._general = b""
        self._entry: dict[int, bytes] = {}

    # -- the first one ----------------------------------------------------------------------------------------------
    def first(self, pid: int, clone: "Callable[[Cradle, int], None]", cradle: "Cradle | None" = None) -> Executor:
        """Make the root by `clone` (see Cradle).  Raises RestoreFailed where `pid` is taken."""
        cradle = cradle or Cradle.make()
        ours = cradle.ours
        try:
            clone(cradle, pid)
            tracee = Tracee(pid, pid)
            self.tracees[pid] = tracee
            ptrace.seize(pid, OPTIONS | ptrace.O_TRACEEXEC)
            ours.send(self._go)
            stop = stops.wait(pid)
        finally:
            cradle.close()
        if stop.kind != Kind.EVENT:
            why = os.strerror(os.WEXITSTATUS(stop.status)) if os.WIFEXITED(stop.status) else f"status {stop.status:#x}"
            raise RestoreFailed(f"cannot start task {pid}", why)
        # At the event the kernel is still inside execve, and would put its result over our registers.
        ptrace.interrupt(pid)
        ptrace.cont(pid)
        stop = stops.wait(pid)
        if stop.kind != Kind.INTERRUPTED:
            raise RestoreFailed(f"cannot start task {pid}", f"unexpected stop {stop}")
        ptrace.set_options(pid, OPTIONS)
        self._general = tracee.general
        tracee.use_gadget(self.arch.pc(tracee.general))
        tracee.block_signals()
        space = Space(self.hole)
        at = tracee.step(
            "mmap", space.base, space.size, PROT_READ | PROT_EXEC,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0,
        )  # fmt: skip
        if at != space.base:
            raise KernelError(f"cannot map the executor at {space.base:#x} in task {pid}", -at if at < 0 else 0)
        tracee.write(space.base, blob(self.arch))
        executor = self._enter(tracee, space, 0, ours, FIRST_FD)
        executor.finish()
        return executor

    # -- all others -------------------------------------------------------------------------------------------------
    def births(self, maker: Executor, program: Program, births: Sequence[Birth]) -> list[Executor]:
        """Append clones of `maker` to `program` and run it; returns the executors of the new tasks, in order.

        The results of clone3 are in the order of the births.  Raises RestoreFailed where a PID is taken.
        """
        pairs = [socketpair(AF_UNIX, SOCK_SEQPACKET) for _ in births]
        made = []
        out: list[tuple[int, int, int]] = []
        first = 0
        try:
            while first < len(births):
                some = births[first : first + SCM_MAX_FD]
                out += self._some(maker, program, some, [theirs for _, theirs in pairs[first : first + SCM_MAX_FD]])
                program = Program()
                first += len(some)
        finally:
            for _, theirs in pairs:
                theirs.close()
        for (pid, fd, number), birth, (ours, _) in zip(out, births, pairs, strict=True):
            tracee = Tracee(pid, pid)
            self.tracees[pid] = tracee
            made.append((tracee, fd, number, birth, ours))
        executors = []
        for tracee, fd, number, birth, ours in made:
            await_first_stop(tracee)
            parent_space = self.spaces[maker.tracee.pid]
            space = parent_space if birth.flags & CLONE_VM else Space(parent_space.base, parent_space.areas)
            if birth.flags & CLONE_VM:
                space.users += 1
            executors.append(self._enter(tracee, space, number, ours, fd))
            executors[-1].inherited = not birth.flags & CLONE_VM
        for executor in executors:
            executor.finish()
        return executors

    def _some(
        self, maker: Executor, program: Program, births: Sequence[Birth], ends: Sequence[socket]
    ) -> list[tuple[int, int, int]]:
        """PID, number of the socket, and number of the area, of each."""
        arch, space = self.arch, self.spaces[maker.tracee.pid]
        numbers = []
        for birth in births:
            numbers.append(self._area_number[maker.tracee.pid])
            if birth.flags & CLONE_VM:
                numbers[-1] = self._map_area(program, space)
        fds = maker.send_fds(program, [end.fileno() for end in ends])
        results = []
        for birth in births:
            tids = program.put(struct.pack(f"{arch.word[0]}i", birth.pid))
            flags = birth.flags | CLONE_PTRACE
            packed = clone_args(
                flags,
                exit_signal=0 if flags & CLONE_PARENT else birth.exit_signal,
                set_tid_size=1 if birth.pid else 0,
            )
            links = [(_SET_TID_AT, tids)] if birth.pid else []
            results.append(program.call("clone3", program.put(packed, links), len(packed)))
        for i, birth in enumerate(births):
            if not birth.flags & CLONE_FILES:
                program.call("close", Load32(fds + 4 * i))
        try:
            maker.run(program)
        except CallFailed as error:
            self._remember(results)
            if error.call.name == "clone3":
                raise cannot_make(births[results.index(error.call.result)].pid, error.errno) from None
            raise
        found = received(fds, len(births), arch.word)
        return [(result.value, found[i], numbers[i]) for i, result in enumerate(results)]

    def _remember(self, results: Sequence[Result]) -> None:
        """Tasks that were made before a later call failed."""
        for result in results:
            if result.ran and result.value > 0:
                self.tracees[result.value] = Tracee(result.value, result.value)

    def _enter(self, tracee: Tracee, space: Space, number: int, ours: socket, fd: int) -> Executor:
        """Start the executor in a stopped task that has its pages; `finish` awaits it."""
        arch = self.arch
        area = Area(arch, space.area_at(number), LEADER_AREA, 0, _UNDO_ROOM)
        for which, value in arch.before_programs().items():
            ptrace.set_regset(tracee.tid, which, value)
        if number not in self._entry:
            self._entry[number] = arch.enter_executor(
                self._general, space.base, (area.base, LEADER_AREA, PROT_READ | PROT_WRITE), area.stack_top
            )
        dying = Program()
        dying.call("exit_group", 1)
        (batch,) = batches(dying, arch.word, area.undo_room)
        header = bytearray(area.header(fd, fd, tracee.tid, 0))
        struct.pack_into(arch.word, header, 8 + 2 * arch.word_size, area.undo[0])
        tracee.write(area.base, bytes(header))
        tracee.write(area.undo[0], batch.encode(area.undo[0], arch))
        tracee.write(area.work, bytes(2 * arch.word_size))  # an empty program
        executor = Executor.entered(tracee, space.base, space.size, area, ours, fd)
        ptrace.set_regset(tracee.tid, 1, self._entry[number])
        ptrace.cont(tracee.tid)
        tracee.stopped = False
        self.executors[tracee.tid] = executor
        self.spaces[tracee.tid] = space
        self._area_number[tracee.tid] = number
        return executor

    # -- threads ----------------------------------------------------------------------------------------------------
    def threads(self, leader: Executor, tids: Sequence[int]) -> list[Tracee]:
        """Make the other threads of a process; they stop before their first instruction."""
        program = Program()
        results = []
        for tid in tids:
            number = program.put(struct.pack(f"{self.arch.word[0]}i", tid))
            packed = clone_args(_THREAD, set_tid_size=1)
            results.append(program.call("clone3", program.put(packed, [(_SET_TID_AT, number)]), len(packed)))
        pid = leader.tracee.pid
        try:
            leader.run(program)
        except CallFailed as error:
            raise cannot_make(tids[results.index(error.call.result)], error.errno) from None
        finally:
            for tid, result in zip(tids, results, strict=True):
                if result.ran and result.value > 0:
                    self.tracees[tid] = Tracee(tid, pid)
        threads = [self.tracees[tid] for tid in tids]
        for thread in threads:
            await_first_stop(thread)
            thread.use_gadget(leader.base + _gadget_offset(self.arch))
        return threads

    def enter_thread(self, leader: Executor, thread: Tracee) -> Executor:
        """Start an executor in a thread that is to have a table of descriptors of its own, and let it have that."""
        space = self.spaces[leader.tracee.tid]
        ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        try:
            program = Program()
            fds = leader.send_fds(program, [theirs.fileno()])
            number = self._map_area(program, space)
            leader.run(program)
        finally:
            theirs.close()
        (fd,) = received(fds, 1, self.arch.word)
        space.users += 1
        executor = self._enter(thread, space, number, ours, fd)
        executor.finish()
        program = Program()
        program.call("unshare", CLONE_FILES)
        executor.run(program)
        program = Program()
        program.call("close", fd)
        leader.run(program)
        return executor

    def _map_area(self, program: Program, space: Space) -> int:
        """Append the mapping of one more data area; returns its number."""
        number, space.areas = space.areas, space.areas + 1
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
        program.call("mmap", space.area_at(number), LEADER_AREA, PROT_READ | PROT_WRITE, flags, -1, 0)
        return number

    # -- the ends ---------------------------------------------------------------------------------------------------
    def end(self, pid: int, status: int) -> None:
        """End a task with a wait status; the engine sees its end first, its parent afterwards."""
        executor = self.executors.pop(pid)
        tracee = executor.tracee
        program = Program()
        if status & 0x7F:
            program.call("prctl", 4, 0)  # PR_SET_DUMPABLE: no core file
            executor.run(program)
            tracee.stop_program()
            ptrace.set_signal_mask(pid, ALL_SIGNALS & ~(1 << (status & 0x7F) - 1))  # the ends of children bring others
            os.kill(pid, status & 0x7F)
            try:
                ptrace.cont(pid)
            except ProcessLookupError:
                pass  # SIGKILL asks nobody
        else:
            program.call("exit_group", status >> 8 & 0xFF)
            executor.start(next(executor.batches(program)))
        while (stop := stops.wait(pid)).kind != Kind.ENDED:
            ptrace.cont(pid, stop.signal if stop.kind == Kind.SIGNAL else 0)
        executor.close()
        tracee.close()
        del self.tracees[pid]

    def remove_executors(self) -> None:
        """Take the executors out of all tasks, which stay stopped: sockets closed, pages unmapped."""
        for executor in self.executors.values():
            program = Program()
            program.call("close", executor.fd)
            program.call("ppoll", 0, 0, 0, 0)  # for ever: all signals are blocked
            executor.start(next(executor.batches(program)))
        for pid, executor in self.executors.items():
            executor.await_close()
            tracee, space = executor.tracee, self.spaces[pid]
            tracee.stop_program()
            space.users -= 1  # the last of those who share it unmaps it
            if not space.users:
                # The call's own instruction is unmapped by it: the task stops before it comes back there.
                tracee.use_gadget(space.base + _gadget_offset(self.arch))
                result = tracee.step("munmap", space.base, space.size)
                if result:
                    raise KernelError(f"cannot unmap the executor of task {pid}", -result)
            tracee.use_gadget(0)
        self.executors.clear()

    def kill(self) -> None:
        """End everything that was made, whatever state it is in."""
        for tid in self.tracees:
            try:
                os.kill(tid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        # A leader's end is told when all its threads have been waited for.
        for tid in sorted(self.tracees, key=lambda tid: self.tracees[tid].pid == tid):
            try:
                while stops.wait(tid).kind != Kind.ENDED:
                    pass
            except ChildProcessError:
                pass


def _gadget_offset(arch: Arch) -> int:
    """Where a system-call instruction stands in the executor's code."""
    code = blob(arch)
    at = code.find(arch.instruction)
    while at % arch.instruction_alignment:
        at = code.find(arch.instruction, at + 1)
    return at


def await_first_stop(tracee: Tracee) -> None:
    stop = stops.wait(tracee.tid)
    if stop.kind not in (Kind.INTERRUPTED, Kind.GROUP_STOP):
        raise TorporError(f"new task {tracee.tid} does not stop", f"unexpected stop {stop}", code="bug")


def cannot_make(pid: int, number: int) -> TorporError:
    if number == errno.EEXIST:
        return RestoreFailed(
            f"PID {pid} is taken", "it belonged to the tree, and has been given to another process since",
            "end that process, or restore in a PID namespace of its own", code="pid-taken",
        )  # fmt: skip
    if number == errno.EINVAL:
        return beyond_pid_max(pid)
    remedy = "run as root, or with CAP_CHECKPOINT_RESTORE" if number == errno.EPERM else ""
    return KernelError(f"cannot make task {pid}", number, remedy)


def beyond_pid_max(pid: int) -> RestoreFailed:
    why, remedy = "it is greater than this system's PIDs can be", f"allow it: sysctl kernel.pid_max={pid + 1}, or more"
    return RestoreFailed(f"PID {pid} cannot be given here", why, remedy, code="pid-max")
