# SPDX-License-Identifier: Apache-2.0
"""aarch64 with SVE: a thread that spins with all vectors full keeps them, whatever runs in it meanwhile.

The victim is machine code, written here: load Z0-Z31 from a buffer, spin until a word changes, store them to another.
"""

import ctypes
import mmap
import os
import select
import signal
import struct
import time
from collections.abc import Callable

from injection import exercise, only_thread

from torpor.engine.executor import Executor
from torpor.engine.stepper import Stepper

HWCAP_SVE = 1 << 22
PR_SVE_SET_VL = 50
AT_HWCAP = 16
libc = ctypes.CDLL(None, use_errno=True)
libc.getauxval.restype = ctypes.c_ulong


def _vector(opcode: int, register: int, base: int) -> int:
    """LDR or STR of one whole vector at [Xbase, #register, MUL VL]."""
    return opcode | register >> 3 << 16 | (register & 7) << 10 | base << 5 | register


def machine_code() -> bytes:
    """void spin(volatile int *go_on, void *from, void *to)"""
    save = [0x6DBC27E8, 0x6D012FEA, 0x6D0237EC, 0x6D033FEE]  # stp d8,d9,[sp,#-64]! ... stp d14,d15,[sp,#48]
    back = [0x6D412FEA, 0x6D4237EC, 0x6D433FEE, 0x6CC427E8]
    load = [_vector(0x85804000, register, 1) for register in range(32)]
    store = [_vector(0xE5804000, register, 2) for register in range(32)]
    spin = [0xB9400003, 0x34FFFFE3]  # ldr w3,[x0]; cbz w3,.-4
    return struct.pack("<75I", *save, *load, *spin, *store, *back, 0xD65F03C0)


class Scalable:
    """A child that holds a pattern in its vectors until it is told to look at them."""

    def __init__(self, length: int) -> None:
        assert libc.getauxval(ctypes.c_ulong(AT_HWCAP)) & HWCAP_SVE, "this CPU has no SVE"
        granted = libc.prctl(PR_SVE_SET_VL, ctypes.c_ulong(length), 0, 0, 0)
        assert granted & 0xFFFF == length, f"vectors of {granted & 0xFFFF} bytes instead of {length}"
        self.word = mmap.mmap(-1, mmap.PAGESIZE)
        self._report, report = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            code.write(machine_code())
            spin = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(
                ctypes.addressof(ctypes.c_char.from_buffer(code))
            )
            pattern = os.urandom(32 * length)
            before = ctypes.create_string_buffer(pattern, len(pattern))
            after = ctypes.create_string_buffer(len(pattern))
            flag = ctypes.addressof(ctypes.c_int.from_buffer(self.word))
            spin(flag, ctypes.addressof(before), ctypes.addressof(after))
            wrong = [i for i in range(32) if before.raw[i * length :][:length] != after.raw[i * length :][:length]]
            os.write(report, str(wrong).encode())
            os._exit(0)
        os.close(report)
        time.sleep(1)

    def check(self) -> None:
        self.word[:4] = b"\1\0\0\0"
        assert select.select([self._report], [], [], 20)[0], "the victim does not come back"
        wrong = os.read(self._report, 4096)
        status = os.waitpid(self.pid, 0)[1]
        assert status == 0, f"wait status {status:#x}"
        assert wrong == b"[]", f"vectors changed: {wrong.decode()}"


def stepped(length: int) -> None:
    victim = Scalable(length)
    thread = only_thread(victim.pid)
    assert any(which in thread.registers().others for which in thread.arch.volatile), "the victim does not use SVE"
    stepper = Stepper(thread)
    exercise(stepper.run, victim.pid)
    stepper.remove()
    thread.let_go()
    victim.check()


def executed(length: int) -> None:
    victim = Scalable(length)
    thread = only_thread(victim.pid)
    executor = Executor(thread)
    exercise(executor.run, victim.pid)
    executor.remove()
    thread.let_go()
    victim.check()


def orphaned(length: int) -> None:
    victim = Scalable(length)
    controller = os.fork()
    if not controller:
        executor = Executor(only_thread(victim.pid))
        exercise(executor.run, victim.pid)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(controller, 0)[1] == signal.SIGKILL
    time.sleep(0.3)
    victim.check()


def _case(way: Callable[[int], None], length: int) -> Callable[[], None]:
    return lambda: way(length)


CASES = {
    f"{way.__name__}-{length}": _case(way, length)
    for way in (stepped, executed, orphaned)
    for length in (16, 32, 64, 256)
}
