# SPDX-License-Identifier: Apache-2.0
"""Write docs/guests.md: which objects come back on which architecture and kernel, from what guests have said.

    python tools/guests.py         from the results that `make test-vm` has left in its cache

Nothing here is written by hand: what has not been run is shown as not run.
"""

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs/guests.md"
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/vm")]

from vmlab import cache_dir  # noqa: E402
from vmlab.targets import KERNELS, TARGETS  # noqa: E402

from harness.workload import Workload, all_workloads  # noqa: E402

HEAD = """\
# Objects in guests

What `make test-vm` found: each workload of `tests/workloads` is dumped and restored inside guests with Debian's own
kernels of each architecture, under QEMU's emulation, and compared with what it was; and it is dumped with
`--leave-running`, goes on, and is compared, too. ppc64le has pages of 64 KiB in 6.1 and of 4 KiB in 6.12; arm's 6.1 is
the kernel with LPAE, its 6.12 the one without. Written by `tools/guests.py` from the guests' results, of each case the
newest.

The first sign is the restore's: `+` comes back · `r` is refused in words (below) · `-` cannot be had on that machine ·
`F` fails · empty: not run. The second is of the one that goes on.
"""
Result = dict[str, Any]
MODES = ("restore", "leave-running")


def results(arch: str, kernel: str) -> dict[str, Result]:
    path = cache_dir() / "results" / f"{arch}-{kernel}-workloads.json"
    found: dict[str, Result] = json.loads(path.read_text()) if path.exists() else {}
    for other in sorted(path.parent.glob(f"{path.stem}-*.json")):  # of a CPU that has more than the usual one
        for case, result in json.loads(other.read_text()).items():
            if found.get(case, result)["outcome"] == "skipped":
                found[case] = result
    return found


def newest(found: dict[str, Result], name: str, mode: str) -> Result | None:
    """The latest result of a mode: of a case of its own, or of one that has both; leave-running ends with a restore."""
    modes = dict.fromkeys((mode, "both", "leave-running"))
    several = [found[case] for case in (f"{name}-{one}" for one in modes) if case in found]
    return max(several, key=lambda result: result.get("at", 0), default=None)


def about(workload: Workload) -> str:
    """The first sentence of its comment."""
    text = re.sub(r"\s*\n \*\s*", " ", workload.path.read_text()[:1500])
    found = re.search(r"/\* (?!wl:)(.*?[.:])[\s*]", text) or re.search(r'"""(.*?[.:])\s', text)
    return found[1].rstrip(".:").replace("|", "/") if found else workload.name


def mark_of(result: Result | None) -> str:
    if result is None:
        return ""
    refused = result["output"].startswith("refused: ")
    return {"passed": "r" if refused else "+", "skipped": "-"}.get(result["outcome"], "F")


def why(result: Result) -> str:
    """The reason for its sign, where that wants one."""
    prefix = {"r": "refused: ", "-": "cannot run here: "}.get(mark_of(result))
    lines = result["output"].splitlines()
    return next((line.removeprefix(prefix) for line in lines if line.startswith(prefix)), "") if prefix else ""


def runs(found: dict[str, Result]) -> list[str]:
    """A row for each release of the kernel and commit that the results in the document are of: how many, and when."""
    shown = {
        result["case"]: result
        for workload in all_workloads() for mode in MODES if (result := newest(found, workload.name, mode)) is not None
    }  # fmt: skip
    groups: dict[tuple[str, str], list[float]] = {}
    for result in shown.values():
        groups.setdefault((result.get("release", ""), result.get("commit", "")), []).append(result.get("at", 0))
    rows = []
    for (release, commit), times in sorted(groups.items(), key=lambda group: max(group[1])):
        first, last = (time.strftime("%Y-%m-%d %H:%M", time.gmtime(at)) for at in (min(times), max(times)))
        rows.append(f"{release or 'not noted'} | {commit or 'not noted'} | {len(times)} | {first} | {last}")
    return rows


def main() -> int:
    columns = [(arch, kernel) for arch in TARGETS for kernel in KERNELS]
    known = {column: results(*column) for column in columns}
    lines = [HEAD, "| workload | what it owns | " + " | ".join(f"{arch} {kernel}" for arch, kernel in columns) + " |"]
    lines.append("|---|---|" + "---|" * len(columns))
    words: dict[str, list[str]] = {}
    for workload in all_workloads():
        found = {column: newest(known[column], workload.name, "restore") for column in columns}
        marks = [
            mark_of(result) + mark_of(newest(known[column], workload.name, "leave-running"))
            for column, result in found.items()
        ]
        lines.append(f"| {workload.name} | {about(workload)} | {' | '.join(marks)} |")
        for (arch, kernel), result in found.items():
            if result is not None and mark_of(result) in ("r", "-"):
                words.setdefault(f"{workload.name}: {why(result)}", []).append(f"{arch} {kernel}")
    lines += ["", "## Refused, or not to be had", ""]
    lines += [f"- {reason} ({', '.join(where)})" for reason, where in words.items()]
    lines += [
        "",
        "## In numbers",
        "",
        "| kernel | mode | passed | refused | not to be had | fail |",
        "|---|---|---|---|---|---|",
    ]
    for (arch, kernel), found_there in known.items():
        for mode in MODES:
            marks = [mark_of(newest(found_there, workload.name, mode)) for workload in all_workloads()]
            numbers = " | ".join(str(marks.count(one)) for one in "+r-F")
            lines.append(f"| {arch} {kernel} | {mode} | {numbers} |")
    lines += [
        "",
        "## Of which run",
        "",
        "In UTC. A kernel with several lines has results of several runs. A commit with a + had changes beside it.",
        "",
        "| kernel | release | commit | cases | first | last |",
        "|---|---|---|---|---|---|",
    ]
    for (arch, kernel), found_there in known.items():
        lines += [f"| {arch} {kernel} | {row} |" for row in runs(found_there)]
    TARGET.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
