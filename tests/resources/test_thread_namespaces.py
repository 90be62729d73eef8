# SPDX-License-Identifier: Apache-2.0
"""Threads of a tree that runs (`check -t`): one that is about to end has left its namespaces, which is no reason to
refuse; one that lives in another is."""

from typing import Any

import pytest

from torpor.errors import Refusal
from torpor.resources import namespaces

LEADER, THREAD = 100, 101
Links = tuple[str, ...]
WHOLE = ("net:1", "ipc:2", "uts:3", "cgroup:4", "pid:5", "time:6")  # as OF_A_THREAD has them
GONE = ("",) * 6


class Thread:
    def __init__(self, tid: int) -> None:
        self.tid = tid


class Task:
    pid = LEADER
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
        ([(WHOLE[0], "", "", *WHOLE[3:]), GONE], ""),
        ([(*WHOLE[:5], ""), GONE], ""),
        ([(WHOLE[0], "ipc:9", *WHOLE[2:])] * 2, "IPC"),
        ([(*WHOLE[:4], "", WHOLE[5])] * 2, "PID namespace than the process for its children"),
    ],
)
def test_look(monkeypatch: pytest.MonkeyPatch, looks: list[Links], word: str) -> None:
    left = list(looks)
    monkeypatch.setattr(namespaces, "_of_thread", lambda pid, tid: WHOLE if tid == LEADER else left.pop(0))
    dump: Any = Dump()
    task: Any = Task()
    namespaces.refuse_threads(dump, task)
    assert word in dump.refused
    assert bool(word) == bool(dump.refused)
    assert not left
