# SPDX-License-Identifier: Apache-2.0
"""The kernel's own areas, [vvar], [vdso] and [sigpage]: what there is of them here, and where it goes in one address
space.  [vsyscall] is none of an address space's: what the kernel has of it, all programs have."""

import os

from torpor import log
from torpor.kernel.maps import kind, read_maps
from torpor.memory import own_vdso, sigpage
from torpor.memory.layout import Span
from torpor.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torpor.images.schema.vma import VmaEntry
    from torpor.resources.context import Restore, RestoreTask

PROT_READ, PROT_EXEC = 1, 4
KINDS = frozenset({"vvar", "vvar_vclock", "sigpage", "vdso"})
NONE = (0, 0)
VSYSCALL = 0xFFFFFFFFFF600000  # on x86_64, always


class Kernels(NamedTuple):
    """What this kernel gives every task."""

    data: int  # bytes of [vvar] and [vvar_vclock]
    text: bytes
    signals: bytes  # [sigpage]

    @classmethod
    def look(cls) -> "Kernels":
        mine = [area for area in read_maps(os.getpid()) if kind(area) in KINDS]
        data = sum(area.size for area in mine if kind(area) in ("vvar", "vvar_vclock"))
        return cls(data, own_vdso.text(), sigpage.page())

    @property
    def size(self) -> int:
        return len(self.signals) + self.data + len(self.text)

    def each(self, start: int) -> tuple[Span, Span, Span]:
        """Where [sigpage], the data and the text are if all of them lie at `start`."""
        data = start + len(self.signals)
        text = data + self.data
        return (start, data), (data, text), (text, text + len(self.text))


class Place(NamedTuple):
    """Where the kernel's areas go in one address space.  `text` is what is left at the old place, if anything."""

    data: Span  # empty: the task has none
    code: Span
    text: bytes
    spare: int  # where the kernel's areas go if not to the old place; those that the task does not have, until the end
    signals: Span = NONE
    old_signals: bytes = b""  # what is left there, where the kernel's own page goes to the spare place

    @property
    def left(self) -> list[tuple[Span, int, bytes]]:
        """Ordinary memory at the old places: the old text, zeros where its data were, the old [sigpage].  With its
        protection, and what it holds."""
        read, run = PROT_READ, PROT_READ | PROT_EXEC
        parts = [(self.data, read, b""), (self.code, run, self.text)] if self.text else []
        if self.text or self.old_signals:
            parts.append((self.signals, run, self.old_signals))
        return [part for part in parts if part[0] != NONE]

    def is_left(self, address: int) -> bool:
        return any(start <= address < end for (start, end), _, _ in self.left)


def warn_of_vsyscall(restore: "Restore", task: "RestoreTask", areas: "list[VmaEntry]") -> None:
    """Once, where the program could call what this kernel does not have (vsyscall=none, Debian's default).  Only old C
    libraries do, and a few static programs, and nothing tells which."""
    if "vsyscall" in restore.state or not any(area.start == VSYSCALL for area in areas):
        return
    restore.state["vsyscall"] = has_vsyscall()
    if not restore.state["vsyscall"]:
        log.warning(
            f"{task.subject}, and perhaps others: this kernel has no vsyscall page, as there was at the dump; a "
            "program that calls it (old and static ones may) is killed by SIGSEGV; to have it, boot with vsyscall=xonly"
        )


def has_vsyscall() -> bool:
    return any(kind(area) == "vsyscall" for area in read_maps(os.getpid()))
