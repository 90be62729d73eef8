# SPDX-License-Identifier: Apache-2.0
"""What Torpor stores of open files beyond CRIU's format, in one image of its own: torpor-files.img.

CRIU ignores it.  Restoring without it is right but less exact.
"""

from __future__ import annotations

from torpor.images.message import INT64, UINT32, Message, optional, repeated, required


class TorporFileEntry(Message):
    """Of one open file description; of a pipe, the first of its descriptions speaks for all."""

    id: int = required(1, UINT32)  # in files.img
    uid: int | None = optional(2, UINT32, default=None)  # owner of a pipe's inode: who may open it again by /proc
    gid: int | None = optional(3, UINT32, default=None)
    packets: list[int] = repeated(4, UINT32, default_factory=list)  # lengths of the packets in a pipe (O_DIRECT)
    deadline_sec: int | None = optional(5, INT64, default=None)  # of an absolute timer on a wall clock
    deadline_nsec: int | None = optional(6, UINT32, default=None)
    # Targets of an epoll by their index in its entry, and the numbers by which they were registered, where these were
    # closed or reused since.
    epoll_indices: list[int] = repeated(7, UINT32, default_factory=list)
    epoll_numbers: list[int] = repeated(8, UINT32, default_factory=list)
