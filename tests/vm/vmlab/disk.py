# SPDX-License-Identifier: Apache-2.0
"""A disk for a guest: a raw image with ext4, filled by mke2fs without root or mounts.

It holds the same userland as the guest's initramfs, so that a guest can live on it (guest/switch.py), and outlives the
guest: another kernel boots with the same disk.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from . import VmError, cache_dir, image, in_cache, kept
from .debian import require
from .targets import Target

MODULES = ("virtio_pci", "virtio_mmio", "virtio_blk", "crc32c_generic", "crc32c", "ext4")
MEGABYTES = 512


def unpack(archive: Path, goal: Path) -> None:
    """Files, directories and links of a cpio archive (format "newc"); no devices."""
    data = archive.read_bytes()
    at = 0
    while True:
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, length = fields[1], fields[6], fields[11]
        name = data[at + 110 : at + 110 + length - 1].decode()
        begin = at + 110 + length + -(110 + length) % 4
        content = data[begin : begin + size]
        at = begin + size + -size % 4
        if name == "TRAILER!!!":
            return
        path = goal / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if mode & 0o170000 == 0o040000:
            path.mkdir(exist_ok=True)
        elif mode & 0o170000 == 0o120000:
            path.symlink_to(content.decode())
        elif mode & 0o170000 == 0o100000:
            path.write_bytes(content)
            path.chmod(mode & 0o7777)


@in_cache()
def make(target: Target, path: Path, version: str) -> None:
    """A new disk at `path` with the userland of `target`."""
    require(("mke2fs", "e2fsprogs"))
    userland = image.prepare(target, version).archives[0]
    filled = cache_dir() / "images" / target.arch / f"{userland.stem}-{MEGABYTES}.ext4"
    with kept.locked(filled.parent):
        if not kept.is_whole(filled):
            with kept.workplace(filled.parent) as work, kept.making(filled) as partial:
                _fill(work, userland, partial)
    with open(filled, "rb") as source, open(path, "wb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)


def _fill(top: Path, userland: Path, disk: Path) -> None:
    top.chmod(0o755)
    unpack(userland, top)
    for name in ("dev", "proc", "sys", "tmp", "run", "data", "t", "torpor"):
        (top / name).mkdir(exist_ok=True)
    environment = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    done = subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-E", "root_owner=0:0", "-d", str(top), str(disk), f"{MEGABYTES}M"],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    if done.returncode:
        raise VmError(f"mke2fs failed: {done.stderr}")


def arguments(target: Target, path: Path, options: str = "") -> Sequence[str]:
    """QEMU's for a disk that the guest sees as /dev/vda."""
    device = "virtio-blk-ccw" if target.arch == "s390x" else "virtio-blk-pci"
    return ["-drive", f"if=none,id=disk,format=raw,file={path}{options}", "-device", f"{device},drive=disk"]


def empty(path: Path, megabytes: int) -> None:
    """A new disk with an empty ext4 that has a journal."""
    require(("mke2fs", "e2fsprogs"))
    environment = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    # Nothing is left for the kernel to do later, which would be requests that no checkpoint makes.
    options = ["-E", "lazy_itable_init=0,lazy_journal_init=0"]
    done = subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", *options, str(path), f"{megabytes}M"],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    if done.returncode:
        raise VmError(f"mke2fs failed: {done.stderr}")
