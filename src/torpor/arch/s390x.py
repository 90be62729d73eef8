# SPDX-License-Identifier: Apache-2.0
"""s390x: registers, system calls, signal frames and CRIU's thread_info_s390.  Big-endian.

Layouts: s390_regs, s390_fp_regs (arch/s390/include/uapi/asm/ptrace.h), ucontext_extended (asm/ucontext.h), struct
rt_sigframe (arch/s390/kernel/signal.c).

Surprises.  Whether a task is in a system call is not told by its registers but by the regset NT_S390_SYSTEM_CALL: the
call's number, and above it the length of the instruction that made it.  Unless that is set to 0 an injected call is
lost, and the victim's own returns ENOSYS.  mmap takes the address of its six arguments, not the arguments.  QEMU's
emulation (7.2) breaks whatever is stepped by PTRACE_SINGLESTEP: any program dies after some dozen instructions, as its
condition code is lost.  Nothing tells an emulated machine from a real one, so no thread is stepped here.
"""

import struct

from torpor.arch.base import (
    EINTR,
    ERESTART_RESTARTBLOCK,
    ERESTARTNOHAND,
    Arch,
    Call,
    CannotReturn,
    Frame,
    Memory,
    Registers,
)
from torpor.arch.numbers import FROM_424, numbers
from torpor.typed import TYPE_CHECKING, Callable, Iterator, Mapping, Sequence

if TYPE_CHECKING:
    from torpor.images.schema.core import CoreEntry
    from torpor.kernel.inside import SeenCall

_CALLS = """
1 exit fork read write open close restart_syscall creat link unlink execve chdir 14 mknod chmod 19 lseek getpid mount
umount 26 ptrace alarm 29 pause utime 33 access nice 36 sync kill rename mkdir rmdir dup pipe times 45 brk 48 signal
51 acct umount2 54 ioctl fcntl 57 setpgid 60 umask chroot ustat dup2 getppid getpgrp setsid sigaction 72 sigsuspend
sigpending sethostname setrlimit 77 getrusage gettimeofday settimeofday 83 symlink 85 readlink uselib swapon reboot
readdir mmap munmap truncate ftruncate fchmod 96 getpriority setpriority 99 statfs fstatfs 102 socketcall syslog
setitimer getitimer stat lstat fstat 110 lookup_dcookie vhangup idle 114 wait4 swapoff sysinfo ipc fsync sigreturn
clone setdomainname uname 124 adjtimex mprotect sigprocmask create_module init_module delete_module get_kernel_syms
quotactl getpgid fchdir bdflush sysfs personality afs_syscall 141 getdents select flock msync readv writev getsid
fdatasync _sysctl mlock munlock mlockall munlockall sched_setparam sched_getparam sched_setscheduler
sched_getscheduler sched_yield sched_get_priority_max sched_get_priority_min sched_rr_get_interval nanosleep mremap
167 query_module poll nfsservctl 172 prctl rt_sigreturn rt_sigaction rt_sigprocmask rt_sigpending rt_sigtimedwait
rt_sigqueueinfo rt_sigsuspend pread64 pwrite64 183 getcwd capget capset sigaltstack sendfile getpmsg putpmsg vfork
getrlimit 198 lchown getuid getgid geteuid getegid setreuid setregid getgroups setgroups fchown setresuid getresuid
setresgid getresgid chown setuid setgid setfsuid setfsgid pivot_root mincore madvise getdents64 222 readahead 224
setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr removexattr lremovexattr
fremovexattr gettid tkill futex sched_setaffinity sched_getaffinity tgkill 243 io_setup io_destroy io_getevents
io_submit io_cancel exit_group epoll_create epoll_ctl epoll_wait set_tid_address fadvise64 timer_create timer_settime
timer_gettime timer_getoverrun timer_delete clock_settime clock_gettime clock_getres clock_nanosleep 265 statfs64
fstatfs64 remap_file_pages mbind get_mempolicy set_mempolicy mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify
mq_getsetattr kexec_load add_key request_key keyctl waitid ioprio_set ioprio_get inotify_init inotify_add_watch
inotify_rm_watch migrate_pages openat mkdirat mknodat fchownat futimesat newfstatat unlinkat renameat linkat symlinkat
readlinkat fchmodat faccessat pselect6 ppoll unshare set_robust_list get_robust_list splice sync_file_range tee
vmsplice move_pages getcpu epoll_pwait utimes fallocate utimensat signalfd timerfd eventfd timerfd_create
timerfd_settime timerfd_gettime signalfd4 eventfd2 inotify_init1 pipe2 dup3 epoll_create1 preadv pwritev
rt_tgsigqueueinfo perf_event_open fanotify_init fanotify_mark prlimit64 name_to_handle_at open_by_handle_at
clock_adjtime syncfs setns process_vm_readv process_vm_writev s390_runtime_instr kcmp finit_module sched_setattr
sched_getattr renameat2 seccomp getrandom memfd_create bpf s390_pci_mmio_write s390_pci_mmio_read execveat userfaultfd
membarrier recvmmsg sendmmsg socket socketpair bind connect listen accept4 getsockopt setsockopt getsockname
getpeername sendto sendmsg recvfrom recvmsg shutdown mlock2 copy_file_range preadv2 pwritev2 s390_guarded_storage
statx s390_sthyi kexec_file_load io_pgetevents rseq pkey_mprotect pkey_alloc pkey_free 392 semtimedop semget semctl
shmget shmctl shmat shmdt msgget msgsnd msgrcv msgctl
"""

NT_PRFPREG, NT_S390_SYSTEM_CALL, NT_S390_VXRS_LOW, NT_S390_VXRS_HIGH = 2, 0x307, 0x309, 0x30A
NT_S390_GS_CB, NT_S390_GS_BC, NT_S390_RI_CB = 0x30B, 0x30C, 0x30D

_GENERAL = struct.Struct(">18Q16IQ")
PSW_MASK, PSW_ADDRESS, R0 = 0, 1, 2
R1, R2, R3, R12, R15, ORIG_R2 = R0 + 1, R0 + 2, R0 + 3, R0 + 12, R0 + 15, 34
_M64 = (1 << 64) - 1
_FRAME = 160  # what the ABI has a caller leave below its stack pointer for the function that it calls

# struct rt_sigframe: that room, an instruction, siginfo, then ucontext: flags, link, stack, registers, mask, vectors.
_UCONTEXT = _FRAME + 8 + 128
_REGISTERS, _MASK, _VECTORS = _UCONTEXT + 40, _UCONTEXT + 384, _UCONTEXT + 512
_UC_VXRS = 2
# struct sigframe: that room, the mask and a pointer to the registers, which follow; a signal's number, the vectors.
_OLD_REGISTERS, _OLD_VECTORS = _FRAME + 16, _FRAME + 16 + 344 + 8
_USER_PSW = b"\1\x80\0\0\0"  # from its fourth byte: 64-bit addresses

_VECTOR_SETS = (NT_S390_VXRS_LOW, NT_S390_VXRS_HIGH)  # before z13 there are none
_PSW_RI = 1 << 39  # runtime instrumentation is on


def _words(general: bytes) -> list[int]:
    return list(_GENERAL.unpack(general))


class S390x(Arch):
    name = "s390x"
    word = ">Q"
    word_size = 8
    page_size_hint = 4096
    user_end = 1 << 53
    far_end = (1 << 64) - 4096  # five levels of page tables
    stub_layout = (1 << 39, 1 << 42)
    elf_machine = 22
    march = 5
    SYSCALLS = numbers(_CALLS + FROM_424)
    instruction = b"\x0a\x00"
    dispatches_calls = True
    general_size = 216
    instruction_alignment = 2
    number_at = R1  # of all that do not stand in the instruction: those above 255
    regsets = (NT_PRFPREG,)
    optional = (*_VECTOR_SETS, NT_S390_GS_CB, NT_S390_GS_BC)  # the last two only for threads that use them
    volatile = (NT_S390_RI_CB,)  # so is this one, which any instruction changes
    # QEMU emulates neither, and no machine was at hand: written by arch/s390/kernel/ptrace.c of Linux 6.12 alone.
    unproven = {  # noqa: RUF012
        NT_S390_GS_CB: "guarded storage",
        NT_S390_GS_BC: "guarded storage, which waits for a broadcast",
        NT_S390_RI_CB: "runtime instrumentation",
    }
    vdso_names = ("[vdso]", "[vvar]")
    single_step = False

    def enter_call(self, general: bytes, gadget: int, nr: int, args: Sequence[int]) -> bytes:
        r = _words(general)
        r[R2 : R2 + len(args)] = [x & _M64 for x in args]
        r[R1], r[PSW_ADDRESS] = nr, gadget
        return _GENERAL.pack(*r)

    def call_block(self, nr: int, args: Sequence[int]) -> bytes:
        return struct.pack(">6Q", *[x & _M64 for x in args]) if nr == self.SYSCALLS["mmap"] else b""

    def result(self, general: bytes) -> int:
        return int(struct.unpack_from(">q", general, 8 * R2)[0])

    def enter_executor(self, general: bytes, entry: int, args: Sequence[int], stack: int) -> bytes:
        r = _words(general)
        r[R2 : R2 + len(args)] = args
        r[R15], r[PSW_ADDRESS] = (stack & ~7) - _FRAME, entry
        return _GENERAL.pack(*r)

    def before_programs(self) -> Mapping[int, bytes]:
        return {NT_S390_SYSTEM_CALL: bytes(4)}

    def interruption(self, general: bytes, specials: Mapping[int, bytes], before: "SeenCall") -> tuple[int, int] | None:
        r, call = _words(general), struct.unpack(">I", specials[NT_S390_SYSTEM_CALL])[0]
        how = self._how(r, call)
        return (how, call) if how else None

    def first_interrupted(
        self, general: bytes, specials: dict[int, bytes], before: "SeenCall", read: Callable[[int, int], bytes]
    ) -> tuple[bytes, dict[int, bytes], "SeenCall"]:
        r, call = _words(general), struct.unpack(">I", specials[NT_S390_SYSTEM_CALL])[0]
        if call & 0xFFFF == self.SYSCALLS["restart_syscall"] and r[R2] == -ERESTART_RESTARTBLOCK & _M64:
            code = read(r[PSW_ADDRESS] - 2, 2)  # svc NUMBER; with 0 it is in r1
            if code[:1] == b"\x0a":
                number = code[1] or r[R1] & 0xFFFF
                from torpor.arch import continued

                if continued.fits(self, number, [r[ORIG_R2], *r[R3 : R3 + 5]], read):  # else it may be another's end
                    specials = {**specials, NT_S390_SYSTEM_CALL: struct.pack(">I", 2 << 16 | number)}
        return general, specials, before

    def _how(self, r: list[int], call: int) -> int:
        return self.how_interrupted(_M64 + 1 - r[R2], call & 0xFFFF, r[ORIG_R2], r[R3]) if call else 0

    def call_at(self, general: bytes, code: bytes) -> Call | None:
        r = _words(general)
        if code[:1] != b"\x0a":
            return None
        nr = code[1] or r[R1] & 0xFFFF
        return Call(nr, r[R2 : R2 + 6], 2 << 16 | nr)

    def inside_call(self, general: bytes, call: Call, how: int) -> tuple[bytes, Mapping[int, bytes]]:
        r = _words(general)
        r[ORIG_R2], r[R2], r[PSW_ADDRESS] = r[R2], -how & _M64, r[PSW_ADDRESS] + (call.word >> 16)
        return _GENERAL.pack(*r), {NT_S390_SYSTEM_CALL: struct.pack(">I", call.word)}

    def settled(self, general: bytes, specials: Mapping[int, bytes], before: "SeenCall") -> bytes:
        call = struct.unpack(">I", specials[NT_S390_SYSTEM_CALL])[0]
        if not call:
            return general
        r = _words(general)
        if self._how(r, call):
            r[R2], r[PSW_ADDRESS] = r[ORIG_R2], r[PSW_ADDRESS] - (call >> 16)
        elif r[R2] == -ERESTART_RESTARTBLOCK & _M64:
            r[R2] = -EINTR & _M64
        return _GENERAL.pack(*r)

    def again(self, general: bytes, specials: Mapping[int, bytes], before: "SeenCall") -> bytes | None:
        r = _words(general)
        call = struct.unpack(">I", specials[NT_S390_SYSTEM_CALL])[0]
        if not call or r[R2] != -EINTR & _M64 or not self.ends_by_a_stop(call & 0xFFFF, r[ORIG_R2]):
            return None
        r[R2] = -ERESTARTNOHAND & _M64
        return _GENERAL.pack(*r)

    def jump(self, target: int) -> bytes:
        # basr r1,0; lg r1,8(r1); br r1.  (lgrl would want its data aligned.)
        return bytes.fromhex("0d10 e3101008 0004 07f1") + struct.pack(">Q", target)

    def pc(self, general: bytes) -> int:
        return int(struct.unpack_from(">Q", general, 8 * PSW_ADDRESS)[0])

    def sp(self, general: bytes) -> int:
        return int(struct.unpack_from(">Q", general, 8 * R15)[0])

    def with_pc(self, general: bytes, pc: int) -> bytes:
        r = _words(general)
        r[PSW_ADDRESS] = pc
        return _GENERAL.pack(*r)

    def signal_frame(self, registers: Registers, mask: int, address: int) -> tuple[bytes, int]:
        frame = bytearray(_VECTORS)
        if NT_S390_VXRS_LOW in registers.others:
            struct.pack_into(">Q", frame, _UCONTEXT, _UC_VXRS)
        state = registers.general[: _GENERAL.size - 8] + registers.others[NT_PRFPREG]  # without orig_gpr2
        frame[_REGISTERS : _REGISTERS + len(state)] = state
        struct.pack_into(">Q", frame, _MASK, mask)
        vectors = (registers.others.get(which, b"") for which in _VECTOR_SETS)
        return bytes(frame) + b"".join(vectors).ljust(128 + 256, b"\0") + bytes(128), address

    def signal_frames(self, stack: bytes, base: int, memory: Memory) -> Iterator[Frame]:
        """By the program status word of a user program, and the stack pointer, which both the registers and the first
        word of the frame hold: struct rt_sigframe, or struct sigframe of handlers that want no siginfo."""
        at = stack.find(_USER_PSW)
        while at >= 0:
            where = at - 3
            for start in (where - _REGISTERS, where - _OLD_REGISTERS):
                if start >= 0 and where + 144 <= len(stack):
                    _, pc, *gprs = struct.unpack_from(">18Q", stack, where)
                    if stack[start : start + 8] == struct.pack(">Q", gprs[15]):
                        yield Frame(base + where, pc, gprs[15], memory)
                        break
            at = stack.find(_USER_PSW, at + 1)

    def mended_frame(self, frame: Frame, own: Frame) -> Iterator[tuple[int, bytes]]:
        """Vector registers are lost on a CPU without, without a word.  A frame that has none is taken by all CPUs."""
        if not _has_vectors(own) and _has_vectors(frame):
            is_old = _is_old(frame)
            where = frame.at + (_OLD_VECTORS - _OLD_REGISTERS if is_old else _VECTORS - _REGISTERS)
            if any(frame.memory(where, 128 + 256)):
                raise CannotReturn("the vector facility")
        return iter(())

    def to_core(self, core: "CoreEntry", registers: Registers, clear_child_tid: int) -> None:
        from torpor.images.schema.core_s390 import (
            ThreadInfoS390,
            UserS390FpregsEntry,
            UserS390GsCbEntry,
            UserS390RegsEntry,
            UserS390RiEntry,
            UserS390VxrsHighEntry,
            UserS390VxrsLowEntry,
        )

        r = _words(registers.general)
        control, *floats = struct.unpack(">I4x16Q", registers.others[NT_PRFPREG])
        core.mtype = self.march
        core.ti_s390 = ThreadInfoS390(
            clear_tid_addr=clear_child_tid,
            gpregs=UserS390RegsEntry(
                psw_mask=r[PSW_MASK], psw_addr=r[PSW_ADDRESS], gprs=r[R0 : R0 + 16], acrs=r[18:34],
                orig_gpr2=r[ORIG_R2], system_call=0,
            ),
            fpregs=UserS390FpregsEntry(fpc=control, fprs=floats),
        )  # fmt: skip
        if NT_S390_VXRS_LOW in registers.others:
            low, high = (registers.others[which] for which in _VECTOR_SETS)
            core.ti_s390.vxrs_low = UserS390VxrsLowEntry(regs=list(struct.unpack(">16Q", low)))
            core.ti_s390.vxrs_high = UserS390VxrsHighEntry(regs=list(struct.unpack(">32Q", high)))
        if any(guarded := registers.others.get(NT_S390_GS_CB, b"")):
            core.ti_s390.gs_cb = UserS390GsCbEntry(regs=list(struct.unpack(">4Q", guarded)))
        if any(broadcast := registers.others.get(NT_S390_GS_BC, b"")):
            core.ti_s390.gs_bc = UserS390GsCbEntry(regs=list(struct.unpack(">4Q", broadcast)))
        if any(instrumented := registers.others.get(NT_S390_RI_CB, b"")):
            on = bool(r[PSW_MASK] & _PSW_RI)
            core.ti_s390.ri_cb = UserS390RiEntry(ri_on=on, regs=list(struct.unpack(">8Q", instrumented)))

    def from_core(self, core: "CoreEntry", template: Registers) -> tuple[Registers, int]:
        info = self.thread_info(core, core.ti_s390)
        g, f = info.gpregs, info.fpregs
        self.expect(len(g.gprs) == 16 and len(g.acrs) == 16 and len(f.fprs) == 16, "wrong number of registers")
        others = dict(template.others)
        others[NT_PRFPREG] = struct.pack(">I4x16Q", f.fpc, *f.fprs)
        for which, entry, count in ((NT_S390_VXRS_LOW, info.vxrs_low, 16), (NT_S390_VXRS_HIGH, info.vxrs_high, 32)):
            if entry is not None:
                self.expect(len(entry.regs) == count, "wrong number of vector registers")
                if which not in template.others:
                    if any(entry.regs):
                        self.lacks("the vector facility")
                    continue
                others[which] = struct.pack(f">{count}Q", *entry.regs)
        for which, block, count in (
            (NT_S390_GS_CB, info.gs_cb, 4), (NT_S390_GS_BC, info.gs_bc, 4), (NT_S390_RI_CB, info.ri_cb, 8),
        ):  # fmt: skip
            if block is not None:
                self.expect(len(block.regs) == count, f"wrong number of words for {self.unproven[which]}")
                others[which] = struct.pack(f">{count}Q", *block.regs)
        on = _PSW_RI if info.ri_cb is not None and info.ri_cb.ri_on else 0
        general = _GENERAL.pack(g.psw_mask | on, g.psw_addr, *g.gprs, *g.acrs, g.orig_gpr2)
        return Registers(general, others), info.clear_tid_addr


def _is_old(frame: Frame) -> bool:
    """Whether it is a struct sigframe: a pointer of its own to the registers is before them."""
    return frame.memory(frame.at - 8, 8) == struct.pack(">Q", frame.at)


def _has_vectors(frame: Frame) -> bool:
    """Only struct rt_sigframe says so.  The other is as long as what it holds, unless it is on another stack."""
    if not _is_old(frame):
        return bool(int.from_bytes(frame.memory(frame.at - 40, 8), "big") & _UC_VXRS)
    return not 0 <= frame.sp - (frame.at - _OLD_REGISTERS) < _OLD_VECTORS + 16


ARCH = S390x()
