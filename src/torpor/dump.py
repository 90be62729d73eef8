# SPDX-License-Identifier: Apache-2.0
"""The order in which a tree is dumped.

    look     before the freeze: rights, the target, the images directory; imports of everything that will be needed
    freeze   every thread of every process stops
    collect  what /proc shows; refusals come from here, before anything runs in a task
    ask      programs in all tasks: what only they can tell
    files    each open file description once, through our own descriptor
    memory   the tasks write their pages
    cure     tasks that go on are let go here: the frozen time ends
    write    all other images; fsync; inventory.img last
    end      only now is the original ended, unless it goes on

Everything until `write` happens in the engine process.  Whatever fails, and whoever dies, the tasks are put back.
"""

import os
import time

from torpor import log
from torpor import signals as signal
from torpor.errors import DumpFailed, Refusal, TaskGone, TorporError, UsageError
from torpor.typed import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torpor.engine.process import Report
    from torpor.options import Options
    from torpor.resources.context import Dump

PF_KTHREAD = 0x200000


class DumpResult(NamedTuple):
    """What was dumped.  Times in seconds; `phases` says where they went, `kinds` how many times something was done for
    a kind of object while the tree stood still, and how long it took (only with display_stats)."""

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


def dump(options: "Options", watcher: Watcher | None = None) -> DumpResult:
    """Dump the tree options.tree into options.images_dir.  Raises TorporError; the tree goes on then."""
    from torpor.engine.process import run_engine

    started = time.monotonic()
    pid = options.tree
    if pid is None:
        raise UsageError("dump needs a process", "no -t PID was given", "name the tree's root with -t PID")
    refuse_target(pid)
    dir_fd = _open_images(options.images_dir)
    try:
        facts: tuple[Any, ...] = run_engine(
            lambda report: tuple(_dump(options, dir_fd, report)),
            (lambda kind, value: watcher.stage(kind, value, dir_fd)) if watcher else None,
            watcher.tick if watcher else None,
        )
    finally:
        os.close(dir_fd)
    return DumpResult(*facts)._replace(seconds=time.monotonic() - started)


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
        stat = parse_stat(read_all(f"/proc/{pid}/stat"))
        ended = stat.state in "ZX" and len(os.listdir(f"/proc/{pid}/task")) == 1
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
    """Where the time goes, by phase."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self.at = time.monotonic()

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

    from torpor import dump_collect as collect
    from torpor import dump_write as write
    from torpor.engine.freeze import freeze
    from torpor.engine.waiting import Cancelled
    from torpor.images.directory import ImageWriter
    from torpor.memory.dump import prepare as prepare_pages
    from torpor.resources.context import Dump
    from torpor.survey import foresee

    assert options.tree is not None
    images = ImageWriter(dir_fd)
    session = Dump(options, images)
    session.state["guardian"] = guardian
    try:
        collect.prepare(session)
        alive = foresee(session, options.tree)
        collect.allow_descriptors(len(alive))
        try:
            prepare_pages(images, alive)
        except OSError as error:
            raise _explain(error, session) from error
        log.info(f"freezing process {options.tree} and all below it")
        log.hold()  # the log may be served by the tree: the engine's end releases it, too
        clock = _Clock()
        tree = freeze(options.tree, timeout=options.timeout)
    except BaseException:
        if images.names:
            images.discard()
        guardian.finish()
        raise
    frozen_at = clock.at
    clock.lap("freeze")
    memory: list[Any] = []
    try:
        collect.tasks(session, tree)
        clock.lap("tasks")
        memory = collect.areas(session)
        clock.lap("areas")
        report("memory", sum(end - start for space in memory for start, end, _ in space.runs))
        collect.install(session)
        clock.lap("infect")
        answers = collect.gather(session, memory)
        clock.lap("gather")
        if options.leave_running:
            collect.cure(session)
            clock.lap("cure")
            log.release()
        frozen = clock.at - frozen_at
        write.everything(session, answers, memory)
        report("sync", None)
        write.finish(session)
        clock.lap("write")
        if not options.leave_running:
            if options.leave_stopped:
                collect.cure(session, stop=True)
            else:
                _end(session)
            frozen = time.monotonic() - frozen_at
            clock.lap("end")
    except BaseException as error:
        collect.cure_all(session, tree)
        for undo in session.state.get("undo", ()):
            undo()
        images.discard()
        guardian.finish()
        if isinstance(error, Exception) and not isinstance(error, (Cancelled, DumpFailed)):
            if not isinstance(error, Refusal):  # that has said all there is to say
                import traceback

                log.debug(traceback.format_exc())
            if gone := _gone(session):  # then whatever was read of it was nonsense
                raise gone from error
            if isinstance(error, OSError):
                raise _explain(error, session) from error
        raise
    guardian.finish()
    write.stats(session, clock.phases, frozen, memory)  # last, as the frozen time ends only with the original
    return DumpResult(
        tasks=len(session.tasks),
        threads=sum(len(task.threads) for task in session.tasks.values()),
        files=len(session.file_entries),
        bytes=sum(space.bytes for space in memory) + images.bytes_written,
        seconds=0.0,
        frozen_seconds=frozen,
        phases=clock.phases,
        kinds=session.costs.kinds if session.costs else {},
    )


def _gone(session: "Dump") -> TorporError | None:
    from torpor.engine.stops import has_ended

    for task in session.tasks.values():
        tids = [thread.tid for thread in task.threads] or [task.pid]  # a leader may have ended before the others
        if not task.zombie and all(has_ended(tid) for tid in tids):
            return TaskGone(f"{task.subject} was ended by somebody else while it was dumped", remedy="try again")
    return None


def _explain(error: OSError, session: "Dump") -> TorporError:
    import errno

    why = os.strerror(error.errno or 0)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "make room, or choose another directory with -D"
        return DumpFailed("cannot write the images", why, remedy, code="disk-full")
    of_image = isinstance(error.filename, str) and "/" not in error.filename
    if of_image or error.errno in (errno.EFBIG, errno.EROFS):
        what = f"cannot write {error.filename or 'the images'} to the images directory {session.options.images_dir}"
        return DumpFailed(what, why, "name another directory with -D")
    where = f" ({error.filename})" if error.filename else ""
    return DumpFailed("the dump failed", f"{why}{where}", "see the log (-v4 -o FILE)")


def _end(session: "Dump") -> None:
    """Kill the tree: its images are safe.  All get the signal before any can run on."""
    for task in session.tasks.values():
        try:
            os.kill(task.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    # Threads that we trace must be waited for, or they stay zombies until the engine ends.
    for task in session.tasks.values():
        for thread in reversed(task.threads):
            try:
                os.waitpid(thread.tid, 0x40000000)
            except ChildProcessError:
                pass
