# SPDX-License-Identifier: Apache-2.0
"""Which CPU a checkpoint comes from, and whether this one will do: cpuinfo.img and --cpu-cap.

Registers are always checked at restore: a thread that uses components this CPU lacks is refused without any option.
But a program may have looked once, at its start, for an instruction that it will use later.  So `dump --cpu-cap` and
`cpuinfo dump` write down what the CPU has, and `restore --cpu-cap` and `cpuinfo check` compare:

    ins   this CPU has every instruction that the other one had
    fpu   and every component of the extended registers, in an area that is as large
    cpu   both have exactly the same
    all   all of these (--cpu-cap without a value); none: nothing is written or compared; ^ins: all others

Facts, observed on CRIU 4.2.1: x86's 19 words are CPUID's registers in the order of `_WORDS`; four are never filled, and
one holds what Linux makes up, bits 16, 20 and 25 where it was watched.  SSE does not count as a component.  The
maker's name, family and model are written, and never compared.  Without --cpu-cap `cpuinfo check` compares ins and
fpu.  CRIU compares the two together and wants areas of equal size; here one that is larger will do, unless it is so for
components that the C library's lazy binding saves (`surplus`).  On ppc64le and s390x the words are AT_HWCAP and
AT_HWCAP2; CRIU's format has nothing for ARM, whose words are in torpor-cpu.img, which CRIU does not read.
"""

import struct

from torpor.arch import native
from torpor.errors import ImageError, Refusal
from torpor.images import kinds
from torpor.images.schema.cpuinfo import CpuinfoEntry, CpuinfoPpc64Entry, CpuinfoS390Entry, CpuinfoX86Entry
from torpor.images.schema.torpor_cpu import TorporCpuEntry
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from torpor.images.kinds import ImageKind
    from torpor.kernel.cpuid import Cpu
    from torpor.options import Options
    from torpor.resources.context import Dump, Restore

FPU, CPU, INS = 1, 2, 4
_CAPS = {"fpu": FPU, "cpu": CPU, "ins": INS, "all": FPU | CPU | INS, "none": 0}
EAX, EBX, ECX, EDX = range(4)
# Word: leaf, subleaf, register.
_WORDS = {
    0: (1, 0, EDX), 1: (0x80000001, 0, EDX), 4: (1, 0, ECX), 6: (0x80000001, 0, ECX), 9: (7, 0, EBX),
    10: (0xD, 1, EAX), 11: (7, 0, ECX), 12: (0xF, 1, EDX), 13: (0x80000008, 0, EBX), 14: (6, 0, EAX),
    15: (0x8000000A, 0, EDX), 17: (0x80000007, 0, EBX), 18: (7, 0, EDX),
}  # fmt: skip
_NUMBER_OF_WORDS, _VERSION = 19, 2
_MADE_UP, _MADE_UP_BITS = 3, 1 << 16 | 1 << 20 | 1 << 25
_SSE = 2
_BOUND_WITH = 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 19  # AVX, MPX bounds, AVX-512, APX
_VENDORS = {b"GenuineIntel": 1, b"AuthenticAMD": 2}
# Instructions that programs may use, by word and bit; names as in /proc/cpuinfo.
_INSTRUCTIONS = {
    0: "4 tsc 8 cx8 15 cmov 19 clflush 23 mmx 25 sse 26 sse2",
    1: "11 syscall 22 mmxext 27 rdtscp 29 lm 30 3dnowext 31 3dnow",
    4: "0 pni 1 pclmulqdq 9 ssse3 12 fma 13 cx16 19 sse4_1 20 sse4_2 22 movbe 23 popcnt 25 aes 28 avx 29 f16c "
    "30 rdrand",
    6: "0 lahf_lm 5 abm 6 sse4a 7 misalignsse 8 3dnowprefetch 11 xop 15 lwp 16 fma4 21 tbm 29 mwaitx",
    9: "0 fsgsbase 3 bmi1 4 hle 5 avx2 8 bmi2 11 rtm 16 avx512f 17 avx512dq 18 rdseed 19 adx 21 avx512ifma "
    "23 clflushopt 24 clwb 26 avx512pf 27 avx512er 28 avx512cd 29 sha_ni 30 avx512bw 31 avx512vl",
    11: "0 prefetchwt1 1 avx512vbmi 4 ospke 5 waitpkg 6 avx512_vbmi2 8 gfni 9 vaes 10 vpclmulqdq 11 avx512_vnni "
    "12 avx512_bitalg 14 avx512_vpopcntdq 22 rdpid 25 cldemote 27 movdiri 28 movdir64b 29 enqcmd",
    13: "0 clzero",
    18: "2 avx512_4vnniw 3 avx512_4fmaps 8 avx512_vp2intersect 14 serialize 16 tsxldtrk 22 amx_bf16 23 avx512_fp16 "
    "24 amx_tile 25 amx_int8",
}  # fmt: skip
_FPU = {0: "0 fpu 24 fxsr", 4: "26 xsave 27 osxsave", 10: "0 xsaveopt 1 xsavec 2 xgetbv1"}
_HWCAPS = 16, 26, 29, 30  # AT_HWCAP, AT_HWCAP2, AT_HWCAP3, AT_HWCAP4
_ARM = ("aarch64", "armv7l")


def chosen(options: "Options", default: int = 0) -> int:
    """FPU, CPU and INS, as --cpu-cap asks; `default` where it is not given."""
    words = [one for word in options.cpu_cap for one in word.split(",")]
    if not words:
        return default
    caps = _CAPS["all"] if words[0].startswith("^") else 0
    for one in words:
        name = one.removeprefix("^")
        caps = caps & ~_CAPS[name] if one != name else caps | _CAPS[name]
    return caps


# -- what this CPU has ------------------------------------------------------------------------------------------------


def kind() -> "ImageKind[Any]":
    """The image that tells of CPUs of this architecture."""
    return kinds.TORPOR_CPU if native().name in _ARM else kinds.CPUINFO


def record() -> CpuinfoEntry | TorporCpuEntry:
    """This CPU, as in its image.  Raises KernelError."""
    name = native().name
    if name in _ARM:
        return TorporCpuEntry(machine=name, hwcap=hwcaps())
    if name == "x86_64":
        from torpor.kernel.cpuid import Cpu

        return CpuinfoEntry(x86_entry=[_x86(Cpu())])
    if name == "ppc64le":
        return CpuinfoEntry(ppc64_entry=[CpuinfoPpc64Entry(endian=1, hwcap=hwcaps()[:2])])
    return CpuinfoEntry(s390_entry=[CpuinfoS390Entry(hwcap=hwcaps()[:2])])


def _x86(cpu: "Cpu") -> CpuinfoX86Entry:
    _, b, c, d = cpu.leaf(0)
    a = cpu.leaf(1)[EAX]
    family, model = a >> 8 & 15, a >> 4 & 15
    if family in (6, 15):
        model |= (a >> 16 & 15) << 4
    if family == 15:
        family += a >> 20 & 255
    words = [0] * _NUMBER_OF_WORDS
    for number, (leaf, sub, register) in _WORDS.items():
        words[number] = cpu.leaf(leaf, sub)[register]
    words[_MADE_UP] = _MADE_UP_BITS
    entry = CpuinfoX86Entry(
        vendor_id=_VENDORS.get(struct.pack("<3I", b, d, c), 0),
        cpu_family=family,
        model=model,
        stepping=a & 15,
        capability_ver=_VERSION,
        capability=words,
    )
    name = b"".join(struct.pack("<4I", *cpu.leaf(leaf)) for leaf in (0x80000002, 0x80000003, 0x80000004))
    entry.model_id = name.split(b"\0")[0].strip().decode("ascii", "replace") or None
    components = cpu.extended_state()
    if components:
        _, entry.xsave_size, entry.xsave_size_max, _ = cpu.leaf(0xD)
        entry.xfeatures_mask = components & ~_SSE
    return entry


def hwcaps() -> list[int]:
    from torpor.kernel.proc import parse_auxv

    with open("/proc/self/auxv", "rb") as file:
        vector = dict(parse_auxv(file.read()))
    return [vector.get(word, 0) for word in _HWCAPS]


# -- comparing --------------------------------------------------------------------------------------------------------


def _foreign(image: str) -> Refusal:
    return Refusal(
        image, "it is of another architecture than this machine's",
        "restore on a machine like the one that it comes from", code="foreign-architecture",
    )  # fmt: skip


def lacking(theirs: CpuinfoEntry | TorporCpuEntry, ours: CpuinfoEntry | TorporCpuEntry, caps: int) -> list[str]:
    """Why the CPU `ours` will not do for a checkpoint from `theirs`, in words; empty: it will.  Raises ImageError,
    Refusal (of another architecture)."""
    if isinstance(ours, TorporCpuEntry) or isinstance(theirs, TorporCpuEntry):
        if not (
            isinstance(ours, TorporCpuEntry) and isinstance(theirs, TorporCpuEntry) and ours.machine == theirs.machine
        ):
            raise _foreign("torpor-cpu.img")
        return _hwcaps_lacking(ours.machine, theirs.hwcap, ours.hwcap, caps)
    for one, other in (
        (theirs.x86_entry, ours.x86_entry),
        (theirs.ppc64_entry, ours.ppc64_entry),
        (theirs.s390_entry, ours.s390_entry),
    ):
        if other and not one and (theirs.x86_entry or theirs.ppc64_entry or theirs.s390_entry):
            raise _foreign("cpuinfo.img")
        if other and len(one) != 1:
            raise ImageError("cpuinfo.img is mangled", f"it describes {len(one)} CPUs")
    if ours.x86_entry:
        return _x86_lacking(theirs.x86_entry[0], ours.x86_entry[0], caps)
    if ours.ppc64_entry:
        if theirs.ppc64_entry[0].endian != ours.ppc64_entry[0].endian:
            raise Refusal("cpuinfo.img", "it is of a big-endian machine", code="foreign-architecture")
        return _hwcaps_lacking("ppc64le", theirs.ppc64_entry[0].hwcap, ours.ppc64_entry[0].hwcap, caps)
    return _hwcaps_lacking("s390x", theirs.s390_entry[0].hwcap, ours.s390_entry[0].hwcap, caps)


def _named(table: dict[int, str], theirs: list[int], ours: list[int]) -> list[str]:
    found = []
    for word, text in table.items():
        fields = text.split()
        for bit, name in zip(fields[::2], fields[1::2], strict=True):
            if theirs[word] & ~ours[word] & 1 << int(bit):
                found.append(name)
    return found


def _x86_lacking(theirs: CpuinfoX86Entry, ours: CpuinfoX86Entry, caps: int) -> list[str]:
    if theirs.capability_ver != _VERSION or len(theirs.capability) != _NUMBER_OF_WORDS:
        raise ImageError(
            "cpuinfo.img is of a kind that Torpor does not know",
            f"version {theirs.capability_ver}, {len(theirs.capability)} words",
            "say --cpu-cap=none to go on without it",
        )
    found = []
    if caps & INS:
        found += [f"{name} instructions" for name in _named(_INSTRUCTIONS, theirs.capability, ours.capability)]
    if caps & FPU:
        found += _named(_FPU, theirs.capability, ours.capability)
        more = (theirs.xfeatures_mask or 0) & ~(ours.xfeatures_mask or 0)
        found += [f"component {bit} of the extended registers" for bit in range(64) if more >> bit & 1]
        if (theirs.xsave_size or 0) > (ours.xsave_size or 0):
            found.append(f"room for {theirs.xsave_size} bytes of extended registers")
    if caps & CPU and not found:
        words = [n for n in range(_NUMBER_OF_WORDS) if n != _MADE_UP and theirs.capability[n] != ours.capability[n]]
        found += [f"the same word {n} ({theirs.capability[n]:#x}, here {ours.capability[n]:#x})" for n in words]
        for name in ("xfeatures_mask", "xsave_size", "xsave_size_max"):
            if getattr(theirs, name) != getattr(ours, name):
                found.append(f"the same {name} ({getattr(theirs, name)}, here {getattr(ours, name)})")
    return found


def _hwcaps_lacking(arch: str, theirs: list[int], ours: list[int], caps: int) -> list[str]:
    found = []
    width = max(len(theirs), len(ours))
    pairs = zip([*theirs, *[0] * (width - len(theirs))], [*ours, *[0] * (width - len(ours))], strict=True)
    for number, (their, our) in enumerate(pairs):
        name = "AT_HWCAP" + ("" if number == 0 else str(number + 1))
        if caps & (INS | FPU) and their & ~our:
            from torpor.cpu_names import names

            found += [f"the feature {one}" for one in names(arch, number, their & ~our)]
        elif caps & CPU and their != our:
            found.append(f"the same {name} ({their:#x}, here {our:#x})")
    return found


def surplus(theirs: CpuinfoX86Entry, ours: CpuinfoX86Entry) -> list[int]:
    """Components of extended registers that only our CPU has, and that will not do.

    glibc binds a function at its first call, and saves these registers around that (_dl_runtime_resolve_xsave) into as
    much stack as the CPU needed at the program's start.  On a CPU that has more of them it would overwrite what lies
    above, the address to return to among it.  Seen with glibc 2.36, from AVX to AVX and MPX.  Where there was no XSAVE
    it uses FXSAVE, which saves the same everywhere.
    """
    if not theirs.xfeatures_mask:
        return []
    more = (ours.xfeatures_mask or 0) & ~theirs.xfeatures_mask & _BOUND_WITH
    return [bit for bit in range(64) if more >> bit & 1]


# -- in a dump and a restore ------------------------------------------------------------------------------------------


def save(dump: "Dump") -> None:
    if chosen(dump.options):
        dump.images.write(kind(), [record()])


def check(restore: "Restore") -> None:
    """What --cpu-cap asks for at restore.  Raises ImageError, Refusal, KernelError."""
    caps = chosen(restore.options)
    if not caps:
        return
    theirs = restore.images.find(kind())
    if theirs is None:
        if caps == FPU:
            return  # the registers themselves are in the images
        raise ImageError(
            f"{kind().file_name()} is missing", "the dump was made without --cpu-cap",
            "say --cpu-cap here only where it was said there", code="missing-image",
        )  # fmt: skip
    for problem in problems(theirs, caps):
        restore.problem(problem)


def problems(theirs: CpuinfoEntry | TorporCpuEntry, caps: int) -> list[Refusal]:
    ours = record()
    missing = lacking(theirs, ours, caps)
    remedy = "restore on a CPU that has them, or say --cpu-cap=none if the programs use none of them"
    shown = ", ".join(missing[:20]) + (f" and {len(missing) - 20} more" if len(missing) > 20 else "")
    found = [Refusal("this CPU", f"it lacks {shown}", remedy, code="cpu-feature")] if missing else []
    if caps & FPU and isinstance(theirs, CpuinfoEntry) and isinstance(ours, CpuinfoEntry) and ours.x86_entry:
        more = ", ".join(map(str, surplus(theirs.x86_entry[0], ours.x86_entry[0])))
        if more:
            found.append(Refusal(
                "this CPU", f"its extended registers have components that the other's had not ({more}), for which "
                "the C library left no room where it saves them while it binds a function at its first call",
                "restore on a CPU with the same components; if the programs bind all at their start (LD_BIND_NOW, "
                "-z now, static), say --cpu-cap=ins", code="cpu-feature",
            ))  # fmt: skip
    return found
