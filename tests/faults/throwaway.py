# SPDX-License-Identifier: Apache-2.0
"""A throw-away world for one restore: user, PID, mount and IPC namespaces of its own, everything read-only but for one
directory, which is empty at first and vanishes with it.

Its init is a fork of this process, so that no Python has to start.  What the restore leaves behind, be it processes,
mounts, files or segments, init finds and tells.
"""

import ctypes
import os
import pickle
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torpor.cli.__main__ import main
from torpor.kernel.syscall import call

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID = 0x20000, 0x8000000, 0x10000000, 0x20000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = -100, 0x8000, 1
PATIENCE_S = 60.0  # a restore takes 0.2 s
ENDING_S = 10.0

_libc = ctypes.CDLL(None, use_errno=True)


class Outcome(NamedTuple):
    """The command's exit status and words; what it left behind, though it failed or though its tree was ended."""

    status: int
    text: str
    left: list[str]


def restored(place: Path, fill: Callable[[], None], images: Path) -> Outcome:
    """`torpor restore` of `images` in a world in which `place` is a new tmpfs, into which `fill()` has written."""
    ready, say_ready = os.pipe2(os.O_CLOEXEC)
    go, say_go = os.pipe2(os.O_CLOEXEC)
    result, say_result = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            call("unshare", CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC)
            os.write(say_ready, b"r")
            os.read(go, 1)
            init = os.fork()  # the first process in the new PID namespace
            if init == 0:
                _init(place, fill, images, say_result)
            os.waitpid(init, 0)
        except BaseException:
            os.write(say_result, pickle.dumps(Outcome(-1, traceback.format_exc(), [])))
        finally:
            os._exit(0)
    for fd in (say_ready, go, say_result):
        os.close(fd)
    try:
        assert os.read(ready, 1), "no new user namespace can be had"
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{name}").write_text("0 0 4294967295")
        os.write(say_go, b"g")
        data = _read_all(result, PATIENCE_S + 2 * ENDING_S)
    finally:
        for fd in (ready, say_go, result):
            os.close(fd)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    outcome = pickle.loads(data) if data else Outcome(-1, "its init said nothing", [])
    assert isinstance(outcome, Outcome)
    return outcome


def _read_all(fd: int, patience: float) -> bytes:
    data, deadline = b"", time.monotonic() + patience
    while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            break
        data += chunk
    return data


def _mount(source: str, target: str, kind: str, flags: int = 0) -> None:
    if _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None):
        raise OSError(ctypes.get_errno(), f"mount {kind} on {target}")


def _init(place: Path, fill: Callable[[], None], images: Path, say: int) -> None:
    try:
        signal.set_wakeup_fd(-1)
        _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: the world ends with its maker
        _mount("none", "/", "none", MS_REC | MS_PRIVATE)
        read_only = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY, 0, 0, 0)
        path = ctypes.create_string_buffer(b"/")
        call("mount_setattr", AT_FDCWD, ctypes.addressof(path), AT_RECURSIVE, ctypes.addressof(read_only), 32)
        _mount("proc", "/proc", "proc")
        _mount("tmpfs", str(place), "tmpfs")
        os.chmod(place, 0o755)
        fill()
        before = _things(place)
        outcome = _command(["restore", "-d", "-D", str(images)])
        left = _others(ENDING_S) if outcome.status else []
        for pid in _others(0):
            os.kill(int(pid.split()[1]), signal.SIGKILL)
        left += _others(ENDING_S)
        left += [one for one in _things(place) if one not in before]
        outcome = outcome._replace(left=left)
    except BaseException:
        outcome = Outcome(-1, traceback.format_exc(), [])
    os.write(say, pickle.dumps(outcome))
    os._exit(0)


def _command(arguments: list[str]) -> Outcome:
    """Run the command in a child, its words into a pipe."""
    words, say = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            os.close(words)
            for fd in (1, 2):
                os.dup2(say, fd)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
            os.setsid()
            status = main(arguments)
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(say)
    # Its words end with it: the restored tree has nothing of ours open.
    text = _read_all(words, PATIENCE_S).decode(errors="replace").strip()
    deadline = time.monotonic() + ENDING_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return Outcome(os.waitstatus_to_exitcode(status), text, [])
        time.sleep(0.005)
    return Outcome(-1, f"it hangs; so far it said: {text}", [])


def _others(patience: float) -> list[str]:
    """Processes besides init, when those that are ending have had time to end."""
    deadline = time.monotonic() + patience
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        pids = [name for name in os.listdir("/proc") if name.isdigit() and name != "1"]
        if not pids or time.monotonic() >= deadline:
            return [f"process {pid} {_comm(pid)}" for pid in pids]
        time.sleep(0.002)


def _comm(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "?"


def _things(place: Path) -> list[str]:
    """Mounts, segments and files: but for the statistics, which a restore may leave."""
    found = [f"mount {line}" for line in Path("/proc/self/mounts").read_text(errors="replace").splitlines()]
    found += [f"segment {line}" for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
    for top, names, files in os.walk(place):
        found += [f"file {os.path.join(top, name)}" for name in (*names, *files) if name != "stats-restore"]
    return found
