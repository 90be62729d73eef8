# SPDX-License-Identifier: Apache-2.0
"""Modes: what is done to a workload between its `ready` and its SIGTERM.  A new mode is a function and a line in MODES.

A mode gets a Case: a started workload, the two tools, a directory for images, and helpers that compare the tree with
what it was at `ready`.  It returns when the workload has given its verdict; anything wrong is an exception.
"""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from harness import procview
from harness.events import Nursery, all_asleep, pid_exists, tids_of, tree_of
from harness.failures import Different, ToolFailed
from harness.tools import Tool
from harness.workload import Workload, make_owned, remove_owned

NEVER_WRITTEN = procview.Tolerance(
    "maps sealed memory through a read-only descriptor, which forbids the same", r"\(/memfd:.*VmFlags: lost sh$"
)
# What CRIU 4.2.1 leaves different after its restore: facts of that tool, found by running it.
LEFT_BY: dict[str, list[procview.Tolerance]] = {
    "torpor": [
        procview.Tolerance(
            "never touches another file that has a deleted file's name",
            r"link: was '(.*) \(deleted\)', is '\1\.torpor\d* \(deleted\)'",
        ),
        NEVER_WRITTEN,
    ],
    "criu": [
        procview.Tolerance("makes a time namespace", r"(timens_offsets|namespace time(_for_children)?): was"),
        procview.Tolerance("maps areas writable first: the kernel accounts them", flags=frozenset({"ac"})),
        procview.Tolerance(
            "makes shared anonymous memory from memfds", r"was '/dev/zero \(deleted\)', is '/memfd:/dev/zero"
        ),
    ],
}
# What CRIU's images do not hold, so that whoever restores them cannot know.
LOST_IN_IMAGES_OF: dict[str, list[procview.Tolerance]] = {
    "torpor": [NEVER_WRITTEN],
    "criu": [],
}

# Seconds for which all threads have slept, at two looks, when what differs is taken to stay.
ASLEEP_S = 0.04


class PidTaken(Exception):
    """Somebody else's process got a PID of the tree between dump and restore: try the case again."""


class Case:
    """One workload, started, in one mode."""

    def __init__(
        self, workload: Workload, directory: Path, images: Path, dumper: Tool, restorer: Tool, nursery: Nursery
    ) -> None:
        self.workload, self.dumper, self.restorer, self.nursery = workload, dumper, restorer, nursery
        self.images = images
        self.running = workload.running(directory / "home")
        try:
            self.running.start()
        finally:
            if self.running.terminal:
                nursery.before.add(self.running.terminal.shell)  # not part of the tree
        self.tids = tids_of(self.running.pid)
        self.before = procview.view(self.running.pid) if workload.compared else {}

    @property
    def pid(self) -> int:
        return self.running.pid

    def dump(self, *options: str) -> None:
        self.dumper.dump(self.pid, self.images, *options, *self.workload.options("dump"))

    def restore(self, *options: str) -> None:
        self._need_pids()
        try:
            self.restorer.restore(
                self.images, *options, *self.workload.options("restore"), terminal=self.running.terminal
            )
        except ToolFailed:
            self.nursery.sweep(0)
            self._need_pids()
            raise

    def _need_pids(self) -> None:
        """Are the tree's PIDs and TIDs free?  Others on this machine start processes, too."""
        for pid in self.tids:
            if pid_exists(pid):
                raise PidTaken(f"PID {pid} is in use: {Path(f'/proc/{pid}/comm').read_text(errors='replace').strip()}")

    def compare(self, when: str, *tolerances: procview.Tolerance) -> None:
        """Compare with what the tree was at `ready`.

        A task that has just been let go may not have reached its system call again (inside sigwait, for one, status
        shows the awaited signals as unblocked), and no event tells when it has: a difference gets a second to go away.
        Where CRIU takes part, many are there to stay: that is clear when all threads sleep, and some time later still.
        """
        if not self.workload.compared:
            return
        often_stays = "criu" in (self.dumper.name, self.restorer.name)
        deadline, pause, asleep = time.monotonic() + 1, 0.02, False
        while found := procview.differences(self.before, procview.view(self.pid), tolerances):
            if _state(self.pid) == "Z":
                self.running.ended_early()
            slept, asleep = asleep, often_stays and all_asleep(self.pid)
            if time.monotonic() > deadline or (slept and asleep and pause > ASLEEP_S):
                self.running.said_failure()
                raise Different(when, found)
            time.sleep(pause)
            pause = min(2 * pause, max(0.02, deadline - time.monotonic()))

    def compare_restored(self) -> None:
        tolerances = LEFT_BY[self.restorer.name] + LOST_IN_IMAGES_OF[self.dumper.name]
        self.compare(f"after the restore by {self.restorer.name}", *tolerances)

    def ended(self) -> None:
        """The tool ended the original: reap it and its orphans."""
        self.running.wait_killed()
        self.nursery.sweep(self.nursery.grace)


def plain(case: Case) -> None:
    """No checkpoint at all: the workload must pass by itself."""
    case.running.finish()


def refused(case: Case) -> None:
    """Torpor cannot save this, and says so; the workload has not noticed anything."""
    try:
        case.dump()
    except ToolFailed as error:
        if case.workload.refused not in str(error):
            raise
    else:
        raise AssertionError(f"the dump was not refused, though it should be: {case.workload.refused}")
    case.compare("after the refused dump")
    case.running.finish()


def dump_and_restore(case: Case) -> None:
    """Dump, the original ends, restore."""
    case.dump()
    case.ended()
    case.restore()
    case.compare_restored()
    case.running.finish()


def leave_running(case: Case) -> None:
    """Dump with --leave-running: the original goes on as it was and passes; then its images are restored and pass."""
    case.dump("-R")
    case.running.save_files()
    case.compare("while the original goes on")
    _finish_then_restore(case)


def both(case: Case) -> None:
    """Restore and leave-running with one start: dump, the original ends, restore; the restored one, which is as it was,
    is dumped with --leave-running, goes on as it was, and passes."""
    case.dump()
    case.ended()
    case.restore()
    case.compare_restored()
    case.images = case.images.with_name("images-again")
    case.dump("-R")
    case.compare("while the restored one goes on", *LEFT_BY[case.restorer.name])
    case.running.finish()


def goes_on(case: Case) -> None:
    """Dump with --leave-running, and no restore: does the original notice?"""
    case.dump("-R")
    case.compare("while the original goes on")
    case.running.finish()


def killed(case: Case) -> None:
    """Dumps whose engines are killed half-way, at some moments of all: the original goes on as it was, and passes."""
    from harness import killing

    options = case.workload.options("dump")
    status, steps, words = killing.dump(case.pid, case.images / "whole", 0, *options)
    if status:
        raise ToolFailed(case.dumper.name, "dump", status, words, "")
    case.compare("while the original goes on")
    # SIGCHLD tells a parent that the guardian has stopped a child for a moment.
    news = procview.Tolerance("SIGCHLD", r"status (ShdPnd|SigPnd): was", bits=1 << (signal.SIGCHLD - 1))
    for step in killing.some(steps):
        images = case.images / str(step)
        status, ended, words = killing.dump(case.pid, images, step, *options)
        shutil.rmtree(images)
        assert status == (0 if ended else 1), f"killed at step {step} of {steps}, it ends with {status}: {words}"
        try:
            case.compare(f"after the engine was killed at step {step} of {steps}", news)
        except BaseException:
            print(f"killed at step {step} of {steps}")
            raise
    case.running.finish()


def leave_stopped(case: Case) -> None:
    """Dump with --leave-stopped: every task is stopped; SIGCONT, and the original passes; then its images do."""
    stopped_before = {pid for pid in tree_of(case.pid) if _state(pid) == "T"}
    case.dump("-s")
    case.running.save_files()
    tree = tree_of(case.pid)
    going = [pid for pid in tree if _state(pid) not in "TZ"]
    assert not going, f"not stopped after a dump with --leave-stopped: {going}"
    for pid in tree:
        if pid not in stopped_before:
            with contextlib.suppress(ProcessLookupError):  # its parent may have ended it already
                os.kill(pid, signal.SIGCONT)
    # Where they are blocked, SIGCONT stays pending, and SIGCHLD, which tells the parent of stop and continuation.
    news = 1 << (signal.SIGCHLD - 1) | 1 << (signal.SIGCONT - 1)
    case.compare("after SIGCONT", procview.Tolerance("SIGCONT and SIGCHLD", r"status (ShdPnd|SigPnd): was", bits=news))
    _finish_then_restore(case)


def same_images(case: Case) -> None:
    """Stopped, the tree is dumped by one tool, then by the other: the images must say the same (same_images.py)."""
    from harness import same_images

    tree = tree_of(case.pid)
    for pid in tree:
        if _state(pid) != "T":  # else it waits, and is gone after the first dump
            os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while moving := [pid for pid in tree if _state(pid) not in "TZ"]:
        assert time.monotonic() < deadline, f"not stopped by SIGSTOP: {moving}"
        time.sleep(0.01)
    images = [case.images / tool.name for tool in (case.dumper, case.restorer)]
    for tool, directory in zip((case.dumper, case.restorer), images, strict=True):
        tool.dump(case.pid, directory, "-R", *case.workload.options("dump"))
    compared = same_images.compare(*images)
    print(compared)
    assert not compared.wrong, "\n".join(["the images differ (Torpor's value / CRIU's):", *compared.wrong])
    for pid in tree:
        os.kill(pid, signal.SIGKILL)
    case.ended()


def _finish_then_restore(case: Case) -> None:
    case.running.finish()
    case.nursery.sweep(case.nursery.grace)
    case.before = procview.renumber(case.before, case.running.bring_files_back())
    for out in case.running.outs():
        make_owned(out)
    case.restore()
    case.compare_restored()
    case.running.finish()


def _state(pid: int) -> str:
    """State of a process: of a live thread where the leader is a zombie."""
    states = []
    for tid in os.listdir(f"/proc/{pid}/task"):
        text = Path(f"/proc/{pid}/task/{tid}/stat").read_text(errors="replace")
        states.append(text.rpartition(") ")[2][0])
    return "".join(states).replace("Z", "")[:1] or "Z"


class Mode(NamedTuple):
    """A function over a case, and which tool dumps and restores.

    excused: where CRIU alone fails in the same way, the case is counted apart (failures.py).
    """

    run: Callable[[Case], None]
    dumper: str = "torpor"
    restorer: str = "torpor"
    excused: bool = False


MODES: dict[str, Mode] = {
    "plain": Mode(plain),
    "restore": Mode(dump_and_restore),
    "leave-running": Mode(leave_running),
    "leave-stopped": Mode(leave_stopped),
    "from-criu": Mode(dump_and_restore, dumper="criu", excused=True),
    "to-criu": Mode(dump_and_restore, restorer="criu", excused=True),
    # Torpor dumps first: CRIU's dump leaves traces in the tree.
    "same-images": Mode(same_images, restorer="criu", excused=True),
    "both": Mode(both),
    # Not part of a normal run: the first half of leave-running; an engine that is killed; CRIU alone, the oracle, also
    # to test the harness.
    "goes-on": Mode(goes_on),
    "killed": Mode(killed),
    "criu": Mode(dump_and_restore, dumper="criu", restorer="criu"),
    "criu-leave-running": Mode(leave_running, dumper="criu", restorer="criu"),
    "criu-leave-stopped": Mode(leave_stopped, dumper="criu", restorer="criu"),
}
# Workloads that are about what could break where the engine is killed.
KILLED = (
    "attr_creds_threads", "cpu_registers", "fd_epoll", "fd_table_thread", "py_threads", "share_vm", "sig_masks",
    "sig_pending", "sys_caught", "sys_others", "sys_poll", "tree_stopped", "tree_vfork", "tree_zombie_leader",
)  # fmt: skip
USUAL = ["plain", "restore", "leave-running", "leave-stopped", "from-criu", "to-criu"]


def selected() -> list[str]:
    """Modes of this run: TORPOR_MODES=restore,criu chooses."""
    chosen = [word for word in os.environ.get("TORPOR_MODES", "").split(",") if word]
    if chosen == ["all"]:
        return list(MODES)
    unknown = [word for word in chosen if word not in MODES]
    if unknown:
        raise ValueError(f"TORPOR_MODES: no mode {', '.join(unknown)}; there are {', '.join(MODES)}")
    return chosen or USUAL


def run_case(
    workload: Workload, mode: Mode, tools: dict[str, Tool], directory: Path, images: Path | None = None
) -> None:
    """One workload through one mode, and nothing left behind.  Images are made in `images`, unless it is None: there
    in `directory`, too."""
    for attempt in range(3):
        place = directory / f"try{attempt}"
        its_images = (images or directory) / place.name / "images"
        try:
            with Nursery() as nursery:
                case = Case(workload, place, its_images, tools[mode.dumper], tools[mode.restorer], nursery)
                try:
                    if workload.refused and mode.dumper == "torpor" and mode.run is not plain:
                        refused(case)
                    else:
                        mode.run(case)
                finally:
                    case.running.close()
            return
        except PidTaken:
            if attempt == 2:
                raise
        finally:
            for out in (place / "home" / "out", *place.glob("home/*/out")):  # a crowd's members have theirs
                remove_owned(out)
