# SPDX-License-Identifier: Apache-2.0
"""The end of a restore: registers come, the tree runs, and what was only needed until then goes.

Until `let_go` every task dies with the engine; in the moment in which that is taken back from one after the other, the
front watches over them (the report "let go").
"""

import errno
import os

from torpor import log
from torpor import signals as signal
from torpor.arch.base import NT_PRSTATUS
from torpor.engine import reenter
from torpor.errors import KernelError
from torpor.kernel import ptrace
from torpor.resources import lacking
from torpor.typed import TYPE_CHECKING, Iterable

if TYPE_CHECKING:
    from torpor.arch.base import Registers
    from torpor.engine.process import Report
    from torpor.engine.tracee import Tracee
    from torpor.images.schema.core import ThreadCoreEntry
    from torpor.options import Options
    from torpor.resources.context import Restore, RestoreTask


def load_registers(tasks: "Iterable[RestoreTask]", registers: "dict[int, Registers]") -> None:
    """Registers and signal masks of all threads."""
    for task in tasks:
        assert task.core.tc is not None
        for tid, thread in task.tracees.items():
            if tid == task.pid and task.leader_ended:
                _load_exit(thread, task.core.tc.exit_code)
                continue
            core = task.cores[tid].thread_core
            assert core is not None
            thread.leave_call_stop()
            general, call = registers[tid].general, thread.arch.before_programs()
            if (inside := _inside(task, thread, core, general)) is not None:
                if refused := lacking.entry_refusal(task, tid, inside.call.word):  # CRIU's images do not tell before
                    raise refused
                general, more = reenter.enter(thread, inside)
                call = {**call, **more}
            for which, data in (*registers[tid].others.items(), *call.items()):
                if which == thread.arch.thread_area:
                    continue  # the thread has set it itself
                if which in thread.arch.unproven:
                    _set_unproven(task, thread, which, data)
                    continue
                thread.set_regset(which, data)
            ptrace.set_regset(tid, NT_PRSTATUS, general)
            ptrace.set_signal_mask(tid, task.core.tc.blk_sigset if core.blk_sigset is None else core.blk_sigset)


def _set_unproven(task: "RestoreTask", thread: "Tracee", which: int, data: bytes) -> None:
    """Registers that no machine was at hand for.  Raises Refusal: this one has none, or they are not as they were."""
    what = thread.arch.unproven[which]
    try:
        thread.set_regset(which, data)
        if ptrace.get_regset(thread.tid, which) == data:
            return
        why = f"its {what} is not as it was when it had been set"
    except OSError as error:
        why = f"it uses {what}, which this machine does not take: {os.strerror(error.errno or 0)}"
    raise task.refusal(
        why, "restore it on the machine that it comes from, or run the program without", code="cpu-feature"
    )


def _inside(task: "RestoreTask", thread: "Tracee", core: "ThreadCoreEntry", general: bytes) -> "reenter.Inside | None":
    """The system call in which a thread was interrupted."""
    if core.rseq_entry is not None and core.rseq_entry.rseq_cs_pointer:
        return None  # it is caught inside a restartable sequence, which makes no calls
    extra = task.extras.threads.get(thread.tid)
    stored = (extra.interrupted, extra.call or 0) if extra is not None and extra.interrupted is not None else None
    return reenter.find(thread, general, stored, task.extras.ours)


def _load_exit(thread: "Tracee", status: int) -> None:
    """A main thread that had ended ends again, as soon as it is let go; exit(2) takes what wait(2) shows shifted."""
    thread.use_gadget(0)  # the executor's instruction is gone: the vDSO's
    thread.set_general(
        thread.arch.enter_call(thread.general, thread.gadget, thread.arch.SYSCALLS["exit"], [status >> 8 & 0xFF])
    )


def let_go(tasks: "list[RestoreTask]", tids: Iterable[int], stopped: bool, report: "Report") -> None:
    """All tasks run from here on, or stop where that is wanted."""
    report("let go", [task.pid for task in tasks])
    for tid in tids:
        ptrace.set_options(tid, 0)
    report("let go", [])  # from here on, all run if the engine dies
    for task in tasks:
        if stopped:
            os.kill(task.pid, signal.SIGSTOP)
        for thread in reversed(task.tracees.values()):
            try:
                thread.detach()
            except ProcessLookupError:
                pass  # threads that were let go before have ended the process


def tidy(restore: "Restore") -> None:
    """The tree runs: remove what was only needed until here."""
    for remove in restore.state.get("at end", ()):
        try:
            remove()
        except OSError as error:
            log.warning(f"{error.filename} is not needed any more and could not be removed: {error.strerror}")


def refuse_pidfile(options: "Options") -> None:
    """Before anything is made: a PID file that is there already.  Raises KernelError."""
    if options.pidfile is not None and os.path.lexists(path := options.in_work_directory(options.pidfile)):
        raise _cannot_write(path, OSError(errno.EEXIST, ""))


def make_pidfile(options: "Options") -> str:
    """Its path; it is there then, and empty.  Raises KernelError."""
    assert options.pidfile is not None
    path = options.in_work_directory(options.pidfile)
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise _cannot_write(path, error) from None
    return path


def write_pidfile(path: str, pid: int) -> None:
    """Raises KernelError."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.write(fd, b"%d" % pid)
        finally:
            os.close(fd)
    except OSError as error:
        raise _cannot_write(path, error) from None


def _cannot_write(path: str, error: OSError) -> KernelError:
    remedies = {errno.EEXIST: "remove it, or name another", errno.ENOSPC: "make room, or name another"}
    return KernelError(f"cannot write the PID file {path}", error, remedies.get(error.errno or 0, "name another"))


def write_stats(restore: "Restore", phases: dict[str, float]) -> None:
    from torpor.images.directory import write_stats as write
    from torpor.images.schema.stats import RestoreStatsEntry, StatsEntry

    def micros(seconds: float) -> int:
        return min(int(seconds * 1e6), 0xFFFFFFFF)

    entry = RestoreStatsEntry(
        pages_compared=restore.state.get("pages compared", 0),
        pages_skipped_cow=restore.state.get("pages skipped", 0),
        forking_time=micros(phases["tree"]),
        restore_time=micros(sum(phases.values())),
        pages_restored=restore.state.get("pages restored", 0),
    )
    write(restore.options.work_directory, StatsEntry(restore=entry))
