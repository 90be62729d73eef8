# SPDX-License-Identifier: Apache-2.0
"""The `signal` module without its enumerations: numbers are plain numbers, masks are sets of them.

`signal` makes three enumerations, and imports `enum` for that: together 3 ms of every start, a thirtieth of a small
restore.  What it wraps, `_signal`, is there in every CPython.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from signal import *  # noqa: F403
else:
    from _signal import *  # noqa: F403


def name_of(number: int) -> str:
    """ "SIGTERM": for messages."""
    import signal

    return signal.Signals(number).name
