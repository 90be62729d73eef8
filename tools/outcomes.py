# SPDX-License-Identifier: Apache-2.0
"""What the tests came to: reads pytest's reports, prints "N passed, N failed, N skipped", and says if all is well.

    outcomes.py [--installed] REPORT...

Beside a REPORT, REPORT.again is that of a second try of what failed in it, if there was one.  With --installed
(packages were installed, as root) a test that was skipped because a program or the peer is missing counts as failed:
else a mirror that is out of order, or a package that was renamed, would silently take whole programs out of the tests.
A kernel that lacks something is no failure, and neither are cross compilers, which only `tools/setup vm` installs.
"""

import re
import sys
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import NamedTuple

MISSING_PROGRAM = re.compile(r"apt-get install|install gcc|no peer: (?!TORPOR_PEER=no)")


class Outcome(NamedTuple):
    """How one test ended, and why it was skipped."""

    kind: str
    why: str = ""


def outcomes(path: Path) -> dict[str, Outcome]:
    """By name of the test.  Raises OSError, ParseError: the tests did not get to their end."""
    found = {}
    for case in xml.parse(path).getroot().iter("testcase"):
        children = {child.tag: child for child in case if child.tag in ("failure", "error", "skipped")}
        kind = "skipped" if set(children) == {"skipped"} else "failed" if children else "passed"
        why = ""
        if kind == "skipped" and children["skipped"].get("type") != "pytest.xfail":
            why = children["skipped"].get("message") or ""
        found[f"{case.get('classname')}::{case.get('name')}"] = Outcome(kind, why)
    return found


def summary(first: dict[str, Outcome], second: dict[str, Outcome], installed: bool) -> tuple[list[str], bool]:
    """Lines for people, the counts last, and whether all is as it should be."""
    failed_first = [name for name, outcome in first.items() if outcome.kind == "failed"]
    final = first | {name: second[name] for name in failed_first if name in second}
    lines = [f"passed only at the second try: {name}" for name in failed_first if final[name].kind != "failed"]
    if installed:
        for name, outcome in final.items():
            if outcome.kind == "skipped" and MISSING_PROGRAM.search(outcome.why):
                final[name] = Outcome("failed")
                lines.append(f"not run, though what it needs should have been installed: {name}: {outcome.why}")
    lines += [f"failed: {name}" for name, outcome in final.items() if outcome.kind == "failed"]
    passed, failed, skipped = (sum(one.kind == kind for one in final.values()) for kind in _KINDS)
    lines.append(f"{passed} passed, {failed} failed, {skipped} skipped")
    return lines, passed > 0 and not failed


_KINDS = ("passed", "failed", "skipped")


def main(words: list[str]) -> int:
    installed = "--installed" in words
    first: dict[str, Outcome] = {}
    second: dict[str, Outcome] = {}
    for path in (Path(word) for word in words if word != "--installed"):
        try:
            first |= outcomes(path)
        except (OSError, xml.ParseError):
            print(f"{path.name}: the tests did not get to their end", file=sys.stderr)
            return 1
        again = path.with_name(f"{path.name}.again")
        second |= outcomes(again) if again.exists() else {}
    lines, good = summary(first, second, installed)
    print("\n".join(lines))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
