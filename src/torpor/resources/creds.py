# SPDX-License-Identifier: Apache-2.0
"""Credentials: user and group ids, groups, the five capability sets, securebits, no_new_privs.  Of each thread.

All but securebits stand in /proc/PID/task/TID/status.  At restore they are given up in this order, because every step
needs a right that a later one takes away:

1. In the leader, before there are threads, which inherit it: groups and ids, with SECBIT_NO_SETUID_FIXUP set so that
   changing ids leaves the capabilities alone; then the inheritable set, which must lie within the bounding set; then
   the bounding set, one call for each capability.
2. In each thread: what is its own of the above, ambient capabilities, the final securebits (which may be locked), the
   final capabilities, no_new_privs.

The calls are raw, so they are about one thread; the C library would make all threads follow.  A change of effective
ids resets the process's dumpable flag and the thread's parent-death signal: prctl.py comes after.
"""

import struct

from torpor.engine.program import Program
from torpor.errors import ImageError
from torpor.images.frozen import freeze
from torpor.images.schema.creds import CredsEntry
from torpor.resources import lacking, own
from torpor.resources.base import Attribute
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.engine.program import Result
    from torpor.engine.tracee import Tracee
    from torpor.images.schema.core import CoreEntry
    from torpor.kernel import status
    from torpor.resources.context import DumpTask, Restore, RestoreTask

PR_CAPBSET_DROP, PR_GET_SECUREBITS, PR_SET_SECUREBITS = 24, 27, 28
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_CLEAR_ALL = 47, 2, 4
SECBIT_NO_SETUID_FIXUP, SECBIT_NO_CAP_AMBIENT_RAISE = 1 << 2, 1 << 6
SECURE_LOCKS = 0xAA
OLD_SECUREBITS = 0xFF  # 6.14 brought more
CAP_VERSION = 0x20080522
MAX_GROUPS = 65536


def _words(mask: int) -> list[int]:
    return [mask & 0xFFFFFFFF, mask >> 32]


class _State:
    """What a thread's credentials are, step by step."""

    __slots__ = (
        "ambient", "bounding", "effective", "gids", "groups", "inheritable", "no_new_privs", "permitted", "securebits",
        "uids",
    )  # fmt: skip

    def __init__(self) -> None:
        ours = own.facts()
        creds = ours.credentials
        self.uids, self.gids, self.groups = creds.uids, creds.gids, creds.groups
        self.inheritable, self.permitted, self.effective = creds.inheritable, creds.permitted, creds.effective
        self.bounding, self.ambient = creds.bounding, creds.ambient
        self.securebits, self.no_new_privs = ours.securebits, creds.no_new_privs

    def copy(self) -> "_State":
        other = _State.__new__(_State)
        for name in self.__slots__:
            setattr(other, name, getattr(self, name))
        return other

    # Each appends calls to a program, if there is anything to change.
    def set_securebits(self, program: Program, value: int) -> None:
        if value != self.securebits:
            program.call("prctl", PR_SET_SECUREBITS, value, 0, 0, 0)
            self.securebits = value

    def set_ids(self, program: Program, entry: CredsEntry) -> None:
        groups = tuple(entry.groups)
        if groups != self.groups:
            data = program.put(struct.pack(f"={len(groups)}I", *groups)) if groups else 0
            program.call("setgroups", len(groups), data)
            self.groups = groups
        gids = entry.gid, entry.egid, entry.sgid, entry.fsgid
        uids = entry.uid, entry.euid, entry.suid, entry.fsuid
        if uids == self.uids and gids == self.gids:
            return
        self.set_securebits(program, self.securebits | SECBIT_NO_SETUID_FIXUP)
        if gids != self.gids:
            program.call("setresgid", *gids[:3])
            if gids[3] != gids[1]:
                program.call("setfsgid", gids[3])
        if uids != self.uids:
            program.call("setresuid", *uids[:3])
            if uids[3] != uids[1]:
                program.call("setfsuid", uids[3])
        self.uids, self.gids = uids, gids

    def set_caps(self, program: Program, effective: int, permitted: int, inheritable: int) -> None:
        three = effective, permitted, inheritable
        if three == (self.effective, self.permitted, self.inheritable):
            return
        header = program.put(struct.pack("=Ii", CAP_VERSION, 0))
        low, high = [x & 0xFFFFFFFF for x in three], [x >> 32 for x in three]
        program.call("capset", header, program.put(struct.pack("=6I", *low, *high)))
        self.effective, self.permitted, self.inheritable = three
        self.ambient &= permitted & inheritable

    def bound(self, program: Program, bounding: int) -> None:
        for number in _bits(self.bounding & ~bounding):
            program.call("prctl", PR_CAPBSET_DROP, number, 0, 0, 0)
        self.bounding &= bounding

    def set_ambient(self, program: Program, ambient: int) -> None:
        if self.ambient & ~ambient:
            program.call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
            self.ambient = 0
        for number in _bits(ambient & ~self.ambient):
            program.call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0)
        self.ambient = ambient


class Credentials(Attribute):
    covers = frozenset({"thread:creds"})

    def ask_thread(self, task: "DumpTask", program: Program) -> "Result":
        return program.call("prctl", PR_GET_SECUREBITS, 0, 0, 0, 0)

    def save_thread(self, task: "DumpTask", thread: "Tracee", answer: "Result", core: "CoreEntry") -> None:
        creds = task.thread_statuses[thread.tid].credentials
        assert core.thread_core is not None
        key = creds, answer.value
        if key not in _saved:
            _saved[key] = _entry_of(creds, answer.value)
        core.thread_core.creds = _saved[key]

    def check(self, task: "RestoreTask", restore: "Restore") -> None:
        for tid, core in task.cores.items():
            entry = _entry(core)
            if entry is not None:
                _check_shape(tid, entry)
                self._check_rights(task, tid, entry, restore)

    def _check_rights(self, task: "RestoreTask", tid: int, entry: CredsEntry, restore: "Restore") -> None:
        ours = own.facts()
        have = _State()
        who = f"thread {tid}" if len(task.threads) > 1 else "it"
        for wanted, got, what in (
            (_mask(entry.cap_prm), have.permitted, "has"),
            (_mask(entry.cap_bnd), have.bounding, "may gain (by its bounding set)"),
            (_mask(entry.cap_inh), have.inheritable | have.bounding, "may pass on (by its inheritable set)"),
        ):
            if wanted & ~got:
                names = own.capability_names(wanted & ~got)
                raise task.refusal(
                    f"{who} {what} {names}, which Torpor itself lacks and cannot give",
                    f"run Torpor with {names}",
                    code="no-rights",
                )
        uids, gids = (entry.uid, entry.euid, entry.suid, entry.fsuid), (entry.gid, entry.egid, entry.sgid, entry.fsgid)
        needed = 0
        if uids != have.uids:
            needed |= 1 << own.CAP_SETUID | 1 << own.CAP_SETPCAP
        if gids != have.gids:
            needed |= 1 << own.CAP_SETGID | 1 << own.CAP_SETPCAP
        if tuple(entry.groups) != have.groups:
            needed |= 1 << own.CAP_SETGID
        if _mask(entry.cap_bnd) != have.bounding or entry.secbits != have.securebits:
            needed |= 1 << own.CAP_SETPCAP
        if needed & ~have.effective:
            names = own.capability_names(needed & ~have.effective)
            raise task.refusal(
                f"bringing back its user, groups and capabilities needs {names}, which Torpor lacks",
                f"run Torpor as root, or with {names}",
                code="no-rights",
            )
        locked = (ours.securebits & SECURE_LOCKS) >> 1
        if entry.secbits != have.securebits and (
            locked & (entry.secbits ^ ours.securebits) or ours.securebits & SECURE_LOCKS & ~entry.secbits
            or ((uids, gids) != (have.uids, have.gids) and locked & SECBIT_NO_SETUID_FIXUP & ~ours.securebits)
        ):  # fmt: skip
            raise task.refusal("Torpor's own securebits are locked and differ", "run Torpor outside of that jail")
        if entry.secbits & ~OLD_SECUREBITS and lacking.error_in_child(
            restore, "prctl", PR_SET_SECUREBITS, entry.secbits, 0, 0, 0
        ):
            has = f"{who} has securebits that are not in every kernel ({entry.secbits:#x})"
            raise lacking.refusal(task.subject, has)
        if have.no_new_privs and not entry.no_new_privs:
            raise task.refusal("Torpor itself runs with no_new_privs, which cannot be taken off", "run it without")

    def place(self, task: "RestoreTask", program: Program) -> None:
        """What all threads have in common, while there is only one."""
        _common(task, program)

    def place_thread(self, task: "RestoreTask", tid: int, core: "CoreEntry", program: Program) -> None:
        entry = _entry(core)
        if entry is None:
            return
        state = self._start(task)
        state.set_ids(program, entry)
        state.bound(program, _mask(entry.cap_bnd))
        ambient = _mask(entry.cap_amb)
        if ambient & ~state.ambient:
            state.set_securebits(program, state.securebits & ~SECBIT_NO_CAP_AMBIENT_RAISE)
        state.set_ambient(program, ambient)
        state.set_securebits(program, entry.secbits)
        state.set_caps(program, _mask(entry.cap_eff), _mask(entry.cap_prm), _mask(entry.cap_inh))
        if entry.no_new_privs and not state.no_new_privs:
            program.call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)

    def _start(self, task: "RestoreTask") -> _State:
        """What a thread starts as; worked out once for each process."""
        if task.credentials is None:
            task.credentials = _common(task, Program())
        state: _State = task.credentials
        return state.copy()


def _common(task: "RestoreTask", program: Program) -> _State:
    """Append what is done before there are threads; returns what every thread starts as."""
    state = _State()
    entries = [entry for core in task.cores.values() if (entry := _entry(core)) is not None]
    if not entries:
        return state
    state.set_ids(program, _entry(task.core) or entries[0])
    inheritable = bounding = 0
    for entry in entries:
        inheritable |= _mask(entry.cap_inh)
        bounding |= _mask(entry.cap_bnd)
    state.set_caps(program, state.effective, state.permitted, inheritable)
    state.bound(program, bounding)
    return state


_saved: "dict[tuple[status.Credentials, int], CredsEntry]" = {}  # most threads of a tree have the same


def _entry_of(creds: "status.Credentials", securebits: int) -> CredsEntry:
    entry = CredsEntry(
        uid=creds.uids[0], euid=creds.uids[1], suid=creds.uids[2], fsuid=creds.uids[3],
        gid=creds.gids[0], egid=creds.gids[1], sgid=creds.gids[2], fsgid=creds.gids[3],
        groups=list(creds.groups),
        cap_inh=_words(creds.inheritable), cap_prm=_words(creds.permitted), cap_eff=_words(creds.effective),
        cap_bnd=_words(creds.bounding), cap_amb=_words(creds.ambient),
        secbits=securebits,
        no_new_privs=1 if creds.no_new_privs else None,
    )  # fmt: skip
    freeze(entry)
    return entry


def _entry(core: "CoreEntry") -> CredsEntry | None:
    return core.thread_core.creds if core.thread_core is not None else None


def _mask(words: list[int]) -> int:
    mask = 0
    for i, word in enumerate(words[:2]):
        mask |= word << 32 * i
    return mask


def _bits(mask: int) -> list[int]:
    return [n for n in range(64) if mask >> n & 1]


def _check_shape(tid: int, entry: CredsEntry) -> None:
    def mangled(why: str) -> ImageError:
        return ImageError(f"the core image of thread {tid} is mangled", why)

    if any(len(words) > 2 for words in (entry.cap_inh, entry.cap_prm, entry.cap_eff, entry.cap_bnd, entry.cap_amb)):
        raise mangled("a capability set has more than 64 bits")
    if len(entry.groups) > MAX_GROUPS:
        raise mangled(f"it is in {len(entry.groups)} groups")
    if _mask(entry.cap_eff) & ~_mask(entry.cap_prm):
        raise mangled("capabilities are effective that are not permitted")
    if _mask(entry.cap_amb) & ~(_mask(entry.cap_prm) & _mask(entry.cap_inh)):
        raise mangled("capabilities are ambient that are not permitted or not inheritable")


ATTRIBUTES = [Credentials()]
