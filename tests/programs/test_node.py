# SPDX-License-Identifier: Apache-2.0
"""Node.js: an HTTP server with compiled code, a thread pool, a worker thread, timers and a child process."""

import http.client
import json
import threading
import time
from pathlib import Path

from support import VICTIMS, Checkpoint, Service, free_port, program, wait_for


class Browser(threading.Thread):
    """Asks for the state all the time over a connection that is kept alive."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.answers = 0
        self._over = False

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        while not self._over:
            try:
                connection.request("GET", "/state")
                json.loads(connection.getresponse().read())
                self.answers += 1
                time.sleep(0.002)
            except (OSError, http.client.HTTPException):
                connection.close()
        connection.close()

    def stop(self) -> None:
        self._over = True
        self.join(30)


def get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def state(port: int) -> dict[str, int]:
    found = json.loads(get(port, "/state"))
    assert found.pop("trouble") is None, found
    return dict(found)


def test_http_server(checkpoint: Checkpoint, tmp_path: Path) -> None:
    port = free_port()
    service = Service([program("node", "nodejs"), str(VICTIMS / "server.js"), str(port)], tmp_path)
    service.wait_said("ready")
    browser = Browser(port)
    browser.start()
    checkpoint.at_end.callback(browser.stop)
    wait_for("some work", lambda: browser.answers > 50 and all(count > 20 for count in state(port).values()))
    before = state(port)

    checkpoint.dump(service.pid, "--tcp-close")
    answers = browser.answers
    checkpoint.restore("--tcp-close")

    wait_for("answers after the restore", lambda: browser.answers > answers + 50)
    wait_for("all to go on", lambda: all(count > before[name] + 20 for name, count in state(port).items()))
    assert get(port, "/check") == b"good"
    assert get(port, "/zip")[:2] == b"\x1f\x8b"
    browser.stop()
    service.end()
