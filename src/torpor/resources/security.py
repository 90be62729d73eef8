# SPDX-License-Identifier: Apache-2.0
"""What confines a task and is not restored yet: recognised and refused in words.

Seccomp filters, labels of security modules, system-call dispatch, shadow stacks, keyrings of a thread or process,
32-bit programs and code, segments of memory (of x86, in the LDT or the GDT).  A restored task gets Torpor's own label,
so only "not confined" passes.  What cannot be seen from outside is not refused: Landlock rules, a session keyring.
"""

import ctypes
import errno
import os

from torpor.engine.tracee import DISPATCHES_NONE
from torpor.errors import Refusal
from torpor.kernel import ptrace
from torpor.kernel.procfs import LARGE, read_all
from torpor.kernel.syscall import call
from torpor.resources.base import Attribute
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.engine.program import Pointer, Program, Result
    from torpor.engine.tracee import Tracee
    from torpor.images.schema.core import CoreEntry
    from torpor.kernel.fdinfo import FdInfo
    from torpor.resources.context import Dump, DumpTask, Restore, RestoreTask

PR_SCHED_CORE, ARCH_GET_XCOMP_PERM = 62, 0x1022
KEYCTL_GET_KEYRING_ID, KEY_SPEC_THREAD_KEYRING, KEY_SPEC_PROCESS_KEYRING = 0, -1, -2
READ_LDT, LDT_ENTRY = 0, 8  # of modify_ldt(2), which tells 0 bytes where there is no table
UNCONFINED = (b"unconfined", b"kernel", b"_")  # AppArmor, SELinux before its policy is loaded, Smack
_SECCOMP = {1: "strict", 2: "filter"}


class Confinement(Attribute):
    covers = frozenset(
        {"thread:seccomp", "task:label", "thread:syscall_dispatch", "task:shadow_stack", "task:keyrings",
         "task:32bit", "task:kernel_thread", "task:autogroup", "task:core_sched", "task:mempolicy",
         "task:tagged_addresses", "task:segments", "thread:byte_order",
         "task:extended_registers"}
    )  # fmt: skip

    def examine(self, task: "DumpTask", dump: "Dump") -> None:
        status = task.status
        assert status is not None
        if status.kernel_thread:
            dump.refuse(task.refusal("it is a thread of the kernel", "name a process of your own"))
            return
        modes = {thread.credentials.seccomp for thread in task.thread_statuses.values()}
        for mode in modes - {0, None}:
            why = f"it runs under seccomp (mode {_SECCOMP.get(mode or 0, mode)}), which Torpor does not restore yet"
            dump.refuse(task.refusal(why, "start it without a seccomp profile", code="seccomp"))
        label = _label(task.leader.tid)
        if not _is_unconfined(label):
            why = f"it is confined by a security module ({label.decode(errors='replace')})"
            dump.refuse(task.refusal(f"{why}, which Torpor does not restore yet", "run it unconfined", code="label"))
        if status.shadow_stack and "shstk" in status.shadow_stack:
            dump.refuse(
                task.refusal(
                    "it has a shadow stack, which Torpor does not restore yet",
                    "start it without (GLIBC_TUNABLES=glibc.cpu.hwcaps=-SHSTK)",
                )
            )
        if status.untag_mask not in (None, task.leader.arch.untag_mask):
            why = "bits of its addresses are not looked at (linear address masking), which Torpor does not restore yet"
            dump.refuse(task.refusal(why, "start it without"))
        if task.running and _is_32bit(task):
            dump.refuse(_refusal_32bit(task, "it is a 32-bit program"))
        if not task.running:
            _examine_stopped(task, dump)

    def examine_running(self, task: "DumpTask", dump: "Dump") -> None:
        if len(task.threads) > 1 and _label(task.leader.tid):
            _refuse_labels(task, dump)
        _examine_running(task, dump)

    def ask(self, task: "DumpTask", program: "Program") -> "tuple[Result, Result | None, Pointer]":
        segments, permissions = None, program.space(8)
        if task.leader.arch.name == "x86_64":
            segments = program.call("modify_ldt", READ_LDT, program.space(LDT_ENTRY), LDT_ENTRY, may_fail=True)
            program.call("arch_prctl", ARCH_GET_XCOMP_PERM, permissions, may_fail=True)
        return _keyring(program, KEY_SPEC_PROCESS_KEYRING), segments, permissions

    def save(self, task: "DumpTask", answer: "tuple[Result, Result | None, Pointer]", core: "CoreEntry") -> None:
        keyring, segments, permissions = answer
        if segments is not None and (more := int.from_bytes(permissions.data, "little") & ~_own_permissions()):
            why = f"it may use registers that a process has to ask for (ARCH_REQ_XCOMP_PERM: {more:#x})"
            raise task.refusal(f"{why}, which Torpor does not restore yet", "run it without AMX")
        if segments is not None and segments.value > 0:
            why = "it has memory segments of its own (modify_ldt), which Torpor does not restore yet"
            raise task.refusal(why, "run it without 16-bit or 32-bit code")
        if keyring.value > 0:
            raise task.refusal("it has keys in a keyring of its own", "have it drop them (keyctl) first")

    def ask_thread(self, task: "DumpTask", program: "Program") -> "tuple[Result, Pointer]":
        policy = program.space(4)
        program.call("get_mempolicy", policy, 0, 0, 0, 0, may_fail=True)
        return _keyring(program, KEY_SPEC_THREAD_KEYRING), policy

    def save_thread(
        self, task: "DumpTask", thread: "Tracee", answer: "tuple[Result, Pointer]", core: "CoreEntry"
    ) -> None:
        keyring, policy = answer
        it = task.named(thread)
        if any(policy.data):
            raise task.refusal(f"{it} has a memory policy (set_mempolicy)", "run it without numactl")
        if keyring.value > 0:
            raise task.refusal(f"{it} has keys in a keyring of its own", "have it drop them (keyctl) first")

    def check(self, task: "RestoreTask", restore: "Restore") -> None:
        tc = task.core.tc
        for tid, core in task.cores.items():
            thread = core.thread_core
            if (thread is not None and thread.seccomp_mode) or (tc is not None and tc.old_seccomp_mode):
                raise task.refusal(f"thread {tid} ran under seccomp, which Torpor does not restore yet", code="seccomp")
            creds = thread.creds if thread is not None else None
            for label in (creds.lsm_profile, creds.lsm_sockcreate) if creds is not None else ():
                if label and not _is_unconfined(label.encode(errors="surrogateescape")):
                    raise task.refusal(
                        f"thread {tid} was confined by a security module ({label}), which Torpor does not restore yet",
                        code="label",
                    )


_permissions: int | None = None


def _own_permissions() -> int:
    """Which extended registers Torpor may use: those that nobody has to ask for."""
    global _permissions
    if _permissions is None:
        permissions = ctypes.c_uint64(0)
        try:
            call("arch_prctl", ARCH_GET_XCOMP_PERM, ctypes.addressof(permissions))
        except OSError:
            pass  # there are none that one has to ask for
        _permissions = permissions.value
    return _permissions


def _keyring(program: "Program", which: int) -> "Result":
    return program.call("keyctl", KEYCTL_GET_KEYRING_ID, which, 0, 0, 0, may_fail=True)


def refuse_32bit(task: "DumpTask") -> None:
    """By what only ptrace tells: a thread of a 64-bit program may be in 32-bit code just then (as in Wine).  Raises
    Refusal."""
    for thread in task.threads:
        if len(thread.general) < thread.arch.general_size:
            one = "its first thread" if thread is task.leader else f"its thread {thread.tid}"
            raise _refusal_32bit(task, "it is a 32-bit program" if _is_32bit(task) else f"{one} runs 32-bit code")


def _refusal_32bit(task: "DumpTask", why: str) -> Refusal:
    return task.refusal(why, "only 64-bit programs can be dumped yet", code="32-bit")


def _is_32bit(task: "DumpTask") -> bool:
    """How its program was built: good enough for a look from outside."""
    if task.leader.arch.word_size != 8:
        return False
    try:
        fd = os.open(f"/proc/{task.leader.tid}/exe", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.pread(fd, 5, 0) == b"\x7fELF\x01"
    finally:
        os.close(fd)


def _examine_stopped(task: "DumpTask", dump: "Dump") -> None:
    """What only ptrace tells."""
    for thread in task.threads:
        if thread.arch.in_other_order(thread.general):
            why = f"thread {thread.tid} runs in the other byte order (PR_SET_ENDIAN)"
            dump.refuse(task.refusal(why, "run it in the usual one"))
        if ptrace.dispatches_syscalls(thread.tid):
            why = f"thread {thread.tid} has its system calls dispatched to a handler of its own"
            dump.refuse(task.refusal(f"{why} (PR_SET_SYSCALL_USER_DISPATCH)", DISPATCHES_NONE))
    if task.leader.arch.name == "x86_64":
        _refuse_segments(task, dump)


def _refuse_segments(task: "DumpTask", dump: "Dump") -> None:
    threads = task.threads
    if len(threads) > 1 and not _has_low_memory(task.leader.tid):
        threads = [task.leader]
    for thread in threads:
        if ptrace.has_gdt_entries(thread.tid):
            why = f"{task.named(thread)} has memory segments of its own (set_thread_area)"
            dump.refuse(task.refusal(f"{why}, which Torpor does not restore yet", "run it without 32-bit code"))
            return


def _has_low_memory(tid: int) -> bool:
    """Whether an area begins below 4 GiB: without, nobody can make the call of 32-bit programs that sets a segment (it
    takes a pointer of 32 bits), nor is there anything for a segment to lead to."""
    fd = os.open(f"/proc/{tid}/maps", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.pread(fd, 32, 0).partition(b"-")[0] or b"0", 16) < 1 << 32
    finally:
        os.close(fd)


def _examine_running(task: "DumpTask", dump: "Dump") -> None:
    """Rare things."""
    tid = task.leader.tid
    for name in ("exec", "fscreate", "keycreate", "sockcreate"):
        if label := _label(tid, name):
            why = f"its security module has a label for what comes next (attr/{name}: {label.decode(errors='replace')})"
            dump.refuse(task.refusal(why, "have it reset that first", code="label"))
    try:
        group, _, nice = read_all(f"/proc/{tid}/autogroup").rpartition(b" nice ")
    except OSError:
        group, nice = b"", b"0"
    if group and int(nice):
        remedy = f"echo 0 > /proc/{tid}/autogroup"
        dump.refuse(task.refusal(f"its session has a nice value of its own ({int(nice)}, autogroup)", remedy))
    _refuse_bound_areas(task, dump)
    if _core_cookie(tid):
        dump.refuse(task.refusal("it is scheduled with others of its kind only (core scheduling)", "run it without"))


def several_nodes() -> bool:
    """Whether it matters here which memory a page is in (NUMA)."""
    try:
        return not read_all("/sys/devices/system/node/online").strip().isdigit()
    except OSError:
        return False


def _refuse_bound_areas(task: "DumpTask", dump: "Dump") -> None:
    """Memory policies of areas (mbind).  numa_maps takes as long as smaps: it is looked at only where there are nodes
    to choose from."""
    try:
        lines = read_all(f"/proc/{task.leader.tid}/numa_maps", LARGE).splitlines() if several_nodes() else []
    except OSError:
        return  # this kernel knows of no nodes
    for line in lines:
        start, policy = line.split(b" ", 2)[:2]
        if policy != b"default":
            shown = policy.decode("ascii")
            why = f"its memory at {int(start, 16):#x} has a policy of its own (mbind, set_mempolicy: {shown})"
            dump.refuse(task.refusal(why, "run it without numactl or libnuma"))
            return


def _refuse_labels(task: "DumpTask", dump: "Dump") -> None:
    """Threads can be confined alone (aa_change_hat)."""
    for tid, label in task.of_other_threads(_label):
        if not _is_unconfined(label):
            why = f"its thread {tid} is confined by a security module ({label.decode(errors='replace')})"
            dump.refuse(task.refusal(f"{why}, which Torpor does not restore yet", "run it unconfined", code="label"))
            return


def _core_cookie(tid: int) -> int:
    """prctl(PR_SCHED_CORE, PR_SCHED_CORE_GET): 5.14; EINVAL without CONFIG_SCHED_CORE, ENODEV without SMT."""
    cookie = ctypes.c_uint64(0)
    try:
        call("prctl", PR_SCHED_CORE, 0, tid, 0, ctypes.addressof(cookie))
    except OSError:
        return 0
    return cookie.value


_labels: bool | None = None


def _has_labels() -> bool:
    """Whether there is a security module here that gives labels: it would show us ours."""
    global _labels
    if _labels is None:
        _labels = bool(_read_label(os.getpid(), "current"))
    return _labels


def _label(tid: int, name: str = "current") -> bytes:
    return _read_label(tid, name) if _has_labels() else b""


def _read_label(tid: int, name: str) -> bytes:
    try:
        return read_all(f"/proc/{tid}/attr/{name}").rstrip(b"\0\n")
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT, errno.EOPNOTSUPP):  # no such module
            return b""
        raise


def _is_unconfined(label: bytes) -> bool:
    return not label or label in UNCONFINED or b":unconfined_t:" in label or b":kernel_t:" in label


def refuse_locks(subject: str, info: "FdInfo") -> None:
    """File locks are the business of neither a file nor a task alone: called for each descriptor at dump."""
    for lock in info.locks:
        raise Refusal(
            subject,
            f"a file lock ({lock.kind}, {lock.access.lower()}) is held through it, which Torpor does not dump yet",
            "have the program give up its locks first (an open database has one, and a daemon on its PID file)",
            code="file-lock",
        )


ATTRIBUTES = [Confinement()]
