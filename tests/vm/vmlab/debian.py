# SPDX-License-Identifier: Apache-2.0
"""Debian packages of any architecture and suite, without touching the system's own package state.

apt is told to keep lists, cache and status in a directory of ours, for a foreign architecture, so it verifies
signatures as always and needs no root.  Where from: the Debian mirror that the system's apt uses, or
``TORPOR_DEBIAN_MIRROR``.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from . import VmError, cache_dir
from .kept import to_disk

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def require(*programs: tuple[str, str]) -> None:
    """Check that every (program, Debian package) is there; VmError names all packages that are not."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = sorted({package for program, package in programs if not shutil.which(program, path=path)})
    if missing:
        raise VmError(
            f"missing programs; install them with: apt-get install --no-install-recommends {' '.join(missing)}"
        )


def mirror() -> str:
    """The Debian mirror to fetch from."""
    named = os.environ.get("TORPOR_DEBIAN_MIRROR")
    if named:
        return named.rstrip("/")
    require(("apt-get", "apt"))
    lines = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)", "Created-By: Packages"],
        check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    for line in lines:
        origin, codename, uri = line.split(" ", 2)
        if origin == "Debian" and "-" not in codename:
            return uri.rstrip("/")
    raise VmError("this system's apt knows no Debian mirror; name one in TORPOR_DEBIAN_MIRROR (and run apt-get update)")


class Damaged(VmError):
    """A package that is not what the archive has."""


class Archive:
    """One architecture in one suite of Debian's archive."""

    def __init__(self, debian_arch: str, suite: str) -> None:
        self.state = cache_dir() / "apt" / f"{debian_arch}-{suite}"
        self.debs = cache_dir() / "debs" / f"{debian_arch}-{suite}"
        self.suite, self.arch = suite, debian_arch

    def _options(self) -> list[str]:
        state = str(self.state)
        settings = {
            "APT::Architecture": self.arch,
            "APT::Architectures": self.arch,
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Dir::Cache": f"{state}/cache",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "-",
            "Dir::Etc::sourcelist": f"{state}/sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::State::Lists": f"{state}/lists",
            "Dir::State::status": "/dev/null",
        }
        return ["-q", *(f"-o{key}={value}" for key, value in settings.items())]

    def _apt(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            [program, *self._options(), *arguments], cwd=cwd, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise VmError(
                f"{program} {' '.join(arguments)} for {self.arch}/{self.suite} failed:\n{done.stderr[-2000:]}"
            )
        return done.stdout

    def _update(self) -> None:
        done = self.state / "updated"
        if done.exists():
            return
        require(("apt-get", "apt"), ("apt-cache", "apt"))
        if not os.path.exists(_KEYRING):
            raise VmError("Debian's keys are missing; install them with: apt-get install debian-archive-keyring")
        for sub in ("lists/partial", "cache/archives/partial"):
            (self.state / sub).mkdir(parents=True, exist_ok=True)
        source = f"deb [arch={self.arch} signed-by={_KEYRING}] {mirror()} {self.suite} main\n"
        (self.state / "sources.list").write_text(source)
        try:
            self._apt(
                "apt-get", "update", "-oAPT::Update::Error-Mode=any"
            )  # else what cannot be fetched is passed over
        except VmError as error:
            raise VmError(f"{error}\nIs that mirror there? TORPOR_DEBIAN_MIRROR names another.") from None
        done.touch()

    def _update_anew(self) -> None:
        (self.state / "updated").unlink(missing_ok=True)
        self._update()

    def newest(self, pattern: str) -> str:
        """The name of the newest package whose whole name matches `pattern`, downloaded: a mirror's lists may name one
        that it does not have (yet, or any more), and then it is the one before."""
        self._update()
        if not (names := self._named(pattern)):
            self._update_anew()
            names = self._named(pattern)
        if not names:
            raise VmError(f"{self.suite} has no package {pattern} for {self.arch}")
        names.sort(key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
        while True:
            try:
                self.fetch((names[-1],))
                return names[-1]
            except VmError:
                if len(names) == 1:
                    raise
                names.pop()

    def _named(self, pattern: str) -> list[str]:
        listed = self._apt("apt-cache", "search", "--names-only", "^linux-image-")
        names = (line.split(" ", 1)[0] for line in listed.splitlines())
        return [name for name in names if re.fullmatch(pattern, name)]

    def libraries(self, package: str) -> list[str]:
        """The library packages that `package` needs, and they in turn."""
        self._update()
        listed = self._apt("apt-cache", "depends", "--recurse", "--important", package)
        return sorted({line for line in listed.splitlines() if line.startswith("lib")})

    def fetch(self, names: Sequence[str]) -> list[Path]:
        """The .deb files of the packages `names`, downloaded unless they are here already."""
        self.debs.mkdir(parents=True, exist_ok=True)
        have = {path.name.split("_", 1)[0]: path for path in sorted(self.debs.glob("*.deb"))}
        absent = [name for name in names if name not in have]
        if absent:
            self._update()
            partial = self.debs / "partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                self._apt("apt-get", "download", *absent, cwd=partial)
            except VmError:
                # The archive has moved on since our lists were made: fetch them anew, once.
                self._update_anew()
                self._apt("apt-get", "download", *absent, cwd=partial)
            for path in partial.glob("*.deb"):
                to_disk(path)
                have[path.name.split("_", 1)[0]] = path.rename(self.debs / path.name)
            to_disk(self.debs)
            partial.rmdir()
        return [have[name] for name in names]

    def unpack(self, names: Sequence[str], into: Path) -> None:
        """Unpack the files of the packages `names` into the directory `into`.  One that is damaged here is fetched
        anew."""
        for name, deb in zip(names, self.fetch(names), strict=True):
            try:
                unpack(deb, into)
            except Damaged:
                deb.unlink()
                try:
                    (again,) = self.fetch((name,))
                except VmError as error:
                    raise VmError(f"{deb} was damaged and is removed, but cannot be fetched anew: {error}") from None
                unpack(again, into)


def unpack(deb: Path, into: Path) -> None:
    """Unpack a package's files into the directory `into`.  Raises Damaged where it is the package that is at fault."""
    require(("dpkg-deb", "dpkg"), ("tar", "tar"))
    into.mkdir(parents=True, exist_ok=True)
    contents = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    # The directory links of a merged /usr stay links.
    command = ["tar", "-x", "--keep-directory-symlink", "--no-same-owner", "-C", str(into)]
    with subprocess.Popen(contents, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as source:
        done = subprocess.run(command, stdin=source.stdout, capture_output=True, text=True, check=False)
    if not (done.returncode or source.returncode):
        return
    # Each fails where the other does: dpkg-deb, when nobody reads on, tar, when there is no end.
    alone = subprocess.run(contents, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if alone.returncode:
        raise Damaged(f"{deb} is damaged; remove it ({' '.join(alone.stderr.split())})")
    raise subprocess.CalledProcessError(done.returncode or source.returncode, command, stderr=done.stderr)
