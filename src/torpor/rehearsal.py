# SPDX-License-Identifier: Apache-2.0
"""The rehearsal: before the freeze, a child of ours that only waits is frozen, looked at and let go as the tree will
be.

What Python does for the first time takes longer: functions are not specialised yet, pages that the engine shares with
its guardian are to be copied, caches to be filled.  A process of 4 MB stands still for 3.2 ms after a rehearsal (which
takes 5 ms itself), and for 3.7 without one.  It is for trees that go on: others stand still until the disk has all.

Nothing depends on it.  Should the engine be killed, the child ends with it, or by itself soon.
"""

import os

from torpor import dump_ask as ask
from torpor import dump_collect as collect
from torpor import log
from torpor import signals as signal
from torpor.engine import journal
from torpor.engine.freeze import freeze
from torpor.engine.seizing import OPTIONS
from torpor.engine.waiting import Cancelled
from torpor.errors import TorporError
from torpor.images.directory import ImageWriter
from torpor.kernel import ptrace
from torpor.kernel.maps import read_maps
from torpor.resources.context import Dump

PROGRAM = ("/bin/sleep", "2")
_LIMIT_S = 1.0


class _Rehearsal(Dump):
    """A dump of which nothing is left."""

    def warn(self, message: str) -> None:
        pass


class _Nowhere(ImageWriter):
    """Images that nobody will read."""

    def _create(self, name: str) -> int:
        return os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)


def rehearse(dump: Dump) -> None:
    """To be called before the freeze of `dump`, for which `dump_collect.prepare` was called.  Raises Cancelled."""
    rehearsal = _Rehearsal(dump.options, _Nowhere(-1))
    rehearsal.state.update(dump.state)
    try:
        pid = _spawn()
    except (OSError, NotImplementedError) as error:
        log.info(f"nothing is rehearsed: {error}")
        return
    kept = journal.set_aside()
    try:
        _perform(rehearsal, pid)
    except Cancelled:
        raise
    except (OSError, TorporError) as error:
        log.info(f"the rehearsal came to its end early: {error}")
    finally:
        journal.take_up(kept)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _spawn() -> int:
    """The child, which inherits nothing: what Torpor was started with may be refused."""
    inherited = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and _is_inherited(fd)]
    files = [
        *[(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in range(3)],
        *[(os.POSIX_SPAWN_CLOSE, fd) for fd in inherited],
    ]
    return os.posix_spawn(PROGRAM[0], PROGRAM, {}, file_actions=files, setsid=True)


def _is_inherited(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False  # of the look itself


def _perform(rehearsal: Dump, pid: int) -> None:
    tree = rehearsal.tree = freeze(pid, timeout=_LIMIT_S)
    try:
        for tid in tree.processes[pid].threads:
            ptrace.set_options(tid, OPTIONS | ptrace.O_EXITKILL)
        collect.tasks(rehearsal, tree)
        memory = collect.areas(rehearsal)
        ask.install(rehearsal)
        ask.gather(rehearsal, memory)
        ask.put_back(rehearsal)
    except BaseException:
        ask.put_all_back(rehearsal, tree)
        raise
    assert rehearsal.options.tree is not None
    read_maps(rehearsal.options.tree)  # most of its areas are known then
