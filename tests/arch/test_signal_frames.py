# SPDX-License-Identifier: Apache-2.0
"""Signal frames of another kernel or CPU, found and made good: bytes as the kernels write them, on any machine; and one
that this kernel really writes."""

import random
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from torpor.arch import native
from torpor.arch.aarch64 import ARCH as AARCH64
from torpor.arch.aarch64 import NT_ARM_SVE, NT_ARM_ZA
from torpor.arch.arm import ARCH as ARM
from torpor.arch.base import Arch, CannotReturn, Frame, Registers
from torpor.arch.ppc64le import ARCH as PPC64LE
from torpor.arch.s390x import ARCH as S390X
from torpor.arch.x86_64 import ARCH as X86_64
from torpor.engine import own_frame
from torpor.images.schema.core_x86 import UserX86XsaveEntry

BASE = 0x7FFF0000
SP, PC = 0x7FFF8000, 0x401234


def found(arch: Arch, frame: bytes, at: int = 0x400) -> list[Frame]:
    """What is found in a stack that has this frame at this place, among other things."""
    stack = bytearray(random.Random(1).randbytes(at)) + frame + random.Random(2).randbytes(0x400)

    def read(address: int, length: int) -> bytes:
        return bytes(stack[address - BASE :][:length]).ljust(length, b"\0")

    return list(arch.signal_frames(bytes(stack), BASE, read))


def mended(arch: Arch, frame: Frame, own: Frame) -> dict[int, bytes]:
    """By offset from what the frame is about."""
    return {address - frame.at: data for address, data in arch.mended_frame(frame, own)}


def changed(frame: Frame, length: int, writes: dict[int, bytes]) -> bytes:
    data = bytearray(frame.memory(frame.at, length))
    for at, new in writes.items():
        data[at : at + len(new)] = new
    return bytes(data)


# -- x86_64 -----------------------------------------------------------------------------------------------------------
ADDRESS = BASE + 0x438  # so that the area is at a multiple of 64
AVX, PKU, AVX_512 = 1 << 2, 1 << 9, 7 << 5


def x86(features: int, size: int, in_use: int, **components: tuple[int, bytes]) -> bytes:
    """struct rt_sigframe with an XSAVE area."""
    area = bytearray(random.Random(3).randbytes(464)) + bytes(size - 464)
    struct.pack_into("<IIQI", area, 464, 0x46505853, size + 4, features, size)
    struct.pack_into("<Q", area, 512, in_use)
    for at, data in components.values():
        area[at : at + len(data)] = data
    head = bytearray(456)
    struct.pack_into("<2Q", head, 168, SP, PC)
    struct.pack_into("<4H", head, 192, 0x33, 0, 0, 0x2B)
    struct.pack_into("<Q", head, 232, ADDRESS + 456)
    return bytes(head) + bytes(area) + struct.pack("<I", 0x46505845)


def x86_frame(features: int, size: int, in_use: int = 3, **components: tuple[int, bytes]) -> Frame:
    (frame,) = found(X86_64, x86(features, size, in_use, **components), ADDRESS - BASE)
    assert (frame.at, frame.pc, frame.sp) == (ADDRESS + 456, PC, SP)
    return frame


YMM = bytes(range(256))
PKRU = struct.pack("<I", 0x55555554)
LARGE, SMALL, NONE = (3 | AVX | AVX_512 | PKU, 2696), (3 | AVX, 832), (3, 576)


def test_x86_a_frame_with_room_for_more_keeps_what_this_cpu_has() -> None:
    frame = x86_frame(*LARGE, 3 | AVX | PKU, ymm=(576, YMM), pkru=(2688, PKRU))
    data = changed(frame, 2700, mended(X86_64, frame, x86_frame(*SMALL)))
    assert struct.unpack_from("<IIQI", data, 464) == (0x46505853, 836, 3 | AVX, 832)
    assert struct.unpack_from("<Q", data, 512) == (3 | AVX,)
    assert (data[:464], data[576:832]) == (frame.memory(frame.at, 464), YMM)
    assert data[832:836] == struct.pack("<I", 0x46505845)


def test_x86_what_this_cpu_lacks_is_dropped_only_while_it_is_unused() -> None:
    own = x86_frame(*NONE)
    for in_use, ymm in ((3, YMM), (3 | AVX, bytes(256))):
        frame = x86_frame(*LARGE, in_use, ymm=(576, ymm))
        data = changed(frame, 2700, mended(X86_64, frame, own))
        assert struct.unpack_from("<IIQI", data, 464) == (0x46505853, 580, 3, 576)
        assert struct.unpack_from("<Q", data, 512) == (3,)
    for part, what in ((YMM, "AVX"), (bytes(255) + b"\1", "AVX")):
        with pytest.raises(CannotReturn, match=what):
            mended(X86_64, x86_frame(*LARGE, 3 | AVX, ymm=(576, part)), own)
    with pytest.raises(CannotReturn, match="protection keys"):
        mended(X86_64, x86_frame(*LARGE, 3 | PKU, pkru=(2688, b"\1\0\0\0")), own)


def test_x86_frames_that_the_kernel_takes_stay() -> None:
    for theirs in (LARGE, SMALL, NONE):
        frame = x86_frame(*theirs, 3 | (theirs[0] & AVX), ymm=(576, YMM if theirs[0] & AVX else b""))
        assert mended(X86_64, frame, x86_frame(*LARGE)) == {}
        assert mended(X86_64, frame, x86_frame(*theirs)) == {}


def test_x86_amds_order_is_not_intels() -> None:
    """AVX-512 of an Intel goes where an AMD has it."""
    amd = (3 | AVX | AVX_512 | PKU, 2440)
    frame = x86_frame(
        *LARGE, 3 | AVX_512, opmask=(1088, b"\7" * 64), low=(1152, b"\6" * 512), high=(1664, b"\5" * 1024)
    )
    data = changed(frame, 2700, mended(X86_64, frame, x86_frame(*amd)))
    assert data[832:2432] == b"\7" * 64 + b"\6" * 512 + b"\5" * 1024
    assert struct.unpack_from("<IIQI", data, 464) == (0x46505853, 2444, amd[0], 2440)
    back = x86_frame(*amd, 3 | AVX_512, opmask=(832, b"\7" * 64), low=(896, b"\6" * 512), high=(1408, b"\5" * 1024))
    with pytest.raises(CannotReturn, match="AVX-512"):  # there is no room
        mended(X86_64, back, x86_frame(*LARGE))


def test_x86_what_is_no_frame() -> None:
    good = x86(*SMALL, 3)
    assert not found(X86_64, good, ADDRESS - BASE + 64)  # a copy
    assert not found(X86_64, good[:192] + bytes(8) + good[200:], ADDRESS - BASE)
    assert not found(X86_64, good[100:], 0)


# -- aarch64 ----------------------------------------------------------------------------------------------------------
FPSIMD, ESR, SVE, ZA, ZT = 0x46508001, 0x45535201, 0x53564501, 0x54366345, 0x5A544E01
TPIDR2, EXTRA = 0x54504902, 0x45585401


def record(magic: int, content: bytes = bytes(8)) -> bytes:
    return struct.pack("<II", magic, 8 + len(content)) + content


def vectors(magic: int, length: int, payload: int = 0, flags: int = 0) -> bytes:
    return record(magic, struct.pack("<HH4x", length, flags) + b"\x55" * payload)


def aarch64(*more: bytes, state: int = 0x60000000) -> bytes:
    head = bytearray(592)
    struct.pack_into("<3Q", head, 560, SP, PC, state)
    return bytes(head) + record(FPSIMD, bytes(520)) + b"".join(more) + bytes(16)


def aarch64_frame(*more: bytes) -> Frame:
    (frame,) = found(AARCH64, aarch64(*more))
    assert (frame.at, frame.pc, frame.sp) == (BASE + 0x400 + 592, PC, SP)
    return frame


def records(frame: Frame, writes: dict[int, bytes]) -> list[tuple[int, bytes]]:
    """Magic number and the rest of the records after the first, up to the end of the list."""
    data, at, told = changed(frame, 0x400 + 592, writes), 528, []
    while (size := struct.unpack_from("<II", data, at)[1]) != 0:
        told.append((struct.unpack_from("<I", data, at)[0], data[at + 8 : at + size]))
        at += size
    return told


def test_aarch64_unused_vectors_get_the_length_of_this_cpu() -> None:
    frame = aarch64_frame(vectors(SVE, 256), vectors(ZA, 64))
    own = aarch64_frame(vectors(SVE, 16), vectors(ZA, 32))
    now = records(frame, mended(AARCH64, frame, own))
    assert now == [(SVE, struct.pack("<HHI", 16, 0, 0)), (ZA, struct.pack("<HHI", 32, 0, 0))]
    assert mended(AARCH64, own, own) == {}


def test_aarch64_what_this_cpu_lacks_becomes_what_every_kernel_skips() -> None:
    frame = aarch64_frame(vectors(SVE, 256), record(TPIDR2), vectors(ZA, 64), record(ESR))
    now = records(frame, mended(AARCH64, frame, aarch64_frame()))
    assert [magic for magic, _ in now] == [ESR] * 4


def test_aarch64_registers_in_use_stay_or_are_refused() -> None:
    frame = aarch64_frame(vectors(SVE, 32, 512))
    assert mended(AARCH64, frame, aarch64_frame(vectors(SVE, 32))) == {}
    with pytest.raises(CannotReturn, match="vectors of 32 bytes"):
        mended(AARCH64, frame, aarch64_frame(vectors(SVE, 16)))
    with pytest.raises(CannotReturn, match="SVE"):
        mended(AARCH64, frame, aarch64_frame())
    with pytest.raises(CannotReturn, match="TPIDR2"):
        mended(AARCH64, aarch64_frame(record(TPIDR2, b"\1" * 8)), aarch64_frame(vectors(SVE, 16)))
    with pytest.raises(CannotReturn, match="0x12345678"):
        mended(AARCH64, aarch64_frame(record(0x12345678, b"\1" * 8)), aarch64_frame())
    streaming = aarch64_frame(vectors(SVE, 64, 512, flags=1), vectors(ZA, 64))
    assert mended(AARCH64, streaming, aarch64_frame(vectors(SVE, 16), vectors(ZA, 64))) == {}
    with pytest.raises(CannotReturn, match="ZA"):
        mended(AARCH64, streaming, aarch64_frame(vectors(SVE, 64)))


def test_aarch64_records_in_an_area_of_their_own() -> None:
    behind = BASE + 0x400 + 592 + 528 + 32 + 16
    extra = record(EXTRA, struct.pack("<QI12x", behind, 608))
    frame = aarch64_frame(extra, bytes(16), vectors(SVE, 32, 560), record(TPIDR2, b"\1" * 8))
    assert mended(AARCH64, frame, aarch64_frame(vectors(SVE, 32), record(TPIDR2))) == {}
    with pytest.raises(CannotReturn, match="TPIDR2"):
        mended(AARCH64, frame, aarch64_frame(vectors(SVE, 32)))


def test_aarch64_what_is_no_frame() -> None:
    assert not found(AARCH64, aarch64(), 0x408)  # not aligned
    assert not found(AARCH64, aarch64(state=0x60000010))  # of a 32-bit program
    assert not found(AARCH64, aarch64(record(SVE, bytes(9))))
    assert not found(AARCH64, aarch64()[:-16] + b"\xff" * 16)
    assert not found(AARCH64, aarch64()[16:], 0)


def test_aarch64_own_frames_have_the_threads_vector_lengths() -> None:
    header = struct.pack("<IIHHHH", 560, 8768, 32, 256, 1 | 4, 0)
    lengths = AARCH64.vector_lengths(Registers(b"", {NT_ARM_SVE: header + bytes(544), 2: bytes(528)}))
    assert lengths == {NT_ARM_SVE: struct.pack("<IIHHHH", 16, 8768, 32, 256, 4, 0)}
    assert NT_ARM_ZA not in lengths


# -- the others -------------------------------------------------------------------------------------------------------


def ppc64le(sp: int, pc: int) -> bytes:
    frame = bytearray(1000)
    start = 168 + 64
    struct.pack_into("<Q", frame, start - 8, BASE + 0x400 + start)
    struct.pack_into(
        "<34Q", frame, start, *(sp if n == 1 else pc if n == 32 else n for n in range(33)), 0x800000010280F033
    )
    return bytes(frame)


def s390x(sp: int, pc: int) -> bytes:
    frame = bytearray(336 + 344 + 128 + 512)
    struct.pack_into(">Q", frame, 0, sp)
    struct.pack_into(">18Q", frame, 336, 0x0705200180000000, pc, *range(15), sp)
    return bytes(frame)


def s390x_old(sp: int, pc: int) -> bytes:
    frame = bytearray(176 + 352 + 512)
    struct.pack_into(">Q", frame, 0, sp)
    struct.pack_into(">Q", frame, 168, BASE + 0x400 + 176)
    struct.pack_into(">18Q", frame, 176, 0x0705000180000000, pc, *range(15), sp)
    return bytes(frame)


def arm(sp: int, pc: int) -> bytes:
    general = struct.pack("<18I", *(sp if n == 13 else pc if n == 15 else n for n in range(18)))
    return ARM.signal_frame(Registers(general, {0x400: bytes(range(256)) + bytes(24)}), 0, 0)[0]


@pytest.mark.parametrize(
    "arch,make",
    [(PPC64LE, ppc64le), (S390X, s390x), (S390X, s390x_old), (ARM, arm)],
    ids=lambda x: getattr(x, "name", ""),
)
def test_found(arch: Arch, make: Callable[[int, int], bytes]) -> None:
    (frame,) = found(arch, make(SP, PC))
    assert (frame.pc, frame.sp) == (PC, SP)
    assert not found(arch, make(SP, PC)[8:][:-600], 0)


def test_arm_an_empty_block_goes() -> None:
    """A kernel with CONFIG_IWMMXT writes it, and one without does not take it."""
    without = arm(SP, PC)
    block = struct.pack("<2I", 0xB0D9ED01, 160).ljust(160, b"\xee")
    (good,), (bad,) = found(ARM, without), found(ARM, without[:360] + block + without[360:])
    assert mended(ARM, good, good) == {}
    assert changed(bad, 448, mended(ARM, bad, good)) == without[360:][:288] + bytes(160)


@pytest.mark.parametrize("code", [0xE3A07077, 0xE3A070AD, 0xDF002777, 0xDF0027AD])
def test_arm_a_handler_without_a_way_back_of_its_own(code: int) -> None:
    """The kernel writes that into the frame only where SA_RESTORER is not set."""
    frame = bytearray(arm(SP, PC))
    (own,) = found(ARM, bytes(frame))
    struct.pack_into("<I", frame, 360 + 512, code)
    (kernels,) = found(ARM, bytes(frame))
    assert (ARM.returns_by_kernel(own), ARM.returns_by_kernel(kernels)) == (False, True)


@pytest.mark.parametrize("make,vectors_at", [(s390x, 336 + 472), (s390x_old, 176 + 352)])
def test_s390x_vector_registers_are_refused_where_there_are_none(
    make: Callable[[int, int], bytes], vectors_at: int
) -> None:
    (own,) = found(S390X, s390x(SP, PC))  # without UC_VXRS
    frame = bytearray(make(SP, PC))
    frame[296:304] = struct.pack(">Q", 2) if make is s390x else bytes(8)
    (unused,) = found(S390X, bytes(frame))
    assert mended(S390X, unused, own) == {}
    frame[vectors_at + 383] = 1
    (used,) = found(S390X, bytes(frame))
    with pytest.raises(CannotReturn, match="the vector facility"):
        mended(S390X, used, own)
    if make is s390x:
        assert mended(S390X, used, used) == {}


def test_whether_frames_may_be_refused() -> None:
    """What images tell of the CPU: a thread's registers.  Of a kernel for 32-bit ARM they tell nothing."""
    core: Any = SimpleNamespace()
    block = struct.pack("<2I", 0xB0D9ED01, 160).ljust(160, b"\xee")
    without = arm(SP, PC)
    (plain,), (with_block,) = found(ARM, without), found(ARM, without[:360] + block + without[360:])
    assert ARM.may_refuse(plain, core, {}) and not ARM.may_refuse(with_block, core, {})
    assert AARCH64.may_refuse(aarch64_frame(), core, {NT_ARM_SVE: b""})
    assert AARCH64.may_refuse(aarch64_frame(vectors(SVE, 16)), core, {NT_ARM_ZA: b""})
    assert not AARCH64.may_refuse(aarch64_frame(vectors(SVE, 16)), core, {NT_ARM_SVE: b""})
    own = x86_frame(*SMALL)
    (mask,) = struct.unpack("<I", own.memory(own.at + 28, 4))
    for had, their_mask, refused in (
        ({"ymmh_space"}, mask, False), ({"opmask_reg"}, mask, True), (set(), mask, False), (set(), 0, False),
        (set(), mask ^ 1, True),
    ):  # fmt: skip
        xsave = UserX86XsaveEntry(xstate_bv=0, **{name: [1] for name in had})
        core.thread_info = SimpleNamespace(fpregs=SimpleNamespace(xsave=xsave, mxcsr_mask=their_mask))
        assert X86_64.may_refuse(own, core, {}) is refused


def test_this_kernels_own() -> None:
    """It is recognised, was made in a system call of the C library's, and is good as it is."""
    frame = own_frame.make({})
    assert frame is not None
    areas = [line.split() for line in open("/proc/self/maps") if " r-xp " in line]
    spans = [tuple(int(word, 16) for word in area[0].split("-")) for area in areas]
    assert any(start <= frame.pc < end for start, end in spans)
    assert list(native().mended_frame(frame, frame)) == []
