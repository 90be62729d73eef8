# SPDX-License-Identifier: Apache-2.0
"""``torpor restore``: bring a tree back; without ``-d``, stay until its root ends.

Observed on CRIU 4.2.1 in the foreground: it returns when the root task ends, with status 0 however that ended (by exit,
exit status 7, SIGTERM or SIGKILL); all signals that can be blocked are blocked meanwhile, so that neither Ctrl-C for
the restored job in the same terminal nor SIGTERM ends the tool before it.  The same here.
"""

import os
import select

from torpor import signals as signal
from torpor.cli.say import Voice, count
from torpor.kernel.procfs import read_all
from torpor.options import Options
from torpor.progress import Meter, Progress, duration
from torpor.restore import Watcher, describe, restore


def run(options: Options, voice: Voice) -> int:
    if options.dry_run:
        plan = describe(options)
        voice.result("\n".join(plan), {"plan": plan, "images": options.images_dir})
        return 0
    with Shown() as meter:
        result = restore(options, options.restore_sibling, meter if meter.visible else None)
    facts = {"pid": result.pid, "tasks": result.tasks, "seconds": result.seconds, "images": options.images_dir}
    where = options.images_dir.rstrip("/") + "/"
    lines = [f"restored {count(result.tasks, 'task')} in {duration(result.seconds)} ← {where} (root {result.pid})"]
    if options.display_stats:
        facts["phases"] = dict(result.phases)
        from torpor.cli.dump import times

        lines.insert(0, times(result.phases))
    voice.result("\n".join(lines), facts)
    if not options.restore_detached:
        wait(result.pid)
    return 0


class Shown(Meter, Watcher):
    """A line of progress on the terminal, which is taken away before the restored tree may write there."""

    def __init__(self) -> None:
        super().__init__()
        self._pids: list[int] = []

    def stage(self, size: int, pids: list[int]) -> None:
        self.close()
        if size:
            self._progress, self._pids = Progress("reading memory", size), pids

    def tick(self) -> None:
        if self._progress is not None:
            done = min(sum(map(resident, self._pids)), self._progress.total)
            self._progress.add(done - self._progress.done)


def resident(pid: int) -> int:
    """Bytes of memory that a process has; 0: it is not there, or not yet."""
    try:
        return int(read_all(f"/proc/{pid}/statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def wait(pid: int) -> None:
    """Until the task ends, whether it is our child or not."""
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return  # it has ended already
    try:
        ended = select.poll()
        ended.register(fd, select.POLLIN)
        ended.poll()
    finally:
        os.close(fd)
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # another process's child: that one reaps it
