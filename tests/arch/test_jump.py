# SPDX-License-Identifier: Apache-2.0
"""Jumps to another vDSO: what each architecture's are, and that this machine's arrives with its arguments."""

import ctypes
import mmap

import pytest

from torpor.arch import native
from torpor.arch.aarch64 import ARCH as AARCH64
from torpor.arch.arm import ARCH as ARM
from torpor.arch.base import Arch
from torpor.arch.ppc64le import ARCH as PPC64LE
from torpor.arch.s390x import ARCH as S390X
from torpor.arch.x86_64 import ARCH as X86_64

WIDE = 0x7654_89AB_CDEF


@pytest.mark.parametrize(
    "arch,target,code",
    # As objdump -d shows what binutils' assemblers make of them.
    [
        (X86_64, WIDE, "48b8efcdab8954760000 ffe0"),
        (AARCH64, WIDE, "50000058 00021fd6 efcdab8954760000"),
        (ARM, 0x89ABCDEF, "04f01fe5 efcdab89"),
        (S390X, WIDE, "0d10 e31010080004 07f1 0000765489abcdef"),
        (PPC64LE, WIDE, "0000803d 54768c61 c6078c79 ab898c65 efcd8c61 a603897d 2004804e"),
    ],
    ids=lambda value: value.name if isinstance(value, Arch) else None,
)
def test_code(arch: Arch, target: int, code: str) -> None:
    assert arch.jump(target) == bytes.fromhex(code)


def test_this_machine_arrives() -> None:
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    absolute = ctypes.cast(ctypes.CDLL(None).labs, ctypes.c_void_p).value
    assert absolute is not None
    page.write(native().jump(absolute))
    function = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    assert function(-123456789) == 123456789
