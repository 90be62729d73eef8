# SPDX-License-Identifier: Apache-2.0
"""Every kind of descriptor that this machine can make is covered or refused in words, and never hurt."""

import sys
from pathlib import Path

import pytest

import torpor
from check.descriptors import MAKERS
from check.support import Victim
from check.support import torpor as command
from torpor.resources import registry

HERE = Path(__file__).parent
NOT_BY_LINK = {"netlink", "packet", "vsock", "af_alg", "af_key", "xdp", "can", "bluetooth"}  # all look like sockets


@pytest.mark.parametrize("name", MAKERS)
def test_each_is_answered(name: str, tmp_path: Path) -> None:
    with Victim(tmp_path, sys.executable, HERE / "descriptors.py", name) as victim:
        if victim.first.startswith("cannot: "):
            pytest.skip(f"{name}: {victim.first[8:]}")
        assert victim.first == "ready"
        report = torpor.check(pid=victim.pid, manage_cgroups="ignore")
        facts = report.facts()
        refused = {key for key in facts["files"] if key in registry.REFUSED}
        assert "fd:anon" not in refused
        fds = [one for one in facts["obstacles"] if ", fd " in one["what"]]
        assert all(one["why"] and one["remedy"] for one in fds)
        assert bool(refused) <= bool(fds)
        if fds:
            _refuse(victim, tmp_path, [one["why"] for one in facts["obstacles"]])
            if name not in NOT_BY_LINK:
                assert not report.ok
        assert victim.end() == "pass"


def _refuse(victim: Victim, directory: Path, reasons: list[str]) -> None:
    """The dump says the same, and leaves nothing in the images directory."""
    images = directory / "images"
    images.mkdir()
    done = command(
        "dump", "-t", victim.pid, "-D", images, "--manage-cgroups=ignore", "-W", directory, "-o", "log", "-v4"
    )
    assert done.returncode == 1
    assert any(why in done.stderr for why in reasons)
    assert not list(images.iterdir())
    assert victim.process.poll() is None


@pytest.mark.parametrize("name", ["inotify", "io_uring", "bpf-map", "userfaultfd", "pidfd", "namespace"])
def test_refused_before_anything_is_stopped(name: str, tmp_path: Path) -> None:
    with Victim(tmp_path, sys.executable, HERE / "descriptors.py", name) as victim:
        if victim.first.startswith("cannot: "):
            pytest.skip(f"{name}: {victim.first[8:]}")
        done = command("dump", "-t", victim.pid, "-D", tmp_path, "-o", "log", "-v4")
        assert done.returncode == 1
        log = (tmp_path / "log").read_text()
        assert "freezing" not in log
        assert "Error: task" in log
        assert victim.end() == "pass"
