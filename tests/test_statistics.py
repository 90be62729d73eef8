# SPDX-License-Identifier: Apache-2.0
"""stats-dump tells the frozen time that the dump itself tells, whether the tree goes on or ends; stats-restore how many
pages came back, and how."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import torpor
from harness.events import Nursery, tree_of
from torpor.images.directory import ImageReader
from torpor.images.kinds import STATS

# How the tree is left, and the phase in which it is told so.
LEFT = {"goes-on": ({"leave_running": True}, "cure"), "stopped": ({"leave_stopped": True}, "stop"), "ends": ({}, "end")}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("how", LEFT)
def test_frozen_time(how: str, tmp_path: Path) -> None:
    """It ends when the tree is told to go on, to stop or to end: with -R before the disk is waited for; never with what
    the end of the tree takes."""
    options, last = LEFT[how]
    victim = subprocess.Popen(["sleep", "1000"], start_new_session=True, stdin=subprocess.DEVNULL)
    try:
        result = torpor.dump(victim.pid, tmp_path, **options)
        with ImageReader.open(str(tmp_path)) as images:
            stats = images.one(STATS, "dump").dump
        assert stats is not None
        assert abs(stats.frozen_time / 1e6 - result.frozen_seconds) < 1e-5
        assert 0 < stats.freezing_time <= stats.frozen_time
        names = list(result.phases)
        assert names[0] == "freeze"
        assert names[names.index(last) + 1 :] == {"cure": ["write", "sync"], "stop": [], "end": ["gone"]}[last]
        counted = [result.phases[name] for name in names[: names.index(last) + 1]]
        assert abs(sum(counted) - result.frozen_seconds) < 1e-6
        if how == "ends":
            assert victim.wait(10) == -signal.SIGKILL
        else:
            assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_where_they_are(tmp_path: Path) -> None:
    """In the work directory, as CRIU's; an earlier dump's beside the images would be taken for this one's."""
    images, work = tmp_path / "images", tmp_path / "work"
    images.mkdir()
    work.mkdir()
    (images / "stats-dump").write_bytes(b"old")
    victim = subprocess.Popen(["sleep", "1000"], start_new_session=True, stdin=subprocess.DEVNULL)
    try:
        torpor.dump(victim.pid, images, work_dir=work)
    finally:
        victim.kill()
        victim.wait()
    assert [path.name for path in work.iterdir()] == ["stats-dump"]
    assert not (images / "stats-dump").exists()


HOLDER = """
import mmap, os, time
shared = mmap.mmap(-1, 300 * 4096); shared[:] = b"s" * (300 * 4096)
memfd = os.memfd_create("held"); os.write(memfd, b"m" * (200 * 4096))
reader, writer = os.pipe(); os.write(writer, b"p" * 60000)
gone = open("gone", "w+b"); gone.write(b"g" * 70000); gone.flush(); os.unlink("gone")
print("ready", flush=True)
time.sleep(1000)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_all_bytes_are_counted(tmp_path: Path) -> None:
    """Shared memory, memfds, deleted files and what is in pipes, too."""
    images = tmp_path / "images"
    images.mkdir()
    victim = subprocess.Popen(
        [sys.executable, "-c", HOLDER], start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        cwd=tmp_path,
    )  # fmt: skip
    assert victim.stdout and victim.stdout.readline() == b"ready\n"
    try:
        result = torpor.dump(victim.pid, images, leave_running=True)
    finally:
        victim.kill()
        victim.communicate()
    sizes = {path.name: path.stat().st_size for path in images.iterdir()}
    assert result.bytes == sum(sizes.values()) - sizes["stats-dump"]
    with ImageReader.open(str(images)) as reader:
        stats = reader.one(STATS, "dump").dump
    assert stats is not None
    assert (stats.shpages_scanned, stats.shpages_skipped_parent, stats.shpages_written) == (500, 0, 500)


FAMILY = """
import mmap, os, time
memory = mmap.mmap(-1, 2048 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(2048):
    memory[page * 4096] = 1
child = os.fork()
if child == 0:
    for page in range(1024):
        memory[page * 4096] = 2
    print("ready", flush=True)
time.sleep(1000)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_pages_restored(tmp_path: Path) -> None:
    """A child shares half of its parent's 2,048 pages: they are compared, and read once."""
    root = subprocess.Popen(
        [sys.executable, "-c", FAMILY], start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert root.stdout and root.stdout.readline() == b"ready\n"
    root.stdout.close()
    with Nursery() as nursery:
        torpor.dump(root.pid, tmp_path)
        root.wait()
        nursery.sweep(nursery.grace)  # its child is ours now
        restored = torpor.restore(tmp_path)
        for pid in reversed(tree_of(restored.pid)):
            os.kill(pid, signal.SIGKILL)
    with ImageReader.open(str(tmp_path)) as images:
        stats, dumped = images.one(STATS, "restore").restore, images.one(STATS, "dump").dump
    assert stats is not None and dumped is not None and stats.pages_restored is not None
    assert stats.pages_compared >= 2048
    assert 1024 <= stats.pages_skipped_cow <= stats.pages_compared - 1024
    # All but those of the vDSOs, which the kernel brings.
    assert 0 <= dumped.pages_written - stats.pages_restored - stats.pages_skipped_cow <= 2 * 8
