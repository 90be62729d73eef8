# SPDX-License-Identifier: Apache-2.0
"""Guests with real Debian kernels of five architectures, under QEMU's emulation.

`targets` says what a machine of each architecture looks like, `debian` fetches packages, `image` makes initramfs
archives of them, `machine` boots one and listens to what it says.  Nothing here needs root, KVM or a network device;
everything fetched or built lies in ``$TORPOR_VM_CACHE`` (by default ``~/.cache/torpor-vm``).
"""

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOM = 1 << 30  # bytes that are free where a program does not fail for want of them


class VmError(Exception):
    """The guest could not be prepared or did not run; the text says what to do about it."""


def cache_dir() -> Path:
    """The directory of everything fetched and built."""
    named = os.environ.get("TORPOR_VM_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(named).absolute() if named else Path(base) / "torpor-vm"


def jobs() -> int:
    """How many guests may run at a time.  Raises VmError where $TORPOR_VM_JOBS is no number of guests."""
    return a_number("TORPOR_VM_JOBS", 2, "how many guests may run at a time, 1 or more", least=1)


def processors() -> int:
    """How many processors a guest has whose test does not say.  Raises VmError where $TORPOR_VM_CPUS is no number."""
    return a_number("TORPOR_VM_CPUS", 1, "how many processors each guest has, 1 or more", least=1)


def a_number(setting: str, usual: int, what: str, least: int = 0) -> int:
    """A setting that is a number; `what` it says.  Raises VmError where it is none."""
    named = os.environ.get(setting) or str(usual)
    if not (named.isascii() and named.isdecimal() and int(named) >= least):
        raise VmError(f"{setting} is {named!r}; it says {what}")
    return int(named)


@contextlib.contextmanager
def in_cache() -> Iterator[None]:
    """Something is made in the cache.  Raises VmError where that fails."""
    full = False
    try:
        yield
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    except subprocess.CalledProcessError as error:
        what = f"{error.cmd[0]} has failed with {error.returncode}"
        if error.stderr:
            what += f": {str(error.stderr).strip()[-500:]}"
        full = shutil.disk_usage(cache_dir()).free < ROOM
    else:
        return
    words = f"make room in {cache_dir()}, or name" if full else f"the cache is {cache_dir()}; name"
    raise VmError(f"{what}; {words} another directory in TORPOR_VM_CACHE")
