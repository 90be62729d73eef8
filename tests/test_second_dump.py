# SPDX-License-Identifier: Apache-2.0
"""What was restored can be dumped again, where the restored object is not quite the one that was dumped.

The mode `both` is run with all workloads in guests (make test-vm), or here: ``TORPOR_MODES=both``, test_workloads.py.
"""

import os
from pathlib import Path

import pytest

from harness.modes import MODES, run_case
from harness.tools import TORPOR
from harness.workload import DIRECTORY, Workload


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("name", ["fd_ghost_replaced", "sk_accepted_names", "sk_deleted"])
def test_second_dump(name: str, tmp_path: Path) -> None:
    run_case(Workload(DIRECTORY / f"{name}.c"), MODES["both"], {"torpor": TORPOR}, tmp_path / "case")
