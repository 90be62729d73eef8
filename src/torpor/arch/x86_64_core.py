# SPDX-License-Identifier: Apache-2.0
"""Registers of x86_64 threads as images have them: thread_info_x86.

ptrace gives and takes the extended registers in XSAVE's *standard* format: FXSAVE's 512 bytes, a header of 64 with
XSTATE_BV, then the components, each at an offset that CPUID leaf 0xD tells.  Offsets differ between CPUs: AMD's have no
room for MPX, which AMD never had, so AVX-512 and PKRU begin elsewhere than Intel's.  CPUID costs a page to run it from,
but the kernel leaves XCR0 in the area (bytes 464 to 471) and the size of the whole says the rest: there are two layouts
in the world, and they never agree in size once they differ.  Of a CPU that fits neither, CPUID tells it.

A component whose bit in XSTATE_BV is clear is in its initial state; the kernel gives zeros for it then.  CRIU writes
every component that the CPU has, an empty CET, and three unused TLS slots.
"""

import struct

from torpor.errors import ImageError, KernelError, Refusal
from torpor.images.frozen import freeze
from torpor.images.schema.core_x86 import (
    ThreadInfoX86,
    UserDescT,
    UserX86CetEntry,
    UserX86FpregsEntry,
    UserX86RegsEntry,
    UserX86XsaveEntry,
)
from torpor.typed import TYPE_CHECKING, Sequence

if TYPE_CHECKING:
    from torpor.images.schema.core import CoreEntry

_FEATURES, _XSTATE_BV, _EXTENDED = 464, 512, 576  # offsets in an XSAVE area
_ALWAYS = 3  # x87 and SSE lie in FXSAVE's part
_LEGACY = struct.Struct("<4H2Q2I32I64I")  # cwd swd twd fop, rip rdp, mxcsr mxcsr_mask, st_space, xmm_space
_FIRST_TLS = 12

# XCR0 bit: size, field of user_x86_xsave_entry, struct code of that field.  Linux dropped MPX (3, 4) in 5.6.
COMPONENTS = {
    2: (256, "ymmh_space", "<64I"),
    3: (64, "bndreg_state", "<8Q"),
    4: (64, "bndcsr_state", "<8Q"),
    5: (64, "opmask_reg", "<8Q"),
    6: (512, "zmm_upper", "<64Q"),
    7: (1024, "hi16_zmm", "<128Q"),
    9: (8, "pkru", "<2I"),
    17: (64, "", ""),  # AMX: images have no room for it
    18: (8192, "", ""),
}
_PKRU, _PKRU_AT_FIRST = 9, 0x55555554  # what Linux gives every program; areas with keys are refused at dump
_WRITTEN = {4: 16, 9: 4}  # bytes of the component that the CPU writes, where it leaves some alone
_NAMES = {2: "AVX", 3: "MPX", 4: "MPX", 5: "AVX-512", 6: "AVX-512", 7: "AVX-512", 9: "protection keys",
          17: "AMX", 18: "AMX"}  # fmt: skip
_INTEL = {2: 576, 3: 960, 4: 1024, 5: 1088, 6: 1152, 7: 1664, 9: 2688, 17: 2752, 18: 2816}
_AMD = {2: 576, 5: 832, 6: 896, 7: 1408, 9: 2432}
_layouts: dict[tuple[int, int], dict[int, int]] = {}

_REGISTERS = (
    "r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si", "di", "orig_ax", "ip",
    "cs", "flags", "sp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
)  # fmt: skip
_USER_CS, _USER_SS = 0x33, 0x2B


def layout(features: int, size: int) -> dict[int, int]:
    """Offsets of the components in `features` (XCR0) in an area of `size` bytes, by bit.  Raises Refusal."""
    key = features, size
    if key not in _layouts:
        _layouts[key] = _find_layout(features, size)
    return _layouts[key]


def _find_layout(features: int, size: int) -> dict[int, int]:
    wanted = [bit for bit in range(2, 64) if features >> bit & 1]
    if not wanted:
        return {}
    for offsets in (_INTEL, _AMD):
        if all(bit in offsets for bit in wanted) and offsets[wanted[-1]] + COMPONENTS[wanted[-1]][0] == size:
            return {bit: offsets[bit] for bit in wanted}
    return _ask_cpuid(wanted, size)


def _ask_cpuid(wanted: Sequence[int], size: int) -> dict[int, int]:
    from torpor.kernel.cpuid import Cpu

    found = {}
    try:
        cpu = Cpu()
        for bit in wanted:
            length, offset, _, _ = cpu.leaf(0xD, bit)
            if not length or (bit in COMPONENTS and length != COMPONENTS[bit][0]) or offset + length > size:
                raise ValueError(bit)
            found[bit] = offset
    except (KernelError, ValueError):
        raise Refusal(
            "this machine's CPU",
            f"its extended registers ({size} bytes, components {', '.join(map(str, wanted))}) lie in an order that "
            "Torpor does not know",
            "load the cpuid module (modprobe cpuid), if memory may not be executed here",
            code="unknown-cpu",
        ) from None
    return found


def fill(core: "CoreEntry", general: Sequence[int], xstate: bytes, clear_child_tid: int) -> None:
    """Put a thread's registers into core.thread_info.  Raises Refusal for state that images cannot hold."""
    registers = UserX86RegsEntry(**dict(zip(_REGISTERS, general, strict=True)), mode=1)  # NATIVE
    floating = _floating.get(xstate)
    if floating is None:
        floating = _save_floating(xstate)
        freeze(floating)
        if len(_floating) < _DIFFERENT:
            _floating[xstate] = floating
    if not _no_tls:
        _no_tls.extend(map(_unused, range(3)))
    core.thread_info = ThreadInfoX86(
        clear_tid_addr=clear_child_tid, gpregs=registers, fpregs=floating, tls=list(_no_tls)
    )


_DIFFERENT = 64  # Those that wait have mostly the same.
_floating: dict[bytes, UserX86FpregsEntry] = {}  # by XSAVE area
_no_tls: list[UserDescT] = []


def _save_floating(xstate: bytes) -> UserX86FpregsEntry:
    legacy = _LEGACY.unpack_from(xstate)
    names = ("cwd", "swd", "twd", "fop", "rip", "rdp", "mxcsr", "mxcsr_mask")
    floating = UserX86FpregsEntry(
        **dict(zip(names, legacy, strict=False)), st_space=list(legacy[8:40]), xmm_space=list(legacy[40:104])
    )
    if len(xstate) >= _EXTENDED:
        floating.xsave = _save_extended(xstate)
    return floating


def _save_extended(xstate: bytes) -> UserX86XsaveEntry:
    (features,) = struct.unpack_from("<Q", xstate, _FEATURES)
    (in_use,) = struct.unpack_from("<Q", xstate, _XSTATE_BV)
    offsets = layout(features, len(xstate))
    extended = UserX86XsaveEntry(xstate_bv=in_use, cet=UserX86CetEntry(cet=0, ssp=0))
    for bit, offset in offsets.items():
        _, field, code = COMPONENTS.get(bit, (0, "", ""))
        if field:
            setattr(extended, field, list(struct.unpack_from(code, xstate, offset)))
        elif in_use >> bit & 1:
            raise Refusal(
                "a thread",
                f"it holds registers that images have no room for ({name(bit)})",
                "dump it when the computation has ended",
            )
    return extended


def _unused(number: int) -> UserDescT:
    slot = UserDescT(
        entry_number=_FIRST_TLS + number, base_addr=0, limit=0, seg_32bit=False, contents_h=False, contents_l=False,
        read_exec_only=True, limit_in_pages=False, seg_not_present=True, usable=False,
    )  # fmt: skip
    freeze(slot)
    return slot


def name(bit: int) -> str:
    return _NAMES.get(bit, f"component {bit}")


def is_initial(bit: int, data: bytes) -> bool:
    """Whether a component holds no more than what every program begins with."""
    data = data[: _WRITTEN.get(bit, len(data))]
    return not any(data) or (bit == _PKRU and data == struct.pack("<I", _PKRU_AT_FIRST))


def read(core: "CoreEntry", template: bytes) -> tuple[list[int], bytes, int]:
    """General registers, XSAVE area and clear_child_tid of an image's core, for the CPU that made `template`.

    Raises ImageError (mangled), Refusal (of another kind of machine; this CPU lacks what the thread uses).
    """
    info = core.thread_info
    if info is None:
        raise ImageError("a core image has no registers of x86_64", code="foreign-image")
    registers = info.gpregs
    if (registers.mode or 1) != 1 or registers.cs != _USER_CS or registers.ss not in (_USER_SS, 0):
        raise Refusal("a thread in these images", "it runs 32-bit code, which Torpor does not restore yet")
    if any(not (slot.seg_not_present and slot.read_exec_only) or slot.base_addr or slot.limit for slot in info.tls):
        raise Refusal("a thread in these images", "it uses TLS segments, which Torpor does not restore")
    general = [getattr(registers, name) for name in _REGISTERS]
    return general, _make_area(info.fpregs, template), info.clear_tid_addr


def _make_area(floating: UserX86FpregsEntry, template: bytes) -> bytes:
    area = bytearray(len(template))
    area[_FEATURES:512] = template[_FEATURES:512]
    (mask,) = struct.unpack_from("<I", template, 28)
    if floating.mxcsr & ~(mask or 0xFFBF):
        raise Refusal("a thread in these images", f"its MXCSR {floating.mxcsr:#x} does not exist on this CPU")
    try:
        _LEGACY.pack_into(
            area, 0, floating.cwd, floating.swd, floating.twd, floating.fop, floating.rip, floating.rdp,
            floating.mxcsr, mask, *floating.st_space, *floating.xmm_space,
        )  # fmt: skip
    except struct.error:
        raise ImageError("a core image is mangled", "its floating point registers make no sense") from None
    if len(area) < _EXTENDED:
        if floating.xsave is not None and any(_parts(floating.xsave)):
            raise Refusal(
                "a thread in these images", "it uses AVX, which this CPU does not have",
                "restore it on a CPU that has it", code="cpu-feature",
            )  # fmt: skip
        return bytes(area)
    in_use = floating.xsave.xstate_bv if floating.xsave is not None else _ALWAYS
    if floating.xsave is not None:
        if floating.xsave.cet is not None and floating.xsave.cet.cet:
            raise Refusal("a thread in these images", "it has a shadow stack, which Torpor does not restore yet")
        in_use = _load_extended(floating.xsave, area, template)
    struct.pack_into("<Q", area, _XSTATE_BV, in_use)
    return bytes(area)


def _parts(extended: UserX86XsaveEntry) -> list[bool]:
    """Whether each component that is in use holds anything."""
    return [
        bool(extended.xstate_bv >> bit & 1) and any(getattr(extended, field))
        for bit, (_, field, _) in COMPONENTS.items()
        if field
    ]


def _load_extended(extended: UserX86XsaveEntry, area: bytearray, template: bytes) -> int:
    """Put the components into `area`; returns XSTATE_BV for this CPU."""
    (features,) = struct.unpack_from("<Q", template, _FEATURES)
    offsets = layout(features, len(template))
    in_use = extended.xstate_bv
    for bit in range(2, 64):
        if not in_use >> bit & 1:
            continue
        size, field, code = COMPONENTS.get(bit, (0, "", ""))
        if not field:
            raise Refusal("a thread in these images", f"it uses {name(bit)}, which Torpor does not restore")
        values = getattr(extended, field)
        if bit in offsets:
            data = b""
            try:
                data = struct.pack(f"<{len(values)}{code[-1]}", *values)
            except struct.error:
                pass
            if not 0 < len(data) <= size:
                raise ImageError("a core image is mangled", f"its registers of {name(bit)} make no sense")
            area[offsets[bit] : offsets[bit] + len(data)] = data
        elif any(values) and not (bit == _PKRU and values[0] == _PKRU_AT_FIRST):
            raise Refusal(
                "a thread in these images", f"it uses {name(bit)}, which this CPU does not have",
                "restore it on a CPU that has it", code="cpu-feature",
            )  # fmt: skip
        else:
            in_use &= ~(1 << bit)
    return in_use
