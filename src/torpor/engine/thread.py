# SPDX-License-Identifier: Apache-2.0
"""One stopped thread as it was found: its memory, its registers, its signals.

The trap that cost days: one injected call makes the kernel clear rseq_cs, so whether a thread is inside a restartable
sequence has to be read before the first one.
"""

import errno
import os
import struct

from torpor.arch import native
from torpor.arch.base import NT_PRSTATUS, Registers
from torpor.kernel import ptrace
from torpor.kernel.inside import UNSEEN, SeenCall
from torpor.kernel.procfs import read_memory, write_memory

_absent: set[int] = set()  # register sets that this CPU does not have
_RSEQ_CS = struct.Struct("=IIQQQ")  # version, flags, start_ip, post_commit_offset, abort_ip


class StoppedThread:
    """A seized and stopped thread.  `pid` is its process; `memory` a descriptor of /proc/TID/mem, shared by threads."""

    def __init__(self, tid: int, pid: int) -> None:
        self.tid, self.pid = tid, pid
        self.arch = native()
        self.call_before = UNSEEN  # what it was in before the stop, where the architecture wants to know
        self._memory = -1
        self._sharer: StoppedThread | None = None  # has the same address space
        self._general = b""
        self._mask: int | None = None
        self._specials: dict[int, bytes] = {}
        self._registers: Registers | None = None
        self._told: tuple[bytes, dict[int, bytes], SeenCall] | None = None
        self._rseq: ptrace.RseqConfiguration | None = None
        self._rseq_abort = 0

    def __repr__(self) -> str:
        return f"<thread {self.tid}>"

    # -- memory -----------------------------------------------------------------------------------------------------
    @property
    def memory(self) -> int:
        if self._memory < 0:
            if self._sharer is not None:
                return self._sharer.memory
            self._memory = os.open(f"/proc/{self.tid}/mem", os.O_RDWR | os.O_CLOEXEC)
        return self._memory

    def share_memory(self, other: "StoppedThread") -> None:
        """Use the descriptor of a thread with the same address space, which is held as long.  (A thousand copies of it
        would take as many descriptors, and whenever their table grows while the engine has threads, for instance the
        Watch over the freeze, the kernel waits for all processors: 10 ms each time, expand_fdtable in fs/file.c.)"""
        self._sharer = other

    def read(self, address: int, length: int) -> bytes:
        """`length` bytes at `address`, PROT_NONE pages too.  Raises OSError (EIO: not mapped)."""
        address &= self.arch.untag_mask  # pointers of the program's own may have something in their top byte
        data = read_memory(self.memory, length, address)
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
        if write_memory(self.memory, data, address & self.arch.untag_mask) != len(data):
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
                if self.arch.call_before_stop:
                    from torpor.engine import entered

                    self.call_before = entered.prove(self, self._general, self.call_before._replace(proven=False))
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
            from torpor.engine import entered

            try:
                self.call_before = entered.note(self.arch, self.tid)
            except OSError:
                pass  # it has ended

    def capture(self) -> None:
        """Read everything that an image needs of a thread; it can be asked for later, when the thread runs again."""
        _ = self.registers(), self.mask

    def forget(self) -> None:
        """It has run and was stopped again: what was read before counts no more."""
        self._general, self._mask, self._specials, self._rseq_abort = b"", None, {}, 0
        self._registers = self._told = None

    # -- signals ------------------------------------------------------------------------------------------------------
    def is_pending(self, number: int) -> bool:
        """Whether a signal waits for this very thread."""
        return bool(self._signals().get(b"SigPnd", 0) & 1 << number - 1)

    def awaiting(self) -> int:
        """The signals that wait for the thread, blocked or not, and that it catches."""
        masks = self._signals()
        return (masks[b"SigPnd"] | masks[b"ShdPnd"]) & masks[b"SigCgt"] if masks else 0

    def caught(self) -> int:
        """The signals for which the process has handlers; all, if the thread is gone."""
        return self._signals().get(b"SigCgt", (1 << 64) - 1)

    def _signals(self) -> dict[bytes, int]:
        """The sets of signals in /proc/TID/status; empty if the thread is gone."""
        from torpor.kernel.procfs import read_all

        try:
            lines = read_all(f"/proc/{self.tid}/status").splitlines()
        except OSError:
            return {}
        return {key: int(value, 16) for key, _, value in (line.partition(b":\t") for line in lines)
                if key in (b"SigPnd", b"ShdPnd", b"SigBlk", b"SigCgt")}  # fmt: skip

    def close(self) -> None:
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1
