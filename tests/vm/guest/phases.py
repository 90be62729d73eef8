# SPDX-License-Identifier: Apache-2.0
"""Says on the console where a checkpoint is: a line ``@@AT phase|what`` before each system call that changes its files.

So the functions of `os` through which Torpor does it are wrapped, here in the guest.  What it says last before the
power fails is where the power failed.  It can also stop at one of these places (``@@PAUSED``), for the power to fail
there, or leave all syncing out, which shows that without it checkpoints are lost.
"""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from torpor.images import to_disk

BEGIN, END = "before its first write", "while the old one is replaced: it ends"
PAGES, OTHERS = "while pages are written", "while other images are written"
TO_DISK, SYNCS = "while pages go to the disk", "between the fsyncs of the others"
BEFORE, AFTER = "before the rename of inventory.img", "after the rename of inventory.img"
REMOVING, BETWEEN = "while the old one is removed", "between two checkpoints"

_phase = ""  # none: nothing is said
_pause: tuple[int, str, int] | None = None  # of the so-manyth checkpoint, at the so-manyth mark of a phase
_marks: Counter[str] = Counter()
_checkpoint = 0


def say(mark: str, **facts: object) -> None:
    sys.stdout.write(f"@@{mark} {json.dumps(facts)}\n")
    sys.stdout.flush()


def enter(phase: str) -> None:
    global _phase, _checkpoint
    if phase == BEGIN:
        _checkpoint += 1
        _marks.clear()
    if phase != _phase:
        _phase = phase
        at("begin")


def at(what: str) -> None:
    os.write(1, f"@@AT {_phase}|{what}\n".encode())
    if _pause == (_checkpoint, _phase, _marks[_phase]):
        os.write(1, b"@@PAUSED {}\n")
        while True:
            time.sleep(1)
    _marks[_phase] += 1


def _follow(call: str, name: str) -> None:
    """The phase that begins with this call, by the order in which Torpor works."""
    image = name.endswith(".img")
    if call == "fsync" and name.startswith(".inventory"):  # the last of them
        enter(BEFORE)
    elif call == "make" and image:
        enter(PAGES if name.startswith("pages") else OTHERS)
    elif call == "look" and image and _phase == OTHERS:
        enter(TO_DISK)
    elif call == "fsync" and image and not name.startswith("pages") and _phase == TO_DISK:
        enter(SYNCS)


def _wrapped(call: str, real: Callable[..., Any], named: Callable[..., str | None]) -> Callable[..., Any]:
    def wrapper(*arguments: Any, **keywords: Any) -> Any:
        name = named(*arguments) if _phase else None
        if name is None:
            return real(*arguments, **keywords)
        which = call
        if call == "open":
            which = "make" if arguments[1] & os.O_CREAT else "look"
        replaces = which == "unlink" and name == "inventory.img" and _phase == BEGIN and _exists(name, keywords)
        _follow(which, name)
        enter(END) if replaces else at(f"{which} {name}")
        done = real(*arguments, **keywords)
        if which == "rename" and name == "inventory.img":
            enter(AFTER)
        return done

    return wrapper


def _exists(name: str, keywords: dict[str, Any]) -> bool:
    try:
        os.stat(name, dir_fd=keywords.get("dir_fd"))
        return True
    except FileNotFoundError:
        return False


def _last(path: Any, *_: object) -> str:
    return os.path.basename(path)


def _removed(path: Any) -> str | None:
    return None if str(path).startswith("/run/") else str(path)


def _opened(path: Any, *_: object) -> str | None:
    """Images only, and what becomes one."""
    name = os.path.basename(path) if isinstance(path, str) else ""
    return name if ".img" in name or name.startswith(".stats") else None


def follow(pause: tuple[int, str, int] | None, sync: bool, hint: bool) -> None:
    """From now on.  Without `sync` nothing waits for the disk; without `hint` nothing tells it to begin, which would
    often bring files there that are not waited for."""
    global _pause
    _pause = pause
    if not sync:
        os.fsync = lambda _fd: None
    if not sync or not hint:
        to_disk.start_writing = lambda _fd: None
    os.open = _wrapped("open", os.open, _opened)
    os.fsync = _wrapped("fsync", os.fsync, lambda fd: os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
    os.rename = _wrapped("rename", os.rename, lambda _old, new: str(new))
    os.unlink = _wrapped("unlink", os.unlink, _removed)
    os.rmdir = _wrapped("rmdir", os.rmdir, _last)
    os.mkdir = _wrapped("mkdir", os.mkdir, _last)
