# SPDX-License-Identifier: Apache-2.0
"""The clocks that count from the boot, CLOCK_MONOTONIC and CLOCK_BOOTTIME, as a tree sees them: time_namespaces(7).

- On the boot that a tree was dumped on, they go on by themselves: the time that the tree was away has passed for it.
  A virtual machine that was put back to an earlier snapshot is on the same boot, but as if it were on another.
- On any other they say something else, mostly less, and no program expects that.  The tree then gets a time namespace
  in which they go on from where they were at the dump.  Timers and sleeps are in images as the time left; what a
  program computed as a deadline stays right too.
- A time namespace is made empty; it gets its offsets, and the first process to enter fixes them for good.  A single
  thread may enter by setns(2), and takes its vDSO along: so the first task does, before it has children.
- Offsets count from the machine's clocks, also in nested namespaces.
- Kernels for 32-bit ARM have no time namespaces.  There a clock that would go back is refused, unless
  --allow-clock-jump says that the programs can bear it; jumping ahead is no more than a long pause.
- CRIU's images do not say which boot they are of: they get a time namespace where the clocks would go back.
- All tasks of a tree have to be in one time namespace.  In images, its number is 9: 1 to 8 are Torpor's own.
"""

import errno
import os
import time

from torpor import log
from torpor.arch import native
from torpor.engine.program import Load32, Program
from torpor.errors import ImageError, Refusal
from torpor.images import kinds
from torpor.images.schema.timens import TimensEntry, Timespec
from torpor.images.schema.torpor_host import TorporHostEntry
from torpor.kernel.process import CLONE_NEWTIME, setns, unshare
from torpor.memory import sigpage
from torpor.resources import lacking
from torpor.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torpor.engine.executor import Executor
    from torpor.resources.context import Dump, DumpTask, Restore

OWN, TREES = 5, 9  # numbers of time namespaces in images: Torpor's, the tree's if it is another
SECOND = 1_000_000_000
_KEY = "time namespace"
# Why there can be no time namespace, and what to do first, by the error of trying it.
_HINDRANCES = {
    errno.ENOSYS: ("this kernel has no time namespaces", ""),
    errno.EPERM: ("we may not make a time namespace", "run Torpor with CAP_SYS_ADMIN and CAP_SYS_TIME, "),
    errno.ENOSPC: ("user.max_time_namespaces allows no more time namespaces", "raise that limit (by sysctl), "),
}


class Clocks(NamedTuple):
    """Nanoseconds: offsets of a namespace, or what the clocks say."""

    monotonic: int
    boottime: int

    def minus(self, other: "Clocks") -> "Clocks":
        return Clocks(self.monotonic - other.monotonic, self.boottime - other.boottime)


def offsets(pid: int | str) -> Clocks:
    """Of the time namespace that the task's children are in.  FileNotFoundError: this kernel has none."""
    found = [0, 0]
    with open(f"/proc/{pid}/timens_offsets", "rb") as file:
        for line in file:
            clock, seconds, nanoseconds = line.split()
            found[clock in (b"boottime", b"7")] = int(seconds) * SECOND + int(nanoseconds)
    return Clocks(*found)


def _now() -> Clocks:
    return Clocks(time.clock_gettime_ns(time.CLOCK_MONOTONIC), time.clock_gettime_ns(time.CLOCK_BOOTTIME))


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def is_same_boot(restore: "Restore") -> bool:
    """Whether this kernel is the one that the images come from, and has run ever since."""
    host = restore.images.find(kinds.TORPOR_HOST)
    return host is not None and host.boot_id == _boot_id()


# -- dump -------------------------------------------------------------------------------------------------------------


def forget(dump: "Dump") -> None:
    """What was seen before the freeze."""
    dump.state.pop(_KEY, None)


def examine(task: "DumpTask", dump: "Dump", theirs: int, ours: int) -> None:
    """Note the time namespace of a task, by its inode; refuse a second one."""
    if _KEY not in dump.state:
        dump.state[_KEY] = theirs, offsets(task.leader.tid) if theirs != ours else None
    if dump.state[_KEY][0] != theirs:
        why = "it lives in another time namespace than other tasks of its tree"
        dump.refuse(task.refusal(why, "dump the trees one by one", code="namespace"))


def number(dump: "Dump") -> int:
    """The tree's time namespace in images."""
    return TREES if _KEY in dump.state and dump.state[_KEY][1] is not None else OWN


def save(dump: "Dump") -> None:
    theirs = ours = Clocks(0, 0)
    if number(dump) == TREES:
        theirs, ours = dump.state[_KEY][1], offsets("self")
    elif os.path.exists("/proc/self/timens_offsets"):
        theirs = ours = offsets("self")
    ticks = _now().minus(ours)
    clocks = [
        Timespec(tv_sec=clock // SECOND, tv_nsec=clock % SECOND)
        for clock in (ticks.monotonic + theirs.monotonic, ticks.boottime + theirs.boottime)
    ]
    id = TREES if number(dump) == TREES else 0
    dump.images.write(kinds.TIMENS, [TimensEntry(monotonic=clocks[0], boottime=clocks[1])], id)
    host = TorporHostEntry(
        boot_id=_boot_id(),
        release=os.uname().release,
        monotonic_offset=theirs.monotonic,
        boottime_offset=theirs.boottime,
        signing=native().signing() or None,
        signal_page=sigpage.page() or None,
    )
    dump.images.write(kinds.TORPOR_HOST, [host])


# -- restore ----------------------------------------------------------------------------------------------------------


def check(restore: "Restore") -> None:
    """Find out whether the tree needs a time namespace of its own.  Raises ImageError, Refusal."""
    root = restore.images.inventory().root_ids
    numbers = {task.ids.time_ns_id or 0 for task in restore.tasks.values() if task.ids is not None}
    if len(numbers) > 1:
        raise ImageError("these images are mangled", "its tasks are in several time namespaces")
    id = numbers.pop() if numbers else 0
    if root is None or id == (root.time_ns_id or 0):
        id = 0
    try:
        ours, has = offsets("self"), True
    except FileNotFoundError:
        ours, has = Clocks(0, 0), False
    wanted = _wanted(restore, id, ours)
    if wanted is None or wanted == ours:
        return
    error = lacking.error_of_trying(restore, _KEY, lambda: _prepare(wanted), in_child=True) if has else errno.ENOSYS
    behind = max(wanted.minus(ours))
    if not error:
        restore.state[_KEY] = wanted
        log.info(f"the clocks of the tree go on in a time namespace, {wanted.monotonic / SECOND:+.3f} s from here")
    elif behind > 0 and not restore.options.allow_clock_jump:
        hindrance, first = _HINDRANCES.get(error, (f"it cannot have a time namespace: {os.strerror(error)}", ""))
        why = f"the monotonic clock of this machine is {behind / SECOND:.1f} s behind what the tree has seen, and "
        remedy = f"{first}wait for so long, or say --allow-clock-jump if its programs can bear a clock that goes back"
        restore.problem(Refusal("the tree's clocks", why + hindrance, remedy, code="clocks"))
    else:
        log.warning(f"the clocks of the tree jump by {-wanted.minus(ours).monotonic / SECOND:+.1f} s")


def _wanted(restore: "Restore", id: int, ours: Clocks) -> Clocks | None:
    """Offsets with which the tree's clocks go on; None: the images do not know."""
    host = restore.images.find(kinds.TORPOR_HOST)
    then = _then(restore, id)
    here = None  # what they are here, if this is the boot of the dump
    if host is not None and host.boot_id == _boot_id():
        here = Clocks(host.monotonic_offset, host.boottime_offset)
    elif host is None and not id:
        here = ours
    if then is None:
        return here
    wanted = then.minus(_now().minus(ours))
    # Ahead of what they are here: this machine, virtual, was put back to an earlier time.
    return wanted if here is None or max(wanted.minus(here)) > 0 else here


def _then(restore: "Restore", id: int) -> Clocks | None:
    """What the tree's clocks said at the dump."""
    entry = restore.images.find(kinds.TIMENS, id)
    if entry is None:
        if id:
            raise ImageError(f"{kinds.TIMENS.file_name(id)} is missing", code="missing-image")
        return None
    if max(entry.monotonic.tv_sec, entry.boottime.tv_sec) >= 1 << 32 or (
        max(entry.monotonic.tv_nsec, entry.boottime.tv_nsec) >= SECOND
    ):
        raise ImageError(f"{kinds.TIMENS.file_name(id)} is mangled", "its clocks make no sense")
    return Clocks(
        entry.monotonic.tv_sec * SECOND + entry.monotonic.tv_nsec,
        entry.boottime.tv_sec * SECOND + entry.boottime.tv_nsec,
    )


def _prepare(wanted: Clocks) -> None:
    """A time namespace for our children, in which the clocks go on."""
    unshare(CLONE_NEWTIME)
    lines = (f"{name} {ns // SECOND} {ns % SECOND}\n" for name, ns in wanted._asdict().items())
    with open("/proc/self/timens_offsets", "wb", buffering=0) as file:
        file.write("".join(lines).encode())


def enter(restore: "Restore", first: "Executor") -> None:
    """Put the first task into a time namespace, if the tree needs one; its children will be born there."""
    wanted: Clocks | None = restore.state.get(_KEY)
    if wanted is None:
        return
    back = os.open("/proc/self/ns/time", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            _prepare(wanted)
            namespace = os.open("/proc/self/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            setns(back, CLONE_NEWTIME)  # we stay where we are
    finally:
        os.close(back)
    try:
        program = Program()
        numbers = first.send_fds(program, [namespace])
        program.call("setns", Load32(numbers), CLONE_NEWTIME)
        program.call("close", Load32(numbers))
        first.run(program)
    finally:
        os.close(namespace)
