# SPDX-License-Identifier: Apache-2.0
"""Holds a pattern in all vector registers (YMM of x86_64, Z of aarch64's SVE, V of s390x) until the first byte of
DIR/go is not 0: ``vectors.py DIR [handler]``.  Then writes to DIR/result what had changed.  Machine code, for whatever
Python itself does leaves nothing in them.  Registers 8 to 15 of aarch64 and s390x belong to the caller, in part, and
stay his.  With `handler` it is a signal handler that waits for that byte, having interrupted the machine code.
"""

import ctypes
import json
import mmap
import os
import signal
import struct
import sys
import time

ITIMER_REAL, SOON_US = 0, 300_000
PR_SVE_GET_VL, PR_SVE_VL_LEN_MASK = 51, 0xFFFF
FREE = (*range(8), *range(16, 32))  # registers of aarch64 and s390x that a function may change


def machine_code() -> bytes:
    """void hold(volatile int *go_on, void *from, void *to)"""
    return {"x86_64": _x86_64, "aarch64": _aarch64, "s390x": _s390x}[os.uname().machine]()


def layout() -> tuple[tuple[int, ...], int]:
    """Which registers are held, and of how many bytes they are."""
    if os.uname().machine == "x86_64":
        return tuple(range(16)), 32
    if os.uname().machine == "s390x":
        return FREE, 16
    return FREE, ctypes.CDLL(None).prctl(PR_SVE_GET_VL) & PR_SVE_VL_LEN_MASK


def _aarch64() -> bytes:
    load = [0x85804000 | (n >> 3) << 16 | (n & 7) << 10 | 1 << 5 | n for n in FREE]  # ldr z<n>, [x1, n, mul vl]
    wait = [0xB9400003, 0x34FFFFE3]  # ldr w3, [x0]; cbz w3, back
    store = [0xE5804000 | (n >> 3) << 16 | (n & 7) << 10 | 2 << 5 | n for n in FREE]  # str z<n>, [x2, n, mul vl]
    code = [*load, *wait, *store, 0xD65F03C0]
    return struct.pack(f"<{len(code)}I", *code)


def _s390x() -> bytes:
    code = b""
    for opcode, base in ((0x06, 3), (0x0E, 4)):  # vl %v<n>, 16*n(%r3); vst %v<n>, 16*n(%r4)
        for n in FREE:
            code += struct.pack(">BBHBB", 0xE7, (n & 15) << 4, base << 12 | 16 * n, 8 if n > 15 else 0, opcode)
        if opcode == 0x06:
            code += bytes.fromhex("58102000 1211 a784fffd")  # l %r1,0(%r2); ltr %r1,%r1; je back
    return code + bytes.fromhex("07fe")  # br %r14


def _x86_64() -> bytes:
    code = b""
    for opcode, base in ((0x6F, 0x86), (0x7F, 0x82)):  # vmovdqu ymm, [rsi + n]; vmovdqu [rdx + n], ymm
        for register in range(16):
            prefix = 0xFE if register < 8 else 0x7E
            code += struct.pack("<4BI", 0xC5, prefix, opcode, base | (register & 7) << 3, 32 * register)
        if opcode == 0x6F:
            code += bytes.fromhex("8b07 85c0 74fa")  # mov eax,[rdi]; test eax,eax; jz
    return code + bytes.fromhex("c5f877 c3")  # vzeroupper; ret


def say_so(directory: str) -> None:
    with open(f"{directory}/holding", "w") as file:
        file.write("yes")


def main() -> None:
    directory = sys.argv[1]
    fd = os.open(f"{directory}/go", os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, mmap.PAGESIZE)
    go = mmap.mmap(fd, mmap.PAGESIZE)
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(machine_code())
    hold = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(
        ctypes.addressof(ctypes.c_char.from_buffer(page))
    )
    held, size = layout()
    room = (held[-1] + 1) * size
    before = ctypes.create_string_buffer(os.urandom(room), room)
    after = ctypes.create_string_buffer(room)

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def handler(_: int) -> None:
        say_so(directory)
        while not go[0]:
            time.sleep(0.02)

    if sys.argv[2:] == ["handler"]:  # not Python's, which would wait until the machine code has returned
        libc = ctypes.CDLL(None)
        libc.signal(signal.SIGALRM, handler)
        libc.setitimer(ITIMER_REAL, (ctypes.c_long * 4)(0, 0, 0, SOON_US), None)
    else:
        say_so(directory)
    hold(ctypes.addressof(ctypes.c_char.from_buffer(go)), ctypes.addressof(before), ctypes.addressof(after))
    wrong = [n for n in held if before.raw[size * n : size * n + size] != after.raw[size * n : size * n + size]]
    with open(f"{directory}/result.new", "w") as file:
        json.dump({"vectors": wrong}, file)
    os.rename(f"{directory}/result.new", f"{directory}/result")


main()
