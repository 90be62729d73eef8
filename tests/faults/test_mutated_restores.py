# SPDX-License-Identifier: Apache-2.0
"""Mutated images restored for real, each in a world of its own (throwaway.py): whether the tree runs or the restore is
refused or undone, it says so, does not hang, and leaves nothing behind.

TORPOR_RESTORED_MUTATIONS=300 sets how many.  Two of three are such that ``torpor check -D`` finds nothing wrong in the
images, so that the restore itself gets to see the nonsense.
"""

import importlib
import os
import pkgutil
import random
import stat
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import torpor
from faults.mutations import Mutation, Mutator
from faults.throwaway import restored
from faults.trees import Checkpoint
from torpor.check_images import look
from torpor.options import Options

COUNT = int(os.environ.get("TORPOR_RESTORED_MUTATIONS", "24"))


class World:
    """A checkpoint, and what a throw-away world has to hold so that it can be restored there."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.checkpoint = Checkpoint(place, 1, 0)
        self.mutator = Mutator(self.checkpoint.images, place / "mutated")
        home = self.checkpoint.home
        self.files = {
            path.name: (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"") for path in home.iterdir()
        }

    def furnish(self) -> None:
        """Write the tree's files and the images into an empty directory."""
        for directory in (self.checkpoint.home, self.mutator.target):
            directory.mkdir(mode=0o700)
        for name, (mode, content) in self.files.items():
            path = self.checkpoint.home / name
            if stat.S_ISREG(mode):
                path.write_bytes(content)
                path.chmod(stat.S_IMODE(mode))
            else:
                os.mknod(path, mode)
        for name, data in {**self.mutator.original, **self.mutator.changed}.items():
            if data is not None:
                (self.mutator.target / name).write_bytes(data)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if os.geteuid():
        pytest.skip("a user namespace with all users in it needs root")
    for one in pkgutil.walk_packages(torpor.__path__, "torpor."):  # once here, not in every world
        if not one.name.endswith("__main__"):
            importlib.import_module(one.name)
    place = tmp_path_factory.mktemp("world")
    module, patch = importlib.import_module("torpor.restore"), pytest.MonkeyPatch()
    template = module._template()  # for `look`; the restores themselves ask the CPU again
    it = World(place)
    with patch.context() as patched:
        patched.setattr(module, "_template", lambda: template)
        yield it


def test_as_it_is(world: World) -> None:
    """Unchanged images come back there: what fails in others is the mutations' doing."""
    world.mutator.revert()
    outcome = restored(world.place, world.furnish, world.mutator.target)
    assert outcome.status == 0 and outcome.left == [], outcome


def test_restored_for_real(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("TORPOR_SEED", "0")) or random.randrange(1 << 32)
    dice = random.Random(seed)
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    slowest = (0.0, "")
    for number in range(COUNT):
        while True:
            chosen = [Mutation(*(dice.getrandbits(64) for _ in range(4))) for _ in range(dice.choice((1, 1, 2)))]
            told = world.mutator.apply(chosen)
            options = Options(images_dir=str(world.mutator.target), manage_cgroups="ignore")
            seems_right = all(one.code == "pid-taken" for one in look(options).obstacles)
            if seems_right or number % 3 == 0:
                break
        began = time.monotonic()
        status, text, left = restored(world.place, world.furnish, world.mutator.target)
        slowest = max(slowest, (time.monotonic() - began, told))
        how = "restored" if not status else "undone" if seems_right else "refused"
        outcomes[how if status in (0, 1) else "wrong"] += 1
        if status not in (0, 1) or left or "a bug" in text or "Traceback" in text or not text:
            wrong.append(f"{told}: status {status}, left {left}; {text}")
    with capsys.disabled():
        print(
            f"\n{COUNT} mutated checkpoints restored for real (seed {seed}); {COUNT - len(wrong)} left nothing behind:"
        )
        for how, times in outcomes.most_common():
            print(f"  {times:5} × {how}")
        print(f"  the slowest took {slowest[0]:.1f} s: {slowest[1]}")
    assert not wrong, "\n\n".join(wrong)
