# SPDX-License-Identifier: Apache-2.0
"""Guests with real Debian kernels of five architectures, under QEMU's emulation.

`targets` says what a machine of each architecture looks like, `debian` fetches packages, `image` makes initramfs
archives of them, `machine` boots one and listens to what it says.  Nothing here needs root, KVM or a network device;
everything fetched or built lies in ``$TORPOR_VM_CACHE`` (by default ``~/.cache/torpor-vm``).
"""

import os
from pathlib import Path


class VmError(Exception):
    """The guest could not be prepared or did not run; the text says what to do about it."""


def cache_dir() -> Path:
    """The directory of everything fetched and built."""
    named = os.environ.get("TORPOR_VM_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(named) if named else Path(base) / "torpor-vm"
