# SPDX-License-Identifier: Apache-2.0
"""A crowd: several workloads that are dumped and restored as one tree, each with a verdict of its own.

What belongs to several workloads meets in one checkpoint, and what a dump and a restore cost by themselves is paid once
for all of them.  `crowd.c` is their parent.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.events import FileWatch
from harness.failures import NeverReady
from harness.workload import Running, Skipped, Workload

SOURCE = Path(__file__).with_suffix(".c")


def groups(workloads: Iterable[Workload], size: int) -> list[list[Workload]]:
    """Crowds of at most `size` of those that can be dumped together: the same options, all compared afterwards or none,
    no terminal outside the tree, and not refused.  The others are groups of one.  What a group has is mixed."""
    alike: dict[tuple[object, ...], list[Workload]] = {}
    found = []
    for workload in workloads:
        if workload.refused or "terminal" in workload.header:
            found.append([workload])
        else:
            options = workload.options("dump"), workload.options("restore")
            alike.setdefault((workload.compared, *map(tuple, options)), []).append(workload)
    for several in alike.values():
        number = -(-len(several) // size)
        found += [several[first::number] for first in range(number)]
    return found


class Crowd(Workload):
    """Workloads as one: what `run_case` takes.  `skipped`: why those that cannot run here said so."""

    def __init__(self, members: Sequence[Workload]) -> None:
        super().__init__(SOURCE)
        self.members = members
        self.header = dict(members[0].header)
        self.compared = members[0].compared
        self.timeout = max(member.timeout for member in members)
        self.skipped: dict[str, str] = {}
        self.said: dict[str, list[str]] = {}

    def running(self, directory: Path) -> "RunningCrowd":
        return RunningCrowd(self, directory)


class RunningCrowd(Running):
    """The crowd's parent, and what it has started."""

    def __init__(self, crowd: Crowd, directory: Path) -> None:
        super().__init__(crowd, directory)
        self.crowd = crowd
        self.members = [Member(member, directory / member.name, self) for member in crowd.members]

    def command(self) -> list[str]:
        words = super().command()
        for member in self.members:
            words += ["--", str(member.directory), *member.command()]
        return words

    def wait_ready(self, watch: FileWatch) -> None:
        watch.close()
        pids = self.told("started ", len(self.members), self.workload.timeout)
        for member, pid in zip(list(self.members), pids, strict=True):
            member.pid = int(pid)
            try:
                member.wait_ready(FileWatch(member.out))
            except Skipped as why:
                self.crowd.skipped[member.workload.name] = str(why)
                self.members.remove(member)

    def outs(self) -> list[Path]:
        return [self.out, *(member.out for member in self.members)]

    def told(self, prefix: str, number: int, timeout: float) -> list[str]:
        """What the parent's lines that begin so go on with, when there are that many."""

        def found() -> list[str]:
            return [line.removeprefix(prefix) for line in self.lines() if line.startswith(prefix)]

        watch, pidfd = FileWatch(self.out), os.pidfd_open(self.pid)
        try:
            if not watch.wait(lambda: len(found()) >= number, pidfd, timeout):
                raise NeverReady(f"the crowd's parent has ended, and never said {prefix!r}: {self.lines()}")
        finally:
            os.close(pidfd)
            watch.close()
        return found()

    def finish(self) -> None:
        """The verdict of each, one after the other, and of the parent, which ends when it has no more children."""
        for member in self.members:
            member.finish()
            self.crowd.said[member.workload.name] = member.lines()
        self.verdict()

    def said_failure(self) -> None:
        for member in self.members:
            member.said_failure()
        super().said_failure()


class Member(Running):
    """A workload of a crowd.  Its parent waits for it, and says what it came to."""

    def __init__(self, workload: Workload, directory: Path, crowd: RunningCrowd) -> None:
        super().__init__(workload, directory)
        self.parent = crowd

    def ended(self, timeout: float) -> int:
        return int(self.parent.told(f"ended {self.pid} ", 1, timeout)[0])
