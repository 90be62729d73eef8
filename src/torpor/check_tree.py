# SPDX-License-Identifier: Apache-2.0
"""``torpor check -t PID``: what a tree owns, whether it can be dumped, what is in the way, and what a dump would cost.

Nothing is stopped.  What only a stopped task tells is left to the dump, which refuses it: docs/checking.md names it,
and tests/check/test_agreement.py compares.
"""

import os
from collections import Counter
from typing import Any, NamedTuple

from torpor import costs, dump_files
from torpor import dump_collect as collect
from torpor import survey as looking
from torpor.dump import refuse_target
from torpor.errors import Refusal, TaskGone, UsageError, clean
from torpor.kernel.process import comparison
from torpor.kernel.procfs import read_link
from torpor.kernel.syscall import call
from torpor.model.identity import Sorter
from torpor.options import Options
from torpor.progress import duration, quantity
from torpor.resources import in_memory, namespaces
from torpor.resources.context import DumpTask
from torpor.resources.words import file_words

MANY = 40  # processes, or obstacles, that are listed


class TaskFacts(NamedTuple):
    """One process."""

    pid: int
    ppid: int
    name: str
    state: str  # as in /proc/PID/stat
    threads: int
    uid: int
    exe: str


class TreeReport(NamedTuple):
    """What a tree owns.  `memory`: by kind (mapped, to be stored), in bytes; `files`: descriptions by registry key."""

    root: int
    tasks: tuple[TaskFacts, ...]
    memory: dict[str, tuple[int, int]]
    areas: int
    files: dict[str, int]
    descriptors: int
    obstacles: tuple[Refusal, ...]
    warnings: tuple[str, ...]
    image_bytes: int
    frozen_seconds: float

    @property
    def ok(self) -> bool:
        return not self.obstacles

    @property
    def threads(self) -> int:
        return sum(task.threads for task in self.tasks)

    def lines(self) -> list[str]:
        first = self.tasks[0]
        lines = [f"{first.name} ({self.root}): {_count(len(self.tasks), 'process', 'processes')}, "
                 f"{_count(self.threads, 'thread')}, {_count(self.descriptors, 'descriptor')}"]  # fmt: skip
        lines += ["", "processes", *self._tree()]
        if self.memory:
            lines += ["", f"memory: {_count(self.areas, 'area')}"]
            for kind, (mapped, stored) in sorted(self.memory.items(), key=lambda item: -item[1][1]):
                lines.append(f"  {kind:18} {quantity(mapped):>12}, of which {quantity(stored)} to be stored")
        if self.files:
            lines += ["", f"open files: {_count(sum(self.files.values()), 'description')}"]
            lines += [f"  {file_words(key, number)}" for key, number in Counter(self.files).most_common()]
        lines.append("")
        if self.obstacles:
            lines.append(f"in the way: {_count(len(self.obstacles), 'thing')}")
            lines += [f"  {text}" for text in grouped(self.obstacles)]
        else:
            lines.append(
                f"a dump would write about {quantity(self.image_bytes)} "
                f"and stop the tree for about {duration(self.frozen_seconds)} with -R"
            )
            lines.append("(without -R it stands still until all of that is on the disk, and is ended then)")
        if self.warnings:
            lines += ["", "will be missing", *(f"  {clean(text)}" for text in self.warnings)]
        lines += ["", "Cannot be dumped as it is." if self.obstacles else "Can be dumped."]
        return lines

    def _tree(self) -> list[str]:
        depth = {0: -1}
        lines: list[str] = []
        children: dict[int, list[TaskFacts]] = {}
        for task in self.tasks:
            children.setdefault(task.ppid, []).append(task)
        stack = list(reversed(children.get(0, [])))
        while stack and len(lines) < MANY:
            task = stack.pop()
            depth[task.pid] = depth[task.ppid] + 1
            about = [_count(task.threads, "thread")] if task.threads > 1 else []
            about += [{"Z": "zombie", "T": "stopped", "t": "traced"}.get(task.state, "")]
            about += [f"uid {task.uid}"] if task.uid else []
            about += [task.exe]
            words = ", ".join(clean(word) for word in about if word)
            indent = "  " * (min(depth[task.pid], MANY) + 1)
            lines.append(f"{indent}{task.pid} {clean(task.name)}{f': {words}' if words else ''}")
            stack += reversed(children.get(task.pid, []))
        if len(self.tasks) > len(lines):
            lines.append(f"  … and {len(self.tasks) - len(lines):,} more")
        return lines

    def facts(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "tasks": [task._asdict() for task in self.tasks],
            "threads": self.threads,
            "memory": {kind: {"mapped": both[0], "stored": both[1]} for kind, both in self.memory.items()},
            "areas": self.areas,
            "files": self.files,
            "descriptors": self.descriptors,
            "obstacles": [
                {"code": one.code, "what": one.what, "why": one.why, "remedy": one.remedy} for one in self.obstacles
            ],
            "warnings": self.warnings,
            "estimate": {"image_bytes": self.image_bytes, "frozen_seconds": self.frozen_seconds},
        }


def grouped(obstacles: "tuple[Refusal, ...]") -> list[str]:
    """One line an obstacle; what is in the way in the same words more than three times is counted."""
    alike: dict[tuple[str, str], list[Refusal]] = {}
    for one in obstacles:
        alike.setdefault((one.why, one.remedy), []).append(one)
    lines = []
    for (why, remedy), some in alike.items():
        if len(some) > 3:
            what = f"{some[0].what} and {len(some) - 1:,} more"
            lines.append(f"{what}: {why}; {remedy}" if remedy else f"{what}: {why}")
        else:
            lines += [str(one) for one in some]
    if len(lines) > MANY:
        lines[MANY:] = [f"… and {len(lines) - MANY:,} more kinds of obstacles (--json lists them)"]
    return [clean(line) for line in lines]


def check(options: Options) -> TreeReport:
    """Look at the tree options.tree.  Raises TaskGone, UsageError."""
    if options.tree is None:
        raise UsageError("no process is named", remedy="give the root of the tree by -t PID")
    survey = looking.Survey(options)
    with survey.looking(f"process {options.tree}"):
        try:
            refuse_target(options.tree)
        except UsageError as error:
            if error.code == "kernel":
                raise  # nothing else about it means anything
            survey.refuse(Refusal(f"process {options.tree}", error.why, error.remedy, code=error.code))
    tasks = looking.tree(options.tree)
    survey.tasks = tasks
    looking.refuse_blind(survey, options.tree)
    collect.refuse_ties(survey, tasks)
    own = namespaces.of(os.getpid())
    files, memory = looking.Files(survey), looking.Memory(survey)
    known = _Known()
    facts = []
    for task in tasks.values():
        uid, exe = 0, ""
        if not task.zombie:
            with survey.looking(task.subject, task):
                looking.status(task)
                looking.examine(survey, task, own)
                namespaces.refuse_threads(survey, task)
                _look(survey, task, files, memory, known)
                exe = os.readlink(f"/proc/{task.leader.tid}/exe")
            uid = task.status.credentials.uids[0] if task.status else 0
        facts.append(TaskFacts(task.pid, task.ppid, os.fsdecode(task.stat.comm), task.stat.state,
                               max(len(task.threads), 1), uid, exe))  # fmt: skip
    with survey.looking(f"process {options.tree}"):
        dump_files.examined(survey)
        in_memory.warn(survey)
    if not facts:
        raise TaskGone(f"there is no process {options.tree}", remedy="check the PID given with -t")
    with survey.looking(f"process {options.tree}"):
        memory.check_room(next(iter(tasks.values())))
    kinds = {kind: (both[0], both[1]) for kind, both in memory.kinds.items()}
    amounts = costs.Amounts(
        processes=len(facts),
        threads=sum(task.threads for task in facts),
        areas=memory.areas,
        descriptors=files.descriptors,
        files=dict(Counter(files.seen)),
        memory=sum(stored for _, stored in kinds.values()),
        contents=sum((memory.ghosts | files.contents_but(memory.segments)).values()),
    )
    return TreeReport(
        root=options.tree,
        tasks=tuple(facts),
        memory=kinds,
        areas=memory.areas,
        files=amounts.files,
        descriptors=files.descriptors,
        obstacles=tuple(survey.refusals),
        warnings=tuple(survey.warnings),
        image_bytes=costs.image_bytes(amounts),
        frozen_seconds=costs.frozen_seconds(amounts),
    )


class _Known:
    """Tells address spaces and tables of descriptors apart; cheap keys keep the questions to the kernel few."""

    def __init__(self) -> None:
        self._memory = Sorter(comparison(collect.KCMP_VM))
        self._files = Sorter(comparison(collect.KCMP_FILES))

    def memory(self, task: DumpTask) -> tuple[int, bool]:
        """The number of its address space, and whether it is new."""
        stat, before = task.stat, len(self._memory.classes)
        number = self._memory.add(task.leader.tid, (stat.startstack, stat.start_brk, stat.vsize))
        return number, number == before

    def new_files(self, tid: int) -> bool:
        before = len(self._files.classes)
        return self._files.add(tid, len(os.listdir(f"/proc/{tid}/fd"))) == before


def _look(survey: looking.Survey, task: DumpTask, files: looking.Files, memory: looking.Memory, known: _Known) -> None:
    """Descriptors, working directory and memory of one task."""
    number, is_new = known.memory(task)
    if is_new:
        memory.look(task)
    for thread in task.threads:
        if thread is task.leader or call("kcmp", task.leader.tid, thread.tid, collect.KCMP_FILES, 0, 0):
            memory.executors[number] = memory.executors.get(number, 0) + 1
            with survey.looking(task.subject):
                if known.new_files(thread.tid):
                    files.look(task, thread.tid)
        if thread is not task.leader and call("kcmp", task.leader.tid, thread.tid, collect.KCMP_FS, 0, 0):
            dump_files.refuse_own_directory(survey, task, thread.tid)
    for name, what in (("cwd", "its working directory"), ("root", "its root directory")):
        with survey.looking(task.subject):
            path = f"/proc/{task.leader.tid}/{name}"
            where = f"{task.subject}, {what}"
            memory.examine_path(where, read_link(where, path), path)


def _count(number: int, noun: str, nouns: str = "") -> str:
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"
