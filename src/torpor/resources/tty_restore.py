# SPDX-License-Identifier: Apache-2.0
"""Terminals at restore.

The kernel gives a new pseudo-terminal the lowest free number, so masters are opened until all numbers of the images
have come; those in between go again.

A session's controlling terminal must be set when its leader has made the session and before it has children: they
inherit it, and cannot get it otherwise.  So the pseudo-terminals are made before the tree (`controlling`), all the rest
comes with the other files.
"""

import fcntl
import os
import struct
import termios

from torpor import signals as signal
from torpor.engine.program import Load32, Program
from torpor.errors import ImageError, Refusal
from torpor.images import kinds
from torpor.kernel import file_facts
from torpor.kernel.process import open_exactly
from torpor.kernel.syscall import call
from torpor.resources import tty_calls, tty_queue
from torpor.resources.description import extras, set_flags
from torpor.resources.tty_calls import Modes
from torpor.resources.tty_queue import Queues
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.engine.executor import Executor
    from torpor.images.schema.fdinfo import FileEntry
    from torpor.images.schema.torpor_file import TorporFileEntry
    from torpor.images.schema.tty import TtyInfoEntry
    from torpor.resources.context import Restore

PTY, CTTY, EXT_TTY = 1, 4, 5  # TtyType
MAX_NUMBER = 1 << 16  # more are not tried
AT_FDCWD = (1 << 64) - 100


_HERE = ("/dev/ptmx", "/dev/pts/ptmx")  # masters of the terminals in /dev/pts


def terminals(restore: "Restore") -> "Terminals":
    """The one set of terminals of a restore."""
    if "terminals" not in restore.state:
        restore.state["terminals"] = Terminals(restore)
    found: Terminals = restore.state["terminals"]
    return found


def take_controlling(restore: "Restore", sid: int, runner: "Executor") -> None:
    """Let a task that has just made its session have its controlling terminal."""
    if any(entry.tty is not None for entry in restore.files.values()):
        fd = terminals(restore).controlling(sid)
        if fd >= 0:
            _run_with(runner, fd, tty_calls.TIOCSCTTY, None)


def _run_with(runner: "Executor", fd: int, request: int, argument: int | None) -> None:
    """An ioctl inside a task, on a descriptor of ours."""
    program = Program()
    number = Load32(runner.send_fds(program, [fd]))
    value = 0 if argument is None else program.put(struct.pack("=i", argument))
    program.call("ioctl", number, request, value, may_fail=argument is not None)
    program.call("close", number)
    runner.run(program)


def _in_use(number: int) -> Refusal:
    return Refusal(
        f"the terminal /dev/pts/{number}",
        "its number is in use here",
        "close the terminal that has it, or restore where there are fewer",
    )


class Terminals:
    """All terminals of a restore."""

    def __init__(self, restore: "Restore") -> None:
        self.restore = restore
        self.infos: dict[int, TtyInfoEntry] = {info.id: info for info in restore.images.entries(kinds.TTY_INFO)}
        self.data: dict[int, bytes] = {}
        for data in restore.images.entries(kinds.TTY_DATA):
            self.data[data.tty_id] = self.data.get(data.tty_id, b"") + data.data
        self._masters: dict[int, int] = {}  # by number
        self._slaves: dict[int, int] = {}  # a slave of our own for each, by number
        self._names: dict[int, str] = {}  # how a master was opened, by number
        self._entries: list[FileEntry] = []
        self._looked_for: set[int] = set()
        self._made = self._finished = self._given = self._shared = False

    # -- check --------------------------------------------------------------------------------------------------------
    def check(self, entry: "FileEntry") -> None:
        """Raises ImageError, Refusal."""
        where = f"files.img, terminal {entry.id}"
        if entry.tty is None or entry.tty.tty_info_id not in self.infos:
            raise ImageError(where, "it has no entry, here or in tty-info.img")
        info = self.infos[entry.tty.tty_info_id]
        if info.type not in (PTY, CTTY):
            raise Refusal(where, "consoles, virtual terminals and serial lines cannot be restored")
        self._entries.append(entry)
        if info.type == PTY:
            number = self.number(info)
            if info.id >> 1 != number or number >= MAX_NUMBER:
                raise ImageError(where, f"impossible number {number}")
            lines = own.typed_lines if (own := extras(self.restore).get(entry.id)) else []
            if sum(lines) > len(self.data.get(number * 2, b"")) or len(lines) > tty_queue.FULL:
                raise ImageError(where, "its lines do not add up to what was typed")
            if info.id % 2 and entry.tty.regf_id is not None:
                reg = self.restore.files.get(entry.tty.regf_id)
                if reg is not None and reg.reg is not None:
                    self._names[number] = reg.reg.name
        if self.is_outside(info):
            if not self.restore.options.shell_job:
                raise Refusal(where, "its other end was outside of the tree", "say --shell-job in a terminal")
            if _our_terminal() < 0:
                raise Refusal(
                    where,
                    "its place is to be taken by Torpor's own standard input, which is no terminal",
                    "run the restore in a terminal",
                )
        elif info.type == PTY and number not in self._looked_for:
            self._looked_for.add(number)
            if self._names.get(number, "/dev/ptmx") in _HERE and os.path.exists(f"/dev/pts/{number}"):
                raise _in_use(number)

    @staticmethod
    def number(info: "TtyInfoEntry") -> int:
        return info.pty.index if info.pty is not None else info.id >> 1

    def is_outside(self, info: "TtyInfoEntry") -> bool:
        """A job's terminal: its master was not dumped."""
        if info.type == CTTY:
            return info.sid not in self.restore.tasks
        return not info.id % 2 and info.id + 1 not in self.infos and info.termios is not None

    # -- making -------------------------------------------------------------------------------------------------------
    def controlling(self, sid: int) -> int:
        """A descriptor of the terminal that a session is to have; -1: none."""
        for info in self.infos.values():
            if info.sid == sid and info.type == PTY and not self.is_outside(info) and info.termios is not None:
                self.make_pairs()
                return self._slaves[self.number(info)]
        return -1

    def will_make(self, name: str) -> bool:
        """Whether the file in /dev/pts comes with one of these terminals."""
        found = [info for info in self.infos.values() if info.type == PTY and not self.is_outside(info)]
        return name in (f"/dev/pts/{self.number(info)}" for info in found)

    def make_pairs(self) -> None:
        if self._made:
            return
        self._made = True
        wanted: dict[str, set[int]] = {}
        for info in self.infos.values():
            if info.type == PTY and not self.is_outside(info):
                number = self.number(info)
                wanted.setdefault(self._names.get(number, "/dev/ptmx"), set()).add(number)
        for name, numbers in wanted.items():
            self._open_masters(name, numbers)
        for number, master in self._masters.items():
            tty_calls.set_number(master, tty_calls.TIOCSPTLCK, 0)
            info = self._about(number)
            if self._opens_slave(number, info):
                self._slaves[number] = tty_calls.open_slave(master, os.O_RDWR)
            else:
                self._slaves[number] = os.dup(master)  # all that is left to do to the slave can be done through it
            if info.winsize is not None:  # once a session has the terminal, this sends SIGWINCH
                tty_calls.set_window_size(master, info.winsize)

    def _opens_slave(self, number: int, info: "TtyInfoEntry") -> bool:
        """Once it was opened and closed, the master's reads are errors."""
        own = self._own_of(number)
        return bool(number * 2 in self.infos or info.sid or any(self._queues(number)) or (own and own.was_opened))

    def _about(self, number: int) -> "TtyInfoEntry":
        """What modes and size the terminal of this number has: its master says it, or else its slave."""
        return self.infos[number * 2 + 1] if number * 2 + 1 in self.infos else self.infos[number * 2]

    def _own_of(self, number: int) -> "TorporFileEntry | None":
        """Torpor's own entry of the master of this number."""
        masters = (entry.id for entry in self._entries if entry.tty and entry.tty.tty_info_id == number * 2 + 1)
        found = extras(self.restore)
        return next((found[id] for id in masters if id in found), None)

    def _queues(self, number: int) -> Queues:
        typed, written = self.data.get(number * 2, b""), self.data.get(number * 2 + 1, b"")
        own = self._own_of(number)
        if own is None:
            return Queues(typed, written)
        return Queues(typed, written, tuple(own.typed_lines) or None, own.terminal_stopped or 0)

    def _open_masters(self, name: str, numbers: set[int]) -> None:
        """Open until every number has come; the kernel gives the lowest that is free."""
        spare: list[int] = []
        missing = set(numbers)
        large = 0  # 32-bit programs open with it, or without
        for entry in self._entries:
            large |= entry.tty.flags & tty_calls.O_LARGEFILE if entry.tty is not None else 0
        try:
            while missing:
                fd = open_exactly(name, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | large)
                number = tty_calls.number(fd, tty_calls.TIOCGPTN)
                if number in missing:
                    missing.discard(number)
                    self._masters[number] = fd
                    continue
                spare.append(fd)
                if number > max(missing):
                    raise _in_use(min(missing))
        finally:
            for fd in spare:
                os.close(fd)

    def make(self, entry: "FileEntry") -> int:
        tty = entry.tty
        assert tty is not None  # check
        info = self.infos[tty.tty_info_id]
        flags = tty.flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_ASYNC) | os.O_NOCTTY | os.O_CLOEXEC
        if info.type == CTTY:
            return self._make_controlling(info, flags)
        if self.is_outside(info):
            return self._open_outside(tty.flags, flags)
        self.make_pairs()
        number = self.number(info)
        if info.id % 2:
            return os.dup(self._masters[number])
        return tty_calls.open_slave(self._masters[number], flags)

    def _open_outside(self, wanted: int, flags: int) -> int:
        """The terminal that Torpor was called from.  A job mostly shares its shell's description; so does this one if
        it is just like that: opening it anew would add O_LARGEFILE."""
        ours = _our_terminal()
        if not self._shared and fcntl.fcntl(ours, fcntl.F_GETFL) == wanted:
            self._shared = True
            return fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, 3)
        return open_exactly(f"/proc/self/fd/{ours}", flags)

    def _make_controlling(self, info: "TtyInfoEntry", flags: int) -> int:
        """/dev/tty, opened by whoever leads the session."""
        leader = self.restore.tasks.get(info.sid)
        if leader is None:
            return open_exactly("/dev/tty", flags)
        if leader.dead or leader.runner is None:
            raise ImageError("tty-info.img", f"the leader of session {info.sid} is dead, its terminal cannot be")
        program = Program()
        opened = program.call("openat", AT_FDCWD, program.string("/dev/tty"), flags, 0)
        leader.runner.run(program)
        pidfd = call("pidfd_open", leader.pid, 0)
        try:
            fd = call("pidfd_getfd", pidfd, opened.value, 0)
        finally:
            os.close(pidfd)
        program = Program()
        program.call("close", opened.value)
        leader.runner.run(program)
        return fd

    # -- finishing ----------------------------------------------------------------------------------------------------
    def finish(self) -> None:
        """Queues, modes, foreground groups, flags; then masters that nobody has are closed."""
        if self._finished:
            return
        self._finished = True
        for number, master in self._masters.items():
            slave, info = self._slaves[number], self._about(number)
            if info.termios is not None:
                modes = Modes.of(info.termios, Modes.get(slave))
                queues = self._queues(number)
                if any(queues):
                    tty_queue.put(master, slave, queues, modes)
                else:
                    modes.set(slave)
                if info.termios_locked is not None:
                    tty_calls.set_locks(slave, info.termios_locked)
            self._foreground(info, slave)
        for entry in self._entries:
            self._own(entry)
        for number, master in self._masters.items():
            for id, fd in ((number * 2, self._slaves[number]), (number * 2 + 1, master)):
                if id in self.infos:
                    self._flags(self.infos[id], fd)
            os.close(self._slaves[number])
            os.close(master)

    def _foreground(self, info: "TtyInfoEntry", slave: int) -> None:
        leader = self.restore.tasks.get(info.sid)
        if info.pgrp and leader is not None and not leader.dead and leader.runner is not None:
            _run_with(leader.runner, slave, tty_calls.TIOCSPGRP, info.pgrp)

    def _own(self, entry: "FileEntry") -> None:
        """One description: its flags, and who owns the file of a slave."""
        assert entry.tty is not None
        fd = self.restore.made[entry.id]
        info = self.infos[entry.tty.tty_info_id]
        if self.is_outside(info):
            if info.type == PTY:
                self._modes_outside(fd, info)
        elif info.type == PTY and not info.id % 2:
            facts = file_facts.fstat(fd)
            if info.uid is not None and info.gid is not None and (facts.st_uid, facts.st_gid) != (info.uid, info.gid):
                os.fchown(fd, info.uid, info.gid)
            own = extras(self.restore).get(entry.id)
            if own is not None and own.mode is not None and facts.st_mode & 0o7777 != own.mode & 0o7777:
                os.fchmod(fd, own.mode & 0o7777)
        set_flags(fd, entry.tty.flags)

    @staticmethod
    def _flags(info: "TtyInfoEntry", fd: int) -> None:
        if info.id % 2:
            if info.packet_mode:
                tty_calls.set_number(fd, termios.TIOCPKT, 1)
            if info.locked:
                tty_calls.set_number(fd, tty_calls.TIOCSPTLCK, 1)
        if info.exclusive:
            fcntl.ioctl(fd, termios.TIOCEXCL)

    # -- the terminal outside -----------------------------------------------------------------------------------------
    @staticmethod
    def _modes_outside(fd: int, info: "TtyInfoEntry") -> None:
        if info.termios is None:
            return
        with _Quiet():
            Modes.of(info.termios, Modes.get(fd)).set(fd)

    def give_outside(self) -> None:
        """The job that had the foreground of the terminal outside gets it again, and is told (SIGWINCH) if that has
        another size than the one that it left: all signals are blocked still, so it hears it when it runs."""
        if self._given:
            return
        self._given = True
        for info in self.infos.values():
            groups = {task.pgid for task in self.restore.tasks.values() if not task.dead}
            if self.is_outside(info) and info.pgrp in groups:
                with _Quiet():
                    try:
                        tty_calls.set_number(_our_terminal(), tty_calls.TIOCSPGRP, info.pgrp)
                        if info.winsize is not None and tty_calls.window_size(_our_terminal()) != info.winsize:
                            os.killpg(info.pgrp, signal.SIGWINCH)
                    except OSError:
                        pass  # not the controlling terminal of the session that Torpor runs in: nobody's foreground


class _Quiet:
    """A terminal may be changed from the background while SIGTTOU is blocked."""

    def __enter__(self) -> None:
        self.was = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTTOU,))

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self.was)


def _our_terminal() -> int:
    """Standard input, if it is a terminal; -1."""
    try:
        return 0 if os.isatty(0) else -1
    except OSError:
        return -1
