# SPDX-License-Identifier: Apache-2.0
"""One file an architecture; `native()` is the one this machine runs.  See `base.Arch` for what a file must say."""

import os

from torpor.errors import Refusal
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.arch.base import Arch

MODULES = {
    "x86_64": "x86_64",
    "aarch64": "aarch64",
    "armv7l": "arm",
    "armv8l": "arm",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
}
# By core_entry.march, to name those of images that come from elsewhere.
ARCHITECTURES = {
    1: "x86_64", 2: "armv7l", 3: "aarch64", 4: "ppc64le", 5: "s390x", 6: "mips", 7: "loongarch64", 8: "riscv64",
}  # fmt: skip
_native: "Arch | None" = None


def native() -> "Arch":
    """The architecture of the running kernel.  Raises Refusal on one that Torpor does not know."""
    global _native
    if _native is None:
        machine = os.uname().machine
        if machine not in MODULES:
            raise Refusal(f"machine {machine}", "Torpor does not know this architecture", f"use {', '.join(MODULES)}")
        _native = __import__(f"torpor.arch.{MODULES[machine]}", fromlist=["ARCH"]).ARCH
    return _native
