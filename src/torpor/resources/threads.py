# SPDX-License-Identifier: Apache-2.0
"""What the C library told the kernel about each thread: robust futexes, clear_child_tid, restartable sequences;
and the table of futexes of them all.

- The robust list's head can be read from outside, clear_child_tid only inside (PR_GET_TID_ADDRESS).
- A thread that is caught inside a restartable sequence has to abort it.  The engine moves a dumped thread's instruction
  pointer to the abort address.  CRIU stores the address of the sequence instead: it is written back into the thread's
  area, last of all, because the kernel clears it at every return to code outside of the sequence; when the thread then
  goes on inside it, the kernel aborts it.
"""

import os
import struct

from torpor import log
from torpor.arch import native
from torpor.errors import ImageError
from torpor.images.schema.rseq import RseqEntry
from torpor.kernel.proc import parse_auxv
from torpor.kernel.process import get_robust_list
from torpor.kernel.procfs import read_all
from torpor.resources import extras, lacking
from torpor.resources.base import Attribute
from torpor.typed import TYPE_CHECKING, Iterable

if TYPE_CHECKING:
    from torpor.engine.program import Pointer, Program, Result
    from torpor.engine.tracee import Tracee
    from torpor.images.schema.core import CoreEntry
    from torpor.resources.context import DumpTask, Restore, RestoreTask

PR_GET_TID_ADDRESS, PR_SET_TAGGED_ADDR_CTRL = 40, 55
PR_FUTEX_HASH, PR_FUTEX_HASH_SET_SLOTS, PR_FUTEX_HASH_GET_SLOTS = 78, 1, 2
ROBUST_LIST_SIZE = 3 * native().word_size  # struct robust_list_head: three words; the kernel takes no other size
RSEQ_CS_OFFSET = 8  # of rseq_cs in struct rseq
# How much of that every kernel takes, and how much it keeps up to date, if it does not say otherwise (6.3).
RSEQ_SIZE, RSEQ_KEPT, AT_RSEQ_FEATURE_SIZE = 32, 20, 27
_INFOS = (
    "thread_info", "ti_aarch64", "ti_arm", "ti_ppc64", "ti_s390", "ti_riscv64", "ti_loongarch64", "ti_mips",
)  # fmt: skip


class RobustList(Attribute):
    covers = frozenset({"thread:robust_list"})

    def look_thread(self, task: "DumpTask", thread: "Tracee") -> tuple[int, int]:
        return get_robust_list(thread.tid)

    def save_thread(self, task: "DumpTask", thread: "Tracee", answer: tuple[int, int], core: "CoreEntry") -> None:
        assert core.thread_core is not None
        core.thread_core.futex_rla, core.thread_core.futex_rla_len = answer

    def check(self, task: "RestoreTask", restore: "Restore") -> None:
        for tid, core in task.cores.items():
            thread = core.thread_core
            if thread is not None and thread.futex_rla and thread.futex_rla_len != ROBUST_LIST_SIZE:
                raise ImageError(f"the core image of thread {tid} is mangled", "its robust list has an impossible size")

    def place_thread(self, task: "RestoreTask", tid: int, core: "CoreEntry", program: "Program") -> None:
        assert core.thread_core is not None
        if core.thread_core.futex_rla:
            program.call("set_robust_list", core.thread_core.futex_rla, core.thread_core.futex_rla_len)


class ClearChildTid(Attribute):
    """The word that is cleared, and a futex on it woken, when the thread ends: how pthread_join knows."""

    covers = frozenset({"thread:clear_child_tid"})

    def ask_thread(self, task: "DumpTask", program: "Program") -> "Pointer":
        space = program.space(task.leader.arch.word_size)
        program.call("prctl", PR_GET_TID_ADDRESS, space)
        return space

    def save_thread(self, task: "DumpTask", thread: "Tracee", answer: "Pointer", core: "CoreEntry") -> None:
        task.clear_child_tid[thread.tid] = struct.unpack(thread.arch.word, answer.data)[0]

    def place_thread(self, task: "RestoreTask", tid: int, core: "CoreEntry", program: "Program") -> None:
        info = next((info for name in _INFOS if (info := getattr(core, name)) is not None), None)
        if info is not None:
            program.call("set_tid_address", info.clear_tid_addr)


def _rseq_kept(auxiliary: "Iterable[tuple[int, int]]") -> int:
    """Bytes of an area for rseq(2) that the kernel has promised to keep up to date."""
    return dict(auxiliary).get(AT_RSEQ_FEATURE_SIZE, RSEQ_KEPT)


class Rseq(Attribute):
    """A kernel before 6.3 does not keep up what came then (node_id, mm_cid).  Few programs use that, and nothing tells
    which: there is a warning, or no program of today's C library could go back to such a kernel.
    """

    covers = frozenset({"thread:rseq"})

    def save_thread(self, task: "DumpTask", thread: "Tracee", answer: None, core: "CoreEntry") -> None:
        assert core.thread_core is not None
        if thread.rseq.pointer:
            core.thread_core.rseq_entry = RseqEntry(
                rseq_abi_pointer=thread.rseq.pointer, rseq_abi_size=thread.rseq.size, signature=thread.rseq.signature
            )

    def check(self, task: "RestoreTask", restore: "Restore") -> None:
        areas = [(tid, core.thread_core.rseq_entry) for tid, core in task.cores.items() if core.thread_core is not None]
        sizes = {tid: area.rseq_abi_size for tid, area in areas if area is not None and area.rseq_abi_pointer}
        kept: int = restore.state.get("rseq kept") or restore.state.setdefault(
            "rseq kept", _rseq_kept(parse_auxv(read_all("/proc/self/auxv")))
        )
        for tid, size in sizes.items():
            if size != RSEQ_SIZE and not RSEQ_KEPT < kept <= size:
                raise lacking.refusal(task.subject, f"its thread {tid} has an area of {size} bytes for rseq(2)")
        vector = task.mm.mm_saved_auxv if task.mm is not None else []
        promised = _rseq_kept(zip(vector[::2], vector[1::2], strict=False))
        if sizes and promised > kept and not restore.state.setdefault("rseq warned", False):
            restore.state["rseq warned"] = True
            log.warning(
                f"{task.subject}, and perhaps others: a part of its threads' areas for rseq(2) is out of date from now "
                f"on, as this kernel keeps up {kept} bytes of them, and the program was told of {promised} (mm_cid)"
            )

    def place_thread(self, task: "RestoreTask", tid: int, core: "CoreEntry", program: "Program") -> None:
        assert core.thread_core is not None
        entry = core.thread_core.rseq_entry
        if entry is not None and entry.rseq_abi_pointer:
            if entry.rseq_abi_pointer & ~native().untag_mask:
                # aarch64: from here on the kernel writes there.  The thread's own setting comes with its registers.
                program.call("prctl", PR_SET_TAGGED_ADDR_CTRL, 1)
            program.call("rseq", entry.rseq_abi_pointer, entry.rseq_abi_size, 0, entry.signature)

    def outside(self, task: "RestoreTask", restore: "Restore") -> None:
        for tid, core in task.cores.items():
            entry = core.thread_core.rseq_entry if core.thread_core is not None else None
            if entry is not None and entry.rseq_abi_pointer and entry.rseq_cs_pointer:
                task.tracees[tid].write(
                    entry.rseq_abi_pointer + RSEQ_CS_OFFSET, struct.pack("=Q", entry.rseq_cs_pointer)
                )


class ThreadPointer(Attribute):
    """Where thread-local storage is.  Most architectures have it in a register set; on 32-bit ARM only the thread
    itself can set it."""

    covers = frozenset({"thread:thread_pointer"})

    def place_thread(self, task: "RestoreTask", tid: int, core: "CoreEntry", program: "Program") -> None:
        pointer = native().thread_pointer(core)
        if pointer is not None:
            program.call("set_tls", pointer)


class ThreadRegister(Attribute):
    """A register that is the program's own, where there is one beside that for thread-local storage (TPIDRURW of 32-bit
    ARM; Wine uses it).  The kernel keeps one for each thread, and neither a call nor ptrace gets at it: the executor
    does.  A new thread or child has its maker's; at a restore the makers get theirs last."""

    covers = frozenset({"thread:register"})

    def ask_thread(self, task: "DumpTask", program: "Program") -> "Pointer | None":
        arch = task.leader.arch
        if "get_thread_register" not in arch.SYSCALLS:
            return None
        space = program.space(arch.word_size)
        program.call("get_thread_register", space)
        return space

    def save_thread(self, task: "DumpTask", thread: "Tracee", answer: "Pointer | None", core: "CoreEntry") -> None:
        value = struct.unpack(thread.arch.word, answer.data)[0] if answer is not None else 0
        if value:
            extras.of_thread(task, thread.tid).thread_register = value

    def place_thread(self, task: "RestoreTask", tid: int, core: "CoreEntry", program: "Program") -> None:
        extra = task.extras.threads.get(tid)
        if extra is not None and extra.thread_register is not None and "set_thread_register" in native().SYSCALLS:
            program.call("set_thread_register", extra.thread_register)


def may_be_automatic(slots: int, threads: int) -> bool:
    """Whether the kernel may have given a process so many slots by itself: it begins with the second thread, and goes
    by the most threads that there have been, or by the number of processors."""
    if slots == 0:
        return threads == 1
    most = max(16, 4 * (os.cpu_count() or 1))
    return 16 <= slots <= 1 << (most - 1).bit_length()


class FutexHash(Attribute):
    """A process's own table of futexes (6.16).  Whether it asked for a number of slots, which is final then, is not
    told, but what the kernel would not choose by itself was chosen.  Set before there are threads, for which the kernel
    makes a table."""

    covers = frozenset({"task:futex_hash"})

    def ask(self, task: "DumpTask", program: "Program") -> "Result":
        return program.call("prctl", PR_FUTEX_HASH, PR_FUTEX_HASH_GET_SLOTS, 0, 0, 0, may_fail=True)

    def save(self, task: "DumpTask", answer: "Result", core: "CoreEntry") -> None:
        if answer.value >= 0 and not may_be_automatic(answer.value, len(task.threads)):
            task.process_extras["futex_slots"] = answer.value

    def place(self, task: "RestoreTask", program: "Program") -> None:
        slots = task.extras.process.futex_slots
        if slots is not None:  # a kernel without such tables has no use for them
            program.call("prctl", PR_FUTEX_HASH, PR_FUTEX_HASH_SET_SLOTS, slots, 0, 0, may_fail=True)


ATTRIBUTES = [RobustList(), ClearChildTid(), Rseq(), ThreadPointer(), ThreadRegister(), FutexHash()]
