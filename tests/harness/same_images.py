# SPDX-License-Identifier: Apache-2.0
"""Two dumps of one stopped tree, the first by Torpor, the second by CRIU, compared value by value (checkpoint_view.py).

`BY_NATURE` says what may differ, and why.  It is the whole list: anything else is a failure, and so is a value that
only one of them has.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from harness.checkpoint_view import AS_IN_FILE, View, view
from torpor.kernel import pagemap
from torpor.kernel.syscall import call
from torpor.resources.prctl import MEMBARRIER_GET_REGISTRATIONS, MEMBARRIER_REGISTER_GLOBAL

ABSENT = "(absent)"
Value = object
_DEFAULTS = (0, False, "", ABSENT)
_BETWEEN = 120 * 10**9  # ns; more does not pass between the two dumps
_RSEQ_BYTES = 32
_WORD = 4
_AGAIN = "Torpor begins a call again that only the stop has ended"
_NONE, _LOW = (1 << 64) - 1, (1 << 32) - 1
EINTR = (1 << 64) - 4


class Nature(NamedTuple):
    """Values that differ by nature: whose path matches all of `path`, and for which `check` holds, of Torpor's value
    and CRIU's."""

    why: str
    path: str
    check: Callable[[Value, Value], bool] = lambda one, other: True


def _is(one: Value, other: Value) -> Callable[[Value, Value], bool]:
    return lambda ours, theirs: (ours, theirs) == (one, other)


def _defaults(ours: Value, theirs: Value) -> bool:
    return ours in _DEFAULTS and theirs in _DEFAULTS


def _time(ours: Value, theirs: Value) -> bool:
    return isinstance(ours, int) and isinstance(theirs, int) and abs(ours - theirs) < _BETWEEN and bool(ours and theirs)


def _only_torpor(ours: Value, theirs: Value) -> bool:
    return theirs == ABSENT


def _overruns(ours: Value, theirs: Value) -> bool:
    """struct siginfo: si_signo, si_errno, si_code, padding; the timer's id, its overruns; the value, si_sys_private.
    SI_TIMER is -2.  The queue itself has 0 overruns; or 1, where the timer has fired between the two calls with which
    Torpor takes its signal and sets it anew (resources/overruns.py), so that it finds it pending."""
    if not isinstance(ours, str) or not isinstance(theirs, str) or ours[16:24] not in ("feffffff", "fffffffe"):
        return False
    same = all(ours[part] == theirs[part] for part in (slice(40), slice(48, 64), slice(72, None)))
    return same and theirs[40:48] in ("00000000", "00000001", "01000000") and ours[64:72] == "0" * 8


def _less(ours: Value, theirs: Value) -> int:
    return theirs - ours if isinstance(ours, int) and isinstance(theirs, int) else -1


def _interrupted(ours: Value, theirs: Value) -> bool:
    return (
        isinstance(ours, int)
        and isinstance(theirs, int)
        and (ours == _NONE or (0 < ours >> 32 < 1 << 16 and ours & _LOW == theirs))
    )


def _registrations_are_told() -> bool:
    """Whether this kernel says which membarrier(2) registrations a task has (Linux 6.3)."""
    try:
        return call("membarrier", MEMBARRIER_GET_REGISTRATIONS, 0, 0) >= 0
    except OSError:
        return False


def _zero_pages_are_many() -> bool:
    """Whether zero pages must be known by their frames (before Linux 6.7) and are several, of which CRIU knows one."""
    return os.uname().machine == "s390x" and not pagemap.abilities().scan


def _zero_page(ours: Value, theirs: Value) -> bool:
    zeros = isinstance(theirs, bytes) and not theirs.strip(b"\0")
    return ours == ABSENT and zeros and _zero_pages_are_many()


def _registered_in_any_case(ours: Value, theirs: Value) -> bool:
    return ours == MEMBARRIER_REGISTER_GLOBAL and theirs == ABSENT and not _registrations_are_told()


BY_NATURE = [
    Nature("Torpor's own images", r"torpor(-\w+)? .*", _only_torpor),
    Nature("the clocks run", r"timens-0 (monotonic|boottime) .*"),
    Nature("the clocks run", r"core-\d+ tc timers .* remaining|.* timerfd .* remaining", _time),
    Nature("a dump has a name of its own", r"inventory dump_criu_run_id"),
    Nature("said as it is / left out", r".*", _defaults),
    Nature("Torpor locks by nftables", r"inventory network_lock_method", _is(2, 0)),
    Nature("CRIU says that the kernel's own areas are not for core dumps", r"mm-\d+ \w+ (vvar|vdso) madv",
           _is(ABSENT, 1 << 16)),
    Nature("CRIU's first system call was written over the program's code", r"pagemap-\d+ \w+",
           _is(ABSENT, AS_IN_FILE)),
    Nature("s390x: CRIU saves zero pages on an old kernel", r"pagemap-\d+ \w+", _zero_page),
    Nature("the kernel writes the CPU's number into areas of rseq", r"rseq of \d+ (0|4|20|24)"),
    Nature("the number of the epoll instance, which is known anyway", r"fdinfo of .* epfd tfd \d+ id"),
    Nature("CRIU leaves a zombie's threads uninitialised", r"pstree \d+ threads 0"),
    Nature("CRIU leaves out a zombie's flags", r"core-\d+ tc flags", lambda ours, theirs: theirs == 0),
    Nature("an old kernel does not tell registrations for memory barriers: Torpor makes one for global ones",
           r"core-\d+ tc membarrier_registration_mask", _registered_in_any_case),
    Nature("a private area's file need not be open for writing", r"mm-\d+ \w+ private fdflags", _is(0, 2)),
    Nature("Torpor says of a shared segment that its file is open for writing", r"mm-\d+ \w+ shmid memfd flags",
           _is(2, 0)),
    Nature("CRIU reads memory after its parasite has run, which ends a critical section of rseq", r"rseq of \d+ (8|12)",
           lambda ours, theirs: theirs == bytes(_WORD)),
    Nature("CRIU's own trap makes an ignored SIGTRAP a fatal one", r"core-\d+ tc sigactions 4 sigaction", _is(1, 0)),
    Nature("a periodic timer whose signal waits is off, and Torpor says that it is due",
           r"core-\d+ tc timers .* remaining", _is(1000, 0)),
    Nature("CRIU leaves the kernel's unused control characters uninitialised",
           r"tty-info \d+ termios(_locked)? c_cc ([89]|1\d)", lambda ours, theirs: ours == 0),
    Nature("CRIU does not ask for a terminal's speed", r"tty-info \d+ termios c_[io]speed",
           lambda ours, theirs: theirs == 0),
    Nature("CRIU says nothing about pipes that its own dump has seen empty", r"pipes-data \d+ \w+", _only_torpor),
    Nature("x86: how a call was interrupted stands in the upper half", r"core-\d+ thread_info gpregs orig_ax",
           _interrupted),
    Nature(f"x86: {_AGAIN}", r"core-\d+ thread_info gpregs ip",
           lambda ours, theirs: _less(ours, theirs) == 2),
    Nature(f"x86: {_AGAIN}", r"core-\d+ thread_info gpregs ax",
           lambda ours, theirs: theirs == EINTR and ours in range(1024)),
    Nature(f"aarch64: {_AGAIN}", r"core-\d+ ti_aarch64 gpregs regs 0", lambda ours, theirs: theirs == EINTR),
    Nature(f"aarch64: {_AGAIN}", r"core-\d+ ti_aarch64 gpregs pc", lambda ours, theirs: _less(ours, theirs) == 4),
    Nature(f"s390x: {_AGAIN}", r"core-\d+ ti_s390 gpregs gprs 2", lambda ours, theirs: theirs == EINTR),
    Nature(f"s390x: {_AGAIN}", r"core-\d+ ti_s390 gpregs psw_addr", lambda ours, theirs: _less(ours, theirs) == 2),
    Nature("s390x: CRIU leaves out the first argument of an interrupted call", r"core-\d+ ti_s390 gpregs orig_gpr2",
           lambda ours, theirs: theirs == 0),
    Nature("s390x: no call is under way any more in Torpor's images", r"core-\d+ ti_s390 gpregs system_call",
           lambda ours, theirs: ours == 0),
    # Errors are positive after `sc`, negative after `scv`.
    Nature(f"ppc64le: {_AGAIN}", r"core-\d+ ti_ppc64 gpregs gpr 3", lambda ours, theirs: theirs in (4, EINTR)),
    Nature(f"ppc64le: {_AGAIN}", r"core-\d+ ti_ppc64 gpregs nip", lambda ours, theirs: _less(ours, theirs) == 4),
    Nature("CRIU saves zeros after the end of the auxiliary vector", r"mm-\d+ mm_saved_auxv number",
           lambda ours, theirs: _less(ours, theirs) > 0),
    Nature("CRIU leaves out how often a timer has overrun, and keeps what is the kernel's own",
           r"core-\d+ .* siginfo", _overruns),
]  # fmt: skip


class Compared(NamedTuple):
    """How many values there are, how often each reason held, and what nothing excuses."""

    values: int
    by_nature: dict[str, int]
    wrong: list[str]

    def __str__(self) -> str:
        reasons = "; ".join(f"{count} × {why}" for why, count in sorted(self.by_nature.items()))
        return f"{self.values} values, {sum(self.by_nature.values())} differ by nature: {reasons or '-'}"


def compare(torpor: Path, criu: Path) -> Compared:
    """Raises ImageError."""
    ours, theirs = view(torpor), view(criu)
    found = Compared(len(ours.keys() | theirs.keys()), {}, [])
    for path, one, other in _different(ours, theirs):
        for nature in BY_NATURE:
            if re.fullmatch(nature.path, path) and nature.check(one, other):
                found.by_nature[nature.why] = found.by_nature.get(nature.why, 0) + 1
                break
        else:
            found.wrong.append(f"{path} = {_shown(one)} / {_shown(other)}")
    return found


def _shown(value: Value) -> Value:
    return f"{len(value)} bytes" if isinstance(value, bytes) and len(value) > 8 else value


def _different(ours: View, theirs: View) -> Iterator[tuple[str, Value, Value]]:
    """Values that are not the same.  Of a page that both have, the words that are not."""
    rseqs = {
        value: path.split()[0].removeprefix("core-")
        for path, value in ours.items()
        if path.endswith(" rseq_entry rseq_abi_pointer")
    }
    for path in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(path, ABSENT), theirs.get(path, ABSENT)
        if one == other:
            continue
        if not (isinstance(one, bytes) and isinstance(other, bytes) and len(one) == len(other)):
            yield path, one, other
            continue
        for at in range(0, len(one), _WORD):
            if one[at : at + _WORD] != other[at : at + _WORD]:
                yield _word(path, at, rseqs), one[at : at + _WORD], other[at : at + _WORD]


def _word(path: str, at: int, rseqs: dict[object, str]) -> str:
    address = int(path.split()[-1], 16) + at
    for start, tid in rseqs.items():
        if path.startswith("pagemap") and isinstance(start, int) and start <= address < start + _RSEQ_BYTES:
            return f"rseq of {tid} {address - start}"
    return f"{path.rpartition(' ')[0]} {address:#x}"
