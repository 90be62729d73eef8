# SPDX-License-Identifier: Apache-2.0
"""Terminals: pseudo-terminals of which the tree holds the master, and a job's terminal, whose master is outside.

A master (/dev/ptmx) and its slaves (/dev/pts/N) are one object; every open of the master makes a new one.  What CRIU's
format calls a tty is one end: `id` is twice the number, plus one for the master.  Surprising facts:

- A slave whose master is not in the tree belongs to somebody else, mostly a terminal emulator or sshd: it needs
  --shell-job, and the terminal that Torpor's restore is called from takes its place.
- A slave whose master is closed is hung up for ever: reading gives end of file, all else EIO.
- /dev/tty is not a terminal but a way to the controlling one; what was opened by it shows only by TIOCGDEV.

Making them again is in tty_restore.py, queued data in tty_queue.py.
"""

import os

from torpor.images import kinds
from torpor.images.schema.fdinfo import FileEntry
from torpor.images.schema.tty import TtyDataEntry, TtyFileEntry, TtyInfoEntry, TtyPtyEntry
from torpor.kernel import file_facts
from torpor.kernel.polling import poll_events
from torpor.resources import regular, tty_calls, tty_queue
from torpor.resources.description import NOBODY, Described, extra, save_owner
from torpor.resources.tty_calls import Modes, number
from torpor.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torpor.resources.context import Dump, Restore, SeenFile

TTY = 11  # FdTypes
PTY, CTTY = 1, 4  # TtyType
PTMX, CONTROLLING = os.makedev(5, 2), os.makedev(5, 0)
SLAVE_MAJOR = 136
CTTY_ID = 2012  # CRIU's number for /dev/tty
OUTSIDE = "the other end of this terminal is outside the tree"
OUTSIDE_REMEDY = (
    "say --shell-job, here and at restore, where the terminal that you call it from takes its place;"
    " or start the program with its standard files redirected"
)


class End(NamedTuple):
    """One end of a pseudo-terminal, or /dev/tty; `fd`: our own descriptor of the first that was seen."""

    info: TtyInfoEntry
    fd: int
    seen: "SeenFile"


class Tty(Described):
    covers = frozenset({"fd:tty"})
    type = TTY
    field = "tty"

    # -- dump ---------------------------------------------------------------------------------------------------------
    def examine(self, seen: "SeenFile", dump: "Dump") -> None:
        device = seen.stat.st_rdev
        if device not in (PTMX, CONTROLLING) and os.major(device) != SLAVE_MAJOR:
            raise seen.refusal(
                "consoles, virtual terminals and serial lines cannot be dumped", "start the program in a terminal"
                " emulator or a multiplexer, or redirect its standard files"
            )  # fmt: skip

        if device != CONTROLLING:
            id = number(seen.fd, tty_calls.TIOCGPTN) * 2 + 1 if device == PTMX else os.minor(device) * 2
            hung_up = _hung_up(seen.fd)
            first, *_ = dump.setdefault("tty examined", {}).setdefault(id, (seen, _session(seen.fd)[0], hung_up))
            if (seen.stat.st_dev, seen.stat.st_ino) != (first.stat.st_dev, first.stat.st_ino):
                why = f"it has the same number as {first.where}, but is of another mount of devpts"
                raise seen.refusal(why, "close one of them first")
            dump.setdefault("tty hung up" if hung_up else "tty alive", {}).setdefault(id, seen)
            if device == PTMX and tty_queue.waiting_status(seen.fd):
                raise seen.refusal("a status of its packet mode waits to be read", "try again in a moment")

    def examined(self, dump: "Dump") -> None:
        """Terminals whose master is not in the tree."""
        seen: dict[int, tuple[SeenFile, int, bool]] = dump.state.get("tty examined", {})
        alive: dict[int, SeenFile] = dump.state.get("tty alive", {})
        for id, one in dump.state.get("tty hung up", {}).items():
            if id in alive or id + 1 in seen:
                why = "it was hung up (vhangup), and its terminal lives on, which Torpor does not restore"
                dump.refuse(one.refusal(why, "close it first"))
        for task in dump.tasks.values():
            leader = dump.tasks.get(task.sid)
            if leader is not None and leader.stat.tty_nr and not task.stat.tty_nr and not task.zombie:
                why = "it has given up the controlling terminal of its session (TIOCNOTTY), and would have it again"
                dump.refuse(task.refusal(why, "let it make a session of its own (setsid)"))
        outside = [one for id, (one, _, hung_up) in seen.items() if not id % 2 and id + 1 not in seen and not hung_up]
        if len(outside) > 1:
            why = "the tree uses two terminals whose masters are outside of it"
            dump.refuse(outside[1].refusal(why, "close one of them first"))
        elif outside and not dump.options.shell_job:
            dump.refuse(outside[0].refusal(OUTSIDE, OUTSIDE_REMEDY))
        sessions = {sid for id, (_, sid, _) in seen.items() if id % 2}
        for task in dump.tasks.values():
            leads = not task.zombie and task.sid == task.pid and task.stat.tty_nr
            if leads and task.sid not in sessions and not dump.options.shell_job and not outside:
                why = "it leads a session whose terminal is outside of the tree"
                remedy = "say --shell-job: the session comes back without a controlling terminal"
                dump.refuse(task.refusal(why, remedy, code="shell-job"))

    def save(self, seen: "SeenFile", dump: "Dump") -> FileEntry:
        ends: dict[int, End] = dump.setdefault("ttys", {})
        info = self._info(seen, dump)
        if info.id in ends:
            info = ends[info.id].info
        else:
            ends[info.id] = End(info, os.dup(seen.fd), seen)
        name = dump.new_file_id()
        flags = seen.info.status_flags
        path = f"/proc/{seen.pid}/fd/{seen.number}"
        entry = regular.file_entry(
            dump, seen.subject, name, seen.link, seen.stat, flags, 0, NOBODY, path, only_name=True
        )
        dump.file_entries.append(entry)
        tty = TtyFileEntry(id=seen.id, tty_info_id=info.id, flags=flags, fown=save_owner(seen.fd), regf_id=name)
        return FileEntry(type=TTY, id=seen.id, tty=tty)

    def _info(self, seen: "SeenFile", dump: "Dump") -> TtyInfoEntry:
        fd, device = seen.fd, seen.stat.st_rdev
        kind, sid, pgrp, index, locked, packets = PTY, 0, 0, os.minor(device), False, False
        if device == PTMX:
            index = number(fd, tty_calls.TIOCGPTN)
            id = index * 2 + 1
            locked = bool(number(fd, tty_calls.TIOCGPTLCK))
            packets = bool(number(fd, tty_calls.TIOCGPKT))
            sid, pgrp = _session(fd)
        elif device == CONTROLLING:
            kind, (id, sid, pgrp) = CTTY, self._controlling(seen, dump)
        else:
            id = index * 2
            sid, pgrp = _session_of(device, dump)
        info = TtyInfoEntry(
            id=id,
            type=kind,
            locked=locked,
            exclusive=False,
            packet_mode=packets,
            sid=sid,
            pgrp=pgrp,
            rdev=os.major(device) << 8 | os.minor(device) & 0xFF | os.minor(device) >> 8 << 20,
            pty=TtyPtyEntry(index=index) if kind == PTY else None,
            dev=os.major(seen.stat.st_dev) << 20 | os.minor(seen.stat.st_dev),
            uid=seen.stat.st_uid,
            gid=seen.stat.st_gid,
        )
        try:
            modes = Modes.get(fd)
        except OSError:
            return info  # hung up
        if modes.line != tty_calls.N_TTY:
            raise seen.refusal(f"it has line discipline {modes.line}", "end the program that set it first")
        info.termios, info.termios_locked = modes.entry(), tty_calls.locks(fd)
        info.winsize = tty_calls.window_size(fd)
        info.exclusive = bool(number(fd, tty_calls.TIOCGEXCL))
        if device != PTMX:
            extra(dump, seen.id).mode = seen.stat.st_mode & 0o7777
        return info

    @staticmethod
    def _controlling(seen: "SeenFile", dump: "Dump") -> tuple[int, int, int]:
        """Id, session and foreground group of what is behind /dev/tty."""
        sid, pgrp = _session_of(number(seen.fd, tty_calls.TIOCGDEV), dump)
        if not sid:
            raise seen.refusal("it was the controlling terminal of a session that is gone", "close it first")
        ids: dict[int, int] = dump.setdefault("tty controlling", {})
        ids.setdefault(sid, CTTY_ID if not ids else (1 << 30) + len(ids))
        return ids[sid], sid, pgrp

    def settle(self, dump: "Dump") -> None:
        ends: dict[int, End] = dump.state.get("ttys", {})
        data: list[TtyDataEntry] = dump.setdefault("tty data", [])
        try:
            self.examined(dump)
            for id, end in ends.items():
                if end.info.type == CTTY or not id % 2:
                    continue
                if id - 1 in ends:
                    ends[id - 1].info.sid, ends[id - 1].info.pgrp = end.info.sid, end.info.pgrp
                elif _never_opened(end, dump):
                    if number(end.fd, tty_calls.FIONREAD):
                        why = "something waits in it, and nobody has opened its other end yet"
                        raise end.seen.refusal(why, "try again in a moment")
                    continue
                else:
                    extra(dump, end.seen.id).was_opened = True
                queues = tty_queue.look(end.fd)
                if queues.lines is not None:
                    extra(dump, end.seen.id).typed_lines = list(queues.lines)
                if queues.stopped:
                    extra(dump, end.seen.id).terminal_stopped = queues.stopped
                data += [TtyDataEntry(tty_id=id - 1, data=queues.typed)] if queues.typed else []
                data += [TtyDataEntry(tty_id=id, data=queues.written)] if queues.written else []
        finally:
            for end in ends.values():
                os.close(end.fd)

    def late(self, dump: "Dump") -> None:
        ends: dict[int, End] = dump.state.get("ttys", {})
        dump.images.write(kinds.TTY_INFO, [end.info for end in ends.values()])
        dump.images.write(kinds.TTY_DATA, dump.state.get("tty data", []))

    # -- restore ------------------------------------------------------------------------------------------------------
    def check(self, entry: FileEntry, restore: "Restore") -> None:
        from torpor.resources import tty_restore

        tty_restore.terminals(restore).check(entry)

    def make(self, entry: FileEntry, restore: "Restore") -> int:
        from torpor.resources import tty_restore

        return tty_restore.terminals(restore).make(entry)

    def wire(self, entry: FileEntry, fd: int, restore: "Restore") -> None:
        from torpor.resources import tty_restore

        tty_restore.terminals(restore).finish()

    def last(self, entry: FileEntry, fd: int, restore: "Restore") -> None:
        from torpor.resources import tty_restore

        super().last(entry, fd, restore)
        tty_restore.terminals(restore).give_outside()


def _never_opened(end: End, dump: "Dump") -> bool:
    """Of a master without slave in the tree: whether nobody has opened the slave yet.  Whoever opens and closes it
    makes the master's reads fail (EIO) from then on, so we do not then."""
    if poll_events(end.fd):
        return False  # hung up: it was opened and closed
    if "tty opened" not in dump.state:
        dump.state["tty opened"] = _opened_slaves()
    assert end.info.pty is not None
    return end.info.pty.index not in dump.state["tty opened"]


def _opened_slaves() -> set[int]:
    """The numbers of all slaves of which any process has a descriptor."""
    found = set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            fds = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue  # it has ended
        for fd in fds:
            path = f"/proc/{pid}/fd/{fd}"
            try:
                device = file_facts.stat(path).st_rdev if os.readlink(path).rpartition("/")[2].isdecimal() else 0
            except OSError:
                continue  # it was closed
            if os.major(device) == SLAVE_MAJOR:
                found.add(os.minor(device))
    return found


def _hung_up(fd: int) -> bool:
    try:
        Modes.get(fd)
    except OSError:
        return True
    return False


def _session(master: int) -> tuple[int, int]:
    """Session and foreground group of a pseudo-terminal, asked through its master."""
    try:
        return number(master, tty_calls.TIOCGSID), max(0, number(master, tty_calls.TIOCGPGRP))
    except OSError:
        return 0, 0  # it is nobody's controlling terminal


def _session_of(device: int, dump: "Dump") -> tuple[int, int]:
    """The same of any terminal, as the tasks of the tree tell."""
    for task in dump.tasks.values():
        if not task.zombie and _same_device(task.stat.tty_nr, device):
            return task.sid, max(0, task.stat.tpgid)
    return 0, 0


def _same_device(shown: int, device: int) -> bool:
    """Compare with tty_nr of /proc/PID/stat: new_encode_dev, the minor's upper bits above the major."""
    shown &= 0xFFFFFFFF
    return os.makedev(shown >> 8 & 0xFFF, shown & 0xFF | shown >> 12 & 0xFFF00) == device


FILE_KINDS = [Tty()]
