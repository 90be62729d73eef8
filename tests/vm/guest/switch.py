# SPDX-License-Identifier: Apache-2.0
"""Lives on the guest's disk from now on: its root becomes ours, as switch_root(8) does.  Then runs Python with the
arguments given.  What changes with every run of the tests, this directory and Torpor, comes along from the initramfs.
"""

import ctypes
import os
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)
MS_BIND, MS_MOVE, MS_REC = 4096, 8192, 16384
DISK = "/mnt"


def mount(source: str, target: str, kind: str, flags: int) -> None:
    if libc.mount(source.encode(), target.encode(), kind.encode(), flags, None):
        sys.exit(f"mount {source} {target}: {os.strerror(ctypes.get_errno())}")


def main() -> None:
    for _ in range(600):
        if os.path.exists("/dev/vda"):
            break
        time.sleep(0.05)
    os.makedirs(DISK, exist_ok=True)
    mount("/dev/vda", DISK, "ext4", 0)
    for name in ("/t", "/torpor"):
        mount(name, DISK + name, "", MS_BIND)
    for name in ("/proc", "/sys", "/dev", "/tmp", "/run"):
        mount(name, DISK + name, "", MS_MOVE)
    os.chdir(DISK)
    mount(DISK, "/", "", MS_MOVE)
    os.chroot(".")
    os.chdir("/")
    os.execv("/usr/bin/python3.11", ["python3.11", "-u", *sys.argv[1:]])


main()
