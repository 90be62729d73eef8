# SPDX-License-Identifier: Apache-2.0
"""signalfd: a mask of signals, signalfd(2).

The mask is all there is: signals are queued in tasks, and whoever reads from the descriptor takes from its own queues,
so it does not matter who makes it.  (An epoll registration of it *is* bound to the task that made it.)
"""

import ctypes

from torpor.errors import ImageError
from torpor.images.schema.fdinfo import FileEntry
from torpor.images.schema.signalfd import SignalfdEntry
from torpor.kernel.syscall import call
from torpor.resources.description import Described, save_owner, set_flags
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.resources.context import Dump, Restore, SeenFile

SIGNALFD = 9  # FdTypes
SFD_CLOEXEC = 0o2000000


class Signalfd(Described):
    covers = frozenset({"fd:signalfd"})
    type = SIGNALFD
    field = "sgfd"

    def examine(self, seen: "SeenFile", dump: "Dump") -> None:
        if seen.info.sigmask is None:
            raise seen.refusal("its mask is not shown in fdinfo", "use a kernel of 3.8 or newer")

    def save(self, seen: "SeenFile", dump: "Dump") -> FileEntry:
        mask = seen.info.sigmask
        assert mask is not None  # examine
        sgfd = SignalfdEntry(id=seen.id, flags=seen.info.status_flags, fown=save_owner(seen.fd), sigmask=mask)
        return FileEntry(type=SIGNALFD, id=seen.id, sgfd=sgfd)

    def check(self, entry: FileEntry, restore: "Restore") -> None:
        if entry.sgfd is None:
            raise ImageError(f"files.img, file {entry.id}", "a signalfd without its entry")

    def make(self, entry: FileEntry, restore: "Restore") -> int:
        assert entry.sgfd is not None  # check
        mask = ctypes.c_uint64(entry.sgfd.sigmask)
        fd = call("signalfd4", -1, ctypes.addressof(mask), 8, SFD_CLOEXEC)
        set_flags(fd, entry.sgfd.flags)
        return fd


FILE_KINDS = [Signalfd()]
