# SPDX-License-Identifier: Apache-2.0
"""What a tree has and this kernel lacks: found by trying it before anything is created, and said in these words."""

import errno

from torpor.arch import native
from torpor.errors import Refusal
from torpor.images.kinds import FDINFO
from torpor.kernel.syscall import call
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.arch.base import Registers
    from torpor.resources.context import Restore, RestoreTask

REMEDY = "restore it under a kernel like the one that it was dumped on, or a newer one"
# Calls that a thread can wait in and that not every kernel has; each refuses to be called with zeros alone.
NEW_CALLS = ("futex_waitv", "futex_wait")  # 5.16, 6.7


def refusal(subject: str, has: str) -> Refusal:
    """`has`: "it is …", or "its thread 7 has …"."""
    return Refusal(subject, f"{has}, which this kernel cannot do", REMEDY, code="needs-kernel")


def file_refusal(restore: "Restore", id: int, kind: str, has: str) -> Refusal:
    """Of an open file, by its number in files.img: named as the first task has it."""
    for task in restore.tasks.values():
        if not task.dead and task.ids is not None and restore.images.exists(FDINFO, task.ids.files_id):
            for fd in restore.images.entries(FDINFO, task.ids.files_id):
                if fd.id == id:
                    return refusal(f"{task.subject}, fd {fd.fd} ({kind})", has)
    return refusal(f"files.img, {kind} {id}", has)


def error_of(restore: "Restore", name: str, *args: int) -> int:
    """The number of the error with which a call that changes nothing fails here; 0: it works.  Each is tried once."""
    return _error_of(restore, name, args, False)


def error_in_child(restore: "Restore", name: str, *args: int) -> int:
    """The same, of a call that changes a process for good."""
    return _error_of(restore, name, args, True)


def _error_of(restore: "Restore", name: str, args: tuple[int, ...], in_child: bool) -> int:
    from torpor.kernel import probe

    known: dict[tuple[str, tuple[int, ...]], int] = restore.state.setdefault("calls tried", {})
    if (name, args) not in known:

        def make() -> None:
            call(name, *args)

        try:
            (probe.in_child(make) if in_child else make)()
            known[name, args] = 0
        except OSError as error:
            known[name, args] = error.errno or -1
        except probe.Missing:  # the child has ended by it
            known[name, args] = -1
    return known[name, args]


def check_calls(restore: "Restore", task: "RestoreTask", registers: "dict[int, Registers]") -> None:
    """Refuse threads that are to go on waiting in a call that this kernel does not have."""
    arch = native()
    names = {arch.SYSCALLS[name]: name for name in NEW_CALLS if name in arch.SYSCALLS}
    for tid in task.cores.keys() & registers.keys():
        extra = task.extras.threads.get(tid)
        told = extra is not None and extra.interrupted is not None
        name = names.get(arch.waits_in(registers[tid].general, told))
        if name is not None and error_of(restore, name, *[0] * 6) == errno.ENOSYS:
            restore.problem(refusal(task.subject, f"its thread {tid} waits in the system call {name}"))
