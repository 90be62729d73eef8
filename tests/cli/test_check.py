# SPDX-License-Identifier: Apache-2.0
"""`torpor check`: the kernel."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

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
        assert "probe" not in one.why, f"{one.name}: {one.why}"  # it has no answer, or a bug


def test_the_library_leaves_its_host_alone() -> None:
    def all_of_it() -> list[object]:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
        return [set(os.listdir("/proc/self/fd")), os.getcwd(), os.listdir("/proc/self/ns"), children]

    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    before = all_of_it()
    torpor.check()
    assert all_of_it() == before
    assert os.waitpid(child, os.WNOHANG) == (child, 0), "a child of the host was waited for"


def test_features(torpor: Run) -> None:
    assert torpor("check", "--feature", "kcmp_epoll").stdout == "kcmp_epoll is supported\n"
    names = torpor("check", "--feature", "list").stdout.split()
    assert len(names) == len(set(names)) == 45
    for name in ("uffd", "mem_dirty_track"):  # a yes would make scripts use what is refused
        done = torpor("check", "--feature", name)
        assert done.returncode == 1
        assert f"{name} is not supported: " in done.stdout
    assert torpor("check", "--feature", "kcmp_epoll", "--feature", "uffd").returncode == 1


def test_what_the_library_is_asked(tmp_path: Path) -> None:
    """The options of the command line by name: they were passed over."""
    report = torpor.check(feature=["kcmp_epoll", "uffd"], log_file=tmp_path / "log", unprivileged=True, verbosity=4)
    assert not report.ok and [one.name for one in report.findings] == ["kcmp_epoll", "uffd"]
    assert torpor.check(feature=["kcmp_epoll"]).lines() == ["kcmp_epoll is supported"]
    with pytest.raises(torpor.UsageError):
        torpor.check(feature=["nonsense"])
    assert "has no effect" in (tmp_path / "log").read_text()


def test_a_tree_or_images(torpor: Run, tmp_path: Path) -> None:
    done = torpor("check", "-t", str(os.getpid()), "-D", ".")
    assert done.returncode == 1
    expected = "torpor: -t names a tree and -D names images: check looks at one of them; give one, then the other\n"
    assert done.stderr == expected
    (tmp_path / "some.conf").write_text("images-dir .\n")  # what configuration files say is for other commands
    done = torpor("check", "-t", str(os.getpid()), "--config", "some.conf")
    assert "descriptor" in done.stdout


def test_a_thread_of_the_kernel(torpor: Run) -> None:
    comm = Path("/proc/2/comm")
    if not comm.exists() or comm.read_text() != "kthreadd\n":
        pytest.skip("kernel threads are not seen from here")
    done = torpor("check", "-t", "2")
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == "torpor: cannot dump process 2: it is a thread of the kernel; dump a program\n"


def test_what_the_estimate_is_for(torpor: Run) -> None:
    victim = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        lines = torpor("check", "-t", str(victim.pid)).stdout.splitlines()
    finally:
        victim.kill()
        victim.wait()
    assert re.match(r"a dump would write about .* and stop the tree for about .* with -R$", lines[-4])
    assert lines[-3] == "(without -R it stands still until all of that is on the disk, and is ended then)"
