# SPDX-License-Identifier: Apache-2.0
"""In which order, by whom and how the tasks of a tree are made again: the specifications that go in, checked, and the
steps that come out.  model/births.py thinks them out.  Pure.
"""

from torpor.errors import ImageError
from torpor.kernel.process import CLONE_FILES, CLONE_FS, CLONE_SIGHAND, CLONE_VM
from torpor.typed import NamedTuple, Sequence

OUTSIDE = 0  # the session, or process group, of Torpor itself
MAX_PID = 1 << 22
CHILD, SIBLING = "child", "sibling"
KINDS = (CLONE_VM, CLONE_FILES, CLONE_FS, CLONE_SIGHAND)
NAMES = {CLONE_VM: "memory", CLONE_FILES: "descriptors", CLONE_FS: "working directory", CLONE_SIGHAND: "handlers"}


class Spec(NamedTuple):
    """A task as the images tell of it.  `shared`: numbers of vm, files, fs, sighand as in KINDS; all 0 for a zombie."""

    pid: int
    ppid: int  # 0: the root
    pgid: int
    sid: int
    dead: bool = False
    shared: tuple[int, int, int, int] = (0, 0, 0, 0)
    threads: tuple[int, ...] = ()


class Create(NamedTuple):
    """`maker` clones `pid`: as its own child, or as its sibling (CLONE_PARENT); flags: of KINDS what is shared."""

    pid: int
    maker: int
    how: str
    flags: int


class Setsid(NamedTuple):
    pid: int


class Unshare(NamedTuple):
    pid: int
    flags: int


class Lead(NamedTuple):
    """`pid` begins a process group of its own."""

    pid: int


class Adopt(NamedTuple):
    """`pid` is a child subreaper from here on, for the time being."""

    pid: int


class End(NamedTuple):
    """The helper `pid` ends, reaped by `parent`; its children go to the nearest subreaper."""

    pid: int
    parent: int


Step = Create | Setsid | Unshare | Lead | Adopt | End


class Plan(NamedTuple):
    """steps: the births, in order.  joins: (task, process group), when all are born.  helpers: PID -> its parent; they
    end after the joins.  makers: who clones whom."""

    root: int
    steps: list[Step]
    joins: list[tuple[int, int]]
    helpers: dict[int, int]
    makers: dict[int, int]

    def lines(self) -> list[str]:
        """The plan for people."""
        out = []
        for step in self.steps:
            if isinstance(step, Create):
                shares = ", ".join(NAMES[kind] for kind in KINDS if step.flags & kind)
                what = "helper" if step.pid in self.helpers else "task"
                line = f"{what} {step.pid}: {step.how} of {step.maker or 'Torpor'}"
                out.append(f"{line}, shares {shares}" if shares else line)
            else:
                out.append(f"{type(step).__name__.lower()} {step.pid}")
        out += [f"{pid} joins group {group or 'of Torpor'}" for pid, group in self.joins]
        return out + [f"helper {pid} ends" for pid in self.helpers]


def make_plan(specs: Sequence[Spec]) -> Plan:
    """Raises ImageError for a tree that cannot be, Refusal for one that Torpor cannot make."""
    _check(specs)
    from torpor.model.births import Planner

    return Planner(specs).plan()


def _check(specs: Sequence[Spec]) -> None:
    def bad(why: str) -> ImageError:
        return ImageError("pstree.img is mangled", why)

    if not specs:
        raise bad("it has no task")
    seen: set[int] = set()
    tids: set[int] = set()
    for i, spec in enumerate(specs):
        numbers = {spec.pid, *spec.threads}
        if not all(0 < number < MAX_PID for number in numbers) or not (
            0 < spec.pgid < MAX_PID and 0 < spec.sid < MAX_PID
        ):
            raise bad(f"task {spec.pid} has impossible numbers")
        if numbers & tids or len(set(spec.threads)) != len(spec.threads):
            raise bad(f"a task or thread of {spec.pid} is there twice")
        if i and spec.ppid not in seen:
            raise bad(f"the parent of task {spec.pid}, {spec.ppid}, is not there before it")
        if spec.sid == spec.pid != spec.pgid:
            raise bad(f"session leader {spec.pid} is in process group {spec.pgid}")
        seen.add(spec.pid)
        tids |= numbers
    by_pid = {spec.pid: spec for spec in specs}
    others = tids - seen
    if specs[0].dead:
        raise bad("its root is dead")
    for spec in specs:
        if spec.ppid and by_pid.get(spec.ppid, spec).dead:
            raise bad(f"task {spec.pid} is the child of a dead one")
        if spec.sid in by_pid and by_pid[spec.sid].sid != spec.sid:
            raise bad(f"the session {spec.sid} of task {spec.pid} is not led by that task")
        if spec.sid in others or spec.pgid in others:
            raise bad(f"a session or group of task {spec.pid} has the number of a thread")
        leader = by_pid.get(spec.pgid)
        if leader is not None and leader.sid != spec.sid:
            raise bad(f"tasks {spec.pid} and {leader.pid} are in one process group and two sessions")
    handlers: dict[int, int] = {}
    for spec in specs:
        if not spec.dead and handlers.setdefault(spec.shared[3], spec.shared[0]) != spec.shared[0]:
            raise bad(f"task {spec.pid} shares signal handlers with one whose memory it does not share")
