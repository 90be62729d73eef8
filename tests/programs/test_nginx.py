# SPDX-License-Identifier: Apache-2.0
"""nginx: a master and two workers of another user, who share their listening socket, under requests."""

import http.client
import os
import signal
import socket
import threading
from pathlib import Path

from support import Checkpoint, Service, free_port, program, wait_for

from harness.events import children_of

CONFIGURATION = """
daemon off;
worker_processes 2;
pid {directory}/pid;
error_log {directory}/error.log info;
events {{ worker_connections 256; }}
http {{
    access_log {directory}/access.log;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    limit_req_zone $binary_remote_addr zone=counted:1m rate=10000r/s;
    server {{
        listen 127.0.0.1:{port};
        root {directory}/pages;
        location /slow {{ limit_rate 2000; }}
        location /worker {{ return 200 "$pid"; }}
        limit_req zone=counted burst=1000;
    }}
}}
"""


class Visitor(threading.Thread):
    """Asks for pages all the time, on connections that stay open as long as they can."""

    def __init__(self, port: int, path: str, expected: bytes) -> None:
        super().__init__(daemon=True)
        self.port, self.path, self.expected = port, path, expected
        self.good = 0
        self.wrong: list[bytes] = []
        self.over = False

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        while not self.over:
            try:
                connection.request("GET", self.path)
                body = connection.getresponse().read()
            except (OSError, http.client.HTTPException):
                connection.close()  # the next request opens a new one
                continue
            if body == self.expected:
                self.good += 1
            else:
                self.wrong.append(body)
        connection.close()

    def stop(self) -> None:
        self.over = True
        self.join(30)


def get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def test_master_and_workers(checkpoint: Checkpoint, tmp_path: Path) -> None:
    port = free_port()
    pages = tmp_path / "pages"
    pages.mkdir()
    page = os.urandom(20_000)
    (pages / "page").write_bytes(page)
    (pages / "slow").write_bytes(page)
    (tmp_path / "nginx.conf").write_text(CONFIGURATION.format(directory=tmp_path, port=port))
    command = [program("nginx", "nginx"), "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    service = Service(command, tmp_path)
    # The workers are another user; the pages must be within their reach.
    for directory in [tmp_path, *tmp_path.parents][:3]:
        if str(directory) != "/tmp":
            directory.chmod(0o755)
    wait_for("an answer", lambda: get(port, "/page"))
    workers = set(children_of(service.pid))
    assert len(workers) == 2
    visitors = [Visitor(port, "/page", page) for _ in range(2)]
    for visitor in visitors:
        visitor.start()
        checkpoint.at_end.callback(visitor.stop)
    wait_for("visits", lambda: all(visitor.good > 50 for visitor in visitors))
    slow = socket.create_connection(("127.0.0.1", port))  # an answer that is under way at the dump
    checkpoint.at_end.callback(slow.close)
    slow.sendall(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert slow.recv(100).startswith(b"HTTP/1.1 200")

    checkpoint.dump(service.pid, "--tcp-close")
    checkpoint.restore("--tcp-close")

    assert set(children_of(service.pid)) == workers
    before = [visitor.good for visitor in visitors]
    wait_for("visits after the restore", lambda: all(v.good > n + 50 for v, n in zip(visitors, before, strict=True)))
    answering: set[int] = set()

    def all_answer() -> bool:
        answering.add(int(get(port, "/worker")))
        return answering == workers

    wait_for("both workers to answer", all_answer)
    for visitor in visitors:
        visitor.stop()
        assert visitor.wrong == []
    # The master still commands: new workers at SIGHUP, the log anew at SIGUSR1, all at once at SIGTERM.
    os.kill(service.pid, signal.SIGHUP)
    wait_for("new workers", lambda: not workers & set(children_of(service.pid)), 60)
    assert get(port, "/page") == page
    (tmp_path / "access.log").rename(tmp_path / "access.log.old")
    os.kill(service.pid, signal.SIGUSR1)
    wait_for("a new log", (tmp_path / "access.log").exists)
    service.end(signal.SIGTERM)
