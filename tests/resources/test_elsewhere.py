# SPDX-License-Identifier: Apache-2.0
"""Trees that are restored as if under another kernel or on another boot (the real thing is in tests/vm): the vDSO is
redirected, and the clocks go on in a time namespace."""

import ctypes
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

import pytest

from harness.workload import Workload
from torpor.arch import native
from torpor.images import kinds
from torpor.images.directory import ImageReader, ImageWriter
from torpor.kernel.maps import read_maps, read_vm_flags
from torpor.kernel.process import CLONE_NEWUSER, unshare
from torpor.memory import areas, vdso
from torpor.memory.vdso_place import Kernels
from torpor.resources import clocks

ROOT = Path(__file__).resolve().parents[2]
GUEST = ROOT / "tests/vm/guest"
# Takes this kernel's vDSO for another one than any in images.
OTHER_VDSO = """
from torpor.memory import vdso_place
look = vdso_place.Kernels.look()
vdso_place.Kernels.look = classmethod(lambda cls: look._replace(text=look.text[:-1] + bytes([look.text[-1] ^ 1])))
vdso_place.Places._fits = lambda self, text: False
"""
NO_TIME_NAMESPACES = """
from torpor.resources import clocks
def none(pid):
    raise FileNotFoundError
clocks.offsets = none
"""
MAIN = """
import sys
from torpor.cli.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
JUMP = 1000


def torpor(*words: object, patch: str = "", fails: bool = False, before: Callable[[], object] | None = None) -> str:
    """`before`: what its process does at its start."""
    done = subprocess.run(
        [sys.executable, "-c", patch + MAIN, *map(str, words)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, preexec_fn=before,
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stdout
    return done.stdout


class Clockwork:
    """The busy tree of the guests' tests."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.images = directory, directory / "images"
        shutil.copy(Workload(GUEST / "vdso_calls.c").compiled(), directory / "vdso_calls")
        command = [sys.executable, str(GUEST / "clockwork.py"), str(directory)]
        null = subprocess.DEVNULL
        with (directory / "errors").open("wb") as errors:
            process = subprocess.Popen(command, stdin=null, stdout=null, stderr=errors, start_new_session=True)
        self.pid = process.pid
        process.returncode = 0  # it is ended by dumps, and waited for by whoever adopts orphans
        self.work()

    def counters(self) -> tuple[int, ...]:
        try:
            *four, _, calls = struct.unpack("=6Q", (self.directory / "counters").read_bytes()[:48])
            return *four, calls
        except (FileNotFoundError, struct.error):
            return ()

    def work(self) -> None:
        """Until every part has got on."""
        before = self.counters()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            now = self.counters()
            if now and all(b > a for a, b in zip(before or (0,) * 5, now, strict=True)):
                return
            time.sleep(0.01)
        pytest.fail(f"the tree does not get on: {(self.directory / 'errors').read_text()}")

    def dump(self) -> None:
        if self.images.exists():
            for path in self.images.iterdir():
                path.unlink()
        self.images.mkdir(mode=0o700, exist_ok=True)
        torpor("dump", "-t", self.pid, "-D", self.images)
        self.reap()

    def reap(self) -> None:
        """All of its process group have ended; orphans are ours (tests/conftest.py)."""
        try:
            while True:
                os.waitpid(-self.pid, 0)
        except ChildProcessError:
            pass

    def restore(self, patch: str = "", *options: object) -> None:
        torpor("restore", "-d", "-D", self.images, *options, patch=patch)

    def finish(self) -> None:
        """All that it has to say is that nothing was wrong."""
        os.kill(self.pid, signal.SIGTERM)
        self.reap()
        told = json.loads((self.directory / "result").read_text())
        assert told == {"root": [], "busy": [], "answer": [], "handle": [], "calls": []}

    def vdso(self) -> tuple[int, int]:
        """Where the program looks for it, and where the kernel has it."""
        words = dict(struct.iter_unpack("2L", Path(f"/proc/{self.pid}/auxv").read_bytes()))
        return words[33], next(area.start for area in read_maps(self.pid) if area.path == "[vdso]")


@pytest.fixture
def clockwork(tmp_path: Path) -> Iterator[Clockwork]:
    tree = Clockwork(tmp_path)
    yield tree
    try:
        os.killpg(tree.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    tree.reap()


def change(images: Path, name: str, id: int | None, **fields: object) -> None:
    """Write an image with other values in it."""
    kind = getattr(kinds, name)
    fd = os.open(images, os.O_RDONLY)
    (entry,) = ImageReader(fd).entries(kind, id)
    for field, value in fields.items():
        setattr(entry, field, value)
    scratch = images.parent / "changed"
    scratch.mkdir()
    writer = ImageWriter(os.open(scratch, os.O_RDONLY))
    writer.write(kind, [entry], id)
    (scratch / kind.file_name(id)).rename(images / kind.file_name(id))
    for path in scratch.iterdir():
        path.unlink()
    scratch.rmdir()


# -- vDSO -------------------------------------------------------------------------------------------------------------


def test_symbols_of_this_kernel() -> None:
    text = Kernels.look().text
    found = vdso.symbols(text)
    assert any("clock_gettime" in name for name in found)
    assert all(0 < symbol.offset < len(text) for symbol in found.values())
    assert vdso.fits(found, found)
    assert not vdso.fits(found, {name: vdso.Symbol(symbol.offset + 16, 9) for name, symbol in found.items()})
    assert not vdso.fits({"more": vdso.Symbol(1, 1), **found}, found)


def test_what_only_the_old_one_has_stays() -> None:
    text = Kernels.look().text
    found = vdso.symbols(text)
    name, symbol = next((name, symbol) for name, symbol in found.items() if "clock_gettime" in name)
    patched = vdso.redirect(text, {name: vdso.Symbol(0x123, 4)}, 0x500000, native())
    jump = native().jump(0x500123)
    assert patched[symbol.offset :][: len(jump)] == jump
    assert patched == text[: symbol.offset] + jump + text[symbol.offset + len(jump) :]
    assert symbol.offset in vdso.entries(text)


@pytest.mark.parametrize(
    "damage", [b"", b"\x7fELF", b"\x7fELF\x02\x01" + bytes(100), b"\x7fELF\x02\x01" + b"\xff" * 500]
)
def test_mangled_vdso(damage: bytes) -> None:
    with pytest.raises(vdso.NotElf):
        vdso.symbols(damage)


def test_truncated_vdso() -> None:
    text = Kernels.look().text
    for length in range(0, len(text), 97):
        try:
            vdso.symbols(text[:length])
        except vdso.NotElf:
            pass


def test_redirected_twice(clockwork: Clockwork) -> None:
    remembered, at = clockwork.vdso()
    assert remembered == at
    for _ in range(2):
        clockwork.dump()
        clockwork.restore(OTHER_VDSO)
        old, new = clockwork.vdso()
        assert old == remembered and new not in (at, old)
        at = new
        clockwork.work()
    clockwork.dump()
    clockwork.restore()  # this kernel's has not changed since: it is only moved
    assert clockwork.vdso() == (remembered, at)
    clockwork.work()
    clockwork.finish()


def test_inside_the_vdso(clockwork: Clockwork) -> None:
    clockwork.dump()
    images = ImageReader(os.open(clockwork.images, os.O_RDONLY))
    if os.uname().machine != "x86_64":
        pytest.skip("writes registers of x86_64 into an image")
    core = deepcopy(images.one(kinds.CORE, clockwork.pid))  # what is alike is shared with others
    start = next(area.start for area in images.one(kinds.MM, clockwork.pid).vmas if area.status & 8)
    assert core.thread_info is not None
    core.thread_info.gpregs.orig_ax, core.thread_info.gpregs.ax = (1 << 64) - 1, 0  # in no call
    entry = min(vdso.entries(Kernels.look().text))
    for inside in (0, 5):
        core.thread_info.gpregs.ip = start + entry + inside
        change(clockwork.images, "CORE", clockwork.pid, thread_info=core.thread_info)
        said = torpor("check", "-D", clockwork.images, "--json", patch=OTHER_VDSO, fails=inside > 0)
        codes = [one["code"] for one in json.loads(said)["obstacles"]]
        assert codes == (["inside-vdso"] if inside else [])
    assert json.loads(torpor("check", "-D", clockwork.images, "--json"))["ok"]  # under its own kernel it goes on


# Stays in a signal handler that has interrupted the vDSO (its size and where functions begin are arguments), or a loop.
IN_HANDLER = """
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/time.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

static volatile int count; /* the handler sees it at once */
static char **volatile words;

static void handler(int number, siginfo_t *info, void *context)
{
	unsigned long at = ((ucontext_t *)context)->uc_mcontext.PC - getauxval(AT_SYSINFO_EHDR);
	for (int i = 1; i < count; i++)
		if (i == 1 ? at >= strtoul(words[i], NULL, 10) : at == strtoul(words[i], NULL, 10))
			return;
	write(1, ".", 1);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | FLAG};
	stack_t alternate = {.ss_sp = malloc(65536), .ss_size = 65536};
	struct itimerval often = {{0, 997}, {0, 997}};
	struct timespec now;
	count = argc, words = argv;
	sigaltstack(&alternate, NULL);
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	for (;;)
		if (argc > 1)
			clock_gettime(CLOCK_MONOTONIC, &now);
}
"""
COUNTERS = {"x86_64": "gregs[REG_RIP]", "aarch64": "pc"}


@pytest.mark.skipif(os.uname().machine not in COUNTERS, reason="the program knows no signal frames of this machine")
@pytest.mark.parametrize("inside,flag", [(True, "0"), (True, "SA_ONSTACK"), (False, "0")])
def test_in_a_handler_that_has_interrupted_the_vdso(tmp_path: Path, inside: bool, flag: str) -> None:
    (tmp_path / "in_handler.c").write_text(IN_HANDLER)
    program = tmp_path / "in_handler"
    defines = "-D_GNU_SOURCE", f"-DPC={COUNTERS[os.uname().machine]}", f"-DFLAG={flag}"
    subprocess.run(["gcc", "-O1", "-w", *defines, "-o", program, f"{program}.c"], check=True)
    text = Kernels.look().text
    words = [len(text), *sorted(vdso.entries(text))] if inside else []
    null = subprocess.DEVNULL
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [program, *map(str, words)], stdin=null, stdout=writer, stderr=null, start_new_session=True
    )
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"."
        images = tmp_path / "images"
        images.mkdir(mode=0o700)
        torpor("dump", "-t", process.pid, "-D", images, "--leave-stopped")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        said = torpor("check", "-D", images, "--json", patch=OTHER_VDSO, fails=inside)
        codes = [one["code"] for one in json.loads(said)["obstacles"]]
        assert codes == (["inside-vdso"] if inside else [])
        assert json.loads(torpor("check", "-D", images, "--json"))["ok"]  # under its own kernel it goes on
    finally:
        process.kill()
        process.wait()
        os.close(reader)


DROPPABLE_PROGRAM = """
import ctypes, time
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
print(libc.mmap(None, 1 << 16, 3, 0x28, -1, 0), flush=True)
time.sleep(1000)
"""


@pytest.mark.skipif(not areas.has_droppable(), reason="this kernel has no MAP_DROPPABLE")
def test_without_droppable_memory(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen([sys.executable, "-c", DROPPABLE_PROGRAM], stdin=subprocess.DEVNULL, stdout=out,
                                   stderr=out, start_new_session=True)  # fmt: skip
    try:
        while not (text := (tmp_path / "out").read_text()).endswith("\n"):
            assert process.poll() is None
            time.sleep(0.01)
        at = int(text)
        (tmp_path / "images").mkdir(mode=0o700)
        assert "dp" in read_vm_flags(process.pid)[at]
        torpor("dump", "-t", process.pid, "-D", tmp_path / "images")
        process.wait()
        torpor("restore", "-d", "-D", tmp_path / "images",
               patch="from torpor.memory import areas\nareas.has_droppable = lambda: False\n")  # fmt: skip
        flags = read_vm_flags(process.pid)[at]
        assert "dp" not in flags and {"rd", "wr", "wf", "dd"} <= flags
    finally:
        try:
            os.kill(process.pid, signal.SIGKILL)
            os.waitpid(process.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


NO_VSYSCALL = "from torpor.memory import kernels_areas\nkernels_areas.has_vsyscall = lambda: False\n"
TWO = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if child := os.fork():
    print(child, flush=True)
time.sleep(1000)
"""


@pytest.mark.skipif("[vsyscall]" not in Path("/proc/self/maps").read_text(), reason="this kernel has no vsyscall page")
def test_without_a_vsyscall_page(tmp_path: Path) -> None:
    """There is one warning, of all tasks."""
    reader, writer = os.pipe()
    null = subprocess.DEVNULL
    process = subprocess.Popen(
        [sys.executable, "-c", TWO], stdin=null, stdout=writer, stderr=null, start_new_session=True
    )
    os.close(writer)
    try:
        child = int(os.read(reader, 10))
        (tmp_path / "images").mkdir(mode=0o700)
        torpor("dump", "-t", process.pid, "-D", tmp_path / "images", "-R")
        os.kill(child, signal.SIGKILL)  # first: nobody else might collect it
        while Path(f"/proc/{child}").exists():
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert "vsyscall page" not in torpor("check", "-D", tmp_path / "images")
        for command in ["check"], ["restore", "-d"]:
            said = torpor(*command, "-D", tmp_path / "images", patch=NO_VSYSCALL)
            assert said.count("Warn: task") == said.count("this kernel has no vsyscall page") == 1
    finally:
        os.close(reader)
        try:
            os.killpg(process.pid, signal.SIGKILL)
            os.waitpid(process.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


BOUND = """
import os, threading
told, forever = threading.Event(), threading.Event()
def bound():
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    told.set()
    forever.wait()
threading.Thread(target=bound).start()
threading.Thread(target=forever.wait).start()
told.wait()
print(end=".", flush=True)
forever.wait()
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is but one CPU")
def test_other_cpus(tmp_path: Path) -> None:
    """Threads that could run anywhere may do so again, on what CPUs the restoring command has; one that was bound is
    bound to the same one."""
    first, *others = sorted(os.sched_getaffinity(0))
    reader, writer = os.pipe()
    null = subprocess.DEVNULL
    process = subprocess.Popen(
        [sys.executable, "-c", BOUND], stdin=null, stdout=writer, stderr=null, start_new_session=True
    )
    os.close(writer)

    def cpus() -> list[set[int]]:
        return [os.sched_getaffinity(int(tid)) for tid in sorted(os.listdir(f"/proc/{process.pid}/task"), key=int)]

    try:
        assert os.read(reader, 1) == b"."
        (tmp_path / "images").mkdir(mode=0o700)
        torpor("dump", "-t", process.pid, "-D", tmp_path / "images")
        process.wait()
        for mine in {*others}, {first, *others}:
            torpor("restore", "-d", "-D", tmp_path / "images", patch=f"import os\nos.sched_setaffinity(0, {mine!r})\n")
            assert cpus() == [mine, {first}, mine]
            os.kill(process.pid, signal.SIGKILL)
            while Path(f"/proc/{process.pid}").exists():
                with suppress(ChildProcessError):
                    os.waitpid(process.pid, 0)
                time.sleep(0.01)
    finally:
        os.close(reader)
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(process.pid, signal.SIGKILL)
            os.waitpid(process.pid, 0)


# -- clocks -----------------------------------------------------------------------------------------------------------


def another_boot(tree: Clockwork, jump: int, boot_id: str = "another", slept: int = 0) -> None:
    """As if the dump came from a machine that has been up for `jump` seconds longer, and asleep for `slept` besides."""
    entry = deepcopy(ImageReader(os.open(tree.images, os.O_RDONLY)).one(kinds.TIMENS, 0))
    change(tree.images, "TORPOR_HOST", None, boot_id=boot_id)
    entry.monotonic.tv_sec += jump
    entry.boottime.tv_sec += jump + slept
    change(tree.images, "TIMENS", 0, monotonic=entry.monotonic, boottime=entry.boottime)


def test_same_boot(clockwork: Clockwork) -> None:
    clockwork.dump()
    clockwork.restore()
    assert os.readlink(f"/proc/{clockwork.pid}/ns/time") == os.readlink("/proc/self/ns/time")
    clockwork.work()
    clockwork.finish()


@pytest.mark.parametrize("boot", ["another", "put back"])
def test_another_boot(clockwork: Clockwork, boot: str) -> None:
    """The clocks go on; the tree, in a time namespace now, is dumped and restored once more.  A virtual machine that is
    put back to a snapshot is on the same boot, at an earlier time."""
    clockwork.dump()
    another_boot(clockwork, JUMP, clocks._boot_id() if boot == "put back" else boot)
    before = time.monotonic()
    then = ImageReader(os.open(clockwork.images, os.O_RDONLY)).one(kinds.TIMENS, 0).monotonic
    clockwork.restore()
    offset = clocks.offsets(clockwork.pid)
    now = time.monotonic()
    ahead = now + offset.monotonic / 1e9 - (then.tv_sec + then.tv_nsec / 1e9)
    assert 0 <= ahead <= now - before
    assert offset.monotonic > (JUMP - 300) * 1e9
    clockwork.work()
    clockwork.dump()
    assert (clockwork.images / "timens-9.img").exists() and not (clockwork.images / "timens-0.img").exists()
    clockwork.restore()
    assert clocks.offsets(clockwork.pid) == offset
    clockwork.work()
    clockwork.finish()


def test_only_the_clock_of_the_boot_is_behind(clockwork: Clockwork) -> None:
    """As on a virtual machine that was put back to a time before it slept, and has been awake since for as long."""
    clockwork.dump()
    another_boot(clockwork, 0, clocks._boot_id(), JUMP)
    clockwork.restore()
    offset = clocks.offsets(clockwork.pid)
    assert offset.boottime - offset.monotonic == pytest.approx(JUMP * 1e9, abs=1e6)
    clockwork.work()
    clockwork.finish()


def no_more_time_namespaces() -> None:
    """In a user namespace of its own, which has limits of its own, too."""
    unshare(CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1")):
        Path(f"/proc/self/{name}").write_text(text)
    Path("/proc/sys/user/max_time_namespaces").write_text("0")


def without_cap_sys_time() -> None:
    ctypes.CDLL(None).prctl(24, 25, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.mark.parametrize(
    ("before", "why", "remedy"),
    [
        (no_more_time_namespaces, "user.max_time_namespaces allows no more time namespaces", "raise that limit"),
        (without_cap_sys_time, "we may not make a time namespace", "run Torpor with CAP_SYS_ADMIN and CAP_SYS_TIME"),
    ],
)
def test_a_time_namespace_that_cannot_be_made(
    clockwork: Clockwork, before: Callable[[], None], why: str, remedy: str
) -> None:
    clockwork.dump()
    another_boot(clockwork, JUMP)
    said = torpor("check", "-D", clockwork.images, "--json", before=before, fails=True)
    (found,) = [one for one in json.loads(said)["obstacles"] if one["code"] == "clocks"]
    assert found["why"].endswith(why) and found["remedy"].startswith(remedy)
    assert "--allow-clock-jump" in found["remedy"]


def test_without_time_namespaces(clockwork: Clockwork) -> None:
    clockwork.dump()
    another_boot(clockwork, JUMP)
    said = torpor("restore", "-d", "-D", clockwork.images, "--json", patch=NO_TIME_NAMESPACES, fails=True)
    assert json.loads(said)["error"]["code"] == "clocks" and "--allow-clock-jump" in said
    another_boot(clockwork, -JUMP - 1)  # jumping ahead is allowed
    torpor("check", "-D", clockwork.images, patch=NO_TIME_NAMESPACES)
    another_boot(clockwork, JUMP)
    clockwork.restore(NO_TIME_NAMESPACES, "--allow-clock-jump")
    clockwork.work()
    clockwork.finish()


def test_impossible_clocks(clockwork: Clockwork) -> None:
    clockwork.dump()
    another_boot(clockwork, 1 << 40)
    said = torpor("restore", "-d", "-D", clockwork.images, "--json", fails=True)
    assert "timens-0.img is mangled" in said
