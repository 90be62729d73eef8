# SPDX-License-Identifier: Apache-2.0
"""Droppable memory (MAP_DROPPABLE, Linux 6.11) comes back empty, whatever images have of it: the vDSO's getrandom makes
its numbers of what is there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_elsewhere import torpor

from torpor.kernel.maps import read_vm_flags
from torpor.memory import areas

# Keeps two words in droppable memory, and has the vDSO make numbers at each SIGUSR1: not every C library does.
PROGRAM = """
import ctypes, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
kept = libc.mmap(None, 1 << 16, 3, 0x28, -1, 0)
ctypes.memmove(kept, b"SecretOf", 8)
ctypes.memmove(kept + 8, b"TheTests", 8)
try:
    vdso = ctypes.CDLL(sys.argv[1])
    make = getattr(vdso, sys.argv[2])
except (OSError, AttributeError):
    make = None
if make is not None:
    make.restype = ctypes.c_ssize_t
    make.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_void_p, ctypes.c_size_t]
    facts = (ctypes.c_uint * 16)()
    assert make(None, 0, 0, facts, ctypes.c_size_t(-1).value) == 0
    state = libc.mmap(None, 4096, facts[1], facts[2], -1, 0)
    number = ctypes.create_string_buffer(16)
    assert make(number, 16, 0, state, facts[0]) == 16
print(f"{kept:#x}", flush=True)
while True:
    signal.sigwait({signal.SIGUSR1})
    if make is not None:
        assert make(number, 16, 0, state, facts[0]) == 16
    print(ctypes.string_at(kept, 16).hex(), number.raw.hex() if make is not None else "", flush=True)
"""
NAMES = {
    "x86_64": ("linux-vdso.so.1", "__vdso_getrandom"), "aarch64": ("linux-vdso.so.1", "__kernel_getrandom"),
    "ppc64le": ("linux-vdso64.so.1", "__kernel_getrandom"), "s390x": ("linux-vdso64.so.1", "__kernel_getrandom"),
}  # fmt: skip
SECRET = b"SecretOfTheTests"
# As Torpors before did it: what was there is in the images.
STORED = "from torpor.memory import dump\ndump.AddressSpace.forget_droppable = lambda self: None\n"
NO_DROPPABLE = "from torpor.memory import areas\nareas.has_droppable = lambda: False\n"


class Numbers:
    def __init__(self, directory: Path) -> None:
        self.images, self.out = directory / "images", directory / "out"
        self.images.mkdir(mode=0o700)
        with self.out.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *NAMES.get(os.uname().machine, ("none", "none"))],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        self.pid = self.process.pid
        self.kept = int(self._lines(1)[0], 16)

    def _lines(self, count: int) -> list[str]:
        end = time.monotonic() + 20
        while True:
            text = self.out.read_text()
            if text.count("\n") >= count:
                return text.splitlines()
            assert time.monotonic() < end, text
            time.sleep(0.01)

    def ask(self) -> tuple[bytes, str]:
        """What it keeps, and a number that it has made."""
        before = self.out.read_text().count("\n")
        os.kill(self.pid, signal.SIGUSR1)
        kept, _, number = self._lines(before + 1)[-1].partition(" ")
        return bytes.fromhex(kept), number

    def end(self) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
            if self.process.poll() is None:
                self.process.wait()
        except ProcessLookupError:
            pass
        while Path(f"/proc/{self.pid}").exists():
            try:
                os.waitpid(self.pid, 0)
            except ChildProcessError:
                time.sleep(0.01)


@pytest.mark.skipif(not areas.has_droppable(), reason="this kernel has no MAP_DROPPABLE")
@pytest.mark.parametrize("patch", ["", STORED], ids=["ours", "images of before"])
@pytest.mark.parametrize("kernel", ["", NO_DROPPABLE], ids=["droppable", "none"])
def test_droppable_memory_comes_back_empty(tmp_path: Path, patch: str, kernel: str) -> None:
    tree = Numbers(tmp_path)
    try:
        torpor("dump", "-t", tree.pid, "-D", tree.images, "-R", patch=patch)
        stored = any(SECRET in image.read_bytes() for image in tree.images.glob("pages-*"))
        assert stored == bool(patch)  # nobody else has it in memory as one word
        numbers = [number for kept, number in [tree.ask() for _ in range(3)] if kept in (SECRET, bytes(16))]
        assert len(numbers) == 3
        for _ in range(2):
            tree.end()
            torpor("restore", "-d", "-D", tree.images, patch=kernel)
            flags = read_vm_flags(tree.pid)[tree.kept]
            assert ("dp" in flags) == (not kernel)
            for _ in range(3):
                kept, number = tree.ask()
                assert kept == bytes(16)
                numbers.append(number)
        if any(numbers):
            assert len(set(numbers)) == len(numbers)
    finally:
        tree.end()
