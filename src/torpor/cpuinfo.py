# SPDX-License-Identifier: Apache-2.0
"""Which CPU a checkpoint comes from, and whether this one will do: cpuinfo.img, torpor-cpu.img and --cpu-cap.

Registers are always checked at restore: a thread that uses components this CPU lacks is refused without any option.
But a program may have looked once, at its start, for an instruction that it will use later.  So `dump --cpu-cap` and
`cpuinfo dump` write down what the CPU has, and `restore --cpu-cap` and `cpuinfo check` compare:

    ins   this CPU has every instruction of those written down that the other one had
    fpu   and every component of the extended registers, in an area that is as large
    cpu   both have exactly the same
    all   all of these (--cpu-cap without a value)
    none  nothing is written or compared; what was said before counts no more
    ^ins  without it; where this is said first, of ins and fpu

Facts, observed on CRIU 4.2.1: x86's 19 words are CPUID's registers in the order of `_WORDS`; four are never filled, and
one holds what Linux makes up, bits 16, 20 and 25 where it was watched.  SSE does not count as a component.  The
maker's name, family and model are written, and never compared.  Without --cpu-cap `cpuinfo check` compares ins and
fpu.  CRIU compares the two together and wants areas of equal size; here one that is larger will do, unless it is so for
components that the C library's lazy binding saves (`surplus`).  On ppc64le and s390x the words are AT_HWCAP and
AT_HWCAP2.  What CRIU's format has no place for (ARM, and what `cpu_features` finds) is in torpor-cpu.img, which CRIU
does not read; its own images come without, and then only the words are compared.
"""

import struct

from torpor.arch import native
from torpor.cpu_compare import CPU, FPU, INS, MADE_UP, VERSION, WORDS, Entry, different, foreign, lacking, surplus
from torpor.errors import ImageError, Refusal
from torpor.images import kinds
from torpor.images.schema.cpuinfo import CpuinfoEntry, CpuinfoPpc64Entry, CpuinfoS390Entry, CpuinfoX86Entry
from torpor.images.schema.torpor_cpu import TorporCpuEntry
from torpor.kernel.cpuid import EAX, EBX, ECX, EDX
from torpor.typed import TYPE_CHECKING, Sequence

if TYPE_CHECKING:
    from typing import Any

    from torpor.images.directory import ImageReader
    from torpor.images.kinds import ImageKind
    from torpor.kernel.cpuid import Cpu
    from torpor.options import Options
    from torpor.resources.context import Dump, Restore

DEFAULT = INS | FPU
_CAPS = {"fpu": FPU, "cpu": CPU, "ins": INS, "all": FPU | CPU | INS}
# Word: leaf, subleaf, register.
_WORDS = {
    0: (1, 0, EDX), 1: (0x80000001, 0, EDX), 4: (1, 0, ECX), 6: (0x80000001, 0, ECX), 9: (7, 0, EBX),
    10: (0xD, 1, EAX), 11: (7, 0, ECX), 12: (0xF, 1, EDX), 13: (0x80000008, 0, EBX), 14: (6, 0, EAX),
    15: (0x8000000A, 0, EDX), 17: (0x80000007, 0, EBX), 18: (7, 0, EDX),
}  # fmt: skip
_MADE_UP_BITS = 1 << 16 | 1 << 20 | 1 << 25
_SSE = 2
_VENDORS = {b"GenuineIntel": 1, b"AuthenticAMD": 2}
_HWCAPS = 16, 26, 29, 30  # AT_HWCAP, AT_HWCAP2, AT_HWCAP3, AT_HWCAP4
_ARM = ("aarch64", "armv7l")


def chosen(options: "Options", default: int = 0) -> int:
    """FPU, CPU and INS, as --cpu-cap asks; `default` where it is not given."""
    words = [one for word in options.cpu_cap for one in word.split(",")]
    if not words:
        return default
    caps = DEFAULT if words[0].startswith("^") else 0
    for one in words:
        name = one.removeprefix("^")
        if name == "none":
            caps = 0 if one == name else caps
        else:
            caps = caps & ~_CAPS[name] if one != name else caps | _CAPS[name]
    return caps


# -- what this CPU has ------------------------------------------------------------------------------------------------


def kind() -> "ImageKind[Any]":
    """The image without which CPUs of this architecture cannot be compared."""
    return kinds.TORPOR_CPU if native().name in _ARM else kinds.CPUINFO


def record() -> list[Entry]:
    """This CPU, as in its images.  Raises KernelError."""
    from torpor.cpu_features import cache_type, features

    name = native().name
    words = hwcaps() if name in _ARM else [0, hwcaps()[1]] if name == "x86_64" else []  # x86's AT_HWCAP is of CPUID
    own = TorporCpuEntry(machine=name, hwcap=words, features=features(), cache_type=cache_type() or None)
    if name in _ARM:
        return [own]
    if name == "x86_64":
        from torpor.kernel.cpuid import Cpu

        return [CpuinfoEntry(x86_entry=[_x86(Cpu())]), own]
    if name == "ppc64le":
        return [CpuinfoEntry(ppc64_entry=[CpuinfoPpc64Entry(endian=1, hwcap=hwcaps()[:2])]), own]
    return [CpuinfoEntry(s390_entry=[CpuinfoS390Entry(hwcap=hwcaps()[:2])]), own]


def image_of(entry: Entry) -> "ImageKind[Any]":
    return kinds.TORPOR_CPU if isinstance(entry, TorporCpuEntry) else kinds.CPUINFO


def _x86(cpu: "Cpu") -> CpuinfoX86Entry:
    _, b, c, d = cpu.leaf(0)
    a = cpu.leaf(1)[EAX]
    family, model = a >> 8 & 15, a >> 4 & 15
    if family in (6, 15):
        model |= (a >> 16 & 15) << 4
    if family == 15:
        family += a >> 20 & 255
    words = [0] * WORDS
    for number, (leaf, sub, register) in _WORDS.items():
        words[number] = cpu.leaf(leaf, sub)[register]
    words[MADE_UP] = _MADE_UP_BITS
    entry = CpuinfoX86Entry(
        vendor_id=_VENDORS.get(struct.pack("<3I", b, d, c), 0),
        cpu_family=family,
        model=model,
        stepping=a & 15,
        capability_ver=VERSION,
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


# -- in a dump and a restore ------------------------------------------------------------------------------------------


def save(dump: "Dump") -> None:
    """What --cpu-cap asks for.  Without it, what is written down in this directory already, by hand or by an earlier
    dump, which may have been on another CPU, is written anew: it is to be of the CPU that this checkpoint is from."""
    if chosen(dump.options) or not dump.options.cpu_cap:
        for entry in record():
            dump.images.write(image_of(entry), [entry])
    else:
        dump.images.remove(kinds.CPUINFO)
        dump.images.remove(kinds.TORPOR_CPU)


def read(images: "ImageReader") -> list[Entry]:
    """What is written down of the CPU that images come from; nothing: not enough.  Raises ImageError, Refusal."""
    criu, own = images.find(kinds.CPUINFO), images.find(kinds.TORPOR_CPU)
    if own is not None and own.machine != native().name:
        raise foreign("torpor-cpu.img", own.machine)
    if native().name in _ARM:
        if own is None and criu is not None:
            raise foreign("cpuinfo.img")
        return [own] if own is not None else []
    if criu is None:
        return []
    return [criu, own] if own is not None else [criu]


def check(restore: "Restore") -> None:
    """What --cpu-cap asks for at restore.  Raises ImageError, Refusal, KernelError."""
    caps = chosen(restore.options)
    if not caps:
        return
    theirs = read(restore.images)
    if not theirs:
        if caps == FPU:
            return  # the registers themselves are in the images
        raise ImageError(
            f"{kind().file_name()} is missing", "the dump was made without --cpu-cap",
            "say --cpu-cap here only where it was said there, or --cpu-cap=none", code="missing-image",
        )  # fmt: skip
    for problem in problems(theirs, caps):
        restore.problem(problem)


def problems(theirs: Sequence[Entry], caps: int) -> list[Refusal]:
    ours = {type(entry): entry for entry in record()}
    pairs = [(entry, ours[type(entry)]) for entry in theirs]
    found = []
    missing = [name for pair in pairs for name in lacking(*pair, caps)]
    if missing:
        where = "on a CPU that has them"
        if missing == ["the feature fsgsbase"]:  # the CPU has the instructions: CPUID says so
            where = "under a kernel that allows it (started without nofsgsbase)"
        remedy = f"restore {where}, or say --cpu-cap=none if the programs use none of that"
        found.append(Refusal("this CPU", f"it lacks {_shown(missing)}", remedy, code="cpu-feature"))
    elif caps & CPU and (unlike := [name for pair in pairs for name in different(*pair)]):
        remedy = "restore on a CPU that is the same, or say --cpu-cap=ins,fpu where all that the other had will do"
        found.append(Refusal("this CPU", f"it is not exactly the same: {_shown(unlike)}", remedy, code="cpu-feature"))
    for one, other in pairs:
        if not (caps & FPU and isinstance(one, CpuinfoEntry) and isinstance(other, CpuinfoEntry) and one.x86_entry):
            continue
        more = ", ".join(map(str, surplus(one.x86_entry[0], other.x86_entry[0])))
        if more:
            found.append(Refusal(
                "this CPU", f"its extended registers have components that the other's had not ({more}), for which "
                "the C library left no room where it saves them while it binds a function at its first call",
                "restore on a CPU with the same components; if the programs bind all at their start (LD_BIND_NOW, "
                "-z now, static), say --cpu-cap=ins", code="cpu-feature",
            ))  # fmt: skip
    return found


def _shown(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
