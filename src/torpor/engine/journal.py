# SPDX-License-Identifier: Apache-2.0
"""The journal: what the engine has changed in which task, written down before it does it.

It lies in memory that the engine shares with its guardian, which reads it when the engine has died.  Writing costs no
system call.  A record counts once the length in the first word includes it, so one that was cut short does not.  Where
nobody keeps a journal (a restore, whose tasks die with the engine; torpor.infect) `note` does nothing.

Records, in the order in which they are written; a task's TID first, but for areas and files, which are a process's:

    seizing   a process, PID alone: its threads are about to be seized and stopped
    call      in which call a thread was seen before it was stopped (`kernel.inside`), where the architecture asks
    halted    job control has stopped that process already
    touched   registers and signal mask as they are to be put back; from here on the thread may run what is not its own
    inside    the thread runs the executor's loop, which takes it home by itself
    left      no more: it is stepped again
    home      registers and mask are put back
    mapping   an area of that size is about to be mapped by a stepped call
    area      it is mapped there;  gone: it is unmapped
    control   the engine's descriptor of a socket to that thread's executor, and the number of the other end there
    held      another descriptor of the engine's, whose end would send threads home
    pair      where in memory the executor writes the numbers of its socket pair, which nobody has fetched yet
    stopped   somebody else has sent the process SIGSTOP meanwhile
    mapped    where in memory a program leaves the address of an area of that size, which it maps
    ours      descriptors of these devices and inodes are ours, not the process's
"""

import marshal  # there already; even _pickle takes 2 ms to import
import mmap
import struct

from torpor.kernel import file_facts
from torpor.typed import Any, Iterator

SIZE = 1 << 26  # of address space; memory is taken as it fills: 400 bytes a thread
_LENGTH = struct.Struct("=Q")

_memory: mmap.mmap | None = None
_end = _LENGTH.size


def open_journal() -> None:
    """To be called before the guardian is forked."""
    global _memory, _end
    try:
        _memory = mmap.mmap(-1, SIZE)
    except OSError:  # RLIMIT_AS
        _memory = mmap.mmap(-1, SIZE >> 6)
    _end = _LENGTH.size


def close_journal() -> None:
    global _memory
    if _memory is not None:
        _memory.close()
    _memory = None


def set_aside() -> "tuple[mmap.mmap | None, int]":
    """From here on a journal is kept that nobody reads, until this one is taken up again."""
    global _memory, _end
    kept = _memory, _end
    if _memory is not None:
        _memory = mmap.mmap(-1, SIZE >> 10)
        _end = _LENGTH.size
    return kept


def take_up(kept: "tuple[mmap.mmap | None, int]") -> None:
    global _memory, _end
    close_journal()
    _memory, _end = kept


def note(kind: str, *facts: Any) -> None:
    """Write a record."""
    global _end
    if _memory is None:
        return
    data = marshal.dumps((kind, *facts))
    data = _LENGTH.pack(len(data)) + data
    end = _end + len(data)
    if end > len(_memory):
        return  # tasks then go home by themselves, as without a guardian
    _memory[_end:end] = data
    _end = end
    _LENGTH.pack_into(_memory, 0, end)


def note_ours(pid: int, *fds: int) -> None:
    """Write down that these descriptors of the process are ours."""
    if _memory is None:
        return
    facts = [file_facts.stat(f"/proc/{pid}/fd/{fd}") for fd in fds]
    note("ours", pid, [(one.st_dev, one.st_ino) for one in facts])  # in one record: the pair is known, or it is not


def records() -> Iterator[tuple[Any, ...]]:
    """All that was written."""
    assert _memory is not None
    at, end = _LENGTH.size, _LENGTH.unpack_from(_memory)[0]
    while at < end:
        data = at + _LENGTH.size
        at = data + _LENGTH.unpack_from(_memory, at)[0]
        yield marshal.loads(_memory[data:at])
