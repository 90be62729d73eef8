# SPDX-License-Identifier: Apache-2.0
"""x86_64: registers, system calls, signal frames and CRIU's thread_info_x86.

Layouts: user_regs_struct (arch/x86/include/asm/user_64.h), the XSAVE area (Intel SDM vol. 1, 13.4), struct rt_sigframe
(arch/x86/include/asm/sigframe.h).  A task stopped in a system call shows orig_rax >= 0; one stopped elsewhere, -1.

Interrupted system calls in images.  All that can be are rewound, so that whoever restores them begins them again.  But
a signal may come with the restore, and its handler may be one that ends the call with EINTR.  The kernel knows what to
do about that, if it is told how the call was interrupted: orig_rax, which CRIU does not look at, has that beside the
call's number (`from_core`).  In CRIU's images some calls have ended with EINTR though no signal was there, which
programs do not expect that catch none: poll, epoll_wait and their like are begun again, too.
"""

import struct

from torpor.arch.base import (
    EINTR,
    ERESTART_RESTARTBLOCK,
    ERESTARTNOHAND,
    RESTARTED,
    Arch,
    Call,
    Frame,
    Memory,
    Registers,
)
from torpor.typed import TYPE_CHECKING, Any, Callable, Iterator, Mapping, Sequence

if TYPE_CHECKING:
    from torpor.images.schema.core import CoreEntry
    from torpor.kernel.inside import SeenCall

# By number, from 0 and from 424 (asm/unistd_64.h).
_FROM_0 = """
read write open close stat fstat lstat poll lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn
ioctl pread64 pwrite64 readv writev access pipe select sched_yield mremap msync mincore madvise shmget shmat shmctl
dup dup2 pause nanosleep getitimer alarm setitimer getpid sendfile socket connect accept sendto recvfrom sendmsg
recvmsg shutdown bind listen getsockname getpeername socketpair setsockopt getsockopt clone fork vfork execve exit
wait4 kill uname semget semop semctl shmdt msgget msgsnd msgrcv msgctl fcntl flock fsync fdatasync truncate
ftruncate getdents getcwd chdir fchdir rename mkdir rmdir creat link unlink symlink readlink chmod fchmod chown
fchown lchown umask gettimeofday getrlimit getrusage sysinfo times ptrace getuid syslog getgid setuid setgid geteuid
getegid setpgid getppid getpgrp setsid setreuid setregid getgroups setgroups setresuid getresuid setresgid getresgid
getpgid setfsuid setfsgid getsid capget capset rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend
sigaltstack utime mknod uselib personality ustat statfs fstatfs sysfs getpriority setpriority sched_setparam
sched_getparam sched_setscheduler sched_getscheduler sched_get_priority_max sched_get_priority_min
sched_rr_get_interval mlock munlock mlockall munlockall vhangup modify_ldt pivot_root _sysctl prctl arch_prctl
adjtimex setrlimit chroot sync acct settimeofday mount umount2 swapon swapoff reboot sethostname setdomainname iopl
ioperm create_module init_module delete_module get_kernel_syms query_module quotactl nfsservctl getpmsg putpmsg
afs_syscall tuxcall security gettid readahead setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr
llistxattr flistxattr removexattr lremovexattr fremovexattr tkill time futex sched_setaffinity sched_getaffinity
set_thread_area io_setup io_destroy io_getevents io_submit io_cancel get_thread_area lookup_dcookie epoll_create
epoll_ctl_old epoll_wait_old remap_file_pages getdents64 set_tid_address restart_syscall semtimedop fadvise64
timer_create timer_settime timer_gettime timer_getoverrun timer_delete clock_settime clock_gettime clock_getres
clock_nanosleep exit_group epoll_wait epoll_ctl tgkill utimes vserver mbind set_mempolicy get_mempolicy mq_open
mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr kexec_load waitid add_key request_key keyctl
ioprio_set ioprio_get inotify_init inotify_add_watch inotify_rm_watch migrate_pages openat mkdirat mknodat fchownat
futimesat newfstatat unlinkat renameat linkat symlinkat readlinkat fchmodat faccessat pselect6 ppoll unshare
set_robust_list get_robust_list splice tee sync_file_range vmsplice move_pages utimensat epoll_pwait signalfd
timerfd_create eventfd fallocate timerfd_settime timerfd_gettime accept4 signalfd4 eventfd2 epoll_create1 dup3 pipe2
inotify_init1 preadv pwritev rt_tgsigqueueinfo perf_event_open recvmmsg fanotify_init fanotify_mark prlimit64
name_to_handle_at open_by_handle_at clock_adjtime syncfs sendmmsg setns getcpu process_vm_readv process_vm_writev
kcmp finit_module sched_setattr sched_getattr renameat2 seccomp getrandom memfd_create kexec_file_load bpf execveat
userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc pkey_free statx
io_pgetevents rseq
"""
_FROM_424 = """
pidfd_send_signal io_uring_setup io_uring_enter io_uring_register open_tree move_mount fsopen fsconfig fsmount
fspick pidfd_open clone3 close_range openat2 pidfd_getfd faccessat2 process_madvise epoll_pwait2 mount_setattr
quotactl_fd landlock_create_ruleset landlock_add_rule landlock_restrict_self memfd_secret process_mrelease
futex_waitv set_mempolicy_home_node cachestat fchmodat2 map_shadow_stack futex_wake futex_wait futex_requeue
statmount listmount
"""
_LATER = {"cachestat": 451, "map_shadow_stack": 453, "statmount": 457, "listmount": 458, "mseal": 462}

NT_PRFPREG, NT_X86_XSTATE = 2, 0x202

_GENERAL = struct.Struct("<27Q")
R15, R14, R13, R12, RBP, RBX, R11, R10, R9, R8, RAX, RCX, RDX, RSI, RDI, ORIG_RAX, RIP, CS, EFLAGS, RSP, SS = range(21)
FS_BASE, GS_BASE, DS, ES, FS, GS = range(21, 27)
_ARGUMENTS = RDI, RSI, RDX, R10, R8, R9
_M64 = (1 << 64) - 1
_NO_CALL = _M64  # orig_rax outside a system call

# XSAVE area: FXSAVE's 512 bytes (the last 48 for software: magic, features, size), then the header with XSTATE_BV.
_SW_BYTES, _XSTATE_BV, _EXTENDED = 464, 512, 576
_FP_XSTATE_MAGIC1, _FP_XSTATE_MAGIC2 = 0x46505853, 0x46505845
_TILES = 8192  # bytes of AMX's
_SOFTWARE = struct.Struct("<IIQI28x")  # what is put into those bytes
_MAGIC2 = struct.pack("<I", _FP_XSTATE_MAGIC2)
_UC_FLAGS = 1 | 2 | 4  # UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS
# struct rt_sigframe: a return address; struct ucontext: flags, link, stack; sigcontext, which ends with a pointer to
# the floating point state and 8 unused words; and the mask.  Then zeros.
_FRAME = struct.Struct("<8x2Q24x18Q4H4QQ64xQ200x")
_IN_CONTEXT = R8, R9, R10, R11, R12, R13, R14, R15, RDI, RSI, RBP, RBX, RDX, RAX, RCX, RSP, RIP, EFLAGS


def _words(general: bytes) -> list[int]:
    return list(_GENERAL.unpack(general))


def _word(general: bytes, number: int) -> int:
    return int.from_bytes(general[8 * number : 8 * number + 8], "little")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


class X86_64(Arch):
    name = "x86_64"
    word = "<Q"
    word_size = 8
    page_size_hint = 4096
    user_end = 0x7FFFFFFFF000
    far_end = 0xFFFFFFFFFFF000  # five levels of page tables (LA57)
    stub_layout = (0x7FFF00000000, 0x7FFFFFFFF000)
    elf_machine = 62
    march = 1
    SYSCALLS = (
        {name: number for number, name in enumerate(_FROM_0.split())}
        | {name: number for number, name in enumerate(_FROM_424.split(), 424)}
        | _LATER
    )
    instruction = b"\x0f\x05"
    dispatches_calls = True
    general_size = 216
    instruction_alignment = 1
    frame_mark = struct.pack("<4H", 0x33, 0, 0, 0x2B)  # the segment registers
    regsets = (NT_X86_XSTATE,)
    # A CPU without XSAVE has the first 512 bytes of it.
    substitutes = {NT_X86_XSTATE: NT_PRFPREG}  # noqa: RUF012

    def enter_call(self, general: bytes, gadget: int, nr: int, args: Sequence[int]) -> bytes:
        r = _words(general)
        a = [x & _M64 for x in args] + [0] * (6 - len(args))
        r[RDI], r[RSI], r[RDX], r[R10], r[R8], r[R9] = a
        r[RAX], r[ORIG_RAX], r[RIP] = nr, _NO_CALL, gadget
        return _GENERAL.pack(*r)

    def result(self, general: bytes) -> int:
        return _signed(struct.unpack_from("<Q", general, 8 * RAX)[0])

    def enter_executor(self, general: bytes, entry: int, args: Sequence[int], stack: int) -> bytes:
        r = _words(general)
        r[RDI], r[RSI], r[RDX] = args
        # The ABI wants the stack as after a call, and the direction flag clear.
        r[RSP], r[RIP], r[ORIG_RAX], r[EFLAGS] = (stack & ~15) - 8, entry, _NO_CALL, 0x202
        return _GENERAL.pack(*r)

    def first_interrupted(
        self, general: bytes, specials: dict[int, bytes], before: "SeenCall", read: Callable[[int, int], bytes]
    ) -> tuple[bytes, dict[int, bytes], "SeenCall"]:
        if _word(general, ORIG_RAX) != self.SYSCALLS["restart_syscall"]:
            return general, specials, before
        r = _words(general)
        if -_signed(r[RAX]) != ERESTART_RESTARTBLOCK:
            return general, specials, before
        code = read(r[RIP] - 7, 7)  # mov eax, NUMBER; syscall
        if code[:1] != b"\xb8" or code[5:] != self.instruction:
            return general, specials, before
        from torpor.arch import continued

        args = [r[i] for i in _ARGUMENTS]
        if (number := continued.call(self, args, read, int.from_bytes(code[1:5], "little"))) >= 0:
            r[ORIG_RAX] = number
        return _GENERAL.pack(*r), specials, before

    def call_at(self, general: bytes, code: bytes) -> Call | None:
        r = _words(general)
        args = [r[i] for i in _ARGUMENTS]
        return Call(r[RAX], args) if code[:2] == self.instruction and r[ORIG_RAX] == _NO_CALL else None

    def waits_in(self, general: bytes, told: bool) -> int:
        return _signed(_word(general, ORIG_RAX))

    def inside_call(self, general: bytes, call: Call, how: int) -> tuple[bytes, Mapping[int, bytes]]:
        r = _words(general)
        r[RAX], r[RIP], r[ORIG_RAX] = -how & _M64, r[RIP] + 2, call.nr
        return _GENERAL.pack(*r), {}

    def settled(self, general: bytes, specials: Mapping[int, bytes], before: "SeenCall") -> bytes:
        r = _words(general)
        nr, error = r[ORIG_RAX], -_signed(r[RAX])
        if _signed(nr) < 0:
            return general
        if how := self.how_interrupted(error, nr, r[RDI], r[RSI]):
            r[RAX], r[RIP], r[ORIG_RAX] = nr, r[RIP] - 2, how << 32 | nr
        elif error == ERESTART_RESTARTBLOCK:
            r[RAX], r[ORIG_RAX] = -EINTR & _M64, _NO_CALL
        else:
            r[ORIG_RAX] = _NO_CALL
        return _GENERAL.pack(*r)

    def jump(self, target: int) -> bytes:
        return b"\x48\xb8" + struct.pack("<Q", target) + b"\xff\xe0"  # movabs rax; jmp rax

    def again(self, general: bytes, specials: Mapping[int, bytes], before: "SeenCall") -> bytes | None:
        if _word(general, RAX) != -EINTR & _M64:
            return None
        r = _words(general)
        if not self.ends_by_a_stop(r[ORIG_RAX], r[RDI]):
            return None
        r[RAX] = -ERESTARTNOHAND & _M64
        return _GENERAL.pack(*r)

    def pc(self, general: bytes) -> int:
        return int(struct.unpack_from("<Q", general, 8 * RIP)[0])

    def sp(self, general: bytes) -> int:
        return int(struct.unpack_from("<Q", general, 8 * RSP)[0])

    def with_pc(self, general: bytes, pc: int) -> bytes:
        r = _words(general)
        r[RIP] = pc
        return _GENERAL.pack(*r)

    def signal_frame(self, registers: Registers, mask: int, address: int) -> tuple[bytes, int]:
        r = _GENERAL.unpack(registers.general)
        xstate = bytearray(registers.others[NT_X86_XSTATE])
        size = len(xstate)
        features = int.from_bytes(xstate[_SW_BYTES : _SW_BYTES + 8], "little")  # the kernel leaves XCR0 there
        _SOFTWARE.pack_into(xstate, _SW_BYTES, _FP_XSTATE_MAGIC1, size + 4, features, size)
        xstate_at = _FRAME.size  # 64-byte aligned as XRSTOR wants
        frame = _FRAME.pack(
            *(_UC_FLAGS, 0, *[r[i] for i in _IN_CONTEXT], r[CS] & 0xFFFF, 0, 0, r[SS] & 0xFFFF),
            *(0, 0, mask, 0, address + xstate_at, mask),  # of the context: err, trapno, oldmask, cr2
        )
        # rt_sigreturn finds the frame 8 bytes below the stack pointer.
        return b"".join((frame, xstate, _MAGIC2)), address + 8

    def signal_frames(self, stack: bytes, base: int, memory: Memory) -> Iterator[Frame]:
        from torpor.arch import x86_64_frames

        return x86_64_frames.find(stack, base, memory)

    def mended_frame(self, frame: Frame, own: Frame) -> Iterator[tuple[int, bytes]]:
        from torpor.arch import x86_64_frames

        return x86_64_frames.mended(frame, own)

    def may_refuse(self, own: Frame, core: "CoreEntry", stored: Mapping[int, bytes]) -> bool:
        from torpor.arch import x86_64_frames

        return core.thread_info is not None and x86_64_frames.may_refuse(own, core.thread_info.fpregs)

    def frame_room(self, told: int) -> int:
        """Without AMX's tiles: the kernel saves them only for programs that have asked for them, and there is no
        dumping those.  Nothing else is that large."""
        return told - _TILES if told > _TILES else told

    def to_core(self, core: "CoreEntry", registers: Registers, clear_child_tid: int) -> None:
        global _fill
        if _fill is None:
            from torpor.arch.x86_64_core import fill as _fill
        core.mtype = self.march
        _fill(core, _GENERAL.unpack(registers.general), registers.others[NT_X86_XSTATE], clear_child_tid)

    def from_core(self, core: "CoreEntry", template: Registers) -> tuple[Registers, int]:
        from torpor.arch.x86_64_core import read

        general, xstate, clear_child_tid = read(core, template.others[NT_X86_XSTATE])
        call, result = general[ORIG_RAX], general[RAX]
        how, nr = call >> 32, call & 0xFFFFFFFF
        if how in RESTARTED and result == nr:
            general[RAX], general[RIP], general[ORIG_RAX] = -how & _M64, general[RIP] + 2 & _M64, nr
        elif result == -EINTR & _M64 and (self.ends_by_a_stop(call, 0) or self.loses_nothing(call, general[RSI])):
            general[RAX] = -ERESTARTNOHAND & _M64
        else:
            general[ORIG_RAX] = _NO_CALL
        return Registers(_GENERAL.pack(*general), {NT_X86_XSTATE: xstate}), clear_child_tid


_fill: Any = None  # imported when the first thread is written, and not looked up again for each
ARCH = X86_64()
