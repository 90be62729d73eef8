# SPDX-License-Identifier: Apache-2.0
"""A shell job in a terminal: a pipeline of children that is dumped on one terminal and restored on another.

The job is not a session of its own: its session and its terminal are its shell's, which stays outside, so the tools are
given --shell-job and the restore is started by another shell, on the terminal where the job goes on.
"""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Checkpoint, program, wait_for

from harness.events import become_subreaper, tree_of, wait_end
from harness.failures import ToolFailed
from harness.tools import SOURCE, tail

JOB = """
n=0
while :; do n=$((n+1)); echo "line $n"; sleep 0.01; done |
    sed -u 's/line/number/' |
    { while read word number; do last=$number; [ $((number % 10)) = 0 ] && echo "$word $number is through"; done; }
"""
COLUMNS, LINES = 97, 31
DRAWS = """
import os, signal, sys
signal.signal(signal.SIGWINCH, lambda *_: print("it has %d columns." % os.get_terminal_size()[0], flush=True))
print("drawn.", flush=True)
for line in sys.stdin:
    print("got", line.strip() + ".", flush=True)
"""


class Terminal:
    """A pseudo-terminal that the test holds, and a process in the part of its shell: the session's leader."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.said = b""
        self.shell, self.master = pty.fork()  # setsid and TIOCSCTTY in the child
        if self.shell == 0:
            try:
                os.closerange(3, 1024)  # what pytest has open
                signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # as every shell, to move the terminal between its jobs
                work()
            except BaseException:
                say(traceback.format_exc())
            finally:
                os._exit(1)

    def read(self) -> str:
        while select.select([self.master], [], [], 0)[0]:
            try:
                data = os.read(self.master, 65536)
            except OSError:  # EIO: nobody has the other end open
                break
            self.said += data
        return self.said.decode(errors="replace")

    def wait_said(self, pattern: str) -> re.Match[str]:
        found: list[re.Match[str]] = []

        def look() -> bool:
            match = re.search(pattern, self.read())
            found.extend([match] if match else [])
            return match is not None

        try:
            wait_for(f"{pattern!r} on the terminal", look)
        except AssertionError as error:
            raise AssertionError(f"{error}; it shows {self.read()[-1500:]!r}") from None
        return found[0]

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def interrupt(self, pattern: str) -> None:
        """Ctrl-C, until it says so: bash does not end by it where the command that it waits for (sleep) has just ended
        by itself, which without any tool in play happens once in twenty times on a busy machine."""
        for _ in range(20):
            self.type(b"\x03")
            select.select([self.master], [], [], 2)
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline:
                if re.search(pattern, self.read()):
                    return
                select.select([self.master], [], [], 0.1)
        self.wait_said(pattern)

    def hang_up(self) -> None:
        os.close(self.master)


def say(text: str) -> None:
    """Onto the terminal: pytest has put something else behind print()."""
    os.write(1, text.encode() + b"\n")


def start_job(shell: str, script: Path) -> None:
    """What an interactive shell does: a process group of its own, in the foreground; then wait for it."""
    termios.tcsetwinsize(0, (LINES, COLUMNS))
    job = os.fork()
    if job == 0:
        os.setpgid(0, 0)
        os.tcsetpgrp(0, os.getpid())
        signal.signal(signal.SIGTTOU, signal.SIG_DFL)
        os.execv(shell, [shell, str(script)])
    say(f"job {job}.")
    serve(job)


def serve(job: int) -> None:
    """Wait for the job as a shell does; the terminal comes back when it has ended or stopped."""
    while True:
        _, status = os.waitpid(job, os.WUNTRACED)
        os.tcsetpgrp(0, os.getpgrp())
        if os.WIFSTOPPED(status):
            say(f"stopped by {os.WSTOPSIG(status)}.")
            os.read(0, 100)  # Return continues it
            os.tcsetpgrp(0, job)
            os.killpg(job, signal.SIGCONT)
            continue
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {os.WEXITSTATUS(status)}"
        say(f"job ended: {how}.")
        os.read(0, 100)
        return


def restore_job(checkpoint: Checkpoint, job: int) -> None:
    """The other shell: it runs the tool on its terminal, and is left with the job because it is a subreaper."""
    become_subreaper()
    tool, log = checkpoint.restorer, checkpoint.images / "restore.log"
    command = [*tool.command, "restore", "-d", "--shell-job", "-D", str(checkpoint.images), "-o", log.name]
    # No redirection: the terminal that the job is to have is the tool's own.
    status = subprocess.run(command, env=dict(os.environ, PYTHONPATH=str(SOURCE))).returncode
    if status:
        say(f"restore failed ({status}): {tail(log)}")
        return
    say("restored.")
    serve(job)


@pytest.mark.one_way
def test_pipeline(checkpoint: Checkpoint, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(JOB)
    shell = program("bash", "bash")
    first = Terminal(lambda: start_job(shell, script))
    checkpoint.at_end.callback(end_quietly, first.shell)
    job = int(first.wait_said(r"job (\d+)\.")[1])
    first.wait_said("number 50 is through")
    assert len(tree_of(job)) >= 4

    with pytest.raises(ToolFailed) as failure:
        checkpoint.dumper.dump(job, tmp_path / "refused")
    if checkpoint.dumper.name == "torpor":
        assert "--shell-job" in failure.value.line
    count = int(re.findall(r"number (\d+) is through", first.read())[-1])
    first.wait_said(f"number {count + 20} is through")

    checkpoint.tasks = set(tree_of(job))
    checkpoint.dumper.dump(job, checkpoint.images, "--shell-job")
    first.wait_said("job ended: signal 9")
    checkpoint.tasks_are_gone()
    count = int(re.findall(r"number (\d+) is through", first.read())[-1])
    first.type(b"\n")
    wait_end(first.shell, 10)
    first.hang_up()

    second = Terminal(lambda: restore_job(checkpoint, job))
    checkpoint.at_end.callback(end_quietly, second.shell)
    second.wait_said(r"restored\.|restore failed.*")
    assert "restored." in second.read(), second.read()
    second.wait_said(f"number {count + 10} is through")
    second.wait_said(f"number {count + 100} is through")
    numbers = [int(n) for n in re.findall(r"number (\d+) is through", second.read())]
    assert numbers[0] in (count, count + 10)
    assert numbers == list(range(numbers[0], numbers[0] + 10 * len(numbers), 10)), "lines were lost or came twice"
    assert os.getsid(job) == second.shell, "the job is not in the session of the shell that restored it"
    assert os.tcgetpgrp(second.master) == job, "the job is not the terminal's foreground"
    # Ctrl-Z, Return, Ctrl-C: the terminal's signals reach the whole pipeline.
    second.type(b"\x1a")
    second.wait_said(r"stopped by 20")
    second.type(b"\n")
    last = int(re.findall(r"number (\d+) is through", second.read())[-1])
    second.wait_said(f"number {last + 30} is through")
    second.interrupt(r"job ended: signal 2")
    second.type(b"\n")
    wait_end(second.shell, 10)
    second.hang_up()


@pytest.mark.one_way
@pytest.mark.parametrize("columns", [COLUMNS, COLUMNS + 23])
def test_a_terminal_of_another_size(checkpoint: Checkpoint, tmp_path: Path, columns: int) -> None:
    """The job is told when its new terminal has another size, and only then."""
    script = tmp_path / "job.py"
    script.write_text(DRAWS)
    first = Terminal(lambda: start_job(sys.executable, script))
    checkpoint.at_end.callback(end_quietly, first.shell)
    job = int(first.wait_said(r"job (\d+)\.")[1])
    first.wait_said(r"drawn\.")
    checkpoint.tasks = {job}
    checkpoint.dumper.dump(job, checkpoint.images, "--shell-job")
    first.wait_said("job ended: signal 9")
    first.type(b"\n")
    wait_end(first.shell, 10)
    first.hang_up()

    def restore() -> None:
        termios.tcsetwinsize(0, (LINES, columns))
        restore_job(checkpoint, job)

    second = Terminal(restore)
    checkpoint.at_end.callback(end_quietly, second.shell)
    second.wait_said(r"restored\.|restore failed.*")
    assert "restored." in second.read(), second.read()
    if columns != COLUMNS:
        second.wait_said(f"it has {columns} columns")
    second.type(b"this\n")
    second.wait_said(r"got this\.")
    assert second.read().count("columns.") == (columns != COLUMNS)
    second.type(b"\x03")
    second.wait_said(r"job ended: status|job ended: signal 2")
    second.type(b"\n")
    wait_end(second.shell, 10)
    second.hang_up()


def end_quietly(pid: int) -> None:
    """A shell that is still there when the test fails, with all its jobs."""
    try:
        if os.getsid(pid) == pid:
            for one in tree_of(pid):
                os.kill(one, signal.SIGKILL)
    except ProcessLookupError:
        pass
