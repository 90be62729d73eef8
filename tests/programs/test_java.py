# SPDX-License-Identifier: Apache-2.0
"""Java 17: a heap, compiled code, a collector with its own threads, a direct buffer, timers, a child process."""

import subprocess
from pathlib import Path

import pytest
from support import VICTIMS, Asker, Checkpoint, Service, ask, free_port, program, wait_for

PACKAGE = "openjdk-17-jdk-headless"
# The last one maps its heap, terabytes of addresses, from a memfd.
COLLECTORS = ("-XX:+UseG1GC", "-XX:+UseSerialGC", "-XX:+UseZGC")


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the compiled program is."""
    place = tmp_path_factory.mktemp("classes")
    subprocess.run([program("javac", PACKAGE), "-d", str(place), str(VICTIMS / "Busy.java")], check=True)
    return place


@pytest.mark.parametrize("collector", COLLECTORS)
def test_program_that_checks_itself(checkpoint: Checkpoint, classes: Path, tmp_path: Path, collector: str) -> None:
    java = program("java", PACKAGE)
    port = free_port()
    service = Service([java, collector, "-Xmx160m", "-cp", str(classes), "Busy", str(port)], tmp_path)
    service.wait_said("ready", 60)
    asker = Asker(port, "check", "good ")
    asker.start()
    checkpoint.at_end.callback(asker.stop)
    asker.wait_for(20)
    counts = numbers(port)

    checkpoint.dump(service.pid, "--tcp-close")
    checkpoint.restore("--tcp-close")

    asker.wait_for(20)
    asker.stop()
    assert asker.wrong == []
    # Every kind of thread goes on: those that compute, allocate, wait for the clock, wait for each other.
    wait_for("all threads to go on", lambda: all(now > then for now, then in zip(numbers(port), counts, strict=True)))
    assert ask(port, "collect").startswith("good ")
    assert ask(port, "run") == "from a child 0"
    assert ask(port, "load").startswith("CRC32C")
    service.end(status=128 + 15)  # Java's own way to say SIGTERM


def numbers(port: int) -> list[int]:
    answer = ask(port, "check")
    assert answer.startswith("good "), answer
    return [int(word) for word in answer.split()[1:]]
