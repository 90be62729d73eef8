# SPDX-License-Identifier: Apache-2.0
"""Raw bytes in images: what follows the messages of some kinds.

How many bytes follow is for the message to say; only a queue of System V messages has to be walked, and a ghost file's
content goes on to the end of its image, either as it is or (from 12 KiB on, to keep holes) in chunks with messages of
their own.  Paddings differ: messages and semaphores to 8, shared memory to 4, all others none.
"""

from __future__ import annotations

import os
import sys

from torpor.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TypeAlias

    from torpor.images.container import Pieces
    from torpor.images.schema.bpfmap_data import BpfmapDataEntry
    from torpor.images.schema.ghost_file import GhostFileEntry
    from torpor.images.schema.ipc_msg import IpcMsg, IpcMsgEntry
    from torpor.images.schema.ipc_sem import IpcSemEntry
    from torpor.images.schema.ipc_shm import IpcShmEntry
    from torpor.images.schema.pipe_data import PipeDataEntry
    from torpor.images.schema.sk_packet import SkPacketEntry
    from torpor.images.schema.tcp_stream import TcpStreamEntry

    Source: TypeAlias = bytes | Pieces

# Each of these takes an entry, the image and where the entry ends in it, and says where its raw bytes end.


def pipe_data(entry: PipeDataEntry, image: Source, at: int) -> int:
    return at + entry.bytes


def sk_packet(entry: SkPacketEntry, image: Source, at: int) -> int:
    return at + entry.length


def tcp_stream(entry: TcpStreamEntry, image: Source, at: int) -> int:
    return at + entry.inq_len + entry.outq_len


def bpfmap_data(entry: BpfmapDataEntry, image: Source, at: int) -> int:
    return at + entry.keys_bytes + entry.values_bytes


def ipc_shm(entry: IpcShmEntry, image: Source, at: int) -> int:
    """Since CRIU 3.x the segment's content is in a pagemap-shmem image."""
    return at if entry.in_pagemaps else at + (entry.size + 3 & ~3)


def ipc_sem(entry: IpcSemEntry, image: Source, at: int) -> int:
    return at + (2 * entry.nsems + 7 & ~7)


def ipc_msg(entry: IpcMsgEntry, image: Source, at: int) -> int:
    for _, _, end in ipc_messages(entry, image, at):
        at = end
    return at


def rest(entry: GhostFileEntry, image: Source, at: int) -> int:
    return len(image)


def ipc_messages(entry: IpcMsgEntry, data: Source, at: int = 0) -> list[tuple[IpcMsg, bytes, int]]:
    """The messages queued in `entry`, standing in `data` from `at` on: message, its bytes, where its padding ends."""
    from torpor.images.schema.ipc_msg import IpcMsg

    found = []
    for _ in range(entry.qnum):
        size = int.from_bytes(data[at : at + 4], sys.byteorder)
        start = at + 4 + size
        if len(data) < start or not size:
            raise ImageError("a queue of IPC messages is mangled", "it ends too early")
        message = IpcMsg.decode(data[at + 4 : start])
        at = start + (message.msize + 7 & ~7)
        if len(data) < at:
            raise ImageError("a queue of IPC messages is mangled", "it ends too early")
        found.append((message, data[start : start + message.msize], at))
    return found


def encode_ipc_messages(messages: Iterable[tuple[IpcMsg, bytes]]) -> bytes:
    """The payload of an IPCNS_MSG entry."""
    out = b""
    for message, body in messages:
        entry = message.encode()
        out += len(entry).to_bytes(4, sys.byteorder) + entry + body + bytes(-len(body) % 8)
    return out


# ---- ghost files -----------------------------------------------------------------------------------------------------

GHOST_CHUNK_THRESHOLD = 12288  # regular files of this size and up are written in chunks
_MAX_CHUNK_ENTRY = 64


def ghost_chunk(offset: int, length: int) -> bytes:
    """What stands before the `length` bytes of a ghost file's chunk."""
    from torpor.images.schema.ghost_file import GhostChunkEntry

    entry = GhostChunkEntry(len=length, off=offset).encode()
    return len(entry).to_bytes(4, sys.byteorder) + entry


def ghost_pieces(fd: int, entry: GhostFileEntry, at: int) -> Iterator[tuple[int, int, int]]:
    """A ghost file's content in the image open at `fd`: (position in the image, offset in the file, length).

    `at` is where the image's first entry ends.
    """
    from torpor.images.schema.ghost_file import GhostChunkEntry

    end = os.fstat(fd).st_size
    if not entry.chunks:
        if at < end:
            yield at, 0, end - at
        return
    while at < end:
        size = int.from_bytes(os.pread(fd, 4, at), sys.byteorder)
        if not 0 < size <= _MAX_CHUNK_ENTRY:
            raise ImageError("a ghost file's image is mangled", f"a chunk's entry of {size} bytes")
        chunk = GhostChunkEntry.decode(os.pread(fd, size, at + 4))
        at += 4 + size
        if at + chunk.len > end or (entry.size is not None and chunk.off + chunk.len > entry.size):
            raise ImageError("a ghost file's image is mangled", "a chunk goes beyond the end")
        yield at, chunk.off, chunk.len
        at += chunk.len
