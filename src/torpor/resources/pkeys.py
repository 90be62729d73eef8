# SPDX-License-Identifier: Apache-2.0
"""Protection keys of memory that a process has allocated (pkeys(7)), whether or not areas have them.

Nobody tells which these are, but pkey_mprotect(2) looks at the key first: where no area can be, it fails with EINVAL
for one that is not allocated, with ENOMEM for others, and changes nothing.  pkey_alloc(2) gives the lowest that is
free, so that a restore gets the same numbers.  What a thread may do with each is in its registers (XSTATE of x86).
Areas that have keys are refused: memory/areas.py.
"""

from errno import EINVAL

from torpor.arch import native
from torpor.errors import ImageError
from torpor.kernel.syscall import call
from torpor.resources.base import Attribute
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.engine.program import Program, Result
    from torpor.images.schema.core import CoreEntry
    from torpor.resources.context import DumpTask, Restore, RestoreTask

PKEY_DISABLE_ACCESS = 1  # what every key begins with
_NOWHERE = 1 << native().word_size * 8 - 1  # the kernel's half
_PAGE = 1 << 16
_keys: tuple[int, ...] | None = None


def usable() -> tuple[int, ...]:
    """The keys that a process can have here.  Those of Torpor are free again afterwards."""
    global _keys
    if _keys is None:
        keys: list[int] = []
        try:
            while True:
                keys.append(call("pkey_alloc", 0, PKEY_DISABLE_ACCESS))
        except OSError:
            pass  # that is all, or there are none
        for key in keys:
            call("pkey_free", key)
        _keys = tuple(keys)
    return _keys


class ProtectionKeys(Attribute):
    covers = frozenset({"task:protection_keys"})

    def ask(self, task: "DumpTask", program: "Program") -> "list[tuple[int, Result]]":
        if not task.areas:
            return []  # it lives in another's memory, whose keys these are
        ask = program.call
        return [(key, ask("pkey_mprotect", _NOWHERE, _PAGE, 0, key, may_fail=True)) for key in usable()]

    def save(self, task: "DumpTask", answer: "list[tuple[int, Result]]", core: "CoreEntry") -> None:
        keys = sum(1 << key for key, result in answer if result.value != -EINVAL)
        if keys and native().name != "x86_64":
            why = "it has allocated protection keys (pkey_alloc), which Torpor restores on x86_64 only"
            raise task.refusal(why, "run the program without")
        if keys:
            task.process_extras["protection_keys"] = keys

    def check(self, task: "RestoreTask", restore: "Restore") -> None:
        keys = task.extras.process.protection_keys or 0
        if keys & 1 or keys >> 32:
            raise ImageError(f"torpor-{task.pid}.img is mangled", f"it has impossible protection keys: {keys:#x}")
        if keys & ~sum(1 << key for key in usable()):
            why = "it has allocated protection keys (pkey_alloc), which this machine does not have"
            raise task.refusal(why, "restore it on a machine like the one that it was dumped on", code="cpu-feature")

    def place(self, task: "RestoreTask", program: "Program") -> None:
        keys = task.extras.process.protection_keys or 0
        for _ in range(1, keys.bit_length()):
            program.call("pkey_alloc", 0, PKEY_DISABLE_ACCESS)
        for key in range(1, keys.bit_length()):
            if not keys >> key & 1:
                program.call("pkey_free", key)


ATTRIBUTES = [ProtectionKeys()]
