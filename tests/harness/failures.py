# SPDX-License-Identifier: Apache-2.0
"""How a case fails, so that two failures can be compared: is what went wrong here what goes wrong with CRIU alone?

Numbers (PIDs, addresses, inodes) and directories are not compared: they differ from run to run.
"""

import re


class ToolFailed(AssertionError):
    """The command did not end with 0.  `line` is the line in which it says why."""

    def __init__(self, tool: str, verb: str, status: int, line: str, text: str) -> None:
        super().__init__(f"{tool} {verb} failed ({status}): {line}\n{text}")
        self.tool, self.verb, self.line = tool, verb, line


class NeverReady(AssertionError):
    """The workload has failed by itself, before anything was done to it: no tool's failure excuses that."""


class Different(AssertionError):
    """/proc shows other things than before.  `found`: a sentence for each."""

    def __init__(self, when: str, found: list[str]) -> None:
        more = f"\n... and {len(found) - 30} more" if len(found) > 30 else ""
        super().__init__(f"{when} /proc shows {len(found)} differences:\n" + "\n".join(found[:30]) + more)
        self.found = found


class CheckFailed(AssertionError):
    """The workload itself says that something is not as it was.  `checks`: a sentence for each."""

    def __init__(self, name: str, checks: list[str]) -> None:
        super().__init__(f"{name}: {'; '.join(checks)}")
        self.checks = checks


def in_short(error: AssertionError) -> str:
    """One line that says what went wrong."""
    if isinstance(error, Different):
        more = f" and {len(error.found) - 1} more" if len(error.found) > 1 else ""
        return f"{str(error).splitlines()[0].split(' /proc ')[0]}: {error.found[0]}{more}"
    return (str(error).splitlines() or [""])[0]


# What CRIU's images do not say, found by reading them: whoever restores them has to guess, and CRIU guesses wrong, too.
LOST_IN_CRIUS_IMAGES = {
    r"VmFlags: lost ac|VmFlags ac was": "which areas the kernel accounts",
    r"sk\.h:N: from \w+: name of length|from anonymous: came from a name": "who has sent a queued datagram",
    r"sk\.h:N: client: (name of length N, '', expected server|getpeername)": "the name of a peer that is closed",
    r"tree_stop_unseen\.c:N: a stop": "whether the parent has been told of a stop",
}


def excuse(criu: AssertionError, here: AssertionError, dumper: str, restorer: str) -> str | None:
    """Why CRIU's failure, dumping and restoring alone, excuses this one, naming both; None where it does not.

    - A Torpor command that fails is excused only where the same command of CRIU fails.
    - Something wrong after a restore is excused only where the same is wrong after a restore by CRIU of what CRIU has
      dumped: the same differences, the same failing checks, or fewer; or where CRIU's images do not say how it was.
    - A failing CRIU command is CRIU's own failure if it fails on CRIU's images in the same words.
    - What CRIU cannot even dump, it need not be able to restore from Torpor's images.
    - A workload that fails before anybody has touched it is excused by nothing, also where it does so again.
    """
    if isinstance(here, NeverReady):
        return None
    both = f"CRIU alone: {in_short(criu)}; here: {in_short(here)}"
    if isinstance(here, ToolFailed) and here.tool == "torpor":
        same = isinstance(criu, ToolFailed) and criu.verb == here.verb
    elif restorer == "criu" and isinstance(criu, ToolFailed) and criu.verb == "dump":
        return f"CRIU cannot dump this: {both}"
    elif dumper == "criu" and all(lost := _lost(here)) and set(lost) <= set(_lost(criu)):
        return f"CRIU's images do not say {' and '.join(sorted(set(lost)))}: {both}"
    else:
        same = _kind(criu) == _kind(here) and _facts(here) <= _facts(criu)
    return f"CRIU fails so, too: {both}" if same else None


def _lost(error: AssertionError) -> list[str]:
    """Of each thing that went wrong what CRIU's images do not say about it; "" if it is nothing such."""
    reasons = LOST_IN_CRIUS_IMAGES.items()
    return [next((why for pattern, why in reasons if re.search(pattern, fact)), "") for fact in _facts(error)]


def _kind(error: AssertionError) -> tuple[str, ...]:
    if isinstance(error, ToolFailed):
        return ("tool", error.tool, error.verb)
    return (type(error).__name__,)


def _facts(error: AssertionError) -> set[str]:
    """What went wrong, without numbers and directories."""
    if isinstance(error, ToolFailed):
        facts = [error.line]
    elif isinstance(error, Different):
        facts = error.found
    elif isinstance(error, CheckFailed):
        facts = error.checks
    else:
        facts = str(error).splitlines()[:1]
    nowhere = (re.sub(r"(/[\w.+-]+)+/", "/", fact) for fact in facts)
    return {re.sub(r"\b(0x[0-9a-f]+|[0-9a-f]*\d[0-9a-f]*)\b", "N", fact) for fact in nowhere}
