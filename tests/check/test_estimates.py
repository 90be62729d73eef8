# SPDX-License-Identifier: Apache-2.0
"""What ``torpor check -t`` says beforehand, and what the dump then finds: the size of the images, and the amounts of
which the frozen time is made.  (That time itself depends on what else the machine does: it is not asserted on.)"""

import os
import signal
import sys
from pathlib import Path

import pytest

import torpor
from check.support import Victim
from harness.events import tree_of
from torpor import costs
from torpor.check_tree import TreeReport
from torpor.images import kinds
from torpor.images.directory import ImageReader
from torpor.images.schema.fdinfo import FdinfoEntry

WITHIN = 1.1  # the estimate to the size, either way …
AND_BYTES = 16384  # … and a few pages that the program has touched meanwhile
PAGE = 4096

PROGRAMS = {
    "nothing": "",
    "memory": "memory = bytearray(b'x' * (24 << 20))",
    "threads": """
import threading
threading.stack_size(256 << 10)
for number in range(200): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
""",
    "processes": """
for number in range(20):
    if not os.fork(): time.sleep(1000)
""",
    "areas": """
areas = [mmap.mmap(-1, 8192, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=1 + 2 * (number % 2))
         for number in range(2000)]
""",
    "files": """
import socket
files = [open(f"file{number}", "w") for number in range(300)]
same = [os.dup(files[0].fileno()) for number in range(300)]
sockets = [socket.socketpair() for number in range(100)]
listening = [socket.create_server(("127.0.0.1", 0)) for number in range(50)]
pipes = [os.pipe() for number in range(100)]
counters = [os.eventfd(number) for number in range(100)]
""",
    "contents": """
memfd = os.memfd_create("held"); os.write(memfd, b"m" * (4 << 20)); again = os.dup(memfd)
mapped = os.memfd_create("mapped"); os.write(mapped, b"m" * (2 << 20)); area = mmap.mmap(mapped, 2 << 20)
pipes = [os.pipe() for number in range(20)]
for reader, writer in pipes: os.write(writer, b"p" * 65536)
""",
    "shared": """
shared = mmap.mmap(-1, 8 << 20); shared[:] = bytes(range(256)) * (8 << 12)
sparse = mmap.mmap(-1, 64 << 20); sparse[0] = 1
memfd = os.memfd_create("held"); os.write(memfd, b"m" * (2 << 20))
gone = open("gone", "w+b"); gone.write(b"g" * 900000); gone.flush(); os.unlink("gone")
for number in range(2):
    if not os.fork(): time.sleep(1000)
""",
}
PRELUDE = """
import mmap, os, resource, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
"""
END = """
print("ready", flush=True)
time.sleep(1000)
"""


def written(images: Path) -> int:
    return sum(os.stat(images / name).st_size for name in os.listdir(images))


def amounts(images: Path) -> dict[str, int]:
    """What a dump has found."""
    with ImageReader.open(str(images)) as reader:
        tasks = list(reader.entries(kinds.PSTREE))
        tables: list[list[FdinfoEntry]] = []
        areas = 0
        for task in tasks:
            areas += len(reader.one(kinds.MM, task.pid).vmas)
            tables.append(reader.entries(kinds.FDINFO, reader.one(kinds.IDS, task.pid).files_id))
        return {
            "tasks": len(tasks),
            "threads": sum(len(task.threads) for task in tasks),
            "areas": areas,
            "descriptors": sum(map(len, tables)),
            "files": len({entry.id for table in tables for entry in table}),
        }


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("what", PROGRAMS)
def test_estimate(what: str, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    with Victim(tmp_path, sys.executable, "-c", PRELUDE + PROGRAMS[what] + END) as victim:
        try:
            report = torpor.check(pid=victim.pid, manage_cgroups="ignore")
            assert isinstance(report, TreeReport) and report.ok, report.lines()
            # That page is the kernel's, for all alike, and in no image.
            fixed = sum("[vsyscall]" in Path(f"/proc/{pid}/maps").read_text() for pid in tree_of(victim.pid))
            result = torpor.dump(victim.pid, images, leave_running=True, manage_cgroups="ignore")
        finally:
            for pid in tree_of(victim.pid)[1:]:
                os.kill(pid, signal.SIGKILL)
    size = written(images)
    assert size / WITHIN - AND_BYTES < report.image_bytes < size * WITHIN + AND_BYTES
    found = amounts(images)
    assert (result.tasks, result.threads) == (found["tasks"], found["threads"])
    assert {
        "tasks": len(report.tasks),
        "threads": report.threads,
        "areas": report.areas - fixed,
        "descriptors": report.descriptors,
        "files": sum(report.files.values()),
    } == found


def test_time_grows_with_each_amount() -> None:
    """The frozen time is a sum: nothing of what a tree has is forgotten, and no kind of file comes for nothing."""
    little = costs.Amounts(1, 1, 20, 3, {"fd:device": 1}, 100 * PAGE)
    more = [
        little._replace(processes=2, threads=2), little._replace(threads=2), little._replace(areas=21),
        little._replace(descriptors=4), little._replace(memory=101 * PAGE), little._replace(contents=1),
        *(little._replace(files={"fd:device": 1, key: 1}) for key in ("fd:unix", "fd:pipe", "fd:memfd")),
    ]  # fmt: skip
    for one in more:
        assert costs.frozen_seconds(one) > costs.frozen_seconds(little)
        assert costs.image_bytes(one) > costs.image_bytes(little)
