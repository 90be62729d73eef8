# SPDX-License-Identifier: Apache-2.0
"""Whether a task's vDSO is as the kernel has made it.  A restore puts there what its own kernel has: what a program has
written into it (an interceptor of system calls, say) would be gone.
"""

import os

from torpor.kernel.maps import Area, kind, read_maps
from torpor.typed import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from torpor.resources.context import DumpTask

PROT_READ, PROT_EXEC = 1, 4
_own: dict[str, bytes] = {}


def text() -> bytes:
    """This kernel's; b"": it has none."""
    return content("vdso")


def content(which: str) -> bytes:
    """What an area of this kernel's holds, by its kind, from our own memory; b"": it has none."""
    if which not in _own:
        mine = (area for area in read_maps(os.getpid()) if kind(area) == which)
        _own[which] = next((read("self", area.start, area.size) for area in mine), b"")
    return _own[which]


def read(pid: int | str, start: int, size: int) -> bytes:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        return os.pread(memory.fileno(), size, start)


def refuse_changed(task: "DumpTask", area: Area, read: "Callable[[int, int], bytes]") -> None:
    """`area`: of the task's vDSO, which the kernel lets nobody split.  Raises Refusal."""
    where = f"its vDSO at {area.start:#x}"
    remedy = "run the program without what changes it (something that intercepts its system calls, say)"
    if area.prot != PROT_READ | PROT_EXEC:
        shown = "".join(letter if area.prot >> bit & 1 else "-" for bit, letter in enumerate("rwx"))
        why = f"{where} has a protection of its own ({shown}), which a restore would lose"
        raise task.refusal(why, remedy, code="vdso-changed")
    if read(area.start, area.size) != text():
        why = f"the code of {where} was changed, which a restore would lose"
        raise task.refusal(why, remedy, code="vdso-changed")
