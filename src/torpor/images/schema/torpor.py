# SPDX-License-Identifier: Apache-2.0
"""What Torpor stores beyond CRIU's format, in images of its own: torpor-PID.img.

CRIU ignores these files.  Restoring without them is right but less exact (names of areas are lost, for instance).
"""

from __future__ import annotations

from torpor.images.message import BYTES, STRING, UINT32, UINT64, Message, optional, repeated, required


class AreaNameEntry(Message):
    """prctl(PR_SET_VMA_ANON_NAME) of the area that begins at `start`."""

    start: int = required(1, UINT64)
    name: str = required(2, STRING)


class RegisterSetEntry(Message):
    """Registers for which CRIU's message has no field, as ptrace(2) has them."""

    type: int = required(1, UINT32)  # NT_*
    data: bytes = required(2, BYTES)


class ThreadExtraEntry(Message):
    """Of one thread."""

    tid: int = required(1, UINT32)
    timer_slack_ns: int | None = optional(2, UINT64, default=None)
    sched_flags: int | None = optional(3, UINT64, default=None)
    io_priority: int | None = optional(4, UINT32, default=None)
    files_id: int | None = optional(5, UINT32, default=None)  # where the thread has an fd table of its own
    cpus: bytes | None = optional(6, BYTES, default=None)  # sched_getaffinity(2), without zeros at the end
    cpu_timers: list[int] = repeated(7, UINT32, default_factory=list)  # ids of POSIX timers on this thread's CPU clock
    registers: list[RegisterSetEntry] = repeated(8, "torpor.RegisterSetEntry", default_factory=list)
    # Of a system call that the thread is about to make because the dump interrupted it: the kernel's ERESTART number,
    # and NT_S390_SYSTEM_CALL of s390x, `trap` of ppc64le, else 0.  On ppc64le also of one by scv that has ended: 0.
    interrupted: int | None = optional(9, UINT32, default=None)
    call: int | None = optional(10, UINT32, default=None)
    slice_ns: int | None = optional(11, UINT64, default=None)  # sched_runtime of a fair policy, if not the usual
    # What is another than the first thread's:
    personality: int | None = optional(12, UINT32, default=None)
    tsc: int | None = optional(13, UINT32, default=None)  # PR_GET_TSC
    mce_kill: int | None = optional(14, UINT32, default=None)  # PR_MCE_KILL_GET
    fp_exceptions: int | None = optional(15, UINT32, default=None)  # PR_GET_FPEXC
    unaligned: int | None = optional(16, UINT32, default=None)  # PR_GET_UNALIGN
    cpuid: int | None = optional(17, UINT32, default=None)  # ARCH_GET_CPUID
    # PR_PPC_GET_DEXCR: of each aspect two bits: it is on, it is on after execve(2)
    dexcr: int | None = optional(18, UINT32, default=None)
    thread_register: int | None = optional(19, UINT32, default=None)  # TPIDRURW of armv7, if not 0


class TaskExtraEntry(Message):
    """Of one process; what is not set is as it is in every new process."""

    coredump_filter: int | None = optional(1, UINT32, default=None)
    mdwe: int | None = optional(2, UINT32, default=None)  # PR_GET_MDWE
    memory_merge: int | None = optional(3, UINT32, default=None)  # PR_GET_MEMORY_MERGE
    thp_disable: int | None = optional(4, UINT32, default=None)  # PR_GET_THP_DISABLE, with its flags (6.18)
    store_bypass: int | None = optional(5, UINT32, default=None)  # PR_SPEC_* of PR_SET_SPECULATION_CTRL
    indirect_branch: int | None = optional(6, UINT32, default=None)
    tsc: int | None = optional(7, UINT32, default=None)  # PR_GET_TSC
    mce_kill: int | None = optional(8, UINT32, default=None)  # PR_MCE_KILL_GET
    personality: int | None = optional(9, UINT32, default=None)
    unseen_stops: list[int] = repeated(10, UINT32, default_factory=list)  # PIDs of stopped children not yet waited for
    exit_signal: int | None = optional(11, UINT32, default=None)  # what its end brings its parent, if not SIGCHLD
    futex_slots: int | None = optional(12, UINT32, default=None)  # PR_FUTEX_HASH_SET_SLOTS, if it chose them itself
    zombie_uid: int | None = optional(13, UINT32, default=None)  # of a zombie, whose images have no credentials
    zombie_gid: int | None = optional(14, UINT32, default=None)
    fp_exceptions: int | None = optional(15, UINT32, default=None)  # PR_GET_FPEXC of ppc64le
    unaligned: int | None = optional(16, UINT32, default=None)  # PR_GET_UNALIGN of ppc64le
    cpuid: int | None = optional(17, UINT32, default=None)  # ARCH_GET_CPUID of x86
    protection_keys: int | None = optional(18, UINT32, default=None)  # a bit for each that pkey_alloc(2) has given


class TagRunEntry(Message):
    """Memory tags (MTE of aarch64) of some pages.  They are in torpor-tags-PID.img, one run behind the other: two in a
    byte, the first in its lower half, each for 16 bytes of memory."""

    start: int = required(1, UINT64)
    pages: int = required(2, UINT64)


class TorporTaskEntry(Message):
    """Of one task."""

    names: list[AreaNameEntry] = repeated(1, "torpor.AreaNameEntry", default_factory=list)
    threads: list[ThreadExtraEntry] = repeated(2, "torpor.ThreadExtraEntry", default_factory=list)
    sealed: list[int] = repeated(3, UINT64, default_factory=list)  # areas under mseal(2), by start
    # Private areas that are not writable but were: their memory stays accounted for (VM_ACCOUNT).  By start.
    accounted: list[int] = repeated(7, UINT64, default_factory=list)
    guarded: list[int] = repeated(8, UINT64, default_factory=list)  # mprotect(PROT_BTI) of aarch64, by start
    tagged: list[int] = repeated(9, UINT64, default_factory=list)  # areas with PROT_MTE of aarch64, by start
    tags: list[TagRunEntry] = repeated(10, "torpor.TagRunEntry", default_factory=list)  # all others are 0
    lock_on_fault: list[int] = repeated(4, UINT64, default_factory=list)  # mlock2(MLOCK_ONFAULT), by start
    lock_future: int | None = optional(6, UINT32, default=None)  # MCL_FUTURE, MCL_ONFAULT of mlockall(2)
    process: TaskExtraEntry | None = optional(5, "torpor.TaskExtraEntry", default=None)
