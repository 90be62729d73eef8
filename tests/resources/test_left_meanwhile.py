# SPDX-License-Identifier: Apache-2.0
"""A thread, or a process, that leaves a namespace after Torpor has looked at it and before it is stopped: what counts
is how it is found in the freeze.  It is refused in words, goes on, and no image is left."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from torpor.dump import dump
from torpor.engine import freeze
from torpor.errors import Refusal
from torpor.options import Options

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SOURCE = r"""
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static sigset_t told;
static void *wait_and_leave(void *flags)
{
	int number;
	sigwait(&told, &number);
	if (unshare((long)flags)) { perror("unshare"); exit(1); }
	write(1, "left\n", 5);
	for (;;) pause();
}
int main(int count, char **words)
{
	long flags = strtol(words[2], 0, 0);
	sigemptyset(&told);
	sigaddset(&told, SIGUSR1);
	sigprocmask(SIG_BLOCK, &told, 0);
	pthread_t other;
	void *(*idle)(void *) = (void *(*)(void *))pause;
	int thread = words[1][0] == 't';
	pthread_create(&other, 0, thread ? wait_and_leave : idle, (void *)flags);
	write(1, "ready\n", 6);
	if (!thread) wait_and_leave((void *)flags);
	for (;;) pause();
}
"""
CLONE_FS, CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID = 0x200, 0x20000, 0x4000000, 0x8000000, 0x20000000


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("leaves")
    (place / "victim.c").write_text(SOURCE)
    subprocess.run(["gcc", "-O1", "-w", "-o", place / "victim", place / "victim.c", "-lpthread"], check=True)
    return place / "victim"


@pytest.fixture
def victim(program: Path, tmp_path: Path) -> Iterator[Callable[[str, int], subprocess.Popen[bytes]]]:
    made: list[subprocess.Popen[bytes]] = []

    def start(who: str, flags: int) -> subprocess.Popen[bytes]:
        with (tmp_path / "out").open("wb") as out:
            made.append(subprocess.Popen([program, who, str(flags)], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                         start_new_session=True))  # fmt: skip
        until_it_says("ready", tmp_path / "out")
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.wait()


def until_it_says(word: str, out: Path) -> None:
    deadline = time.monotonic() + 20
    while word not in out.read_text().split():
        assert time.monotonic() < deadline, out.read_text()
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("who", "flags", "why"),
    [
        ("thread", CLONE_NEWUTS, "has another UTS namespace than the process"),
        ("thread", CLONE_NEWIPC, "has another IPC namespace than the process"),
        ("thread", CLONE_NEWPID, "has another PID namespace than the process for its children"),
        ("thread", CLONE_NEWNS, "has a working directory of its own"),
        ("process", CLONE_NEWUTS, "lives in another UTS namespace than Torpor"),
        ("process", CLONE_NEWPID, "its children will live in another PID namespace"),
        ("process", CLONE_NEWNS, "lives in another mount namespace than Torpor"),
    ],
    ids=["thread-uts", "thread-ipc", "thread-pid", "thread-mnt", "process-uts", "process-pid", "process-mnt"],
)
def test_refused(
    who: str, flags: int, why: str, victim: Callable[[str, int], subprocess.Popen[bytes]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    process = victim(who, flags)
    (tmp_path / "images").mkdir()
    real = freeze.freeze

    def leave_and_freeze(*arguments: Any, **named: Any) -> Any:  # in the engine, when all has been looked at
        os.kill(process.pid, signal.SIGUSR1)
        until_it_says("left", tmp_path / "out")
        return real(*arguments, **named)

    monkeypatch.setattr(freeze, "freeze", leave_and_freeze)
    with pytest.raises(Refusal) as refused:
        dump(Options(tree=process.pid, images_dir=str(tmp_path / "images"), manage_cgroups="ignore"))
    assert "left" in (tmp_path / "out").read_text()
    assert why in refused.value.why
    assert not os.listdir(tmp_path / "images")
    assert process.poll() is None
    for tid in os.listdir(f"/proc/{process.pid}/task"):
        assert "TracerPid:\t0" in Path(f"/proc/{process.pid}/task/{tid}/status").read_text()
