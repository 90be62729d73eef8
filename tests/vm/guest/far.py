# SPDX-License-Identifier: Apache-2.0
"""Holds memory beyond what four levels of page tables reach, until the first byte of DIR/go is not 0: ``far.py DIR``.
Then writes to DIR/result which of its bytes had changed.
"""

import ctypes
import json
import mmap
import os
import sys
import time

FAR = 1 << 50
FLAGS = 0x100022  # MAP_FIXED_NOREPLACE, MAP_PRIVATE, MAP_ANONYMOUS


def main() -> None:
    directory = sys.argv[1]
    fd = os.open(f"{directory}/go", os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, mmap.PAGESIZE)
    go = mmap.mmap(fd, mmap.PAGESIZE)
    mapping = ctypes.CDLL(None, use_errno=True).mmap
    mapping.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    mapping.restype = ctypes.c_void_p
    if mapping(FAR, mmap.PAGESIZE, 3, FLAGS, -1, 0) != FAR:
        sys.exit(f"no memory there: {os.strerror(ctypes.get_errno())}")
    held = os.urandom(mmap.PAGESIZE)
    ctypes.memmove(FAR, held, len(held))
    with open(f"{directory}/holding", "w") as file:
        file.write("yes")
    while not go[0]:
        time.sleep(0.05)
    found = ctypes.string_at(FAR, len(held))
    with open(f"{directory}/result.new", "w") as file:
        json.dump({"far memory": [n for n in range(len(held)) if found[n] != held[n]]}, file)
    os.rename(f"{directory}/result.new", f"{directory}/result")


main()
