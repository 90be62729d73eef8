# SPDX-License-Identifier: Apache-2.0
"""What Torpor stores of open files beyond CRIU's format, in one image of its own: torpor-files.img.

CRIU ignores it.  Restoring without it is right but less exact.
"""

from __future__ import annotations

from torpor.images.message import (
    BOOL,
    BYTES,
    INT32,
    INT64,
    SINT32,
    STRING,
    UINT32,
    Message,
    optional,
    repeated,
    required,
)


class SenderEntry(Message):
    """Who sent one of the messages in a UNIX socket's queue, where it says so."""

    index: int = required(1, UINT32)  # of the message in the queue
    name: bytes | None = optional(2, BYTES, default=None)  # sun_path; None: unnamed
    pid: int | None = optional(3, UINT32, default=None)  # credentials
    uid: int | None = optional(4, UINT32, default=None)
    gid: int | None = optional(5, UINT32, default=None)


class GroupEntry(Message):
    """A multicast group that a socket has joined."""

    interface: str = required(1, STRING)  # its name
    group: bytes = required(2, BYTES)  # 4 or 16, in network byte order


class TorporFileEntry(Message):
    """Of one open file description; of a pipe, the first of its descriptions speaks for all."""

    id: int = required(1, UINT32)  # in files.img
    uid: int | None = optional(2, UINT32, default=None)  # owner of a pipe's or socket's inode
    gid: int | None = optional(3, UINT32, default=None)
    packets: list[int] = repeated(4, UINT32, default_factory=list)  # lengths of the packets in a pipe (O_DIRECT)
    deadline_sec: int | None = optional(5, INT64, default=None)  # of an absolute timer on a wall clock
    deadline_nsec: int | None = optional(6, UINT32, default=None)
    # Targets of an epoll by their index in its entry, and the numbers by which they were registered, where these were
    # closed or reused since.
    epoll_indices: list[int] = repeated(7, UINT32, default_factory=list)
    epoll_numbers: list[int] = repeated(8, UINT32, default_factory=list)
    # Targets by their index that only another process still has, and their ids in files.img.
    congestion: str | None = optional(43, STRING, default=None)  # TCP_CONGESTION
    epoll_elsewhere: list[int] = repeated(41, UINT32, default_factory=list)
    epoll_files: list[int] = repeated(42, UINT32, default_factory=list)
    # Of a ghost file: what CRIU's times in microseconds leave out.
    atime_nsec: int | None = optional(31, UINT32, default=None)
    mtime_nsec: int | None = optional(32, UINT32, default=None)
    # name_to_handle_at(2) of a file that is to be found again by a link_remap.N, should that name be gone.
    handle_type: int | None = optional(33, SINT32, default=None)
    handle: bytes | None = optional(34, BYTES, default=None)
    # UNIX sockets.
    senders: list[SenderEntry] = repeated(9, "torpor_file.SenderEntry", default_factory=list)
    socket_file: str | None = optional(10, STRING, default=None)  # its file, if not where its name says
    name_root: str | None = optional(11, STRING, default=None)  # root directory that an absolute name belongs to
    peer_gone: bool | None = optional(12, BOOL, default=None)  # a datagram socket's peer was closed
    peer_name: bytes | None = optional(13, BYTES, default=None)  # of a peer that was closed
    reset: bool | None = optional(14, BOOL, default=None)  # ... with data unread: the next call gives ECONNRESET
    peer_pid: int | None = optional(15, UINT32, default=None)  # SO_PEERCRED
    peer_uid: int | None = optional(16, UINT32, default=None)
    peer_gid: int | None = optional(17, UINT32, default=None)
    waiting: list[int] = repeated(18, UINT32, default_factory=list)  # inodes of clients in a backlog, in order; 0: gone
    peek_offset: int | None = optional(19, INT32, default=None)  # SO_PEEK_OFF
    option_numbers: list[int] = repeated(20, UINT32, default_factory=list)  # options that sk_opts_entry lacks
    option_values: list[int] = repeated(21, UINT32, default_factory=list)
    mode: int | None = optional(22, UINT32, default=None)  # permissions of a terminal
    # Options of internet sockets whose values are numbers of interfaces, and these interfaces' names.
    interface_options: list[int] = repeated(44, UINT32, default_factory=list)
    interface_names: list[str] = repeated(45, STRING, default_factory=list)
    groups: list[GroupEntry] = repeated(46, "torpor_file.GroupEntry", default_factory=list)
    # Options whose values are no ints, as getsockopt(2) gives them.
    long_options: list[int] = repeated(47, UINT32, default_factory=list)
    long_values: list[bytes] = repeated(48, BYTES, default_factory=list)
    plain_end: bool | None = optional(49, BOOL, default=None)  # the last of a pipe's `packets` is none
    # Of a terminal's master (resources/tty_queue.py).
    typed_lines: list[int] = repeated(57, UINT32, default_factory=list)  # lengths of lines, where newlines do not tell
    terminal_stopped: int | None = optional(58, UINT32, default=None)
    was_opened: bool | None = optional(59, BOOL, default=None)  # its slave: with none open, reading is an error (EIO)
    # Of a ghost or a memfd (resources/inode.py).
    attribute_names: list[bytes] = repeated(51, BYTES, default_factory=list)
    attribute_values: list[bytes] = repeated(52, BYTES, default_factory=list)
    inode_flags: int | None = optional(53, UINT32, default=None)
    write_hint: int | None = optional(54, UINT32, default=None)
    atime_ns: int | None = optional(55, INT64, default=None)  # of a memfd
    mtime_ns: int | None = optional(56, INT64, default=None)
    epoll_parameters: bytes | None = optional(50, BYTES, default=None)  # struct epoll_params
