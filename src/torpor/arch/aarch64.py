# SPDX-License-Identifier: Apache-2.0
"""aarch64: registers, system calls, signal frames and CRIU's thread_info_aarch64.

Layouts: struct user_pt_regs, user_fpsimd_state and sigcontext (arch/arm64/include/uapi/asm), struct rt_sigframe
(arch/arm64/kernel/signal.c).

Surprise: the kernel rewinds an interrupted system call *before* it stops for the tracer, so the program counter is on
`svc` already, x0 is the first argument again, and nothing tells a rewound call from one not made yet.  A relative
sleep would start from its beginning, unless it is continued as the kernel itself does it: by restart_syscall.  Whether
that is right shows only /proc/TID/syscall, and only before the stop (`call_before_stop`).

Every system call clears what SVE has beyond the 128 bits of the old vectors, and leaves streaming mode, so a program
run in a task that was interrupted elsewhere would destroy them: they are `volatile`.

CRIU's message has no place for SVE, SME (ZA, TPIDR2) and the control of tagged addresses: they are `extra`.
"""

import os
import struct

from torpor.arch.base import EINTR, ERESTARTNOHAND, Arch, Call, Frame, Memory, Registers
from torpor.arch.numbers import FROM_424, numbers
from torpor.errors import Refusal
from torpor.typed import TYPE_CHECKING, Callable, Iterator, Mapping, Sequence

if TYPE_CHECKING:
    from torpor.images.schema.core import CoreEntry
    from torpor.images.schema.core_aarch64 import PacKeys
    from torpor.kernel.inside import SeenCall

_CALLS = """
0 io_setup io_destroy io_submit io_cancel io_getevents setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr
listxattr llistxattr flistxattr removexattr lremovexattr fremovexattr getcwd lookup_dcookie eventfd2 epoll_create1
epoll_ctl epoll_pwait dup dup3 fcntl inotify_init1 inotify_add_watch inotify_rm_watch ioctl ioprio_set ioprio_get
flock mknodat mkdirat unlinkat symlinkat linkat renameat umount2 mount pivot_root nfsservctl statfs fstatfs truncate
ftruncate fallocate faccessat chdir fchdir chroot fchmod fchmodat fchownat fchown openat close vhangup pipe2 quotactl
getdents64 lseek read write readv writev pread64 pwrite64 preadv pwritev sendfile pselect6 ppoll signalfd4 vmsplice
splice tee readlinkat newfstatat fstat sync fsync fdatasync sync_file_range timerfd_create timerfd_settime
timerfd_gettime utimensat acct capget capset personality exit exit_group waitid set_tid_address unshare futex
set_robust_list get_robust_list nanosleep getitimer setitimer kexec_load init_module delete_module timer_create
timer_gettime timer_getoverrun timer_settime timer_delete clock_settime clock_gettime clock_getres clock_nanosleep
syslog ptrace sched_setparam sched_setscheduler sched_getscheduler sched_getparam sched_setaffinity sched_getaffinity
sched_yield sched_get_priority_max sched_get_priority_min sched_rr_get_interval restart_syscall kill tkill tgkill
sigaltstack rt_sigsuspend rt_sigaction rt_sigprocmask rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigreturn
setpriority getpriority reboot setregid setgid setreuid setuid setresuid getresuid setresgid getresgid setfsuid
setfsgid times setpgid getpgid getsid setsid getgroups setgroups uname sethostname setdomainname getrlimit setrlimit
getrusage umask prctl getcpu gettimeofday settimeofday adjtimex getpid getppid getuid geteuid getgid getegid gettid
sysinfo mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr msgget msgctl msgrcv msgsnd semget
semctl semtimedop semop shmget shmctl shmat shmdt socket socketpair bind listen accept connect getsockname getpeername
sendto recvfrom setsockopt getsockopt shutdown sendmsg recvmsg readahead brk munmap mremap add_key request_key keyctl
clone execve mmap fadvise64 swapon swapoff mprotect msync mlock munlock mlockall munlockall mincore madvise
remap_file_pages mbind get_mempolicy set_mempolicy migrate_pages move_pages rt_tgsigqueueinfo perf_event_open accept4
recvmmsg 260 wait4 prlimit64 fanotify_init fanotify_mark name_to_handle_at open_by_handle_at clock_adjtime syncfs
setns sendmmsg process_vm_readv process_vm_writev kcmp finit_module sched_setattr sched_getattr renameat2 seccomp
getrandom memfd_create bpf execveat userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect
pkey_alloc pkey_free statx io_pgetevents rseq kexec_file_load
"""

NT_PRFPREG, NT_ARM_TLS, NT_ARM_SVE, NT_ARM_SSVE, NT_ARM_ZA, NT_ARM_ZT = 2, 0x401, 0x405, 0x40B, 0x40C, 0x40D
NT_ARM_SYSTEM_CALL = 0x404
NT_ARM_TAGGED_ADDR_CTRL, NT_ARM_FPMR, NT_ARM_POE, NT_ARM_GCS = 0x409, 0x40E, 0x40F, 0x410
NT_ARM_PACA_KEYS, NT_ARM_PACG_KEYS, NT_ARM_PAC_ENABLED_KEYS = 0x407, 0x408, 0x40A

# prctl(PR_SET_TAGGED_ADDR_CTRL): what concerns no memory tags; how they are checked (linux/prctl.h).
_ADDRESSES, _TAGS_CHECKED = 1, 1 << 1 | 1 << 2
_AT_HWCAP2, _HWCAP2_MTE = 26, 1 << 18

_GENERAL = struct.Struct("<34Q")
X0, X8, SP, PC, PSTATE = 0, 8, 31, 32, 33
_M64 = (1 << 64) - 1
_BTYPE = 0xC00  # set between an indirect branch and its target: it would fault at our entry

# The calls that ask to be continued by restart_syscall, see ERESTART_RESTARTBLOCK in kernel/ and fs/.
_FUTEX_COMMAND, _FUTEX_WAIT = 0x7F, 0
_TIMER_ABSTIME = 1

# struct rt_sigframe: siginfo (128 bytes), then ucontext: flags, link, stack, mask (8 of 128 bytes), sigcontext.
_MASK, _CONTEXT, _EXTENSIONS = 128 + 40, 128 + 176, 128 + 176 + 288
_EXTENSIONS_ROOM = 4096  # of which the last 16 bytes end the list; what is larger lies behind, in an "extra" context
_FPSIMD_MAGIC, _SVE_MAGIC, _EXTRA_MAGIC, _FPSIMD_SIZE = 0x46508001, 0x53564501, 0x45585401, 528

_NAMES = {
    NT_ARM_SVE: "SVE", NT_ARM_SSVE: "streaming SVE (SME)", NT_ARM_ZA: "SME's array ZA", NT_ARM_ZT: "SME2's ZT0",
    NT_ARM_TAGGED_ADDR_CTRL: "tagged addresses", NT_ARM_FPMR: "FPMR", NT_ARM_POE: "permission overlays",
    NT_ARM_GCS: "a guarded control stack",
}  # fmt: skip

# struct user_sve_header (16 bytes), before the vectors Z0-31, the predicates P0-15 and FFR, as in struct sve_context.
_SVE_HEADER = struct.Struct("<IIHHHH")
_SVE_REGISTERS = 1  # flag: scalable registers follow, not just the 128 bits that NT_PRFPREG shows


def _words(general: bytes) -> list[int]:
    return list(_GENERAL.unpack(general))


_PAC_NAMES = tuple(f"ap{key}key_{half}" for key in ("ia", "ib", "da", "db") for half in ("lo", "hi"))


class AArch64(Arch):
    name = "aarch64"
    word = "<Q"
    word_size = 8
    page_size_hint = 4096
    user_end = 1 << 52
    stub_layout = (1 << 45, 1 << 48)
    o_largefile = 0o400000
    elf_machine = 183
    frame_mark = struct.pack("<II", _FPSIMD_MAGIC, _FPSIMD_SIZE)
    untag_mask = (1 << 56) - 1  # hardware ignores the top byte
    march = 3
    SYSCALLS = numbers(_CALLS + FROM_424) | {"memfd_secret": 447}
    instruction = b"\x01\x00\x00\xd4"
    general_size = 272
    instruction_alignment = 4
    number_at = X8
    regsets = (NT_PRFPREG, NT_ARM_TLS)
    vdso_names = ("[vdso]", "[vvar]")
    call_before_stop = True
    number_regset = NT_ARM_SYSTEM_CALL
    restarts_alike = False
    images_tell = False
    signs_pointers = True
    optional = (NT_ARM_PACA_KEYS, NT_ARM_PACG_KEYS, NT_ARM_PAC_ENABLED_KEYS)
    volatile = (NT_ARM_SVE, NT_ARM_SSVE)
    # To set SVE's ends streaming mode, a new vector length of SME's forgets the array: in this order only.
    extra = (
        NT_ARM_SVE,
        NT_ARM_ZA,
        NT_ARM_ZT,
        NT_ARM_SSVE,
        NT_ARM_FPMR,
        NT_ARM_POE,
        NT_ARM_TAGGED_ADDR_CTRL,
        NT_ARM_GCS,
    )
    register_names = _NAMES
    _tags: bool | None = None
    call_stop_keeps_all = False  # the kernel puts back what x7 was, over what the tracer has set

    def tags_memory(self) -> bool:
        if self._tags is None:
            from ctypes import CDLL, c_ulong

            auxiliary = CDLL(None).getauxval
            auxiliary.restype, auxiliary.argtypes = c_ulong, (c_ulong,)
            self._tags = os.uname().machine == self.name and bool(auxiliary(_AT_HWCAP2) & _HWCAP2_MTE)
        return self._tags

    def signing(self) -> str:
        if os.uname().machine != self.name:
            return ""
        from torpor.kernel import arm_id

        return arm_id.signing()

    def checks_tags(self, registers: Registers) -> bool:
        mode = registers.others.get(NT_ARM_TAGGED_ADDR_CTRL, bytes(8))
        return bool(struct.unpack_from("<Q", mode)[0] & _TAGS_CHECKED)

    def is_live(self, which: int, data: bytes) -> bool:
        return len(data) > _SVE_HEADER.size and bool(_SVE_HEADER.unpack_from(data)[4] & _SVE_REGISTERS)

    def enter_call(self, general: bytes, gadget: int, nr: int, args: Sequence[int]) -> bytes:
        r = _words(general)
        r[X0 : X0 + len(args)] = [x & _M64 for x in args]
        r[X8], r[PC] = nr, gadget
        r[PSTATE] &= ~_BTYPE
        return _GENERAL.pack(*r)

    def result(self, general: bytes) -> int:
        return int(struct.unpack_from("<q", general, 8 * X0)[0])

    def enter_executor(self, general: bytes, entry: int, args: Sequence[int], stack: int) -> bytes:
        r = _words(general)
        r[X0 : X0 + len(args)] = args
        r[SP], r[PC] = stack & ~15, entry
        r[PSTATE] &= ~_BTYPE
        return _GENERAL.pack(*r)

    def interruption(self, general: bytes, specials: Mapping[int, bytes], before: "SeenCall") -> tuple[int, int] | None:
        return (ERESTARTNOHAND, 0) if self.again(general, specials, before) else None

    def first_interrupted(
        self, general: bytes, specials: dict[int, bytes], before: "SeenCall", read: Callable[[int, int], bytes]
    ) -> tuple[bytes, dict[int, bytes], "SeenCall"]:
        r = _words(general)
        if not self._continues(r, before):
            return general, specials, before
        from torpor.arch import continued

        if (number := continued.call(self, r[X0 : X0 + 6], read)) >= 0:  # here that is a futex, and certain
            r[X8] = number
            before = before._replace(number=number)
        return _GENERAL.pack(*r), specials, before

    def call_at(self, general: bytes, code: bytes) -> Call | None:
        r = _words(general)
        return Call(r[X8], r[X0 : X0 + 6]) if code == self.instruction else None

    def inside_call(self, general: bytes, call: Call, how: int) -> tuple[bytes, Mapping[int, bytes]]:
        r = _words(general)
        r[X0], r[PC] = -how & _M64, r[PC] + 4
        return _GENERAL.pack(*r), {}

    def before_call(self, general: bytes, call: Call) -> bytes | None:
        """The kernel remembers itself that a thread is in a call, and the call's first argument, nothing else."""
        r = _words(general)
        r[X8] = self.SYSCALLS["getpid"]
        return _GENERAL.pack(*r)

    def settled(self, general: bytes, specials: Mapping[int, bytes], before: "SeenCall") -> bytes:
        r = _words(general)
        if self._forgets(r, before) or self._continues(r, before):  # else it is rewound already
            r[X0], r[PC] = -EINTR & _M64, r[PC] + 4
            return _GENERAL.pack(*r)
        return self.again(general, specials, before) or general

    def again(self, general: bytes, specials: Mapping[int, bytes], before: "SeenCall") -> bytes | None:
        r = _words(general)
        if not before.proven or r[X0] != -EINTR & _M64 or (before.number, before.pc) != (r[X8], r[PC]):
            return None
        r[X0], r[PC] = before.args[0], r[PC] - 4
        return _GENERAL.pack(*r)

    def may_have_ended(self, general: bytes) -> Call | None:
        r = _words(general)
        return Call(r[X8], r[X0:6]) if r[X0] == -EINTR & _M64 and self.ends_by_a_stop(r[X8], 0) else None

    def resumed(self, general: bytes, before: "SeenCall") -> bytes:
        r = _words(general)
        if self._forgets(r, before):
            r[X8] = self.SYSCALLS["restart_syscall"]
        return _GENERAL.pack(*r)

    def _continues(self, r: list[int], before: "SeenCall") -> bool:
        """Whether it was interrupted in restart_syscall."""
        return r[X8] == before.number == self.SYSCALLS["restart_syscall"] and before.pc == r[PC] + 4

    def _forgets(self, r: list[int], before: "SeenCall") -> bool:
        """Whether the interrupted call is one that would begin anew, and lose time: not until a point in time."""
        nr = before.number
        if nr < 0 or (nr, before.args[0], before.pc) != (r[X8], r[X0], r[PC] + 4):
            return False
        # The kernel keeps all but the first argument, and it may be the next such call by now.
        if nr == self.SYSCALLS["clock_nanosleep"]:
            return not r[1] & _TIMER_ABSTIME
        if nr == self.SYSCALLS["futex"]:
            return r[1] & _FUTEX_COMMAND == _FUTEX_WAIT and r[3] != 0
        return nr == self.SYSCALLS["nanosleep"]

    def jump(self, target: int) -> bytes:
        return struct.pack("<IIQ", 0x58000050, 0xD61F0200, target)  # ldr x16, 8; br x16

    def pc(self, general: bytes) -> int:
        return int(struct.unpack_from("<Q", general, 8 * PC)[0])

    def sp(self, general: bytes) -> int:
        return int(struct.unpack_from("<Q", general, 8 * SP)[0])

    def with_pc(self, general: bytes, pc: int) -> bytes:
        r = _words(general)
        r[PC] = pc
        return _GENERAL.pack(*r)

    def signal_frame(self, registers: Registers, mask: int, address: int) -> tuple[bytes, int]:
        frame = bytearray(_EXTENSIONS)
        struct.pack_into("<Q", frame, _MASK, mask)
        frame[_CONTEXT + 8 : _CONTEXT + 8 + _GENERAL.size] = registers.general
        # struct user_fpsimd_state has the vectors first, struct fpsimd_context last.
        state = registers.others[NT_PRFPREG]
        extensions = struct.pack("<II", _FPSIMD_MAGIC, _FPSIMD_SIZE) + state[512:520] + state[:512]
        scalable = b""
        for which, streaming in ((NT_ARM_SVE, 0), (NT_ARM_SSVE, 1)):
            if which in registers.others and self.is_live(which, registers.others[which]):
                scalable = _sve_context(registers.others[which], streaming)
        if len(extensions) + len(scalable) + 16 > _EXTENSIONS_ROOM:
            # The extra context is followed by the list's end, and then at once by what it points to.
            behind = address + len(frame) + len(extensions) + 32 + 16
            extensions += struct.pack("<IIQI12x", _EXTRA_MAGIC, 32, behind, len(scalable) + 16) + bytes(16)
        return bytes(frame) + extensions + scalable + bytes(16), address

    def signal_frames(self, stack: bytes, base: int, memory: Memory) -> Iterator[Frame]:
        from torpor.arch import aarch64_frames

        return aarch64_frames.find(stack, base, memory)

    def vector_lengths(self, registers: Registers) -> Mapping[int, bytes]:
        found = {which: registers.others[which] for which in (NT_ARM_SVE, NT_ARM_ZA) if which in registers.others}
        return {which: _without_registers(data) for which, data in found.items()}

    def mended_frame(self, frame: Frame, own: Frame) -> Iterator[tuple[int, bytes]]:
        from torpor.arch import aarch64_frames

        return aarch64_frames.mended(frame, own)

    def may_refuse(self, own: Frame, core: "CoreEntry", stored: Mapping[int, bytes]) -> bool:
        """The other's CPU had SVE or SME, and this one has not."""
        from torpor.arch import aarch64_frames

        sve, sme = aarch64_frames.has(own)
        return (NT_ARM_SVE in stored and not sve) or (NT_ARM_ZA in stored and not sme)

    def frame_room(self, told: int) -> int:
        """What the kernel tells counts SVE's longest vectors and SME's array.  They are saved only for a thread that
        uses them, which one that began without them does not, and lengths stay as they were: so the room that was
        enough is enough.  Tried with QEMU's cortex-a72 and max."""
        return 0

    def to_core(self, core: "CoreEntry", registers: Registers, clear_child_tid: int) -> None:
        from torpor.images.schema.core_aarch64 import (
            ThreadInfoAarch64,
            UserAarch64FpsimdContextEntry,
            UserAarch64RegsEntry,
        )

        r = _words(registers.general)
        *vectors, status = struct.unpack("<65Q", registers.others[NT_PRFPREG][:520])
        core.mtype = self.march
        core.ti_aarch64 = ThreadInfoAarch64(
            clear_tid_addr=clear_child_tid,
            tls=struct.unpack_from("<Q", registers.others[NT_ARM_TLS])[0],
            gpregs=UserAarch64RegsEntry(regs=r[:31], sp=r[SP], pc=r[PC], pstate=r[PSTATE]),
            fpsimd=UserAarch64FpsimdContextEntry(vregs=vectors, fpsr=status & 0xFFFFFFFF, fpcr=status >> 32),
            pac_keys=_pac_keys(registers.others),
        )

    def from_core(self, core: "CoreEntry", template: Registers) -> tuple[Registers, int]:
        info = self.thread_info(core, core.ti_aarch64)
        g, f = info.gpregs, info.fpsimd
        self.expect(len(g.regs) == 31 and len(f.vregs) == 64, "wrong number of registers")
        fpsimd = struct.pack("<64QII", *f.vregs, f.fpsr, f.fpcr)
        tls = struct.pack("<Q", info.tls)
        others = {
            NT_PRFPREG: fpsimd + template.others[NT_PRFPREG][len(fpsimd) :],
            NT_ARM_TLS: tls + template.others[NT_ARM_TLS][len(tls) :],
        }
        if info.pac_keys is not None:
            keys = _pac_regsets(info.pac_keys)
            if keys.keys() - template.others.keys():
                self.lacks("pointer authentication")
            others |= keys
        return Registers(_GENERAL.pack(*g.regs, g.sp, g.pc, g.pstate), others), info.clear_tid_addr

    def extras(self, registers: Registers) -> dict[int, bytes]:
        """SVE and SME: while they hold nothing, only the header, which has the vector length."""
        found = super().extras(registers)
        if any(found.pop(NT_ARM_GCS, b"")[:8]):
            raise Refusal("a thread", "it has a guarded control stack, which Torpor does not restore",
                          "run the program with GLIBC_TUNABLES=glibc.cpu.aarch64_gcs=0", code="gcs")  # fmt: skip
        if NT_ARM_SVE in found and not self.is_live(NT_ARM_SVE, found[NT_ARM_SVE]):
            found[NT_ARM_SVE] = found[NT_ARM_SVE][: _SVE_HEADER.size]
        if NT_ARM_SSVE in found and not self.is_live(NT_ARM_SSVE, found[NT_ARM_SSVE]):
            del found[NT_ARM_SSVE]  # to set it would begin streaming mode
        if len(found.get(NT_ARM_ZA, b"")) <= _SVE_HEADER.size:
            found.pop(NT_ARM_ZT, None)  # to set it would switch the array on
        for which in (NT_ARM_FPMR, NT_ARM_TAGGED_ADDR_CTRL):
            if not any(found.get(which, b"")):
                found.pop(which, None)
        tls = registers.others[NT_ARM_TLS]
        if any(tls[8:]):  # TPIDR2, which comes with SME
            found[NT_ARM_TLS] = tls
        return found

    def with_extras(self, registers: Registers, stored: Mapping[int, bytes], template: Registers) -> Registers:
        made = super().with_extras(registers, stored, template)
        for which in (NT_ARM_SVE, NT_ARM_SSVE, NT_ARM_ZA):
            if which in stored and which in template.others:
                self._check_length(which, stored[which], template.others[which])
        mode = stored.get(NT_ARM_TAGGED_ADDR_CTRL, b"").ljust(8, b"\0")
        if struct.unpack_from("<Q", mode)[0] & ~_ADDRESSES and not self.tags_memory():
            self.lacks("memory tags (MTE)")
        if (tls := stored.get(NT_ARM_TLS)) is None:
            return made
        if len(tls) != len(template.others[NT_ARM_TLS]):
            self.lacks("TPIDR2")
        return Registers(made.general, {**made.others, NT_ARM_TLS: tls})

    def _check_length(self, which: int, stored: bytes, here: bytes) -> None:
        """The kernel would take the next shorter length, and a program that knows its own would compute wrongly: also
        while it holds no vectors."""
        self.expect(len(stored) >= _SVE_HEADER.size, "a register set has no such size")
        length, most = _SVE_HEADER.unpack_from(stored)[2], _SVE_HEADER.unpack_from(here)[3]
        given: Sequence[int] = (length,) if length <= most else ()
        if given and os.uname().machine == self.name:
            from torpor.kernel import arm_id

            given = arm_id.lengths(arm_id.SVE if which == NT_ARM_SVE else arm_id.SME)
        if length not in given:
            name, setting = ("SVE", "sve") if which == NT_ARM_SVE else ("SME", "sme")
            self.lacks(
                f"{name} vectors of {length} bytes",
                "restore it on a CPU that has them; to move to this one, the program has to be started with shorter "
                f"ones (/proc/sys/abi/{setting}_default_vector_length)",
            )

    def is_lost_without(self, which: int, data: bytes) -> bool:
        if which in (NT_ARM_SVE, NT_ARM_ZA):
            return len(data) > _SVE_HEADER.size
        return any(data)


def _without_registers(data: bytes) -> bytes:
    """A register set of SVE's or ZA's with nothing in it but the length of vectors."""
    _, most, length, longest, flags, reserved = _SVE_HEADER.unpack_from(data)
    return _SVE_HEADER.pack(_SVE_HEADER.size, most, length, longest, flags & ~_SVE_REGISTERS, reserved)


def _pac_keys(others: Mapping[int, bytes]) -> "PacKeys | None":
    """Pointer-authentication keys: a program whose return addresses are signed does not get far without them."""
    from torpor.images.schema.core_aarch64 import PacAddressKeys, PacGenericKeys, PacKeys

    found = PacKeys()
    if NT_ARM_PACA_KEYS in others:
        enabled = struct.unpack("<Q", others.get(NT_ARM_PAC_ENABLED_KEYS, bytes(8)))[0]
        found.pac_address_keys = PacAddressKeys(
            **dict(zip(_PAC_NAMES, struct.unpack("<8Q", others[NT_ARM_PACA_KEYS]), strict=True)),
            pac_enabled_key=enabled,
        )
    if NT_ARM_PACG_KEYS in others:
        low, high = struct.unpack("<2Q", others[NT_ARM_PACG_KEYS])
        found.pac_generic_keys = PacGenericKeys(apgakey_lo=low, apgakey_hi=high)
    return found if found.pac_address_keys or found.pac_generic_keys else None


def _pac_regsets(keys: "PacKeys") -> dict[int, bytes]:
    found = {}
    if (address := keys.pac_address_keys) is not None:
        found[NT_ARM_PACA_KEYS] = struct.pack("<8Q", *(getattr(address, name) for name in _PAC_NAMES))
        found[NT_ARM_PAC_ENABLED_KEYS] = struct.pack("<Q", address.pac_enabled_key)
    if (generic := keys.pac_generic_keys) is not None:
        found[NT_ARM_PACG_KEYS] = struct.pack("<2Q", generic.apgakey_lo, generic.apgakey_hi)
    return found


def _sve_context(data: bytes, streaming: int) -> bytes:
    """struct sve_context of a signal frame, from the register set."""
    length = _SVE_HEADER.unpack_from(data)[2]  # of a vector, in bytes
    content = data[_SVE_HEADER.size : _SVE_HEADER.size + 32 * length + 17 * (length // 8)]
    content += bytes(-len(content) % 16)
    return struct.pack("<IIHH4x", _SVE_MAGIC, 16 + len(content), length, streaming) + content


ARCH = AArch64()
