# SPDX-License-Identifier: Apache-2.0
"""FIFOs: pipes that have a name in a file system.  fifo(7).

Two entries make each description: a REG entry has path, flags and owner (so that deleted names, links and the like are
`regular`'s business alone), a FIFO entry names it and the pipe (`pipe_id`).  Surprising facts:

- Opening one end waits for the other, or fails with ENXIO: an O_RDWR description, held until all are made, avoids both.
- What is in a FIFO is lost when the last description is closed, so that one stays until the queue is filled, too.
- `regular` makes a REG entry that is a FIFO with O_PATH; the ends are opened through that.
"""

import os

from torpor.errors import ImageError
from torpor.images import kinds
from torpor.images.schema.fdinfo import FileEntry
from torpor.images.schema.fifo import FifoEntry
from torpor.images.schema.regfile import RegFileEntry
from torpor.resources import regular
from torpor.resources.base import FileKind
from torpor.resources.description import O_ASYNC, extras, save_owner, set_flags, set_owner
from torpor.resources.pipe import Queues, reopen
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.resources.context import Dump, Restore, SeenFile

FIFO = 3  # FdTypes


class Fifo(FileKind):
    covers = frozenset({"fd:fifo"})
    type = FIFO
    queues = Queues(kinds.FIFO_DATA)

    # -- dump ---------------------------------------------------------------------------------------------------------
    def examine(self, seen: "SeenFile", dump: "Dump") -> None:
        if seen.info.status_flags & O_ASYNC:
            raise seen.refusal("signals for a FIFO (O_ASYNC) cannot be dumped yet", "turn O_ASYNC off first")

    def save(self, seen: "SeenFile", dump: "Dump") -> FileEntry:
        pipe_id = self.queues.save(seen, dump)
        id = dump.new_file_id()
        flags, path = seen.info.status_flags, f"/proc/{seen.pid}/fd/{seen.number}"
        dump.file_entries.append(
            regular.file_entry(dump, seen.where, id, seen.link, seen.stat, flags, 0, save_owner(seen.fd), path)
        )
        return FileEntry(type=FIFO, id=seen.id, fifo=FifoEntry(id=seen.id, pipe_id=pipe_id, regf_id=id))

    def late(self, dump: "Dump") -> None:
        self.queues.late(dump)

    # -- restore ------------------------------------------------------------------------------------------------------
    def check(self, entry: FileEntry, restore: "Restore") -> None:
        fifo = entry.fifo
        if fifo is None:
            raise ImageError(f"files.img, file {entry.id}", "a FIFO without its entry")
        file = restore.files.get(fifo.regf_id or 0)
        reg = file.reg if file else None
        if reg is None:
            raise ImageError(f"files.img, FIFO {entry.id}", f"its file {fifo.regf_id} is missing")
        if reg.flags & os.O_ACCMODE == os.O_ACCMODE:
            raise ImageError(f"files.img, FIFO {entry.id}", f"impossible flags {reg.flags:#o}")
        own = extras(restore).get(entry.id)
        queue = self.queues.load(restore).get(fifo.pipe_id)
        if own and own.packets and (queue is None or sum(own.packets) != len(queue.data)):
            raise ImageError(f"torpor-files.img, FIFO {entry.id}", "its packets do not add up to its content")

    def needs(self, entry: FileEntry, restore: "Restore") -> list[int]:
        assert entry.fifo is not None and entry.fifo.regf_id is not None  # check
        return [entry.fifo.regf_id]

    @staticmethod
    def _reg(entry: FileEntry, restore: "Restore") -> RegFileEntry:
        assert entry.fifo is not None and entry.fifo.regf_id is not None  # check
        reg = restore.files[entry.fifo.regf_id].reg
        assert reg is not None  # check
        return reg

    def make(self, entry: FileEntry, restore: "Restore") -> int:
        fifo, flags = entry.fifo, self._reg(entry, restore).flags
        assert fifo is not None and fifo.regf_id is not None  # check
        path = restore.descriptor(fifo.regf_id)
        holders: dict[int, int] = restore.state.setdefault("fifo holders", {})
        if fifo.pipe_id not in holders:
            holders[fifo.pipe_id] = os.open(f"/proc/self/fd/{path}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fd = reopen(path, flags)
        set_flags(fd, flags)
        own = extras(restore).get(entry.id)
        if own and own.packets:
            restore.state.setdefault("fifo packets", {})[fifo.pipe_id] = own.packets, bool(own.plain_end)
        return fd

    def wire(self, entry: FileEntry, fd: int, restore: "Restore") -> None:
        assert entry.fifo is not None  # check
        packets, plain_end = restore.state.get("fifo packets", {}).get(entry.fifo.pipe_id, ([], False))
        holder = restore.state["fifo holders"].pop(entry.fifo.pipe_id, -1)
        if holder >= 0:
            try:
                self.queues.fill(holder, entry.fifo.pipe_id, packets, restore, plain_end)
            finally:
                os.close(holder)

    def last(self, entry: FileEntry, fd: int, restore: "Restore") -> None:
        owner = self._reg(entry, restore).fown
        if owner.pid or owner.signum:
            set_owner(fd, owner)


FILE_KINDS = [Fifo()]
