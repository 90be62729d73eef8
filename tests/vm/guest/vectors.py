# SPDX-License-Identifier: Apache-2.0
"""Holds a pattern in all sixteen YMM registers of x86_64 until the first byte of DIR/go is not 0: ``vectors.py DIR``.
Then writes to DIR/result what had changed.  Machine code, for whatever Python itself does leaves nothing in them.
"""

import ctypes
import json
import mmap
import os
import struct
import sys


def machine_code() -> bytes:
    """void hold(volatile int *go_on, void *from, void *to)"""
    code = b""
    for opcode, base in ((0x6F, 0x86), (0x7F, 0x82)):  # vmovdqu ymm, [rsi + n]; vmovdqu [rdx + n], ymm
        for register in range(16):
            prefix = 0xFE if register < 8 else 0x7E
            code += struct.pack("<4BI", 0xC5, prefix, opcode, base | (register & 7) << 3, 32 * register)
        if opcode == 0x6F:
            code += bytes.fromhex("8b07 85c0 74fa")  # mov eax,[rdi]; test eax,eax; jz
    return code + bytes.fromhex("c5f877 c3")  # vzeroupper; ret


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
    pattern = os.urandom(512)
    before, after = ctypes.create_string_buffer(pattern, 512), ctypes.create_string_buffer(512)
    with open(f"{directory}/holding", "w") as file:
        file.write("yes")
    hold(ctypes.addressof(ctypes.c_char.from_buffer(go)), ctypes.addressof(before), ctypes.addressof(after))
    wrong = [f"ymm{n}" for n in range(16) if before.raw[32 * n : 32 * n + 32] != after.raw[32 * n : 32 * n + 32]]
    with open(f"{directory}/result.new", "w") as file:
        json.dump({"vectors": wrong}, file)
    os.rename(f"{directory}/result.new", f"{directory}/result")


main()
