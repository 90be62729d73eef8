# SPDX-License-Identifier: Apache-2.0
"""/proc/TID/syscall, as the kernel writes it."""

import os
import threading
import time

import pytest

from torpor.kernel.inside import OUTSIDE, RUNNING, SeenCall, parse_call, parse_number, seen_call
from torpor.kernel.procfs import ParseError
from torpor.kernel.syscall import NR


def test_forms() -> None:
    assert parse_call(b"running\n") == SeenCall(RUNNING, ())
    assert parse_call(b"-1 0x7ffc0010 0x7f01\n") == SeenCall(OUTSIDE, (), 0x7FFC0010, 0x7F01)
    seen = parse_call(b"0 0x3 0xffffffffffffffff 0x1 0x0 0x0 0x0 0x7ffc 0x7f01\n")
    assert seen == SeenCall(0, (3, (1 << 64) - 1, 1, 0, 0, 0), 0x7FFC, 0x7F01)


def test_the_number_alone() -> None:
    assert parse_number(b"running\n") == RUNNING
    assert parse_number(b"-1 0x7ffc0010 0x7f01\n") == OUTSIDE
    assert parse_number(b"231 0x3 0xffffffffffffffff 0x1 0x0 0x0 0x0 0x7ffc 0x7f01\n") == 231
    for data in (b"", b"\n", b"sleeping\n", b"0x3 0x1 0x2\n"):
        with pytest.raises(ParseError):
            parse_number(data)


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"0 0x3\n", b"-1 0x1\n", b"-1 0x1 0x2 0x3\n", b"sleeping\n", b"0x3 0x1 0x2\n"]
)
def test_unknown_forms(data: bytes) -> None:
    with pytest.raises(ParseError):
        parse_call(data)


def test_a_thread_that_reads() -> None:
    reading, writing = os.pipe()
    tids: list[int] = []

    def read() -> None:
        tids.append(threading.get_native_id())
        os.read(reading, 17)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not tids or seen_call(tids[0]).number != NR["read"]:
            assert time.monotonic() < deadline
        seen = seen_call(tids[0])
        assert (seen.args[0], seen.args[2]) == (reading, 17) and seen.sp and seen.pc
    finally:
        os.write(writing, b"x")
        thread.join()
        os.close(reading)
        os.close(writing)
