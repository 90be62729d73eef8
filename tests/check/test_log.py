# SPDX-License-Identifier: Apache-2.0
"""What a dump and a restore say in their logs, and that a dump says nothing while its tree stands still."""

import json
import os
import re
import signal
import sys
from pathlib import Path

from check.support import Victim
from check.support import torpor as command

SLEEPER = "import time; print('ready', flush=True); time.sleep(1000)"
# Reads the log itself, through a pipe that holds one page: whoever writes more to it waits for this very program.
READER = """
import fcntl, os
os.mkfifo("log")
fd = os.open("log", os.O_RDWR)
fcntl.fcntl(fd, 1031, 4096)
print("ready", flush=True)
while True:
    data = os.read(fd, 65536)
    with open("copy", "ab") as copy:
        copy.write(data)
"""


def dump(victim: Victim, directory: Path, *more: str) -> "tuple[int, str]":
    images = directory / "images"
    images.mkdir()
    done = command(
        "dump", "-t", victim.pid, "-D", images, "-W", directory, "-o", "log", "--manage-cgroups=ignore", *more
    )
    return done.returncode, done.stdout + done.stderr


def test_levels_of_a_dump(tmp_path: Path) -> None:
    said = {}
    for level in (2, 3, 4, 5):
        place = tmp_path / str(level)
        place.mkdir()
        with Victim(place, sys.executable, "-c", SLEEPER) as victim:
            status, words = dump(victim, place, "-R", f"-v{level}")
            assert status == 0, words
        said[level] = (place / "log").read_text()
    assert said[2] == ""
    assert "freezing process" in said[3] and "stopped 1 processes" in said[3] and "cure: " in said[3]
    assert "fd:device" not in said[3] and "fd:device" in said[4]
    assert "prctl(" not in said[4] and re.search(r"task \d+: prctl\(.*\) = ", said[5])
    stamps = [float(stamp) for stamp in re.findall(r"^\((\d+\.\d+)\)", said[5], re.M)]
    assert stamps == sorted(stamps)


def test_nothing_is_written_while_the_tree_stands_still(tmp_path: Path) -> None:
    with Victim(tmp_path, sys.executable, "-c", READER) as victim:
        status, words = dump(victim, tmp_path, "-R", "-v5")
        assert status == 0, words
        copied = tmp_path / "copy"
        while not copied.exists() or "write: " not in copied.read_text():
            assert victim.process.poll() is None
        assert copied.stat().st_size > 4096


def test_where_the_time_went(tmp_path: Path) -> None:
    with Victim(tmp_path, sys.executable, "-c", SLEEPER) as victim:
        status, words = dump(victim, tmp_path, "-R", "--display-stats", "--json")
        assert status == 0
        facts = json.loads(words)
        assert facts["kinds"]["fd:device"]["number"] >= 1
        assert 0 < facts["kinds"]["signals"]["seconds"] < facts["seconds"]
        assert {"freeze", "gather", "cure", "write"} <= facts["phases"].keys()


def test_the_log_of_a_restore(tmp_path: Path) -> None:
    with Victim(tmp_path, sys.executable, "-c", SLEEPER) as victim:
        status, words = dump(victim, tmp_path)
        assert status == 0, words
        victim.process.wait()
        done = command("restore", "-d", "-D", tmp_path / "images", "-W", tmp_path, "-o", "restored", "-v3",
                       "--manage-cgroups=ignore")  # fmt: skip
        assert done.returncode == 0, done.stderr
        os.kill(victim.pid, signal.SIGKILL)
        try:
            os.waitpid(victim.pid, 0)
        except ChildProcessError:
            pass
        log = (tmp_path / "restored").read_text()
        assert all(f"{phase}: " in log for phase in ("check", "tree", "memory", "files", "release"))


def test_a_refusal_stands_in_the_log(tmp_path: Path) -> None:
    with Victim(tmp_path, sys.executable, "-c", "print('ready')") as victim:
        victim.process.wait()
        status, _ = dump(victim, tmp_path)
        assert status == 1
        assert "Error: there is no process" in (tmp_path / "log").read_text()


def test_a_result_that_nobody_reads_changes_nothing(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    with Victim(tmp_path, sys.executable, "-c", SLEEPER) as victim, open("/dev/full", "wb") as full:
        words = ("dump", "-t", victim.pid, "-D", images, "-R", "--manage-cgroups=ignore")
        for more in ((), ("--json",), ("--display-stats",)):
            read_end, write_end = os.pipe()
            os.close(read_end)
            for out in (write_end, full.fileno()):
                done = command(*words, *more, stdout=out)
                assert done.returncode == 0, done.stderr
                assert not done.stderr or "the result could not be written" in done.stderr
            os.close(write_end)
