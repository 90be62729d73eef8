# SPDX-License-Identifier: Apache-2.0
"""The descriptors that the engine itself needs: some for each task that it holds.  It is a process of its own, so
neither the caller nor a tree that is dumped gets its higher limit."""

from resource import RLIMIT_NOFILE, getrlimit, setrlimit

HELD = 3  # by a task: its memory, its executor's socket, its pidfd (dump) or, for a while, its pages image (restore)
OTHERS = 48  # Torpor's own, and those that are open for a moment


def raise_limit() -> int:
    """Let the engine, and what it forks, have as many as they may; returns that number (-1: no limit)."""
    soft, hard = getrlimit(RLIMIT_NOFILE)
    if hard != soft:
        setrlimit(RLIMIT_NOFILE, (hard, hard))
    return hard


def shortage(tasks: int, more: int, limit: int) -> tuple[str, str] | None:
    """(why, remedy) where `limit` is too low for so many tasks and so many descriptors more."""
    needed = HELD * tasks + more + OTHERS
    if limit < 0 or needed <= limit:
        return None
    whose = f"{tasks} task{'s' if tasks != 1 else ''}"
    why = f"that takes {needed} descriptors for {whose}, and Torpor's own hard limit is {limit}"
    return why, f"raise it: ulimit -Hn {needed}"
