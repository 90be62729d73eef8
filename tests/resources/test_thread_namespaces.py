# SPDX-License-Identifier: Apache-2.0
"""Threads that are looked at before the freeze: one that is about to end has left its namespaces, which is no reason to
refuse; one that lives in another is."""

from typing import Any

import pytest

from torpor.errors import Refusal
from torpor.resources import namespaces

LEADER, THREAD = 100, 101
WHOLE = (1, 2, 3, 4, 5, 6)  # net, ipc, uts, cgroup, pid_for_children, time_for_children


class Thread:
    def __init__(self, tid: int) -> None:
        self.tid = tid


class Task:
    leader = Thread(LEADER)
    threads = (leader, Thread(THREAD))

    def refusal(self, why: str, remedy: str, code: str) -> Refusal:
        return Refusal("task 100", why, remedy, code=code)


class Dump(dict[str, Any]):
    refused = ""

    def refuse(self, refusal: Refusal) -> None:
        self.refused += refusal.why


@pytest.mark.parametrize(
    ("looks", "word"),
    [
        ([WHOLE], ""),
        ([(1, 0, 0, 4, 5, 6), (0,) * 6], ""),
        ([(1, 2, 3, 4, 5, 0), (0,) * 6], ""),
        ([(1, 9, 3, 4, 5, 6)] * 2, "IPC"),
        ([(1, 2, 3, 4, 0, 6)] * 2, "PID namespace than the process for its children"),
    ],
)
def test_look(monkeypatch: pytest.MonkeyPatch, looks: list[tuple[int, ...]], word: str) -> None:
    left = list(looks)
    monkeypatch.setattr(namespaces, "_of_thread", lambda tid: WHOLE if tid == LEADER else left.pop(0))
    dump: Any = Dump()
    task: Any = Task()
    namespaces.refuse_threads(dump, task)
    assert word in dump.refused
    assert bool(word) == bool(dump.refused)
    assert not left
