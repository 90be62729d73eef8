# SPDX-License-Identifier: Apache-2.0
"""Letting the threads of a process go, one after the other.

Those that are let go first run at once, and may end all others: by exit(2), or by execve(2).  Such ends count only when
we have asked for them, as we trace these threads, and until then neither call comes to its end.
"""

from torpor.errors import TorporError
from torpor.typed import TYPE_CHECKING, Iterable

if TYPE_CHECKING:
    from torpor.engine.tracee import Tracee


def thaw(threads: "Iterable[Tracee]") -> None:
    """Let go of them, the first (the leader) last."""
    for thread in reversed([*threads]):
        try:
            thread.let_go()
        except ProcessLookupError:
            try:
                thread.wait()
            except ChildProcessError:
                pass  # another has its number


def thaw_somehow(threads: "Iterable[Tracee]") -> None:
    """The same after a failure, whatever they are doing."""
    for thread in reversed([*threads]):
        try:
            thread.stop_program()
            thaw([thread])
        except (OSError, TorporError):
            pass  # it has ended
