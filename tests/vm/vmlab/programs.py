# SPDX-License-Identifier: Apache-2.0
"""The workloads' programs for a guest: cross-compiled here, against the C library that the guest has.

Its headers and libraries are Debian packages of the guest's suite, unpacked into a directory that the compiler takes
for the root, so that it does not matter what this machine has installed beside the compiler.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import crowd
from harness.workload import DIRECTORY, Workload

from . import VmError, cache_dir, in_cache, kept, targets
from .debian import Archive, require
from .kept import locked
from .targets import Target

GUEST = "torpor/programs"
PACKAGES = ("libc6", "libc6-dev", "linux-libc-dev")


def _compiler(target: Target) -> str:
    for name in (f"{target.triplet}-gcc", "gcc"):
        try:
            found = subprocess.run([name, "-dumpmachine"], capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            continue
        if found == target.triplet:
            return name
    require((f"{target.triplet}-gcc", f"gcc-{target.triplet.replace('_', '-')}"))
    raise VmError(f"{target.triplet}-gcc does not compile for {target.triplet}")


def _root(target: Target) -> Path:
    """Where the C library's files for this architecture lie, fetched first if they are not there."""
    home = cache_dir() / "sysroots"
    root = home / f"{target.arch}-{targets.USERLAND_SUITE}"
    with locked(home):
        if not root.exists():
            partial = root.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            for name in ("lib", "lib64"):
                (partial / "usr" / name).mkdir(parents=True)
                (partial / name).symlink_to("usr/" + name)
            Archive(target.debian, targets.USERLAND_SUITE).unpack(PACKAGES, partial)
            for link in partial.rglob("*"):
                if link.is_symlink() and os.readlink(link).startswith("/"):  # it would lead out of this root
                    goal = partial / os.readlink(link).lstrip("/")
                    link.unlink()
                    link.symlink_to(os.path.relpath(goal, link.parent))
            kept.name_tree(partial, root)
    return root


@in_cache()
def build(target: Target, names: Iterable[str]) -> tuple[dict[str, Path], dict[str, str]]:
    """Where each program that the guest needs lies here, by its path there; and the workloads that do not compile."""
    compiler, root = _compiler(target), _root(target)
    cache = cache_dir() / "programs" / target.arch

    def one(name: str) -> Path | str:
        source = crowd.SOURCE if name == crowd.SOURCE.stem else DIRECTORY / f"{name}.c"
        try:
            return Workload(source).build(compiler, [f"--sysroot={root}"], cache)
        except AssertionError as error:
            return str(error)

    wanted = [name for name in names if (DIRECTORY / f"{name}.c").exists()] + [crowd.SOURCE.stem]
    files: dict[str, Path] = {}
    broken: dict[str, str] = {}
    with locked(cache), ThreadPoolExecutor(2) as pool:
        for name, made in zip(wanted, pool.map(one, wanted), strict=True):
            if isinstance(made, str):
                broken[name] = made
            else:
                files[f"{GUEST}/{name}"] = made
    return files, broken


@in_cache()
def build_one(target: Target, source: Path) -> Path:
    """A program that is no workload."""
    cache = cache_dir() / "programs" / target.arch
    with locked(cache):
        return Workload(source).build(_compiler(target), [f"--sysroot={_root(target)}"], cache)


@in_cache()
def build_alone(target: Target, source: Path) -> Path:
    """A program without any library, which uses no vector registers."""
    made = (
        cache_dir() / "programs" / target.arch / f"{source.stem}-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"
    )
    command = [_compiler(target), f"--sysroot={_root(target)}", "-O1", "-static", "-nostdlib", "-ffreestanding"]
    with locked(made.parent):
        if not kept.is_whole(made):
            with kept.making(made) as partial:
                command += ["-fno-stack-protector", "-mgeneral-regs-only", "-o", str(partial), str(source)]
                subprocess.run(command, check=True)
    return made


def sources() -> Iterator[tuple[str, Path]]:
    """What else the workloads need in a guest, by its path there."""
    yield "torpor/tests/harness", DIRECTORY.parent / "harness"
    yield "torpor/tests/workloads", DIRECTORY
