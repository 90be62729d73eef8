# SPDX-License-Identifier: Apache-2.0
"""Files that the tree can write to: what is in them has to be on the disk before the checkpoint is complete.

A restored program remembers what it has written.  If the power fails after the dump, a file that was only in memory is
as it was before, or is not there at all: the program would go on with another file than it knows, or be refused because
of it.  So every regular file that is open for writing, or mapped shared where that can be written, is fsync'd together
with the images, once, and with it the directory that it has its name in (it may be new there).  Without power failures
nobody needs this, so it is done as late as possible: where the tree goes on, after it has been let go.

Files are opened anew for it, through /proc: fsync(2) tells each open file description once that a write has failed, and
by the tree's own it would be Torpor that hears of it, and not the program.
"""

import errno
import os
import stat as st

from torpor.errors import DumpFailed
from torpor.kernel import file_facts
from torpor.resources import in_memory
from torpor.typed import TYPE_CHECKING, Callable, NamedTuple

if TYPE_CHECKING:
    from torpor.resources.context import Dump

_CANNOT = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})  # there is nothing to be waited for
_KEY = "files written"


class _Written(NamedTuple):
    subject: str
    path: str  # in /proc
    name: str  # "": it has another one, which nobody knows
    there: tuple[int, int]  # device and inode


def note(dump: "Dump", subject: str, path: str, name: str, stat: os.stat_result, flags: int) -> None:
    """A named file that was opened with these flags; frozen, so no more is done than to remember it."""
    if flags & os.O_ACCMODE in (os.O_WRONLY, os.O_RDWR) and st.S_ISREG(stat.st_mode) and not flags & os.O_PATH:
        there = stat.st_dev, stat.st_ino
        dump.setdefault(_KEY, {}).setdefault(there, _Written(subject, path, name, there))


def to_bring(dump: "Dump") -> list[Callable[[], None]]:
    """What is to be done, in any order and by any thread, to have it all on the disk.  Each may raise DumpFailed."""
    from torpor.kernel.mounts import WITHOUT_DISK

    jobs: list[Callable[[], None]] = []
    directories: dict[str, None] = {}
    for file in dump.state.get(_KEY, {}).values():
        device = file.there[0]
        if os.major(device) or in_memory.file_system(dump, device) not in WITHOUT_DISK:
            jobs.append(lambda file=file: _bring(dump, file))  # type: ignore[misc]
            if file.name:
                directories[os.path.dirname(file.name)] = None
    jobs += [lambda directory=directory: _bring_directory(directory) for directory in directories]  # type: ignore[misc]
    return jobs


def _bring(dump: "Dump", file: _Written) -> None:
    for path in (file.path, file.name):
        try:
            # Held first, and looked at: a tree that goes on may have something else there, which is not to be opened.
            held = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            stat = file_facts.fstat(held)
            if (stat.st_dev, stat.st_ino) == file.there:
                _sync_held(dump, file, held)
                return
        finally:
            os.close(held)
    # It was closed since, and has lost its name: nothing will be restored that has it.


def _sync_held(dump: "Dump", file: _Written, held: int) -> None:
    for access in (os.O_RDONLY, os.O_WRONLY):  # of some its owner may do only one of the two
        try:
            fd = os.open(f"/proc/self/fd/{held}", access | os.O_CLOEXEC)
        except PermissionError:
            continue
        except OSError as error:
            raise _failed(file, error) from None
        break
    else:
        dump.warn(f"{file.subject} ({file.name}): no permission to bring what was written to it to the disk: it may be "
                  "lost if the power fails")  # fmt: skip
        return
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise _failed(file, error) from None
    finally:
        os.close(fd)


def _failed(file: _Written, error: OSError) -> DumpFailed:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return DumpFailed(
        f"{file.subject} ({file.name or 'without a name'})",
        f"what was written to this file does not get to the disk: {os.strerror(error.errno or 0)}",
        "make room on its file system" if full else "see what the kernel says of that disk (dmesg)",
        code="disk-full" if full else "disk",
    )


def _bring_directory(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return  # nobody may read it, or it has another name by now
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _CANNOT:
            remedy = "see what the kernel says of that disk (dmesg)"
            why = f"names in it do not get to the disk: {os.strerror(error.errno or 0)}"
            raise DumpFailed(f"the directory {path}", why, remedy, code="disk") from None
    finally:
        os.close(fd)
