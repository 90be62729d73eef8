# SPDX-License-Identifier: Apache-2.0
"""Pipes: an inode of pipefs, the descriptions of its ends, and a queue.  pipe(7).

The inode number is the pipe's identity (`pipe_id`); fdinfo tells which end, or both, a description is of.  Surprising
facts:

- More than two descriptions of a pipe come from opening /proc/PID/fd/N again, and have O_LARGEFILE, which those that
  pipe(2) made have not; O_RDWR is possible too.  So the first description of each end without that flag gets pipe(2)'s
  own, all others are opened again.
- An end that nobody holds must be closed again, but only when the queue is filled: writing needs a reader.
- Somebody outside of the tree may hold the other end (the rest of a shell's pipeline, a supervisor).  /proc does not
  tell who, but poll(2) tells that there is one.  No restore can give it back to them.
- Who may open /proc/PID/fd/N depends on the inode's owner (programs that write to /dev/stdout do that), and CRIU's
  format does not know it: it goes into torpor-files.img.
"""

import os
from select import poll

from torpor.errors import ImageError
from torpor.images import kinds
from torpor.images.schema.fdinfo import FileEntry
from torpor.images.schema.pipe import PipeEntry
from torpor.images.schema.pipe_data import PipeDataEntry
from torpor.kernel.process import open_exactly
from torpor.resources import pipe_queue
from torpor.resources.description import O_ASYNC, Described, extra, extras, save_owner, set_flags
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.images.kinds import ImageKind
    from torpor.resources.context import Dump, Restore, SeenFile

PIPE = 2  # FdTypes
O_LARGEFILE = 0o100000  # os.O_LARGEFILE is 0 in 64-bit programs


class Queues:
    """The queues of all pipes (or all FIFOs): filled in by `save`, written by `late`, found again at restore."""

    def __init__(self, image: "ImageKind[PipeDataEntry]") -> None:
        self.image = image

    def save(self, seen: "SeenFile", dump: "Dump") -> int:
        """Look at the queue behind this description, unless another one was met before; returns its pipe_id."""
        found: dict[int, tuple[int, pipe_queue.Queue]] = dump.setdefault(self.image.name, {})
        pipe_id = self._number(seen, dump)
        if pipe_id not in found:
            found[pipe_id] = (seen.id, pipe_queue.look(dump, seen))
        first, queue = found[pipe_id]
        packet = queue.packet
        if packet is None:  # most likely as the next one would be
            packet = bool(seen.info.status_flags & os.O_DIRECT)
        if len(queue.pieces) > 1 or (queue.pieces and packet):
            own = extra(dump, first)
            own.packets = list(queue.pieces)
            own.plain_end = not packet or None
        return pipe_id

    def _number(self, seen: "SeenFile", dump: "Dump") -> int:
        """The inode's number; another one if it has more than 32 bits, or is taken on another file system."""
        numbers: dict[tuple[int, int], int] = dump.setdefault(f"{self.image.name} numbers", {})
        taken: set[int] = dump.setdefault(f"{self.image.name} taken", set())
        key = (seen.stat.st_dev, seen.stat.st_ino)
        if key not in numbers:
            number = seen.stat.st_ino & 0xFFFFFFFF
            while number in taken:
                number = number + 1 & 0xFFFFFFFF
            taken.add(number)
            numbers[key] = number
        return numbers[key]

    def late(self, dump: "Dump") -> None:
        found: dict[int, tuple[int, pipe_queue.Queue]] = dump.setdefault(self.image.name, {})
        dump.images.write(
            self.image,
            (
                (PipeDataEntry(pipe_id=pipe_id, bytes=len(queue.data), size=queue.size), queue.data)
                for pipe_id, (_, queue) in found.items()
            ),
        )

    def load(self, restore: "Restore") -> dict[int, pipe_queue.Queue]:
        """By pipe_id.  Raises ImageError."""
        key = f"{self.image.name} loaded"
        if key not in restore.state:
            found = {}
            for entry, data in restore.images.entries_with_payload(self.image):
                size = entry.size or 0
                if size > 1 << 31 or (size and len(data) > size):
                    raise ImageError(f"{self.image.pattern}, pipe {entry.pipe_id}", f"impossible size {size}")
                found[entry.pipe_id] = pipe_queue.Queue(size, data, ())
            restore.state[key] = found
        result: dict[int, pipe_queue.Queue] = restore.state[key]
        return result

    def fill(
        self, descriptor: int, pipe_id: int, packets: list[int], restore: "Restore", plain_end: bool = False
    ) -> None:
        """Put the queue into a pipe that has just been made, once.  plain_end: the last of `packets` is none."""
        filled: set[int] = restore.state.setdefault(f"{self.image.name} filled", set())
        if pipe_id not in filled:
            filled.add(pipe_id)
            queue = self.load(restore).get(pipe_id)
            if queue is not None:
                queue = queue._replace(packet=not plain_end)
                pipe_queue.fill(descriptor, queue, packets, f"pipe {pipe_id}")


_READS, _WRITES, _BOTH = 1, 2, 3
_HOLDS = {os.O_RDONLY: _READS, os.O_WRONLY: _WRITES, os.O_RDWR: _BOTH}


class Ends:
    """Of one pipe: which of its ends the tree holds.  others: somebody holds the end that the tree had not then."""

    def __init__(self, first: "SeenFile") -> None:
        self.first, self.held, self.others = first, 0, False


class Pipe(Described):
    covers = frozenset({"fd:pipe"})
    type = PIPE
    field = "pipe"
    queues = Queues(kinds.PIPES_DATA)

    # -- dump ---------------------------------------------------------------------------------------------------------
    def examine(self, seen: "SeenFile", dump: "Dump") -> None:
        ends: dict[int, Ends] = dump.setdefault("pipe ends", {})
        pipe = ends.setdefault(seen.stat.st_ino, Ends(seen))
        pipe.held |= _HOLDS[seen.info.status_flags & os.O_ACCMODE]
        if pipe.held != _BOTH and not pipe.others:
            poller = poll()
            poller.register(seen.fd, 0)
            pipe.others = not poller.poll(0)  # POLLHUP: nobody can write; POLLERR: nobody reads

    def examined(self, dump: "Dump") -> None:
        ends: dict[int, Ends] = dump.state["pipe ends"]
        outside = [pipe.first for pipe in ends.values() if pipe.held != _BOTH and pipe.others]
        if outside:
            others = f" and {len(outside) - 1:,} more" if len(outside) > 1 else ""
            dump.warn(
                f"{outside[0].subject}{others}: somebody outside of the tree holds the other end, and after a restore "
                "nobody does; dump the processes at both ends together to keep it"
            )

    def settle(self, dump: "Dump") -> None:
        self.examined(dump)

    def save(self, seen: "SeenFile", dump: "Dump") -> FileEntry:
        pipe_id = self.queues.save(seen, dump)
        if seen.stat.st_uid or seen.stat.st_gid:
            own = extra(dump, seen.id)
            own.uid, own.gid = seen.stat.st_uid, seen.stat.st_gid
        pipe = PipeEntry(id=seen.id, pipe_id=pipe_id, flags=seen.info.status_flags, fown=save_owner(seen.fd))
        return FileEntry(type=PIPE, id=seen.id, pipe=pipe)

    def late(self, dump: "Dump") -> None:
        self.queues.late(dump)

    # -- restore ------------------------------------------------------------------------------------------------------
    def check(self, entry: FileEntry, restore: "Restore") -> None:
        if entry.pipe is None:
            raise ImageError(f"files.img, file {entry.id}", "a pipe without its entry")
        if entry.pipe.flags & os.O_ACCMODE == os.O_ACCMODE:
            raise ImageError(f"files.img, pipe {entry.id}", f"impossible flags {entry.pipe.flags:#o}")
        own = extras(restore).get(entry.id)
        queue = self.queues.load(restore).get(entry.pipe.pipe_id)
        if own and own.packets and (queue is None or sum(own.packets) != len(queue.data)):
            raise ImageError(f"torpor-files.img, pipe {entry.id}", "its packets do not add up to its content")

    def make(self, entry: FileEntry, restore: "Restore") -> int:
        """Makes all descriptions of the pipe, when the first of them is asked for."""
        assert entry.pipe is not None  # check
        together = self._together(restore)[entry.pipe.pipe_id]
        reader, writer = os.pipe2(os.O_CLOEXEC)
        own_ends = {os.O_RDONLY: reader, os.O_WRONLY: writer}
        made: dict[int, int] = {}
        try:
            for one in together:
                own = extras(restore).get(one.id)
                if own and own.uid is not None:
                    os.fchown(reader, own.uid, own.gid if own.gid is not None else -1)
            for one in together:
                assert one.pipe is not None
                made[one.id] = self._description(one.pipe.flags, reader, own_ends)
            said = [own for one in together if (own := extras(restore).get(one.id)) and own.packets]
            packets, plain_end = (said[0].packets, bool(said[0].plain_end)) if said else ([], False)
            self.queues.fill(reader, entry.pipe.pipe_id, packets, restore, plain_end)
        except BaseException:
            for fd in {reader, writer, *made.values()}:
                os.close(fd)
            raise
        for fd in own_ends.values():  # ends that nobody took
            os.close(fd)
        fd = made.pop(entry.id)
        restore.made.update(made)
        return fd

    @staticmethod
    def _description(flags: int, any_end: int, own_ends: dict[int, int]) -> int:
        """One description: pipe(2)'s own if it is still there and fits, or opened again."""
        access = flags & os.O_ACCMODE
        fd = -1 if flags & O_LARGEFILE else own_ends.pop(access, -1)
        if fd < 0:
            fd = reopen(any_end, flags)
        set_flags(fd, flags)
        return fd

    @staticmethod
    def _together(restore: "Restore") -> dict[int, list[FileEntry]]:
        """Entries by pipe."""
        if "pipes" not in restore.state:
            found: dict[int, list[FileEntry]] = {}
            for entry in restore.files.values():
                if entry.pipe is not None:
                    found.setdefault(entry.pipe.pipe_id, []).append(entry)
            restore.state["pipes"] = found
        result: dict[int, list[FileEntry]] = restore.state["pipes"]
        return result


def reopen(descriptor: int, flags: int) -> int:
    """Open the file behind a descriptor of ours again with these flags, those aside that F_SETFL must set."""
    aside = os.O_DIRECT | O_ASYNC | os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL | os.O_TRUNC
    return open_exactly(f"/proc/self/fd/{descriptor}", flags & ~aside | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


FILE_KINDS = [Pipe()]
