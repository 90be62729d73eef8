# SPDX-License-Identifier: Apache-2.0
"""What one CPU has and another has not, by their images."""

from torpor.errors import ImageError, Refusal
from torpor.images.schema.cpuinfo import CpuinfoEntry, CpuinfoX86Entry
from torpor.images.schema.torpor_cpu import TorporCpuEntry

FPU, CPU, INS = 1, 2, 4
Entry = CpuinfoEntry | TorporCpuEntry
WORDS, VERSION = 19, 2  # of x86's image
MADE_UP = 3  # the word that Linux makes up, which tells nothing of the CPU
_BOUND_WITH = 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 19  # AVX, MPX bounds, AVX-512, APX
# Instructions that programs may use, by word and bit; names as in /proc/cpuinfo.
INSTRUCTIONS = {
    0: "4 tsc 8 cx8 15 cmov 19 clflush 23 mmx 25 sse 26 sse2",
    1: "11 syscall 22 mmxext 27 rdtscp 29 lm 30 3dnowext 31 3dnow",
    4: "0 pni 1 pclmulqdq 9 ssse3 12 fma 13 cx16 19 sse4_1 20 sse4_2 22 movbe 23 popcnt 25 aes 28 avx 29 f16c "
    "30 rdrand",
    6: "0 lahf_lm 5 abm 6 sse4a 7 misalignsse 8 3dnowprefetch 11 xop 15 lwp 16 fma4 21 tbm 29 mwaitx",
    9: "0 fsgsbase 3 bmi1 4 hle 5 avx2 8 bmi2 11 rtm 16 avx512f 17 avx512dq 18 rdseed 19 adx 21 avx512ifma "
    "23 clflushopt 24 clwb 26 avx512pf 27 avx512er 28 avx512cd 29 sha_ni 30 avx512bw 31 avx512vl",
    11: "0 prefetchwt1 1 avx512vbmi 4 ospke 5 waitpkg 6 avx512_vbmi2 8 gfni 9 vaes 10 vpclmulqdq 11 avx512_vnni "
    "12 avx512_bitalg 14 avx512_vpopcntdq 22 rdpid 25 cldemote 27 movdiri 28 movdir64b 29 enqcmd",
    13: "0 clzero 4 rdpru",
    18: "2 avx512_4vnniw 3 avx512_4fmaps 8 avx512_vp2intersect 14 serialize 16 tsxldtrk 22 amx_bf16 23 avx512_fp16 "
    "24 amx_tile 25 amx_int8",
}  # fmt: skip
_FPU = {0: "0 fpu 24 fxsr", 4: "26 xsave 27 osxsave", 10: "0 xsaveopt 1 xsavec 2 xgetbv1"}


def foreign(image: str, theirs: str = "") -> Refusal:
    return Refusal(
        image, f"it is of another architecture{theirs and f' ({theirs})'} than this machine's",
        "restore on a machine like the one that it comes from", code="foreign-architecture",
    )  # fmt: skip


def lacking(theirs: Entry, ours: Entry, caps: int) -> list[str]:
    """What the CPU `ours` has not and a checkpoint from `theirs` may need, of what `caps` names (INS, FPU), in words.
    Raises ImageError, Refusal (of another architecture)."""
    found = []
    if isinstance(theirs, TorporCpuEntry) or isinstance(ours, TorporCpuEntry):
        if not (isinstance(theirs, TorporCpuEntry) and isinstance(ours, TorporCpuEntry)):
            raise foreign("torpor-cpu.img")
        if theirs.machine != ours.machine:
            raise foreign("torpor-cpu.img", theirs.machine)
        if caps & (INS if ours.machine == "x86_64" else INS | FPU):
            found += _features(ours.machine, theirs.hwcap, ours.hwcap)
            found += [name for name in theirs.features if name not in ours.features]
            found += stale(theirs.cache_type or 0, ours.cache_type or 0)
        return found
    _check_alike(theirs, ours)
    if ours.x86_entry:
        return _x86_lacking(theirs.x86_entry[0], ours.x86_entry[0], caps)
    if caps & (INS | FPU):
        arch = "ppc64le" if ours.ppc64_entry else "s390x"
        found += _features(arch, _hwcaps(theirs), _hwcaps(ours))
    return found


def different(theirs: Entry, ours: Entry) -> list[str]:
    """In what the two are not the same, in words.  `lacking` has found that they are of one architecture."""
    if isinstance(theirs, TorporCpuEntry) and isinstance(ours, TorporCpuEntry):
        found = _unequal(theirs.hwcap, ours.hwcap) if theirs.hwcap else []  # older images of x86_64 have none
        their, our = theirs.cache_type, ours.cache_type
        if their and our and their != our:
            found.append(f"CTR_EL0 is {our:#x}, there {their:#x}")
        return found + [
            f"{name} is {'here' if name in ours.features else 'there'} alone"
            for name in sorted({*theirs.features} ^ {*ours.features})
        ]
    assert isinstance(theirs, CpuinfoEntry) and isinstance(ours, CpuinfoEntry)
    if not ours.x86_entry:
        return _unequal(_hwcaps(theirs), _hwcaps(ours))
    there, here = theirs.x86_entry[0], ours.x86_entry[0]
    found = [
        f"word {n} is {here.capability[n]:#x}, there {there.capability[n]:#x}"
        for n in range(WORDS)
        if n != MADE_UP and there.capability[n] != here.capability[n]
    ]
    for name in ("xfeatures_mask", "xsave_size", "xsave_size_max"):
        if getattr(there, name) != getattr(here, name):
            found.append(f"{name} is {getattr(here, name)}, there {getattr(there, name)}")
    return found


def _check_alike(theirs: CpuinfoEntry, ours: CpuinfoEntry) -> None:
    for one, other in (
        (theirs.x86_entry, ours.x86_entry),
        (theirs.ppc64_entry, ours.ppc64_entry),
        (theirs.s390_entry, ours.s390_entry),
    ):
        if other and not one and (theirs.x86_entry or theirs.ppc64_entry or theirs.s390_entry):
            raise foreign("cpuinfo.img")
        if other and len(one) != 1:
            raise ImageError("cpuinfo.img is mangled", f"it describes {len(one)} CPUs")
    if ours.ppc64_entry and theirs.ppc64_entry[0].endian != ours.ppc64_entry[0].endian:
        raise Refusal("cpuinfo.img", "it is of a big-endian machine", code="foreign-architecture")
    if ours.x86_entry:
        their = theirs.x86_entry[0]
        if their.capability_ver != VERSION or len(their.capability) != WORDS:
            raise ImageError(
                "cpuinfo.img is of a kind that Torpor does not know",
                f"version {their.capability_ver}, {len(their.capability)} words",
                "say --cpu-cap=none to go on without it",
            )


def _named(table: dict[int, str], theirs: list[int], ours: list[int]) -> list[str]:
    found = []
    for word, text in table.items():
        fields = text.split()
        for bit, name in zip(fields[::2], fields[1::2], strict=True):
            if theirs[word] & ~ours[word] & 1 << int(bit):
                found.append(name)
    return found


def _x86_lacking(theirs: CpuinfoX86Entry, ours: CpuinfoX86Entry, caps: int) -> list[str]:
    found = []
    if caps & INS:
        found += [f"{name} instructions" for name in _named(INSTRUCTIONS, theirs.capability, ours.capability)]
    if caps & FPU:
        found += _named(_FPU, theirs.capability, ours.capability)
        more = (theirs.xfeatures_mask or 0) & ~(ours.xfeatures_mask or 0)
        found += [f"component {bit} of the extended registers" for bit in range(64) if more >> bit & 1]
        if (theirs.xsave_size or 0) > (ours.xsave_size or 0):
            found.append(f"room for {theirs.xsave_size} bytes of extended registers")
    return found


def _hwcaps(entry: CpuinfoEntry) -> list[int]:
    return (entry.ppc64_entry or entry.s390_entry)[0].hwcap


def _pairs(theirs: list[int], ours: list[int]) -> list[tuple[int, int, int]]:
    """Number, theirs and ours of each word AT_HWCAP (0), AT_HWCAP2 (1) …; older kernels have fewer."""
    width = max(len(theirs), len(ours))
    padded = (words + [0] * (width - len(words)) for words in (theirs, ours))
    return [(number, *pair) for number, pair in enumerate(zip(*padded, strict=True))]


def _features(arch: str, theirs: list[int], ours: list[int]) -> list[str]:
    found = []
    for number, their, our in _pairs(theirs, ours):
        if their & ~our:
            from torpor.cpu_names import names

            found += [f"the feature {one}" for one in names(arch, number, their & ~our)]
    return found


def _unequal(theirs: list[int], ours: list[int]) -> list[str]:
    return [
        f"AT_HWCAP{number + 1 if number else ''} is {our:#x}, there {their:#x}"
        for number, their, our in _pairs(theirs, ours)
        if their != our
    ]


def stale(theirs: int, ours: int) -> list[str]:
    """What the CPU with the CTR_EL0 `ours` misses for a program that writes code, and then takes care of each line of
    the data and the instruction caches, as `theirs` wants it: libgcc's __clear_cache reads that once.  0: not known."""
    if not (theirs and ours):
        return []
    found = []
    for name, lines, by_itself in (("data", 16, 28), ("instruction", 0, 29)):
        their, our = (4 << (word >> lines & 15) for word in (theirs, ours))
        if ours >> by_itself & 1:
            continue  # care does no harm
        if theirs >> by_itself & 1:
            field = "IDC" if name == "data" else "DIC"
            found.append(f"{name} caches that need no care where code is written (CTR_EL0.{field})")
        elif our < their:
            found.append(f"{name} caches with lines of {their} bytes, where code is written (they have {our})")
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
