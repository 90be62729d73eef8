# SPDX-License-Identifier: Apache-2.0
"""The CPUID and XGETBV instructions of x86, which any program may use, and Python has none of: run from a page of our
own.  Where no memory may be both ours and executable (SELinux), the `cpuid` device tells the same.

Facts: Intel SDM vol. 2, CPUID and XGETBV.
"""

import ctypes
import mmap
import os
import struct

from torpor.errors import KernelError
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t result[4])
# push rbx; mov r8,rdx; mov eax,edi; mov ecx,esi; cpuid; mov [r8],eax … [r8+12],edx; pop rbx; ret
_CPUID = bytes.fromhex("53 4989d0 89f8 89f1 0fa2 418900 41895804 41894808 4189500c 5b c3")
# uint64_t xgetbv(uint32_t index): mov ecx,edi; xgetbv; shl rdx,32; or rax,rdx; ret
_XGETBV = bytes.fromhex("89f9 0f01d0 48c1e220 4809d0 c3")
_SECOND = 64  # where the second function begins
_OSXSAVE = 1 << 27

EAX, EBX, ECX, EDX = range(4)
Leaf = tuple[int, int, int, int]  # in this order


class Cpu:
    """The CPU that this runs on."""

    def __init__(self) -> None:
        self._page: mmap.mmap | None = None
        try:
            self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        except OSError:
            return
        self._page.write(_CPUID.ljust(_SECOND, b"\0") + _XGETBV)
        at = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        word = ctypes.c_uint32
        self._cpuid: Callable[[int, int, int], None] = ctypes.CFUNCTYPE(None, word, word, ctypes.c_void_p)(at)
        self._xgetbv: Callable[[int], int] = ctypes.CFUNCTYPE(ctypes.c_uint64, word)(at + _SECOND)
        self._result = (ctypes.c_uint32 * 4)()

    def leaf(self, number: int, sub: int = 0) -> Leaf:
        """Zeros for a leaf that this CPU does not have."""
        most = number & 0x80000000
        if number != most and self._ask(most, 0)[0] < number:
            return 0, 0, 0, 0
        return self._ask(number, sub)

    def _ask(self, number: int, sub: int) -> Leaf:
        if self._page is not None:
            self._cpuid(number, sub, ctypes.addressof(self._result))
            a, b, c, d = self._result
            return a, b, c, d
        try:
            fd = os.open("/dev/cpu/0/cpuid", os.O_RDONLY | os.O_CLOEXEC)
            try:
                a, b, c, d = struct.unpack("<4I", os.pread(fd, 16, number | sub << 32))
            finally:
                os.close(fd)
        except OSError as error:
            raise KernelError(
                "cannot ask the CPU what it has", error, "load the cpuid module: modprobe cpuid"
            ) from None
        return a, b, c, d

    def extended_state(self) -> int:
        """XCR0: the register components that the kernel has turned on; 0 without XSAVE."""
        if not self.leaf(1)[2] & _OSXSAVE:
            return 0
        if self._page is not None:
            return self._xgetbv(0)
        a, _, _, d = self.leaf(0xD)
        return a | d << 32
