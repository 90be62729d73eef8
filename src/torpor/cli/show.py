# SPDX-License-Identifier: Apache-2.0
"""`torpor show`: draws a checkpoint for people, and any single image as JSON.

Names come out of images, images from anywhere: control characters in them never reach the terminal.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter

from torpor.errors import ImageError, clean
from torpor.images.asjson import image_to_json, message_to_json, render
from torpor.images.container import parse_image
from torpor.images.describe import describe, sort_of
from torpor.images.directory import MAX_IMAGE, ImageReader
from torpor.images.kinds import IMG_COMMON, IMG_SERVICE, KINDS, RAW, ImageKind, kind_of_file
from torpor.images.schema.enums import CoreEntryMarch
from torpor.images.summary import MEMORY, Area, Summary, Task, summarize

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TextIO

MANY_DESCRIPTORS = 32  # of one table; beyond that only the first are listed and the rest counted
MANY_TABLES = 16  # after these, tables are only counted
BIGGEST = 10


def run(paths: list[str], *, as_json: bool = False, out: TextIO | None = None) -> int:
    """The verb: show each of `paths`, a directory or an image (several as JSON: one list).  Returns the exit status."""
    out = out or sys.stdout
    try:
        if as_json and len(paths) > 1:
            out.write(json.dumps([as_value(path) for path in paths], indent=1) + "\n")
            return 0
        for path in paths:
            show(path, as_json=as_json, out=out)
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 0


def show(path: str, *, as_json: bool, out: TextIO) -> None:
    """Show a checkpoint's directory (drawn, or as JSON) or an image (always JSON)."""
    if as_json:
        out.write(json.dumps(as_value(path), indent=1) + "\n")
        return
    if not os.path.isdir(path):
        out.writelines(render(load_image(path, names=True)))
        out.write("\n")
        return
    with ImageReader.open(path) as images:
        summary = summarize(images)
    for line in draw(summary, path):
        out.write(line + "\n")


def as_value(path: str) -> dict[str, Any]:
    """A checkpoint or an image, for programs."""
    if not os.path.isdir(path):
        return load_image(path, names=False)
    with ImageReader.open(path) as images:
        return checkpoint_to_json(summarize(images))


# ---- an image --------------------------------------------------------------------------------------------------------


def load_image(path: str, names: bool) -> dict[str, Any]:
    """An image as JSON.  A file that was renamed is known by its magic number."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            size = os.fstat(fd).st_size
            start = file.read(8)
            known = kind_of_file(os.path.basename(path))
            kind = known[0] if known else kind_by_magic(start)
            if kind is None:
                raise ImageError(f"{path} is not an image", "neither its name nor its first bytes are those of one")
            if kind.shape == RAW:
                return {"magic": kind.name, "raw_bytes": size}
            if size > MAX_IMAGE:
                raise ImageError(f"{path} is mangled", f"it has {size} bytes, more than any such image can have")
            data = start + file.read(size)
    except OSError as error:
        raise ImageError(f"cannot open {path}", error.strerror or str(error)) from error
    return image_to_json(kind, list(parse_image(kind, data, os.path.basename(path))), names)


def kind_by_magic(start: bytes) -> ImageKind[Any] | None:
    words = int.from_bytes(start[:4], sys.byteorder), int.from_bytes(start[4:8], sys.byteorder)
    magic = words[1] if words[0] in (IMG_COMMON, IMG_SERVICE) else words[0]
    return next((kind for kind in KINDS.values() if kind.magic == magic and magic), None)


# ---- a checkpoint ----------------------------------------------------------------------------------------------------


def size(number: int) -> str:
    """ "1.5 MiB"."""
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1000:
            return f"{number} B" if unit == "B" else f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def count(number: int, what: str) -> str:
    """ "1 process", "2 processes", "3 directories"."""
    if number != 1:
        what = what[:-1] + "ies" if what.endswith("y") else what + "es" if what.endswith("s") else what + "s"
    return f"{number:,} {what}"


def table(rows: list[list[str]], left: int = 1) -> list[str]:
    """Columns; the first `left` ones lean left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join(
            text.ljust(width) if column < left else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]  # fmt: skip


def draw(found: Summary, path: str) -> list[str]:
    """The checkpoint as lines of text."""
    lines = _head(found, path)
    if found.tasks:
        lines += ["", "processes", *_tree(found)]
    areas = [(task, area) for task in found.tasks for area in task.areas]
    if areas or found.segments:
        lines += ["", "memory: mapped, of which stored", *_memory(found)]
    biggest = sorted((item for item in areas if item[1].stored), key=lambda item: -item[1].stored)[:BIGGEST]
    if biggest:
        lines += ["", "biggest areas", *_areas(biggest)]
    if found.tables:
        lines += ["", "open files", *_files(found)]
    return lines


def _head(found: Summary, path: str) -> list[str]:
    pre = found.inventory.pre_dump_mode is not None
    what = [count(len(found.tasks), "process")] if not pre else ["a pre-dump: memory only"]
    what.append(count(sum(len(task.threads) for task in found.tasks), "thread"))
    what.append(count(sum(len(entries) for entries in found.tables.values()), "descriptor"))
    what.append(f"{size(found.stored)} of pages")
    march = next((name for name, value in vars(CoreEntryMarch).items() if value == found.march), "")
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.when))
    lines = [
        f"{clean(path)}: {', '.join(what) if not pre else f'{what[0]}, {what[-1]}'}",
        f"  dumped {when}{' on ' + march.lower() if march else ''},"
        f" {size(found.image_bytes)} in {count(found.image_files, 'image')}",
    ]
    stats = found.stats
    if stats:
        lines.append(
            f"  frozen for {stats.frozen_time / 1000:,.1f} ms"
            f" (stopping {stats.freezing_time / 1000:,.1f}, memory {stats.memdump_time / 1000:,.1f},"
            f" writing {stats.memwrite_time / 1000:,.1f});"
            f" {stats.pages_written:,} of {stats.pages_scanned:,} pages written"
        )
    if found.has_parent:
        lines.append("  builds on the checkpoint that `parent` points to")
    return lines


def _tree(found: Summary) -> list[str]:
    children: dict[int, list[Task]] = {}
    pids = {task.pid for task in found.tasks}
    for task in found.tasks:
        children.setdefault(task.ppid if task.ppid in pids and task.ppid != task.pid else 0, []).append(task)
    lines: list[str] = []
    stack = [(task, "", "", "") for task in reversed(children.get(0, []))]
    while stack:  # a tree may be thousands deep
        task, before, branch, below = stack.pop()
        lines.append(f"  {before}{branch}{task.pid} {clean(task.name)}{_about(task)}")
        inside = children.pop(task.pid, [])
        for at, child in enumerate(reversed(inside)):
            last = at == 0
            stack.append((child, before + below, "└─ " if last else "├─ ", "   " if last else "│  "))
    return lines


def _about(task: Task) -> str:
    about = [] if task.state == "alive" else [task.state]
    if len(task.threads) > 1:
        names = ", ".join(clean(name) for name in task.thread_names[:4])
        more = ", …" if len(task.thread_names) > 4 else ""
        about.append(f"{len(task.threads)} threads" + (f" ({names}{more})" if names else ""))
    if task.pid == task.sid:
        about.append("leads a session")
    elif task.pid == task.pgid:
        about.append("leads a group")
    if task.uids and task.uids[0]:
        about.append(f"uid {task.uids[0]}")
    if task.exe:
        about.append(clean(task.exe))
    return f": {', '.join(about)}" if about else ""


def _memory(found: Summary) -> list[str]:
    owners = [task for task in found.tasks if task.areas]
    kinds = [kind for kind in MEMORY if any(area.kind == kind for task in owners for area in task.areas)]
    rows = [["", *kinds, "stored"]]
    shown = owners if len(owners) <= 40 else owners[:30]
    for task in shown:
        memory = task.memory()
        cells = [_cell(*memory[kind]) if kind in memory else "·" for kind in kinds]
        rows.append([f"{task.pid} {clean(task.name)}", *cells, size(sum(stored for _, stored in memory.values()))])
    if len(owners) > 1:
        totals = [[task.memory().get(kind, (0, 0)) for task in owners] for kind in kinds]
        cells = [_cell(sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)) for pairs in totals]
        stored = size(sum(area.stored for task in owners for area in task.areas))
        if len(shown) < len(owners):
            rows.append([f"… and {len(owners) - len(shown)} more", *["" for _ in kinds], ""])
        rows.append(["all", *cells, stored])
    lines = table(rows) if owners else []
    if found.segments:
        shared = sum(segment.stored for segment in found.segments)
        lines.append(f"  {count(len(found.segments), 'shared segment')}: {size(shared)} stored")
    return lines


def _cell(mapped: int, stored: int) -> str:
    return f"{size(mapped)}/{size(stored)}" if stored else size(mapped)


def _areas(areas: list[tuple[Task, Area]]) -> list[str]:
    rows = [["stored", "of", "where", "process", "what"]]
    for task, area in areas:
        prot = "".join(letter if area.prot & bit else "-" for letter, bit in (("r", 1), ("w", 2), ("x", 4)))
        what = f"{area.kind} {prot} {clean(area.name)}"
        where = f"{area.start:x}-{area.end:x}"
        rows.append([size(area.stored), size(area.size), where, f"{task.pid} {clean(task.name)}", what])
    right = [[row[0].rjust(10), row[1].rjust(10), *row[2:]] for row in rows]
    return table(right, left=5)


# ---- open files ------------------------------------------------------------------------------------------------------


def _files(found: Summary) -> list[str]:
    """Descriptors by table; tasks with a table of the same content (what fork makes) stand together."""
    owners: dict[tuple[tuple[int, int, int], ...], list[Task]] = {}
    contents: dict[int, tuple[tuple[int, int, int], ...]] = {}
    for task in found.tasks:
        if task.files_id:
            if task.files_id not in contents:
                entries = found.tables.get(task.files_id, [])
                contents[task.files_id] = tuple(sorted((entry.fd, entry.id, entry.flags) for entry in entries))
            owners.setdefault(contents[task.files_id], []).append(task)
    lines: list[str] = []
    for number, (table_, tasks) in enumerate(owners.items()):
        who = ", ".join(f"{task.pid} {clean(task.name)}" for task in tasks[:5])
        if len(tasks) > 5:
            who += f" and {len(tasks) - 5} more"
        if len(tasks) > 1:
            who += " (one table)" if len({task.files_id for task in tasks}) == 1 else " (the same each)"
        kinds = Counter(sort_of(found, id) for _, id, _ in table_)
        lines.append(f"  {who}: {', '.join(count(many, kind) for kind, many in kinds.most_common()) or 'none'}")
        listed = MANY_DESCRIPTORS if number < MANY_TABLES else 0
        for fd, id, flags in table_[:listed]:
            lines.append(f"  {fd:6}  {describe(found, id)}{'  cloexec' if flags & 1 else ''}")
        if len(table_) > listed > 0:
            lines.append(f"       …  and {len(table_) - listed:,} more")
    return lines


# ---- a checkpoint as JSON --------------------------------------------------------------------------------------------


def checkpoint_to_json(found: Summary) -> dict[str, Any]:
    """What `draw` shows, for programs."""
    tasks = []
    for task in found.tasks:
        entries = sorted(found.tables.get(task.files_id, []), key=lambda entry: entry.fd)
        tasks.append(
            {
                "pid": task.pid,
                "ppid": task.ppid,
                "pgid": task.pgid,
                "sid": task.sid,
                "name": task.name,
                "state": task.state,
                "threads": task.threads,
                "exe": task.exe,
                "cwd": task.cwd,
                "vm_id": task.vm_id,
                "files_id": task.files_id,
                "memory": {
                    kind: {"mapped": mapped, "stored": stored} for kind, (mapped, stored) in task.memory().items()
                },
                "files": [{"fd": entry.fd, "what": describe(found, entry.id)} for entry in entries],
            }
        )
    return {
        "inventory": message_to_json(found.inventory),
        "dumped": found.when,
        "images": found.image_files,
        "image_bytes": found.image_bytes,
        "page_bytes": found.stored,
        "stats": message_to_json(found.stats) if found.stats else None,
        "has_parent": found.has_parent,
        "shared_segments": [{"shmid": segment.shmid, "stored": segment.stored} for segment in found.segments],
        "tasks": tasks,
    }
