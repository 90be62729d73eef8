# SPDX-License-Identifier: Apache-2.0
"""epoll instances (epoll(7)).

A registration belongs to a pair: an open file description and the descriptor number that it was registered by.  The
number may since have been closed, or mean another file; the registration lives as long as the description does, in
whatever process.  So kcmp(KCMP_EPOLL_TFD) has to say what is really behind each.

At restore the controller has every description, and registers them itself: it lends each the number that it was known
by for the moment of epoll_ctl(2).  A spent EPOLLONESHOT cannot be registered (EPOLLERR and EPOLLHUP are always added);
where its target is ready, it is armed with what is ready and spent again.
"""

import fcntl
import os
import select

from torpor.errors import ImageError, KernelError
from torpor.images.schema.eventpoll import EventpollFileEntry, EventpollTfdEntry
from torpor.images.schema.fdinfo import FileEntry
from torpor.kernel import file_facts
from torpor.kernel.fdinfo import EpollTarget
from torpor.kernel.ioctls import ior, iow
from torpor.kernel.polling import poll_events
from torpor.kernel.process import kcmp_epoll
from torpor.kernel.syscall import call
from torpor.resources import lacking
from torpor.resources.description import Described, extra, extras, save_owner, set_flags
from torpor.typed import TYPE_CHECKING, Iterator

if TYPE_CHECKING:
    from torpor.resources.context import Dump, DumpTask, Restore, SeenFile

EVENTPOLL = 7  # FdTypes
EPOLL_CTL_ADD = 1
EPOLLERR, EPOLLHUP, EPOLLONESHOT = 0x8, 0x10, 1 << 30
READY = select.EPOLLIN | select.EPOLLOUT | select.EPOLLPRI | select.EPOLLRDHUP
MAX_TARGETS = 1 << 20
_PARAMETERS = 8  # bytes of struct epoll_params
EPIOCSPARAMS, EPIOCGPARAMS = iow(0x8A, 1, _PARAMETERS), ior(0x8A, 2, _PARAMETERS)
ELSEWHERE = "epoll:elsewhere"  # dump.state: (epoll id, index, files_id, number) of targets that other tables have


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
            targets.append(
                EventpollTfdEntry(
                    id=seen.id,
                    tfd=_number(seen, dump, target, index, len(targets)),
                    events=target.events,
                    data=target.data,
                    dev=target.sdev,
                    inode=target.ino,
                    pos=target.pos,
                )
            )
        parameters = _parameters(seen.fd)
        if any(parameters):
            extra(dump, seen.id).epoll_parameters = parameters
        entry = EventpollFileEntry(id=seen.id, flags=seen.info.status_flags, fown=save_owner(seen.fd), tfd=targets)
        return FileEntry(type=EVENTPOLL, id=seen.id, epfd=entry)

    def late(self, dump: "Dump") -> None:
        tables = dump.state["fd tables"]
        for epoll, index, files_id, number in dump.state.get(ELSEWHERE, ()):
            own = extra(dump, epoll)
            own.epoll_elsewhere.append(index)
            own.epoll_files.append(next(seen.id for seen, _, n in tables[files_id] if n == number))

    def check(self, entry: FileEntry, restore: "Restore") -> None:
        if entry.epfd is None or len(entry.epfd.tfd) > MAX_TARGETS:
            raise ImageError(f"files.img, file {entry.id}", "an epoll without its entry, or with too many targets")
        own = extras(restore).get(entry.id)
        wanted = (own.epoll_parameters if own is not None else None) or b""
        if wanted and (error := lacking.error_of_trying(restore, wanted, lambda: _try_parameters(wanted))):
            has = "it has parameters for the polling of network devices (EPIOCSPARAMS)"
            raise lacking.refused(lacking.file_subject(restore, entry.id, "epoll"), has, error)

    def make(self, entry: FileEntry, restore: "Restore") -> int:
        assert entry.epfd is not None
        fd = call("epoll_create1", os.O_CLOEXEC)
        set_flags(fd, entry.epfd.flags)
        own = extras(restore).get(entry.id)
        if own and own.epoll_parameters:
            try:
                _set_parameters(fd, own.epoll_parameters)
            except OSError as error:
                raise KernelError(
                    "cannot have an epoll poll network devices (EPIOCSPARAMS) as it did", error,
                    "restore under the kernel, and with the rights, that it was dumped with",
                ) from None  # fmt: skip
        return fd

    def last(self, entry: FileEntry, fd: int, restore: "Restore") -> None:
        super().last(entry, fd, restore)
        assert entry.epfd is not None
        if not entry.epfd.tfd:
            return
        targets = list(_targets(entry, restore))
        # Our own epoll descriptor must not have a number that is lent.
        above = max(number for _, _, number in targets) + 1
        epoll = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above)
        try:
            # Spent ones first: nothing else may be spent with them.
            for target, description, number in sorted(targets, key=lambda t: not _is_spent(t[0])):
                _register(epoll, target, description, number)
        finally:
            os.close(epoll)


def _parameters(fd: int) -> bytes:
    """How network devices are polled (6.9); nothing where the kernel does not know that."""
    try:
        return fcntl.ioctl(fd, EPIOCGPARAMS, bytes(_PARAMETERS))
    except OSError:
        return b""


def _set_parameters(fd: int, wanted: bytes) -> None:
    fcntl.ioctl(fd, EPIOCSPARAMS, wanted[:_PARAMETERS].ljust(_PARAMETERS, b"\0"))


def _try_parameters(wanted: bytes) -> None:
    """Long times of polling take rights."""
    with select.epoll() as fresh:
        _set_parameters(fresh.fileno(), wanted)


def _targets(entry: FileEntry, restore: "Restore") -> Iterator[tuple[EventpollTfdEntry, int, int]]:
    """Each target with our descriptor of it, and the number by which it was registered."""
    assert entry.epfd is not None
    own = extras(restore).get(entry.id)
    numbers = dict(zip(own.epoll_indices, own.epoll_numbers, strict=False)) if own else {}
    elsewhere = dict(zip(own.epoll_elsewhere, own.epoll_files, strict=False)) if own else {}
    table = _table_with(entry.id, restore)
    for index, target in enumerate(entry.epfd.tfd):
        id = elsewhere.get(index, table.get(target.tfd, 0))
        if id not in restore.made:
            raise ImageError("files.img is incomplete", f"epoll {entry.id} watches fd {target.tfd}, which is not there")
        yield target, restore.made[id], numbers.get(index, target.tfd)


def _table_with(epoll: int, restore: "Restore") -> dict[int, int]:
    """Number → file id of a table that has this epoll.  Indexed once: there may be thousands."""
    index: dict[int, dict[int, int]] | None = restore.state.get("epoll:tables")
    if index is None:
        index = restore.state["epoll:tables"] = {}
        for task in restore.tasks.values():
            table = {fd.fd: fd.id for fd in task.fds}
            for fd in task.fds:
                if fd.type == EVENTPOLL:
                    index.setdefault(fd.id, table)
    return index.get(epoll, {})


def _is_spent(target: EventpollTfdEntry) -> bool:
    return bool(target.events & EPOLLONESHOT) and not target.events & (READY | EPOLLERR | EPOLLHUP)


def _register(epoll: int, target: EventpollTfdEntry, description: int, number: int) -> None:
    """epoll_ctl under `number`, which is ours again afterwards."""
    with _Lent(description, number), select.epoll.fromfd(os.dup(epoll)) as poller:
        events = target.events
        if _is_spent(target):
            events |= poll_events(description, READY) & READY
        _control(epoll, number, events, target.data)
        if _is_spent(target) and events != target.events:
            poller.poll(0, 1)


def _control(epoll: int, number: int, events: int, data: int) -> None:
    import ctypes
    import struct

    # struct epoll_event is packed on x86_64 alone (include/uapi/linux/eventpoll.h).
    layout = "=IQ" if os.uname().machine == "x86_64" else "=I4xQ"
    event = ctypes.create_string_buffer(struct.pack(layout, events & 0xFFFFFFFF, data & 0xFFFFFFFFFFFFFFFF))
    call("epoll_ctl", epoll, EPOLL_CTL_ADD, number, ctypes.addressof(event))


class _Lent:
    """In a `with` block, `number` is a descriptor of the description behind `fd`; then it is what it was."""

    def __init__(self, fd: int, number: int) -> None:
        self.fd, self.number, self.aside = fd, number, -1

    def __enter__(self) -> None:
        if self.fd == self.number:
            return
        try:
            self.aside = fcntl.fcntl(self.number, fcntl.F_DUPFD_CLOEXEC, self.number + 1)
        except OSError:
            self.aside = -1  # it is free
        os.dup2(self.fd, self.number, inheritable=False)

    def __exit__(self, *_: object) -> None:
        if self.fd == self.number:
            return
        if self.aside < 0:
            os.close(self.number)
        else:
            os.dup2(self.aside, self.number, inheritable=False)
            os.close(self.aside)


def _number(seen: "SeenFile", dump: "Dump", target: EpollTarget, nth: int, index: int) -> int:
    """A number that means the target's description in the epoll's own table: the one that it was registered by, or
    another, or, where only another table has it, the former all the same."""
    tid, epoll = seen.pid, seen.number

    def is_it(pid: int, number: int) -> bool:
        try:
            return kcmp_epoll(pid, number, tid, epoll, target.tfd, nth) == 0
        except OSError:
            return False  # closed since

    if is_it(tid, target.tfd):
        return target.tfd
    for task, number in _candidates(dump, seen, target):
        if is_it(task.leader.tid, number):
            assert task.ids is not None
            if task.leader.tid != tid:
                dump.setdefault(ELSEWHERE, []).append((seen.id, index, task.ids.files_id, number))
                return target.tfd
            own = extra(dump, seen.id)
            own.epoll_indices.append(index)
            own.epoll_numbers.append(target.tfd)
            return number
    raise seen.refusal(
        f"it watches what was once fd {target.tfd}, and no task of the tree has that any more",
        "let the program remove it (epoll_ctl) before it closes it",
    )


def _candidates(dump: "Dump", seen: "SeenFile", target: EpollTarget) -> "Iterator[tuple[DumpTask, int]]":
    """All descriptors of the target's inode, those of the epoll's own task first."""
    tasks = [task for task in dump.tasks.values() if not task.zombie]
    for task in sorted(tasks, key=lambda task: task.leader.tid != seen.pid):
        for number in task.numbers[task.leader.tid]:
            stat = file_facts.stat(f"/proc/{task.leader.tid}/fd/{number}")
            if target.ino is None or stat.st_ino == target.ino:
                yield task, number


FILE_KINDS = [Epoll()]
