# SPDX-License-Identifier: Apache-2.0
"""A guest that has booted once and is resumed many times: QEMU's migration into a file, and out of it.

A boot under emulation takes seconds, a resumed guest is there in less than one.  All resumed ones are the same: what
must differ (the clock, random numbers, the boot's id, which the kernel draws when it is first read) the guest's program
gets as a line on its console and sees to itself.  Whatever the program has read before it said ``@@SAVE`` it still
knows; so it must not have looked at the disk by then.  It says so again and again until it is sent a line, for a line
that is sent before the resumed guest runs is lost.

Facts: QEMU's docs/interop/qmp-spec.txt, ``migrate`` with an ``exec:`` URI; the source must not have been stopped, or
the resumed guest is, too.
"""

import contextlib
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import VmError, machine
from .targets import Target

SAVE_SECONDS = 120


class Guest:
    """A running guest: its console, line by line."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = machine.running.start(command, stdin=subprocess.PIPE)
        self._pidfd = os.pidfd_open(self._process.pid)
        self.lines: list[str] = []
        self.ended = False
        self.cpu = 0.0  # seconds of processor time that QEMU took, once it is closed
        self._pending = b""

    def send(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already; whoever reads will notice
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def read(self, seconds: float) -> list[str]:
        """The lines that come next, none if none come in time; sets `ended` at the end."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], max(seconds, 0))[0]:
            return []
        data = os.read(self._process.stdout.fileno(), 65536)
        self.ended = not data
        *complete, self._pending = (self._pending + data).split(b"\n")
        found = [line.decode(errors="replace").rstrip("\r") for line in complete]
        self.lines += found
        return found

    def kill(self) -> None:
        """The power fails.  Any thread may say so; what the guest had printed until then can still be read."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        self.cpu = machine.running.end(self._process)
        os.close(self._pidfd)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


class SavedGuest:
    """Boots ``python3.11 argv`` until it says ``@@SAVE``; `directory` is for the state, `extra` for devices, which
    every guest that is resumed must have, too."""

    def __init__(
        self, target: Target, version: str, argv: Sequence[str], *,
        modules: Sequence[str], directory: Path, extra: Sequence[str],
    ) -> None:  # fmt: skip
        self.directory = directory
        self._command = machine.prepare(target, version, directory, argv, modules=modules, memory=256)
        monitor = directory / "monitor"
        with machine.slots():
            begun = time.monotonic()
            guest = Guest([*self._command, *extra, "-qmp", f"unix:{monitor},server=on,wait=off"])
            try:
                while not any("@@SAVE" in line for line in guest.lines):
                    if guest.ended or time.monotonic() - begun > machine.BOOT_SECONDS:
                        raise VmError("the guest never came to where it is saved:\n" + "\n".join(guest.lines[-100:]))
                    guest.read(1)
                self._save(monitor)
            finally:
                guest.close()
        self.seconds = time.monotonic() - begun

    def _save(self, monitor: Path) -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(SAVE_SECONDS)
            client.connect(str(monitor))
            with client.makefile("rwb") as stream:

                def ask(command: str, **arguments: object) -> dict[str, object]:
                    stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
                    stream.flush()
                    while True:
                        answer = json.loads(stream.readline())
                        if "error" in answer:
                            raise VmError(f"QEMU refused {command}: {answer['error']}")
                        if "return" in answer:  # not an event
                            found: dict[str, object] = answer["return"]
                            return found

                stream.readline()  # QEMU's greeting
                ask("qmp_capabilities")
                ask("migrate-set-parameters", **{"max-bandwidth": 1 << 33})
                ask("migrate", uri=f"exec:cat > {shlex.quote(str(self.directory / 'state'))}")
                until = time.monotonic() + SAVE_SECONDS
                while (status := ask("query-migrate").get("status")) != "completed":
                    if status in ("failed", "cancelled") or time.monotonic() > until:
                        raise VmError(f"QEMU could not save the guest: {status}")
                    time.sleep(0.05)

    @contextlib.contextmanager
    def resume(self, extra: Sequence[str]) -> Iterator[Guest]:
        """A guest that goes on from there."""
        state = shlex.quote(str(self.directory / "state"))
        with machine.slots():
            guest = Guest([*self._command, *extra, "-incoming", f"exec:cat {state}"])
            try:
                yield guest
            finally:
                guest.close()
