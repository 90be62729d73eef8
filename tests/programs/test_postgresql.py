# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL 15 with all its processes, as a user without rights: shared memory of three kinds, a transaction that is
prepared and waits, a client that inserts all the time."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Checkpoint, Service, free_port, program, wait_for

from harness.events import pid_exists, tree_of

PACKAGE = "postgresql-15"
BINARIES = "/usr/lib/postgresql/15/bin"
USER = "postgres"
ROWS = 10_000


class Database:
    """A cluster of its own and a server for it."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.port = directory, free_port()
        self.psql = program("psql", "postgresql-client-15", BINARIES)
        initdb = program("initdb", PACKAGE, BINARIES)
        data = directory / "data"
        command = [initdb, "-D", str(data), "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run(command, check=True, user=USER, group=USER, extra_groups=[], cwd=directory, capture_output=True)
        settings = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(directory),
            "max_prepared_transactions": "5",
            "logging_collector": "on",
            "autovacuum_naptime": "1s",
            "fsync": "off",
        }
        options = [word for name, setting in settings.items() for word in ("-c", f"{name}={setting}")]
        server = os.path.realpath(program("postgres", PACKAGE, BINARIES))
        self.service = Service([server, "-D", str(data), *options], directory, user=USER)
        wait_for("the database", lambda: self.try_ask("SELECT 1") == "1")
        maps = Path(f"/proc/{self.service.pid}/maps").read_text()
        self.shared_files = [Path(name) for name in set(re.findall(r"/dev/shm/PostgreSQL\.\d+", maps))]
        assert self.shared_files
        assert self.segments()

    def segments(self) -> list[int]:
        """The System V segments that the server has made: the columns shmid and cpid of /proc/sysvipc/shm."""
        rows = [line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
        return [int(row[1]) for row in rows if int(row[4]) == self.service.pid]

    def try_ask(self, query: str) -> str:
        try:
            return self.ask(query)
        except AssertionError:
            return ""

    def command(self, host: str = "127.0.0.1") -> list[str]:
        return [self.psql, "-h", host, "-p", str(self.port), "-U", USER, "-qAtX", "-v", "ON_ERROR_STOP=1", "postgres"]

    def ask(self, query: str, host: str = "127.0.0.1") -> str:
        done = subprocess.run(self.command(host), input=query, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


class Inserter(threading.Thread):
    """Inserts 0, 1, 2 … in a transaction each, and remembers what the server has acknowledged."""

    def __init__(self, database: Database) -> None:
        super().__init__(daemon=True)
        self.database = database
        self.acknowledged = 0
        self.sessions = 0
        self.over = False

    def run(self) -> None:
        while not self.over:
            session = subprocess.Popen(
                self.database.command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                text=True, bufsize=1,
            )  # fmt: skip
            assert session.stdin
            assert session.stdout
            try:
                while not self.over:
                    # Sent and lost is allowed, so the same number may be there already.
                    number = self.acknowledged
                    session.stdin.write(f"INSERT INTO log VALUES ({number}) ON CONFLICT DO NOTHING RETURNING 1;"
                                        f" SELECT 'done {number}';\n")  # fmt: skip
                    while (line := session.stdout.readline().strip()) != f"done {number}":
                        if not line:
                            raise BrokenPipeError
                    self.acknowledged += 1
            except OSError:
                pass  # psql ends when its connection does: a new one
            finally:
                self.sessions += 1
                for stream in (session.stdin, session.stdout):
                    try:
                        stream.close()
                    except OSError:
                        pass
                session.wait()

    def stop(self) -> None:
        self.over = True
        self.join(60)

    def wait_for(self, number: int) -> None:
        goal = self.acknowledged + number
        wait_for(f"{number} more inserts", lambda: self.acknowledged >= goal)


@pytest.fixture
def database(checkpoint: Checkpoint) -> Iterator[Database]:
    """In a directory that the server's user can reach: pytest's own is closed to it."""
    if os.geteuid() == 0:
        program("postgres", PACKAGE, BINARIES)
    directory = Path(tempfile.mkdtemp(prefix="torpor-postgresql-"))
    try:
        directory.chmod(0o755)
        shutil.chown(directory, USER, USER)
        yield (database := Database(directory))
        # When the test has failed: in good order, or its shared memory outlives it.
        for number in (signal.SIGCONT, signal.SIGINT):
            for pid in tree_of(database.service.pid) if pid_exists(database.service.pid) else []:
                if number == signal.SIGCONT or pid == database.service.pid:
                    os.kill(pid, number)
        wait_for("the server to end", lambda: not pid_exists(database.service.pid) or database.service.ended())
        for segment in database.segments():  # the dump has ended it and the restore has failed
            subprocess.run(["ipcrm", "-m", str(segment)], check=True)
        for file in database.shared_files:
            file.unlink(missing_ok=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def test_all_processes(database: Database, checkpoint: Checkpoint) -> None:
    database.ask(
        f"CREATE TABLE rows AS SELECT n, md5(n::text) AS word FROM generate_series(1, {ROWS}) n;"
        "CREATE TABLE log (n integer PRIMARY KEY);"
        "BEGIN; INSERT INTO rows VALUES (0, 'prepared'); PREPARE TRANSACTION 'held';"
    )
    digest = "SELECT md5(string_agg(n || word, ',' ORDER BY n)) FROM rows"
    before = database.ask(digest)
    processes = database.ask("SELECT string_agg(pid::text, ' ') FROM pg_stat_activity WHERE backend_type NOT IN"
                             " ('client backend', 'autovacuum worker')").split()  # fmt: skip
    assert len(processes) >= 5
    inserter = Inserter(database)
    inserter.start()
    checkpoint.at_end.callback(inserter.stop)
    inserter.wait_for(100)

    checkpoint.dump(database.service.pid, "--tcp-close")
    checkpoint.restore("--tcp-close")

    inserter.wait_for(100)
    inserter.stop()
    assert inserter.sessions >= 2
    there = database.ask(f"SELECT count(*) FROM log WHERE n < {inserter.acknowledged}")
    assert int(there) == inserter.acknowledged, "acknowledged inserts are lost"
    assert database.ask(digest) == before
    assert database.ask("SELECT gid FROM pg_prepared_xacts") == "held"
    database.ask("COMMIT PREPARED 'held'")
    assert database.ask("SELECT word FROM rows WHERE n = 0") == "prepared"
    # The very processes from before still work: a checkpoint, a parallel query, the socket file, an idle wait.
    database.ask("CHECKPOINT; VACUUM rows;")
    assert database.ask("SELECT count(*) FROM rows", host=str(database.directory)) == str(ROWS + 1)
    parallel = "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;"
    plan = database.ask(f"{parallel} EXPLAIN ANALYZE SELECT count(*) FROM rows")
    assert "Workers Launched: 2" in plan or "Workers Launched: 1" in plan, plan
    for process in processes:
        assert os.path.exists(f"/proc/{process}"), f"process {process} of the server is gone"
    database.service.end(signal.SIGINT)
    # It has put away all that it had, from before the dump and since.
    assert not list(database.directory.glob("data/postmaster.pid"))
    assert database.segments() == []
    assert not any(file.exists() for file in database.shared_files)
