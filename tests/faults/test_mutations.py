# SPDX-License-Identifier: Apache-2.0
"""Images are data from strangers: whatever is done to them, reading, checking and planning end soon, and with words.

TORPOR_MUTATIONS=10000 sets how many mutations are tried; where it is set they are others each time.
"""

import os
from collections import Counter
from pathlib import Path

import pytest

from faults.mutations import Mutator, for_each_mutated, in_time
from torpor.check_images import ImagesReport, look
from torpor.options import Options

COUNT = int(os.environ.get("TORPOR_MUTATIONS", "600"))


def looked_at(images: Path) -> ImagesReport:
    """Load, check and plan, in this process; what is wrong is in the report, anything else is raised."""
    with in_time():
        return look(Options(images_dir=str(images), manage_cgroups="ignore"))


def test_as_they_are(mutator: Mutator, template: None) -> None:
    """The unchanged images can be restored: what is found in others is the mutations' doing."""
    mutator.revert()
    report = looked_at(mutator.target)
    assert all(one.code == "pid-taken" for one in report.obstacles), report.obstacles  # by another program meanwhile


def test_load_check_plan(mutator: Mutator, template: None, bounded: None, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes: Counter[str] = Counter()

    def one() -> None:
        report = looked_at(mutator.target)
        assert all(obstacle.what for obstacle in report.obstacles), report.obstacles
        assert report.facts() and report.lines()
        outcomes[report.obstacles[0].code if report.obstacles else "could be restored"] += 1

    for_each_mutated(mutator, COUNT, one)
    with capsys.disabled():
        print(f"\n{sum(outcomes.values())} mutated checkpoints, each read, checked and planned; the first thing found:")
        for code, number in outcomes.most_common():
            print(f"  {number:5} × {code}")
    assert sum(outcomes.values()) >= COUNT * 9 // 10
