# SPDX-License-Identifier: Apache-2.0
"""Torpor's command in a fork of this process: where starting Python takes seconds, as in an emulated machine, a fork
takes none.  Such a command is a list that begins with `WARM` or with `FRESH`: a warm one has been imported already, a
fresh one imports anew whatever it needs when it needs it, as a command does, in a Python that has started already.
"""

import os
import sys
from collections.abc import Callable, Sequence

WARM, FRESH = "torpor, warm", "torpor, fresh"
_dropped: list[object] = []  # modules of a fresh command's past: taking them apart would cost more than the fork


def start(command: list[str], streams: Sequence[int], first: Callable[[], object] | None = None) -> int:
    """`become` in a fork, in a session of its own, with `streams` as descriptors 0, 1, 2 … and no others, after having
    called `first`.  Returns its PID."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        for number, fd in enumerate(streams):
            os.dup2(fd, number)
        os.closerange(len(streams), 65536)
        if first:
            first()
        become(command, {})
    finally:
        os._exit(126)


def become(command: list[str], environment: dict[str, str]) -> None:
    """Execute `command`; a warm or fresh one in this very process, which ends with it."""
    if command[0] not in (WARM, FRESH):
        os.execve(command[0], command, environment)
    # pytest has put streams of its own there.
    sys.stdout, sys.stderr = (open(fd, "w", errors="backslashreplace", closefd=False) for fd in (1, 2))
    if command[0] == FRESH:
        _dropped.extend(sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "torpor")
        sys.argv = ["torpor", *command[1:]]
        import torpor.cli.__main__ as fresh

        fresh.command()
    import torpor.cli.__main__ as cli

    status = 1
    try:
        status = cli.main(command[1:])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def import_all() -> None:
    """Import what the commands import while they run, and make the tables of all messages, which a command makes for
    those that it meets."""
    import importlib
    import pkgutil

    import torpor

    for module in pkgutil.walk_packages(torpor.__path__, "torpor."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

    from torpor.images import decoder, frozen, message

    for cls in message.Message.__subclasses__():
        for name in cls.fields():
            cls.writer(name)
        cls._decoder = decoder._Decoder(cls)
        frozen._make(cls)
        for field in cls.fields().values():
            if field.is_message:
                field.load()
