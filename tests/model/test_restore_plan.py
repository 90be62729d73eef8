# SPDX-License-Identifier: Apache-2.0
"""Plans of births, tried on a kernel of a few lines: whatever tree a history of forks, sessions, groups, unshares and
deaths can leave, its plan makes again."""

import random
from typing import NamedTuple

import pytest

from torpor.errors import ImageError, Refusal
from torpor.kernel.process import CLONE_FILES, CLONE_FS, CLONE_SIGHAND, CLONE_VM
from torpor.model.restore_plan import (
    KINDS,
    OUTSIDE,
    SIBLING,
    Adopt,
    Create,
    End,
    Lead,
    Plan,
    Setsid,
    Spec,
    Unshare,
    make_plan,
)

ROOT = 100


class Denied(Exception):
    """What the kernel says no to."""


class Task:
    def __init__(self, pid: int, ppid: int, pgid: int, sid: int, shared: dict[int, int]) -> None:
        self.pid, self.ppid, self.pgid, self.sid, self.shared = pid, ppid, pgid, sid, shared
        self.zombie = self.subreaper = False


class Kernel:
    """Process numbers, sessions, groups and sharing, as Linux has them."""

    def __init__(self) -> None:
        self.tasks = {1: Task(1, 0, 1, 1, dict.fromkeys(KINDS, 0))}
        self.objects = 0

    def object(self) -> int:
        self.objects += 1
        return self.objects

    def clone(self, maker: int, pid: int, how: str, flags: int) -> None:
        me = self.tasks[maker]
        numbers = {number for task in self.tasks.values() for number in (task.pid, task.pgid, task.sid)}
        if pid in numbers or me.zombie:
            raise Denied(f"clone of {pid} by {maker}")
        shared = {kind: me.shared[kind] if flags & kind else self.object() for kind in KINDS}
        self.tasks[pid] = Task(pid, me.ppid if how == SIBLING else maker, me.pgid, me.sid, shared)

    def setsid(self, pid: int) -> None:
        if any(task.pgid == pid for task in self.tasks.values()):
            raise Denied(f"setsid of {pid}")
        self.tasks[pid].sid = self.tasks[pid].pgid = pid

    def setpgid(self, pid: int, pgid: int) -> None:
        me = self.tasks[pid]
        members = [task for task in self.tasks.values() if task.pgid == pgid and task.sid == me.sid]
        if me.sid == pid or (pgid != pid and not members):
            raise Denied(f"setpgid({pid}, {pgid})")
        me.pgid = pgid

    def unshare(self, pid: int, kind: int) -> None:
        self.tasks[pid].shared[kind] = self.object()

    def exit(self, pid: int) -> None:
        self.tasks[pid].zombie = True
        self.tasks[pid].shared = dict.fromkeys(KINDS, 0)
        for task in [task for task in self.tasks.values() if task.ppid == pid]:
            reaper = self.tasks[pid].ppid
            while reaper != 1 and not (self.tasks[reaper].subreaper and not self.tasks[reaper].zombie):
                reaper = self.tasks[reaper].ppid
            task.ppid = reaper

    def reap(self, pid: int) -> None:
        del self.tasks[pid]


def specs_of(kernel: Kernel, root: int) -> list[Spec]:
    out = []
    queue = [root]
    while queue:
        pid = queue.pop()
        task = kernel.tasks[pid]
        shared = tuple(task.shared[kind] for kind in KINDS)
        ppid = 0 if pid == root else task.ppid
        out.append(Spec(pid, ppid, task.pgid, task.sid, task.zombie, shared, (pid,)))  # type: ignore[arg-type]
        queue += sorted((t.pid for t in kernel.tasks.values() if t.ppid == pid), reverse=True)
    return out


def carry_out(plan: Plan) -> Kernel:
    """Do what the plan says; the task and session of Torpor itself are 1."""
    kernel = Kernel()
    auto: dict[int, int] = {}
    for step in plan.steps:
        if isinstance(step, Create):
            pid = step.pid
            if pid < 0:
                pid = auto[step.pid] = 100000 - step.pid
            kernel.clone(auto.get(step.maker, step.maker) or 1, pid, step.how, step.flags)
        elif isinstance(step, Setsid):
            kernel.setsid(step.pid)
        elif isinstance(step, Lead):
            kernel.setpgid(step.pid, step.pid)
        elif isinstance(step, Unshare):
            kernel.unshare(step.pid, step.flags)
        elif isinstance(step, Adopt):
            kernel.tasks[step.pid].subreaper = True
        elif isinstance(step, End):
            kernel.exit(auto[step.pid])
            kernel.reap(auto[step.pid])
    for pid, group in plan.joins:
        kernel.setpgid(pid, 1 if group == OUTSIDE else group)
    for pid in plan.helpers:
        kernel.exit(pid)
        kernel.reap(pid)
    return kernel


class Facts(NamedTuple):
    ppid: int
    pgid: int
    sid: int


def check(specs: list[Spec]) -> Plan:
    plan = make_plan(specs)
    kernel = carry_out(plan)
    assert kernel.tasks.keys() - {1} == {spec.pid for spec in specs}
    root = specs[0]
    outside = {root.sid, root.pgid} - {spec.pid for spec in specs}
    partners: dict[tuple[int, int], set[int]] = {}
    for spec in specs:
        task = kernel.tasks[spec.pid]
        wanted = Facts(spec.ppid or 1, *(1 if number in outside else number for number in (spec.pgid, spec.sid)))
        assert Facts(task.ppid, task.pgid, task.sid) == wanted, f"task {spec.pid}: {plan.lines()}"
        if not spec.dead:
            for kind, number in zip(KINDS, spec.shared, strict=True):
                partners.setdefault((kind, number), set()).add(task.shared[kind])
    assert all(len(made) == 1 for made in partners.values()), "something is no longer shared"
    assert len({(kind, *made) for (kind, _), made in partners.items()}) == len(partners), "too much is shared"
    return plan


def history(seed: int, events: int, share: bool) -> list[Spec]:
    """A tree as a random past left it; its root is a subreaper, so nobody leaves the tree."""
    chance = random.Random(seed)
    kernel = Kernel()
    kernel.clone(1, ROOT, "child", 0)
    kernel.setsid(ROOT)
    kernel.tasks[ROOT].subreaper = True
    for pid in range(ROOT + 1, ROOT + 1 + events):
        alive = [task.pid for task in kernel.tasks.values() if task.pid != 1 and not task.zombie]
        who = chance.choice(alive)
        what = chance.choice(["fork", "fork", "fork", "setsid", "lead", "join", "exit", "reap", "subreaper", "unshare"])
        try:
            if what == "fork":
                flags = 0
                if share:
                    flags = chance.choice([0, 0, CLONE_FILES, CLONE_FS, CLONE_VM, CLONE_VM | CLONE_SIGHAND | CLONE_FS])
                kernel.clone(who, pid, "child", flags)
            elif what == "setsid":
                kernel.setsid(who)
            elif what == "lead":
                kernel.setpgid(who, who)
            elif what == "join":
                kernel.setpgid(who, kernel.tasks[chance.choice(alive)].pgid)
            elif what == "exit" and who != ROOT:
                kernel.exit(who)
            elif what == "subreaper":
                kernel.tasks[who].subreaper = True
            elif what == "unshare" and share:
                kernel.unshare(who, chance.choice([CLONE_FILES, CLONE_FS]))
            elif what == "reap":
                zombies = [task.pid for task in kernel.tasks.values() if task.zombie]
                if zombies:
                    kernel.reap(chance.choice(zombies))
        except Denied:
            pass
    return specs_of(kernel, ROOT)


def test_histories() -> None:
    """Any history without sharing: of 400 trees, hardly one may be beyond us, and none is made wrong."""
    refused = []
    for seed in range(400):
        specs = history(seed, 5 + seed % 60, share=False)
        try:
            check(specs)
        except Refusal as error:
            refused.append((seed, str(error)))
    assert len(refused) <= 4, refused


def test_histories_with_sharing() -> None:
    refused = []
    for seed in range(400):
        specs = history(seed, 5 + seed % 30, share=True)
        try:
            check(specs)
        except Refusal as error:
            refused.append((seed, str(error)))
    assert len(refused) <= 40, refused


def spec(pid: int, ppid: int, pgid: int, sid: int, *shared: int, dead: bool = False) -> Spec:
    numbers = shared or (pid, pid, pid, pid)
    return Spec(pid, ppid, pgid, sid, dead, numbers if not dead else (0, 0, 0, 0), (pid,))  # type: ignore[arg-type]


def test_dead_leaders() -> None:
    plan = check([spec(10, 0, 10, 10), spec(12, 10, 7, 7), spec(13, 10, 13, 7), spec(15, 13, 9, 7)])
    assert set(plan.helpers) == {7, 9}


def test_deeper_session() -> None:
    """An orphan whose session goes on deeper in the tree: a helper there dies for it."""
    plan = check([spec(10, 0, 10, 10), spec(11, 10, 10, 10), spec(12, 11, 12, 12), spec(13, 10, 12, 12)])
    assert any(isinstance(step, Adopt) for step in plan.steps)


def test_zombie_session_leader() -> None:
    check([spec(10, 0, 10, 10), spec(11, 10, 11, 11, dead=True), spec(12, 10, 11, 11)])


def test_shell_job() -> None:
    """Session and group outside: those of whoever restores."""
    check([spec(10, 0, 3, 2), spec(11, 10, 11, 2), spec(12, 10, 11, 2), spec(13, 12, 3, 2)])


def test_group_left_by_its_leader() -> None:
    check([spec(10, 0, 10, 10), spec(11, 10, 10, 10), spec(12, 10, 11, 10)])


def test_sharing_across() -> None:
    """Grandparent and grandchild share descriptors, the parent has its own."""
    plan = check([spec(10, 0, 10, 10), spec(11, 10, 10, 10), spec(12, 11, 10, 10, 12, 10, 12, 12)])
    assert any(isinstance(step, Unshare) and step.pid == 11 for step in plan.steps)


def test_sharing_siblings() -> None:
    check([spec(1000, 0, 1000, 1000), spec(11, 1000, 1000, 1000, 5, 6, 7, 8), spec(12, 1000, 1000, 1000, 5, 6, 7, 8)])


def test_memory_across_is_refused() -> None:
    with pytest.raises(Refusal, match="memory"):
        make_plan([spec(10, 0, 10, 10), spec(11, 10, 10, 10), spec(12, 11, 10, 10, 10, 12, 12, 12)])


def test_large_trees_are_linear() -> None:
    """20,000 tasks take a moment, not a minute."""
    wide = [spec(1, 0, 1, 1), *(spec(pid, 1, 1, 1) for pid in range(2, 20000))]
    make_plan(wide)
    deep = [spec(1, 0, 1, 1), *(spec(pid, pid - 1, 1, 1) for pid in range(2, 20000))]
    make_plan(deep)


@pytest.mark.parametrize(
    "specs",
    [
        [],
        [spec(10, 0, 10, 10, dead=True)],
        [spec(10, 0, 10, 10), spec(10, 10, 10, 10)],
        [spec(10, 0, 10, 10), spec(11, 12, 10, 10)],
        [spec(10, 0, 10, 10), spec(11, 10, 10, 11)],
        [spec(10, 0, 10, 10), spec(11, 10, 11, 10), spec(12, 10, 12, 11)],
        [spec(10, 0, 10, 10), spec(11, 10, 12, 10), spec(12, 10, 12, 12)],
        [spec(0, 0, 10, 10)],
        [spec(1 << 22, 0, 10, 10)],
        [spec(10, 0, 10, 10), spec(11, 10, 10, 10, dead=True), spec(12, 11, 10, 10)],
        [spec(10, 0, 10, 10), spec(11, 10, 10, 10, 1, 2, 3, 10)],
        [spec(10, 0, 10, 10)._replace(threads=(10, 11, 11))],
        [spec(10, 0, 10, 10)._replace(threads=(10, 11)), spec(11, 10, 10, 10)],
    ],
)
def test_mangled(specs: list[Spec]) -> None:
    with pytest.raises(ImageError):
        make_plan(specs)
