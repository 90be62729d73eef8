# SPDX-License-Identifier: Apache-2.0
"""Python: threads, an asyncio server, children behind pipes, a pool of forked processes; children come and go."""

import json
import os
import sys
from pathlib import Path

from support import VICTIMS, Asker, Checkpoint, Service, ask, free_port, wait_for


def test_threads_asyncio_and_subprocesses(checkpoint: Checkpoint, tmp_path: Path) -> None:
    port = free_port()
    service = Service([os.path.realpath(sys.executable), "-B", str(VICTIMS / "busy.py"), str(port)], tmp_path)
    service.wait_said("ready")
    asker = Asker(port, "check", "good ")
    asker.start()
    checkpoint.at_end.callback(asker.stop)
    asker.wait_for(10)
    before = counts(port)

    checkpoint.dump(service.pid, "--tcp-close")
    checkpoint.restore("--tcp-close")

    asker.wait_for(10)
    asker.stop()
    assert asker.wrong == []
    wait_for("all to go on", lambda: all(count > before[name] + 3 for name, count in counts(port).items()))
    service.end()
    assert service.said().splitlines()[-1].startswith("good ")


def counts(port: int) -> dict[str, int]:
    answer = ask(port, "check")
    assert answer.startswith("good "), answer
    return dict(json.loads(answer.removeprefix("good ")))
