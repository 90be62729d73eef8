# SPDX-License-Identifier: Apache-2.0
"""Takes a signal ten times a second, on an alternate stack that is as large as this CPU needs (AT_MINSIGSTKSZ), or as
the kernel wants at least; counts them in DIR/signals: ``small_stack.py DIR``.
"""

import ctypes
import mmap
import os
import signal
import struct
import sys
import time

AT_MINSIGSTKSZ = 51


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.getauxval.argtypes, libc.getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong
    memory = mmap.mmap(-1, 1 << 16)
    # Python's part of the handler may go on below it, where nothing else is.
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + (1 << 15)
    size = libc.getauxval(AT_MINSIGSTKSZ)
    while libc.sigaltstack(struct.pack("=QI4xQ", address, 0, size), None):  # no kernel takes one below MINSIGSTKSZ
        size += 16
        if size > 1 << 14:
            sys.exit(f"no such stack: {os.strerror(ctypes.get_errno())}")
    fd = os.open(f"{sys.argv[1]}/signals", os.O_RDWR | os.O_CREAT, 0o600)
    count = 0

    def handle(*_: object) -> None:
        nonlocal count
        count += 1
        os.pwrite(fd, struct.pack("=Q", count), 0)

    signal.signal(signal.SIGALRM, handle)  # with SA_ONSTACK, as Python does since 3.10
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    while True:
        time.sleep(1)


main()
