# SPDX-License-Identifier: Apache-2.0
"""As much of a Redis client as the demo and the tests need: commands, replies, and a writer that never gives up.

A checkpoint with --tcp-close breaks the connections that are open. What was acknowledged before must be there after;
what was sent and not acknowledged may or may not be.
"""

from __future__ import annotations

import socket
import threading
import time

Reply = bytes | int | list["Reply"] | None


class RedisError(Exception):
    """The server answered with an error."""


class Redis:
    """One connection (RESP, the protocol of redis.io/docs/reference/protocol-spec)."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.replies = self.socket.makefile("rb")

    def __call__(self, *words: str | bytes | int) -> Reply:
        return self.many([words])[0]

    def many(self, commands: list[tuple[str | bytes | int, ...]]) -> list[Reply]:
        """Several commands in one go."""
        out = bytearray()
        for words in commands:
            out += b"*%d\r\n" % len(words)
            for word in words:
                data = word if isinstance(word, bytes) else str(word).encode()
                out += b"$%d\r\n%b\r\n" % (len(data), data)
        self.socket.sendall(out)
        return [self._reply() for _ in commands]

    def _reply(self) -> Reply:
        line = self.replies.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionResetError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise RedisError(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self.replies.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self._reply() for _ in range(int(rest))]
        return rest

    def close(self) -> None:
        self.replies.close()
        self.socket.close()


class Writer(threading.Thread):
    """Sets written:0, written:1 … as fast as the server acknowledges; reconnects when the connection breaks."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.acknowledged = 0  # written:0 … written:acknowledged-1 must be there
        self.connections = 0
        self.longest_pause = 0.0  # seconds between two acknowledgements
        self.trouble: Exception | None = None
        self._stop_now = threading.Event()

    def run(self) -> None:
        last = time.monotonic()
        while not self._stop_now.is_set():
            try:
                redis = Redis(self.port)
                self.connections += 1
                while not self._stop_now.is_set():
                    redis("SET", f"written:{self.acknowledged}", value(self.acknowledged))
                    self.acknowledged += 1
                    now = time.monotonic()
                    self.longest_pause = max(self.longest_pause, now - last)
                    last = now
                redis.close()
            except OSError:
                time.sleep(0.005)  # not listening, or the connection broke: try again
            except Exception as error:
                self.trouble = error
                return

    def wait_for(self, number: int, patience: float = 30.0) -> None:
        """Until that many more writes are acknowledged."""
        goal = self.acknowledged + number
        deadline = time.monotonic() + patience
        while self.acknowledged < goal:
            if self.trouble:
                raise self.trouble
            if time.monotonic() > deadline:
                raise TimeoutError(f"only {self.acknowledged} of {goal} writes acknowledged after {patience:g} s")
            time.sleep(0.005)

    def stop(self) -> None:
        self._stop_now.set()
        self.join(60)
        if self.trouble:
            raise self.trouble


def value(number: int) -> str:
    """What belongs under written:NUMBER."""
    return f"value {number} {number * 2654435761 % 2**32:08x}"


def missing(redis: Redis, acknowledged: int) -> list[int]:
    """The acknowledged writes that are not there as they were written."""
    lost = []
    for start in range(0, acknowledged, 1000):
        numbers = range(start, min(start + 1000, acknowledged))
        replies = redis.many([("GET", f"written:{number}") for number in numbers])
        lost += [n for n, reply in zip(numbers, replies, strict=True) if reply != value(n).encode()]
    return lost
