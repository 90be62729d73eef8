# SPDX-License-Identifier: Apache-2.0
"""A system-call instruction inside a task, to step system calls over.

The vDSO has one on every architecture, at the same place in all tasks.  Where a program has unmapped it (valgrind
does), or the kernel gives none (vdso=0), the program makes its calls with instructions of its own, and one of those
serves.  Bytes that stand in the middle of another instruction, or among data, do as well: nothing else runs there.
"""

from torpor.errors import TorporError
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.engine.tracee import Tracee

_CHUNK = 1 << 18
_offset = -1  # of the instruction in the vDSO: the kernel maps the same into every process of a kind


def find(tracee: "Tracee") -> int:
    """The instruction's address.  Raises TorporError: there is none."""
    with open(f"/proc/{tracee.tid}/maps", "rb", buffering=0) as maps:
        data = b""
        while more := maps.read(1 << 16):
            data += more
    end = data.find(b" [vdso]\n")
    if end >= 0:
        line = data[data.rfind(b"\n", 0, end) + 1 : end]
        start, end = (int(x, 16) for x in line.split(None, 1)[0].split(b"-"))
        if gadget := in_vdso(tracee, start, end):
            return gadget
    executable = [fields for fields in (line.split(None, 5) for line in data.splitlines()) if fields[1][2:3] == b"x"]
    # Files first: what a program writes for itself to execute may be anything.
    for fields in sorted(executable, key=lambda fields: not fields[-1].startswith(b"/")):
        start, end = (int(x, 16) for x in fields[0].split(b"-"))
        if gadget := _in(tracee, start, end):
            return gadget
    raise TorporError(
        f"task {tracee.tid} has no system-call instruction anywhere in its memory",
        "it has no vDSO, and nothing else that it may execute holds one",
        "leave the vDSO mapped, or boot without vdso=0",
        code="no-vdso",
    )


def in_vdso(tracee: "Tracee", start: int, end: int) -> int:
    """The instruction's address in the vDSO that lies there; 0: it has none."""
    global _offset
    arch = tracee.arch
    if 0 <= _offset < end - start and tracee.read(start + _offset, len(arch.instruction)) == arch.instruction:
        return start + _offset
    gadget = _in(tracee, start, end)
    if gadget:
        _offset = gadget - start
    return gadget


def _in(tracee: "Tracee", start: int, end: int) -> int:
    """The first one between two addresses; 0: none, or they cannot be read ([vsyscall])."""
    wanted, alignment = tracee.arch.instruction, tracee.arch.instruction_alignment
    for base in range(start, end, _CHUNK):
        try:
            text = tracee.read(base, min(_CHUNK + len(wanted) - 1, end - base))
        except OSError:
            return 0
        at = text.find(wanted)
        while at >= 0 and at % alignment:
            at = text.find(wanted, at + 1)
        if at >= 0:
            return base + at
    return 0
