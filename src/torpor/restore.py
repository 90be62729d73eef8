# SPDX-License-Identifier: Apache-2.0
"""The order in which a tree comes back.

    check      all images are read and checked and the plan is made, before anything is created
    tree       tasks are born, each with its private memory in place before it has children; helpers and zombies end
    memory     shared and file areas, final protections, the layout
    files      each open file description once, then every table
    settings   working directories, attributes of processes, threads, attributes of threads
    last       the whole tree stands: timers, pending signals, owners
    release    executors go, registers come, the tree runs

All of it happens in the engine process.  Until the last task has its registers, every task dies with the engine, and
whatever fails takes everything back: either the whole tree runs, or nothing is left of it.
"""

import os
import time
from collections.abc import Callable
from errno import EPERM

from torpor import log
from torpor import signals as signal
from torpor.errors import KernelError, RestoreFailed, TorporError
from torpor.typed import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torpor.arch.base import Registers
    from torpor.engine.process import Report
    from torpor.engine.spawn import Cradle, Spawner
    from torpor.engine.tracee import Tracee
    from torpor.model.restore_plan import Plan
    from torpor.options import Options
    from torpor.resources.context import Restore, RestoreTask

# Whose child the root becomes: of whoever adopts orphans, of the process that asks, of that one's parent.
NOBODY, FRONT, TORPORS_PARENT = range(3)
CLONE_PARENT = 0x8000


class RestoreResult(NamedTuple):
    """What was restored.  Times in seconds; `phases` says where they went."""

    pid: int
    tasks: int
    threads: int
    files: int
    seconds: float
    phases: dict[str, float]


def restore(options: "Options", sibling: bool = False) -> RestoreResult:
    """Bring back the tree in options.images_dir.  Raises TorporError; nothing is left of it then.

    The root becomes a child of this process if it is waited for (not restore_detached) or asked for (restore_sibling;
    with `sibling` a child of this process's parent), else of whoever adopts orphans.
    """
    from torpor.engine.process import run_engine
    from torpor.images.directory import ImageReader

    started = time.monotonic()
    parent = TORPORS_PARENT if sibling else FRONT if options.restore_sibling or not options.restore_detached else NOBODY
    cradle = None
    if sibling:
        from torpor.engine.spawn import Cradle

        cradle = Cradle.make()
    child: list[int] = []
    letting_go: list[int] = []

    def on_report(kind: str, value: Any) -> None:
        if kind == "made":
            child.append(value)
        elif kind == "let go":
            letting_go[:] = value
        elif cradle is not None:
            _clone_for(cradle, value)

    with ImageReader.open(options.images_dir) as images:
        try:
            result = run_engine(lambda report: _restore(options, images.dir_fd, report, parent, cradle), on_report)
        except BaseException:
            for pid in letting_go:  # the engine died when some did not die with it any more
                _kill(pid)
            if child:
                _reap(child[0])
            raise
    return result._replace(seconds=time.monotonic() - started)


def _clone_for(cradle: "Cradle", pid: int) -> None:
    """In the front: make the root as our sibling, and tell the engine how that went."""
    try:
        cradle.clone(pid, CLONE_PARENT)
        failure = 0
    except OSError as error:
        failure = error.errno or EPERM
    cradle.theirs.send(failure.to_bytes(4, "little"))
    cradle.close()


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _reap(pid: int) -> None:
    """The root died with the failed restore; it was our child."""
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass


def describe(options: "Options") -> str:
    """What a restore would do: checks everything, creates nothing.  Raises TorporError."""
    from torpor.engine.process import run_engine
    from torpor.images.directory import ImageReader

    with ImageReader.open(options.images_dir) as images:
        return run_engine(lambda _: _describe(options, images.dir_fd))


def _describe(options: "Options", dir_fd: int) -> str:
    work = _Work(options, dir_fd)
    work.check()
    return "\n".join(work.plan.lines())


def _restore(options: "Options", dir_fd: int, report: "Report", parent: int, cradle: "Cradle | None") -> RestoreResult:
    """In the engine process."""

    def clone_first(cradle: "Cradle", pid: int) -> None:
        from torpor.engine.spawn import cannot_make

        try:
            if parent == TORPORS_PARENT:
                report("clone", pid)
                failure = int.from_bytes(cradle.ours.recv(4), "little")
                if failure:
                    raise OSError(failure, os.strerror(failure))
            else:
                cradle.clone(pid, CLONE_PARENT if parent == FRONT else 0)
        except OSError as error:
            raise cannot_make(pid, error.errno or 0) from None
        if parent == FRONT:
            report("made", pid)

    work = _Work(options, dir_fd)
    work.check()
    try:
        work.build(clone_first, cradle)
        work.bring_back()
        work.release(report)
    except BaseException as error:
        work.undo()
        if isinstance(error, OSError):
            import traceback

            from torpor import log

            log.debug(traceback.format_exc())
            where = f" ({error.filename})" if error.filename else ""
            raise RestoreFailed(
                "the restore failed", f"{os.strerror(error.errno or 0)}{where}", "see the log (-v4 -o FILE)"
            ) from error
        raise
    return work.result()


def check_all(restore: "Restore") -> "Plan":
    """Everything that a restore checks before it creates anything, for `torpor check`; the plan of births."""
    work = _Work(restore.options, -1, restore)
    work.check()
    return work.plan


class _Work:
    """One restore, phase by phase."""

    def __init__(self, options: "Options", dir_fd: int, restore: "Restore | None" = None) -> None:
        from torpor.images.directory import ImageReader
        from torpor.resources.context import Restore

        self.restore = restore or Restore(options, ImageReader(dir_fd))
        self.phases: dict[str, float] = {}
        self._at = time.monotonic()
        self.limit = _raise_limit()
        self.spawner: Spawner | None = None
        self._pidfile = ""

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.phases[name] = self.phases.get(name, 0.0) + now - self._at
        log.info(f"{name}: {(now - self._at) * 1e3:.1f} ms")
        self._at = now

    # -- check ------------------------------------------------------------------------------------------------------
    def check(self) -> None:
        from torpor import restore_load
        from torpor.arch import native
        from torpor.memory.restore import AddressSpaces
        from torpor.resources import registry
        from torpor.resources.fdtable import Files

        restore = self.restore
        self.plan = restore_load.load(restore)
        restore.state["executor areas"] = restore_load.executor_areas(restore)
        with restore.trying():
            self.spaces = AddressSpaces(restore)
        self.files = Files(restore)
        with restore.trying():
            self.files.check(self.limit)
        self.attributes = registry.attributes()
        for task in restore.tasks.values():
            if not task.dead:
                for attribute in self.attributes:
                    with restore.trying():
                        attribute.check(task, restore)
        with restore.trying():
            self.registers = restore_load.registers(restore, native(), _template())
            if hasattr(self, "spaces"):  # or that is a problem already
                self.spaces.vdso.check_threads(restore, self.registers)
        if restore.options.cpu_cap:
            from torpor import cpuinfo

            with restore.trying():
                cpuinfo.check(restore)
        restore_load.check_pids(restore, self.plan)
        self.lap("check")

    # -- tree -------------------------------------------------------------------------------------------------------
    def build(self, clone_first: "Callable[[Cradle, int], None]", cradle: "Cradle | None") -> None:
        from torpor.engine.spawn import Spawner
        from torpor.resources.tree import Tree

        self.spawner = Spawner(self.spaces.hole)
        tree = Tree(self.restore, self.plan, self.spawner, self.spaces)
        tree.build(clone_first, cradle)
        tree.settle()
        self.lap("tree")

    # -- memory, files, settings --------------------------------------------------------------------------------------
    def bring_back(self) -> None:
        from torpor.engine.program import Program
        from torpor.engine.together import run_together
        from torpor.engine.waiting import check_cancelled
        from torpor.memory import segments, sysv
        from torpor.resources import fdtable

        restore = self.restore
        living = [task for task in restore.tasks.values() if not task.dead]
        run_together((task.executor, self.spaces.finish(task)) for task in living)
        sysv.remove_marked(restore)
        self.lap("memory")
        self.files.make()
        segments.seal(restore)
        self.files.fill_tables(self.limit)
        self.lap("files")
        programs = {task.pid: Program() for task in living}
        fdtable.enter_directories(restore, self.files, programs)
        self.files.place(programs)
        for task in living:
            for attribute in self.attributes:
                attribute.place(task, programs[task.pid])
        several = []  # with other threads, or without a leader
        for task in living:
            if len(task.threads) > 1 or task.leader_ended:
                several.append(task)
            else:
                self._place_thread(task, task.pid, programs[task.pid])
        run_together((task.executor, iter([programs[task.pid]])) for task in living)
        self.lap("settings")
        for task in several:
            check_cancelled()
            self._threads(task)
        self.lap("threads")
        programs = {task.pid: Program() for task in living}
        for task in living:
            for attribute in self.attributes:
                attribute.last(task, programs[task.pid])
        run_together((task.executor, iter([programs[task.pid]])) for task in living)
        self.files.last()
        for task in living:
            for attribute in self.attributes:
                attribute.outside(task, restore)
        self.lap("last")

    def _threads(self, task: Any) -> None:
        """Make the other threads; then everything that is a thread's own, the leader's last."""
        from torpor.engine.program import Program
        from torpor.engine.team import ThreadTeam
        from torpor.resources.fdtable import thread_tables

        assert self.spawner is not None
        others = task.threads[1:]
        if others:
            tables = thread_tables(self.restore, task)
            threads = self.spawner.threads(task.runner, others)
            programs: dict[Tracee, Program] = {}
            for thread in threads:
                task.tracees[thread.tid] = thread
                if thread.tid in tables:
                    thread.share_memory(task.tracee)
                    runner = self.spawner.enter_thread(task.runner, thread)
                    program = self.files.fill_thread(task, runner, tables[thread.tid], self.limit)
                    self._place_thread(task, thread.tid, program)
                    runner.run(program)
                else:
                    programs[thread] = Program()
                    self._place_thread(task, thread.tid, programs[thread])
            team = ThreadTeam(task.runner)
            team.run(programs)
            team.close()
        if not task.leader_ended:
            program = Program()
            self._place_thread(task, task.pid, program)
            task.runner.run(program)

    def _place_thread(self, task: Any, tid: int, program: Any) -> None:
        for attribute in self.attributes:
            attribute.place_thread(task, tid, task.cores[tid], program)

    # -- release ----------------------------------------------------------------------------------------------------
    def release(self, report: "Report") -> None:
        """Take the executors out, put the registers in, let the tree run."""
        from torpor.engine import waiting
        from torpor.kernel import ptrace

        spawner, options = self.spawner, self.restore.options
        assert spawner is not None
        spawner.remove_executors()
        for task in self.restore.tasks.values():
            if task.dead:
                continue
            for tid, thread in task.tracees.items():
                if tid == task.pid and task.leader_ended:
                    _load_exit(thread, task)
                    continue
                _load_registers(thread, self.registers[tid])
                core = task.cores[tid].thread_core
                assert core is not None and task.core.tc is not None
                mask = core.blk_sigset if core.blk_sigset is not None else task.core.tc.blk_sigset
                ptrace.set_signal_mask(tid, mask)
        waiting.check_cancelled()
        self._write_pidfile()
        waiting.forget_cancellation()
        report("let go", [task.pid for task in self.restore.tasks.values() if not task.dead])
        for tid in spawner.tracees:
            ptrace.set_options(tid, 0)
        report("let go", [])  # from here on, all run if the engine dies
        for task in self.restore.tasks.values():
            if task.dead:
                continue
            if options.leave_stopped:
                os.kill(task.pid, signal.SIGSTOP)
            for thread in reversed(task.tracees.values()):
                try:
                    thread.detach()
                except ProcessLookupError:
                    pass  # threads that were let go before have ended the process
        self.files.close()
        self._tidy()
        self.lap("release")
        self._write_stats()

    def _tidy(self) -> None:
        """The tree runs: remove what was only needed until here."""
        from torpor import log

        for remove in self.restore.state.get("at end", ()):
            try:
                remove()
            except OSError as error:
                log.warning(f"{error.filename} is not needed any more and could not be removed: {error.strerror}")

    def _write_pidfile(self) -> None:
        options = self.restore.options
        if options.pidfile is None:
            return
        path = os.path.join(options.work_directory, options.pidfile)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise KernelError(f"cannot write the PID file {path}", error, "remove it, or name another") from None
        self._pidfile = path
        try:
            os.write(fd, b"%d" % self.plan.root)
        finally:
            os.close(fd)

    def _write_stats(self) -> None:
        from torpor import log
        from torpor.images.directory import write_stats
        from torpor.images.schema.stats import RestoreStatsEntry, StatsEntry

        def micros(seconds: float) -> int:
            return min(int(seconds * 1e6), 0xFFFFFFFF)

        entry = RestoreStatsEntry(
            pages_compared=self.restore.state.get("pages compared", 0),
            pages_skipped_cow=self.restore.state.get("pages skipped", 0),
            forking_time=micros(self.phases["tree"]),
            restore_time=micros(sum(self.phases.values())),
            pages_restored=self.restore.state.get("pages restored", 0),
        )
        try:
            fd = os.open(self.restore.options.work_directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                write_stats(fd, StatsEntry(restore=entry))
            finally:
                os.close(fd)
        except OSError as error:
            log.warning(f"the statistics could not be written: {error}")

    def undo(self) -> None:
        """End everything that was made, and take back what was made outside of the tree."""
        from torpor.engine import waiting
        from torpor.memory import sysv

        waiting.forget_cancellation()
        if self.spawner is not None:
            self.spawner.kill()
        sysv.undo(self.restore)
        if self._pidfile:
            os.unlink(self._pidfile)
        for undo in self.restore.state.get("undo", ()):
            try:
                undo()
            except (OSError, TorporError):
                pass
        self.files.close()

    def result(self) -> RestoreResult:
        tasks = self.restore.tasks.values()
        return RestoreResult(
            pid=self.plan.root,
            tasks=len(tasks),
            threads=sum(len(task.threads) for task in tasks if not task.dead),
            files=len(self.files.order),
            seconds=0.0,
            phases=self.phases,
        )


def _load_exit(thread: "Tracee", task: "RestoreTask") -> None:
    """A main thread that had ended ends again, as soon as it is let go; exit(2) takes what wait(2) shows shifted."""
    assert task.core.tc is not None
    code = task.core.tc.exit_code >> 8 & 0xFF
    thread.use_gadget(0)  # the executor's instruction is gone: the vDSO's
    thread.set_general(thread.arch.enter_call(thread.general, thread.gadget, thread.arch.SYSCALLS["exit"], [code]))


def _load_registers(thread: "Tracee", registers: "Registers") -> None:
    from torpor.arch.base import NT_PRSTATUS
    from torpor.kernel import ptrace

    for which, data in registers.others.items():
        ptrace.set_regset(thread.tid, which, data)
    ptrace.set_regset(thread.tid, NT_PRSTATUS, registers.general)


def _raise_limit() -> int:
    """Let the engine, and the tasks that come from it, have as many descriptors as they may."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _template() -> "Registers":
    """Registers of a process of this machine, whose sizes and reserved fields count: those of a moment's child."""
    from torpor.engine.tracee import Tracee
    from torpor.kernel import ptrace

    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    try:
        ptrace.seize(pid, ptrace.O_EXITKILL)
        ptrace.interrupt(pid)
        os.waitpid(pid, 0x40000000)
        return Tracee(pid, pid).registers()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0x40000000)
