# SPDX-License-Identifier: Apache-2.0
"""TCP sockets whose port getsockname(2) tells, though they have given it back; and others, which have it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import torpor
from torpor.images.directory import ImageReader
from torpor.images.kinds import FILES

if os.geteuid():
    pytest.skip("tracing needs root", allow_module_level=True)

LOOPBACK = {"AF_INET": "127.0.0.1", "AF_INET6": "::1"}
# The ports of: an attempt that failed, the same of a socket that was bound to this very port, one that is bound, and a
# connection that connect(2) has ended.
VICTIM = """
import ctypes, socket, struct, sys
family, host = getattr(socket, sys.argv[1]), sys.argv[2]
def make(*port):
    one = socket.socket(family)
    if port:
        one.bind(("", *port))
    return one
with make(0) as nobody, make(0) as other:
    nobody, port = (host, nobody.getsockname()[1]), other.getsockname()[1]
tried, again, bound, cut = make(), make(port), make(0), make()
for one in (tried, again):
    try:
        one.connect(nobody)
    except ConnectionRefusedError:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
with make(0) as listener:
    listener.listen()
    cut.connect((host, listener.getsockname()[1]))
    ctypes.CDLL(None).connect(cut.fileno(), struct.pack("H26x", socket.AF_UNSPEC), 28)
    cut.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # ECONNRESET
def show():
    print(*(one.getsockname()[1] for one in (tried, again, bound, cut)), flush=True)
show()
for line in sys.stdin:
    show()
"""


@pytest.mark.parametrize("family", LOOPBACK)
def test_ports(family: str, tmp_path: Path) -> None:
    try:
        socket.create_server((LOOPBACK[family], 0), family=getattr(socket, family)).close()
    except OSError as error:
        pytest.skip(f"{family}: {error.strerror}")
    command = [sys.executable, "-c", VICTIM, family, LOOPBACK[family]]
    victim = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert victim.stdin and victim.stdout
    try:
        told = victim.stdout.readline()
        tried, again, bound, cut = map(int, told.split())
        assert tried and again and bound and cut
        torpor.dump(victim.pid, tmp_path, leave_running=True)
        with ImageReader.open(str(tmp_path)) as images:
            sockets = [entry.isk for entry in images.entries(FILES) if entry.isk]
        assert sorted(isk.src_port for isk in sockets) == sorted([0, 0, again, bound])
        assert [isk.opts.so_keepalive for isk in sockets].count(True) == 2, "options are kept"
        victim.stdin.write("\n")
        victim.stdin.flush()
        assert victim.stdout.readline() == told, "it has noticed"
    finally:
        victim.kill()
        victim.wait()
        victim.stdin.close()
        victim.stdout.close()
