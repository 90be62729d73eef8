# SPDX-License-Identifier: Apache-2.0
"""What Torpor needs to know about an architecture.

Registers are kept as the kernel gives them: one bytes object per regset.  All functions are pure: they take bytes and
return new bytes; engine/ moves them with PTRACE_GETREGSET and PTRACE_SETREGSET.
"""

import struct

from torpor.errors import ImageError, Refusal
from torpor.typed import TYPE_CHECKING, Callable, Iterator, Mapping, NamedTuple, NoReturn, Sequence, TypeVar

if TYPE_CHECKING:
    from torpor.images.schema.core import CoreEntry
    from torpor.kernel.inside import SeenCall

NT_PRSTATUS = 1

MAX_REGISTER_SET = (1 << 16) + 4096  # SME's array has 64 KiB at most

T = TypeVar("T")
Info = TypeVar("Info")

# What a system call that was interrupted by a stop shows in its result register (include/linux/errno.h).
ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK = 512, 513, 514, 516
RESTARTED = (ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND)  # what is begun again from its beginning
EINTR = 4

# Calls that the kernel ends with EINTR whenever their task is stopped, never to make them again (signal(7)).  Nothing
# has happened yet then, and a program that catches no signals does not expect it.
_ENDED_BY_ANY_STOP = """
epoll_wait epoll_pwait epoll_pwait2 semop semtimedop semtimedop_time64 rt_sigtimedwait rt_sigtimedwait_time64
""".split()  # noqa: SIM905
# The same of sockets that have a time limit (SO_RCVTIMEO, SO_SNDTIMEO); connect(2) is not here, as it goes on without
# its caller.
_OF_SOCKETS = """
read readv recv recvfrom recvmsg recvmmsg recvmmsg_time64 write writev send sendto sendmsg sendmmsg accept accept4
""".split()  # noqa: SIM905
_FUTEX_WAIT_BITSET, _FUTEX_COMMAND = 9, 0x7F
# The same by way of ipc(2), SEMOP and SEMTIMEDOP, and of socketcall(2), which C libraries use where these came first.
_SEMAPHORES, _SOCKETS = (1, 4), (5, 9, 10, 11, 12, 16, 17, 18, 19, 20)


class Registers(NamedTuple):
    """All registers of one thread: general ones (NT_PRSTATUS) and every other regset by its NT_* number."""

    general: bytes
    others: Mapping[int, bytes]


Memory = Callable[[int, int], bytes]  # (address, length)


class Frame(NamedTuple):
    """A signal frame on a stack.  The thread that the signal has interrupted was at `pc`, its stack pointer `sp`; `at`:
    where the part of it is that `Arch.mended_frame` is about; `memory`: what it lies in."""

    at: int
    pc: int
    sp: int
    memory: Memory


class CannotReturn(Exception):
    """A frame holds registers that are not there; the text names them."""


class Call(NamedTuple):
    """A system call that a thread is about to make, or in.  `word`: what else the kernel remembers of it: the number
    and the length of its instruction on s390x, how it was entered on ppc64le."""

    nr: int
    args: Sequence[int]
    word: int = 0


class Arch:
    """One architecture.  A file in arch/ makes one instance, called ARCH."""

    name: str  # of the executor blob, and of uname -m
    word: str  # struct code of an unsigned machine word, with byte order: "<Q", ">Q", "<I"
    word_size: int
    page_size_hint: int
    user_end: int  # no area of a program lies beyond, but where it has asked for that
    far_end = 0  # the same where it has; 0: it cannot
    stub_layout: tuple[int, int]  # where stack, vDSO and the like of a program without randomisation may lie
    # The same of one with a limit of SHORT_STACK for its stack, where addresses are scarce
    short_stub_layout: Sequence[tuple[int, int]] = ()
    elf_machine: int
    elf_flags = 0
    march: int  # core_entry.march
    SYSCALLS: dict[str, int]
    instruction: bytes  # enters a system call; to be found in the vDSO
    instruction_alignment: int
    regsets: Sequence[int]  # NT_* numbers besides NT_PRSTATUS, where the CPU has them
    # NT_* numbers that stand in for others where the CPU lacks these
    substitutes: Mapping[int, int] = {}  # noqa: RUF012
    optional: Sequence[int] = ()  # more of them, which not every CPU has
    extra: Sequence[int] = ()  # the same, of which CRIU's message knows nothing; set in this order, after the others
    vdso_names: tuple[str, ...] = ("[vdso]", "[vvar]", "[vvar_vclock]")
    sigaction_size = 32  # struct kernel_sigaction: handler, flags, restorer, mask
    ioctl_directions = (0, 1 << 30, 2 << 30)  # bits of a request's number: nothing is copied, to the kernel, from it
    map_locked, map_noreserve = 0x2000, 0x4000  # flags of mmap(2)
    mcl_future, mcl_onfault = 2, 4  # of mlockall(2)
    o_largefile = 0o100000
    shmlba = 4096  # shmat(2) takes only multiples of this as addresses
    ipc_version = 0  # to be added to the commands of shmctl(2), for structures whose user ids have 32 bits
    volatile: Sequence[int] = ()  # NT_* numbers, where the CPU has them, of what any system call destroys (`is_live`)
    frame_mark = b""  # bytes that all signal frames have, where `mended_frame` may have anything to write
    untag_mask = (1 << 64) - 1  # what /proc/PID/status shows of a task for which no bits of addresses are ignored
    # NT_* numbers that not every CPU has, in words
    register_names: Mapping[int, str] = {}  # noqa: RUF012
    # NT_* numbers, in words, that nobody could try: a restore that sets one looks whether it is there then
    unproven: Mapping[int, str] = {}  # noqa: RUF012
    thread_area = 0  # NT_* number under which the word of PTRACE_GET_THREAD_AREA is kept (arm: the thread pointer)
    call_stop_keeps_all = True  # False: some of the registers that are set in a system-call stop are lost
    single_step = True  # PTRACE_SINGLESTEP can be relied on
    number_regset = 0  # NT_* number: what is set there, /proc/TID/syscall shows as the call that a thread is in
    call_before_stop = False  # `resumed` needs to know which call the task was in before it was stopped
    # What the executor does without the kernel, by its name in the table: code that does it and then makes a call.
    own_code: Mapping[str, bytes] = {}  # noqa: RUF012
    dispatches_calls = False  # the kernel can send a thread's system calls to a handler of its own
    general_size = 0  # bytes of NT_PRSTATUS; a thread in 32-bit code has fewer
    number_at = 0  # which of the general registers, as ptrace has them, holds the number of a system call
    images_tell = True  # how a call was interrupted (`interruption`); False: `arch.interrupted` has to guess
    signs_pointers = False  # addresses may carry signatures that only an alike CPU takes (`signing`)
    restarts_alike = True  # `again` makes the kernel itself begin the call again, unless a signal is to be caught first

    _ended: frozenset[int] | None = None
    _ended_by_any: frozenset[int] | None = None

    def tags_memory(self) -> bool:
        """Whether memory can be tagged (MTE of aarch64) on this machine, under this kernel."""
        return False

    def checks_tags(self, registers: Registers) -> bool:
        """Whether a thread has its accesses to tagged memory checked: those that the kernel makes for it, too."""
        return False

    def numbers_of(self, names: Sequence[str]) -> frozenset[int]:
        return frozenset(self.SYSCALLS[name] for name in names if name in self.SYSCALLS)

    def loses_nothing(self, nr: int, operation: int) -> bool:
        """Whether a call whose progress the kernel keeps to itself (ERESTART_RESTARTBLOCK) can be made again from its
        beginning: poll loses but time, and a futex's operation may say that its time limit is a point in time."""
        if nr == self.SYSCALLS.get("poll"):
            return True
        futexes = self.SYSCALLS["futex"], self.SYSCALLS.get("futex_time64")
        return nr in futexes and operation & _FUTEX_COMMAND == _FUTEX_WAIT_BITSET

    def how_interrupted(self, error: int, nr: int, first: int, second: int) -> int:
        """The ERESTART number to be shown by a call, with these first arguments, that a stop has ended with `error` and
        that is to be made again after it, unless a signal is caught first; 0: it is not."""
        if error in RESTARTED:
            return error
        if error == ERESTART_RESTARTBLOCK:
            return ERESTARTNOHAND if self.loses_nothing(nr, second) else 0
        return ERESTARTNOHAND if error == EINTR and self.ends_by_a_stop(nr, first) else 0

    def ends_by_a_stop(self, nr: int, first: int) -> bool:
        """Whether a call may be one that a stop has ended with EINTR, never to be made again."""
        if self._ended is None:
            self._ended = self.numbers_of(_OF_SOCKETS)
        if nr in self._ended or self.ends_by_any_stop(nr, first):
            return True
        return nr == self.SYSCALLS.get("socketcall") and first & 0xFFFF in _SOCKETS

    def ends_by_any_stop(self, nr: int, first: int) -> bool:
        """The same, whatever the call was made on: of sockets, only those with a time limit are ended so."""
        if self._ended_by_any is None:
            self._ended_by_any = self.numbers_of(_ENDED_BY_ANY_STOP)
        if nr in self._ended_by_any:
            return True
        return nr == self.SYSCALLS.get("ipc") and first & 0xFFFF in _SEMAPHORES

    # -- running system calls -------------------------------------------------------------------------------------
    def arguments(self, name: str, args: Sequence[T | int]) -> Sequence[T | int]:
        """The registers' contents for call `name` with the arguments that 64-bit machines give it."""
        return args

    def call_block(self, nr: int, args: Sequence[int]) -> bytes:
        """What a call wants in memory, whose address is then its only argument (s390x: mmap); b"": nothing."""
        return b""

    def enter_call(self, general: bytes, gadget: int, nr: int, args: Sequence[int]) -> bytes:
        """Registers that make the instruction at `gadget` do system call `nr`, without restart of an earlier one."""
        raise NotImplementedError

    def result(self, general: bytes) -> int:
        """The system call's result (negative errno on failure)."""
        raise NotImplementedError

    def enter_executor(self, general: bytes, entry: int, args: Sequence[int], stack: int) -> bytes:
        """Registers that start the executor at `entry` with three arguments and the stack pointer `stack`."""
        raise NotImplementedError

    def before_programs(self) -> Mapping[int, bytes]:
        """Regsets to set on a stopped task before anything is run in it (s390x: NT_S390_SYSTEM_CALL = 0).  What they
        held is kept (`specials`) and put back."""
        return {}

    def is_live(self, which: int, data: bytes) -> bool:
        """Whether one of the `volatile` register sets holds anything: then it has to be put back after a program."""
        return True

    def in_other_order(self, general: bytes) -> bool:
        """Whether a thread runs in the other byte order (PR_SET_ENDIAN of ppc64le): our instructions are none there."""
        return False

    def in_transaction(self, general: bytes) -> bool:
        """Whether a thread is inside a memory transaction, in which no program can be run."""
        return False

    def jump(self, target: int) -> bytes:
        """Code that goes on at `target` from the first instruction of a function, whose arguments it leaves alone."""
        raise NotImplementedError

    # -- leaving a task as it was -----------------------------------------------------------------------------------
    def settled(self, general: bytes, specials: Mapping[int, bytes], before: "SeenCall") -> bytes:
        """Registers for an image, or for a task that goes home by sigreturn: an interrupted system call is rewound so
        that it runs again, or, where it must not begin anew (a relative sleep), fails with EINTR.  (A task that is let
        go by PTRACE_DETACH with its registers exactly as read needs none of this: the kernel restarts the call.)
        `before`: see `resumed`."""
        raise NotImplementedError

    def resumed(self, general: bytes, before: "SeenCall") -> bytes:
        """Registers for PTRACE_DETACH from a task in which programs have run.  `before`: the call in which it was seen
        before the stop, where `call_before_stop` asks for that; else outside of any."""
        return general

    def interruption(self, general: bytes, specials: Mapping[int, bytes], before: "SeenCall") -> tuple[int, int] | None:
        """How the call that the thread is in was interrupted, for torpor-PID.img: an ERESTART number, and what else the
        kernel remembers of the call.  None: `settled` says all, or the registers do not show it."""
        return None

    def first_interrupted(
        self, general: bytes, specials: dict[int, bytes], before: "SeenCall", read: Callable[[int, int], bytes]
    ) -> tuple[bytes, dict[int, bytes], "SeenCall"]:
        """The same, or, of a thread that was interrupted in restart_syscall, by which the kernel continues a call that
        was interrupted before, what it would show in that call itself, if that is certain and can be begun anew.
        The kernel forgets its number, so `read` (address, length; empty where nothing is) is asked for the instructions
        that have made it, and for what its arguments point to (`arch.continued`).  For images alone.  (On ppc64le it
        forgets the first argument, too; 32-bit ARM keeps the number.)"""
        return general, specials, before

    def lacks_entry(self, word: int) -> str:
        """The instruction by which a call was made (`Call.word`) that this CPU does not have; "": it has it."""
        return ""

    def call_at(self, general: bytes, code: bytes) -> Call | None:
        """The call that a thread is about to make whose next instruction `code` (4 bytes) begins with.  See
        `arch.interrupted`, also for the next three."""
        raise NotImplementedError

    def ended_call(self, general: bytes, code: bytes) -> bytes | None:
        """Registers that make a call again which in an image of CRIU's has failed with EINTR, by the stop alone; None:
        it is none such, or the image has lost its arguments.  `code`: the 4 bytes before the next instruction."""
        return None

    def inside_call(self, general: bytes, call: Call, how: int) -> tuple[bytes, Mapping[int, bytes]]:
        """Registers, and register sets, of a thread that was interrupted (`how`: an ERESTART number) in the call that
        it was about to make."""
        raise NotImplementedError

    def before_call(self, general: bytes, call: Call) -> bytes | None:
        """Registers for a harmless call, made by the thread's own instruction, at whose end it has to be stopped when
        it gets those of `inside_call`.  None: it can get them at any stop but one of another call."""
        return None

    def again(self, general: bytes, specials: Mapping[int, bytes], before: "SeenCall") -> bytes | None:
        """Registers with which a call goes on waiting that only the stop has ended (`ends_by_a_stop`); None in any
        other case.  Its time limit, if it has one, begins anew.  For PTRACE_DETACH, as `resumed`."""
        return None

    def may_have_ended(self, general: bytes) -> Call | None:
        """The call that the stop may have ended so, where `again` needs that to be proven (`engine.entered`)."""
        return None

    def waits_in(self, general: bytes, told: bool) -> int:
        """The number of the call that a thread waits in when it goes on with these registers of an image; -1: in none.
        `told`: torpor-PID.img says that there is one.  Where `images_tell` is False, it may only look so."""
        if not told and self.images_tell:
            return -1
        return int(struct.unpack_from(self.word, general, self.number_at * self.word_size)[0])

    def pc(self, general: bytes) -> int:
        raise NotImplementedError

    def sp(self, general: bytes) -> int:
        raise NotImplementedError

    def with_pc(self, general: bytes, pc: int) -> bytes:
        raise NotImplementedError

    def signal_frame(self, registers: Registers, mask: int, address: int) -> tuple[bytes, int]:
        """A signal frame to be put at `address` (64-byte aligned) and the stack pointer with which rt_sigreturn takes
        it.  `registers` are settled.  The alternate stack in it is left zero, which rt_sigreturn ignores."""
        raise NotImplementedError

    def signal_frames(self, stack: bytes, base: int, memory: "Memory") -> "Iterator[Frame]":
        """The frames in `stack`, which is at address `base`, of threads that are in signal handlers.  Recognised by
        several words that belong together, so that hardly anything else is taken for one."""
        return iter(())

    def returns_by_kernel(self, frame: "Frame") -> bool:
        """Whether the handler of this frame returns by code in the kernel's [sigpage]."""
        return False

    def vector_lengths(self, registers: Registers) -> Mapping[int, bytes]:
        """Register sets that make a thread's signal frames like those of a thread that has `registers`."""
        return {}

    def mended_frame(self, frame: "Frame", own: "Frame") -> Iterator[tuple[int, bytes]]:
        """What is to be written where, that this kernel on this CPU, which has made `own`, returns by `frame`, made by
        another.  Raises CannotReturn: the frame holds registers that this CPU lacks."""
        return iter(())

    def may_refuse(self, own: "Frame", core: "CoreEntry", stored: Mapping[int, bytes]) -> bool:
        """Whether a kernel that makes frames like `own` may not take all that the kernel of this thread's image made.
        `stored`: its register sets in torpor-PID.img."""
        return False

    def frame_room(self, told: int) -> int:
        """How much of an alternate stack a signal takes at most of a program from another CPU, where the kernel tells
        programs `told` (AT_MINSIGSTKSZ); 0: the CPU makes no difference to it, or nothing is told."""
        return told

    # -- images -----------------------------------------------------------------------------------------------------
    def to_core(self, core: "CoreEntry", registers: Registers, clear_child_tid: int) -> None:
        """Fill in core.mtype and this architecture's thread_info from settled registers."""
        raise NotImplementedError

    def from_core(self, core: "CoreEntry", template: Registers) -> tuple[Registers, int]:
        """Registers and clear_child_tid of an image's core.  `template`: the registers of a fresh task of this machine,
        whose regset sizes and reserved fields count.  Raises Refusal if the CPU cannot hold them."""
        raise NotImplementedError

    def extras(self, registers: Registers) -> dict[int, bytes]:
        """Register sets for torpor-PID.img, cut to what `set_regset` needs to make them again."""
        return {which: registers.others[which] for which in self.extra if which in registers.others}

    def with_extras(self, registers: Registers, stored: Mapping[int, bytes], template: Registers) -> Registers:
        """Registers with those that an image holds besides.  Raises Refusal if the CPU does not have them."""
        others = dict(registers.others)
        for which in self.extra:
            if which not in stored:
                others.pop(which, None)
                continue
            data = stored[which]
            if which not in template.others:
                if self.is_lost_without(which, data):
                    self.lacks(self.register_names.get(which, f"register set {which:#x}"))
                continue
            self.expect(0 < len(data) <= MAX_REGISTER_SET and len(data) % 4 == 0, "a register set has no such size")
            others.pop(which, None)
            others[which] = data
        return Registers(registers.general, others)

    def is_lost_without(self, which: int, data: bytes) -> bool:
        """Whether a thread whose register set this is does not come back right on a CPU that does not have it."""
        return any(data)

    def signing(self) -> str:
        """How this machine's CPU signs pointers, in words that are the same where it does so alike; "": it does not, or
        does not tell."""
        return ""

    def thread_pointer(self, core: "CoreEntry") -> int | None:
        """What each thread has to give to the call set_tls itself; None where a register set has it."""
        return None

    def thread_info(self, core: "CoreEntry", info: Info | None) -> Info:
        """This architecture's part of an image's core, which must be there."""
        if core.mtype != self.march or info is None:
            raise Refusal(
                "these images", f"they are of another architecture ({core.mtype}) than {self.name}",
                "restore them on a machine like the one they come from", code="foreign-architecture",
            )  # fmt: skip
        return info

    def expect(self, good: bool, why: str) -> None:
        """Check something that an image says."""
        if not good:
            raise ImageError("a core image is mangled", why)

    def refuse(self, why: str, remedy: str) -> NoReturn:
        raise Refusal("these images", why, remedy)

    def lacks(self, what: str, remedy: str = "") -> NoReturn:
        """A thread holds something in registers that this CPU lacks."""
        raise Refusal(
            "a thread in these images", f"it uses {what}, which this CPU does not have",
            remedy or "restore it on a CPU that has it", code="cpu-feature",
        )  # fmt: skip
