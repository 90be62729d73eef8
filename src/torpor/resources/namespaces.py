# SPDX-License-Identifier: Apache-2.0
"""Namespaces: all tasks of a tree must live in Torpor's own, but perhaps for their clocks (clocks.py).  namespaces(7).

Surprising facts: a thread can leave its process's network, IPC, UTS and cgroup namespace, and choose where its children
are born (unshare(2), setns(2)); and /proc/PID/ns/pid_for_children cannot be looked at until somebody was born there.
"""

import os

from torpor.resources import clocks
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.resources.context import Dump, DumpTask

NAMESPACES = ("pid", "net", "ipc", "uts", "time", "mnt", "user", "cgroup")  # in the order of their numbers, from 1
FOR_CHILDREN = ("pid_for_children", "time_for_children")
# What a thread can have for itself.  A mount namespace comes with a working directory of its own, which is refused.
OF_A_THREAD = ("net", "ipc", "uts", "cgroup", *FOR_CHILDREN)
_SPELLED = {"pid": "PID", "net": "network", "ipc": "IPC", "uts": "UTS", "mnt": "mount", "pid_for_children": "PID",
            "time_for_children": "time"}  # fmt: skip


def refuse(dump: "Dump", task: "DumpTask", own: dict[str, int]) -> None:
    """Refuse namespaces other than `own`."""
    theirs = of(task.leader.tid)
    if "time" in theirs:
        clocks.examine(task, dump, theirs["time"], own.get("time", theirs["time"]))
    for name, inode in theirs.items():
        of_time = name.startswith("time") and theirs.get("time") == theirs.get("time_for_children")
        if own.get(name, inode) == inode or of_time:
            continue
        spelled = _SPELLED.get(name, name)
        if name not in FOR_CHILDREN:
            why = f"it lives in another {spelled} namespace than Torpor"
        elif theirs.get(name.removesuffix("_for_children")) != inode:
            why = f"its children will live in another {spelled} namespace than itself (unshare, setns)"
        else:
            continue  # said already
        dump.refuse(task.refusal(why, f"run Torpor inside that {spelled} namespace", code="namespace"))


def refuse_threads(dump: "Dump", task: "DumpTask") -> None:
    """Refuse threads in other namespaces than their process (unshare, setns).

    In a dump only in the freeze: before it, every thread may still leave, and this takes 50 µs a thread.
    """
    if len(task.threads) < 2:
        return
    theirs = _of_thread(task.pid, task.leader.tid)
    for thread in task.threads[1:]:
        found = _of_thread(task.pid, thread.tid)
        if found == theirs:
            continue
        found = _of_thread(task.pid, thread.tid)  # it may have ended in the middle of the first look
        if _has_left(found, theirs):
            continue
        for name, one, expected in zip(OF_A_THREAD, found, theirs, strict=True):
            if one != expected:
                spelled = _SPELLED.get(name, name)
                why = f"its thread {thread.tid} has another {spelled} namespace than the process"
                if name in FOR_CHILDREN:
                    why += " for its children"
                dump.refuse(task.refusal(why, "Torpor cannot save that yet; end that thread first", code="namespace"))


def _has_left(found: tuple[str, ...], expected: tuple[str, ...]) -> bool:
    """Whether it is about to end (before the freeze): then it has none of the namespaces that every task lives in."""
    looked = zip(OF_A_THREAD, found, expected, strict=True)
    return any(there and not one for name, one, there in looked if name not in FOR_CHILDREN)


def _of_thread(pid: int, tid: int) -> tuple[str, ...]:
    """The texts of the links, such as "net:[4026531840]": reading one takes half the time of following it with stat."""
    found = []
    fd = os.open(f"/proc/{pid}/task/{tid}/ns", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in OF_A_THREAD:
            try:
                found.append(os.readlink(name, dir_fd=fd))
            except FileNotFoundError:  # this kernel has none such, or nobody was born into it yet
                found.append("")
    finally:
        os.close(fd)
    return tuple(found)


def of(tid: int) -> dict[str, int]:
    found = {}
    try:
        fd = os.open(f"/proc/{tid}/ns", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    try:
        for name in (*NAMESPACES, *FOR_CHILDREN):
            try:
                link = os.readlink(name, dir_fd=fd)  # such as "net:[4026531840]": half the time of stat
                found[name] = int(link[link.index("[") + 1 : -1])
            except FileNotFoundError:
                # A PID namespace into which nobody was born yet cannot be looked at; a task that is about to end has
                # none.
                if name in FOR_CHILDREN and os.path.exists(f"/proc/{tid}/ns/net"):
                    found[name] = 0
    finally:
        os.close(fd)
    return found


def ids() -> dict[str, int]:
    """All tasks live in Torpor's own namespaces, but perhaps for their clocks: 1 to 8, as in the inventory."""
    return {f"{name}_ns_id": number for number, name in enumerate(NAMESPACES, 1)}
