# SPDX-License-Identifier: Apache-2.0
"""timerfd: a timer that is read, timerfd_create(2).

Surprising facts:

- A periodic timer that has expired stands still until somebody reads it or asks for its time: fdinfo then shows one
  tick and no time left, whatever has passed.  timerfd_gettime(2) brings it up to date, and changes nothing that a
  program could see; so it is called before fdinfo is read.
- What a read would give (`ticks`) is set by an ioctl, TFD_IOC_SET_TICKS, after the timer was armed: arming clears it.
- The image holds the time *left*.  For an absolute timer on a wall clock the deadline is the point, however long the
  images lay about, so it is stored besides (torpor-files.img).  An absolute timer on any other clock gets its time left
  again, counted from now, and keeps its flag.
- CRIU stores a periodic timer that has expired as it finds it, with no time left: that is not a disarmed one.
"""

import ctypes
import fcntl
import os
import struct
import time

from torpor.errors import ImageError, KernelError
from torpor.images.schema.fdinfo import FileEntry
from torpor.images.schema.timerfd import TimerfdEntry
from torpor.kernel import fdinfo
from torpor.kernel.ioctls import iow
from torpor.kernel.syscall import call
from torpor.resources import lacking
from torpor.resources.description import Described, extra, extras, save_owner, set_flags
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.resources.context import Dump, Restore, SeenFile

TIMERFD = 17  # FdTypes
TFD_CLOEXEC = 0o2000000
TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET = 1, 2
TFD_IOC_SET_TICKS = iow("T", 0, 8)
CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM = 0, 1, 7, 8, 9
CLOCKS = frozenset({CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM})
WALL = frozenset({CLOCK_REALTIME, CLOCK_REALTIME_ALARM})
_BASE = {CLOCK_REALTIME_ALARM: CLOCK_REALTIME, CLOCK_BOOTTIME_ALARM: CLOCK_BOOTTIME}  # readable under these numbers
SECOND = 1_000_000_000
_LONGEST = 1 << 33  # seconds; beyond it the kernel's 64 bits of nanoseconds end

_SPEC = struct.Struct("4q")  # struct itimerspec: interval, value
_TICKS = struct.Struct("Q")


def _new(clock: int) -> int:
    return call("timerfd_create", clock, TFD_CLOEXEC)


def _now(clock: int) -> int:
    return time.clock_gettime_ns(_BASE.get(clock, clock))


class Timerfd(Described):
    covers = frozenset({"fd:timerfd"})
    type = TIMERFD
    field = "tfd"

    def examine(self, seen: "SeenFile", dump: "Dump") -> None:
        if seen.info.timerfd is None:
            raise seen.refusal("its timer is not shown in fdinfo", "use a kernel of 3.17 or newer")

    def save(self, seen: "SeenFile", dump: "Dump") -> FileEntry:
        buffer = ctypes.create_string_buffer(_SPEC.size)
        call("timerfd_gettime", seen.fd, ctypes.addressof(buffer))
        timer = fdinfo.read("self", seen.fd).timerfd
        assert timer is not None  # examine
        left = timer.value[0] * SECOND + timer.value[1]
        if timer.settime_flags & TFD_TIMER_ABSTIME and timer.clockid in WALL and left:
            own = extra(dump, seen.id)
            own.deadline_sec, own.deadline_nsec = divmod(_now(timer.clockid) + left, SECOND)
        tfd = TimerfdEntry(
            id=seen.id,
            flags=seen.info.status_flags,
            fown=save_owner(seen.fd),
            clockid=timer.clockid,
            ticks=timer.ticks,
            settime_flags=timer.settime_flags,
            vsec=timer.value[0],
            vnsec=timer.value[1],
            isec=timer.interval[0],
            insec=timer.interval[1],
        )
        return FileEntry(type=TIMERFD, id=seen.id, tfd=tfd)

    def check(self, entry: FileEntry, restore: "Restore") -> None:
        tfd = entry.tfd
        what = f"files.img, timerfd {entry.id}"
        if tfd is None:
            raise ImageError(what, "its entry is missing")
        if tfd.clockid not in CLOCKS:
            raise ImageError(what, f"unknown clock {tfd.clockid}")
        if max(tfd.vnsec, tfd.insec) >= SECOND or max(tfd.vsec, tfd.isec) >= _LONGEST:
            raise ImageError(what, "impossible time")
        if tfd.clockid in _BASE:  # takes rights
            error = lacking.error_of_trying(restore, ("timerfd", tfd.clockid), lambda: os.close(_new(tfd.clockid)))
            if error:
                has = "it is on an alarm clock, which wakes the machine"
                raise lacking.refused(lacking.file_subject(restore, entry.id, "timerfd"), has, error)
        own = extras(restore).get(entry.id)
        if own and own.deadline_sec is not None and not 0 <= own.deadline_sec < _LONGEST:
            raise ImageError(f"torpor-files.img, timerfd {entry.id}", "impossible time")

    def make(self, entry: FileEntry, restore: "Restore") -> int:
        assert entry.tfd is not None  # check
        try:
            fd = _new(entry.tfd.clockid)
        except OSError as error:
            raise KernelError(f"cannot make a timer on clock {entry.tfd.clockid}", error) from error
        set_flags(fd, entry.tfd.flags)
        return fd

    def last(self, entry: FileEntry, fd: int, restore: "Restore") -> None:
        tfd = entry.tfd
        assert tfd is not None  # check
        super().last(entry, fd, restore)
        interval = tfd.isec * SECOND + tfd.insec
        value = tfd.vsec * SECOND + tfd.vnsec
        if not value and tfd.ticks:
            value = interval  # CRIU's image of an expired periodic timer; a single one has no interval
        flags = tfd.settime_flags & (TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET)
        if value and flags & TFD_TIMER_ABSTIME:
            own = extras(restore).get(entry.id)
            if own and own.deadline_sec is not None:
                value = own.deadline_sec * SECOND + (own.deadline_nsec or 0)
            else:
                value += _now(tfd.clockid)
        spec = ctypes.create_string_buffer(_SPEC.pack(*divmod(interval, SECOND), *divmod(value, SECOND)))
        call("timerfd_settime", fd, flags, ctypes.addressof(spec), 0)
        if tfd.ticks:
            try:
                fcntl.ioctl(fd, TFD_IOC_SET_TICKS, _TICKS.pack(tfd.ticks))
            except OSError as error:
                raise KernelError(
                    "cannot set the ticks of a timerfd", error, "use a kernel with CONFIG_CHECKPOINT_RESTORE"
                ) from error


FILE_KINDS = [Timerfd()]
