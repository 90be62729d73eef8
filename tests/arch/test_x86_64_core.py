# SPDX-License-Identifier: Apache-2.0
"""x86_64 registers to images and back: on this machine's own registers, and on made-up areas of other CPUs."""

import os
import random
import signal
import struct
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import pytest

from torpor.arch import native
from torpor.arch.base import NT_PRSTATUS, Registers
from torpor.errors import ImageError, Refusal
from torpor.images.schema.core import CoreEntry
from torpor.kernel import ptrace

if os.uname().machine != "x86_64":
    pytest.skip("registers of x86_64", allow_module_level=True)

from torpor.arch import x86_64_core
from torpor.arch.x86_64_core import fill, layout, read
from torpor.kernel.cpuid import Cpu

NT_X86_XSTATE = 0x202
AVX512, PKU, MPX, AMX = 7 << 5, 1 << 9, 3 << 3, 3 << 17


def area(features: int, size: int, in_use: int = 0, seed: int = 1) -> bytes:
    """An XSAVE area of a CPU with these features, its components in use filled with noise."""
    noise = random.Random(seed)
    data = bytearray(size)
    data[:416] = noise.randbytes(416)
    data[5] = 0  # the upper half of the abridged tag word
    struct.pack_into("<II", data, 24, 0x1F80, 0xFFFF)
    struct.pack_into("<Q", data, 464, features)
    struct.pack_into("<Q", data, 512, in_use)
    sizes = {2: 256, 3: 64, 4: 64, 5: 64, 6: 512, 7: 1024, 9: 8}
    for bit, offset in layout(features, size).items():
        if in_use >> bit & 1 and bit in sizes:
            data[offset : offset + sizes[bit]] = noise.randbytes(sizes[bit])
            if bit == 9:  # the register has 32 bits; the kernel gives zeros for the rest
                data[offset + 4 : offset + 8] = bytes(4)
    return bytes(data)


GENERAL = [*range(1, 16), (1 << 64) - 1, 0x401000, 0x33, 0x246, 0x7FFF0000, 0x2B, 0x7F00, 0, 0, 0, 0, 0]

CPUS = {
    "sse": (3, 576),
    "avx": (7, 832),
    "intel avx-512": (7 | AVX512, 2688),
    "intel avx-512 pku": (7 | AVX512 | PKU, 2696),
    "intel pku": (7 | PKU, 2696),
    "intel mpx": (7 | MPX, 1088),
    "intel amx": (7 | AVX512 | PKU | AMX, 11008),
    "amd avx-512": (7 | AVX512, 2432),
    "amd avx-512 pku": (7 | AVX512 | PKU, 2440),
}


def filled(general: Sequence[int], xstate: bytes, clear_child_tid: int) -> CoreEntry:
    """A core with these registers, which can be changed: those that `fill` makes share what they have in common."""
    core = CoreEntry(mtype=1)
    fill(core, general, xstate, clear_child_tid)
    return deepcopy(core)


@pytest.mark.parametrize("name", CPUS)
def test_round_trip(name: str) -> None:
    features, size = CPUS[name]
    in_use = features & ~AMX
    xstate = area(features, size, in_use)
    core = filled(GENERAL, xstate, 0x1234)
    core = CoreEntry.decode(core.encode())
    general, back, clear_child_tid = read(core, area(features, size, seed=2))
    assert general == GENERAL
    assert back == xstate
    assert clear_child_tid == 0x1234


def test_threads_with_the_same_share_it_and_others_do_not() -> None:
    cores = []
    for seed in (1, 2, *range(3, 200), 2, 1):
        core = CoreEntry(mtype=1)
        fill(core, GENERAL, area(*CPUS["avx"], in_use=7, seed=seed), seed)
        cores.append((seed, core))
    for seed, core in cores:
        assert core.encode() == core.encode() == filled(GENERAL, area(*CPUS["avx"], in_use=7, seed=seed), seed).encode()
        assert read(core, area(*CPUS["avx"]))[1] == area(*CPUS["avx"], in_use=7, seed=seed)
    first, last = cores[0][1].thread_info, cores[-1][1].thread_info
    assert first is not None and last is not None and first.fpregs is last.fpregs


def test_other_layout() -> None:
    """Restored on another maker's CPU: the same registers at other offsets."""
    intel, amd = CPUS["intel avx-512 pku"], CPUS["amd avx-512 pku"]
    core = filled(GENERAL, area(*intel, in_use=intel[0]), 0)
    _, back, _ = read(core, area(*amd))
    again = filled(GENERAL, back, 0)
    assert again.thread_info is not None and core.thread_info is not None
    again.thread_info.fpregs.mxcsr_mask = core.thread_info.fpregs.mxcsr_mask
    assert again.encode() == core.encode()


def test_smaller_cpu() -> None:
    """Registers that the CPU lacks may be missing only where they hold nothing."""
    core = filled(GENERAL, area(*CPUS["amd avx-512"], in_use=0xE7), 0)
    with pytest.raises(Refusal, match="AVX-512"):
        read(core, area(*CPUS["avx"]))
    assert core.thread_info is not None and core.thread_info.fpregs.xsave is not None
    extended = core.thread_info.fpregs.xsave
    extended.opmask_reg, extended.zmm_upper, extended.hi16_zmm = [0] * 8, [0] * 64, [0] * 128
    _, back, _ = read(core, area(*CPUS["avx"]))
    assert struct.unpack_from("<Q", back, 512) == (7,)


def test_smaller_cpu_without_protection_keys() -> None:
    """Linux gives every program on a CPU that has them rights to key 0 alone, which is no use of them."""
    core = filled(GENERAL, area(*CPUS["intel pku"], in_use=7 | PKU), 0)
    assert core.thread_info is not None and core.thread_info.fpregs.xsave is not None
    with pytest.raises(Refusal, match="protection keys"):
        read(core, area(*CPUS["avx"]))
    core.thread_info.fpregs.xsave.pkru = [0x55555554, 0]
    _, back, _ = read(core, area(*CPUS["avx"]))
    assert struct.unpack_from("<Q", back, 512) == (7,)


def test_refused() -> None:
    with pytest.raises(Refusal, match="no room"):
        fill(CoreEntry(mtype=1), GENERAL, area(*CPUS["intel amx"], in_use=1 << 18), 0)
    core = CoreEntry(mtype=1)
    with pytest.raises(ImageError):
        read(core, area(*CPUS["avx"]))
    core = filled(GENERAL, area(*CPUS["avx"], in_use=7), 0)
    assert core.thread_info is not None and core.thread_info.fpregs.xsave is not None
    core.thread_info.gpregs.mode = 2
    with pytest.raises(Refusal, match="32-bit"):
        read(core, area(*CPUS["avx"]))
    core.thread_info.gpregs.mode = None
    core.thread_info.fpregs.xsave.ymmh_space = [1] * 100
    with pytest.raises(ImageError):
        read(core, area(*CPUS["avx"]))
    core.thread_info.fpregs.xsave.ymmh_space = [0] * 64
    core.thread_info.fpregs.mxcsr = 1 << 31
    with pytest.raises(Refusal, match="MXCSR"):
        read(core, area(*CPUS["avx"]))


@pytest.fixture
def stopped() -> Iterator[int]:
    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    try:
        while not Path(f"/proc/{pid}/syscall").read_text().startswith("34 "):  # until it sleeps in pause
            time.sleep(0.001)
        ptrace.seize(pid, 0)
        ptrace.interrupt(pid)
        os.waitpid(pid, 0x40000000)
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0x40000000)


def test_this_machine(stopped: int) -> None:
    """What the kernel gave goes back into the kernel, and every component lies where CPUID says."""
    xstate = ptrace.get_regset(stopped, NT_X86_XSTATE)
    general = struct.unpack("<27Q", ptrace.get_regset(stopped, NT_PRSTATUS))
    features = struct.unpack_from("<Q", xstate, 464)[0]
    noisy = area(features & ~AMX, len(xstate), features & ~AMX) if not features & AMX else xstate
    core = filled(general, noisy, 0)
    _, back, _ = read(core, xstate)
    ptrace.set_regset(stopped, NT_X86_XSTATE, back)
    got = ptrace.get_regset(stopped, NT_X86_XSTATE)
    again = filled(general, got, 0)
    assert again.thread_info is not None and core.thread_info is not None
    core.thread_info.fpregs.mxcsr_mask = again.thread_info.fpregs.mxcsr_mask
    assert again.encode() == core.encode()


def test_cpuid_agrees(stopped: int) -> None:
    xstate = ptrace.get_regset(stopped, NT_X86_XSTATE)
    features = struct.unpack_from("<Q", xstate, 464)[0]
    try:
        fd = os.open("/dev/cpu/0/cpuid", os.O_RDONLY)
    except OSError as error:
        pytest.skip(f"no cpuid device: {error}")
    try:
        for bit, offset in layout(features, len(xstate)).items():
            assert struct.unpack("<4I", os.pread(fd, 16, 0xD | bit << 32))[1] == offset
    finally:
        os.close(fd)


def test_arch_uses_it(stopped: int) -> None:
    """Through an image and back: in pause, which the image has rewound, and the kernel is to begin again."""
    arch = native()
    from torpor.engine.tracee import Tracee

    tracee = Tracee(stopped, stopped)
    registers = tracee.registers()
    core = CoreEntry(mtype=0)
    arch.to_core(core, registers, 42)
    back, clear_child_tid = arch.from_core(core, registers)
    assert (back.general, clear_child_tid) == (tracee.general, 42)
    assert arch.pc(registers.general) == arch.pc(tracee.general) - 2
    assert len(back.others[NT_X86_XSTATE]) == len(registers.others[NT_X86_XSTATE])


@pytest.mark.parametrize(("call", "ended"), [("poll", True), ("epoll_wait", True), ("read", True), ("connect", False)])
def test_calls_that_have_ended_in_images_of_criu(call: str, ended: bool) -> None:
    """CRIU lets them end with EINTR; the kernel is told to begin them again."""
    arch = native()
    nr, template = arch.SYSCALLS[call], area(*CPUS["avx"], in_use=3)
    registers = list(GENERAL)
    registers[10], registers[15], registers[16] = (1 << 64) - 4, nr, 0x1000
    core = filled(registers, template, 0)
    back, _ = arch.from_core(core, Registers(b"", {NT_X86_XSTATE: template}))
    after = struct.unpack("<27Q", back.general)
    assert (after[10], after[15]) == ((1 << 64) - 514, nr) if ended else ((1 << 64) - 4, (1 << 64) - 1)
    assert after[16] == 0x1000


def test_layout_from_cpuid(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that is in neither table: CPUID says the same as the table does of this one."""
    features = Cpu().extended_state()
    if not features & ~3:
        pytest.skip("this CPU has no extended registers")
    _, size, _, _ = Cpu().leaf(0xD)
    known = layout(features, size)
    monkeypatch.setattr(x86_64_core, "_INTEL", {})
    monkeypatch.setattr(x86_64_core, "_AMD", {})
    monkeypatch.setattr(x86_64_core, "_layouts", {})
    assert layout(features, size) == known
    with pytest.raises(Refusal, match="lie in an order"):
        layout(features, 600)
