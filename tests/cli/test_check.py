# SPDX-License-Identifier: Apache-2.0
"""`torpor check`: the kernel."""

import json
import os

import torpor
from torpor.kernel.probe import EXPERIMENTAL, OPTIONAL, REQUIRED, probes

from .conftest import Run


def test_what_people_read(torpor: Run) -> None:
    done = torpor("check")
    assert done.returncode == 0
    assert done.stdout.endswith("\nLooks good.\n")
    for probe in probes():
        assert probe.name in done.stdout
    for group in ("Required:", "Optional:", "Experimental:"):
        assert group in done.stdout.splitlines()


def test_what_programs_read(torpor: Run) -> None:
    answer = json.loads(torpor("check", "--json").stdout)
    assert answer["ok"]
    assert all(one["works"] for one in answer["findings"] if one["group"] == REQUIRED)
    missing = {one["group"] for one in answer["findings"] if not one["works"]}
    for option, groups in (("--extra", {OPTIONAL}), ("--experimental", {EXPERIMENTAL}), ("--all", missing)):
        done = torpor("check", option)
        assert done.returncode == bool(groups & missing)
        assert ("Looks good but some kernel features are missing" in done.stdout) == bool(groups & missing)


def test_what_is_missing_has_a_remedy() -> None:
    for one in torpor.check().findings:
        assert one.works or (one.why and one.remedy)


def test_the_library_leaves_its_host_alone() -> None:
    before = set(os.listdir("/proc/self/fd")), os.getcwd(), os.listdir("/proc/self/ns")
    torpor.check()
    assert (set(os.listdir("/proc/self/fd")), os.getcwd(), os.listdir("/proc/self/ns")) == before
    try:
        assert os.waitpid(-1, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        pass


def test_features(torpor: Run) -> None:
    assert torpor("check", "--feature", "kcmp_epoll").stdout == "kcmp_epoll is supported\n"
    names = torpor("check", "--feature", "list").stdout.split()
    assert len(names) == len(set(names)) == 45
    for name in ("uffd", "mem_dirty_track"):  # a yes would make scripts use what is refused
        done = torpor("check", "--feature", name)
        assert done.returncode == 1
        assert f"{name} is not supported: " in done.stdout
    assert torpor("check", "--feature", "kcmp_epoll", "--feature", "uffd").returncode == 1
