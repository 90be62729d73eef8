# SPDX-License-Identifier: Apache-2.0
"""Workloads together: several in one tree, through the modes that guests take: crowd.py."""

import os
from pathlib import Path

import pytest

from harness.crowd import Crowd, groups
from harness.modes import MODES, run_case
from harness.tools import TORPOR
from harness.workload import Workload, all_workloads

SIZE = 25
CROWDS = [group for group in groups(all_workloads(), SIZE) if len(group) > 1]
# Guests take the mode leave-running, too.  Here it is for one that owns more than processes and files.
CASES = [(members, "both") for members in CROWDS]
CASES += [(members, "leave-running") for members in CROWDS if "sys_others" in {member.name for member in members}]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(
    "members,mode", CASES, ids=[f"{members[0].name}-and-{len(members) - 1}-more-{mode}" for members, mode in CASES]
)
def test_crowd(members: list[Workload], mode: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)  # for workloads that become another user
    crowd = Crowd(members)
    run_case(crowd, MODES[mode], {"torpor": TORPOR}, tmp_path / "case")
    assert crowd.said.keys() | crowd.skipped.keys() == {member.name for member in members}
