#!/usr/bin/python3.11 -ISu
# SPDX-License-Identifier: Apache-2.0
"""The guest's first process: mounts, starts what /job.json names, says its exit status, powers off."""

import ctypes
import json
import os
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)
FINIT_MODULE = {"x86_64": 313, "aarch64": 273, "armv7l": 379, "ppc64le": 353, "s390x": 344}
POWER_OFF = 0x4321FEDC
GUEST = "TORPOR_TEST_GUEST"  # says to the runner that all processes here are its own


def mount(source: str, target: str, kind: str) -> None:
    os.makedirs(target, exist_ok=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), 0, None):
        print("init: mount", target, os.strerror(ctypes.get_errno()))


def load_modules(wanted: list[str]) -> None:
    with open("/modules.load") as file:
        order = {line.split()[0]: line.split()[1:] for line in file}
    for name in wanted:
        for path in order.get(name, ()):
            fd = os.open(path, os.O_RDONLY)
            if libc.syscall(FINIT_MODULE[os.uname().machine], fd, b"", 0) and ctypes.get_errno() != 17:
                print("init: insmod", path, os.strerror(ctypes.get_errno()))
            os.close(fd)


def main() -> None:
    mount("proc", "/proc", "proc")
    mount("sys", "/sys", "sysfs")
    mount("dev", "/dev", "devtmpfs")
    for target, kind in (("/dev/pts", "devpts"), ("/dev/shm", "tmpfs"), ("/tmp", "tmpfs"), ("/run", "tmpfs"),
                         ("/sys/fs/cgroup", "cgroup2")):  # fmt: skip
        mount(kind, target, kind)
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        if not os.path.lexists("/dev/" + name):
            os.symlink("/proc/self/" + target, "/dev/" + name)
    with open("/job.json") as file:
        job = json.load(file)
    load_modules(job["modules"])
    if job["disk"]:
        mount("/dev/vda", "/tmp", "ext4")
    print(f"@@READY {os.uname().release} {time.monotonic():.2f}", flush=True)
    child = os.fork()
    if not child:
        os.setsid()
        os.chdir("/tmp")
        paths = "/usr/sbin:/usr/bin:/sbin:/bin"
        environment = {"PATH": paths, "HOME": "/root", "LANG": "C.UTF-8", "PYTHONPATH": job["pythonpath"],
                       GUEST: "yes"}  # fmt: skip
        os.execve("/usr/bin/python3.11", ["python3.11", "-u", *job["argv"]], environment)
    while True:
        ended, status = os.wait()
        if ended == child:
            break
    print(f"@@EXIT {os.waitstatus_to_exitcode(status)}", flush=True)


try:
    main()
except BaseException as error:
    print("init:", repr(error), flush=True)
sys.stdout.flush()
libc.sync()
libc.reboot(POWER_OFF)
