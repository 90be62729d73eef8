# SPDX-License-Identifier: Apache-2.0
"""``torpor dump``: freeze a tree, write it to images, end it."""

import os

from torpor.cli.say import Voice, count
from torpor.dump import Watcher, dump
from torpor.options import Options
from torpor.progress import Meter, Progress, duration, quantity
from torpor.typed import Any, Mapping


def run(options: Options, voice: Voice) -> int:
    with Shown() as meter:
        result = dump(options, meter if meter.visible else None, alone=True)
    where = options.images_dir.rstrip("/") + "/"
    facts: dict[str, Any] = {
        "tasks": result.tasks,
        "threads": result.threads,
        "files": result.files,
        "bytes": result.bytes,
        "seconds": result.seconds,
        "frozen_seconds": result.frozen_seconds,
        "phases": dict(result.phases),
        "images": options.images_dir,
    }
    if options.display_stats:
        facts["kinds"] = {kind: {"number": each[0], "seconds": each[1]} for kind, each in result.kinds.items()}
    lines = [times(result.phases), kinds(result.kinds)] if options.display_stats else []
    frozen = f"frozen {duration(result.frozen_seconds)}"
    if not options.leave_running:
        frozen += f", {duration(result.phases['sync'])} of it for the disk"
    lines.append(
        f"dumped {count(result.tasks, 'task')}, {count(result.files, 'file')}, {quantity(result.bytes)} in "
        f"{duration(result.seconds)} ({frozen}) → {where}"
    )
    voice.result("\n".join(lines), facts)
    return 0


class Shown(Meter, Watcher):
    """A line of progress on the terminal.  It is drawn without waiting for the terminal, by a process for which the
    tree does not wait, so it may be drawn while the tree is frozen, too: whoever serves the terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._dir_fd = -1

    def stage(self, name: str, value: Any, dir_fd: int) -> None:
        self.close()
        self._dir_fd = dir_fd
        words = {"memory": "writing memory", "sync": "bringing the images to the disk"}
        if name in words:
            self._progress = Progress(words[name], value or 0, terminal_is_safe=True)

    def tick(self) -> None:
        if self._progress is not None:
            self._progress.add(self._written() - self._progress.done if self._progress.total else 0)

    def _written(self) -> int:
        done = 0
        for name in os.listdir(self._dir_fd):
            if name.startswith("pages-"):
                try:
                    done += os.stat(name, dir_fd=self._dir_fd).st_size
                except FileNotFoundError:
                    pass
        return done


def kinds(found: Mapping[str, tuple[int, float]]) -> str:
    """Kinds of objects that the tree stood still for, the costliest first."""
    lines = []
    for kind, (number, seconds) in sorted(found.items(), key=lambda item: -item[1][1]):
        lines.append(f"  {duration(seconds):>9}  {number:>7,} × {kind}")
    return "\n".join(lines)


def times(phases: Mapping[str, float]) -> str:
    """Where the time went: one line a phase, in the order in which they were."""
    width = max((len(name) for name in phases), default=0)
    return "\n".join(f"  {name:{width}}  {duration(seconds):>9}" for name, seconds in phases.items())
