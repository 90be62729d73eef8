# SPDX-License-Identifier: Apache-2.0
"""ppc64le: registers, system calls, signal frames and CRIU's thread_info_ppc64.

Layouts: struct user_pt_regs (48 words as NT_PRSTATUS), struct sigcontext (arch/powerpc/include/uapi/asm), struct
rt_sigframe (arch/powerpc/kernel/signal_64.c).

Surprises.  The word `trap` says whether the task is in a system call.  It must be 0 while anything of ours is about to
run, or the kernel takes our registers for those of the interrupted call and "restarts" it: the victim is destroyed.
There are two ways into the kernel, `sc` (0xc00: errors are positive with a flag in the condition register) and `scv`
(0x3000: negative results); the C library uses the second where the CPU has it.  CRIU's images have 0 in the place of
`trap`: how a call was entered, its instruction tells.
"""

import struct

from torpor.arch.base import EINTR, ERESTART_RESTARTBLOCK, ERESTARTNOHAND, Arch, Call, Frame, Memory, Registers
from torpor.arch.numbers import FROM_424, numbers
from torpor.errors import Refusal
from torpor.typed import TYPE_CHECKING, Iterator, Mapping, Sequence

if TYPE_CHECKING:
    from torpor.images.schema.core import CoreEntry
    from torpor.kernel.inside import SeenCall

_CALLS = """
0 restart_syscall exit fork read write open close waitpid creat link unlink execve chdir time mknod chmod lchown break
oldstat lseek getpid mount umount setuid getuid stime ptrace alarm oldfstat pause utime stty gtty access nice ftime
sync kill rename mkdir rmdir dup pipe times prof brk setgid getgid signal geteuid getegid acct umount2 lock ioctl
fcntl mpx setpgid ulimit oldolduname umask chroot ustat dup2 getppid getpgrp setsid sigaction sgetmask ssetmask
setreuid setregid sigsuspend sigpending sethostname setrlimit getrlimit getrusage gettimeofday settimeofday getgroups
setgroups select symlink oldlstat readlink uselib swapon reboot readdir mmap munmap truncate ftruncate fchmod fchown
getpriority setpriority profil statfs fstatfs ioperm socketcall syslog setitimer getitimer stat lstat fstat olduname
iopl vhangup idle vm86 wait4 swapoff sysinfo ipc fsync sigreturn clone setdomainname uname modify_ldt adjtimex
mprotect sigprocmask create_module init_module delete_module get_kernel_syms quotactl getpgid fchdir bdflush sysfs
personality afs_syscall setfsuid setfsgid _llseek getdents _newselect flock msync readv writev getsid fdatasync
_sysctl mlock munlock mlockall munlockall sched_setparam sched_getparam sched_setscheduler sched_getscheduler
sched_yield sched_get_priority_max sched_get_priority_min sched_rr_get_interval nanosleep mremap setresuid getresuid
query_module poll nfsservctl setresgid getresgid prctl rt_sigreturn rt_sigaction rt_sigprocmask rt_sigpending
rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend pread64 pwrite64 chown getcwd capget capset sigaltstack sendfile getpmsg
putpmsg vfork ugetrlimit readahead 198 pciconfig_read pciconfig_write pciconfig_iobase multiplexer getdents64
pivot_root 205 madvise mincore gettid tkill setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr
llistxattr flistxattr removexattr lremovexattr fremovexattr futex sched_setaffinity sched_getaffinity 225 tuxcall 227
io_setup io_destroy io_getevents io_submit io_cancel set_tid_address fadvise64 exit_group lookup_dcookie epoll_create
epoll_ctl epoll_wait remap_file_pages timer_create timer_settime timer_gettime timer_getoverrun timer_delete
clock_settime clock_gettime clock_getres clock_nanosleep swapcontext tgkill utimes statfs64 fstatfs64 255 rtas
sys_debug_setcontext 258 migrate_pages mbind get_mempolicy set_mempolicy mq_open mq_unlink mq_timedsend
mq_timedreceive mq_notify mq_getsetattr kexec_load add_key request_key keyctl waitid ioprio_set ioprio_get
inotify_init inotify_add_watch inotify_rm_watch spu_run spu_create pselect6 ppoll unshare splice tee vmsplice openat
mkdirat mknodat fchownat futimesat newfstatat unlinkat renameat linkat symlinkat readlinkat fchmodat faccessat
get_robust_list set_robust_list move_pages getcpu epoll_pwait utimensat signalfd timerfd_create eventfd
sync_file_range2 fallocate subpage_prot timerfd_settime timerfd_gettime signalfd4 eventfd2 epoll_create1 dup3 pipe2
inotify_init1 perf_event_open preadv pwritev rt_tgsigqueueinfo fanotify_init fanotify_mark prlimit64 socket bind
connect listen accept getsockname getpeername socketpair send sendto recv recvfrom shutdown setsockopt getsockopt
sendmsg recvmsg recvmmsg accept4 name_to_handle_at open_by_handle_at clock_adjtime syncfs sendmmsg setns
process_vm_readv process_vm_writev finit_module kcmp sched_setattr sched_getattr renameat2 seccomp getrandom
memfd_create bpf execveat switch_endian userfaultfd membarrier 378 mlock2 copy_file_range preadv2 pwritev2
kexec_file_load statx pkey_alloc pkey_free pkey_mprotect rseq io_pgetevents 392 semtimedop semget semctl shmget shmctl
shmat shmdt msgget msgsnd msgrcv msgctl
"""

NT_PRFPREG, NT_PPC_VMX, NT_PPC_VSX = 2, 0x100, 0x102
NT_PPC_TAR, NT_PPC_PPR, NT_PPC_DSCR, NT_PPC_HASHKEYR = 0x103, 0x104, 0x105, 0x112

_GENERAL = struct.Struct("<48Q")
R0, R1, R3, R4, R12, NIP, MSR, ORIG_R3, CTR, LINK, XER, CCR, SOFTE, TRAP, DAR, DSISR, RESULT = (
    0, 1, 3, 4, 12, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
)  # fmt: skip
_M64 = (1 << 64) - 1
_SUMMARY_OVERFLOW = 0x10000000
_TRAP_SC, _TRAP_SCV = 0xC00, 0x3000
_NO_RESTART = 1  # in `trap`: the kernel has done already what a handler or a restart asks for (since Linux 5.12)
_ENTRIES = {b"\x02\x00\x00\x44": _TRAP_SC, b"\x01\x00\x00\x44": _TRAP_SCV}  # by instruction: sc, scv 0
_AT_HWCAP2, _HWCAP2_SCV = 26, 1 << 20
_MSR_VEC, _MSR_VSX, _MSR_TRANSACTION, _MSR_LITTLE = 1 << 25, 1 << 23, 3 << 33, 1
_USER_MSR = b"\0\0\x80"  # the highest bytes of it in any user program; the next has the state of transactions

# struct ucontext, with which struct rt_sigframe begins: flags, link, stack, mask (8 of 128 bytes), sigcontext.
_MASK, _CONTEXT = 40, 168
_GENERAL_AT, _FLOAT_AT, _VECTOR_POINTER, _VECTORS = _CONTEXT + 64, _CONTEXT + 448, _CONTEXT + 712, 896


def _words(general: bytes) -> list[int]:
    return list(_GENERAL.unpack(general))


def _error(r: Sequence[int]) -> int:
    """The error with which the task's system call has ended; 0: it is in none, or it has not failed."""
    kind = r[TRAP] & ~0xF
    if r[TRAP] & _NO_RESTART:
        return 0
    if kind == _TRAP_SCV:
        return (1 << 64) - r[R3]
    return r[R3] if kind == _TRAP_SC and r[CCR] & _SUMMARY_OVERFLOW else 0


def _has_scv() -> bool:
    from torpor.kernel.proc import parse_auxv
    from torpor.kernel.procfs import read_all

    return bool(dict(parse_auxv(read_all("/proc/self/auxv"))).get(_AT_HWCAP2, 0) & _HWCAP2_SCV)


def _usual_stream_control() -> bytes:
    """The DSCR of threads that have never set it."""
    try:
        with open("/sys/devices/system/cpu/dscr_default") as file:
            return struct.pack("<Q", int(file.read(), 16))
    except (OSError, ValueError):
        return bytes(8)


class Ppc64le(Arch):
    name = "ppc64le"
    word = "<Q"
    word_size = 8
    page_size_hint = 65536
    user_end = 1 << 52
    stub_layout = (1 << 44, 1 << 47)
    elf_machine = 21
    map_locked, map_noreserve = 0x80, 0x40
    mcl_future, mcl_onfault = 0x4000, 0x8000
    o_largefile = 0o200000
    ioctl_directions = (1 << 29, 4 << 29, 2 << 29)
    elf_flags = 2  # ELF v2
    march = 4
    SYSCALLS = numbers(_CALLS + FROM_424)
    instruction = b"\x02\x00\x00\x44"
    general_size = 384
    instruction_alignment = 4
    number_at = R0
    regsets = (NT_PRFPREG, NT_PPC_VMX, NT_PPC_VSX)
    extra = (NT_PPC_TAR, NT_PPC_PPR, NT_PPC_HASHKEYR)
    optional = (NT_PPC_DSCR,)
    vdso_names = ("[vdso]", "[vvar]")

    def enter_call(self, general: bytes, gadget: int, nr: int, args: Sequence[int]) -> bytes:
        r = _words(general)
        r[R3 : R3 + len(args)] = [x & _M64 for x in args]
        r[R0], r[NIP], r[TRAP] = nr, gadget, 0
        return _GENERAL.pack(*r)

    def result(self, general: bytes) -> int:
        value = int(struct.unpack_from("<q", general, 8 * R3)[0])
        return -value if struct.unpack_from("<Q", general, 8 * CCR)[0] & _SUMMARY_OVERFLOW else value

    def enter_executor(self, general: bytes, entry: int, args: Sequence[int], stack: int) -> bytes:
        r = _words(general)
        r[R3 : R3 + len(args)] = args
        # The ABI gives a function room to save its return address in its caller's frame.
        r[R1], r[R12], r[NIP], r[TRAP] = (stack & ~15) - 112, entry, entry, 0
        return _GENERAL.pack(*r)

    def interruption(self, general: bytes, specials: Mapping[int, bytes], before: "SeenCall") -> tuple[int, int] | None:
        """By `scv` also where the call is not made again: a CPU without it could not make the next one."""
        r = _words(general)
        how, entry = self._how(r), r[TRAP] & ~0xF
        return (how, entry) if how or entry == _TRAP_SCV else None

    def lacks_entry(self, word: int) -> str:
        return "scv" if word == _TRAP_SCV and not _has_scv() else ""

    def _how(self, r: list[int]) -> int:
        return self.how_interrupted(_error(r), r[R0], r[ORIG_R3], r[R4])

    def call_at(self, general: bytes, code: bytes) -> Call | None:
        r = _words(general)
        entry = _ENTRIES.get(code)
        return Call(r[R0], r[R3 : R3 + 6], entry) if entry is not None else None

    def ended_call(self, general: bytes, code: bytes) -> bytes | None:
        r = _words(general)
        r[TRAP] = _ENTRIES.get(code, 0)
        if _error(r) != EINTR or not (self.ends_by_a_stop(r[R0], r[ORIG_R3]) or self.loses_nothing(r[R0], r[R4])):
            return None
        r[R3], r[NIP], r[TRAP] = r[ORIG_R3], r[NIP] - 4 & _M64, 0
        return _GENERAL.pack(*r)

    def inside_call(self, general: bytes, call: Call, how: int) -> tuple[bytes, Mapping[int, bytes]]:
        r = _words(general)
        r[ORIG_R3], r[NIP], r[TRAP] = r[R3], r[NIP] + 4, call.word
        if call.word == _TRAP_SC:
            r[R3], r[CCR] = how, r[CCR] | _SUMMARY_OVERFLOW
        else:
            r[R3] = -how & _M64
        return _GENERAL.pack(*r), {}

    def settled(self, general: bytes, specials: Mapping[int, bytes], before: "SeenCall") -> bytes:
        r = _words(general)
        if self._how(r):
            r[R3], r[NIP] = r[ORIG_R3], r[NIP] - 4
        elif _error(r) == ERESTART_RESTARTBLOCK:
            r[R3] = EINTR if r[TRAP] & ~0xF == _TRAP_SC else -EINTR & _M64
        r[TRAP] = r[RESULT] = 0
        return _GENERAL.pack(*r)

    def jump(self, target: int) -> bytes:
        """The ABI wants the address of the function in r12."""
        a, b, c, d = (target >> shift & 0xFFFF for shift in (48, 32, 16, 0))
        # lis; ori; sldi 32; oris; ori; mtctr r12; bctr
        code = (0x3D800000 | a, 0x618C0000 | b, 0x798C07C6, 0x658C0000 | c, 0x618C0000 | d, 0x7D8903A6, 0x4E800420)
        return struct.pack("<7I", *code)

    def again(self, general: bytes, specials: Mapping[int, bytes], before: "SeenCall") -> bytes | None:
        r = _words(general)
        if _error(r) != EINTR or not self.ends_by_a_stop(r[R0], r[ORIG_R3]):
            return None
        r[R3] = ERESTARTNOHAND if r[TRAP] & ~0xF == _TRAP_SC else -ERESTARTNOHAND & _M64
        return _GENERAL.pack(*r)

    def is_lost_without(self, which: int, data: bytes) -> bool:
        """The key by which POWER10 hashes return addresses has no use elsewhere: there nothing checks them (`dexcr` of
        resources/switches.py)."""
        return which != NT_PPC_HASHKEYR and super().is_lost_without(which, data)

    def in_other_order(self, general: bytes) -> bool:
        return not _words(general)[MSR] & _MSR_LITTLE

    def in_transaction(self, general: bytes) -> bool:
        return bool(_words(general)[MSR] & _MSR_TRANSACTION)

    def pc(self, general: bytes) -> int:
        return int(struct.unpack_from("<Q", general, 8 * NIP)[0])

    def sp(self, general: bytes) -> int:
        return int(struct.unpack_from("<Q", general, 8 * R1)[0])

    def with_pc(self, general: bytes, pc: int) -> bytes:
        r = _words(general)
        r[NIP] = pc
        return _GENERAL.pack(*r)

    def signal_frame(self, registers: Registers, mask: int, address: int) -> tuple[bytes, int]:
        r = _words(registers.general)
        r[MSR] = r[MSR] & ~_MSR_TRANSACTION | _MSR_VEC | _MSR_VSX  # the last two say: the frame has these registers
        frame = bytearray(_VECTORS)
        struct.pack_into("<Q", frame, _MASK, mask)
        frame[_GENERAL_AT : _GENERAL_AT + _GENERAL.size] = _GENERAL.pack(*r)
        frame[_FLOAT_AT : _FLOAT_AT + 264] = registers.others[NT_PRFPREG]
        struct.pack_into("<Q", frame, _VECTOR_POINTER, address + _VECTORS)
        return bytes(frame) + registers.others[NT_PPC_VMX].ljust(544, b"\0") + registers.others[NT_PPC_VSX], address

    def signal_frames(self, stack: bytes, base: int, memory: Memory) -> Iterator[Frame]:
        """By a pointer of the frame's to its own registers.  All POWER CPUs that Linux runs on in little-endian order
        have the registers that a frame holds."""
        at = stack.find(_USER_MSR)
        while at >= 0:
            start = at - 5 - 8 * MSR
            if start >= 8 and int.from_bytes(stack[start - 8 : start], "little") == base + start:
                r = struct.unpack_from("<34Q", stack, start)
                yield Frame(base + start, r[NIP], r[R1], memory)
            at = stack.find(_USER_MSR, at + 1)

    def to_core(self, core: "CoreEntry", registers: Registers, clear_child_tid: int) -> None:
        from torpor.images.schema.core_ppc64 import (
            ThreadInfoPpc64,
            UserPpc64FpstateEntry,
            UserPpc64RegsEntry,
            UserPpc64VrstateEntry,
            UserPpc64VsxstateEntry,
        )

        r = _words(registers.general)
        vmx = registers.others[NT_PPC_VMX]
        # By the two bits of MSR CRIU knows at a restore that the image has VMX and VSX registers.
        core.mtype = self.march
        core.ti_ppc64 = ThreadInfoPpc64(
            clear_tid_addr=clear_child_tid,
            gpregs=UserPpc64RegsEntry(
                gpr=r[:32], nip=r[NIP], msr=r[MSR] | _MSR_VEC | _MSR_VSX, orig_gpr3=r[ORIG_R3], ctr=r[CTR],
                link=r[LINK], xer=r[XER], ccr=r[CCR], trap=r[TRAP],
            ),
            fpstate=UserPpc64FpstateEntry(fpregs=list(struct.unpack("<33Q", registers.others[NT_PRFPREG]))),
            vrstate=UserPpc64VrstateEntry(
                vrregs=list(struct.unpack_from("<66Q", vmx)), vrsave=struct.unpack_from("<I", vmx, 33 * 16)[0]
            ),
            vsxstate=UserPpc64VsxstateEntry(vsxregs=list(struct.unpack("<32Q", registers.others[NT_PPC_VSX]))),
        )  # fmt: skip

    def extras(self, registers: Registers) -> dict[int, bytes]:
        """What ptrace sets as DSCR is lost at the next switch of threads, unless the thread has set it itself."""
        if any(control := registers.others.get(NT_PPC_DSCR, b"")) and control != _usual_stream_control():
            raise Refusal("a thread", "it has set DSCR, the data stream control register, which only itself can do",
                          "run the program without", code="dscr")  # fmt: skip
        if self.in_transaction(registers.general):
            raise Refusal("a thread", "it is inside a memory transaction", "try again in a moment", code="transaction")
        return super().extras(registers)

    def from_core(self, core: "CoreEntry", template: Registers) -> tuple[Registers, int]:
        info = self.thread_info(core, core.ti_ppc64)
        g = info.gpregs
        self.expect(len(g.gpr) == 32, "wrong number of registers")
        if info.tmstate is not None:
            self.refuse("the program was inside a memory transaction", "dump it outside one")
        r = _words(template.general)
        r[:32] = g.gpr
        # Of the machine state only what user space may choose; the rest is this kernel's.
        r[NIP], r[ORIG_R3], r[CTR], r[LINK], r[XER], r[CCR] = g.nip, g.orig_gpr3, g.ctr, g.link, g.xer, g.ccr
        r[TRAP] = r[RESULT] = 0
        others = dict(template.others)
        if info.fpstate is not None:
            self.expect(len(info.fpstate.fpregs) == 33, "wrong number of floating-point registers")
            others[NT_PRFPREG] = struct.pack("<33Q", *info.fpstate.fpregs)
        if info.vrstate is not None:
            self.expect(len(info.vrstate.vrregs) == 66, "wrong number of vector registers")
            others[NT_PPC_VMX] = struct.pack("<66QQQ", *info.vrstate.vrregs, info.vrstate.vrsave, 0)
        if info.vsxstate is not None:
            self.expect(len(info.vsxstate.vsxregs) == 32, "wrong number of vector-scalar registers")
            others[NT_PPC_VSX] = struct.pack("<32Q", *info.vsxstate.vsxregs)
        return Registers(_GENERAL.pack(*r), others), info.clear_tid_addr


ARCH = Ppc64le()
