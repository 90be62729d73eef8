# SPDX-License-Identifier: Apache-2.0
"""Credentials without a kernel: what images say becomes programs, refusals, or complaints."""

import struct
from typing import Any

import pytest
from attributekit import ALL, PID, TID, be, calls, credentials, restore, task, thread

from torpor.engine.program import Program
from torpor.errors import ImageError, Refusal
from torpor.resources import creds
from torpor.resources.context import RestoreTask


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    be(monkeypatch)


# -- credentials ------------------------------------------------------------------------------------------------------


def place_creds(made: RestoreTask, tid: int = PID) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    creds.Credentials().check(made, restore())
    first, then = Program(), Program()
    creds.Credentials().place(made, first)
    creds.Credentials().place_thread(made, tid, made.cores[tid], then)
    return calls(first), calls(then)


def test_nothing_to_do_for_what_is_like_torpor() -> None:
    made = task()
    thread(made).creds = credentials()
    assert place_creds(made) == ([], [])


def test_a_user_without_rights() -> None:
    made = task()
    ids = dict.fromkeys(("uid", "euid", "suid", "fsuid"), 33) | dict.fromkeys(("gid", "egid", "sgid", "fsgid"), 44)
    thread(made).creds = credentials(**ids, groups=[5, 70000], cap_prm=0, cap_eff=0, cap_bnd=ALL & ~3, no_new_privs=1)
    first, then = place_creds(made)
    assert first == [
        ("setgroups", 2, struct.pack("=2I", 5, 70000)),
        ("prctl", 28, 4, 0, 0, 0),  # SECBIT_NO_SETUID_FIXUP: rights stay
        ("setresgid", 44, 44, 44),
        ("setresuid", 33, 33, 33),
        ("prctl", 24, 0, 0, 0, 0),
        ("prctl", 24, 1, 0, 0, 0),
    ]
    assert then[0] == ("prctl", 28, 0, 0, 0, 0)
    assert then[1][0] == "capset"
    assert then[1][2] == bytes(24)
    assert then[2] == ("prctl", 38, 1, 0, 0, 0)


def test_file_system_ids_of_their_own() -> None:
    made = task()
    thread(made).creds = credentials(fsuid=7, fsgid=8)
    first, _ = place_creds(made)
    assert ("setfsuid", 7) in first
    assert ("setfsgid", 8) in first


def test_inheritable_before_bounding_and_ambient_before_locks() -> None:
    made = task()
    kill = 1 << 5
    thread(made).creds = credentials(
        cap_inh=kill, cap_prm=kill, cap_eff=0, cap_bnd=0, cap_amb=kill, secbits=1 << 6 | 1 << 7
    )
    first, then = place_creds(made)
    assert first[0][0] == "capset"
    assert [call[0] for call in first[1:]] == ["prctl"] * 41
    assert then[0] == ("prctl", 47, 2, 5, 0, 0)
    assert then[1] == ("prctl", 28, 0xC0, 0, 0, 0)
    assert then[2][0] == "capset"


def test_threads_with_credentials_of_their_own() -> None:
    made = task(2)
    thread(made).creds = credentials(uid=1, euid=1, suid=1, fsuid=1, cap_bnd=ALL & ~1)
    thread(made, TID).creds = credentials(uid=2, euid=2, suid=2, fsuid=2, cap_bnd=ALL & ~3)
    first, then = place_creds(made, TID)
    assert ("setresuid", 1, 1, 1) in first
    assert ("prctl", 24, 0, 0, 0, 0) in first
    assert ("prctl", 24, 1, 0, 0, 0) not in first
    assert ("setresuid", 2, 2, 2) in then
    assert ("prctl", 24, 1, 0, 0, 0) in then


@pytest.mark.parametrize(
    ("mine", "theirs", "words"),
    [
        ({"permitted": ALL & ~(1 << 24)}, {}, "it has CAP_SYS_RESOURCE, which Torpor itself lacks"),
        ({"bounding": ALL & ~(1 << 21)}, {}, r"may gain .*CAP_SYS_ADMIN"),
        ({"effective": ALL & ~(1 << 7)}, {"uid": 5}, "needs CAP_SETUID"),
        ({"effective": ALL & ~(1 << 6)}, {"groups": [1]}, "needs CAP_SETGID"),
        ({"effective": ALL & ~(1 << 8)}, {"cap_bnd": 0}, "needs CAP_SETPCAP"),
        ({"securebits": 0xF}, {}, "securebits are locked"),
        ({"no_new_privs": 1}, {}, "no_new_privs"),
    ],
)
def test_rights_that_torpor_lacks(
    mine: dict[str, int], theirs: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    be(monkeypatch, **mine)
    made = task()
    thread(made).creds = credentials(**theirs)
    with pytest.raises(Refusal, match=words):
        creds.Credentials().check(made, restore())


def test_credentials_that_make_no_sense() -> None:
    for bad in ({"cap_prm": 0}, {"cap_amb": 1}, {"groups": list(range(70000))}):
        made = task()
        thread(made).creds = credentials(**bad)
        with pytest.raises(ImageError):
            creds.Credentials().check(made, restore())
