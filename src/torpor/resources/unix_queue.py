# SPDX-License-Identifier: Apache-2.0
"""What waits in a UNIX socket's queue: looked at without taking it out, and sent again.

MSG_PEEK alone shows the first message only.  With SO_PEEK_OFF every peek goes on where the last one ended: it is set
for the moment, and set back.  Surprising facts:

- A message of no bytes is skipped by such a walk if it was peeked at before.  The first in the queue is found by plain
  peeking; another one, behind, is lost to a second dump of the same queue.
- A stream socket with SO_PASSCRED does not let one read cross from one sender's bytes to another's, nor over a
  message with descriptors.
- Credentials are shown only to a socket that has SO_PASSCRED now.  Root may send in the name of any living process.
- Who sent a datagram is told by the sender's name; CRIU's format has no place for it: torpor-files.img has.
- Descriptors in a message come out as new numbers of ours at every peek.
"""

import array
import errno
import os
import socket
import struct
import sys

from torpor.errors import RestoreFailed
from torpor.resources.unix_names import is_path
from torpor.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torpor.resources.context import SeenFile

SO_PEEK_OFF = 42
SCM_RIGHTS, SCM_CREDENTIALS, SCM_SECURITY, SCM_PIDFD = 1, 2, 3, 4
MSG_PEEK, MSG_DONTWAIT, MSG_TRUNC, MSG_CTRUNC, MSG_OOB = 2, 0x40, 0x20, 8, 1
MSG_CMSG_CLOEXEC = 0x40000000
MAX_DESCRIPTORS = 253  # in one message
_CREDENTIALS = struct.Struct("=iII")
_CONTROL = socket.CMSG_SPACE(4 * MAX_DESCRIPTORS) + 3 * socket.CMSG_SPACE(256)
_ROOM = 1 << 20
_buffers: list[bytearray] = []


class Message(NamedTuple):
    """One message, or a run of bytes of a stream.  rights: descriptors of ours, to be closed by whoever takes it."""

    data: bytes
    sender: bytes | None = None
    credentials: tuple[int, int, int] | None = None
    rights: tuple[int, ...] = ()


def look(sock: socket.socket, seen: "SeenFile", expected: int, ends: bool) -> list[Message]:
    """All that waits in a queue, which stays as it is.  expected: bytes, as sock_diag tells; ends: the other side sends
    no more, so that nothing and the end look alike.  Raises Refusal, OSError."""
    stream = sock.type == socket.SOCK_STREAM
    if stream and not expected:
        return []
    was = sock.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF)
    if was < 0:
        return _look(sock, seen, expected, stream, ends)
    sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, -1)
    try:
        return _look(sock, seen, expected, stream, ends)
    finally:
        sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, was)


def _look(sock: socket.socket, seen: "SeenFile", expected: int, stream: bool, ends: bool) -> list[Message]:
    buffer = _buffer(expected + 1)
    first = _peek(sock, buffer, stream)
    if first is None or (not stream and not first.data and ends):
        return []
    if stream:
        refuse_urgent(sock, seen)
    if len(first.data) == expected and (stream or sock.type == socket.SOCK_SEQPACKET) and expected:
        return [first]
    _close(first)
    return _walk(sock, buffer, first, stream, ends)


def _buffer(size: int) -> bytearray:
    """One for all queues, as large as the largest so far."""
    if not _buffers or len(_buffers[0]) < size:
        _buffers[:] = [bytearray(max(size, _ROOM))]
    return _buffers[0]


def _walk(sock: socket.socket, buffer: bytearray, first: Message, stream: bool, ends: bool) -> list[Message]:
    found: list[Message] = []
    sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
    try:
        while (message := _peek(sock, buffer, stream)) is not None:
            if not message.data and (stream or ends):
                break
            found.append(message)
    except BaseException:
        for message in found:
            _close(message)
        raise
    finally:
        sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, -1)
    if not first.data and not stream and (not found or found[0].data):
        found.insert(0, first)  # of no bytes, and peeked at before
    return found


def _close(message: Message) -> None:
    for fd in message.rights:
        os.close(fd)


def refuse_urgent(sock: socket.socket, seen: "SeenFile") -> None:
    """Raises Refusal for an urgent byte in a stream, whose place nothing tells."""
    try:
        sock.recv(1, MSG_OOB | MSG_PEEK | MSG_DONTWAIT)
    except OSError:
        return  # there is none
    raise seen.refusal("an urgent byte (MSG_OOB) waits in it", "let the program read it first")


def _peek(sock: socket.socket, buffer: bytearray, stream: bool) -> Message | None:
    """The next message; None: there is none."""
    flags = MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC | (0 if stream else MSG_TRUNC)
    try:
        size, control, _, address = sock.recvmsg_into([buffer], _CONTROL, flags)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:  # not connected
            return None
        raise
    rights: list[int] = []
    credentials = None
    for level, kind, data in control:
        if level != socket.SOL_SOCKET:
            continue
        if kind == SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % 4])
            rights += numbers
        elif kind == SCM_CREDENTIALS:
            credentials = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])
        elif kind == SCM_PIDFD:
            pidfd = int.from_bytes(data[:4], sys.byteorder, signed=True)
            if pidfd >= 0:
                os.close(pidfd)
    if size > len(buffer):
        for fd in rights:
            os.close(fd)
        raise OSError(errno.EMSGSIZE, f"a datagram of {size} bytes")
    return Message(bytes(memoryview(buffer)[:size]), None if stream else name_of(address), credentials, tuple(rights))


def name_of(address: "str | bytes | None") -> bytes | None:
    """What Python makes of a sun_path, back as it was."""
    if not address:
        return None
    name = os.fsencode(address)
    return name + b"\0" if is_path(name) else name


# -- restore ----------------------------------------------------------------------------------------------------------


def send(sock: socket.socket, message: Message, to: "bytes | str | None" = None) -> None:
    """Send a message, in the name of whoever sent it if he lives; `rights` are sent along.  Raises RestoreFailed."""
    control: list[tuple[int, int, bytes]] = []
    if message.rights:
        control.append((socket.SOL_SOCKET, SCM_RIGHTS, array.array("i", message.rights).tobytes()))
    if message.credentials is not None and os.path.exists(f"/proc/{message.credentials[0]}"):
        control.append((socket.SOL_SOCKET, SCM_CREDENTIALS, _CREDENTIALS.pack(*message.credentials)))
    view = memoryview(message.data)
    try:
        while True:
            arguments = ([view], control, MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            sent = sock.sendmsg(*arguments) if to is None else sock.sendmsg(*arguments, to)
            view = view[sent:]
            if not view:
                return
            control = [one for one in control if one[1] != SCM_RIGHTS]
    except OSError as error:
        raise RestoreFailed(
            "a message cannot be put back into a UNIX socket's queue",
            os.strerror(error.errno or 0),
            "raise /proc/sys/net/unix/max_dgram_qlen and /proc/sys/net/core/wmem_max"
            if error.errno in (errno.EAGAIN, errno.EMSGSIZE, errno.ENOBUFS)
            else "",
        ) from None
