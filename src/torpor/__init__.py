# SPDX-License-Identifier: Apache-2.0
"""Torpor freezes running Linux applications, writes them to image files, and brings them back to life.

    import torpor

    result = torpor.dump(pid, "images", tcp_close=True)       # the tree is in images/ now, and gone
    print(result.tasks, result.bytes, result.frozen_seconds)
    torpor.restore("images", restore_detached=True).pid       # and here it is again

    torpor.check()                                            # what this kernel can do
    torpor.check(pid=pid)                                     # can this tree be dumped?
    torpor.check(images="images")                             # can these images be restored here?

Options are those of the command line, with underscores (`torpor.options.Options`).  What goes wrong is a
`torpor.TorporError` with `code`, `what`, `why` and `remedy`.  All of it is usable inside a host program: the work is
done by a process of its own, so no child, signal or working directory of the host is touched.  A signal that asks the
host to end (SIGINT, SIGTERM, SIGHUP) ends the work, too, and is the host's own business then.  Threads may call these
functions at once; they take turns, because a process forked beside another would hold the other's pipes open.

Importing this package imports next to nothing; each function imports what it needs when it is called.
"""

import os
import sys
from _thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Unpack, overload

    from torpor.check import KernelReport, Report
    from torpor.dump import DumpResult
    from torpor.errors import (
        DumpFailed,
        ImageError,
        KernelError,
        Refusal,
        RestoreFailed,
        TaskGone,
        TorporError,
        UsageError,
    )
    from torpor.keywords import CheckKeywords, DumpKeywords, RestoreKeywords
    from torpor.options import Options
    from torpor.restore import RestoreResult
else:
    ModuleType = type(sys)  # not worth importing `types`

__version__ = "0.1.0"
__all__ = [
    "DumpFailed",
    "ImageError",
    "KernelError",
    "Options",
    "Refusal",
    "RestoreFailed",
    "TaskGone",
    "TorporError",
    "UsageError",
    "check",
    "dump",
    "restore",
]

_turn = allocate_lock()


class _Signals:
    """Signals that came to the host while it waited, and ended that: they are for its own handlers, too, which may call
    us again: so they come when it is the next one's turn."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        from torpor.engine.process import give_back_signals

        give_back_signals()


def dump(pid: int, images: "str | os.PathLike[str]", **options: "Unpack[DumpKeywords]") -> "DumpResult":
    """Dump the tree whose root is `pid` into the directory `images`, and end it (unless ``leave_running=True``)."""
    from torpor import log
    from torpor.options import Options

    chosen = Options(tree=pid, images_dir=images, **options)
    notes = chosen.settle("dump")
    from torpor.dump import dump as run

    with _Signals(), _turn, log.opened(chosen.log_path, chosen.verbosity):
        log.infos(notes)
        return run(chosen)


def restore(images: "str | os.PathLike[str]", **options: "Unpack[RestoreKeywords]") -> "RestoreResult":
    """Bring back the tree in `images`.  Returns when it runs; its root is not a child of this process unless
    ``restore_sibling=True`` says so.  ``dry_run=True``: check the images and the plan, and create nothing."""
    from torpor import log
    from torpor.options import Options

    chosen = Options(**{"restore_detached": True, "images_dir": images, **options})
    notes = chosen.settle("restore")
    from torpor.restore import restore as run

    with _Signals(), _turn, log.opened(chosen.log_path, chosen.verbosity):
        log.infos(notes)
        return run(chosen)


if TYPE_CHECKING:

    @overload
    def check(**options: Unpack[CheckKeywords]) -> KernelReport: ...
    @overload
    def check(*, pid: int, **options: Unpack[CheckKeywords]) -> Report: ...
    @overload
    def check(*, images: str | os.PathLike[str], **options: Unpack[CheckKeywords]) -> Report: ...


def check(*, pid: int | None = None, images: "str | os.PathLike[str] | None" = None, **options: object) -> "Report":
    """Without touching anything: what this kernel can do, or whether the tree `pid` can be dumped, or whether `images`
    can be restored here and now, or whether the kernel has each `feature`, by CRIU's names."""
    from torpor import log
    from torpor.check import check_features, check_images, check_kernel, check_tree
    from torpor.errors import UsageError
    from torpor.options import Options

    if pid is not None and images is not None:
        raise UsageError("either a process or images can be checked, not both at once")
    chosen = Options(**options)
    if pid is not None:
        chosen.set_keyword("tree", pid)
    if images is not None:
        chosen.set_keyword("images_dir", images)
    notes = chosen.settle("check")
    with _Signals(), _turn, log.opened(chosen.log_path, chosen.verbosity):
        log.infos(notes)
        if chosen.feature:
            return check_features(chosen)
        if pid is not None:
            return check_tree(chosen)
        return check_images(chosen) if images is not None else check_kernel(chosen)


def __getattr__(name: str) -> object:
    if name == "Options":
        from torpor.options import Options

        return Options
    if name in __all__:
        from torpor import errors

        return getattr(errors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Package(ModuleType):
    """The functions `dump`, `restore` and `check` are called as the modules that do the work; importing such a module
    must not put it in the function's place, as the import system does."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in ("dump", "restore", "check") and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
