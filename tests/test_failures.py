# SPDX-License-Identifier: Apache-2.0
"""harness/failures.py: which failure of CRIU excuses which failure of Torpor."""

import pytest

from harness.events import Timeout
from harness.failures import CheckFailed, Different, NeverReady, ToolFailed, excuse

WHEN = "after the restore by criu"


def refused(tool: str, verb: str, line: str) -> ToolFailed:
    return ToolFailed(tool, verb, 1, line, "")


def test_the_excuse_names_both() -> None:
    criu = Different(WHEN, ["task 7 (x), fd 3, flags: was '1', is '0'", "more"])
    here = Different("after the restore by torpor", ["task 812 (x), fd 3, flags: was '1', is '0'"])
    why = excuse(criu, here, "criu", "torpor")
    assert (
        why and f"CRIU alone: {WHEN}: task 7 (x), fd 3" in why and "here: after the restore by torpor: task 812" in why
    )


def test_another_difference_is_no_excuse() -> None:
    criu = Different(WHEN, ["task 7 (x), timerslack_ns: was '1', is '0'"])
    here = Different(WHEN, ["task 7 (x), timerslack_ns: was '1', is '0'", "task 7 (x), fd 3, flags: was '1', is '0'"])
    assert excuse(criu, here, "torpor", "criu") is None


def test_another_failing_check_is_no_excuse() -> None:
    criu = CheckFailed("sk_some", ["fail: sk.h:10: the queue is empty"])
    assert excuse(criu, CheckFailed("sk_some", ["fail: sk.h:12: the queue is full"]), "criu", "torpor") is None
    assert excuse(criu, Different(WHEN, ["the queue is empty"]), "criu", "torpor") is None
    assert excuse(criu, CheckFailed("sk_some", ["fail: sk.h:10: the queue is empty"]), "criu", "torpor")


def test_a_command_of_torpor_that_fails() -> None:
    here = refused("torpor", "restore", "torpor: no")
    assert excuse(refused("criu", "restore", "another reason"), here, "criu", "torpor")
    assert excuse(refused("criu", "dump", "no"), here, "criu", "torpor") is None
    assert excuse(CheckFailed("x", ["fail: something"]), here, "criu", "torpor") is None
    assert excuse(refused("criu", "restore", "no"), refused("torpor", "dump", "no"), "torpor", "criu") is None


def test_a_command_of_criu_that_fails() -> None:
    there = refused("criu", "restore", "12: Can't open /tmp/a/b/file 0x1f")
    assert excuse(there, refused("criu", "restore", "4567: Can't open /var/c/file 0xab"), "torpor", "criu")
    assert excuse(there, refused("criu", "restore", "4567: Can't close file"), "torpor", "criu") is None
    assert excuse(Different(WHEN, ["x"]), refused("criu", "restore", "x"), "torpor", "criu") is None


@pytest.mark.parametrize("here", [refused("criu", "restore", "x"), Different(WHEN, ["x"]), Timeout("no verdict")])
def test_what_criu_cannot_dump(here: AssertionError) -> None:
    there = refused("criu", "dump", "not supported")
    assert (excuse(there, here, "torpor", "criu") or "").startswith("CRIU cannot dump this: ")
    assert excuse(there, here, "criu", "torpor") is None


@pytest.mark.parametrize("there", [NeverReady("x ended before `ready`"), refused("criu", "dump", "not supported")])
def test_a_workload_that_fails_by_itself(there: AssertionError) -> None:
    for dumper, restorer in (("torpor", "criu"), ("criu", "torpor")):
        assert excuse(there, NeverReady("x ended before `ready`"), dumper, restorer) is None


def test_what_its_images_do_not_say() -> None:
    there = CheckFailed("x", ["fail: tree_stop_unseen.c:24: a stop that was seen is told again: 0x137f"])
    here = CheckFailed("x", ["fail: tree_stop_unseen.c:25: a stop that was not seen yet is forgotten"])
    assert "whether the parent has been told of a stop" in (excuse(there, here, "criu", "torpor") or "")
    assert excuse(there, here, "torpor", "criu") is None
    assert excuse(there, CheckFailed("x", [*here.checks, "fail: and more"]), "criu", "torpor") is None
    assert excuse(refused("criu", "restore", "no"), here, "criu", "torpor") is None
