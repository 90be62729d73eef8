# SPDX-License-Identifier: Apache-2.0
"""What the bits of AT_HWCAP and AT_HWCAP2 are called, as in /proc/cpuinfo where that has them: by architecture and
word, from bit 0 on; "-" is a bit without a name.

Facts: arch/*/include/uapi/asm/hwcap.h, arch/powerpc/include/uapi/asm/cputable.h, arch/s390/include/asm/elf.h,
arch/x86/include/uapi/asm/hwcap2.h.
"""

NAMES: dict[str, tuple[str, ...]] = {
    "aarch64": (
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop "
        "sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg gcs cmpbr fprcvt f8mm8 "
        "f8mm4 svef16mm sveeltperm sveaes2 svebfscale sve2p2 sme2p2 smesbitperm smeaes smesfexpa smestmop smesmop4",
        "dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm svebf16 i8mm "
        "bf16 dgh rng bti mte ecv afp rpres mte3 sme smei16i64 smef64f64 smei8i32 smef16f32 smeb16f32 smef32f32 "
        "smefa64 wfxt ebf16 sveebf16 cssc rprfm sve2p1 sme2 sme2p1 smei16i32 smebi32i32 smeb16b16 smef16f16 mops "
        "hbc sveb16b16 lrcpc3 lse128 fpmr lut faminmax f8cvt f8fma f8dp4 f8dp2 f8e4m3 f8e5m2 smelutv2 smef8f16 "
        "smef8f32 smesf8fma smesf8dp4 smesf8dp2 poe",
    ),
    "armv7l": (
        "swp half thumb 26bit fastmult fpa vfp edsp java iwmmxt crunch thumbee neon vfpv3 vfpv3d16 tls vfpv4 idiva "
        "idivt vfpd32 lpae evtstrm fphp asimdhp asimddp asimdfhm asimdbf16 i8mm",
        "aes pmull sha1 sha2 crc32 sb ssbs",
    ),
    "ppc64le": (
        "ppcle true_le - - - - archpmu vsx arch_2_06 power6x dfp pa6t arch_2_05 ic_snoop smt booke cellbe power5+ "
        "power5 power4 notb efpdouble efpsingle spe ucache 4xxmac mmu fpu altivec ppc601 ppc64 ppc32",
        "- - - - - - - - - - - - - - - - - mma arch_3_1 htm-no-suspend scv darn ieee128 arch_3_00 htm-nosc vcrypto "
        "tar isel ebb dscr htm arch_2_07",
    ),
    "x86_64": ("", "ring3mwait fsgsbase"),
    "s390x": (
        "esan3 zarch stfle msa ldisp eimm dfp edat etf3eh highgprs te vx vxd vxe gs vxe2 vxp sort dflt vxp2 nnpa "
        "pcimio sie",
    ),
}


def names(arch: str, word: int, bits: int) -> list[str]:
    """The names of the set bits of the word AT_HWCAP (0), AT_HWCAP2 (1) …"""
    words = NAMES.get(arch, ())
    known = words[word].split() if word < len(words) else []
    where = "AT_HWCAP" + ("" if word == 0 else str(word + 1))
    return [
        known[bit] if bit < len(known) and known[bit] != "-" else f"bit {bit} of {where}"
        for bit in range(64)
        if bits >> bit & 1
    ]
