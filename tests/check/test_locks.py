# SPDX-License-Identifier: Apache-2.0
"""File locks are refused in words, whatever their kind; the program that holds them goes on.  SQLite is the common one:
in WAL mode it holds a lock as long as a database is open."""

import os
import sys
from pathlib import Path

import pytest

import torpor
from torpor.errors import Refusal

from .support import Victim

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

HOLDERS = {
    "wal": """
import sqlite3
held = sqlite3.connect("file", isolation_level=None)
held.execute("pragma journal_mode=wal")
held.execute("create table some(what)")
work = lambda: held.execute("insert into some values('more')")
""",
    "fcntl": 'held = open("file", "w"); fcntl.lockf(held, fcntl.LOCK_EX); work = lambda: None',
    "flock": 'held = open("file", "w"); fcntl.flock(held, fcntl.LOCK_SH); work = lambda: None',
    "description": """
import struct
held = open("file", "w")
fcntl.fcntl(held, 37, struct.pack("hhqqi", fcntl.F_WRLCK, 0, 10, 5, 0))  # F_OFD_SETLK
work = lambda: None
""",
    "lease": 'held = open("file", "w"); fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK); work = lambda: None',
}
KINDS = {"wal": "POSIX, read", "fcntl": "POSIX, write", "flock": "FLOCK, read", "description": "OFDLCK, write",
         "lease": "LEASE, write"}  # fmt: skip
PROGRAM = """
import fcntl, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
%s
print("ready", flush=True)
signal.sigwait({signal.SIGTERM})
work()
print("worked", flush=True)
"""


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_lock_is_named(tmp_path: Path, holder: str) -> None:
    with Victim(tmp_path, sys.executable, "-c", PROGRAM % HOLDERS[holder]) as victim:
        assert victim.first == "ready"
        images = tmp_path / "images"
        images.mkdir()
        with pytest.raises(Refusal) as refused:
            torpor.dump(victim.pid, images)
        said = str(refused.value)
        comm = Path(f"/proc/{victim.pid}/comm").read_text().strip()
        assert said.startswith(f"task {victim.pid} ({comm}), fd ") and f"({tmp_path}/file" in said
        assert f"a file lock ({KINDS[holder]}) is held through it" in said and "give up its locks" in said
        assert not os.listdir(images)
        assert said in map(str, torpor.check(pid=victim.pid).obstacles)
        assert victim.end() == "worked"
