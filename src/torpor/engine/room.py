# SPDX-License-Identifier: Apache-2.0
"""Room inside a task for what a stepped call takes from memory (`Arch.call_block`); it is put back after the call.

Below the stack pointer nothing is live.  But programs may use that register for anything, or have no memory there: then
the lower end of the first stack serves, or any memory that the task may read and write.
"""

from torpor.kernel.procfs import read_all
from torpor.typed import TYPE_CHECKING, Iterator

if TYPE_CHECKING:
    from torpor.engine.tracee import Tracee


def places(tracee: "Tracee") -> Iterator[int]:
    """Where to try, in turn; not all need be there, or be readable for a call."""
    arch = tracee.arch
    # The page below may not be there yet.
    sp = arch.sp(tracee.general) & ~7
    yield sp - 64 if sp % arch.page_size_hint >= 64 else sp
    areas = [line.split(None, 5) for line in read_all(f"/proc/{tracee.tid}/maps").splitlines()]
    writable = [fields for fields in areas if fields[1] == b"rw-p"]
    for fields in sorted(writable, key=lambda fields: fields[-1] != b"[stack]"):
        yield int(fields[0].partition(b"-")[0], 16)
