# SPDX-License-Identifier: Apache-2.0
"""eventfd: a 64-bit counter, eventfd(2).

fdinfo tells all of it: the counter without reading it, and since 6.5 whether it was made with EFD_SEMAPHORE; before,
one read tells, of which the effect is undone at once.  That has
no place in CRIU's format, and CRIU loses it.  We put it into `flags`, as bit 0, where CRIU hands it to F_SETFL, which
ignores the access mode: an image for both.  The counter may be far beyond the 32 bits that eventfd(2) takes, so it is
written in.
"""

import os
import sys

from torpor.errors import ImageError
from torpor.images.schema.eventfd import EventfdFileEntry
from torpor.images.schema.fdinfo import FileEntry
from torpor.resources.description import Described, save_owner, set_flags
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.resources.context import Dump, Restore, SeenFile

EVENTFD = 6  # FdTypes
EFD_SEMAPHORE = 1
MAXIMUM = (1 << 64) - 2  # a write that would go beyond it blocks


class Eventfd(Described):
    covers = frozenset({"fd:eventfd"})
    type = EVENTFD
    field = "efd"

    def examine(self, seen: "SeenFile", dump: "Dump") -> None:
        facts = seen.info.eventfd
        if facts is None:
            raise seen.refusal("its counter is not shown in fdinfo", "use a kernel with CONFIG_PROC_FS of 3.8 or newer")
        if facts.counter > MAXIMUM:
            raise seen.refusal("its counter has overflowed", "let the program read it first")

    def save(self, seen: "SeenFile", dump: "Dump") -> FileEntry:
        facts = seen.info.eventfd
        assert facts is not None  # examine
        semaphore = facts.semaphore
        if semaphore is None:
            semaphore = _reads_by_one(seen.fd, facts.counter)
        flags = seen.info.status_flags | (EFD_SEMAPHORE if semaphore else 0)
        efd = EventfdFileEntry(id=seen.id, flags=flags, fown=save_owner(seen.fd), counter=facts.counter)
        return FileEntry(type=EVENTFD, id=seen.id, efd=efd)

    def check(self, entry: FileEntry, restore: "Restore") -> None:
        if entry.efd is None:
            raise ImageError(f"files.img, file {entry.id}", "an eventfd without its entry")
        if entry.efd.counter > MAXIMUM:
            raise ImageError(f"files.img, eventfd {entry.id}", f"impossible counter {entry.efd.counter}")

    def make(self, entry: FileEntry, restore: "Restore") -> int:
        efd = entry.efd
        assert efd is not None  # check
        fd = os.eventfd(0, os.EFD_CLOEXEC | (efd.flags & EFD_SEMAPHORE))
        try:
            if efd.counter:
                os.eventfd_write(fd, efd.counter)
            set_flags(fd, efd.flags)
        except BaseException:
            os.close(fd)
            raise
        return fd


def _reads_by_one(fd: int, counter: int) -> bool:
    """Whether a read takes 1 and leaves the rest, which shows with counters above 1.  It is afterwards what it was.

    Whoever waits for it is frozen.  Others may share it: so nothing here blocks, whatever they do meanwhile.
    """
    held = max(counter, 2)
    if held > counter:
        os.eventfd_write(fd, held - counter)
    taken = _take(fd)
    left = held - taken
    while left > counter:
        left -= _take(fd)
    if left < counter:
        os.eventfd_write(fd, counter - left)
    return taken == 1


def _take(fd: int) -> int:
    value = bytearray(8)
    os.preadv(fd, [value], -1, os.RWF_NOWAIT)
    return int.from_bytes(value, sys.byteorder)


FILE_KINDS = [Eventfd()]
