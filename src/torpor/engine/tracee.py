# SPDX-License-Identifier: Apache-2.0
"""One stopped thread, and how a system call is stepped inside it.

A tracee is *frozen* (as it was found) until something is run in it.  `let_go` puts back what was found, bit for bit:
the kernel itself then restarts an interrupted system call, and only at PTRACE_DETACH (those that it would end with
EINTR instead are made again, see `_home`).  Registers for an image, or for a task that goes home by itself, are
`settled` instead (arch/base.py).

Two traps that cost days: one injected call makes the kernel clear rseq_cs, so whether a thread is inside a restartable
sequence has to be read before the first one; and a signal mask must be put back also where the task goes on.
"""

import errno
import os
import struct

from torpor import signals as signal
from torpor.arch import native
from torpor.arch.base import NT_PRSTATUS, Registers
from torpor.engine import gadget, journal, stops
from torpor.engine.stops import Kind, Stop
from torpor.errors import Refusal, TaskGone, TorporError
from torpor.kernel import ptrace
from torpor.kernel.inside import RUNNING, UNSEEN, SeenCall, seen_call
from torpor.typed import Sequence

ALL_SIGNALS = (1 << 64) - 1
DISPATCHES_NONE = "start the program without that"
_SIGSYS = 1 << signal.SIGSYS - 1
_tells: bool | None = None  # whether ptrace tells whose system calls are dispatched
_absent: set[int] = set()  # register sets that this CPU does not have
_RSEQ_CS = struct.Struct("=IIQQQ")  # version, flags, start_ip, post_commit_offset, abort_ip


class Tracee:
    """A seized and stopped thread.  `pid` is its process; `memory` a descriptor of /proc/TID/mem, shared by threads."""

    def __init__(self, tid: int, pid: int) -> None:
        self.tid, self.pid = tid, pid
        self.arch = native()
        self.group_stop = 0  # the stop signal, where job control has stopped the process
        self.stopped = True
        self.call_before = UNSEEN  # what it was in before the stop, where the architecture wants to know
        self._memory = -1
        self._sharer: Tracee | None = None  # has the same address space
        self._gadget = 0
        self._relative: Tracee | None = None  # has the same address space, so the same gadget
        self._general = b""
        self._mask: int | None = None
        self._specials: dict[int, bytes] = {}
        self._registers: Registers | None = None
        self._told: tuple[bytes, dict[int, bytes], SeenCall] | None = None
        self._rseq: ptrace.RseqConfiguration | None = None
        self._rseq_abort = 0
        self._touched = False
        self._mask_touched = False
        self._put = b""  # general registers that were put back
        self._in_mask: int | None = None  # what is blocked inside its call, once that was asked
        self._inside = False  # the kernel has been shown the call that the thread was in

    def __repr__(self) -> str:
        return f"<Tracee {self.tid}>"

    # -- memory -----------------------------------------------------------------------------------------------------
    @property
    def memory(self) -> int:
        if self._memory < 0:
            if self._sharer is not None:
                return self._sharer.memory
            self._memory = os.open(f"/proc/{self.tid}/mem", os.O_RDWR | os.O_CLOEXEC)
        return self._memory

    def share_memory(self, other: "Tracee") -> None:
        """Use the descriptor of a thread with the same address space, which is held as long.  (A thousand copies of it
        would take as many descriptors, and whenever their table grows while the engine has threads, for instance the
        Watch over the freeze, the kernel waits for all processors: 10 ms each time, expand_fdtable in fs/file.c.)"""
        self._sharer = other

    def read(self, address: int, length: int) -> bytes:
        """`length` bytes at `address`, PROT_NONE pages too.  Raises OSError (EIO: not mapped)."""
        address &= self.arch.untag_mask  # pointers of the program's own may have something in their top byte
        data = os.pread(self.memory, length, address)
        if len(data) != length:
            raise OSError(errno.EIO, f"short read of task memory at {address:#x}")
        return data

    def code(self, address: int, length: int) -> bytes:
        """As `read`; nothing at an area's end, or nowhere."""
        try:
            return self.read(max(address, 0), length)
        except (OSError, OverflowError):
            return b""

    def write(self, address: int, data: bytes) -> None:
        if os.pwrite(self.memory, data, address & self.arch.untag_mask) != len(data):
            raise OSError(errno.EIO, f"short write of task memory at {address:#x}")

    # -- what was found ---------------------------------------------------------------------------------------------
    @property
    def general(self) -> bytes:
        """NT_PRSTATUS as found; the first look also reads what an injected call would destroy."""
        if not self._general:
            self._general = ptrace.get_regset(self.tid, NT_PRSTATUS)
            self._specials = {which: ptrace.get_regset(self.tid, which) for which in self.arch.before_programs()}
            if self.arch.volatile:
                self._read_volatile()
            if len(self._general) < self.arch.general_size:  # in 32-bit code: nothing will be run in it
                self._rseq = ptrace.RseqConfiguration(0, 0, 0)
            else:
                self._read_rseq()
        return self._general

    def _for_images(self) -> tuple[bytes, dict[int, bytes], SeenCall]:
        """The same, with the call that it is in where the kernel shows only that it continues one.  Never for a thread
        that is let go: there the kernel knows better."""
        if self._told is None:
            _ = self.general
            self._told = self.arch.first_interrupted(self._general, self._specials, self.call_before, self.code)
        return self._told

    def _read_volatile(self) -> None:
        for which in self.arch.volatile:
            data = self._if_present(which)
            if data is not None and self.arch.is_live(which, data):
                self._specials[which] = data

    def _regset(self, which: int) -> bytes:
        if which in self.arch.substitutes:
            data = self._if_present(which)
            return ptrace.get_regset(self.tid, self.arch.substitutes[which]) if data is None else data
        return ptrace.get_regset(self.tid, which)

    def set_regset(self, which: int, data: bytes) -> None:
        """Set a register set that `registers` has read, of this machine: here, or of the template."""
        ptrace.set_regset(self.tid, self.arch.substitutes.get(which, which) if which in _absent else which, data)

    def _if_present(self, which: int) -> bytes | None:
        """A register set that not every CPU, or kernel, has."""
        if which in _absent:
            return None
        try:
            return ptrace.get_regset(self.tid, which)
        except OSError as error:
            if error.errno == errno.ENODATA:  # this thread has not used it
                return None
            if error.errno not in (errno.EINVAL, errno.ENODEV):
                raise
            _absent.add(which)
            return None

    @property
    def rseq(self) -> ptrace.RseqConfiguration:
        _ = self.general
        assert self._rseq is not None
        return self._rseq

    def _read_rseq(self) -> None:
        self._rseq = ptrace.rseq_configuration(self.tid)
        if not self._rseq.pointer:
            return
        section = struct.unpack("=Q", self.read(self._rseq.pointer + 8, 8))[0]
        if not section:
            return
        try:
            _, _, start, length, abort = _RSEQ_CS.unpack(self.read(section, _RSEQ_CS.size))
        except OSError:
            return
        if 0 <= self.arch.pc(self._general) - start < length:
            self._rseq_abort = abort

    def registers(self) -> Registers:
        """Everything the CPU has of this thread, settled, and outside a restartable sequence: for an image."""
        if self._registers is None:
            others = {nt: self._regset(nt) for nt in self.arch.regsets}
            for which in (*self.arch.optional, *self.arch.extra):
                if (data := self._if_present(which)) is not None:
                    others[which] = data
            if self.arch.thread_area:
                others[self.arch.thread_area] = ptrace.thread_area(self.tid)
            _ = self.general
            others |= {which: self._specials[which] for which in self.arch.volatile if which in self._specials}
            general = self.arch.settled(*self._for_images())
            if self._rseq_abort:
                general = self.arch.with_pc(general, self._rseq_abort)
            self._registers = Registers(general, others)
        return self._registers

    def interruption(self) -> tuple[int, int] | None:
        """How its call was interrupted: see `Arch.interruption`."""
        told = self._for_images()
        return None if self._rseq_abort else self.arch.interruption(*told)

    @property
    def mask(self) -> int:
        """Signals that the thread blocks itself."""
        if self._mask is None:
            self._mask = ptrace.get_signal_mask(self.tid)
        return self._mask

    def note_call(self) -> None:
        """To be called before the thread is interrupted: which call it sleeps in, if this architecture forgets that."""
        if self.arch.call_before_stop:
            try:
                self.call_before = seen_call(self.tid)
            except OSError:
                pass  # it has ended

    def capture(self) -> None:
        """Read everything that an image needs of a thread; it can be asked for later, when the thread runs again."""
        _ = self.registers(), self.mask

    def forget(self) -> None:
        """It has run and was stopped again: what was read before counts no more."""
        self._general, self._mask, self._registers, self._specials, self._put = b"", None, None, {}, b""
        self._told = None
        self._rseq_abort, self._in_mask, self._inside = 0, None, False

    def adopt(self, general: bytes, mask: int, specials: dict[int, bytes]) -> None:
        """Take these for what was found, to be put back: somebody else found it, and died."""
        self._general, self._mask, self._specials, self._rseq_abort = general, mask, specials, 0
        self._registers = self._told = None
        self._touched = self._mask_touched = True
        ptrace.set_signal_mask(self.tid, ALL_SIGNALS)

    def remember_rewound(self) -> None:
        """Somebody else has run programs in it, put its registers back, and died before it was let go."""
        self._put = self.general

    # -- changing it ------------------------------------------------------------------------------------------------
    def touch(self) -> None:
        """Make the thread ready to run what is not its own code."""
        if self._touched:
            return
        self._note()
        for which, value in self.arch.before_programs().items():
            ptrace.set_regset(self.tid, which, value)
        self._touched = True

    def block_signals(self) -> None:
        if not self._mask_touched:
            self._note()
            ptrace.set_signal_mask(self.tid, ALL_SIGNALS & ~self._let_through())
            self._mask_touched = True

    def _let_through(self) -> int:
        """SIGSYS, where only that tells that the thread's system calls are dispatched to a handler of its own.  Were it
        blocked, the kernel would take the handler away."""
        global _tells
        if _tells is None:
            _tells = not self.arch.dispatches_calls or ptrace.dispatches_syscalls(self.tid) is not None
        return 0 if _tells else _SIGSYS & ~self.mask

    def _note(self) -> None:
        """Write down what is to be put back, should the engine die."""
        if not self._touched and not self._mask_touched:
            home = self._home()
            journal.note("touched", self.tid, self.pid, home, self.mask, self._specials, bool(self.group_stop))

    def set_general(self, general: bytes) -> None:
        ptrace.set_regset(self.tid, NT_PRSTATUS, general)

    @property
    def gadget(self) -> int:
        """Address of a system-call instruction that the task maps anyway (`torpor.engine.gadget`)."""
        if not self._gadget:
            self._gadget = self._relative.gadget if self._relative else gadget.find(self)
        return self._gadget

    def use_gadget(self, address: int) -> None:
        self._gadget, self._relative = address, None

    def use_gadget_of(self, other: "Tracee") -> None:
        """That of a thread with the same address space, when it is needed."""
        self._relative = other

    def use_vdso(self, start: int, end: int) -> None:
        """Look for the instruction there, and save reading all of /proc/PID/maps for it."""
        self._gadget = gadget.in_vdso(self, start, end)

    def step(self, name: str, *args: int) -> int:
        """Run one system call by PTRACE_SYSCALL; its result, negative errno on failure.

        The mask should be blocked already.  A controller that is killed in here leaves the task with wrong registers:
        the shorter the better.
        """
        return self.step_number(self.arch.SYSCALLS[name], self.arch.arguments(name, args))

    def step_map(self, hole: int, size: int, prot: int, flags: int) -> int:
        """Step an mmap(2) of our own; negative errno on failure."""
        self._note()
        journal.note("mapping", self.tid, size)
        at = self.step("mmap", hole, size, prot, flags, -1, 0)
        if not -4096 < at < 0:
            journal.note("area", self.pid, at, size)
        return at

    def step_unmap(self, address: int, size: int) -> None:
        self.step("munmap", address, size)
        journal.note("gone", self.pid, address)

    def step_number(self, nr: int, args: Sequence[int]) -> int:
        """As `step`, for a call that is given by its number and the contents of its registers."""
        self.touch()
        if block := self.arch.call_block(nr, args):
            return self._step_with(block, nr)
        return self._step(nr, args)

    def step_code(self, code: int, args: Sequence[int]) -> None:
        """Run code of ours that lies there, and ends by a system call: getpid is made of it."""
        self.touch()
        self.set_general(self.arch.enter_call(self.general, code, self.arch.SYSCALLS["getpid"], args))
        self.step_over_call()

    def _step_with(self, block: bytes, nr: int) -> int:
        """Step a call that takes its arguments from memory."""
        from torpor.engine import room

        result = -errno.EFAULT
        for address in room.places(self):
            try:
                before = self.read(address, len(block))
                self.write(address, block)
            except (OSError, OverflowError):
                continue
            try:
                result = self._step(nr, (address,))
            finally:
                self.write(address, before)
            if result != -errno.EFAULT:
                break
        return result

    def _step(self, nr: int, args: Sequence[int]) -> int:
        self.set_general(self.arch.enter_call(self.general, self.gadget, nr, args))
        return self.step_over_call()

    def step_over_call(self) -> int:
        """Let it make the call to which its registers lead; the call's result."""
        for _ in range(2):
            ptrace.cont_to_call(self.tid)
            while (stop := self.wait()).kind != Kind.CALL:
                ptrace.cont_to_call(self.tid, self.surprise(stop))
        return self.arch.result(ptrace.get_regset(self.tid, NT_PRSTATUS))

    def wait(self) -> Stop:
        """Its next stop, or its end."""
        return stops.wait_leader(self.tid) if self.tid == self.pid else stops.wait(self.tid)

    def surprise(self, stop: Stop) -> int:
        """A stop that nobody asked for, in the middle of something; returns the signal to go on with.

        SIGSTOP cannot be blocked.  It is let through: the kernel then knows that the process is to be stopped, lets a
        traced thread run on nevertheless, and stops it at the latest when it is let go, or when the engine dies; a
        SIGCONT that comes first undoes it.
        """
        if stop.kind == Kind.ENDED:
            self.stopped = False
            raise TaskGone(f"task {self.tid} was ended by somebody else while Torpor worked on it")
        if stop.kind == Kind.SIGNAL and stop.signal == signal.SIGSYS and self._let_through():
            if ptrace.is_dispatched_call(self.tid):
                self.stopped = True
                why = f"thread {self.tid} has its system calls dispatched to a handler of its own"
                raise Refusal(self._subject(), f"{why} (PR_SET_SYSCALL_USER_DISPATCH)", DISPATCHES_NONE)
            ptrace.set_signal_mask(self.tid, ALL_SIGNALS)  # somebody has sent it: with that, it waits again
            return stop.signal
        if stop.kind == Kind.SIGNAL and stop.signal != signal.SIGSTOP:
            self.stopped = True  # and no other stop will come
            raise TorporError(
                f"task {self.tid} got signal {stop.signal} while it ran a program", "a bug in Torpor", code="bug"
            )
        if stop.kind != Kind.SIGNAL:
            return 0
        journal.note("stopped", self.pid)
        return stop.signal

    def _subject(self) -> str:
        from torpor.kernel.procfs import read_all

        return f"task {self.pid} ({os.fsdecode(read_all(f'/proc/{self.pid}/comm')).rstrip()})"

    def notice(self) -> None:
        """Deal with a stop of a running task, if there is one: nothing that was asked for."""
        stop = stops.poll(self.tid)
        if stop is not None:
            ptrace.cont(self.tid, self.surprise(stop))

    def stop_program(self) -> None:
        """Stop a task that runs a program or waits for one."""
        if self.stopped:
            return
        ptrace.interrupt(self.tid)
        self.await_interrupt()

    def await_interrupt(self) -> None:
        """Wait for the stop that PTRACE_INTERRUPT brings."""
        while True:
            stop = self.wait()
            if stop.kind in (Kind.INTERRUPTED, Kind.GROUP_STOP):
                break
            ptrace.cont(self.tid, self.surprise(stop))
        self.stopped = True

    def leave_call_stop(self, always: bool = False) -> None:
        """On to a stop at which no system call is involved, before the thread runs one instruction of its own; unless
        `always`, only where the kernel would put back a register of the call over what we set (x7 on aarch64, ip on
        32-bit ARM)."""
        if (always or not self.arch.call_stop_keeps_all) and ptrace.is_in_call(self.tid):
            ptrace.interrupt(self.tid)
            ptrace.cont(self.tid)
            self.await_interrupt()

    def rewind(self) -> None:
        """Registers and mask as found; the thread stays stopped."""
        touched = self._touched or self._mask_touched
        if self._touched:
            self.leave_call_stop()
        if self._mask_touched:
            ptrace.set_signal_mask(self.tid, self.mask)
            self._mask_touched = False
        if self._touched:
            self._put = self._home()
            self.set_general(self._put)
            for which, value in self._specials.items():
                ptrace.set_regset(self.tid, which, value)
            self._touched = False
        if touched:
            journal.note("home", self.tid)

    def _home(self, has_run: bool = True) -> bytes:
        """General registers with which the thread goes on, in which programs have run; or have not."""
        if self._inside:
            return self.general
        if self._rseq_abort:
            settled = self.arch.settled(self.general, self._specials, self.call_before)
            return self.arch.with_pc(settled, self._rseq_abort)
        again = self.arch.again(self.general, self._specials, self.call_before)
        # Where job control has stopped it, EINTR is what SIGCONT brings; unless the call lets signals in (epoll_pwait)
        # that the thread's own mask, which it gets back, keeps out.
        ended = bool(self.group_stop) and not self._lets_in()
        if again is None or ended or not (self.arch.restarts_alike or self._catches_nothing()):
            return self.arch.resumed(self.general, self.call_before) if has_run else self.general
        return again

    def _lets_in(self) -> bool:
        """Whether the thread is in a call with another mask than its own."""
        if self._in_mask is None:
            self._in_mask = self._signals().get(b"SigBlk", self.mask)  # before it is touched
        return self._in_mask != self.mask

    def _catches_nothing(self) -> bool:
        """Whether no signal waits for the thread that it catches: its call is to end for that."""
        return not self.awaiting() & ~self.mask

    def is_pending(self, number: int) -> bool:
        """Whether a signal waits for this very thread."""
        return bool(self._signals().get(b"SigPnd", 0) & 1 << number - 1)

    def awaiting(self) -> int:
        """The signals that wait for the thread, blocked or not, and that it catches."""
        masks = self._signals()
        return (masks[b"SigPnd"] | masks[b"ShdPnd"]) & masks[b"SigCgt"] if masks else 0

    def _signals(self) -> dict[bytes, int]:
        """The sets of signals in /proc/TID/status; empty if the thread is gone."""
        from torpor.kernel.procfs import read_all

        try:
            lines = read_all(f"/proc/{self.tid}/status").splitlines()
        except OSError:
            return {}
        return {key: int(value, 16) for key, _, value in (line.partition(b":\t") for line in lines)
                if key in (b"SigPnd", b"ShdPnd", b"SigBlk", b"SigCgt")}  # fmt: skip

    def let_go(self, stop_signal: int = 0) -> None:
        """Put back what was found and detach.  A call that only our stop has ended is made again."""
        if (self._touched or self._put) and not self.arch.images_tell:
            self._go_back_inside()
        self.rewind()
        if (home := self._home(bool(self._put))) != (self._put or self.general):
            self.set_general(home)
        self.detach()
        if stop_signal:
            os.kill(self.pid, stop_signal)

    def _go_back_inside(self) -> None:
        """Where only the kernel knows how a call was interrupted (`Arch.images_tell`), programs make it forget that. It
        is shown again if a signal waits that the thread catches, or may come before SIGCONT: one that may have to end
        the call."""
        from torpor.engine import reenter

        # Its number is another call's in a restored thread, which was shown its call in the same way, and -1 where job
        # control has stopped it.
        if self._rseq_abort or self.call_before.number == RUNNING:
            return
        inside = reenter.find(self, self.general, None, True)
        if inside is None or (self._catches_nothing() and not self.group_stop):
            return
        self._note()
        self._touched = self._mask_touched = True
        general, _ = reenter.enter(self, inside)
        self.set_general(general)
        self._inside = True

    def detach(self) -> None:
        ptrace.detach(self.tid)
        self.stopped = False
        self.close()

    def close(self) -> None:
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1
