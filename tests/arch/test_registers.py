# SPDX-License-Identifier: Apache-2.0
"""What every architecture's description promises, checked without a kernel: all five on any machine.

That the kernels agree is shown in guests (tests/vm/test_injection.py).
"""

import random
import struct
from importlib import import_module

import pytest

from torpor.arch import MODULES
from torpor.arch.base import Arch, Registers
from torpor.errors import ImageError, Refusal
from torpor.images.schema.core import CoreEntry
from torpor.images.schema.core_ppc64 import UserPpc64TmRegsEntry
from torpor.kernel.inside import UNSEEN, SeenCall, parse_call

ARCHES: dict[str, Arch] = {name: import_module(f"torpor.arch.{name}").ARCH for name in sorted(set(MODULES.values()))}
SIZES = {"x86_64": 216, "aarch64": 272, "arm": 72, "ppc64le": 384, "s390x": 216}  # of NT_PRSTATUS
OTHERS = {
    "aarch64": {2: 528, 0x401: 16},
    "arm": {0x400: 260, 0x401: 4},
    "ppc64le": {2: 264, 0x100: 544, 0x102: 256},
    "s390x": {2: 136, 0x309: 128, 0x30A: 256},
}
FOREIGN = sorted(OTHERS)  # x86_64's core message has a test of its own
# The system calls that engine/ and infect/ live on.
NEEDED = """
read close mmap munmap mprotect mremap madvise brk socketpair sendto recvfrom recvmsg sendmsg setsockopt getsockopt
sigaltstack rt_sigaction rt_sigprocmask rt_sigreturn ppoll prctl getpid gettid kill tgkill openat pread64 preadv pwritev
write writev pwrite64 fcntl ioctl dup3 close_range pidfd_open pidfd_getfd clone3 set_tid_address set_robust_list
setresuid setresgid setgroups capset timer_create timer_settime setitimer getitimer userfaultfd unshare setns setsid
setpgid wait4 waitid exit_group umask chdir fchdir chroot personality sched_setattr sched_setscheduler prlimit64 futex
shmat shmdt membarrier nanosleep clock_nanosleep getcwd restart_syscall kcmp process_vm_readv memfd_create execveat
""".split()  # noqa: SIM905


def filled(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def general(name: str, seed: int = 1) -> bytes:
    return filled(SIZES[name], seed)


def sample(name: str) -> Registers:
    others = {which: filled(size, which) for which, size in OTHERS[name].items()}
    if name == "ppc64le":
        others[0x100] = others[0x100][:532] + bytes(12)  # what follows VRSAVE
    if name == "s390x":
        others[2] = others[2][:4] + bytes(4) + others[2][8:]  # padding after the control word
    return Registers(general(name), others)


@pytest.mark.parametrize("name", ARCHES)
def test_system_calls_are_numbered(name: str) -> None:
    table = ARCHES[name].SYSCALLS
    assert [call for call in NEEDED if call not in table] == []
    shared = {number: call for call, number in table.items() if number >= 424 and number < 0x1000}
    assert all(ARCHES["x86_64"].SYSCALLS.get(call, number) == number for number, call in shared.items())


@pytest.mark.parametrize("name", ARCHES)
def test_a_call_is_entered_at_the_gadget(name: str) -> None:
    arch = ARCHES[name]
    before = general(name)
    after = arch.enter_call(before, 0x7000, arch.SYSCALLS["getpid"], (1, -1, 3, 4, 5, 6))
    assert len(after) == len(before) and arch.pc(after) == 0x7000 and arch.sp(after) == arch.sp(before)
    assert arch.with_pc(after, 0x9000) != after and arch.pc(arch.with_pc(after, 0x9000)) == 0x9000


@pytest.mark.parametrize("name", ARCHES)
def test_the_executor_gets_an_aligned_stack_below_its_top(name: str) -> None:
    arch = ARCHES[name]
    after = arch.enter_executor(general(name), 0x10000, (0x20000, 4096, 3), 0x20FF8)
    assert arch.pc(after) == 0x10000
    assert 0x20FF8 - 256 <= arch.sp(after) <= 0x20FF8 and arch.sp(after) % 8 == 0


@pytest.mark.parametrize("name", FOREIGN)
def test_registers_survive_the_core_message(name: str) -> None:
    arch = ARCHES[name]
    registers = sample(name)
    if name == "ppc64le":  # not in a call: settled
        registers = Registers(arch.settled(registers.general, {}, UNSEEN), registers.others)
    core = CoreEntry(mtype=0)
    arch.to_core(core, registers, 0xBEEF)
    back, clear_child_tid = arch.from_core(CoreEntry.decode(core.encode()), registers)
    assert (back.general, dict(back.others), clear_child_tid) == (registers.general, dict(registers.others), 0xBEEF)


def test_ppc64le_says_in_msr_that_an_image_has_vector_registers() -> None:
    """CRIU, restoring it, leaves them out otherwise."""
    arch, core = ARCHES["ppc64le"], CoreEntry(mtype=0)
    arch.to_core(core, Registers(bytes(SIZES["ppc64le"]), sample("ppc64le").others), 0)
    assert core.ti_ppc64 is not None and core.ti_ppc64.gpregs.msr == 1 << 25 | 1 << 23


def test_s390x_moves_vector_registers_only_to_where_they_are() -> None:
    """Before z13 there are none: a thread that holds something in them is refused, others are not."""
    arch, held = ARCHES["s390x"], sample("s390x")
    lesser = Registers(held.general, {2: held.others[2]})
    core = CoreEntry(mtype=0)
    arch.to_core(core, held, 0)
    with pytest.raises(Refusal) as error:
        arch.from_core(core, lesser)
    assert error.value.code == "cpu-feature" and "the vector facility" in error.value.why
    arch.to_core(core, Registers(held.general, {**held.others, 0x309: bytes(128), 0x30A: bytes(256)}), 0)
    assert arch.from_core(core, lesser)[0] == lesser
    arch.to_core(core, lesser, 0)
    assert core.ti_s390 is not None and core.ti_s390.vxrs_low is None and core.ti_s390.vxrs_high is None
    assert arch.from_core(core, held)[0].others[2] == held.others[2]
    longer, shorter = (len(arch.signal_frame(registers, 0, 0x1000)[0]) for registers in (held, lesser))
    assert longer == shorter


def _sve(length: int, most: int, live: bool) -> bytes:
    content = bytes(range(1, 33)) * length if live else b""
    return struct.pack("<IIHHHH", 16 + len(content), 0, length, most, int(live), 0) + content


@pytest.mark.parametrize("template,why", [(None, "SVE"), (_sve(16, 16, False), "SVE vectors of 32 bytes")])
def test_aarch64_refuses_vectors_that_the_cpu_does_not_have(template: bytes | None, why: str) -> None:
    arch, found = ARCHES["aarch64"], sample("aarch64")
    here = Registers(found.general, {**found.others, **({0x405: template} if template else {})})
    with pytest.raises(Refusal) as error:
        arch.with_extras(found, {0x405: _sve(32, 64, True)}, here)
    assert error.value.code == "cpu-feature" and f"it uses {why}, which" in error.value.why
    if template is None:
        arch.with_extras(found, {0x405: _sve(32, 64, False)}, here)  # nothing is in them
    else:
        with pytest.raises(Refusal, match=why):  # nor is there, but the program may know how long they are
            arch.with_extras(found, {0x405: _sve(32, 64, False)}, here)
    with pytest.raises(Refusal, match="SME vectors of 32 bytes"):
        array = {0x40C: _sve(16, 16, False)}
        arch.with_extras(found, {0x40C: _sve(32, 64, False)}, Registers(found.general, {**found.others, **array}))
    same = Registers(found.general, {**found.others, 0x405: _sve(32, 32, False)})
    assert arch.with_extras(found, {0x405: _sve(32, 64, True)}, same).others[0x405] == _sve(32, 64, True)


# No machine was at hand that has these, nor does QEMU: a thread that uses them is refused.
UNTRIED = {
    "transaction": ("ppc64le", {}, "inside a memory transaction"),
    "guarded control stack": ("aarch64", {0x410: struct.pack("<3Q", 1, 0, 0x7000)}, "a guarded control stack"),
}


@pytest.mark.parametrize("what", UNTRIED)
def test_what_nobody_could_try_is_refused_at_dump(what: str) -> None:
    name, sets, words = UNTRIED[what]
    arch, unused = ARCHES[name], sample(name)
    if name == "ppc64le":
        general = list(struct.unpack("<48Q", unused.general))
        general[33] &= ~(3 << 33)  # MSR
        unused = Registers(struct.pack("<48Q", *general), unused.others)
        general[33] |= 1 << 33  # suspended
        used = Registers(struct.pack("<48Q", *general), unused.others)
    else:
        used = Registers(unused.general, {**unused.others, **sets})
        unused = Registers(unused.general, {**unused.others, **{which: bytes(len(sets[which])) for which in sets}})
    arch.extras(unused)
    with pytest.raises(Refusal) as error:
        arch.extras(used)
    assert words in error.value.why


def test_a_transaction_is_refused_at_restore() -> None:
    """In images of CRIU's, from a machine that has it."""
    arch, registers, core = ARCHES["ppc64le"], sample("ppc64le"), CoreEntry(mtype=0)
    arch.to_core(core, registers, 0)
    arch.from_core(core, registers)
    assert core.ti_ppc64 is not None
    core.ti_ppc64.tmstate = UserPpc64TmRegsEntry(gpregs=core.ti_ppc64.gpregs)
    with pytest.raises(Refusal) as error:
        arch.from_core(CoreEntry.decode(core.encode()), registers)
    assert "memory transaction" in error.value.why


# struct gs_cb, the same for a broadcast, struct runtime_instr_cb
S390X_UNPROVEN = {0x30B: ("gs_cb", 4), 0x30C: ("gs_bc", 4), 0x30D: ("ri_cb", 8)}


@pytest.mark.parametrize("which", S390X_UNPROVEN)
def test_s390x_blocks_that_nobody_could_try(which: int) -> None:
    """Through the image, byte for byte; a thread's own empty block is not there at all."""
    field, words = S390X_UNPROVEN[which]
    arch, fresh = ARCHES["s390x"], sample("s390x")
    held = Registers(fresh.general, {**fresh.others, which: filled(8 * words, which)})
    core = CoreEntry(mtype=0)
    arch.to_core(core, Registers(fresh.general, {**fresh.others, which: bytes(8 * words)}), 0)
    assert core.ti_s390 is not None and getattr(core.ti_s390, field) is None
    arch.to_core(core, held, 0)
    found, _ = arch.from_core(CoreEntry.decode(core.encode()), fresh)
    assert found.others == held.others and which in arch.unproven
    getattr(core.ti_s390, field).regs.append(1)
    with pytest.raises(ImageError, match="wrong number of words"):
        arch.from_core(CoreEntry.decode(core.encode()), fresh)


@pytest.mark.parametrize("on", [0, 1])
def test_s390x_instrumentation_is_on_or_off(on: int) -> None:
    """In the program status word; CRIU's images say it besides."""
    bit = 1 << 39
    arch, fresh = ARCHES["s390x"], sample("s390x")
    status = int.from_bytes(fresh.general[:8], "big") & ~bit | on * bit
    held = Registers(status.to_bytes(8, "big") + fresh.general[8:], {**fresh.others, 0x30D: filled(64, 1)})
    core = CoreEntry(mtype=0)
    arch.to_core(core, held, 0)
    assert core.ti_s390 is not None and core.ti_s390.ri_cb is not None and core.ti_s390.ri_cb.ri_on == on
    core.ti_s390.gpregs.psw_mask &= ~bit
    assert arch.from_core(core, fresh)[0] == held


@pytest.mark.parametrize("name", FOREIGN)
def test_images_of_another_architecture_are_refused(name: str) -> None:
    other = FOREIGN[FOREIGN.index(name) - 1]
    core = CoreEntry(mtype=0)
    ARCHES[other].to_core(core, sample(other), 0)
    with pytest.raises(Refusal, match="another architecture"):
        ARCHES[name].from_core(core, sample(name))


@pytest.mark.parametrize("name", FOREIGN)
def test_the_signal_frame_does_not_depend_on_the_address_but_for_pointers(name: str) -> None:
    frame, stack_pointer = ARCHES[name].signal_frame(sample(name), 0x123, 0x40000)
    assert stack_pointer == 0x40000 and len(frame) < 8192
    other, _ = ARCHES[name].signal_frame(sample(name), 0x123, 0x50000)
    differing = [i for i in range(0, len(frame) - 7, 8) if frame[i : i + 8] != other[i : i + 8]]
    assert len(differing) == (1 if name == "ppc64le" else 0)


def _ppc(trap: int, r3: int, ccr: int, nr: int = 3) -> bytes:
    words = [0] * 48
    words[0] = nr
    words[3], words[32], words[34], words[38], words[40] = r3, 0x1000, 77, ccr, trap
    return struct.pack("<48Q", *words)


@pytest.mark.parametrize(
    ("trap", "r3", "ccr", "expected"),
    [
        (0xC00, 512, 0x10000000, (0xFFC, 77)),  # ERESTARTSYS by sc: made again
        (0xC01, 514, 0x10000000, (0x1000, 514)),  # a handler has ended the call, and returned that
        (0xC00, 512, 0, (0x1000, 512)),  # a call that returned 512
        (0x3000, 2**64 - 512, 0, (0xFFC, 77)),  # by scv
        (0xC00, 516, 0x10000000, (0x1000, 4)),  # a sleep: EINTR
        (0x3000, 2**64 - 516, 0, (0x1000, 2**64 - 4)),
        (0x500, 512, 0x10000000, (0x1000, 512)),  # stopped by a timer tick
    ],
)
def test_ppc64le_settles_interrupted_calls(trap: int, r3: int, ccr: int, expected: tuple[int, int]) -> None:
    words = struct.unpack("<48Q", ARCHES["ppc64le"].settled(_ppc(trap, r3, ccr), {}, UNSEEN))
    assert (words[32], words[3]) == expected and words[40] == 0


@pytest.mark.parametrize(
    ("call", "r2", "expected"),
    [
        (0, 2**64 - 512, (0x1000, 2**64 - 512)),  # not in a call
        (2 << 16 | 3, 2**64 - 512, (0xFFE, 77)),
        (6 << 16 | 3, 2**64 - 513, (0xFFA, 77)),  # svc by way of execute
        (2 << 16 | 162, 2**64 - 516, (0x1000, 2**64 - 4)),
        (2 << 16 | 3, 5, (0x1000, 5)),
    ],
)
def test_s390x_settles_interrupted_calls(call: int, r2: int, expected: tuple[int, int]) -> None:
    words = [0] * 18
    words[1], words[4] = 0x1000, r2
    found = struct.pack(">18Q", *words) + bytes(64) + struct.pack(">Q", 77)
    after = ARCHES["s390x"].settled(found, {0x307: struct.pack(">I", call)}, UNSEEN)
    psw, r2_after = struct.unpack_from(">8xQ", after)[0], struct.unpack_from(">Q", after, 32)[0]
    assert (psw, r2_after) == expected


EINTR = 4


@pytest.mark.parametrize("name", ARCHES)
@pytest.mark.parametrize(
    ("call", "made_again"),
    [("epoll_pwait", True), ("rt_sigtimedwait", True), ("read", True), ("connect", False), ("close", False)],
)
def test_calls_that_the_stop_has_ended(name: str, call: str, made_again: bool) -> None:
    """They go on: where the kernel can be told so by its own error number (512 and above), else rewound."""
    arch = ARCHES[name]
    nr, minus = arch.SYSCALLS[call], (1 << 8 * arch.word_size) - EINTR
    specials, before = {0x307: struct.pack(">I", 2 << 16 | nr)}, SeenCall(nr, (77, 0, 0, 0, 0, 0), 0xFFFF0000, 0x1000)
    if made_again:
        before = before._replace(proven=True)
    found = {
        "x86_64": lambda: _words("<27Q", {10: minus, 15: nr, 16: 0x1000}),
        "aarch64": lambda: _words("<34Q", {0: minus, 8: nr, 32: 0x1000}),
        "arm": lambda: _words("<18I", {0: minus, 7: nr, 15: 0x1000, 17: 77}),
        "ppc64le": lambda: _ppc(0xC00, EINTR, 0x10000000, nr),
        "s390x": lambda: _words(">18Q", {1: 0x1000, 4: minus}) + bytes(64) + struct.pack(">Q", 77),
    }[name]()
    again = arch.again(found, specials, before)
    settled = arch.settled(found, specials, before)
    length = {"x86_64": 2, "s390x": 2}.get(name, 4)
    assert arch.pc(settled) == (0x1000 - length if made_again else 0x1000)
    if not made_again:
        assert again is None
        return
    assert again is not None
    if not arch.restarts_alike:
        assert arch.pc(again) == 0x1000 - 4 and arch.result(again) == 77
        assert arch.again(found, specials, before._replace(proven=False)) is None  # it may be the next call by now
        assert arch.again(found, specials, before._replace(number=nr + 1)) is None
    else:
        assert arch.pc(again) == 0x1000 and arch.result(again) == -514
    assert arch.resumed(found, before) == found  # where job control has stopped it, it is left alone


@pytest.mark.parametrize("name", ["x86_64", "arm", "ppc64le", "s390x"])
def test_poll_begins_again_in_images(name: str) -> None:
    arch = ARCHES[name]
    nr, minus = arch.SYSCALLS["poll"], (1 << 64) - 516
    found = {
        "x86_64": lambda: _words("<27Q", {10: minus, 15: nr, 16: 0x1000}),
        "arm": lambda: _words("<18I", {0: 77, 7: nr, 15: 0x1000 - 4, 17: 77}),  # rewound by the kernel already
        "ppc64le": lambda: _ppc(0xC00, 516, 0x10000000, nr),
        "s390x": lambda: _words(">18Q", {1: 0x1000, 4: minus}) + bytes(64) + struct.pack(">Q", 77),
    }[name]()
    settled = arch.settled(found, {0x307: struct.pack(">I", 2 << 16 | nr)}, UNSEEN)
    assert arch.pc(settled) == 0x1000 - {"x86_64": 2, "s390x": 2}.get(name, 4)


@pytest.mark.parametrize("thumb", [True, False])
@pytest.mark.parametrize("call", ["clock_nanosleep", "clock_nanosleep_time64"])
def test_arm_tells_a_sleep_that_has_just_ended_from_an_interrupted_one(call: str, thumb: bool) -> None:
    """Both show 0 in r0 and ORIG_r0: the result, or the number of the clock."""
    arch, length = ARCHES["arm"], 2 if thumb else 4
    nr = arch.SYSCALLS[call]
    registers = {0: 0, 7: nr, 15: 0x1000, 16: 0x20 if thumb else 0, 17: 0}
    asleep = SeenCall(nr, (0, 0, 0xBEEF0000, 0, 0, 0), 0xBEEF1000, 0x1000)
    ended = _words("<18I", registers)
    assert arch.settled(ended, {}, asleep) == arch.resumed(ended, asleep) == ended
    interrupted = arch.with_pc(ended, 0x1000 - length)
    settled = arch.settled(interrupted, {}, asleep)
    assert (arch.pc(settled), arch.result(settled)) == (0x1000, -EINTR)
    assert arch.resumed(interrupted, asleep) == _words("<18I", registers | {7: 0, 15: 0x1000 - length})


def _words(form: str, values: dict[int, int]) -> bytes:
    return struct.pack(
        form, *(values.get(place, 0) for place in range(struct.calcsize(form) // struct.calcsize(form[0] + form[-1])))
    )


def _aarch64(x0: int, x8: int, pc: int) -> bytes:
    words = [0] * 34
    words[0], words[8], words[32] = x0, x8, pc
    return struct.pack("<34Q", *words)


@pytest.mark.parametrize(
    ("before", "continued"),
    [
        (b"101 0x5000 0x0 0x0 0x0 0x0 0x0 0xffff0000 0x1004", True),
        (b"running\n", False),
        (b"101 0x6000 0x0 0x0 0x0 0x0 0x0 0xffff0000 0x1004", False),  # that sleep is over, this is the next one
        (b"101 0x5000 0x0 0x0 0x0 0x0 0x0 0xffff0000 0x2004", False),
        (b"63 0x5000 0x0 0x0 0x0 0x0 0x0 0xffff0000 0x1004", False),
        (b"-1 0xffff0000 0x1004\n", False),
    ],
)
def test_aarch64_continues_a_sleep_only_when_it_was_seen_asleep(before: bytes, continued: bool) -> None:
    arch = ARCHES["aarch64"]
    found, seen = _aarch64(0x5000, arch.SYSCALLS["nanosleep"], 0x1000), parse_call(before)
    assert arch.resumed(found, seen) == (_aarch64(0x5000, 128, 0x1000) if continued else found)
    settled = _aarch64(2**64 - 4, arch.SYSCALLS["nanosleep"], 0x1004)
    assert arch.settled(found, {}, seen) == (settled if continued else found)


def test_aarch64_knows_which_calls_continue() -> None:
    arch = ARCHES["aarch64"]
    number = arch.SYSCALLS

    def continues(nr: int, args: str, seen: str = "") -> bool:
        found = _words("<34Q", dict(enumerate([1, *(int(word, 16) for word in args.split())])) | {8: nr, 32: 0x1000})
        return arch.resumed(found, parse_call(f"{nr} 0x1 {seen or args} 0x0 0x0 0xffff0000 0x1004".encode())) != found

    assert continues(number["clock_nanosleep"], "0x0 0x5000 0x0")
    assert not continues(number["clock_nanosleep"], "0x1 0x5000 0x0")  # TIMER_ABSTIME
    assert not continues(number["clock_nanosleep"], "0x1 0x5000 0x0", seen="0x0 0x5000 0x0")  # the next one
    assert continues(number["futex"], "0x80 0x0 0x5000")
    assert not continues(number["futex"], "0x80 0x0 0x0")  # no time limit
    assert not continues(number["futex"], "0x80 0x0 0x0", seen="0x80 0x0 0x5000")
    assert not continues(number["futex"], "0x86 0x0 0x5000")  # FUTEX_LOCK_PI
    assert not continues(number["ppoll"], "0x1 0x5000 0x0")


def test_arm_puts_wide_arguments_into_even_registers() -> None:
    arch = ARCHES["arm"]
    assert list(arch.arguments("pread64", (3, 0x1000, 16, 0x1_0000_0002))) == [3, 0x1000, 16, 0, 2, 1]
    assert list(arch.arguments("ftruncate", (3, 5))) == [3, 0, 5, 0]
    assert list(arch.arguments("fallocate", (3, 0, 1 << 32, 7))) == [3, 0, 0, 1, 7, 0]
    assert list(arch.arguments("mmap", (0, 4096, 3, 2, 5, 0x3000))) == [0, 4096, 3, 2, 5, 3]
    assert list(arch.arguments("preadv", (3, 0x1000, 1, 0x1_0000_0002))) == [3, 0x1000, 1, 2, 1]
    assert list(arch.arguments("getpid", ())) == []


def test_arm_tells_errors_from_addresses() -> None:
    arch = ARCHES["arm"]
    assert arch.result(struct.pack("<18I", 0xB6F00000, *[0] * 17)) == 0xB6F00000
    assert arch.result(struct.pack("<18I", 0xFFFFFFF2, *[0] * 17)) == -14


def test_s390x_gives_mmap_a_block_of_arguments() -> None:
    arch = ARCHES["s390x"]
    args = (0, 4096, 3, 0x22, -1, 0)
    assert struct.unpack(">6q", arch.call_block(arch.SYSCALLS["mmap"], args)) == args
    assert not arch.call_block(arch.SYSCALLS["getpid"], ())


def test_the_other_byte_order_is_seen() -> None:
    """MSR, the 34th word, has the order in its lowest bit."""
    little, big = (struct.pack("<48Q", *[0] * 33, 0x900000000000D032 | order, *[0] * 14) for order in (1, 0))
    assert not ARCHES["ppc64le"].in_other_order(little)
    assert ARCHES["ppc64le"].in_other_order(big)
