# SPDX-License-Identifier: Apache-2.0
"""/proc/PID/status as typed facts (proc_pid_status(5)): ids, credentials, signal masks.  Pure.

- `status` of a TID is that thread's: its masks, its capabilities.  SigPnd is the thread's, ShdPnd the process's.
- Newline and backslash in the name are escaped here, and only here.
- The IDs of NStgid and its like are told from the PID namespace of the /proc mount inwards, the last is the task's own.
- A zombie has no umask, no Vm lines, no capabilities lost: everything else is still there.
"""

from torpor.kernel.procfs import ParseError
from torpor.typed import Any, NamedTuple


class Credentials(NamedTuple):
    """struct cred as `status` shows it, and what goes with it.  Threads of one process may differ (never securebits:
    those only prctl inside the thread tells)."""

    uids: tuple[int, int, int, int]  # real, effective, saved, file system
    gids: tuple[int, int, int, int]
    groups: tuple[int, ...]
    inheritable: int
    permitted: int
    effective: int
    bounding: int
    ambient: int
    no_new_privs: int
    seccomp: int | None  # 0 none, 1 strict, 2 filter; None: this kernel has no seccomp
    seccomp_filters: int
    # Of stores, of indirect branches: PR_SET_SPECULATION_CTRL in words.
    speculation: tuple[bytes | None, bytes | None] = None, None


class ThreadStatus(NamedTuple):
    """What differs from thread to thread in /proc/PID/task/TID/status."""

    name: bytes
    state: str
    tid: int
    ns_tids: tuple[int, ...]  # in each nested PID namespace, outermost (that of the /proc mount) first
    pending: int  # SigPnd
    blocked: int
    credentials: Credentials


class Status(NamedTuple):
    """/proc/PID/status (proc_pid_status(5)), what a checkpoint needs of it.  None: this kernel does not say."""

    name: bytes
    umask: int | None  # None also for a zombie
    state: str
    tgid: int
    pid: int
    ppid: int
    tracer: int
    credentials: Credentials
    ns_tgids: tuple[int, ...]  # as ThreadStatus.ns_tids
    ns_tids: tuple[int, ...]
    ns_pgids: tuple[int, ...]
    ns_sids: tuple[int, ...]
    kernel_thread: bool
    threads: int
    vm_locked: int | None  # KiB; None: no address space
    vm_rss: int | None
    signals_queued: int
    pending: int  # SigPnd: the thread's
    shared_pending: int  # ShdPnd: the process's
    blocked: int
    ignored: int
    caught: int
    thp_enabled: int | None
    untag_mask: int | None
    coredumping: int
    speculation_store_bypass: str
    speculation_indirect_branch: str
    shadow_stack: str | None  # x86_Thread_features: "shstk wrss"
    other: dict[bytes, bytes]  # every line, for those who need more


Lines = dict[bytes, bytes]


def _lines(data: bytes) -> Lines:
    lines: Lines = {}
    for line in data.split(b"\n"):
        key, colon, value = line.partition(b":")
        if colon:
            lines[key] = value[1:]  # one tab; the name may end in blanks
    return lines


def _numbers(value: bytes) -> tuple[int, ...]:
    return tuple(map(int, value.split()))


def _four(value: bytes) -> tuple[int, int, int, int]:
    real, effective, saved, fs = _numbers(value)
    return real, effective, saved, fs


def _maybe(lines: Lines, key: bytes, base: int = 10) -> int | None:
    value = lines.get(key)
    return None if value is None else int(value.split()[0], base)


def _credentials(lines: Lines) -> Credentials:
    return Credentials(
        uids=_four(lines[b"Uid"]),
        gids=_four(lines[b"Gid"]),
        groups=_numbers(lines[b"Groups"]),
        inheritable=int(lines[b"CapInh"], 16),
        permitted=int(lines[b"CapPrm"], 16),
        effective=int(lines[b"CapEff"], 16),
        bounding=int(lines[b"CapBnd"], 16),
        ambient=int(lines.get(b"CapAmb", b"0"), 16),
        no_new_privs=_maybe(lines, b"NoNewPrivs") or 0,
        seccomp=_maybe(lines, b"Seccomp"),
        seccomp_filters=_maybe(lines, b"Seccomp_filters") or 0,
        speculation=(lines.get(b"Speculation_Store_Bypass"), lines.get(b"SpeculationIndirectBranch")),
    )


def parse_status(data: bytes, thread: ThreadStatus | None = None) -> Status:
    """`thread`: what `parse_thread_status` has made of the same."""
    try:
        lines = _lines(data)
        get = lines.get
        features = get(b"x86_Thread_features")
        return Status(
            name=unescape(lines[b"Name"]),
            umask=_maybe(lines, b"Umask", 8),
            state=lines[b"State"].lstrip()[:1].decode("ascii"),
            tgid=int(lines[b"Tgid"]),
            pid=int(lines[b"Pid"]),
            ppid=int(lines[b"PPid"]),
            tracer=int(lines[b"TracerPid"]),
            credentials=_credentials(lines) if thread is None else thread.credentials,
            ns_tgids=_numbers(get(b"NStgid", lines[b"Tgid"])),
            ns_tids=_numbers(get(b"NSpid", lines[b"Pid"])),
            ns_pgids=_numbers(get(b"NSpgid", b"")),
            ns_sids=_numbers(get(b"NSsid", b"")),
            kernel_thread=bool(_maybe(lines, b"Kthread")),
            threads=int(lines[b"Threads"]),
            vm_locked=_maybe(lines, b"VmLck"),
            vm_rss=_maybe(lines, b"VmRSS"),
            signals_queued=int(get(b"SigQ", b"0/0").partition(b"/")[0]),
            pending=int(lines[b"SigPnd"], 16),
            shared_pending=int(lines[b"ShdPnd"], 16),
            blocked=int(lines[b"SigBlk"], 16),
            ignored=int(lines[b"SigIgn"], 16),
            caught=int(lines[b"SigCgt"], 16),
            thp_enabled=_maybe(lines, b"THP_enabled"),
            untag_mask=_maybe(lines, b"untag_mask", 16),
            coredumping=_maybe(lines, b"CoreDumping") or 0,
            speculation_store_bypass=get(b"Speculation_Store_Bypass", b"").strip().decode("ascii"),
            speculation_indirect_branch=get(b"SpeculationIndirectBranch", b"").strip().decode("ascii"),
            shadow_stack=None if features is None else features.strip().decode("ascii"),
            other=lines,
        )
    except (ValueError, KeyError, IndexError):
        raise ParseError("status", data) from None


# A thousand threads have the same credentials but for a few: the two stretches of text that hold them are the key.
_known: dict[tuple[bytes, bytes], Credentials] = {}
_THREAD = (
    rb"Name:\t(.*)\n(?:Umask:.*\n)?State:\t(\w).*\n(?:[^U].*\n)*?Pid:\t(\d+)\n(?:[^U].*\n)*"
    rb"(Uid:.*\nGid:.*\n(?:[^N].*\n)*?Groups:.*\n)NStgid:.*\nNSpid:\t(.*)\n(?:[^S].*\n)*"
    rb"SigQ:.*\nSigPnd:\t(\w+)\nShdPnd:.*\nSigBlk:\t(\w+)\n(?:Sig.*\n)*(CapInh:.*\nCapPrm:.*\nCapEff:.*\nCapBnd:(?:.*\n)*?)Cpus_allowed:"
)
FEW = 20  # as long as this takes the pattern's compilation
_parsed = 0
_pattern: Any = None


def pattern() -> Any:
    """The compiled pattern of the fast way."""
    global _pattern
    if _pattern is None:
        import re

        _pattern = re.compile(_THREAD)
    return _pattern


def parse_thread_status(data: bytes) -> ThreadStatus:
    """Much faster than `parse_status`: a process may have thousands of threads."""
    global _parsed
    _parsed += 1
    found = pattern().match(data) if _parsed > FEW else None
    try:
        if found is None:  # the first ones, or an unknown order of the lines
            lines = _lines(data)
            credentials = _credentials(lines)
            name, state, tid = lines[b"Name"], lines[b"State"].lstrip()[:1], lines[b"Pid"]
            tids, pending, blocked = lines.get(b"NSpid", tid), lines[b"SigPnd"], lines[b"SigBlk"]
        else:
            name, state, tid, first, tids, pending, blocked, last = found.groups()
            known = _known.get((first, last))
            if known is None:
                known = _credentials(_lines(data))
                if len(_known) >= 256:
                    _known.clear()
                # Only if nothing about them stands elsewhere, on whatever kernel.
                if known == _credentials(_lines(first + last)):
                    _known[first, last] = known
            credentials = known
        return ThreadStatus._make(
            (
                unescape(name),
                state.decode("ascii"),
                int(tid),
                _numbers(tids),
                int(pending, 16),
                int(blocked, 16),
                credentials,
            )
        )
    except (ValueError, KeyError, IndexError):
        raise ParseError("status", data) from None


def unescape(name: bytes) -> bytes:
    """Undo the escapes of `status` for the name of a task (newline and backslash)."""
    if b"\\" not in name:
        return name
    return b"\\".join(part.replace(b"\\n", b"\n") for part in name.split(b"\\\\"))
