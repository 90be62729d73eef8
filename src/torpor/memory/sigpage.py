# SPDX-License-Identifier: Apache-2.0
"""[sigpage] of 32-bit ARM: the code by which a signal handler returns that was installed without SA_RESTORER.

The kernel chooses at each boot where in that page the code lies, and whoever is inside such a handler keeps the address
in a register, or anywhere on its stack.  So after another boot the old page's bytes stay where they were, as ordinary
memory (they are system calls and nothing else), and the kernel's own page lies elsewhere, which it does not mind.  Only
where there is such a handler: C libraries name a way back of their own.

What the page holds is in torpor-host.img: all tasks have the same.
"""

from torpor import log
from torpor.arch import native
from torpor.images import kinds
from torpor.memory import own_vdso
from torpor.typed import TYPE_CHECKING, Iterable

if TYPE_CHECKING:
    from torpor.arch.base import Frame
    from torpor.resources.context import Restore, RestoreTask

NAME = "[sigpage]"
SA_RESTORER = 0x04000000
SIG_DFL, SIG_IGN = 0, 1


def page() -> bytes:
    """This kernel's; b"": it has none."""
    return own_vdso.content("sigpage") if NAME in native().vdso_names else b""


def stored(restore: "Restore") -> bytes:
    """That of the kernel which the images come from; b"": they do not hold it."""
    host = restore.images.find(kinds.TORPOR_HOST)
    text = (host.signal_page if host is not None else None) or b""
    return text if len(text) == len(page()) else b""


def has_handler(task: "RestoreTask") -> bool:
    """Whether a handler of the task's returns by the kernel's code."""
    actions = task.core.tc.sigactions if task.core.tc is not None else []
    return any(entry.sigaction not in (SIG_DFL, SIG_IGN) and not entry.flags & SA_RESTORER for entry in actions)


def is_inside(frames: "Iterable[Frame]") -> bool:
    """Whether a thread that returns by these is in such a handler."""
    return any(native().returns_by_kernel(frame) for frame in frames)


def refuse(restore: "Restore", task: "RestoreTask", tid: int) -> None:
    """The images do not hold what this thread returns by, and nothing says that they are of this boot."""
    why = f"its thread {tid} is in a signal handler that returns by code of its kernel's, which after each boot is "
    why += "elsewhere, and these images do not hold it"
    if restore.images.find(kinds.TORPOR_HOST) is None:  # CRIU's do not tell
        log.warning(f"{task.subject}: {why}: if they come from another boot, it will not return")
        return
    remedy = "restore it on the boot that it was dumped on, or dump it anew by this Torpor"
    restore.problem(task.refusal(why, remedy, code="inside-vdso"))
