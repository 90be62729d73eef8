# SPDX-License-Identifier: Apache-2.0
"""What is said where something is missing that guests need: vmlab/debian.py, tools/setup."""

import subprocess
from pathlib import Path

import pytest
from vmlab import VmError
from vmlab.debian import Archive, mirror, require
from vmlab.targets import TARGETS

SETUP = Path(__file__).resolve().parents[2] / "tools/setup"


def test_programs_that_are_missing_are_named_by_their_packages() -> None:
    with pytest.raises(VmError, match=r"apt-get install --no-install-recommends another one$"):
        require(("no-such-program", "one"), ("sh", "dash"), ("nor-this-one", "another"))


def test_setup_installs_what_is_asked_for() -> None:
    wanted = SETUP.read_text().replace("(", " ").replace(")", " ").split()
    assert [target.arch for target in TARGETS.values() if f"{target.qemu}={target.qemu_package}" not in wanted] == []


@pytest.mark.parametrize("own", ["x86_64", "aarch64", "ppc64le", "s390x"])
def test_setup_installs_what_guests_need_and_no_more(tmp_path: Path, own: str) -> None:
    """Where nothing is there yet."""
    for name, says in {"id": "1000", "uname": own, "dirname": str(SETUP.parent)}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\necho {says}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [SETUP, "vm"], env={"PATH": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1  # there is no compiler
    packages = set(done.stderr.splitlines()[0].partition("--no-install-recommends ")[2].split())
    compilers = {f"gcc-{target.triplet.replace('_', '-')}" for arch, target in TARGETS.items() if arch != own}
    assert {package for package in packages if package.startswith("gcc-")} == compilers
    assert {target.qemu_package for target in TARGETS.values()} <= packages
    assert not packages & {"redis-server", "nginx-light", "openjdk-17-jdk-headless"}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("Debian bookworm http://mirror.invalid/debian/", "http://mirror.invalid/debian"),
        ("Debian bookworm-security http://mirror.invalid/debian-security/", None),
        ("Ubuntu noble http://mirror.invalid/ubuntu/", None),
    ],
)
def test_where_apt_knows_no_mirror_of_debian_one_has_to_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, found: str | None
) -> None:
    apt = tmp_path / "apt-get"
    apt.write_text(f"#!/bin/sh\necho '{line}'\n")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("TORPOR_DEBIAN_MIRROR", raising=False)
    if found:
        assert mirror() == found
        return
    with pytest.raises(VmError, match="name one in TORPOR_DEBIAN_MIRROR"):
        mirror()
    monkeypatch.setenv("TORPOR_DEBIAN_MIRROR", "http://other.invalid/debian/")
    assert mirror() == "http://other.invalid/debian"


def test_lists_that_cannot_be_fetched_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """apt-get passes over a mirror that does not answer."""
    monkeypatch.setenv("TORPOR_VM_CACHE", str(tmp_path))
    monkeypatch.setenv("TORPOR_DEBIAN_MIRROR", "http://127.0.0.1:9/debian")
    archive = Archive("s390x", "trixie")
    with pytest.raises(VmError, match=r"(?s)apt-get update .*127\.0\.0\.1.*TORPOR_DEBIAN_MIRROR"):
        archive.newest("linux-image-.*")
    assert not (archive.state / "updated").exists()
