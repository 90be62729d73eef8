# SPDX-License-Identifier: Apache-2.0
"""CRIU for a guest: Debian's own package with all its libraries, as one more archive to boot with.

The guest's userland is older than the suite that CRIU comes from, so the C library and its loader come with it, in a
directory of their own: /criu.  Debian builds no CRIU for armhf in any suite (bookworm 3.17.1, trixie 4.1.1, forky and
sid 4.2.1 have it for amd64, arm64, ppc64el and s390x).
"""

import hashlib
import re
import shutil
from pathlib import Path

from . import VmError, cache_dir, in_cache, kept
from .cpio import CpioWriter
from .debian import Archive
from .targets import Target

SUITE = "forky"
ARCHITECTURES = ("aarch64", "ppc64le", "s390x")  # on x86_64 images are exchanged without a guest
COMMAND = "/criu/criu"
# Named by packages that CRIU needs, and needed by nothing that it does.
_UNUSED = ("libc-gconv-modules-extra",)
_SCRIPT = """#!/bin/sh
exec /criu/lib/{loader} --library-path /criu/lib /criu/lib/criu "$@"
"""


def _tree(source: Archive, packages: tuple[str, ...], scratch: Path) -> Path:
    """The directory /criu of the guest."""
    full, slim = scratch / "full", scratch / "slim"
    for name in ("lib", "lib64"):
        (full / "usr" / name).mkdir(parents=True)
        (full / name).symlink_to("usr/" + name)
    source.unpack(packages, full)
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
    made = home / f"criu-{recipe}.cpio"
    with kept.locked(home):
        if not kept.is_whole(made):
            names = [name for name in source.libraries("criu") if name not in _UNUSED]
            with kept.workplace(home) as work:
                tree = _tree(source, ("criu", *names), work)
                with kept.making(made) as partial, open(partial, "wb") as file:
                    writer = CpioWriter(file)
                    writer.tree(tree, "criu/")
                    writer.close()
    return made
