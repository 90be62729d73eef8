# SPDX-License-Identifier: Apache-2.0
"""How a system call is stepped inside a stopped thread.

A tracee is *frozen* (as it was found) until something is run in it.  `let_go` puts back what was found, bit for bit:
the kernel itself then restarts an interrupted system call, and only at PTRACE_DETACH (those that it would end with
EINTR instead are made again, see `_home`).  Registers for an image, or for a task that goes home by itself, are
`settled` instead (arch/base.py).

The trap that cost days: a signal mask must be put back also where the task goes on.
"""

import errno
import os

from torpor import signals as signal
from torpor.arch.base import NT_PRSTATUS
from torpor.engine import gadget, journal, stops
from torpor.engine.stops import Kind, Stop
from torpor.engine.thread import StoppedThread
from torpor.errors import Refusal, TaskGone, TorporError
from torpor.kernel import ptrace
from torpor.kernel.inside import RUNNING
from torpor.typed import Sequence

ALL_SIGNALS = (1 << 64) - 1
DISPATCHES_NONE = "start the program without that"
_SIGSYS = 1 << signal.SIGSYS - 1
_tells: bool | None = None  # whether ptrace tells whose system calls are dispatched


class Tracee(StoppedThread):
    """A seized and stopped thread, in which calls and programs are run."""

    def __init__(self, tid: int, pid: int) -> None:
        super().__init__(tid, pid)
        self.group_stop = 0  # the stop signal, where job control has stopped the process
        self.stopped = True
        self._gadget = 0
        self._relative: Tracee | None = None  # has the same address space, so the same gadget
        self._touched = False
        self._mask_touched = False
        self._put = b""  # general registers that were put back
        self._in_mask: int | None = None  # what is blocked inside its call, once that was asked
        self._inside = False  # the kernel has been shown the call that the thread was in

    def forget(self) -> None:
        super().forget()
        self._put, self._in_mask, self._inside = b"", None, False

    def adopt(self, general: bytes, mask: int, specials: dict[int, bytes]) -> None:
        """Take these for what was found, to be put back: somebody else found it, and died."""
        self.forget()
        self._general, self._mask, self._specials = general, mask, specials
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
