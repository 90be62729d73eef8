# SPDX-License-Identifier: Apache-2.0
"""``torpor check -D DIR``: can these images be restored here and now, and if not, why not: everything at once.

It loads and checks as a restore does, by the same code, and goes on after what is in the way.  Besides, it looks at
what a restore would only find when it gets there: ports in use, and facilities that the kernel lacks.  Nothing is
created; between the check and the restore, things can change.
"""

import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from torpor.errors import ImageError, Refusal, TorporError, clean
from torpor.images.directory import ImageReader
from torpor.options import Options
from torpor.progress import quantity
from torpor.resources.context import Restore
from torpor.typed import Iterator, Sequence

if TYPE_CHECKING:
    from torpor.images.schema.fdinfo import FileEntry
    from torpor.images.schema.sk_inet import InetSkEntry
    from torpor.model.restore_plan import Plan

LISTEN, CLOSE = 10, 7  # include/net/tcp_states.h
MANY = 40


class ImagesReport(NamedTuple):
    """What is in the images, and what is in the way of restoring them."""

    directory: str
    tasks: tuple[tuple[int, str], ...]  # PID and name
    threads: int
    files: int
    memory: int  # bytes
    plan: tuple[str, ...]  # births, in words
    obstacles: tuple[TorporError, ...]

    @property
    def ok(self) -> bool:
        return not self.obstacles

    def lines(self) -> list[str]:
        lines = []
        if self.tasks:
            root = self.tasks[0]
            lines += [
                f"{clean(self.directory)}: {clean(root[1])} ({root[0]}), {_count(len(self.tasks), 'task')}, "
                f"{_count(self.threads, 'thread')}, {_count(self.files, 'file')}, {quantity(self.memory)} of memory",
                "",
            ]
        if self.plan:
            lines += ["how the tree would be made", *(f"  {line}" for line in self.plan[:MANY])]
            if len(self.plan) > MANY:
                lines.append(f"  … and {len(self.plan) - MANY:,} steps more (restore --dry-run prints them)")
            lines.append("")
        if self.obstacles:
            lines.append(f"in the way: {_count(len(self.obstacles), 'thing')}")
            lines += [f"  {clean(str(one))}" for one in self.obstacles[:MANY]]
            if len(self.obstacles) > MANY:
                lines.append(f"  … and {len(self.obstacles) - MANY:,} more (--json lists them)")
            lines.append("")
        return [*lines, "Cannot be restored here and now." if self.obstacles else "Can be restored."]

    def facts(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "tasks": [{"pid": pid, "name": name} for pid, name in self.tasks],
            "threads": self.threads,
            "files": self.files,
            "memory": self.memory,
            "plan": list(self.plan),
            "obstacles": [
                {"code": one.code, "what": one.what, "why": one.why, "remedy": one.remedy} for one in self.obstacles
            ],
        }


class _Collecting(Restore):
    """A restore that never happens."""

    def __init__(self, options: Options, images: ImageReader) -> None:
        super().__init__(options, images)
        self.problems: list[TorporError] = []

    def problem(self, error: TorporError) -> None:
        if str(error) not in map(str, self.problems[-MANY:]):
            self.problems.append(error)

    @contextmanager
    def trying(self) -> Iterator[None]:
        try:
            yield
        except TorporError as error:
            self.problem(error)
        except OSError as error:
            self.problem(ImageError("the images cannot be read", f"{error.strerror} ({error.filename})"))


def check(options: Options) -> ImagesReport:
    """Look at the images in options.images_dir.  Raises nothing for what is wrong with them."""
    from torpor.engine.process import run_engine

    return run_engine(lambda _: _check(options))


def _check(options: Options) -> ImagesReport:
    from torpor.kernel.probe import REQUIRED, probes, run

    found: list[TorporError] = []
    for one in run(probe for probe in probes() if probe.group == REQUIRED):
        if not one.works:
            found.append(Refusal(f"this kernel: {one.name}", one.why, one.remedy, code="kernel"))
    return look(options, found)


def look(options: Options, before: Sequence[TorporError] = ()) -> ImagesReport:
    """As `check`, in this very process, and of the images alone; `before`: what is in the way besides."""
    plan: Plan | None = None
    bytes_stored = 0
    found = list(before)
    restore: _Collecting | None = None
    try:
        with ImageReader.open(options.images_dir) as images:
            restore = _Collecting(options, images)
            with restore.trying():
                plan = _all(restore)
                bytes_stored = _stored(images)
    except TorporError as error:  # not even a directory
        found.append(error)
    tasks = restore.tasks.values() if restore is not None else ()
    return ImagesReport(
        directory=options.images_dir,
        tasks=tuple((task.pid, task.core.tc.comm if task.core.tc else "?") for task in tasks),
        threads=sum(len(task.threads) for task in tasks if not task.dead),
        files=len(restore.files) if restore is not None else 0,
        memory=bytes_stored,
        plan=tuple(plan.lines()) if plan is not None else (),
        obstacles=(*found, *(restore.problems if restore is not None else ())),
    )


def _all(restore: _Collecting) -> "Plan":
    """As a restore does; raises TorporError where all that follows needs what is missing."""
    from torpor.restore import check_all

    plan = check_all(restore)
    with restore.trying():
        _ports(restore)
    return plan


def _stored(images: ImageReader) -> int:
    from torpor.images.summary import summarize

    return summarize(images).stored


# -- ports ------------------------------------------------------------------------------------------------------------


def _ports(restore: _Collecting) -> None:
    """Ports that the tree listens on or is bound to, and that are somebody else's now."""
    wanted = [entry.isk for entry in restore.files.values() if entry.isk is not None and _has_port(entry, restore)]
    if not wanted:
        return
    used: dict[tuple[int, int], list[tuple[bytes, bool]]] = {}
    try:
        for protocol in {isk.proto for isk in wanted}:
            for address, port, v6only in _in_use(protocol):
                used.setdefault((protocol, port), []).append((address, v6only))
    except OSError:
        return  # this kernel does not list sockets: the restore will see
    for isk in wanted:
        if isk.proto == socket.IPPROTO_TCP and isk.state not in (LISTEN, CLOSE):
            continue  # comes back closed, without a port
        address = struct.pack(f"={len(isk.src_addr)}I", *isk.src_addr)
        theirs = used.get((isk.proto, isk.src_port), ())
        if not isk.opts.so_reuseport and any(_collide(isk, address, *other) for other in theirs):
            name = "TCP" if isk.proto == socket.IPPROTO_TCP else "UDP"
            text = socket.inet_ntop(isk.family, address)
            why = "a program that runs here has it"
            restore.problem(
                Refusal(f"{name} port {isk.src_port} of {text}", why, "end that program", code="port-taken")
            )


def _has_port(entry: "FileEntry", restore: Restore) -> bool:
    """Whether it is a socket with a port; what is wrong with it has been told."""
    from torpor.resources.inet import Inet

    try:
        Inet().check(entry, restore)
    except TorporError:
        return False
    return entry.isk is not None and bool(entry.isk.src_port)


def _in_use(protocol: int) -> Iterator[tuple[bytes, int, bool]]:
    from torpor.kernel.sockdiag import SockDiag

    states = 1 << LISTEN | 1 << CLOSE if protocol == socket.IPPROTO_TCP else 0xFFF
    with SockDiag() as diag:
        for family in (socket.AF_INET, socket.AF_INET6):
            for one in diag.inet(family, protocol, states):
                yield one.source, one.source_port, bool(one.v6only)


def _collide(isk: "InetSkEntry", ours: bytes, theirs: bytes, theirs_v6only: bool) -> bool:
    if len(ours) == len(theirs):
        return ours == theirs or not any(ours) or not any(theirs)
    any6, v6only, four = (ours, bool(isk.v6only), theirs) if len(ours) == 16 else (theirs, theirs_v6only, ours)
    if v6only:
        return False
    mapped = any6[:12] == bytes(10) + b"\xff\xff"
    return (mapped and (any6[12:] == four or not any(four))) or not any(any6)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
