# SPDX-License-Identifier: Apache-2.0
"""What tests of attributes without a kernel share: tasks as images tell of them, and what Torpor itself is."""

import struct
from types import SimpleNamespace
from typing import Any

import pytest

from torpor.arch import native
from torpor.engine.program import Program
from torpor.images.schema.core import (
    CoreEntry,
    TaskCoreEntry,
    ThreadCoreEntry,
)
from torpor.images.schema.creds import CredsEntry
from torpor.images.schema.siginfo import SiginfoEntry, SignalQueueEntry
from torpor.images.schema.torpor import TaskExtraEntry
from torpor.kernel.proc import Limit
from torpor.kernel.sched import SchedAttr
from torpor.kernel.status import Credentials
from torpor.resources import own
from torpor.resources.context import RestoreTask
from torpor.resources.extras import Extras

PID, TID = 100, 101
ALL = (1 << 41) - 1
LIMITS = {number: Limit(100, 1000) for number in range(16)}


def facts(**changes: Any) -> own.Facts:
    """A Torpor that is root."""
    mine = Credentials((0, 0, 0, 0), (0, 0, 0, 0), (), 0, ALL, ALL, ALL, 0, 0, 0, 0)
    mine = mine._replace(**{name: changes.pop(name) for name in list(changes) if name in Credentials._fields})
    whole = own.Facts(mine, 0, LIMITS, SchedAttr(0), 0, 50000, b"\3", 0, None, 0x33)
    return whole._replace(**changes)


def be(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    mine = facts(**changes)
    monkeypatch.setattr(own, "facts", lambda: mine)


def credentials(**changes: Any) -> CredsEntry:
    words = {"cap_inh": 0, "cap_prm": ALL, "cap_eff": ALL, "cap_bnd": ALL, "cap_amb": 0}
    words |= {name: changes.pop(name) for name in list(changes) if name in words}
    fields: dict[str, Any] = dict.fromkeys(
        ("uid", "gid", "euid", "egid", "suid", "sgid", "fsuid", "fsgid", "secbits"), 0
    )
    fields |= {name: [mask & 0xFFFFFFFF, mask >> 32] for name, mask in words.items()}
    return CredsEntry(**(fields | changes))


def task(threads: int = 1, **tc: Any) -> RestoreTask:
    made = RestoreTask(PID, 1, PID, PID, [PID + i for i in range(threads)])
    made.tracee = SimpleNamespace(arch=native())  # type: ignore[assignment]
    made.extras = Extras(True, TaskExtraEntry(), {})
    for tid in made.threads:
        core = CoreEntry(mtype=1, thread_core=ThreadCoreEntry(futex_rla=0, futex_rla_len=0))
        made.cores[tid] = core
    made.core.tc = TaskCoreEntry(
        **({"task_state": 1, "exit_code": 0, "personality": 0, "flags": 0, "blk_sigset": 0, "comm": "x"} | tc)
    )
    return made


def thread(made: RestoreTask, tid: int = PID) -> ThreadCoreEntry:
    core = made.cores[tid].thread_core
    assert core is not None
    return core


def restore(**state: Any) -> Any:
    return SimpleNamespace(state=state, tasks={}, options=SimpleNamespace(manage_cgroups="soft"))


def calls(program: Program) -> list[tuple[Any, ...]]:
    """Name and arguments; pointers as their bytes, results as "$n"."""

    def plain(arg: Any) -> Any:
        if hasattr(arg, "root"):
            return arg.root.data
        return arg if isinstance(arg, int) else f"${arg.index}"

    return [(call.name, *map(plain, call.args)) for call in program.calls]


def siginfo(number: int, code: int = 0, timer: int = 0, overrun: int = 0) -> bytes:
    return struct.pack("=iii4xii", number, 0, code, timer, overrun).ljust(128, b"\0")


def queue(*infos: bytes) -> SignalQueueEntry:
    return SignalQueueEntry(signals=[SiginfoEntry(siginfo=info) for info in infos])
