# SPDX-License-Identifier: Apache-2.0
"""32-bit ARM (armv7): registers, system calls, signal frames and CRIU's thread_info_arm.

Layouts: struct pt_regs (18 words), user_vfp, sigcontext (arch/arm/include/uapi/asm), struct rt_sigframe and the
extensions in its uc_regspace (arch/arm/include/asm/ucontext.h).

Surprises.  An interrupted system call is rewound before the tracer sees it, as on aarch64; ORIG_r0 is -1 wherever the
task was not in one, but it is kept also when the call has ended: the thread may be on its way out of a sleep, its
program counter behind the instruction already (`call_before_stop` tells).  The vDSO's system call is ARM code while
the C library is Thumb-2.  Most of the old calls are 16-bit or 32-bit affairs: the names here stand for their modern
variants, and 64-bit offsets travel in two registers of which the first must be even (`arguments`).
"""

import struct

from torpor.arch.base import EINTR, ERESTARTNOHAND, Arch, Call, Frame, Memory, Registers
from torpor.arch.numbers import FROM_424, numbers
from torpor.typed import TYPE_CHECKING, Iterator, Mapping, Sequence, TypeVar

if TYPE_CHECKING:
    from torpor.images.schema.core import CoreEntry
    from torpor.kernel.inside import SeenCall

_CALLS = """
0 restart_syscall exit fork read write open close 8 creat link unlink execve chdir 14 mknod chmod lchown 19 lseek
getpid mount 23 setuid getuid 26 ptrace 29 pause 33 access nice 36 sync kill rename mkdir rmdir dup pipe times 45 brk
setgid getgid 49 geteuid getegid acct umount2 54 ioctl fcntl 57 setpgid 60 umask chroot ustat dup2 getppid getpgrp
setsid sigaction 70 setreuid setregid sigsuspend sigpending sethostname setrlimit 77 getrusage gettimeofday
settimeofday getgroups setgroups 83 symlink 85 readlink uselib swapon reboot 91 munmap truncate ftruncate fchmod
fchown getpriority setpriority 99 statfs fstatfs 103 syslog setitimer getitimer stat lstat fstat 111 vhangup 114 wait4
swapoff sysinfo 118 fsync sigreturn clone setdomainname uname 124 adjtimex mprotect sigprocmask 128 init_module
delete_module 131 quotactl getpgid fchdir bdflush sysfs personality 138 setfsuid setfsgid _llseek getdents _newselect
flock msync readv writev getsid fdatasync _sysctl mlock munlock mlockall munlockall sched_setparam sched_getparam
sched_setscheduler sched_getscheduler sched_yield sched_get_priority_max sched_get_priority_min sched_rr_get_interval
nanosleep mremap setresuid getresuid 168 poll nfsservctl setresgid getresgid prctl rt_sigreturn rt_sigaction
rt_sigprocmask rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend pread64 pwrite64 chown getcwd capget capset
sigaltstack sendfile 190 vfork ugetrlimit mmap truncate64 ftruncate64 stat64 lstat64 fstat64 lchown32 getuid32
getgid32 geteuid32 getegid32 setreuid32 setregid32 getgroups32 setgroups32 fchown32 setresuid32 getresuid32
setresgid32 getresgid32 chown32 setuid32 setgid32 setfsuid32 setfsgid32 getdents64 pivot_root mincore madvise fcntl64
224 gettid readahead setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr
removexattr lremovexattr fremovexattr tkill sendfile64 futex sched_setaffinity sched_getaffinity io_setup io_destroy
io_getevents io_submit io_cancel exit_group lookup_dcookie epoll_create epoll_ctl epoll_wait remap_file_pages 256
set_tid_address timer_create timer_settime timer_gettime timer_getoverrun timer_delete clock_settime clock_gettime
clock_getres clock_nanosleep statfs64 fstatfs64 tgkill utimes arm_fadvise64_64 pciconfig_iobase pciconfig_read
pciconfig_write mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr waitid socket bind connect
listen accept getsockname getpeername socketpair send sendto recv recvfrom shutdown setsockopt getsockopt sendmsg
recvmsg semop semget semctl msgsnd msgrcv msgget msgctl shmat shmdt shmget shmctl add_key request_key keyctl
semtimedop vserver ioprio_set ioprio_get inotify_init inotify_add_watch inotify_rm_watch mbind get_mempolicy
set_mempolicy openat mkdirat mknodat fchownat futimesat fstatat64 unlinkat renameat linkat symlinkat readlinkat
fchmodat faccessat pselect6 ppoll unshare set_robust_list get_robust_list splice arm_sync_file_range tee vmsplice
move_pages getcpu epoll_pwait kexec_load utimensat signalfd timerfd_create eventfd fallocate timerfd_settime
timerfd_gettime signalfd4 eventfd2 epoll_create1 dup3 pipe2 inotify_init1 preadv pwritev rt_tgsigqueueinfo
perf_event_open recvmmsg accept4 fanotify_init fanotify_mark prlimit64 name_to_handle_at open_by_handle_at
clock_adjtime syncfs sendmmsg setns process_vm_readv process_vm_writev kcmp finit_module sched_setattr sched_getattr
renameat2 seccomp getrandom memfd_create bpf execveat userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2
pkey_mprotect pkey_alloc pkey_free statx rseq io_pgetevents migrate_pages kexec_file_load 403 clock_gettime64
clock_settime64 clock_adjtime64 clock_getres_time64 clock_nanosleep_time64 timer_gettime64 timer_settime64
timerfd_gettime64 timerfd_settime64 utimensat_time64 pselect6_time64 ppoll_time64 416 io_pgetevents_time64
recvmmsg_time64 mq_timedsend_time64 mq_timedreceive_time64 semtimedop_time64 rt_sigtimedwait_time64 futex_time64
sched_rr_get_interval_time64
"""

NT_ARM_VFP, NT_ARM_TLS = 0x400, 0x401

_GENERAL = struct.Struct("<18I")
R0, R7, SP, LR, PC, CPSR, ORIG_R0 = 0, 7, 13, 14, 15, 16, 17
_M32 = (1 << 32) - 1
_THUMB, _IT, _JAZELLE, _BIG_ENDIAN = 1 << 5, 0x0600FC00, 1 << 24, 1 << 9

_RESTART = 0  # number of restart_syscall
_FUTEX_COMMAND, _FUTEX_WAIT = 0x7F, 0
_TIMER_ABSTIME = 1

# struct rt_sigframe: siginfo (128 bytes), then ucontext: flags, link, stack, sigcontext, mask (128 bytes), extensions.
_CONTEXT, _MASK, _REGSPACE = 128 + 20, 128 + 104, 128 + 232
# From the extensions: the code by which a handler returns.  What that begins with: `mov r7` of sigreturn (119) and of
# rt_sigreturn (173), in ARM and in Thumb mode (there with the `svc` behind it).
_RETCODE = 512
_RETURNS = frozenset({0xE3A07077, 0xE3A070AD, 0xDF002777, 0xDF0027AD})
_VFP_MAGIC, _VFP_SIZE = 0x56465001, 288
# Room for iWMMXt registers that the thread does not use.
_DUMMY_MAGIC, _DUMMY_SIZE = 0xB0D9ED01, 160
_VFP_HEAD, _DUMMY_HEAD = struct.pack("<2I", _VFP_MAGIC, _VFP_SIZE), struct.pack("<2I", _DUMMY_MAGIC, _DUMMY_SIZE)
_MODE, _USER_MODE = 0x1F, 0x10  # of CPSR

T = TypeVar("T")

# Names whose modern variant is called otherwise.
_MODERN = """
chown fchown lchown getuid geteuid getgid getegid setuid setgid setreuid setregid setresuid getresuid setresgid
getresgid setfsuid setfsgid getgroups setgroups
"""
_LARGE = {
    "timerfd_settime": "timerfd_settime64", "timerfd_gettime": "timerfd_gettime64",
    "timer_settime": "timer_settime64", "timer_gettime": "timer_gettime64", "clock_gettime": "clock_gettime64",
    "fcntl": "fcntl64", "ftruncate": "ftruncate64", "truncate": "truncate64", "fstat": "fstat64", "stat": "stat64",
    "lstat": "lstat64", "newfstatat": "fstatat64", "statfs": "statfs64", "fstatfs": "fstatfs64",
    "getrlimit": "ugetrlimit", "sendfile": "sendfile64", "fadvise64": "arm_fadvise64_64",
}  # fmt: skip
# 64-bit arguments: their places in the 64-bit call.
_WIDE = {
    "pread64": (3,), "pwrite64": (3,), "ftruncate": (1,), "truncate": (1,), "fallocate": (2, 3), "readahead": (1,),
}  # fmt: skip


def _words(general: bytes) -> list[int]:
    return list(_GENERAL.unpack(general))


def _length(r: Sequence[int]) -> int:
    """Of the instruction that makes a system call, in the mode that the task is in."""
    return 2 if r[CPSR] & _THUMB else 4


def _table() -> dict[str, int]:
    table = numbers(_CALLS + FROM_424)
    table["set_tls"] = 0xF0005
    table |= {"get_thread_register": 0xE0000, "set_thread_register": 0xE0001}  # the executor's own
    for name in _MODERN.split():
        table[name] = table[name + "32"]
    for name, modern in _LARGE.items():
        table[name] = table[modern]
    return table


class Arm(Arch):
    name = "armv7l"
    word = "<I"
    word_size = 4
    page_size_hint = 4096
    user_end = 0xC0000000
    stub_layout = (0x18000000, 0xC0000000)
    # Within 144 MiB of where user memory ends: at 2, 2.75 or 3 GiB, less 16 MiB, as the kernel was built.
    short_stub_layout = ((0x76000000, 0x80000000), (0xA6000000, 0xC0000000))
    o_largefile = 0o400000
    shmlba = 4 * 4096
    ipc_version = 0x100  # IPC_64
    frame_mark = _VFP_HEAD
    untag_mask = (1 << 32) - 1
    elf_machine = 40
    elf_flags = 0x5000000  # EABI 5
    march = 2
    SYSCALLS = _table()
    instruction = b"\x00\x00\x00\xef"
    instruction_alignment = 4
    number_at = R7
    regsets = (NT_ARM_VFP,)
    thread_area = NT_ARM_TLS  # not a regset here; set by the call set_tls, inside the task
    call_stop_keeps_all = False  # the kernel puts back what `ip` was, over what the tracer has set
    vdso_names = ("[vdso]", "[vvar]", "[sigpage]")
    sigaction_size = 20
    single_step = False
    call_before_stop = True
    restarts_alike = False
    images_tell = False
    own_code = {  # noqa: RUF012
        "get_thread_register": struct.pack("<3I", 0xEE1D1F50, 0xE5801000, 0xEF000000),  # mrc to r1; str r1, [r0]; svc
        "set_thread_register": struct.pack("<2I", 0xEE0D0F50, 0xEF000000),  # mcr from r0; svc
    }

    def arguments(self, name: str, args: Sequence[T | int]) -> Sequence[T | int]:
        if name == "mmap" and len(args) == 6:
            offset = args[5]
            assert isinstance(offset, int), "an offset that is known only later does not fit this architecture"
            return (*args[:5], offset >> 12)  # mmap2 counts in units of 4096 bytes
        if name == "preadv" or name == "pwritev":
            offset = args[3]
            return (*args[:3], offset & _M32, offset >> 32 & _M32) if isinstance(offset, int) else args
        if name == "fadvise64":
            fd, offset, length, advice = args
            return (fd, advice, *_halves(offset), *_halves(length))
        wide = _WIDE.get(name)
        if wide is None:
            return args
        out: list[T | int] = []
        for place, value in enumerate(args):
            if place not in wide:
                out.append(value)
                continue
            if len(out) % 2:
                out.append(0)
            out += _halves(value)
        return out

    def enter_call(self, general: bytes, gadget: int, nr: int, args: Sequence[int]) -> bytes:
        r = _words(general)
        r[R0 : R0 + len(args)] = [x & _M32 for x in args]
        r[R7], r[PC], r[ORIG_R0] = nr, gadget, _M32
        r[CPSR] &= ~(_THUMB | _IT | _JAZELLE | _BIG_ENDIAN) & _M32
        return _GENERAL.pack(*r)

    def result(self, general: bytes) -> int:
        value = int(struct.unpack_from("<I", general, 4 * R0)[0])
        # An address may have its top bit set; an error is one of the last 4095 numbers.
        return value - (1 << 32) if value >= (1 << 32) - 4095 else value

    def enter_executor(self, general: bytes, entry: int, args: Sequence[int], stack: int) -> bytes:
        r = _words(general)
        r[R0 : R0 + len(args)] = args
        r[SP], r[PC], r[ORIG_R0] = stack & ~7, entry, _M32
        r[CPSR] &= ~(_THUMB | _IT | _JAZELLE | _BIG_ENDIAN) & _M32
        return _GENERAL.pack(*r)

    def interruption(self, general: bytes, specials: Mapping[int, bytes], before: "SeenCall") -> tuple[int, int] | None:
        return (ERESTARTNOHAND, 0) if self.again(general, specials, before) else None

    def call_at(self, general: bytes, code: bytes) -> Call | None:
        r = _words(general)
        found = code[:2] == b"\x00\xdf" if r[CPSR] & _THUMB else code == self.instruction
        return Call(r[R7], r[R0 : R0 + 6]) if found else None

    def inside_call(self, general: bytes, call: Call, how: int) -> tuple[bytes, Mapping[int, bytes]]:
        r = _words(general)
        r[ORIG_R0], r[R0], r[PC] = r[R0], -how & _M32, r[PC] + _length(r)
        return _GENERAL.pack(*r), {}

    def before_call(self, general: bytes, call: Call) -> bytes | None:
        """The kernel makes an interrupted call again without going back to the program, by the number that it was
        entered with.  So it must be this very call, but with arguments that any refuses; pause has none, and ends at
        once as the thread has to stop again."""
        r = _words(general)
        r[R0 : R0 + 6], r[ORIG_R0] = [_M32] * 6, _M32
        return _GENERAL.pack(*r)

    def settled(self, general: bytes, specials: Mapping[int, bytes], before: "SeenCall") -> bytes:
        r = _words(general)
        if self._forgets(r, before) and not self.loses_nothing(r[R7], r[1]):  # else it is rewound already
            r[R0], r[PC], r[ORIG_R0] = -EINTR & _M32, r[PC] + _length(r), _M32
            return _GENERAL.pack(*r)
        return self.again(general, specials, before) or general

    def again(self, general: bytes, specials: Mapping[int, bytes], before: "SeenCall") -> bytes | None:
        """Registers alone do not tell: where a handler has returned to a call that it had ended, ORIG_r0 is what r0 was
        when it returned."""
        r = _words(general)
        if not before.proven or r[R0] != -EINTR & _M32 or (before.number, before.pc) != (r[R7], r[PC]):
            return None
        r[R0], r[PC] = before.args[0], r[PC] - _length(r)
        return _GENERAL.pack(*r)

    def may_have_ended(self, general: bytes) -> Call | None:
        r = _words(general)
        if r[ORIG_R0] == _M32 or r[R0] != -EINTR & _M32 or not self.ends_by_a_stop(r[R7], 0):
            return None
        return Call(r[R7], (r[ORIG_R0], *r[1:6]))

    def resumed(self, general: bytes, before: "SeenCall") -> bytes:
        r = _words(general)
        if self._forgets(r, before):
            r[R7] = self.SYSCALLS["restart_syscall"]
        return _GENERAL.pack(*r)

    def _forgets(self, r: list[int], before: "SeenCall") -> bool:
        """Whether the task is in a call that would begin anew, and lose time: continued by restart_syscall it does not.

        Registers alone do not tell: a sleep that has just ended shows 0 and the clock 0 in r0 and ORIG_r0, too.
        """
        if before.number < 0 or r[ORIG_R0] == _M32 or r[ORIG_R0] != r[R0]:
            return False
        if before.number not in (r[R7], _RESTART) or before.pc != r[PC] + _length(r):
            return False
        names = self.SYSCALLS
        nr, arg1, arg3 = r[R7], r[1], r[3]
        if nr in (names["clock_nanosleep"], names["clock_nanosleep_time64"]):
            return not arg1 & _TIMER_ABSTIME
        if nr in (names["futex"], names["futex_time64"]):
            return arg1 & _FUTEX_COMMAND == _FUTEX_WAIT and arg3 != 0
        return nr == names["nanosleep"] or (nr == names["poll"] and r[R0 + 2] >> 31 == 0)

    def jump(self, target: int) -> bytes:
        return struct.pack("<II", 0xE51FF004, target)  # ldr pc, [pc, #-4]

    def pc(self, general: bytes) -> int:
        return int(struct.unpack_from("<I", general, 4 * PC)[0])

    def sp(self, general: bytes) -> int:
        return int(struct.unpack_from("<I", general, 4 * SP)[0])

    def with_pc(self, general: bytes, pc: int) -> bytes:
        r = _words(general)
        r[PC] = pc
        return _GENERAL.pack(*r)

    def signal_frame(self, registers: Registers, mask: int, address: int) -> tuple[bytes, int]:
        frame = bytearray(_REGSPACE)
        struct.pack_into("<3I", frame, _CONTEXT, 0, 0, mask & _M32)  # trap_no, error_code, oldmask
        frame[_CONTEXT + 12 : _CONTEXT + 12 + 68] = registers.general[:68]
        struct.pack_into("<Q", frame, _MASK, mask)
        vfp = struct.pack("<II", _VFP_MAGIC, _VFP_SIZE) + registers.others[NT_ARM_VFP]
        return bytes(frame) + vfp.ljust(512, b"\0") + bytes(16), address

    def signal_frames(self, stack: bytes, base: int, memory: Memory) -> Iterator[Frame]:
        at = stack.find(_VFP_HEAD)
        while at >= 0:
            start = at - _DUMMY_SIZE if stack[max(0, at - _DUMMY_SIZE) :].startswith(_DUMMY_HEAD) else at
            where = start - _REGSPACE + _CONTEXT + 12
            if where >= 0:
                r = struct.unpack_from("<17I", stack, where)
                if r[CPSR] & _MODE == _USER_MODE:
                    yield Frame(base + start, r[PC], r[SP], memory)
            at = stack.find(_VFP_HEAD, at + 1)

    def returns_by_kernel(self, frame: Frame) -> bool:
        """Only then the kernel puts a copy of that code into the frame, for those who look for it there."""
        return int.from_bytes(frame.memory(frame.at + _RETCODE, 4), "little") in _RETURNS

    def mended_frame(self, frame: Frame, own: Frame) -> Iterator[tuple[int, bytes]]:
        """A kernel with CONFIG_IWMMXT (Debian's 6.1) puts an empty block before the VFP registers, and takes frames
        without one; a kernel without it (6.12) refuses those that have one, and the thread dies of SIGSEGV when its
        handler returns.  So the block goes."""
        extensions = frame.memory(frame.at, _DUMMY_SIZE + _VFP_SIZE)
        if extensions.startswith(_DUMMY_HEAD):
            yield frame.at, extensions[_DUMMY_SIZE:] + bytes(_DUMMY_SIZE)

    def may_refuse(self, own: Frame, core: "CoreEntry", stored: Mapping[int, bytes]) -> bool:
        """No image tells whether the other had CONFIG_IWMMXT."""
        return not own.memory(own.at, len(_DUMMY_HEAD)).startswith(_DUMMY_HEAD)

    def to_core(self, core: "CoreEntry", registers: Registers, clear_child_tid: int) -> None:
        from torpor.images.schema.core_arm import ThreadInfoArm, UserArmRegsEntry, UserArmVfpstateEntry

        r = _words(registers.general)
        *doubles, status = struct.unpack("<32QI", registers.others[NT_ARM_VFP][:260])
        core.mtype = self.march
        core.ti_arm = ThreadInfoArm(
            clear_tid_addr=clear_child_tid,
            tls=struct.unpack_from("<I", registers.others[NT_ARM_TLS])[0],
            gpregs=UserArmRegsEntry(**dict(zip(_NAMES, r, strict=True))),
            # What the exception registers hold when nothing is pending; ptrace does not show them.
            fpstate=UserArmVfpstateEntry(vfp_regs=doubles, fpscr=status, fpexc=1 << 30, fpinst=0, fpinst2=0),
        )

    def from_core(self, core: "CoreEntry", template: Registers) -> tuple[Registers, int]:
        info = self.thread_info(core, core.ti_arm)
        self.expect(len(info.fpstate.vfp_regs) == 32, "wrong number of floating-point registers")
        general = _GENERAL.pack(*(getattr(info.gpregs, name) for name in _NAMES))
        vfp = struct.pack("<32QI", *info.fpstate.vfp_regs, info.fpstate.fpscr)
        others = {
            NT_ARM_VFP: vfp + template.others[NT_ARM_VFP][len(vfp) :],
            NT_ARM_TLS: struct.pack("<I", info.tls) + template.others[NT_ARM_TLS][4:],
        }
        return Registers(general, others), info.clear_tid_addr

    def thread_pointer(self, core: "CoreEntry") -> int | None:
        return core.ti_arm.tls if core.ti_arm is not None else None


_NAMES = (*(f"r{i}" for i in range(11)), "fp", "ip", "sp", "lr", "pc", "cpsr", "orig_r0")


def _halves(value: T | int) -> tuple[T | int, int]:
    # What is known only later (a file's length, a descriptor) is taken to be below 2 GiB.
    return (value & _M32, value >> 32 & _M32) if isinstance(value, int) else (value, 0)


ARCH = Arm()
