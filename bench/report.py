# SPDX-License-Identifier: Apache-2.0
"""Medians, ratios and goals as tables, for a terminal and for docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench.cases import BASE, DUMP, GOALS, MEMORY_GOAL_MB, RESTORE, Case, units
from bench.measure import Timing, Tool

Rows = dict[str, list[Timing]]  # by the tool's name


class Measured(NamedTuple):
    """One command on one victim."""

    rows: Rows
    watched: dict[str, float]  # MB of the tool's whole tree
    quiet: float | None  # seconds: the longest gap when nobody dumps


README_BEGIN, README_END = "<!-- written by make bench -->", "<!-- until here -->"
Results = dict[Case, dict[str, Measured]]
Table = list[list[str]]


def progress(text: str) -> None:
    """One line that is written over, when someone is looking."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K" + text)
    elif text:
        sys.stderr.write(text + "\n")
    sys.stderr.flush()


def facts(tools: Sequence[Tool], runs: int, starts: dict[str, float], work: Path) -> list[str]:
    """What the numbers depend on."""
    versions = []
    for tool in tools:
        run = subprocess.run([*tool.command, "--version"], capture_output=True, text=True, env=tool.environment)
        version = (run.stdout.split("\n")[0] or "?").removeprefix("Version: ").removeprefix("torpor ")
        versions.append(f"{tool.name} {version} (starts and says so in {starts[tool.name] * 1000:.0f} ms)")
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(work)], capture_output=True, text=True).stdout.strip()
    load = os.getloadavg()[0]
    return [
        "; ".join(versions),
        f"{datetime.now(UTC):%Y-%m-%d}, Linux {platform.release().split('-')[0]} {platform.machine()}, "
        f"{os.cpu_count()} processors, Python {platform.python_version()}, images on {kind}, load {load:.1f}",
        f"medians of {runs} runs each, in turn; dump -R, restore -d; images in the page cache; "
        "Torpor's byte code compiled beforehand",
    ]


def spread(values: list[float]) -> str:
    return f"{median(values) * 1000:.1f}"


def verdict(ratio: float | None, goal: float | None) -> str:
    if ratio is None:
        return ""
    if goal is None:
        return f"{ratio:.2f}"
    return f"{ratio:.2f} {'✓' if ratio <= goal else '✗'} ≤ {goal:g}"


def memory(measured: Measured, tool: str) -> float:
    return max(measured.watched[tool], *(row.memory for row in measured.rows[tool]))


def rows_of(results: Results) -> Iterator[tuple[str, Case, Measured]]:
    """What was measured, dumps first.  A command that failed on a victim stands among the failures instead."""
    for command in (DUMP, RESTORE):
        for case, by_command in results.items():
            if command in by_command:
                yield command, case, by_command[command]


def main_table(results: Results, tools: list[str]) -> Table:
    """A row for a command on a victim; with both tools there are ratios and goals."""
    both = len(tools) == 2
    header = ["work"]
    for what in ("frozen ms", "command ms", "on disk ms", "memory MB"):
        header += [f"{what}: {tool}" if i == 0 else tool for i, tool in enumerate(tools)]
        if both and what != "memory MB":
            header.append("ratio")
    header += [f"images MB: {tool}" if i == 0 else tool for i, tool in enumerate(tools)]
    table = [header]
    for command, case, measured in rows_of(results):
        goal = GOALS.get((command, case.name))
        row = [f"{command}, {case.title}"]
        frozen = {tool: [r.frozen for r in measured.rows[tool] if r.frozen is not None] for tool in tools}
        row += [spread(frozen[tool]) if frozen[tool] else "" for tool in tools]
        if both:
            ratio = median(frozen[tools[0]]) / median(frozen[tools[1]]) if frozen[tools[0]] else None
            row.append(verdict(ratio, goal and goal.frozen))
        whole = {tool: [r.whole for r in measured.rows[tool]] for tool in tools}
        row += [spread(whole[tool]) for tool in tools]
        if both:
            row.append(verdict(median(whole[tools[0]]) / median(whole[tools[1]]), goal and goal.whole))
        settled = {tool: [r.settled for r in measured.rows[tool]] for tool in tools}
        row += [spread(settled[tool]) if command == DUMP else "" for tool in tools]
        if both:
            ratio = median(settled[tools[0]]) / median(settled[tools[1]])
            row.append(verdict(ratio, None) if command == DUMP else "")
        for tool in tools:
            figure = memory(measured, tool)
            mark = "" if tool != "Torpor" else " ✓" if figure <= MEMORY_GOAL_MB else f" ✗ ≤ {MEMORY_GOAL_MB:g}"
            row.append(f"{figure:.0f}{mark}")
        row += [f"{measured.rows[tool][-1].size / 1e6:.1f}" for tool in tools]
        table.append(row)
    return table


def short_table(results: Results, tools: list[str]) -> Table:
    """What the README shows: times and their ratios."""
    table = [["work", "frozen: Torpor", "CRIU", "ratio", "command: Torpor", "CRIU", "ratio"]]
    for command, case, measured in rows_of(results):
        row = [f"{command}, {case.title}"]
        for field in ("frozen", "whole"):
            values = [[getattr(r, field) for r in measured.rows[tool]] for tool in tools]
            if any(None in some for some in values):
                row += ["", "", ""]
            else:
                ours, theirs = (median(some) for some in values)
                row += [f"{ours * 1000:.0f} ms", f"{theirs * 1000:.0f} ms", f"{ours / theirs:.2f}"]
        table.append(row)
    return table


def in_readme(text: str, results: Results, tools: list[str], about: list[str]) -> str:
    """The README with the short table in its place."""
    before, begin, rest = text.partition(README_BEGIN)
    _, end, after = rest.partition(README_END)
    if not (begin and end):
        raise ValueError(f"README.md has no place for the table between {README_BEGIN} and {README_END}")
    said = "; ".join(about[1:])
    return f"{before}{begin}\n{piped(short_table(results, tools))}\n\n{said[0].upper()}{said[1:]}.\n{end}{after}"


def growth_table(results: Results, tools: list[str]) -> Table:
    """What one more of a thing costs: the case less the base, by the number of things."""
    if BASE not in results:
        return []
    table = [["one more"]]
    for what in ("dump frozen", "dump", "restore"):
        table[0] += [f"{what}: {tool}" if i == 0 else tool for i, tool in enumerate(tools)]
    for case, by_command in results.items():
        if not case.unit:
            continue
        row = [f"{case.unit} ({case.per})"]
        scale = 1e3 if case.per == "ms" else 1e6
        for command, field in ((DUMP, "frozen"), (DUMP, "whole"), (RESTORE, "whole")):
            for tool in tools:
                if command not in by_command or command not in results[BASE]:
                    row.append("")
                    continue
                here = median(getattr(r, field) for r in by_command[command].rows[tool])
                base = median(getattr(r, field) for r in results[BASE][command].rows[tool])
                row.append(f"{(here - base) * scale / units(case):.1f}")
        table.append(row)
    return table


def spread_table(results: Results, tools: list[str]) -> Table:
    """The smallest and the largest of the runs, so that a reader sees how much to trust a median."""
    table = [["smallest to largest, ms", *(f"{what}: {tool}" for what in ("frozen", "command") for tool in tools)]]
    table[0].append("no tool")
    for command, case, measured in rows_of(results):
        row = [f"{command}, {case.title}"]
        for field in ("frozen", "whole"):
            for tool in tools:
                values = [getattr(r, field) for r in measured.rows[tool]]
                known = [value * 1000 for value in values if value is not None]
                row.append(f"{min(known):.1f} to {max(known):.1f}" if known else "")
        quiet = measured.quiet
        row.append("" if quiet is None else f"{quiet * 1000:.1f}")
        table.append(row)
    return table


def aligned(table: Table) -> str:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = []
    for row in table:
        cells = [cell.ljust(width) if i == 0 else cell.rjust(width)
                 for i, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def piped(table: Table) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in table]
    lines.insert(1, "|---" + "|--:" * (len(table[0]) - 1) + "|")
    return "\n".join(lines)


def missed(results: Results, tools: list[str]) -> str:
    """The closing line: how many of the goals are met."""
    cells = [cell for row in main_table(results, tools)[1:] for cell in row]
    met, not_met = sum("✓" in cell for cell in cells), sum("✗" in cell for cell in cells)
    return f"{met} of {met + not_met} goals met" if "Torpor" in tools else ""


EXPLAINED = (
    "frozen: the longest gap in the clock of the victim's own busy loop while it was dumped "
    "(no tool: the longest in half a second in which nobody dumped it, the noise of the machine). "
    "command: from starting the tool to its end. on disk: until the file system has written it all out; "
    "Torpor waits for that by itself (fsync), CRIU does not. "
    "memory: the most that the tool's processes held together, victims not counted. "
    "ratio: Torpor ÷ CRIU, with the goal (✓ met, ✗ not met)."
)
DISK = (
    "A dump of 1 GB to a disk: Torpor ends when the images are on the disk, CRIU when they are in the page cache, "
    "from where the kernel brings them to the disk in its own time. So Torpor's whole command takes as long as the "
    "disk, and on a disk that is slower than CRIU writes to memory the ratio cannot come below 1, whatever "
    "the rest takes. The column “on disk” compares like with like, and so does the row whose images lie in memory "
    "(tmpfs), where no disk is waited for."
)


def terminal(results: Results, tools: list[str], about: list[str], failures: list[str]) -> str:
    tables = [main_table(results, tools), growth_table(results, tools), spread_table(results, tools)]
    parts = ["\n".join(about), *(aligned(table) for table in tables if len(table) > 1), missed(results, tools)]
    parts += ["not measured:\n" + "\n".join(failures)] if failures else []
    return "\n\n".join(part for part in parts if part)


def markdown(results: Results, tools: list[str], about: list[str], failures: list[str]) -> str:
    """docs/benchmarks.md"""
    parts = ["# Benchmarks", "Written by `make bench`; do not edit.", "\n".join(f"- {line}" for line in about)]
    parts += [EXPLAINED, piped(main_table(results, tools)), missed(results, tools)]
    if len(tools) == 2 and any(case.in_memory for case in results):
        parts.append(DISK)
    growth = growth_table(results, tools)
    if len(growth) > 1:
        parts += [
            "## Growth",
            "What one more costs: the case less the 4 MB process, by how many it has.",
            piped(growth),
        ]
    parts += ["## Spread", piped(spread_table(results, tools))]
    if failures:
        parts += ["## Not measured", "\n".join("- " + failure.replace("\n", " ") for failure in failures)]
    return "\n\n".join(part for part in parts if part) + "\n"
