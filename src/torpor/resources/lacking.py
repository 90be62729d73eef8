# SPDX-License-Identifier: Apache-2.0
"""What a tree has and this kernel lacks: found by trying it before anything is created, and said in these words."""

import errno
import os

from torpor.arch import native
from torpor.errors import Refusal
from torpor.images.kinds import FDINFO
from torpor.kernel.syscall import call
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from torpor.arch.base import Registers
    from torpor.resources.context import Restore, RestoreTask

REMEDY = "restore it under a kernel like the one that it was dumped on, or a newer one"
# What a kernel says of what it does not know; of a module of its that is not there, too.
NO_SUCH_THING = (errno.ENOSYS, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOENT)
# Calls that a thread can wait in and that not every kernel has; each refuses to be called with zeros alone.
NEW_CALLS = ("futex_waitv", "futex_wait")  # 5.16, 6.7


def refusal(subject: str, has: str) -> Refusal:
    """`has`: "it is …", or "its thread 7 has …"."""
    return Refusal(subject, f"{has}, which this kernel cannot do", REMEDY, code="needs-kernel")


def refused(subject: str, has: str, error: int) -> Refusal:
    """The same, by the error with which trying it has failed: perhaps it is not the kernel."""
    if error in (errno.EPERM, errno.EACCES):
        why = f"{has}, which takes rights that Torpor does not have here"
        return Refusal(subject, why, "run Torpor as root, in the initial user namespace", code="no-rights")
    if error in NO_SUCH_THING:
        return refusal(subject, has)
    return Refusal(subject, f"{has}, which cannot be here: {os.strerror(error)}", "restore it where it was dumped")


def file_subject(restore: "Restore", id: int, kind: str) -> str:
    """An open file, by its number in files.img: named as the first task has it."""
    if "first owners" not in restore.state:
        owners: dict[int, str] = {}
        for task in restore.tasks.values():
            if not task.dead and task.ids is not None and restore.images.exists(FDINFO, task.ids.files_id):
                for fd in restore.images.entries(FDINFO, task.ids.files_id):
                    owners.setdefault(fd.id, f"{task.subject}, fd {fd.fd}")
        restore.state["first owners"] = owners
    owner = restore.state["first owners"].get(id)
    return f"{owner} ({kind})" if owner else f"files.img, {kind} {id}"


def error_of(restore: "Restore", name: str, *args: int) -> int:
    """The number of the error with which a call that changes nothing fails here; 0: it works.  Each is tried once."""
    return error_of_trying(restore, (name, args), lambda: call(name, *args))


def error_in_child(restore: "Restore", name: str, *args: int) -> int:
    """The same, of a call that changes a process for good."""
    return error_of_trying(restore, (name, args), lambda: call(name, *args), in_child=True)


def error_of_trying(
    restore: "Restore", what: "Hashable", test: "Callable[[], object]", *, in_child: bool = False
) -> int:
    """The same, of anything, by its name: an OSError's number, or 0.  In a child: for what changes a process."""
    known: dict[Hashable, int] = restore.state.setdefault("tried", {})
    if what not in known:
        from torpor.kernel import probe

        def make() -> None:
            test()

        try:
            (probe.in_child(make) if in_child else make)()
            known[what] = 0
        except OSError as error:
            known[what] = error.errno or -1
        except probe.Missing:  # the child has ended by it
            known[what] = -1
    return known[what]


def check_calls(restore: "Restore", task: "RestoreTask", registers: "dict[int, Registers]") -> None:
    """Refuse threads that are to go on waiting in a call that this kernel does not have, or this CPU cannot make."""
    arch = native()
    names = {arch.SYSCALLS[name]: name for name in NEW_CALLS if name in arch.SYSCALLS}
    for tid in task.cores.keys() & registers.keys():
        extra = task.extras.threads.get(tid)
        told = extra is not None and bool(extra.interrupted)
        if refused := entry_refusal(task, tid, (extra.call or 0) if extra is not None else 0):
            restore.problem(refused)
        name = names.get(arch.waits_in(registers[tid].general, told))
        if name is not None and error_of(restore, name, *[0] * 6) == errno.ENOSYS:
            restore.problem(refusal(task.subject, f"its thread {tid} waits in the system call {name}"))


def entry_refusal(task: "RestoreTask", tid: int, word: int) -> Refusal | None:
    """Of a thread that makes its system calls (`Call.word`) by an instruction that this CPU does not have: its C
    library has chosen that at its start."""
    if not (instruction := native().lacks_entry(word)):
        return None
    why = f"its thread {tid} is in a system call that was made by {instruction}, which this CPU does not have"
    return task.refusal(why, "restore it on a CPU that has it", code="cpu-feature")
