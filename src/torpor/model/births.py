# SPDX-License-Identifier: Apache-2.0
"""In which order, by whom and how the tasks of a tree are made again.  Pure: specifications in, steps out.

A task's session, its parent and much of what it shares with others are fixed at birth, so the order of births is the
art of it:

- *Sessions.*  A task only leaves its session by setsid, into one of its own.  A child in another session than its
  parent's was born before the parent's setsid (*early*), or comes from elsewhere: its first parent died and it was
  given to another.  Such a task is made by a member of its session that is to be its sibling (CLONE_PARENT), or, when
  the session lives deeper in the tree, by a helper there that dies at once, so that the kernel gives the child to its
  parent, which is a subreaper for the moment.
- *Dead leaders* of sessions and process groups are played by helpers, which get their PIDs and end when every member
  is there: as long as a group or session has members, nobody else can be given its number.
- *Sharing* of descriptor tables, fs, signal handlers and memory comes from the maker too.  Tables and fs can be
  unshared later, so one that grandparent and grandchild share passes through the parent in between.

Everything is a node in a graph of what must come before what; the plan is one order of it, births by the same maker
side by side.  A helper whose PID does not matter has a negative number.
"""

from torpor.errors import ImageError, Refusal
from torpor.kernel.process import CLONE_FILES, CLONE_FS
from torpor.model.restore_plan import (
    CHILD,
    KINDS,
    NAMES,
    OUTSIDE,
    SIBLING,
    Adopt,
    Create,
    End,
    Lead,
    Plan,
    Setsid,
    Spec,
    Step,
    Unshare,
)
from torpor.typed import Iterable, Sequence

_UNSHAREABLE = (CLONE_FILES, CLONE_FS)
Node = tuple[str, int, int]  # what, PID, kind of sharing or position


class Planner:
    def __init__(self, specs: Sequence[Spec]) -> None:
        self.root = specs[0]
        self.specs = {spec.pid: spec for spec in specs}
        self.parent = {spec.pid: spec.ppid for spec in specs[1:]}
        self.children: dict[int, list[int]] = {}
        for pid, ppid in self.parent.items():
            self.children.setdefault(ppid, []).append(pid)
        self.outside_sid = self.root.sid if self.root.sid not in self.specs else -1
        self.outside_pgid = self.root.pgid if self.root.pgid not in self.specs else -1
        self.sid = {spec.pid: OUTSIDE if spec.sid == self.outside_sid else spec.sid for spec in specs}
        self.pgid = {spec.pid: OUTSIDE if spec.pgid == self.outside_pgid else spec.pgid for spec in specs}
        self.depth = {self.root.pid: 0}
        for pid, ppid in self.parent.items():
            self.depth[pid] = self.depth[ppid] + 1
        self.shared = {spec.pid: dict(zip(KINDS, spec.shared, strict=True)) for spec in specs}
        self.makers: dict[int, tuple[int, str]] = {self.root.pid: (0, CHILD)}
        self.birth: dict[int, int] = {self.root.pid: OUTSIDE}  # the session in which a task is born
        self.early: dict[int, bool] = {}  # made before its maker's setsid
        self.helpers: dict[int, int] = {}
        self.adopters: dict[int, tuple[int, int]] = {}  # task -> (helper that dies for it, adopting parent)
        self.flags: dict[int, int] = {}
        self.deps: dict[Node, set[Node]] = {}
        self._by_sid: dict[int, list[int]] = {}

    def plan(self) -> Plan:
        self._choose_births()
        self._choose_makers()
        self._add_group_helpers()
        self._share()
        steps = self._sort()
        joins = self._joins(steps)
        ending = {pid: parent for pid, parent in self.helpers.items() if pid > 0}
        return Plan(self.root.pid, steps, joins, ending, {pid: maker for pid, (maker, _) in self.makers.items()})

    # -- sessions ---------------------------------------------------------------------------------------------------
    def _leads(self, pid: int) -> bool:
        return self.sid[pid] == pid

    def _choose_births(self) -> None:
        """In which session each task must be born: -1 where it does not matter."""
        demand: dict[int, int] = {}
        for pid in reversed(self.specs):
            if not self._leads(pid):
                demand[pid] = self.sid[pid]
                continue
            wishes = [demand[child] for child in self.children.get(pid, ()) if demand[child] not in (-1, pid)]
            demand[pid] = wishes[0] if wishes else -1
        for pid, ppid in self.parent.items():
            self.birth[pid] = demand[pid] if demand[pid] != -1 else self.sid[ppid]

    def _choose_makers(self) -> None:
        detours = []
        for pid, ppid in self.parent.items():
            birth = self.birth[pid]
            if birth == self.sid[ppid]:
                self._set_maker(pid, ppid, CHILD, False)
            elif birth == self.birth[ppid]:
                self._set_maker(pid, ppid, CHILD, True)
            else:
                detours.append(pid)
        self._add_session_leaders(detours)
        for pid in detours:
            self._detour(pid)
        self._prefer_sharing_siblings()

    def _set_maker(self, pid: int, maker: int, how: str, early: bool) -> None:
        self.makers[pid] = maker, how
        self.early[pid] = early and self._leads(maker)

    def _add_helper(self, pid: int, parent: int, maker: int, sid: int) -> None:
        self.helpers[pid] = parent
        self.parent[pid] = parent
        self.sid[pid], self.pgid[pid], self.birth[pid] = sid, pid if sid == pid else OUTSIDE, self.sid[maker]
        self.depth[pid] = self.depth[parent] + 1
        self.shared[pid] = dict.fromkeys(KINDS, 0)
        self._set_maker(pid, maker, CHILD, False)

    def _add_session_leaders(self, detours: list[int]) -> None:
        """Helpers for sessions without a leader: each below the deepest parent that has a member to get from it."""
        for pid in sorted(detours, key=lambda pid: -self.depth[pid]):
            sid = self.birth[pid]
            if sid != OUTSIDE and sid not in self.specs and sid not in self.helpers:
                self._add_helper(sid, self.parent[pid], self.parent[pid], sid)

    def _detour(self, pid: int) -> None:
        parent, sid = self.parent[pid], self.birth[pid]
        members = self._members(sid)
        for other in members:
            if self.parent.get(other) == parent and other in self.makers:
                self._set_maker(pid, other, SIBLING, False)
                return
        for other in members:
            if self._is_below(other, parent) and other in self.makers:
                helper = -1 - len(self.adopters)
                self._add_helper(helper, other, other, sid)
                self._set_maker(pid, helper, CHILD, False)
                self.adopters[pid] = helper, parent
                return
        raise Refusal(
            f"task {pid} in these images",
            f"it is in session {sid} and a child of {parent}, and nobody there could give birth to it",
        )

    def _members(self, sid: int) -> list[int]:
        """Who is in a session, its leader first."""
        if not self._by_sid:
            for pid, number in self.sid.items():
                self._by_sid.setdefault(number, []).append(pid)
        return [sid, *self._by_sid.get(sid, ())] if sid in self.sid else self._by_sid.get(sid, [])

    def _is_below(self, pid: int, ancestor: int) -> bool:
        while pid in self.parent:
            pid = self.parent[pid]
            if pid == ancestor:
                return True
        return False

    def _prefer_sharing_siblings(self) -> None:
        """A task that shares with a sibling what its parent does not have comes from that sibling."""
        first: dict[tuple[int, int, int], int] = {}
        for pid, ppid in list(self.parent.items()):
            if pid in self.helpers:
                continue
            mine = self.shared[pid]
            for kind in KINDS:
                if not mine[kind]:
                    continue
                other = first.setdefault((ppid, kind, mine[kind]), pid)
                maker = self.makers[pid]
                if (
                    other == pid
                    or maker != (ppid, CHILD)
                    or any(mine[k] == self.shared[ppid][k] for k in KINDS if mine[k])
                ):
                    continue
                if self.sid[other] == self.birth[pid] and not self.early[pid]:
                    self._set_maker(pid, other, SIBLING, False)
                elif self.birth[other] == self.birth[pid]:
                    self._set_maker(pid, other, SIBLING, True)

    # -- process groups ---------------------------------------------------------------------------------------------
    def _add_group_helpers(self) -> None:
        for pid, pgid in list(self.pgid.items()):
            if pid in self.helpers or pgid == OUTSIDE or pgid in self.specs or pgid in self.helpers:
                continue
            maker = pid
            if self.specs[pid].dead:
                alive = [o for o, g in self.pgid.items() if g == pgid and o in self.specs and not self.specs[o].dead]
                maker = alive[0] if alive else pid
            self._add_helper(pgid, maker, maker, self.sid[maker])
            self.pgid[pgid] = pgid

    def _joins(self, steps: Iterable[Step]) -> list[tuple[int, int]]:
        """Who is not yet in its group when all are born; those who leave a group that they led come last."""
        now: dict[int, int] = {}
        leaders = set()
        for step in steps:
            if isinstance(step, Create):
                now[step.pid] = now.get(step.maker, OUTSIDE)
            elif isinstance(step, Setsid | Lead):
                now[step.pid] = step.pid
                leaders.add(step.pid)
        wrong = [pid for pid in self.specs if now[pid] != self.pgid[pid]]
        for pid in wrong:
            if self.pgid[pid] == OUTSIDE and self.sid[pid] != OUTSIDE:
                raise ImageError("pstree.img is mangled", f"the process group of task {pid} is in another session")
        return [(pid, self.pgid[pid]) for pid in sorted(wrong, key=lambda pid: pid in leaders)]

    # -- sharing ----------------------------------------------------------------------------------------------------
    def _share(self) -> None:
        made_by: dict[int, list[int]] = {}
        for pid, (maker, _) in self.makers.items():
            made_by.setdefault(maker, []).append(pid)
        order = [self.root.pid]
        for pid in order:
            order += made_by.get(pid, ())
        if len(order) != len(self.makers):
            raise Refusal("the tree in these images", "its sessions depend on each other in a circle")
        for kind in KINDS:
            self._share_kind(kind, order, made_by)

    def _share_kind(self, kind: int, order: list[int], made_by: dict[int, list[int]]) -> None:
        total: dict[int, int] = {}
        for shared in self.shared.values():
            total[shared[kind]] = total.get(shared[kind], 0) + 1
        total.pop(0, None)
        if all(count == 1 for count in total.values()):
            return
        carried: dict[int, int] = {}  # task -> number of what is shared across its birth
        inside: dict[int, dict[int, int]] = {}
        for pid in reversed(order):
            counts: dict[int, int] = {}
            own = self.shared[pid][kind]
            if total.get(own, 0) > 1:
                counts[own] = 1
            for child in made_by.get(pid, ()):
                for number, count in inside.pop(child).items():
                    counts[number] = counts.get(number, 0) + count
            inside[pid] = open_ = {number: count for number, count in counts.items() if count < total[number]}
            if len(open_) > 1:
                raise Refusal(
                    f"task {pid} in these images", f"what it and its children share ({NAMES[kind]}) crosses over"
                )
            if open_:
                carried[pid] = next(iter(open_))
                self.flags[pid] = self.flags.get(pid, 0) | kind
        for pid in order:
            self._order_unshares(pid, kind, carried, made_by.get(pid, ()))

    def _order_unshares(self, pid: int, kind: int, carried: dict[int, int], children: Sequence[int]) -> None:
        """The numbers that a task's table stands for, one after the other, and which children are made when."""
        own = self.shared[pid][kind]
        labels = [carried[pid]] if pid in carried else []
        wanted = dict.fromkeys(carried[child] for child in children if child in carried)
        labels += [label for label in wanted if label not in labels and label != own]
        if own and own not in labels:
            labels.append(own)
        if len(labels) > 1 and kind not in _UNSHAREABLE:
            raise Refusal(
                f"task {pid} in these images",
                f"others share {NAMES[kind]} across it, which it does not share itself; Torpor cannot make that",
            )
        for i in range(1, len(labels)):
            node = ("unshare", pid, kind << 16 | i)
            self._after(node, ("create", pid, 0))
            if i > 1:
                self._after(node, ("unshare", pid, kind << 16 | i - 1))
        for child in children:
            if child not in carried:
                continue
            i = labels.index(carried[child])
            if i:
                self._after(("create", child, 0), ("unshare", pid, kind << 16 | i))
            if i + 1 < len(labels):
                self._after(("unshare", pid, kind << 16 | i + 1), ("create", child, 0))

    # -- order ------------------------------------------------------------------------------------------------------
    def _after(self, node: Node, before: Node) -> None:
        self.deps.setdefault(node, set()).add(before)

    def _sort(self) -> list[Step]:
        led = {pgid for pid, pgid in self.pgid.items() if pgid in self.sid and self.sid[pgid] != pgid}
        for pid, (maker, _) in self.makers.items():
            node = ("create", pid, 0)
            self.deps.setdefault(node, set())
            if maker:
                self._after(node, ("create", maker, 0))
            if self._leads(pid):
                self._after(("setsid", pid, 0), node)
            if pid in led:
                self._after(("lead", pid, 0), node)
            if maker and self._leads(maker):
                if self.early[pid]:
                    self._after(("setsid", maker, 0), node)
                else:
                    self._after(node, ("setsid", maker, 0))
            elif maker in led:
                self._after(node, ("lead", maker, 0))
        for pid, (helper, parent) in self.adopters.items():
            self._after(("adopt", parent, 0), ("create", parent, 0))
            self._after(("create", helper, 0), ("adopt", parent, 0))
            self._after(("end", helper, 0), ("create", pid, 0))
        return self._order()

    def _order(self) -> list[Step]:
        waiting = {node: len(before) for node, before in self.deps.items()}
        followers: dict[Node, list[Node]] = {}
        for node, before in self.deps.items():
            for earlier in before:
                followers.setdefault(earlier, []).append(node)
        ready: dict[int, list[Node]] = {}  # by who acts
        steps: list[Step] = []

        def add(node: Node) -> None:
            ready.setdefault(self._actor(node), []).append(node)

        for node, count in waiting.items():
            if not count:
                add(node)
        while ready:
            actor = next(iter(ready))
            for node in ready.pop(actor):
                steps.append(self._step(node))
                for follower in followers.get(node, ()):
                    waiting[follower] -= 1
                    if not waiting[follower]:
                        add(follower)
        if len(steps) != len(waiting):
            raise Refusal(
                "the tree in these images", "its sessions and what its tasks share ask for each other in a circle"
            )
        return steps

    def _actor(self, node: Node) -> int:
        what, pid, _ = node
        return self.makers[pid][0] if what == "create" else pid

    def _step(self, node: Node) -> Step:
        what, pid, number = node
        if what == "create":
            maker, how = self.makers[pid]
            return Create(pid, maker, how, self.flags.get(pid, 0))
        if what == "unshare":
            return Unshare(pid, number >> 16)
        if what == "end":
            return End(pid, self.helpers[pid])
        if what == "setsid":
            return Setsid(pid)
        return Lead(pid) if what == "lead" else Adopt(pid)
