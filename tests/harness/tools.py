# SPDX-License-Identifier: Apache-2.0
"""Torpor and CRIU as commands: the same options for both."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from harness.events import Timeout, wait_end
from harness.failures import ToolFailed
from harness.terminal import Terminal
from harness.warm import FRESH, WARM, start

SOURCE = Path(__file__).resolve().parent.parent.parent / "src"


class Tool:
    """A checkpoint tool with CRIU's command line."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name, self.command = name, command

    def dump(self, pid: int, images: Path, *options: str) -> None:
        images.mkdir(parents=True, exist_ok=True)
        self._run("dump", images, ["-t", str(pid), *options], None)

    def restore(self, images: Path, *options: str, terminal: Terminal | None = None) -> None:
        self._run("restore", images, ["-d", *options], terminal)

    def _run(self, verb: str, images: Path, options: list[str], terminal: Terminal | None) -> None:
        log = images / f"{verb}-{self.name}.log"
        command = [*self.command, verb, *options, "-D", str(images), "-v4", "-o", log.name]
        said = images / f"{verb}-{self.name}.out"
        status = terminal.run(command, said, SOURCE) if terminal else self._wait(verb, command, said, log)
        if status:
            text = said.read_text(errors="replace")[-4000:]
            raise ToolFailed(self.name, verb, status, self.reason(log, text), f"{text}\n--- {log}\n{tail(log)}")

    def _wait(self, verb: str, command: list[str], said: Path, log: Path) -> int:
        environment = dict(os.environ, PYTHONPATH=str(SOURCE), PYTHONDONTWRITEBYTECODE="1")
        with open(said, "wb") as stream, open(os.devnull, "rb") as nothing:
            # A file, not a pipe: the restored tree must not hold an end of ours.  A session of its own, so that nobody
            # who signals a process group reaches the other.
            if command[0] in (WARM, FRESH):
                return self._fork(verb, command, nothing.fileno(), stream.fileno(), log)
            done = subprocess.Popen(
                command, stdin=nothing, stdout=stream, stderr=stream, env=environment, start_new_session=True
            )
            try:
                return done.wait(timeout=120)
            except subprocess.TimeoutExpired:
                done.kill()
                done.wait()
                raise ToolFailed(self.name, verb, -1, "did not end in 120 s", tail(log)) from None

    def _fork(self, verb: str, command: list[str], nothing: int, stream: int, log: Path) -> int:
        pid = start(command, (nothing, stream, stream))
        try:
            return os.waitstatus_to_exitcode(wait_end(pid, 120))
        except Timeout:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise ToolFailed(self.name, verb, -1, "did not end in 120 s", tail(log)) from None

    def reason(self, log: Path, said: str) -> str:
        """The line in which the tool says why it failed."""
        if self.name == "criu":
            lines = log.read_text(errors="replace").splitlines() if log.exists() else []
            errors = [line for line in lines if "Error (" in line or "BUG at" in line]
            telling = [line for line in errors if "Can't setup RLIMIT_NOFILE" not in line] or errors  # said every time
            if telling:
                return re.sub(r"^\([0-9.]+\)\s*|Error \([^)]*\): ", "", telling[0]).strip()
        lines = [line for line in said.splitlines() if line.strip()]
        lines = [line for line in lines if line.startswith("torpor: ")][-1:] or lines
        return lines[-1] if lines else "no word said"


def tail(path: Path, size: int = 3000) -> str:
    try:
        return path.read_text(errors="replace")[-size:]
    except OSError:
        return "(no log)"


TORPOR = Tool("torpor", [os.path.realpath(sys.executable), "-m", "torpor"])
TORPOR_WARM, TORPOR_FRESH = Tool("torpor", [WARM]), Tool("torpor", [FRESH])
