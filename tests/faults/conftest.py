# SPDX-License-Identifier: Apache-2.0
"""For the tests that give mutated images to Torpor, in the test's own process."""

import importlib
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from faults.mutations import PATIENCE_S, Mutator
from faults.trees import Checkpoint

MEMORY = 2 << 30  # more than any of these images can need


@pytest.fixture(scope="session")
def mutator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mutator]:
    place = tmp_path_factory.mktemp("mutations")
    checkpoint = Checkpoint(place)
    yield Mutator(checkpoint.images, place / "mutated")


@pytest.fixture(scope="module")
def template() -> Iterator[None]:
    """The registers of this machine's CPU are asked for once, not for each look."""
    module = importlib.import_module("torpor.restore")
    found = module._template()
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "_template", lambda: found)
    yield
    patch.undo()


@pytest.fixture
def bounded() -> Iterator[None]:
    """No hang (`mutations.in_time`), no memory without end: an exception where there would be."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"still at it after {PATIENCE_S:g} s")

    before, limits = signal.signal(signal.SIGALRM, late), resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)
    signal.signal(signal.SIGALRM, before)
