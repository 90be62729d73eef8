# SPDX-License-Identifier: Apache-2.0
"""Boot a guest, run one Python program in it, listen until it powers off.  Two guests (``TORPOR_VM_JOBS``) at a time.

The guest talks over its serial console: lines that begin with ``@@`` are for us (``@@READY``, ``@@BEGIN case``,
``@@RESULT {json}``, ``@@EXIT status``), the rest is what the program and the kernel print.

QEMU outlives whoever started it, unless it is told not to: it gets a parent-death signal, which comes when the *thread*
that started it ends.  It has a session of its own, so that Ctrl-C reaches only us, who then end it (`end_all`).
"""

import atexit
import contextlib
import fcntl
import functools
import json
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import VmError, cache_dir, image, in_cache, jobs, processors
from .cpio import CpioWriter
from .debian import require
from .kept import locked
from .targets import Target

_GUEST = Path(__file__).parent.parent / "guest"
_PROJECT = Path(__file__).parents[3]
BOOT_SECONDS = 180
# Guards against what processors leak cost emulated ones most: aarch64 would change page tables at every system call.
# To zero all memory before it is given out is a guard, too.  A fifth of a boot is spent on tests of ciphers, on
# randomness from jitter, which an emulated processor hardly has, and on certificates for signed modules.
FASTER = (
    "mitigations=off nokaslr kpti=off init_on_alloc=0 randomize_kstack_offset=off cryptomgr.notests "
    "initcall_blacklist=jent_mod_init,crypto_kdf108_init,init_encrypted,load_system_certificate_list"
)
_LEAVE_WITH_ME = ("setpriv", "--pdeathsig", "KILL", "--")
_MARK = re.compile(r"@@(READY|BEGIN|RESULT|EXIT) (.*)")


@functools.cache
def slots() -> threading.Semaphore:
    """One for each guest that may run."""
    return threading.Semaphore(jobs())


class Outcome(NamedTuple):
    """What a guest did.  `status` is the program's exit status; None: the guest never came to its end."""

    status: int | None
    results: list[dict[str, Any]]
    output: str
    seconds: float
    cpu: float = 0.0  # seconds of processor time that QEMU took: what a guest costs on a machine that others use, too
    unfinished: frozenset[str] = frozenset()  # cases that began and have no result


class _Running:
    """The guests that run now, so that they can all be ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._guests: set[subprocess.Popen[bytes]] = set()
        self._ending = False

    def start(self, command: Sequence[str], stdin: int = subprocess.DEVNULL) -> "subprocess.Popen[bytes]":
        with self._lock:
            if self._ending:
                raise VmError("the tests were ended before this guest was started")
            guest = subprocess.Popen(
                [*_LEAVE_WITH_ME, *command],
                stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            self._guests.add(guest)
            return guest

    def end(self, guest: "subprocess.Popen[bytes]") -> float:
        """End it, if it has not ended by itself; the processor time that it took."""
        with self._lock:
            self._guests.discard(guest)
        os.kill(guest.pid, signal.SIGKILL)  # not Popen.kill, which reaps
        _, status, usage = os.wait4(guest.pid, 0)
        guest.returncode = os.waitstatus_to_exitcode(status)
        if self._ending:
            raise VmError("the tests were ended while this guest ran")
        return usage.ru_utime + usage.ru_stime

    def end_all(self) -> None:
        with self._lock:
            self._ending = True
            for guest in self._guests:
                os.kill(guest.pid, signal.SIGKILL)


running = _Running()
end_all = running.end_all


@contextlib.contextmanager
def scratch_directory(prefix: str) -> Iterator[Path]:
    """A directory for one guest's files.  Those of runs that were killed are removed first: nobody holds their lock."""
    home = cache_dir() / "scratch"
    with in_cache(), locked(home):
        for old in home.iterdir():
            if old.is_dir() and _abandoned(old):
                shutil.rmtree(old, ignore_errors=True)
        path = Path(tempfile.mkdtemp(dir=home, prefix=prefix))
        held = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(held, fcntl.LOCK_EX)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


def _abandoned(directory: Path) -> bool:
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def _make_disk(path: Path, size: int) -> Path:
    require(("mkfs.ext4", "e2fsprogs"))
    with open(path, "wb") as file:
        file.truncate(size << 20)
    environment = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    # No journal, and nothing that makes the kernel busy later: this file system lives for one run.
    command = ["mkfs.ext4", "-q", "-O", "^has_journal", "-E", "lazy_itable_init=0", str(path)]
    subprocess.run(command, check=True, env=environment)
    return path


@functools.cache
def _kept() -> Path:
    """A directory that lives as long as this process."""
    until_the_end = contextlib.ExitStack()
    atexit.register(until_the_end.close)
    return until_the_end.enter_context(scratch_directory("packed-"))


_packing = threading.Lock()
_packed: dict[tuple[str, Path], Path] = {}


def _pack(name: str, source: Path) -> Path:
    """An archive that unpacks the directory `source` as `name`, its Python compiled; made once for all guests, and so
    without executors (arch/blobs): each is built when the first guest of its architecture is."""
    with _packing:
        if (name, source) not in _packed:
            where = _kept() / str(len(_packed))
            goal = where / "tree" / name
            shutil.copytree(source, goal, ignore=shutil.ignore_patterns("__pycache__", "blobs"))
            image.compile_into(goal, "/" + name)
            with open(where / "archive.cpio", "wb") as file:
                archive = CpioWriter(file)
                archive.tree(where / "tree")
                archive.close()
            shutil.rmtree(where / "tree")
            _packed[name, source] = where / "archive.cpio"
        return _packed[name, source]


def _overlay(path: Path, argv: Sequence[str], modules: Sequence[str], files: dict[str, Path], disk: bool) -> list[Path]:
    """Pack what changes from run to run: init, the project's sources, the test's own files.  The archives, in order."""
    parts = []
    job = {"argv": list(argv), "modules": list(modules), "pythonpath": "/torpor/src:/torpor/tests:/t", "disk": disk}
    with open(path, "wb") as file:
        archive = CpioWriter(file)
        for name, source in {"t": _GUEST, "torpor/src": _PROJECT / "src", **files}.items():
            if source.is_dir():
                parts.append(_pack(name, source))
            else:
                archive.file(name, source.read_bytes(), stat.S_IMODE(source.stat().st_mode))
        archive.file("job.json", json.dumps(job).encode())
        archive.file("init", (_GUEST / "init.py").read_bytes(), 0o755)
        archive.close()
    return [*parts, path]


def _executor(target: Target) -> Path:
    """The guest's executor, built unless there is one of the present source."""
    source = _PROJECT / "src/torpor/arch/executor.c"
    blob = source.parent / "blobs" / f"{target.machine}.bin"
    if not blob.exists() or blob.stat().st_mtime < source.stat().st_mtime:
        tool = str(_PROJECT / "tools/build_executor.py")
        done = subprocess.run([sys.executable, tool, target.machine], capture_output=True, text=True, check=False)
        if done.returncode:
            raise VmError(done.stderr)
    return blob


def command(target: Target, kernel: Path, initrd: Path, *, memory: int = 512, cpus: int = 1) -> list[str]:
    """QEMU's command line for one guest whose console is standard output.

    QEMU gives every processor a thread of its own, so that they really run at once, unless the host's memory orders
    less than the guest's: that is x86_64 and s390x on an ARM or POWER host, whose processors take turns.

    With `mem-merge` a host that looks for equal pages (KSM) would look through the guest's again and again."""
    if target.arch == "s390x":
        console = ["-chardev", "stdio,id=console", "-device", "sclpconsole,chardev=console"]
    else:
        console = ["-serial", "stdio"]
    return [
        target.qemu, *target.board, "-machine", "mem-merge=off", "-m", str(memory), "-smp", str(cpus),
        "-nodefaults", "-display", "none", "-no-reboot", *console, "-kernel", str(kernel), "-initrd", str(initrd),
        "-append", f"console={target.console} quiet loglevel=2 panic=-1 {FASTER}",
    ]  # fmt: skip


@in_cache()
def prepare(
    target: Target,
    version: str,
    directory: Path,
    argv: Sequence[str],
    *,
    files: dict[str, Path] | None = None,
    modules: Sequence[str] = (),
    archives: Sequence[Path] = (),
    disk: bool = False,
    memory: int = 512,
    cpus: int = 0,
) -> list[str]:
    """QEMU's command line for such a guest (see `run`), whose initramfs is made in `directory`; memory in MiB."""
    prepared = image.prepare(target, version)
    executor = _executor(target)
    files = {str(Path("torpor") / executor.relative_to(_PROJECT)): executor, **(files or {})}
    overlay, initrd = directory / "overlay.cpio", directory / "initrd"
    parts = _overlay(overlay, argv, modules, files, disk)
    with open(initrd, "wb") as whole:
        for part in (*prepared.archives, *archives, *parts):
            with open(part, "rb") as source:
                shutil.copyfileobj(source, whole, 1 << 20)
    return command(target, prepared.kernel, initrd, memory=memory, cpus=cpus or processors())


def run(
    target: Target,
    version: str,
    argv: Sequence[str],
    *,
    files: dict[str, Path] | None = None,
    modules: Sequence[str] = (),
    timeout: float = 600,
    extra: Sequence[str] = (),
    echo: Callable[[str], object] | None = None,
    heard: Callable[[dict[str, Any]], object] | None = None,
    disk: int = 0,
    memory: int = 512,
    cpus: int = 0,
    archives: Sequence[Path] = (),
) -> Outcome:
    """Boot `target` with Linux `version` and run ``python3.11 argv`` in it.

    `files` maps paths in the guest to files or directories here; tests/vm/guest is always at /t, src at /torpor/src.
    `disk` MiB, if not 0, are a new ext4 file system at /tmp, which may be larger than its `memory` (MiB).
    `cpus`: how many processors it has; 0: as TORPOR_VM_CPUS says (1).
    `archives` are unpacked before `files`.
    `timeout` counts from the guest being ready, and from the beginning and the result of each case; booting has a
    limit of its own.
    `heard` gets each result when it comes; "cpu" in it is the processor time, in seconds, that QEMU took for the case.
    """
    with slots(), scratch_directory(f"{target.arch}-{version}-") as directory:
        if disk:
            modules = ["virtio_pci", "virtio_blk", "ext4", *modules]
            drive = f"file={_make_disk(directory / 'disk', disk)},if=virtio,format=raw,cache=unsafe"
            extra = [*extra, "-drive", drive]
        to_run = prepare(
            target, version, directory, argv,
            files=files, modules=modules, archives=archives, disk=bool(disk), memory=memory, cpus=cpus,
        )  # fmt: skip
        begun = time.monotonic()
        qemu = running.start([*to_run, *extra])
        try:
            outcome = _listen(qemu, begun, timeout, echo, heard)
        finally:
            cpu = running.end(qemu)
            assert qemu.stdout is not None
            qemu.stdout.close()
        if "@@READY" not in outcome.output:
            images = cache_dir() / "images" / target.arch
            told = f"(it never came to its first program; if it never does, remove {images}: it is made anew)"
            outcome = outcome._replace(output=f"{outcome.output}\n{told}")
        return outcome._replace(cpu=cpu)


def _cpu(pid: int) -> float:
    """Seconds of processor time that a process of ours has taken so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _listen(
    qemu: "subprocess.Popen[bytes]",
    begun: float,
    timeout: float,
    echo: Callable[[str], object] | None,
    heard: Callable[[dict[str, Any]], object] | None,
) -> Outcome:
    assert qemu.stdout is not None
    deadline = time.monotonic() + BOOT_SECONDS
    lines: list[str] = []
    results: list[dict[str, Any]] = []
    begun_cases: dict[str, float] = {}  # when each began, in seconds of processor time
    status: int | None = None
    pending = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([qemu.stdout], [], [], left)[0]:
            lines.append("(the harness gave up waiting for this guest)")
            break
        data = os.read(qemu.stdout.fileno(), 65536)
        if not data:
            break
        *complete, pending = (pending + data).split(b"\n")
        for raw in complete:
            line = raw.decode(errors="replace").rstrip("\r")
            found = _MARK.search(line)  # the kernel may have printed on the same line
            mark, rest = found.groups() if found else ("", "")
            if mark == "READY":
                deadline = time.monotonic() + timeout
            elif mark == "BEGIN":
                begun_cases[rest] = _cpu(qemu.pid)
                deadline = time.monotonic() + timeout
            elif mark == "RESULT":
                result = json.loads(rest)
                taken = _cpu(qemu.pid) - begun_cases.pop(result["case"], 0.0)
                result["cpu"] = round(taken / result.pop("together", 1), 2)
                results.append(result)
                if heard is not None:
                    heard(result)
                deadline = time.monotonic() + timeout
            elif mark == "EXIT":
                status, deadline = int(rest), time.monotonic() + 20
            lines.append(line)
            if echo is not None:
                echo(f"{time.monotonic() - begun:7.2f} {line}")
    return Outcome(status, results, "\n".join(lines), time.monotonic() - begun, unfinished=frozenset(begun_cases))


def describe_failure(outcome: Outcome) -> VmError:
    """An error with the end of what a guest printed."""
    return VmError(f"the guest's program ended with {outcome.status}; its console:\n{outcome.output[-6000:]}")
