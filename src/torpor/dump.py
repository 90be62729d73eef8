# SPDX-License-Identifier: Apache-2.0
"""The order in which a tree is dumped.

    look     before the freeze: rights, the target, the images directory; imports of everything that will be needed;
             a rehearsal, where the tree is to go on
    freeze   every thread of every process stops
    collect  what /proc shows; refusals come from here, before anything runs in a task
    memory   the tasks write their pages
    ask      programs in all tasks: what only they can tell
    files    meanwhile, each open file description once, through our own descriptor
    cure     tasks that go on are let go here: their frozen time ends
    write    all other images
    sync     fsync; inventory.img last
    end      only now is the original ended (here its frozen time ends), unless it goes on
    gone     the kernel has taken it apart

Everything until `write` happens in the engine process.  Whatever fails, and whoever dies, the tasks are put back.
"""

import os
import time

from torpor import log
from torpor import signals as signal
from torpor.errors import DumpFailed, Refusal, TaskGone, TorporError, UsageError, exhausted
from torpor.typed import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torpor.engine.process import Report
    from torpor.memory.dump import AddressSpace
    from torpor.options import Options
    from torpor.resources.context import Dump, DumpTask

PF_KTHREAD = 0x200000
DYING_S = 1.0  # that a task which somebody ends may take, on a busy machine
MORE_S = 2.0  # than --timeout: the freeze heeds that itself where it can


class DumpResult(NamedTuple):
    """What was dumped.  Times in seconds; `phases` says where they went, `kinds` how many times something was done for
    a kind of object while the tree stood still, and how long it took (only with display_stats).

    `frozen_seconds`: from before the first thread is asked to stop until the tree goes on; or, where it is to stop or
    to end, until it has been told so, which is when its images are on the disk.  What its end takes (the kernel has to
    take its memory apart) is not counted: nobody waits for that.
    """

    tasks: int
    threads: int
    files: int
    bytes: int
    seconds: float
    frozen_seconds: float
    phases: dict[str, float]
    kinds: dict[str, tuple[int, float]]


class Watcher:
    """Whoever wants to see how a dump gets on.  Called in the caller's process, for which nothing waits."""

    def stage(self, name: str, value: Any, dir_fd: int) -> None:
        """A stage begins: "memory" (value: bytes that will be in the pages images in `dir_fd`), "sync"."""

    def tick(self) -> None:
        """Some tenths of a second have passed."""


def dump(options: "Options", watcher: Watcher | None = None, alone: bool = False) -> DumpResult:
    """Dump the tree options.tree into options.images_dir.  Raises TorporError; the tree goes on then.  `alone`: this
    process is for nothing else."""
    from torpor.engine.process import LIMIT, run_engine

    started = time.monotonic()
    pid = options.tree
    if pid is None:
        raise UsageError("dump needs a process", "no -t PID was given", "name the tree's root with -t PID")
    refuse_target(pid)
    dir_fd = _open_images(options.images_dir)
    left: list[str] = []

    def hear(kind: str, value: Any) -> None:
        if kind == LIMIT:  # the engine was killed in the freeze
            left.extend(value)
        elif watcher:
            watcher.stage(kind, value, dir_fd)

    try:
        facts: tuple[Any, ...] = run_engine(
            lambda report: tuple(_dump(options, dir_fd, report)), hear, watcher.tick if watcher else None, alone
        )
    except DumpFailed:
        _remove(dir_fd, left)
        raise
    finally:
        os.close(dir_fd)
    return DumpResult(*facts)._replace(seconds=time.monotonic() - started)


def _remove(dir_fd: int, names: list[str]) -> None:
    for name in names:
        try:
            os.unlink(name, dir_fd=dir_fd)
        except OSError:
            pass  # it is not there


def refuse_target(pid: int) -> None:
    """Raises UsageError for Torpor itself, its ancestors, init, threads and zombies, TaskGone where nothing is."""
    from torpor.kernel.proc import parse_stat
    from torpor.kernel.procfs import read_all
    from torpor.kernel.status import parse_status

    ancestor = os.getpid()
    while ancestor > 1:
        if ancestor == pid:
            raise UsageError(
                f"cannot dump process {pid}",
                "Torpor runs inside that tree",
                "start Torpor from outside of it, for instance with setsid from another session",
                code="own-tree",
            )
        ancestor = parse_stat(read_all(f"/proc/{ancestor}/stat")).ppid
    if pid == 1:
        raise UsageError("cannot dump process 1", "it is the init of this PID namespace", "dump it from outside")
    try:
        process = parse_status(read_all(f"/proc/{pid}/status")).tgid
        alone = len(os.listdir(f"/proc/{pid}/task")) == 1  # asked for first: a thread may be calling execve(2)
        stat = parse_stat(read_all(f"/proc/{pid}/stat"))
        ended = alone and stat.state in "ZX"
    except OSError:
        raise TaskGone(f"there is no process {pid}", remedy="check the PID given with -t") from None
    if process != pid:
        raise UsageError(f"cannot dump process {pid}", f"it is a thread of process {process}",
                         f"dump that: -t {process}", code="thread")  # fmt: skip
    if stat.flags & PF_KTHREAD:
        raise UsageError(f"cannot dump process {pid}", "it is a thread of the kernel", "dump a program", code="kernel")
    if ended:
        raise UsageError(f"cannot dump process {pid}", "it has ended, and waits for its parent to ask for its status",
                         "dump its parent with it", code="ended")  # fmt: skip


def _open_images(path: str) -> int:
    from fcntl import LOCK_EX, LOCK_NB, flock

    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise DumpFailed(
            f"cannot open the images directory {path}",
            os.strerror(error.errno or 0),
            "create it, or name another with -D",
        ) from None
    if not os.access(path, os.W_OK):
        os.close(fd)
        why = "its file system is read-only" if os.statvfs(path).f_flag & os.ST_RDONLY else "no permission"
        raise DumpFailed(f"cannot write to the images directory {path}", why, "name another with -D")
    try:
        flock(fd, LOCK_EX | LOCK_NB)  # the engine holds it too, so until nobody writes any more
    except BlockingIOError:
        os.close(fd)
        what = f"cannot write to the images directory {path}"
        raise DumpFailed(what, "another dump is writing to it", "name another with -D", code="busy") from None
    except OSError:
        pass  # a file system without locks
    return fd


class _Clock:
    """Where the time goes, by phase; `frozen`: how long the tree stood still."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self.frozen = 0.0
        self.at = time.monotonic()

    def freeze(self) -> None:
        """The tree is about to be stopped."""
        self.at = self._frozen_at = time.monotonic()

    def thaw(self, name: str) -> None:
        """A phase is over, and with it the tree's standing still."""
        self.lap(name)
        self.frozen = self.at - self._frozen_at

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.phases[name] = self.phases.get(name, 0.0) + now - self.at
        log.info(f"{name}: {(now - self.at) * 1e3:.1f} ms")
        self.at = now


def _dump(options: "Options", dir_fd: int, report: "Report") -> DumpResult:
    """In the engine process."""
    from torpor.engine.guardian import Guardian

    # The guardian shares the engine's memory as it is now, and the first write to each page of that is a page fault
    # that copies it, 3 µs.  So it is forked before the engine imports what it needs in the freeze: 100 faults, not 700.
    guardian = Guardian.start()

    from torpor import dump_write as write
    from torpor.images.directory import ImageWriter
    from torpor.resources.context import Dump

    images = ImageWriter(dir_fd)
    session = Dump(options, images)
    session.state["guardian"] = guardian
    clock = _Clock()
    try:
        _look(session)
        guardian.await_ready()
        memory = _save(session, clock, report)
    except BaseException as error:
        lost = [] if clock.frozen else _lost(error, session)  # now: then some end by themselves
        _undo(session)
        guardian.finish()
        if isinstance(error, Exception) and (told := _in_words(error, session, lost)):
            raise told from error
        raise
    # From here on nothing is undone: the images are the tree.
    if not options.leave_running and not options.leave_stopped:
        _kill(session)
        clock.thaw("end")
        _await_end(session)
        clock.lap("gone")
    guardian.finish()
    write.stats(session, clock.phases, clock.frozen, memory)  # last, as the frozen time ends only with the original
    return DumpResult(
        tasks=len(session.tasks),
        threads=sum(len(task.threads) for task in session.tasks.values()),
        files=len(session.file_entries),
        bytes=sum(space.bytes for space in memory) + images.bytes_written,
        seconds=0.0,
        frozen_seconds=clock.frozen,
        phases=clock.phases,
        kinds=session.costs.kinds if session.costs else {},
    )


def _look(session: "Dump") -> None:
    """All that can be done before the freeze."""
    from torpor import dump_ask as ask
    from torpor import dump_collect as collect
    from torpor.memory.writing import prepare as prepare_pages
    from torpor.survey import foresee

    assert session.options.tree is not None
    collect.prepare(session)
    if session.options.leave_running:
        from torpor.rehearsal import rehearse

        rehearse(session)
    alive = foresee(session, session.options.tree)
    ask.allow_descriptors(len(alive))
    prepare_pages(session.images, alive)
    if session.costs is not None:
        session.costs.kinds.clear()  # nobody has stood still for it


def _save(session: "Dump", clock: _Clock, report: "Report") -> "list[AddressSpace]":
    """Freeze the tree and write all images; a tree that is not to end is let go.  Returns what memory it has."""
    from torpor import dump_ask as ask
    from torpor import dump_collect as collect
    from torpor import dump_write as write
    from torpor.arch import native
    from torpor.engine.process import LIMIT

    options = session.options
    if options.leave_running or native().single_step:  # by which `collect.areas` lets threads out of the vDSO
        from torpor.engine.freeze import freeze
    else:
        from torpor.engine.refreeze import freeze_outside as freeze
    assert options.tree is not None
    log.info(f"freezing process {options.tree} and all below it")
    log.hold()  # the log may be served by the tree: the engine's end releases it, too
    report(LIMIT, _until_stuck(options, list(session.images.prepared)))
    clock.freeze()
    try:
        session.tree = freeze(options.tree, timeout=options.timeout)
        clock.lap("freeze")
    finally:
        report(LIMIT, None)
    collect.tasks(session, session.tree)
    clock.lap("tasks")
    memory = collect.areas(session)
    clock.lap("areas")
    report("memory", sum(end - start for space in memory for start, end, _ in space.runs))
    ask.install(session)
    clock.lap("infect")
    answers = ask.gather(session, memory)
    clock.lap("gather")
    if options.leave_running:
        ask.cure(session)
        clock.thaw("cure")
        log.release()
    write.everything(session, answers, memory)
    clock.lap("write")
    report("sync", None)
    write.finish(session)
    clock.lap("sync")
    if options.leave_stopped and not options.leave_running:
        ask.cure(session, stop=True)
        clock.thaw("stop")
    return memory


def _until_stuck(options: "Options", images: list[str]) -> tuple[float, tuple[str, str, str], list[str]] | None:
    """How long the freeze may take, what to say if it takes longer, and the images that are there by then, with nothing
    in them.  PTRACE_SEIZE waits for whoever calls execve(2), for as long as that takes, and no signal but SIGKILL ends
    the wait."""
    if not options.timeout:
        return None
    why = (
        f"a task could not be traced in {options.timeout:g} s: it may be in execve(2), which waits for something itself"
    )
    what = f"cannot freeze process {options.tree} and all below it"
    return options.timeout + MORE_S, (what, why, "try again, or wait longer: --timeout SECONDS"), images


def _undo(session: "Dump") -> None:
    """The dump failed: the tree goes on as it was, and no image is left."""
    from torpor import dump_ask as ask

    if session.tree is not None:  # else the freeze has let go of whatever it held
        ask.cure_all(session, session.tree)
    for undo in session.state.get("undo", ()):
        undo()
    session.images.discard()


def _in_words(error: Exception, session: "Dump", lost: "list[DumpTask]") -> TorporError | None:
    """What to say of a failure instead of what was raised; None: that says it."""
    from torpor.engine.waiting import Cancelled

    if isinstance(error, (Cancelled, DumpFailed)):
        return None
    if not isinstance(error, Refusal):  # that has said all there is to say
        import traceback

        log.debug(traceback.format_exc())
    # What is being ended loses its memory a moment before it is a zombie.
    until = time.monotonic() + (DYING_S if isinstance(error, ProcessLookupError) else 0)
    while True:
        if gone := _gone(lost):  # then whatever was read of it was nonsense
            return gone
        if time.monotonic() >= until:
            break
        time.sleep(0.005)
    return _explain(error, session) if isinstance(error, OSError) else None


def _lost(error: BaseException, session: "Dump") -> "list[DumpTask]":
    """Tasks whose end may have been the cause of a failure.  What a look at a task found is nonsense only when that
    gives up what it has; a system call fails as soon as the task is killed."""
    from torpor.engine.stops import is_ending

    if not isinstance(error, (Refusal, OSError)) or isinstance(error, ProcessLookupError):
        return list(session.tasks.values())
    return [task for task in session.tasks.values() if any(is_ending(thread.tid) for thread in task.threads)]


def _gone(tasks: "list[DumpTask]") -> TorporError | None:
    from torpor.engine.stops import has_ended

    for task in tasks:
        tids = [thread.tid for thread in task.threads] or [task.pid]  # a leader may have ended before the others
        if not task.zombie and all(has_ended(tid) for tid in tids):
            return TaskGone(f"{task.subject} was ended by somebody else while it was dumped", remedy="try again")
    return None


def _explain(error: OSError, session: "Dump") -> TorporError:
    import errno

    why = os.strerror(error.errno or 0)
    name = error.filename if isinstance(error.filename, str) else ""  # also of what a descriptor of the task's is
    image = name if name.endswith(".img") and "/" not in name else ""
    what = f"{image or 'the images'} to {session.options.images_dir}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DumpFailed(
            f"cannot write {what}", why, "make room, or choose another directory with -D", code="disk-full"
        )
    if (told := exhausted(error)) is not None:
        return told
    if image or error.errno in (errno.EFBIG, errno.EROFS):
        more = "raise the limit to file sizes (ulimit -f), or " if error.errno == errno.EFBIG else ""
        return DumpFailed(f"cannot write {what}", why, f"{more}name another directory with -D")
    where = f" ({error.filename})" if error.filename else ""
    return DumpFailed("the dump failed", f"{why}{where}", "see the log (-v4 -o FILE)")


def _kill(session: "Dump") -> None:
    """Kill the tree: its images are safe.  All get the signal before any can run on."""
    for task in session.tasks.values():
        try:
            os.kill(task.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _await_end(session: "Dump") -> None:
    """Threads that we trace must be waited for, or they stay zombies until the engine ends."""
    for task in session.tasks.values():
        for thread in reversed(task.threads):
            try:
                os.waitpid(thread.tid, 0x40000000)
            except ChildProcessError:
                pass
