# SPDX-License-Identifier: Apache-2.0
"""The kernel is updated, and the application goes on: a busy tree is dumped to a guest's disk under one kernel and
restored from it under another, there and back.  Each leg is a boot; guest/update.py is what happens in it.
"""

import tempfile
from pathlib import Path

import pytest
from vmlab import VmError, cache_dir, disk, machine
from vmlab.targets import TARGETS

LEGS = {"there_and_back": (("6.1", "begin"), ("6.12", "hop"), ("6.1", "end")),
        "back_and_there": (("6.12", "begin"), ("6.1", "hop"), ("6.12", "end"))}  # fmt: skip
SECONDS = 200


@pytest.mark.vm
@pytest.mark.parametrize("way", LEGS)
@pytest.mark.parametrize("arch", TARGETS)
def test_update(arch: str, way: str) -> None:
    target = TARGETS[arch]
    (cache_dir() / "run").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir() / "run", prefix=f"update-{arch}-") as scratch:
        path = Path(scratch, "disk")
        try:
            disk.make(target, path, LEGS[way][0][0])
            for kernel, leg in LEGS[way]:
                outcome = machine.run(
                    target, kernel, ["/t/switch.py", "/t/update.py", leg],
                    modules=disk.MODULES, extra=disk.arguments(target, path), timeout=SECONDS,
                )  # fmt: skip
                if outcome.status != 0:
                    pytest.fail(f"{arch} {kernel} {leg}: {machine.describe_failure(outcome)}", pytrace=False)
                print(f"{arch} {kernel} {leg} ({outcome.seconds:.0f} s):")
                for name, figure in outcome.results[-1]["output"].items():
                    print(f"  {name}: {figure}")
        except VmError as error:
            pytest.fail(str(error), pytrace=False)
