# SPDX-License-Identifier: Apache-2.0
"""Only when all images are on the disk is the original ended: strace watches the dump, in the order of what it asks the
kernel for.

Each image is written, then fsync'd, and so is each file that the program can write to; then the directory is; then
inventory.img comes, written under another name, fsync'd and renamed; the directory is fsync'd once more; and only then
do the tasks get their SIGKILL (or SIGSTOP).  A checker that cannot fail would show nothing, so it is also given dumps
in which something of that is broken.  (What the tasks themselves write, their pages, is not seen: only that these
images are fsync'd.)
"""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from harness.events import tree_of

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace"),
]

SOURCE = Path(__file__).resolve().parent.parent / "src"
CALLS = (
    "openat,?open,?creat,write,pwrite64,pwritev,writev,ftruncate,fallocate,sendfile,copy_file_range,splice,"
    "fsync,fdatasync,?rename,renameat,renameat2,?unlink,unlinkat,linkat,kill,tkill,tgkill,pidfd_send_signal"
)
WRITES = {"write", "pwrite64", "pwritev", "writev", "ftruncate", "fallocate", "sendfile", "copy_file_range", "splice"}
WRITTEN = ("written", "mapped", "names/linked")  # files of the program's; the name of the last is gone
DOES_NOT_COUNT = "stats-dump"  # nothing depends on it

# It owns pages of several sorts, a deleted file, one of whose names is deleted, data in a pipe, a child; files that it
# has written to by a descriptor and by a mapping, and one that it only reads.
VICTIM = """
import mmap, os, time
shared = mmap.mmap(-1, 1 << 20); shared[:] = b"s" * len(shared)
gone = open("gone", "w+b"); gone.write(bytes(100000)); gone.flush(); os.unlink("gone")
os.mkdir("names"); linked = open("names/linked", "w"); os.link("names/linked", "other"); os.unlink("names/linked")
pipe = os.pipe(); os.write(pipe[1], b"data")
own = bytearray(b"o" * (1 << 20))
written = open("written", "wb", 0); written.write(b"w"); again = open("written", "rb+")
mapped = open("mapped", "wb+"); mapped.truncate(4096)
mapping = mmap.mmap(mapped.fileno(), 4096); mapping[:1] = b"m"; mapped.close()
open("only-read", "w").close(); only_read = open("only-read")
if os.fork():
    print("ready", flush=True)
time.sleep(1000)
"""

# Commands in which the order is broken in one way each, and the words in which that is noticed.
BROKEN = {
    "an image is not synced": (
        """sync = os.fsync
os.fsync = lambda fd: os.readlink(f"/proc/self/fd/{fd}").endswith("/pages-1.img") or sync(fd)""",
        "pages-1.img was not synced after",
    ),
    "the directory is not synced": (
        """sync = os.fsync
os.fsync = lambda fd: os.path.isdir(f"/proc/self/fd/{fd}") or sync(fd)""",
        "the directory was not synced before",
    ),
    "the inventory is not synced": (
        """sync = os.fsync
os.fsync = lambda fd: "inventory" in os.readlink(f"/proc/self/fd/{fd}") or sync(fd)""",
        "inventory.img was renamed before it was synced",
    ),
    "the program's own file is not synced": (
        """sync = os.fsync
os.fsync = lambda fd: os.readlink(f"/proc/self/fd/{fd}").endswith("/mapped") or sync(fd)""",
        "has written to mapped was brought to the disk 0 times",
    ),
    "an image is written to after its fsync": (
        """sync = ImageWriter._sync_files
def late(self, also):
    sync(self, also)
    fd = os.open("pstree.img", os.O_WRONLY | os.O_APPEND, dir_fd=self.dir_fd)
    os.write(fd, b"")
    os.close(fd)
ImageWriter._sync_files = late""",
        "pstree.img was not synced after",
    ),
    "the inventory comes first": (
        """sync = ImageWriter._sync_files
def early(self, also):
    os.fsync(self.dir_fd)
    open(f"/proc/self/fd/{self.dir_fd}/early", "w").close()
    os.rename("early", "inventory.img", src_dir_fd=self.dir_fd, dst_dir_fd=self.dir_fd)
    sync(self, also)
ImageWriter._sync_files = early""",
        "inventory.img appeared 2 times",
    ),
    "the original is ended first": (
        """finish = dump_write.finish
def late(session):
    sys.modules["torpor.dump"]._kill(session)
    finish(session)
dump_write.finish = late""",
        "between the rename of inventory.img and the end",
    ),
}
PRELUDE = """
import os, sys
from torpor import dump_write
from torpor.cli.__main__ import main
from torpor.images.directory import ImageWriter
import torpor.dump
"""


class Event(NamedTuple):
    """One system call that succeeded.  `paths`: of all that it names, in order; `signal`, `pid`: of a kill."""

    call: str
    paths: tuple[str, ...]
    signal: str = ""
    pid: int = 0


def events(trace: Path) -> list[Event]:
    """What strace -f -y wrote.  Calls that others ran in between are written in two parts; a call counts when it ends,
    but a kill or rename when it begins: what follows from it may be seen before it returns."""
    found: list[Event] = []
    begun: dict[str, tuple[str, int]] = {}
    for line in trace.read_text(errors="replace").splitlines():
        tid, _, text = line.partition(" ")
        text = text.strip()
        if text.endswith("<unfinished ...>"):
            begun[tid] = text.removesuffix("<unfinished ...>"), len(found)
            continue
        at = len(found)
        if resumed := re.match(r"<\.\.\. \w+ resumed>(.*)", text):
            start, began = begun.pop(tid)
            text = start + resumed[1]
            at = began if start.startswith(("kill", "rename")) else at
        call = re.match(r"(\w+)\((.*)\) += (-?\d+)", text)
        if call and int(call[3]) >= 0:
            found.insert(at, _event(call[1], call[2]))
    return found


def _event(call: str, words: str) -> Event:
    if "kill" in call or call == "pidfd_send_signal":
        numbers = re.findall(r"\b\d+\b", re.sub(r"<.*?>", "", words))
        return Event(call, (), (re.findall(r"SIG\w+", words) or ["0"])[0], int(numbers[-1 if call == "tgkill" else 0]))
    paths: list[str] = []
    directory = ""
    for descriptor, quoted in re.findall(r'(?:\b\d+|AT_FDCWD)<([^>]*)>|("(?:[^"\\]|\\.)*")(?!\.\.\.)', words):
        if quoted and call not in WRITES:
            paths.append(os.path.normpath(os.path.join(directory, ast.literal_eval(quoted))))
        elif descriptor:
            directory = descriptor
            if call in WRITES or call.endswith("sync"):
                paths.append(descriptor)
    return Event(call, tuple(paths))


def faults(found: list[Event], images: Path, pids: set[int], final: str) -> list[str]:
    """What is wrong with the order of these events of a dump."""
    wrong = []
    last_write: dict[str, int] = {}
    synced: dict[str, list[int]] = {}
    named: list[tuple[int, str, str]] = []
    ends = []
    for at, event in enumerate(found):
        if event.call in WRITES or event.call.startswith(("open", "creat")) or event.call in ("unlink", "unlinkat"):
            for path in event.paths[-1:] if event.call not in WRITES else event.paths:
                last_write[path] = at if event.call in WRITES else last_write.get(path, at)
        elif event.call in ("fsync", "fdatasync"):
            synced.setdefault(event.paths[0], []).append(at)
        elif event.call.startswith("rename"):
            named.append((at, *event.paths[-2:]))  # type: ignore[arg-type]
        elif event.signal == final and event.pid in pids:
            ends.append(at)
    inventory = str(images / "inventory.img")
    renames = [(at, source) for at, source, target in named if target == inventory]
    if len(renames) != 1 or not ends:
        return [f"inventory.img appeared {len(renames)} times, {len(ends)} tasks got {final}"]
    (born, source), end = renames[0], min(ends)
    syncs = synced.get(str(images), [])
    if not any(born < at < end for at in syncs):
        wrong.append("the directory was not synced between the rename of inventory.img and the end of the original")
    if not any(last_write[source] < at < born for at in synced.get(source, [])):
        wrong.append("inventory.img was renamed before it was synced")
    whole = max((at for at in syncs if at < born), default=-1)
    if whole < 0:
        wrong.append("the directory was not synced before inventory.img appeared")
    for name in sorted(os.listdir(images)):
        path = str(images / name)
        if name in (DOES_NOT_COUNT, "inventory.img"):
            continue
        if not any(last_write.get(path, len(found)) < at < born for at in synced.get(path, [])):
            wrong.append(f"{name} was not synced after its last write and before inventory.img appeared")
    for name in (str(images.parent / "names"),):  # where link_remap.N was made
        links = [at for at, event in enumerate(found) if event.call == "linkat" and event.paths[-1].startswith(name)]
        if not links or not any(links[-1] < at < born for at in synced.get(name, [])):
            wrong.append(f"{name} was not synced after a name was made in it")
    for name in WRITTEN:
        paths = (str(images.parent / name), f"{images.parent / name} (deleted)")
        times = sum(at < born for path in paths for at in synced.get(path, []))
        if times != 1:
            wrong.append(f"what the program has written to {name} was brought to the disk {times} times")
    if not any(at < born for at in synced.get(str(images.parent), [])):
        wrong.append("the directory of the program's files was not synced")
    wrong += [f"{path} was synced, which nobody writes" for path in synced if path.endswith("/only-read")]
    return wrong


def watched(place: Path, breakage: str, *options: str) -> tuple[list[Event], Path, set[int]]:
    """A dump under strace: what it did, the images, and the tasks of the tree."""
    images = place / "images"
    images.mkdir()
    victim = subprocess.Popen(
        [sys.executable, "-c", VICTIM], cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    pids: list[int] = []
    try:
        assert victim.stdout and victim.stdout.readline() == b"ready\n"
        victim.stdout.close()
        pids = tree_of(victim.pid)
        program = f"{PRELUDE}{breakage}\nsys.exit(main(sys.argv[1:]))\n"
        trace = place / "trace"
        done = subprocess.run(
            ["strace", "-f", "-y", "-qq", "-s", "4096", "-e", f"trace={CALLS}", "-e", "signal=none", "-o", trace,
             sys.executable, "-c", program, "dump", "-t", str(victim.pid), "-D", images, "--link-remap",
             "--manage-cgroups=ignore", *options],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        if not breakage and "-s" not in options:
            deadline = time.monotonic() + 10
            while any(_runs(pid) for pid in pids):
                assert time.monotonic() < deadline, "the original was not ended"
                time.sleep(0.01)
        return events(trace), images, set(pids)
    finally:
        for pid in pids or [victim.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        victim.wait()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize(("option", "final"), [("", "SIGKILL"), ("-s", "SIGSTOP")], ids=["ends", "stops"])
def test_all_is_on_the_disk_before_the_original_ends(option: str, final: str, tmp_path: Path) -> None:
    found, images, pids = watched(tmp_path, "", *option.split())
    names = os.listdir(images)
    assert {"pages-1.img", "pages-2.img", "pipes-data.img"} <= set(names)
    assert any(name.startswith("ghost-file-") for name in names)
    assert faults(found, images, pids, final) == []


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_order_is_noticed(how: str, tmp_path: Path) -> None:
    breakage, words = BROKEN[how]
    found, images, pids = watched(tmp_path, breakage)
    assert words in " ".join(faults(found, images, pids, "SIGKILL"))
