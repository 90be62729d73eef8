# SPDX-License-Identifier: Apache-2.0
"""epoll instances (epoll(7)).

A registration belongs to a pair: an open file description and the descriptor number that it was registered by.  The
number may since have been closed, or mean another file; the registration lives as long as the description does.  So
kcmp(KCMP_EPOLL_TFD) has to say what is really behind each.  Registrations are made inside the task again, when all its
descriptors are in place; a target whose number means something else now lends a free number for the moment.
"""

import os
import struct
from typing import TYPE_CHECKING

from torpor.errors import ImageError
from torpor.images.schema.eventpoll import EventpollFileEntry, EventpollTfdEntry
from torpor.images.schema.fdinfo import FileEntry
from torpor.kernel.fdinfo import EpollTarget
from torpor.kernel.process import kcmp_epoll
from torpor.kernel.syscall import call
from torpor.resources.description import Described, extra, extras, save_owner, set_flags

if TYPE_CHECKING:
    from torpor.engine.program import Pointer, Program
    from torpor.resources.context import Dump, Restore, RestoreTask, SeenFile

EVENTPOLL = 7  # FdTypes
EPOLL_CTL_ADD = 1
MAX_TARGETS = 1 << 20
F_GETFD, F_SETFD, F_DUPFD_CLOEXEC = 1, 2, 1030
# struct epoll_event is packed on x86_64 alone (include/uapi/linux/eventpoll.h).
_EVENT = struct.Struct("=IQ") if os.uname().machine == "x86_64" else struct.Struct("=I4xQ")


class Epoll(Described):
    covers = frozenset({"fd:eventpoll"})
    type = EVENTPOLL
    field = "epfd"

    def save(self, seen: "SeenFile", dump: "Dump") -> FileEntry:
        nth: dict[int, int] = {}
        targets: list[EventpollTfdEntry] = []
        for target in seen.info.epoll:
            index = nth.get(target.tfd, 0)
            nth[target.tfd] = index + 1
            number = _holder(seen, target, index)
            if number != target.tfd:
                own = extra(dump, seen.id)
                own.epoll_indices.append(len(targets))
                own.epoll_numbers.append(target.tfd)
            targets.append(
                EventpollTfdEntry(
                    id=seen.id,
                    tfd=number,
                    events=target.events,
                    data=target.data,
                    dev=target.sdev,
                    inode=target.ino,
                    pos=target.pos,
                )
            )
        entry = EventpollFileEntry(id=seen.id, flags=seen.info.status_flags, fown=save_owner(seen.fd), tfd=targets)
        return FileEntry(type=EVENTPOLL, id=seen.id, epfd=entry)

    def check(self, entry: FileEntry, restore: "Restore") -> None:
        if entry.epfd is None or len(entry.epfd.tfd) > MAX_TARGETS:
            raise ImageError(f"files.img, file {entry.id}", "an epoll without its entry, or with too many targets")

    def make(self, entry: FileEntry, restore: "Restore") -> int:
        assert entry.epfd is not None
        fd = call("epoll_create1", os.O_CLOEXEC)
        set_flags(fd, entry.epfd.flags)
        return fd

    def place(self, entry: FileEntry, task: "RestoreTask", number: int, program: "Program") -> None:
        super().place(entry, task, number, program)
        assert entry.epfd is not None and task.restore is not None
        own = extras(task.restore).get(entry.id)
        numbers = dict(zip(own.epoll_indices, own.epoll_numbers, strict=False)) if own else {}
        for index, target in enumerate(entry.epfd.tfd):
            event = program.put(_EVENT.pack(target.events & 0xFFFFFFFF, target.data & 0xFFFFFFFFFFFFFFFF))
            if index in numbers:
                _register_as(program, number, numbers[index], target.tfd, event)
            else:
                program.call("epoll_ctl", number, EPOLL_CTL_ADD, target.tfd, event)


def _register_as(program: "Program", epoll: int, number: int, holder: int, event: "Pointer") -> None:
    """Register a description by a number that means something else now, or nothing: lend it the number for a moment."""
    flags = program.call("fcntl", number, F_GETFD, 0, may_fail=True)
    aside = program.call("fcntl", number, F_DUPFD_CLOEXEC, 0, may_fail=True)
    program.call("dup3", holder, number, os.O_CLOEXEC)
    program.call("epoll_ctl", epoll, EPOLL_CTL_ADD, number, event)
    program.call("close", number)
    program.call("dup3", aside, number, 0, may_fail=True)
    program.call("fcntl", number, F_SETFD, flags, may_fail=True)
    program.call("close", aside, may_fail=True)


def _holder(seen: "SeenFile", target: EpollTarget, nth: int) -> int:
    """A descriptor of the task's that is the target's description now: the number it was registered by, or another."""
    pid, epoll = seen.pid, seen.number
    try:
        if kcmp_epoll(pid, target.tfd, pid, epoll, target.tfd, nth) == 0:
            return target.tfd
    except OSError:
        pass  # closed since
    for name in os.listdir(f"/proc/{pid}/fd"):
        number = int(name)
        stat = os.stat(f"/proc/{pid}/fd/{name}")
        if target.ino is not None and stat.st_ino != target.ino:
            continue
        try:
            if kcmp_epoll(pid, number, pid, epoll, target.tfd, nth) == 0:
                return number
        except OSError:
            continue
    raise seen.refusal(
        f"it watches fd {target.tfd}, which was closed here but lives on elsewhere",
        "let the program remove it (epoll_ctl) before it closes it",
    )


FILE_KINDS = [Epoll()]
