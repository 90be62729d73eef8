# SPDX-License-Identifier: Apache-2.0
"""``torpor dump``: freeze a tree, write it to images, end it."""

from collections.abc import Mapping

from torpor.cli.say import Voice, count
from torpor.options import Options
from torpor.progress import duration, quantity


def run(options: Options, voice: Voice) -> int:
    from torpor.dump import dump

    result = dump(options)
    where = options.images_dir.rstrip("/") + "/"
    facts = {
        "tasks": result.tasks,
        "threads": result.threads,
        "files": result.files,
        "bytes": result.bytes,
        "seconds": result.seconds,
        "frozen_seconds": result.frozen_seconds,
        "phases": dict(result.phases),
        "images": options.images_dir,
    }
    if options.display_stats and not voice.json:
        voice.out(times(result.phases))
    voice.result(
        f"dumped {count(result.tasks, 'task')}, {count(result.files, 'file')}, {quantity(result.bytes)} in "
        f"{duration(result.seconds)} (frozen {duration(result.frozen_seconds)}) → {where}",
        facts,
    )
    return 0


def times(phases: Mapping[str, float]) -> str:
    """Where the time went: one line a phase, in the order in which they were."""
    width = max((len(name) for name in phases), default=0)
    return "\n".join(f"  {name:{width}}  {duration(seconds):>9}" for name, seconds in phases.items())
