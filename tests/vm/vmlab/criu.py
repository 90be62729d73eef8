# SPDX-License-Identifier: Apache-2.0
"""CRIU for a guest: Debian's own package with all its libraries, as one more archive to boot with.

The guest's userland is older than the suite that CRIU comes from, so the C library and its loader come with it, in a
directory of their own: /criu.  Debian builds no CRIU for armhf in any suite (bookworm 3.17.1, trixie 4.1.1, forky and
sid 4.2.1 have it for amd64, arm64, ppc64el and s390x).
"""

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path

from . import VmError, cache_dir, in_cache
from .cpio import CpioWriter
from .debian import Archive, unpack
from .image import locked
from .targets import Target

SUITE = "forky"
ARCHITECTURES = ("aarch64", "ppc64le", "s390x")  # on x86_64 images are exchanged without a guest
COMMAND = "/criu/criu"
# Named by packages that CRIU needs, and needed by nothing that it does.
_UNUSED = ("libc-gconv-modules-extra",)
_SCRIPT = """#!/bin/sh
exec /criu/lib/{loader} --library-path /criu/lib /criu/lib/criu "$@"
"""


def _tree(packages: list[Path], scratch: Path) -> Path:
    """The directory /criu of the guest."""
    full, slim = scratch / "full", scratch / "slim"
    for name in ("lib", "lib64"):
        (full / "usr" / name).mkdir(parents=True)
        (full / name).symlink_to("usr/" + name)
    for deb in packages:
        unpack(deb, full)
    (slim / "lib").mkdir(parents=True)
    for path in sorted(full.glob("usr/lib/*-linux-gnu*/*.so.*")):
        if re.search(r"\.so\.\d+$", path.name):
            shutil.copy(path, slim / "lib")  # what a link leads to, under the link's name
    shutil.copy(full / "usr/sbin/criu", slim / "lib")
    loaders = [path.name for path in (slim / "lib").glob("ld*.so.[0-9]")]
    if len(loaders) != 1:
        raise VmError(f"Debian's packages hold not one dynamic loader, but {loaders}")
    (slim / "criu").write_text(_SCRIPT.format(loader=loaders[0]))
    (slim / "criu").chmod(0o755)
    return slim


@in_cache()
def archive(target: Target) -> Path:
    """The cached archive with CRIU for `target`, made first if there is none."""
    if target.arch not in ARCHITECTURES:
        raise VmError(f"Debian has no CRIU for {target.debian}")
    home = cache_dir() / "images" / target.arch
    source = Archive(target.debian, SUITE)
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:10]
    with locked(home):
        made = home / f"criu-{recipe}.cpio"
        if not made.exists():
            names = [name for name in source.libraries("criu") if name not in _UNUSED]
            packages = source.fetch(("criu", *names))
            with tempfile.TemporaryDirectory(dir=home, prefix="criu-") as scratch:
                partial = Path(scratch, "partial")
                with open(partial, "wb") as file:
                    writer = CpioWriter(file)
                    writer.tree(_tree(packages, Path(scratch)), "criu/")
                    writer.close()
                os.rename(partial, made)
    return made
