# SPDX-License-Identifier: Apache-2.0
"""The front's limit to what the engine may wait for (`engine.process`)."""

import os
import signal
import time
from typing import Any

import pytest

from torpor.engine.process import LIMIT, Report, run_engine
from torpor.errors import DumpFailed

LEFT = ["pages-1.img"]
WORDS = ("cannot", "it waits", "try again")


def run(seconds: float) -> tuple[Any, list[tuple[str, Any]]]:
    """An engine that takes so long, where a twentieth of a second is allowed; its answer, and what the front heard."""

    def work(report: Report) -> str:
        report(LIMIT, (0.05, WORDS, LEFT))
        time.sleep(seconds)
        return "done"

    heard: list[tuple[str, Any]] = []
    try:
        return run_engine(work, lambda *report: heard.append(report)), heard
    except DumpFailed as failure:
        return failure.code, heard


def test_is_killed() -> None:
    begun = time.monotonic()
    assert run(30) == ("timeout", [(LIMIT, LEFT)])
    assert time.monotonic() - begun < 20


def test_has_answered_by_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """The front is kept from its processor when it has decided to kill."""
    kill = os.kill

    def late(pid: int, number: int) -> None:
        assert number == signal.SIGKILL
        time.sleep(1)
        kill(pid, number)

    monkeypatch.setattr(os, "kill", late)
    assert run(0.5) == ("done", [])
