# SPDX-License-Identifier: Apache-2.0
"""A terminal outside the tree, and a shell on it: for workloads that are a job of that shell (`terminal=yes`).

The shell is a process of ours that leads a session, whose controlling terminal is a new pseudo-terminal; the test holds
the master.  On request it starts the workload, or runs a tool (restore --shell-job must be called inside the session),
each as a shell does: in a process group of its own, which becomes the foreground group.  Its parent leaves
at once, so that it becomes a child of the test.  Before a tool runs, the shell sets the terminal's modes
back to what they were at first, as shells do when a job has ended.
"""

import fcntl
import os
import pty
import signal
import struct
import termios
from pathlib import Path

from harness.warm import become

ROWS, COLUMNS = 37, 101


class Terminal:
    """The terminal, and a way to ask its shell."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        questions, self.questions = os.pipe()
        self.answers, answers = os.pipe()
        self.shell = os.fork()
        if self.shell == 0:
            try:
                os.close(self.master)
                os.close(self.questions)
                os.close(self.answers)
                _Shell(slave, questions, answers).serve()
            finally:
                os._exit(0)
        for fd in (slave, questions, answers):
            os.close(fd)

    def ask(self, *words: str) -> int:
        os.write(self.questions, "\0".join(words).encode() + b"\n")
        return int(os.read(self.answers, 100))

    def start(self, command: list[str], directory: Path, out: Path) -> int:
        """Start a workload as the foreground job; its PID."""
        return self.ask("start", str(directory), str(out), *command)

    def run(self, command: list[str], said: Path, source: Path) -> int:
        """Run a tool as the foreground job; its exit status."""
        return self.ask("run", str(source), str(said), *command)

    def close(self) -> None:
        os.kill(self.shell, signal.SIGKILL)
        os.waitpid(self.shell, 0)
        for fd in (self.master, self.questions, self.answers):
            os.close(fd)


class _Shell:
    """Runs in the session leader."""

    def __init__(self, slave: int, questions: int, answers: int) -> None:
        self.slave, self.questions, self.answers = slave, questions, answers
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        signal.signal(
            signal.SIGTTOU, signal.SIG_IGN
        )  # it hands the terminal around while it is in the background itself
        self.modes = termios.tcgetattr(slave)

    def serve(self) -> None:
        while question := os.read(self.questions, 65536):
            verb, first, second, *command = question.decode().rstrip("\n").split("\0")
            answer = self.start(first, second, command) if verb == "start" else self.run(first, second, command)
            os.write(self.answers, str(answer).encode())

    def become(self, command: list[str], out: str, environment: dict[str, str]) -> None:
        try:
            os.setpgid(0, 0)
            os.tcsetpgrp(self.slave, os.getpid())
            signal.signal(signal.SIGTTOU, signal.SIG_DFL)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            os.dup2(self.slave, 0)
            os.dup2(os.open(out, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), 1)
            os.dup2(1, 2)
            os.closerange(3, 65536)
            become(command, environment)
        finally:
            os._exit(126)

    def start(self, directory: str, out: str, command: list[str]) -> int:
        reader, writer = os.pipe()
        middle = os.fork()
        if middle == 0:
            pid = os.fork()
            if pid:
                os.write(writer, str(pid).encode())
                os._exit(0)
            os.chdir(directory)
            os.umask(0o022)
            self.become(command, out, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "WL_DIR": directory})
        os.waitpid(middle, 0)
        pid = int(os.read(reader, 20))
        os.close(reader)
        os.close(writer)
        return pid

    def run(self, source: str, said: str, command: list[str]) -> int:
        termios.tcsetattr(self.slave, termios.TCSANOW, self.modes)
        pid = os.fork()
        if pid == 0:
            self.become(command, said, dict(os.environ, PYTHONPATH=source, PYTHONDONTWRITEBYTECODE="1"))
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
