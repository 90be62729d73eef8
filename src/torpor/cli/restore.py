# SPDX-License-Identifier: Apache-2.0
"""``torpor restore``: bring a tree back; without ``-d``, stay until its root ends.

Observed on CRIU 4.2.1 in the foreground: it returns when the root task ends, with status 0 however that ended (by exit,
exit status 7, SIGTERM or SIGKILL); all signals that can be blocked are blocked meanwhile, so that neither Ctrl-C for
the restored job in the same terminal nor SIGTERM ends the tool before it.  The same here.

As PID 1 of a PID namespace (`unshare -fp --mount-proc torpor restore`) this process is all that keeps the namespace
alive: the kernel kills everything in it when PID 1 ends.
"""

import os
import select

from torpor import signals as signal
from torpor.cli.say import Voice, count
from torpor.errors import UsageError
from torpor.kernel.procfs import read_all
from torpor.options import Options
from torpor.progress import Meter, Progress, duration
from torpor.restore import Watcher, describe, restore


def run(options: Options, voice: Voice) -> int:
    if options.restore_detached and os.getpid() == 1:
        raise UsageError(
            "cannot restore with -d here",
            "this process is PID 1 of its PID namespace, and when PID 1 ends, the kernel kills all that is in there",
            "leave -d out, and it stays for as long as the tree lives (let a shell run it in the background)",
        )
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
    """Until the task ends, whether it is our child or not; as PID 1, until nobody else is left in the namespace."""
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    init = os.getpid() == 1
    if init:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans become our children: the kernel reaps them from now on
        _reap_all()
    _await_end(pid)
    if init:
        _await_others()
        return
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # another process's child: that one reaps it


def _await_end(pid: int) -> None:
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


def _await_others() -> None:
    """Until all others in our PID namespace have ended: one may be a dump that has ended the tree and is to say so."""
    ended: set[int] = set()
    while others := {int(name) for name in os.listdir("/proc") if name.isdigit()} - {1} - ended:
        for pid in others:
            _await_end(pid)
        ended |= others  # some may be zombies for long: whoever entered the namespace has its parent outside


def _reap_all() -> None:
    """Those that had ended before."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
