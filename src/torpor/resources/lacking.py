# SPDX-License-Identifier: Apache-2.0
"""What a tree has and this kernel lacks: found by trying it before anything is created, and said in these words."""

from torpor.errors import Refusal
from torpor.kernel.syscall import call
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.resources.context import Restore

REMEDY = "restore it under a kernel like the one that it was dumped on, or a newer one"


def refusal(subject: str, has: str) -> Refusal:
    """`has`: "it is …", or "its thread 7 has …"."""
    return Refusal(subject, f"{has}, which this kernel cannot do", REMEDY, code="needs-kernel")


def error_of(restore: "Restore", name: str, *args: int) -> int:
    """The number of the error with which a call fails here; 0: it works.  A child makes it, as it may change a process
    for good; each is tried once."""
    from torpor.kernel.probe import in_child

    known: dict[tuple[str, tuple[int, ...]], int] = restore.state.setdefault("calls tried", {})
    if (name, args) not in known:
        try:
            in_child(lambda: _make(name, args))()
            known[name, args] = 0
        except OSError as error:
            known[name, args] = error.errno or -1
    return known[name, args]


def _make(name: str, args: tuple[int, ...]) -> None:
    call(name, *args)
