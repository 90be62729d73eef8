# SPDX-License-Identifier: Apache-2.0
"""What this CPU has beyond the words of CRIU's cpuinfo.img and AT_HWCAP, each thing by a name: for torpor-cpu.img.

    x86_64    instructions of CPUID's leaf 7, subleaf 1 (AVX-VNNI …), AVX10 and PTWRITE
    s390x     the facilities of STFLE, as numbers
    aarch64   the lengths of vectors, the block of DC ZVA, how pointers are signed

Facts: Intel SDM vol. 2, CPUID; z/Architecture Principles of Operation, "Facility Indications".
"""

from torpor.arch import native
from torpor.kernel.cpuid import EAX, EBX, EDX
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.kernel.cpuid import Cpu

# Leaf, subleaf, register: bits and names; names as in /proc/cpuinfo, where they are there.
_X86 = {
    (7, 1, EAX): "0 sha512 1 sm3 2 sm4 3 raoint 4 avx_vnni 5 avx512_bf16 7 cmpccxadd 21 amx_fp16 23 avx_ifma 31 movrs",
    (7, 1, EDX): "4 avx_vnni_int8 5 avx_ne_convert 8 amx_complex 10 avx_vnni_int16 14 prefetchi 21 apx",
    (0x14, 0, EBX): "4 ptwrite",
}
_AVX10 = 1 << 19  # in (7, 1, EDX); leaf 0x24 has its version


def features() -> list[str]:
    """Raises KernelError."""
    name = native().name
    if name == "x86_64":
        from torpor.kernel.cpuid import Cpu

        return [f"{one} instructions" for one in x86_instructions(Cpu())]
    if name == "aarch64":
        from torpor.kernel import arm_id

        return arm_id.features()
    return facilities() if name == "s390x" else []


def cache_type() -> int:
    """How a program makes code that it has written visible to itself, as aarch64's CTR_EL0 tells; 0: it is not told."""
    if native().name != "aarch64":
        return 0
    from torpor.kernel import arm_id

    return arm_id.cache_type()


def x86_instructions(cpu: "Cpu") -> list[str]:
    most = cpu.leaf(7)[EAX]  # subleaf
    found = []
    for (leaf, sub, register), text in _X86.items():
        word = cpu.leaf(leaf, sub)[register] if leaf != 7 or sub <= most else 0
        fields = text.split()
        found += [name for bit, name in zip(fields[::2], fields[1::2], strict=True) if word >> int(bit) & 1]
    if most >= 1 and cpu.leaf(7, 1)[EDX] & _AVX10:
        found += [f"avx10.{version}" for version in range(1, (cpu.leaf(0x24)[EBX] & 255) + 1)]
    return found


def facilities() -> list[str]:
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        for line in file:
            name, _, numbers = line.partition(":")
            if name.strip() == "facilities":
                return [f"facility {number}" for number in numbers.split()]
    return []
