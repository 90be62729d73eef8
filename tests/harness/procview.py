# SPDX-License-Identifier: Apache-2.0
"""A process tree as /proc shows it: one flat dictionary, to be compared by differences.py.

Counters, times and kernel addresses are left out by name; everything else is in it.  What belongs to a thread, to a
process and to a descriptor table is told once for each; kcmp says which of them share a table or a description.

Surprises: a zombie leader has no maps and no descriptors, its live threads do; /proc/PID/timers and timerslack_ns exist
for processes only; a task inside sigwait shows the signals that it awaits as unblocked.
"""

import ctypes
import os
import re
import signal
import struct
from pathlib import Path
from typing import Any, NamedTuple

from harness.differences import Area, Areas, Key, Same, Tolerance, Value, View, differences, renumber
from harness.events import text_of, tree_of
from torpor.kernel import file_facts

__all__ = ["Areas", "Same", "Tolerance", "View", "differences", "renumber", "view"]

# Lines of status that count or measure, or that are about others.
STATUS_COUNTERS = {
    "FDSize", "Ngid", "SigQ", "State", "VmPeak", "VmHWM", "VmRSS", "RssAnon", "RssFile", "RssShmem", "VmPTE", "VmSwap",
    "VmPin", "HugetlbPages", "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches", "PPid", "CoreDumping",
}  # fmt: skip
# ... and those that belong to a thread; the rest is the process's and compared once.
STATUS_OF_THREAD = {
    "Name", "Uid", "Gid", "Groups", "SigPnd", "SigBlk", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs",
    "Seccomp", "Seccomp_filters", "Speculation_Store_Bypass", "SpeculationIndirectBranch", "Cpus_allowed",
    "Mems_allowed", "NStgid", "NSpid", "NSpgid", "NSsid", "TracerPid", "x86_Thread_features", "Umask",
}  # fmt: skip
# Fields of stat by their number in proc_pid_stat(5).
STAT_OF_PROCESS = {
    5: "pgrp", 6: "session", 7: "tty", 8: "tpgid", 20: "number of threads", 23: "vsize", 25: "rsslim", 26: "startcode",
    27: "endcode", 28: "startstack", 38: "exit_signal", 45: "start_data", 46: "end_data", 47: "start_brk",
    48: "arg_start", 49: "arg_end", 50: "env_start", 51: "env_end",
}  # fmt: skip
STAT_OF_THREAD = {18: "priority", 19: "nice", 40: "rt_priority", 41: "policy"}
PF_EXITING = 0x4
# Compiled here, before anybody forks: a guest's every case is a fork, and compiling them all took a thirtieth of it.
TIMER = re.compile(r"^ID: ", re.MULTILINE)
OF_A_TASK = re.compile(r"/proc/\d+(/|$)")
NUMBERED = re.compile(r"^(socket|pipe):\[\d+\]$")
TARGET_DATA, TARGET_INODE = re.compile(r"data:\s*(\S+)"), re.compile(r"ino:([0-9a-f]+)")
TARGET_FILE = re.compile(r" ino:\S+ sdev:\S+")
SIGTERM_BIT = 1 << (signal.SIGTERM - 1)
TEXT_FILES = (
    "cmdline", "environ", "comm", "oom_score_adj", "personality", "coredump_filter", "loginuid", "sessionid", "cgroup",
    "cpuset", "uid_map", "gid_map", "projid_map", "setgroups", "timens_offsets", "attr/current", "timerslack_ns",
)  # fmt: skip
KCMP_FILE, KCMP_VM, KCMP_FILES, KCMP_FS, KCMP_SIGHAND, KCMP_SYSVSEM = 0, 1, 2, 3, 4, 6
# kcmp, sched_getattr, get_robust_list, ioprio_get
SYS_KCMP, SYS_SCHED_GETATTR, SYS_GET_ROBUST_LIST, SYS_IOPRIO_GET = {
    "x86_64": (312, 315, 274, 252),
    "aarch64": (272, 275, 100, 31),
    "armv7l": (378, 381, 339, 315),
    "ppc64le": (354, 356, 299, 274),
    "s390x": (343, 346, 305, 283),
}[os.uname().machine]

_libc = ctypes.CDLL(None, use_errno=True)


class Owner(NamedTuple):
    """A thread, and a descriptor where it is about one; `name` is what the view calls the object."""

    name: Any
    tid: int
    number: int = 0


def _kcmp(kind: int, one: Owner, other: Owner) -> int:
    """0 for the same object, 1 and 2 for the order of two, else (one of them is gone) something else."""
    numbers = ctypes.c_ulong(one.number), ctypes.c_ulong(other.number)
    return int(_libc.syscall(SYS_KCMP, one.tid, other.tid, kind, *numbers))


def _first_owner(known: list[Owner], kind: int, owner: Owner) -> Owner:
    """The owner in `known`, which is in kcmp's order, of the same object, or else `owner`, which is then put into it.
    kcmp(2): its order is there to sort by, for many objects."""
    low, high = 0, len(known)
    while low < high:
        middle = (low + high) // 2
        order = _kcmp(kind, owner, known[middle])
        if order == 0:
            return known[middle]
        if order not in (1, 2):  # it has the object no more, or this one: it shares it with none
            return next((other for other in known if _kcmp(kind, owner, other) == 0), owner)
        low, high = (low, middle) if order == 1 else (middle + 1, high)
    known.insert(low, owner)
    return owner


def _read(path: str) -> str | None:
    try:
        return text_of(path)
    except OSError:
        return None


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _stat(path: str) -> list[str]:
    """Fields of /proc/PID/stat by number: [1] is the PID.  Raises FileNotFoundError, ProcessLookupError: it is gone."""
    head, _, rest = text_of(path).rpartition(") ")
    pid, _, comm = head.partition(" (")
    return ["", pid, comm, *rest.split()]


def _state(letter: str) -> str:
    """Running and sleeping are one: which it is depends on the moment."""
    return {"R": "alive", "S": "alive", "D": "alive", "I": "alive"}.get(letter, letter)


class Viewer:
    """Collects one view."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.view: View = {}
        self.tables: dict[int, list[Owner]] = {}
        self.files: list[tuple[Owner, tuple[object, ...]]] = []

    def tree(self) -> View:
        pids = tree_of(self.root)
        self.view[("tree", "tasks")] = tuple(sorted(pids))
        for pid in pids:
            for again in (True, True, False):
                try:
                    self.task(pid)
                    break
                except (FileNotFoundError, ProcessLookupError):
                    there = os.path.exists(f"/proc/{pid}")
                    if there and not again:
                        raise
                    # It, or a thread of it, ended while we looked: half of it is worse than nothing.
                    self.view = {key: value for key, value in self.view.items() if key[0] != f"task {pid}"}
                    self.files = [file for file in self.files if file[0].name[0] != f"task {pid}"]
                    if not there:
                        break
        self.descriptions()
        return self.view

    def task(self, pid: int) -> None:
        task = f"task {pid}"
        at = f"/proc/{pid}"
        tids = sorted(map(int, os.listdir(f"{at}/task")))
        self.view[(task, "threads")] = tuple(tids)
        live = 0
        for tid in tids:
            state = self.thread(task, pid, tid)
            if state != "Z" and not live:
                live = tid
        stat = _stat(f"{at}/stat")
        self.view[(task, "parent")] = int(stat[4]) if pid != self.root else "outside"
        for number, name in STAT_OF_PROCESS.items():
            self.view[(task, name)] = int(stat[number])
        if stat[3] == "Z":
            self.view[(task, "exit status")] = int(stat[52])
        self.timers(task, at)
        if not live:
            return
        inside = f"{at}/task/{live}"
        for name in TEXT_FILES:
            text = _read(f"{inside}/{name}")
            if text is None:
                text = _read(f"{at}/{name}")
            if text is not None:
                self.view[(task, name)] = text.strip("\n")
        for name in ("exe", "cwd", "root"):
            self.view[(task, name)] = _link(f"{inside}/{name}") or "none"
        for name in sorted(os.listdir(f"{inside}/ns")):
            self.view[(task, f"namespace {name}")] = _link(f"{inside}/ns/{name}") or "none"
        self.auxv(task, inside)
        for line in (_read(f"{inside}/limits") or "").splitlines()[1:]:
            self.view[(task, f"limit {line[:26].strip()}")] = " ".join(line[26:].split()[:2])
        for line in (_read(f"{inside}/ksm_stat") or _read(f"{at}/ksm_stat") or "").splitlines():
            if line.startswith("ksm_merge_any"):
                self.view[(task, "ksm_merge_any")] = line.split()[1]
        self.areas(task, inside)
        self.shared(task, pid, live, tids)

    # -- threads --
    def thread(self, task: str, pid: int, tid: int) -> str:
        at = f"/proc/{pid}/task/{tid}"
        stat = _stat(f"{at}/stat")
        state = _state(stat[3])
        thread = f"thread {tid}"
        self.view[(task, thread, "state")] = state
        self.view[(task, thread, "exiting")] = int(stat[9]) & PF_EXITING
        for number, name in STAT_OF_THREAD.items():
            self.view[(task, thread, name)] = int(stat[number])
        for line in (_read(f"{at}/status") or "").splitlines():
            name, _, value = line.partition(":")
            if name in STATUS_COUNTERS or (state == "Z" and name != "Name"):
                continue
            if name in STATUS_OF_THREAD:
                self.view[(task, thread, f"status {name}")] = " ".join(value.split())
                if name == "SigBlk":  # a task inside sigwait shows what it awaits as unblocked: workloads await SIGTERM
                    self.view[(task, thread, "status SigBlk")] = f"{int(value, 16) & ~SIGTERM_BIT:016x}"
            elif tid == pid:
                self.view[(task, f"status {name}")] = " ".join(value.split())
        if state == "Z":
            return state
        self.view[(task, thread, "comm")] = (_read(f"{at}/comm") or "").strip("\n")
        attributes = ctypes.create_string_buffer(56)
        if _libc.syscall(SYS_SCHED_GETATTR, tid, attributes, 56, 0) == 0:
            # size, policy, flags, nice, priority, runtime, deadline, period, util_min, util_max
            self.view[(task, thread, "sched_attr")] = struct.unpack("=IIQiIQQQII", attributes)[1:]
        head, size = ctypes.c_ulong(), ctypes.c_ulong()
        if _libc.syscall(SYS_GET_ROBUST_LIST, tid, ctypes.byref(head), ctypes.byref(size)) == 0:
            self.view[(task, thread, "robust list")] = f"{head.value:#x} {size.value}"
        self.view[(task, thread, "ioprio")] = int(_libc.syscall(SYS_IOPRIO_GET, 1, tid))
        return state

    def auxv(self, task: str, at: str) -> None:
        try:
            words = memoryview(Path(f"{at}/auxv").read_bytes()).cast("L")
        except OSError:
            return
        for number, value in zip(words[::2], words[1::2], strict=True):
            self.view[(task, f"auxv {number}")] = value

    def timers(self, task: str, at: str) -> None:
        for block in TIMER.split(_read(f"{at}/timers") or "")[1:]:
            number, *lines = block.splitlines()
            self.view[(task, f"timer {number}")] = ", ".join(lines)

    # -- memory --
    def areas(self, task: str, at: str) -> None:
        found: list[Area] = []
        block, *more = (_read(f"{at}/smaps") or "").split("\nVmFlags:")  # the last line of an area
        for flags_and_next in more:
            line, _, sizes = block.partition("\n")
            flags, _, block = flags_and_next.partition("\n")
            words = line.split(maxsplit=5)
            start, _, end = words[0].partition("-")
            inode, name = words[4], "".join(words[5:])
            size = sizes.partition("KernelPageSize:")[2].split(maxsplit=1)[0]
            pkey = sizes.partition("ProtectionKey:")[2].split(maxsplit=1)[:1]
            what: str | Same = f"{words[3]} {inode}"
            if name.endswith(" (deleted)"):
                what = Same("inode", what)
            # An anonymous area's offset is its address or nothing.
            offset = int(words[2], 16) if inode != "0" else -1
            about = frozenset(flags.split()) - {"sd"}
            where = int(start, 16), int(end, 16), offset
            found.append(Area(*where, words[1], name, what, about, size, "".join(pkey)))
        self.view[(task, "areas")] = Areas(tuple(found))

    # -- what is shared, and descriptors --
    def shared(self, task: str, pid: int, live: int, tids: list[int]) -> None:
        for kind, name in ((KCMP_VM, "address space"), (KCMP_SIGHAND, "signal handlers")):
            self.view[(task, name)] = Same(name, self.table(live, kind))
        for tid in tids:
            if self.view[(task, f"thread {tid}", "state")] == "Z":
                continue
            for kind, name in ((KCMP_FS, "fs"), (KCMP_SYSVSEM, "semaphore undo")):
                self.view[(task, f"thread {tid}", name)] = Same(name, self.table(tid, kind))
            table = self.table(tid, KCMP_FILES)
            self.view[(task, f"thread {tid}", "descriptor table")] = Same("descriptor table", table)
            if table == tid:  # the first that was found to have this table
                self.descriptors(f"table of thread {tid}" if tid != pid else task, f"/proc/{pid}/task/{tid}", tid)

    def table(self, tid: int, kind: int) -> int:
        """The first thread seen that shares this table."""
        return _first_owner(self.tables.setdefault(kind, []), kind, Owner(tid, tid)).tid

    def descriptors(self, owner: str, at: str, tid: int) -> None:
        for number in sorted(map(int, os.listdir(f"{at}/fd"))):
            try:
                facts = file_facts.stat(f"{at}/fd/{number}")
                text = text_of(f"{at}/fdinfo/{number}")
                link = os.readlink(f"{at}/fd/{number}")
            except FileNotFoundError:
                continue
            key = (owner, f"fd {number}")
            # The inode numbers of a task's files in /proc are new each time somebody looks.
            named = link.startswith("/") and facts.st_nlink > 0 and not OF_A_TASK.match(link)
            shown = NUMBERED.sub(r"\1", link)
            self.view[(*key, "link")] = shown
            inode: Value = Same("inode", (facts.st_dev, facts.st_ino))
            if named:
                inode = f"{os.major(facts.st_dev):x}:{os.minor(facts.st_dev):x} {facts.st_ino}"
            if not link.startswith("anon_inode:"):
                self.view[(*key, "inode")] = inode
            self.view[(*key, "mode")] = oct(facts.st_mode)
            self.view[(*key, "owner")] = f"{facts.st_uid}:{facts.st_gid}"
            self.fdinfo(key, text)
            same = (facts.st_dev, facts.st_ino, link, self.view.get((*key, "flags"), "").__str__().split(" ")[0])
            self.files.append((Owner((*key, "description"), tid, number), same))

    def fdinfo(self, key: Key, text: str) -> None:
        counts: dict[str, int] = {}
        for line in text.splitlines():
            name, _, value = line.partition(":")
            value = " ".join(value.split())
            if name in ("mnt_id", "ino", "eventfd-id"):
                continue
            if name == "flags":
                number = int(value, 8)
                self.view[(*key, "close-on-exec")] = bool(number & os.O_CLOEXEC)
                value = oct(number & ~os.O_CLOEXEC)
            elif name == "ticks":  # of a timerfd: they grow by themselves
                value = "some" if value != "0" else value
            elif name == "it_value":
                value = "disarmed" if value == "(0, 0)" else "armed"
            elif name == "tfd":
                # By number and data: one number may stand for several files, in the order of kernel addresses.
                data = TARGET_DATA.search(value)
                name = f"tfd {value.split()[0]} data {data[1] if data else ''}"
                if watched := TARGET_INODE.search(value):
                    self.view[(*key, f"{name} inode")] = Same("watched", watched[1])
                value = TARGET_FILE.sub("", value)
            number = counts[name] = counts.get(name, 0) + 1
            self.view[(*key, name if number == 1 else f"{name} #{number}")] = value

    def descriptions(self) -> None:
        """Which descriptors are one open file description: kcmp among those that look alike."""
        alike: dict[tuple[object, ...], list[Owner]] = {}
        for owner, same in self.files:
            first = _first_owner(alike.setdefault(same, []), KCMP_FILE, owner)
            self.view[owner.name] = Same("description", first.name)


def view(root: int) -> View:
    """All that /proc shows of the tree below `root` now."""
    return Viewer(root).tree()
