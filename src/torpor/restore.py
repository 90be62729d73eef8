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
from errno import EPERM

from torpor import log
from torpor import signals as signal
from torpor.errors import RestoreFailed, TorporError
from torpor.typed import TYPE_CHECKING, Any, Callable, NamedTuple

if TYPE_CHECKING:
    from torpor.arch.base import Registers
    from torpor.engine.process import Report
    from torpor.engine.spawn import Spawner
    from torpor.engine.stub import Cradle
    from torpor.memory.signal_frames import SignalFrames
    from torpor.model.restore_plan import Plan
    from torpor.options import Options
    from torpor.resources.base import Attribute
    from torpor.resources.context import Restore, RestoreTask

# Whose child the root becomes: of whoever adopts orphans, of the process that asks, of that one's parent.
NOBODY, FRONT, TORPORS_PARENT = range(3)
CLONE_PARENT = 0x8000
LARGE = 1 << 24  # bytes of memory: fewer are read before anybody looks how far that is


class RestoreResult(NamedTuple):
    """What was restored.  Times in seconds; `phases` says where they went."""

    pid: int
    tasks: int
    threads: int
    files: int
    seconds: float
    phases: dict[str, float]


class Watcher:
    """Told where a restore stands, in the front."""

    def stage(self, size: int, pids: "list[int]") -> None:
        """So many bytes will be read into the memory of these processes; none: that is over."""

    def tick(self) -> None:
        """Some tenths of a second have passed."""


def restore(options: "Options", sibling: bool = False, watcher: Watcher | None = None) -> RestoreResult:
    """Bring back the tree in options.images_dir.  Raises TorporError; nothing is left of it then.  For a dry run, check
    all and say what would be restored.

    The root becomes a child of this process if it is waited for (not restore_detached) or asked for (restore_sibling;
    with `sibling` a child of this process's parent), else of whoever adopts orphans.
    """
    from torpor.engine.process import run_engine
    from torpor.images.directory import ImageReader

    started = time.monotonic()
    parent = TORPORS_PARENT if sibling else FRONT if options.restore_sibling or not options.restore_detached else NOBODY
    cradle = None
    if sibling:
        from torpor.engine.stub import Cradle

        cradle = Cradle.make()
    child: list[int] = []
    letting_go: list[int] = []

    def on_report(kind: str, value: Any) -> None:
        if kind == "made":
            child.append(value)
        elif kind == "memory":
            if watcher:
                watcher.stage(*value)
        elif kind == "let go":
            letting_go[:] = value
        elif cradle is not None:
            _clone_for(cradle, value)

    with ImageReader.open(options.images_dir) as images:
        try:
            facts: tuple[Any, ...] = run_engine(
                lambda report: tuple(_restore(options, images.dir_fd, report, parent, cradle)), on_report,
                watcher.tick if watcher else None,
            )  # fmt: skip
        except BaseException:
            for pid in letting_go:  # the engine died when some did not die with it any more
                _kill(pid)
            if child:
                _reap(child[0])
            raise
    return RestoreResult(*facts)._replace(seconds=time.monotonic() - started)


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


def describe(options: "Options") -> list[str]:
    """What a restore would do, in lines: checks everything, creates nothing.  Raises TorporError."""
    from torpor.engine.process import run_engine
    from torpor.images.directory import ImageReader

    with ImageReader.open(options.images_dir) as images:
        return run_engine(lambda _: _describe(options, images.dir_fd))


def _describe(options: "Options", dir_fd: int) -> list[str]:
    work = _Work(options, dir_fd)
    work.check()
    return list(work.plan.lines())


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
    if options.dry_run:
        return work.result()
    if options.pidfile is not None:
        from torpor.restore_release import refuse_pidfile

        refuse_pidfile(options)
    size = work.spaces.bytes_stored()
    try:
        if size >= LARGE:
            report("memory", (size, list(work.restore.tasks)))
        work.build(clone_first, cradle)
        work.bring_back()
        if size >= LARGE:
            report("memory", (0, []))
        work.release(report)
    except BaseException as error:
        work.undo()
        if isinstance(error, OSError) or isinstance(error.__cause__, OSError):
            import traceback

            from torpor import log

            log.debug(traceback.format_exc())
        if isinstance(error, OSError):
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
        self._at = time.monotonic()
        # This forks, and writing to a page for the first time since then is a page fault: so before all imports.
        self._template = _template()
        from torpor.engine.descriptors import raise_limit
        from torpor.images.directory import ImageReader
        from torpor.resources.context import Restore

        self.restore = restore or Restore(options, ImageReader(dir_fd))
        self.phases: dict[str, float] = {}
        self.limit = raise_limit()
        self.spawner: Spawner | None = None
        self.frames: SignalFrames | None = None
        self._pidfile = ""
        self._hooked: dict[str, list[Attribute]] = {}

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
        from torpor.resources import lacking, registry
        from torpor.resources.fdtable import Files

        restore = self.restore
        self.plan = restore_load.load(restore)
        restore.state["executor areas"] = restore_load.executor_areas(restore)
        with restore.trying():
            self.spaces = AddressSpaces(restore)
        self.files = Files(restore)
        with restore.trying():
            self.files.check(self.limit)
        restore_load.check_descriptors(restore, self.plan, self.limit)
        self.attributes = registry.attributes()
        for task in self._living():
            for attribute in self._with("check"):
                with restore.trying():
                    attribute.check(task, restore)
        with restore.trying():
            self.registers = restore_load.registers(restore, native(), self._template)
            if hasattr(self, "spaces"):  # or that is a problem already
                self._check_frames()
            for task in self._living():
                lacking.check_calls(restore, task, self.registers)
        if restore.options.cpu_cap:
            from torpor import cpuinfo

            with restore.trying():
                cpuinfo.check(restore)
        restore_load.check_pids(restore, self.plan)
        self.lap("check")

    def _check_frames(self) -> None:
        """Threads that were dumped inside a function of another kernel's vDSO, or inside a signal handler."""
        from torpor.resources import clocks

        frames = {}
        same_boot = clocks.is_same_boot(self.restore)
        if self.spaces.vdso.is_foreign or not same_boot:
            from torpor.memory.signal_frames import SignalFrames

            self.frames = SignalFrames(self.restore, self.registers, self.spaces.spaces)
            frames = self.frames.of
        self.spaces.vdso.check_threads(self.restore, self.registers, frames)
        self.spaces.vdso.leave_signal_pages(self.restore, frames, same_boot)

    def _with(self, hook: str) -> "list[Attribute]":
        """The attributes that have this hook: the others need not be asked for each of a thousand threads."""
        if hook not in self._hooked:
            from torpor.resources.base import Attribute

            nothing = getattr(Attribute, hook)
            self._hooked[hook] = [one for one in self.attributes if getattr(type(one), hook) is not nothing]
        return self._hooked[hook]

    # -- tree -------------------------------------------------------------------------------------------------------
    def build(self, clone_first: "Callable[[Cradle, int], None]", cradle: "Cradle | None") -> None:
        from torpor.engine.spawn import Spawner
        from torpor.resources.tree import Tree

        self.spawner = Spawner(self.spaces.hole, self.spaces.short_stack)
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

        assert self.spawner is not None
        restore = self.restore
        living = self._living()
        run_together((task.executor, self.spaces.finish(task)) for task in living)
        sysv.mark(restore)
        self.lap("memory")
        self.files.make()
        segments.seal(restore)
        self.files.fill_tables(self.limit)
        self.lap("files")
        programs = {task.pid: Program() for task in living}
        fdtable.enter_directories(restore, self.files, programs)
        self.files.place(programs)
        for task in living:
            for attribute in self._with("place"):
                attribute.place(task, programs[task.pid])
        several = []  # with other threads, or without a leader
        for task in living:
            if len(task.threads) > 1 or task.leader_ended:
                several.append(task)
            else:
                self._place_thread(task, task.pid, programs[task.pid])
        run_together((task.executor, iter([programs[task.pid]])) for task in living)
        self.lap("settings")
        if several:
            from torpor import restore_threads

            for task in several:
                check_cancelled()
                restore_threads.bring_back(
                    task, self.spawner, self.files, self.limit, self._place_thread, self._with("in_turn")
                )
        self.lap("threads")
        programs = {task.pid: Program() for task in living}
        for task in living:
            for attribute in self._with("last"):
                attribute.last(task, programs[task.pid])
        run_together((task.executor, iter([programs[task.pid]])) for task in living)
        self.files.last()
        for task in living:
            for attribute in self._with("outside"):
                try:
                    attribute.outside(task, restore)
                except OSError as error:
                    raise _failed(task, attribute, error) from error
        self.lap("last")

    def _place_thread(self, task: Any, tid: int, program: Any) -> None:
        for attribute in self._with("place_thread"):
            attribute.place_thread(task, tid, task.cores[tid], program)

    # -- release ----------------------------------------------------------------------------------------------------
    def release(self, report: "Report") -> None:
        """Take the executors out, put the registers in, let the tree run."""
        from torpor import restore_release
        from torpor.engine import waiting

        assert self.spawner is not None
        living = self._living()
        self.spawner.remove_executors()
        if self.frames is not None:
            self.frames.mend()
        restore_release.load_registers(living, self.registers)
        waiting.check_cancelled()
        if self.restore.options.pidfile is not None:
            self._pidfile = restore_release.make_pidfile(self.restore.options)
            restore_release.write_pidfile(self._pidfile, self.plan.root)
        waiting.forget_cancellation()
        restore_release.let_go(living, self.spawner.tracees, self.restore.options.leave_stopped, report)
        self.files.close()
        restore_release.tidy(self.restore)
        self.lap("release")
        restore_release.write_stats(self.restore, self.phases)

    def _living(self) -> "list[RestoreTask]":
        return [task for task in self.restore.tasks.values() if not task.dead]

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


def _failed(task: "RestoreTask", attribute: "Attribute", error: OSError) -> RestoreFailed:
    from torpor.resources import words

    names = ", ".join(words.OTHERS[key] for key in sorted(attribute.covers) if key in words.OTHERS)
    where = f" ({error.filename})" if error.filename else ""
    return RestoreFailed(f"{task.subject} cannot get back: {names}", f"{os.strerror(error.errno or 0)}{where}")


def _template() -> "Registers":
    """Registers of a process of this machine, whose sizes and reserved fields count: those of a moment's child."""
    from torpor.kernel import process

    pid = process.fork_idle()
    try:
        from torpor.engine.tracee import Tracee
        from torpor.kernel import ptrace

        ptrace.seize(pid, ptrace.O_EXITKILL)
        ptrace.interrupt(pid)
        os.waitpid(pid, 0x40000000)
        return Tracee(pid, pid).registers()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0x40000000)
