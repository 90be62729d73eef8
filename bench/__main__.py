# SPDX-License-Identifier: Apache-2.0
"""The command: ``python -m bench [--only CASE] [--tool NAME] [--runs N] [--criu PATH]``."""

from __future__ import annotations

import argparse
import compileall
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import report
from bench.cases import CASES, DUMP, RESTORE, Case
from bench.measure import Timing, Tool, dump, restore, set_aside, timed, watch_dump, watch_restore
from bench.victims import BenchError, Victim, become_subreaper, build

ROOT = Path(__file__).resolve().parent.parent
MEMORY = "/dev/shm"  # a tmpfs


def torpor() -> Tool:
    """This checkout's Torpor, started as an installed one would be: by its script, its byte code cached, as pip leaves
    it."""
    compileall.compile_dir(str(ROOT / "src"), quiet=2)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = str(ROOT / "src")
    return Tool("Torpor", (sys.executable, str(ROOT / "scripts/torpor")), environment)


def criu(path: str | None) -> Tool:
    """The CRIU to compare with: --criu, $CRIU, PATH, or where the project's own set-up puts it."""
    places = [path, os.environ.get("CRIU"), shutil.which("criu"), str(Path.home() / ".cache/peer-criu/bin/criu")]
    for place in places:
        if place and os.access(place, os.X_OK):
            return Tool("CRIU", (place,), dict(os.environ))
        if place and place is path:
            break
    raise BenchError("no CRIU found: name it with --criu PATH or $CRIU, or measure Torpor alone with --tool torpor")


def in_turn(tools: list[Tool], runs: int, one: Callable[[Tool], Timing], say: Callable[[str], None]) -> report.Rows:
    """Every tool once, as often as asked, each beginning every other time."""
    rows: report.Rows = {tool.name: [] for tool in tools}
    for run in range(runs):
        for tool in tools if run % 2 == 0 else tools[::-1]:
            timing = one(tool)
            rows[tool.name].append(timing)
            frozen = "" if timing.frozen is None else f"frozen {timing.frozen * 1000:.1f} ms, "
            say(f"{tool.name} {frozen}command {timing.whole * 1000:.0f} ms")
    return rows


def measure_case(
    case: Case, tools: list[Tool], runs: int, program: Path, work: Path, say: Callable[[str], None]
) -> Iterator[tuple[str, report.Measured]]:
    """One victim: its dump, then its restore."""
    place = work / case.name
    place.mkdir()
    store = place_in_memory(case.number << 20, len(tools)) if case.in_memory else place
    try:
        victim = Victim(program, case, place)
        try:
            images = {tool.name: store / tool.name for tool in tools}
            # The first run of each is the one that is watched for memory, so it also warms up what both read.
            memory = {tool.name: watch_dump(tool, victim, images[tool.name]) for tool in tools}
            rows = in_turn(tools, runs, lambda tool: dump(program, tool, victim, images[tool.name]),
                           lambda text: say(f"{case.title}: dump: {text}"))  # fmt: skip
            yield DUMP, report.Measured(rows, memory, victim.undisturbed())
            victim.end()
            memory = {tool.name: watch_restore(tool, victim, images[tool.name]) for tool in tools}
            rows = in_turn(tools, runs, lambda tool: restore(program, tool, victim, images[tool.name]),
                           lambda text: say(f"{case.title}: restore: {text}"))  # fmt: skip
            yield RESTORE, report.Measured(rows, memory, None)
        finally:
            victim.end()
    finally:
        set_aside(place)  # removed with all the others when nothing is measured any more
        if store != place:
            shutil.rmtree(store, ignore_errors=True)


def place_in_memory(size: int, number: int) -> Path:
    """A directory on a tmpfs with room for the images of so many processes of `size` bytes."""
    if not os.path.ismount(MEMORY):
        raise BenchError(f"{MEMORY} is no tmpfs")
    facts = os.statvfs(MEMORY)
    with open("/proc/meminfo") as file:
        available = next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:"))
    needed = size * (number + 2)  # the victim, and as much again, so that nothing is swapped out
    if min(facts.f_bavail * facts.f_frsize, available) < needed:
        raise BenchError(f"{MEMORY} has less than {needed / 1e9:.1f} GB of room")
    return Path(tempfile.mkdtemp(prefix="torpor-bench-", dir=MEMORY))


def options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Torpor and CRIU in turn.")
    parser.add_argument("--only", metavar="CASE", action="append", choices=[case.name for case in CASES],
                        help="only this victim; may be repeated")  # fmt: skip
    parser.add_argument("--tool", choices=["torpor", "criu", "both"], default="both", help="measure only one of them")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="runs of each (5)")
    parser.add_argument("--criu", metavar="PATH", help="the criu program to compare with")
    parser.add_argument("--work", metavar="DIR", help="where the images go, on a disk (the temporary directory)")
    parser.add_argument("--write", metavar="FILE", help="write the tables to this Markdown file "
                        "(docs/benchmarks.md when all is measured, else nowhere)")  # fmt: skip
    chosen = parser.parse_args(arguments)
    if chosen.runs < 1:
        parser.error("--runs must be at least 1")
    return chosen


def main(arguments: list[str]) -> int:
    chosen = options(arguments)
    whole = chosen.only is None and chosen.tool == "both"
    say = report.progress
    failures: list[str] = []
    results: report.Results = {}
    try:
        tools = ([torpor()] if chosen.tool != "criu" else []) + ([criu(chosen.criu)] if chosen.tool != "torpor" else [])
        become_subreaper()
        with tempfile.TemporaryDirectory(prefix="torpor-bench-", dir=chosen.work) as directory:
            work = Path(directory)
            program = build(work)
            starts = {
                tool.name: min(timed(program, tool, ["--version"], work, "none")[0] for _ in range(5)) for tool in tools
            }
            for case in CASES:
                if chosen.only and case.name not in chosen.only:
                    continue
                try:
                    for command, measured in measure_case(case, tools, chosen.runs, program, work, say):
                        results.setdefault(case, {})[command] = measured
                except BenchError as error:  # what was measured before it, and the other cases, still count
                    failures.append(f"{case.title}: {error}")
                    say(failures[-1] + "\n")
            facts = report.facts(tools, chosen.runs, starts, work)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    say("")
    names = [tool.name for tool in tools]
    if not results:
        print("bench: nothing could be measured:\n" + "\n".join(failures), file=sys.stderr)
        return 1
    print(report.terminal(results, names, facts, failures))
    target = chosen.write or (ROOT / "docs/benchmarks.md" if whole else None)
    if target:
        Path(target).write_text(report.markdown(results, names, facts, failures))
        print(f"written to {os.path.relpath(target)}")
    if whole and not chosen.write and not failures:
        readme = ROOT / "README.md"
        readme.write_text(report.in_readme(readme.read_text(), results, names, facts))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
