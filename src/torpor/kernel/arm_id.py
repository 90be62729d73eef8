# SPDX-License-Identifier: Apache-2.0
"""What instructions and prctl(2) tell of an aarch64 CPU, and AT_HWCAP does not: with which algorithm it signs pointers,
how long its vectors can be, how much memory DC ZVA zeroes, what is to be done about caches when code is written.

Linux lets any program read the identification registers, and shows in them what all CPUs of the machine have in common
(Documentation/arch/arm64/cpu-feature-registers.rst).  Python has no such instructions: they run in a page of our own.

Facts: Arm Architecture Reference Manual, ID_AA64ISAR1_EL1, ID_AA64ISAR2_EL1, MIDR_EL1, DCZID_EL0, CTR_EL0, XPACLRI.
"""

import ctypes
import functools
import mmap
import struct

from torpor.kernel.process import prctl
from torpor.kernel.syscall import call
from torpor.typed import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from typing import Any

PR_SVE_SET_VL, PR_SVE_GET_VL, PR_SME_SET_VL, PR_SME_GET_VL = 50, 51, 63, 64
SVE, SME = (PR_SVE_SET_VL, PR_SVE_GET_VL), (PR_SME_SET_VL, PR_SME_GET_VL)
_LENGTH, _INHERIT = 0xFFFF, 1 << 17  # of what these prctls take and give
_RET = 0xD65F03C0
# uint64_t f(uint64_t): mrs x0, the register; ret
_ISAR1, _ISAR2, _MIDR, _DCZID, _CTR = (
    (code, _RET) for code in (0xD5380620, 0xD5380640, 0xD5380000, 0xD53B00E0, 0xD53B0020)
)
# Takes the signature off x0: mov x9,x30; mov x30,x0; xpaclri; mov x0,x30; ret x9.  Without signatures it does nothing.
_STRIP = (0xAA1E03E9, 0xAA0003FE, 0xD50320FF, 0xAA1E03E0, 0xD65F0120)
_UNSIGNED, _M64 = 1 << 55, (1 << 64) - 1  # this bit says whose memory it is, and is never part of a signature
# Where a register says that it signs addresses, and data.
_ALGORITHMS = (("QARMA5", _ISAR1, 4, 24), ("QARMA3", _ISAR2, 12, 8), ("its own algorithm", _ISAR1, 8, 28))
_NO_ZVA = 16


def _run(code: tuple[int, ...], argument: int = 0) -> int:
    """OSError: no memory may be made executable (SELinux)."""
    page = mmap.mmap(-1, mmap.PAGESIZE)
    page.write(struct.pack(f"<{len(code)}I", *code))
    keep: Any = ctypes.c_char.from_buffer(page)
    at = ctypes.addressof(keep)
    call("mprotect", at, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC)  # only now does the kernel flush caches
    function: Callable[[int], int] = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64)(at)
    return function(argument)


@functools.cache
def signing() -> str:
    """How this CPU signs pointers, in words: by what, and in which bits of them.  "": it does not, or does not tell."""
    try:
        found = [name for name, code, *fields in _ALGORITHMS if any(_run(code) >> at & 15 for at in fields)]
        if not found:
            return ""
        bits = (_M64 ^ _UNSIGNED) ^ _run(_STRIP, _M64 ^ _UNSIGNED)
        maker = f" of the maker {_run(_MIDR) >> 24 & 255:#x}" if found[-1] == _ALGORITHMS[-1][0] else ""
    except OSError:
        return ""
    return f"{' and '.join(found)}{maker} in the bits {bits:#x}"


def zeroed() -> int:
    """How many bytes DC ZVA zeroes; 0: it may not be used, or that is not known."""
    try:
        block = _run(_DCZID)
    except OSError:
        return 0
    return 0 if block & _NO_ZVA else 4 << (block & 15)


def cache_type() -> int:
    """CTR_EL0, with the least lines of all CPUs; 0: it is not known."""
    try:
        return _run(_CTR)
    except OSError:
        return 0


@functools.cache
def lengths(kind: tuple[int, int]) -> tuple[int, ...]:
    """The lengths of vectors, in bytes, that the kernel gives a program which asks for them; of SVE or SME."""
    set_length, get_length = kind
    try:
        before = prctl(get_length)
    except OSError:
        return ()
    try:
        return tuple(sorted({prctl(set_length, size) & _LENGTH for size in range(16, 257, 16)}))
    finally:
        prctl(set_length, before & (_LENGTH | _INHERIT))


def features() -> list[str]:
    """What has to be the same, or there too, where a program goes on that has looked at it."""
    found = [f"pointers signed by {how}" for how in [signing()] if how]
    found += [f"DC ZVA of {size} bytes" for size in [zeroed()] if size]
    for name, kind in (("SVE", SVE), ("SME", SME)):
        found += [f"{name} vectors of {size} bytes" for size in lengths(kind)]
    return found
