# SPDX-License-Identifier: Apache-2.0
"""One dump, one restore: how long, how long frozen, how much memory.

Time and memory are taken in different runs. The largest resident size of any one process of the tool comes with the
timed runs for nothing (wait4). The tool may be several processes, so one further run, which is not timed, looks
through the tool's tree all the time and adds up the proportional sizes of the processes alive together. The larger of
the two is reported.

The victim is not part of the tool: what runs inside it costs the victim, and a restored tree is at first
the tool's child.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.victims import BenchError, Victim, children


class Tool(NamedTuple):
    """A command that takes CRIU's arguments."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]


class Timing(NamedTuple):
    """One run of the tool, in seconds and MB (10⁶ bytes)."""

    frozen: float | None
    whole: float
    settled: float  # until the kernel has it all on the disk
    memory: float
    size: int  # bytes in the images' directory


def fresh(directory: Path) -> None:
    """An empty directory; what was in it is set aside."""
    if directory.exists():
        set_aside(directory)
    directory.mkdir(parents=True, mode=0o700)


def set_aside(directory: Path) -> None:
    """Empty the files in and below a directory, and rename it.  They are not removed before the run is over: ext4 does
    not give an inode again soon after it was freed, and looks at all of these before it finds another for a new file,
    up to 0.7 ms instead of 0.03."""
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.truncate(path, 0)
    directory.rename(tempfile.mkdtemp(prefix="old-", dir=directory.parent))


def size_of(directory: Path) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(directory))


def settle(directory: Path) -> None:
    """syncfs(2): write out what the file system still has to write, so that the next run does not pay for this one."""
    subprocess.run(["sync", "-f", str(directory)], check=True)


def warm(directory: Path) -> None:
    """Both tools' images are in the page cache when a restore is measured."""
    for entry in os.scandir(directory):
        with open(entry.path, "rb") as file:
            while file.read(1 << 20):
                pass


def last_words(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return "(no log)"
    return "\n".join([line for line in lines if "Error" in line or "rror:" in line][-5:] or lines[-5:])


def complain(tool: Tool, arguments: Sequence[str], status: int, images: Path, log: str) -> BenchError:
    command = " ".join([*tool.command, *arguments])
    return BenchError(f"{tool.name} failed (status {status}): {command}\n{last_words(images / log)}")


def timed(stopwatch: Path, tool: Tool, arguments: Sequence[str], images: Path, log: str) -> tuple[float, float]:
    """(seconds, MB) of one run."""
    run = subprocess.run(
        [str(stopwatch), "time", *tool.command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=tool.environment, check=True,
    )  # fmt: skip
    status, wall, resident = map(int, run.stdout.split())
    if status:
        raise complain(tool, arguments, status, images, log)
    return wall / 1e9, resident * 1024 / 1e6


def proportional(pid: int) -> float:
    """MB of one process, pages shared with others counted in part."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass  # it ended while we looked
    return 0.0


def watched(tool: Tool, arguments: Sequence[str], images: Path, log: str, not_tool: set[int]) -> float:
    """MB that the tool's processes had together at most. They stay known when their parent ends before them."""
    most = 0.0
    process = subprocess.Popen(
        [*tool.command, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=tool.environment,
    )  # fmt: skip
    known = {process.pid}
    while process.poll() is None:
        for pid in list(known):
            known.update(child for child in children(pid) if child not in not_tool)
        most = max(most, sum(map(proportional, known)))
        time.sleep(0.0005)
    if process.returncode:
        raise complain(tool, arguments, process.returncode, images, log)
    return most


def dump_arguments(victim: Victim, images: Path) -> list[str]:
    return ["dump", "-t", str(victim.pid), "-D", str(images), "-R", "-o", "dump.log"]


def restore_arguments(images: Path) -> list[str]:
    return ["restore", "-d", "-D", str(images), "-o", "restore.log"]


def dump(stopwatch: Path, tool: Tool, victim: Victim, images: Path) -> Timing:
    """Dump once, the victim goes on."""
    fresh(images)
    victim.check(f"before {tool.name} dumps")
    victim.forget_gaps()
    start = time.monotonic()
    whole, memory = timed(stopwatch, tool, dump_arguments(victim, images), images, "dump.log")
    over = time.monotonic()
    settle(images)
    settled = whole + time.monotonic() - over
    assert over - start >= whole
    gap = victim.check(f"after {tool.name} dumped")
    return Timing(gap / 1e9, whole, settled, memory, size_of(images))


def watch_dump(tool: Tool, victim: Victim, images: Path) -> float:
    """Dump once more for the memory alone; also leaves the images that are restored afterwards."""
    fresh(images)
    memory = watched(tool, dump_arguments(victim, images), images, "dump.log", victim.pids)
    settle(images)
    victim.check(f"after {tool.name} dumped")
    return memory


def restore(stopwatch: Path, tool: Tool, victim: Victim, images: Path) -> Timing:
    """Restore once, see that the tree runs, end it."""
    warm(images)
    whole, memory = timed(stopwatch, tool, restore_arguments(images), images, "restore.log")
    victim.check(f"after {tool.name} restored")
    victim.end()
    return Timing(None, whole, whole, memory, size_of(images))


def watch_restore(tool: Tool, victim: Victim, images: Path) -> float:
    memory = watched(tool, restore_arguments(images), images, "restore.log", victim.pids)
    victim.check(f"after {tool.name} restored")
    victim.end()
    return memory
