# SPDX-License-Identifier: Apache-2.0
"""Victims for the checks: started in a session of their own, told to end by SIGTERM, never left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}


class Victim:
    """A program that says "ready"; `first` is the line that it said first."""

    def __init__(self, directory: Path, *command: object, **more: object) -> None:
        self.out = directory / "out"
        with self.out.open("ab") as out:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=directory, start_new_session=True,
                env=ENVIRONMENT, **more,  # type: ignore[call-overload]
            )  # fmt: skip
        self.first = ""
        while not self.first and self.process.poll() is None:
            self.first = self.out.read_text().partition("\n")[0]
            time.sleep(0.005)
        self.first = self.first or self.out.read_text()

    @property
    def pid(self) -> int:
        return self.process.pid

    def end(self) -> str:
        """Let it look at what it has; its last line."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)
        return self.out.read_text().splitlines()[-1]

    def __enter__(self) -> "Victim":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def torpor(*words: object, stdout: int | IO[bytes] = subprocess.PIPE) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "torpor", *map(str, words)],
        stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, timeout=60,
    )  # fmt: skip
