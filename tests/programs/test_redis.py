# SPDX-License-Identifier: Apache-2.0
"""redis-server: an event loop with background threads, written to by an outside client all the time."""

from pathlib import Path

import pytest
from support import Checkpoint, Service, free_port, program, wait_for

from redis_client import Redis, Writer, missing

KEYS = 20_000


@pytest.fixture
def redis(checkpoint: Checkpoint, tmp_path: Path) -> tuple[Service, int]:
    port = free_port()
    command = [program("redis-server", "redis-server"), "--port", str(port), "--save", "", "--dir", str(tmp_path)]
    service = Service(command, tmp_path)
    service.wait_said("Ready to accept connections")
    return service, port


def test_every_acknowledged_write_is_there(redis: tuple[Service, int], checkpoint: Checkpoint) -> None:
    service, port = redis
    client = Redis(port)
    client.many([("SET", f"key:{number}", f"content {number}") for number in range(KEYS)])
    client("HSET", "table", "field", "cell")
    client("EXPIRE", "table", 3600)
    client.close()
    writer = Writer(port)
    writer.start()
    checkpoint.at_end.callback(writer.stop)
    writer.wait_for(500)

    checkpoint.dump(service.pid, "--tcp-close")
    at_dump = writer.acknowledged
    checkpoint.restore("--tcp-close")

    writer.wait_for(500)
    writer.stop()
    assert writer.connections >= 2, "the writer kept the connection that should have been closed"
    assert writer.acknowledged > at_dump
    client = Redis(port)
    assert missing(client, writer.acknowledged) == []
    replies = client.many([("GET", f"key:{number}") for number in range(KEYS)])
    assert replies == [f"content {number}".encode() for number in range(KEYS)]
    ttl = client("TTL", "table")
    assert client("HGET", "table", "field") == b"cell"
    assert isinstance(ttl, int)
    assert 3500 < ttl <= 3600
    # A snapshot forks, and a lazy deletion uses a background thread.
    client("BGSAVE")
    wait_for("the snapshot", lambda: b"rdb_bgsave_in_progress:0" in bytes_of(client("INFO", "persistence")))
    assert b"rdb_last_bgsave_status:ok" in bytes_of(client("INFO", "persistence"))
    client("FLUSHALL", "ASYNC")
    assert client("DBSIZE") == 0
    client.close()
    service.end()


@pytest.mark.one_way
def test_an_established_connection_is_refused_in_words(redis: tuple[Service, int], checkpoint: Checkpoint) -> None:
    service, port = redis
    client = Redis(port)
    client("SET", "a", "1")
    words = checkpoint.refused(service.pid)
    assert "tcp" in words.lower(), words
    if checkpoint.dumper.name == "torpor":
        assert "--tcp-close" in words, "the remedy is not named"
    assert client("GET", "a") == b"1", "the connection did not survive the refusal"
    client.close()
    service.end()


def bytes_of(reply: object) -> bytes:
    assert isinstance(reply, bytes)
    return reply
