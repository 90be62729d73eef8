# SPDX-License-Identifier: Apache-2.0
"""Guest images: one archive with Debian's Python, one per kernel with its modules, both made once and cached.

A third archive, packed at every run (`machine`), brings the test.  The Python files are compiled here, with hashes
that the guest does not check: compiling them under emulation costs seconds at every boot.
"""

import contextlib
import glob
import hashlib
import lzma
import os
import py_compile
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from . import VmError, cache_dir, in_cache, kept, targets
from .cpio import CpioWriter
from .debian import Archive, require
from .targets import Target

_UNUSED = (
    "test", "idlelib", "lib2to3", "distutils", "ensurepip", "pydoc_data", "tkinter", "turtledemo", "unittest/test",
)  # fmt: skip


class Image(NamedTuple):
    """What QEMU boots: the kernel, and the two archives to put before the test's own."""

    kernel: Path
    release: str
    archives: tuple[Path, Path]


def _recipe() -> str:
    """A name for the way images are made, so that a changed recipe is not served from the cache."""
    digest = hashlib.sha256()
    for source in (__file__, targets.__file__):
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()[:10]


def compile_into(tree: Path, guest_path: str) -> None:
    """Compile every .py below `tree`, which will lie at `guest_path`, if this Python is the guest's version."""
    if sys.version_info[:2] != (3, 11):
        return
    for source in tree.rglob("*.py"):
        shown = f"{guest_path}/{source.relative_to(tree)}"
        with contextlib.suppress(py_compile.PyCompileError):
            py_compile.compile(
                str(source), dfile=shown, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
            )


def _pack(path: Path, tree: Path, *, extra: bytes | None = None, prefix: str = "") -> None:
    with kept.making(path) as partial, open(partial, "wb") as file:
        archive = CpioWriter(file)
        archive.tree(tree, prefix)
        if extra is None:
            archive.device("dev/console", 0o600, 5, 1)
            archive.device("dev/null", 0o666, 1, 3)
        else:
            archive.file("modules.load", extra)
        archive.close()


def _build_userland(target: Target, path: Path, root: Path) -> None:
    for directory in (
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
        "proc",
        "sys",
        "dev",
        "tmp",
        "run",
        "root",
        "etc",
        "mnt",
    ):
        (root / directory).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to("usr/" + name)
    Archive(target.debian, targets.USERLAND_SUITE).unpack(targets.USERLAND, root)
    library = root / "usr/lib/python3.11"
    for name in _UNUSED:
        shutil.rmtree(library / name, ignore_errors=True)
    for junk in (root / "usr/share", *root.glob("usr/lib/*/gconv"), *library.glob("config-3.11-*")):
        shutil.rmtree(junk, ignore_errors=True)
    compile_into(library, "/usr/lib/python3.11")
    (root / "usr/bin/python3").symlink_to("python3.11")
    for name in ("sh", "mount", "umount", "ls", "cat", "ps", "dmesg", "sleep", "ip"):
        if not os.path.lexists(root / "usr/bin" / name):
            (root / "usr/bin" / name).symlink_to("/bin/busybox")
    for name in ("modprobe", "insmod", "lsmod"):
        (root / "usr/sbin" / name).symlink_to("/bin/busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    _pack(path, root)


def _build_kernel(archive: Archive, package: str, kernel: Path, modules: Path, work: Path) -> None:
    full, slim = work / "full", work / "slim"
    archive.unpack((package,), full)
    base = full if (full / "lib/modules").is_dir() else full / "usr"
    release = os.listdir(base / "lib/modules")[0]
    environment = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    subprocess.run(["depmod", "-b", str(base), release], check=True, env=environment)
    source, goal = base / "lib/modules" / release, slim / "lib/modules" / release
    where: dict[str, str] = {}
    needs: dict[str, list[str]] = {}
    for line in (source / "modules.dep").read_text().splitlines():
        module, _, others = line.partition(":")
        where[re.sub(r"\.ko(\.\w+)?$", "", os.path.basename(module)).replace("-", "_")] = module
        needs[module] = others.split()
    order = {name: [*reversed(needs[where[name]]), where[name]] for name in targets.MODULES if name in where}
    for module in sorted({module for modules_ in order.values() for module in modules_}):
        data = (source / module).read_bytes()
        plain = goal / re.sub(r"\.xz$", "", module)
        plain.parent.mkdir(parents=True, exist_ok=True)
        plain.write_bytes(lzma.decompress(data) if module.endswith(".xz") else data)
    for name in ("modules.builtin", "modules.order", "modules.builtin.modinfo"):
        shutil.copy(source / name, goal / name)
    subprocess.run(["depmod", "-b", str(slim), release], check=True, env=environment)
    for path in goal.glob("modules.*"):
        if path.name not in ("modules.dep", "modules.alias", "modules.builtin", "modules.order"):
            path.unlink()
    plan = "".join(
        f"{name} {' '.join(f'/lib/modules/{release}/' + re.sub(r'[.]xz$', '', module) for module in modules_)}\n"
        for name, modules_ in order.items()
    )
    _pack(modules, slim / "lib/modules", extra=plan.encode(), prefix="usr/lib/modules/")
    with kept.making(kernel) as partial:
        shutil.copy(glob.glob(str(full / "boot/vmlinu*"))[0], partial)


def needed(target: Target) -> list[tuple[str, str]]:
    """(program, Debian package) of what a guest needs."""
    return [
        (target.qemu, target.qemu_package), ("depmod", "kmod"), ("dpkg-deb", "dpkg"), ("apt-get", "apt"),
        ("setpriv", "util-linux"),
    ]  # fmt: skip


@in_cache()
def prepare(target: Target, version: str) -> Image:
    """The cached image of `target` with Linux `version`, made first if there is none."""
    require(*needed(target))
    if version not in target.kernels:
        raise VmError(f"no kernel {version} for {target.arch}; there are {', '.join(target.kernels)}")
    home = cache_dir() / "images" / target.arch
    userland = home / f"userland-{_recipe()}.cpio"
    suite, pattern = target.kernels[version]
    named = home / f"linux-{version}-{_recipe()}.name"
    kernel, modules = (named.with_suffix(suffix) for suffix in (".kernel", ".cpio"))
    with kept.locked(home):
        if not kept.is_whole(userland):
            with kept.workplace(home) as work:
                _build_userland(target, userland, work / "root")
        if not all(kept.is_whole(part) for part in (kernel, modules, named)):
            archive = Archive(target.debian, suite)
            package = archive.newest(pattern)
            with kept.workplace(home) as work:
                _build_kernel(archive, package, kernel, modules, work)
            with kept.making(named) as partial:
                partial.write_text(package)
        return Image(kernel, named.read_text(), (userland, modules))
