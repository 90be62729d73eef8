# SPDX-License-Identifier: Apache-2.0
"""`make demo`: a busy redis-server is dumped, ended and brought back, and its client goes on.

What is printed is what was seen here and now: the tool's own lines, the sizes on the disk, the frozen time that the
dump wrote into its statistics, and from outside the longest time that the client had to wait for an acknowledgement.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from redis_client import Redis, Writer, missing

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

KEYS = 100_000
CONTENT = "x" * 100


class DemoFailed(Exception):
    """The demonstration did not come out as promised; the text says how."""


def heading(text: str) -> None:
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}{text}{plain}", flush=True)


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.02 else f"{seconds * 1000:.1f} ms"


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def gone(pid: int) -> bool:
    """Has it ended? (A zombie has; its parent may take its time.)"""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(") ")[2].startswith("Z")
    except FileNotFoundError:
        return True


def start_redis(directory: Path, port: int) -> subprocess.Popen[bytes]:
    program = shutil.which("redis-server")
    if program is None:
        raise DemoFailed("there is no redis-server here; install it: apt-get install redis-server")
    with open(directory / "redis.log", "ab") as log:
        # As any service: a session of its own, its output in a file.
        process = subprocess.Popen(
            [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=directory,
            start_new_session=True,
        )
    for _ in range(1000):
        try:
            Redis(port).close()
            return process
        except OSError:
            time.sleep(0.01)
            if process.poll() is not None:
                break
    raise DemoFailed(f"redis-server did not start: {(directory / 'redis.log').read_text()[-500:]}")


def run(tool: list[str], *arguments: str) -> float:
    """Run the tool with its output on this terminal; seconds."""
    print(f"  $ {' '.join([*tool, *arguments])}", flush=True)
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "torpor"] if tool == ["torpor"] else tool
    start = time.monotonic()
    # Its output comes through a pipe, so that the restored server does not hold this terminal.
    done = subprocess.run(
        [*command, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=dict(os.environ, PYTHONPATH=path), text=True,
    )  # fmt: skip
    took = time.monotonic() - start
    for line in done.stdout.splitlines():
        print(f"    {line}", flush=True)
    if done.returncode:
        raise DemoFailed(f"{tool[0]} {arguments[0]} ended with status {done.returncode}")
    return took


def frozen_time(images: Path) -> float | None:
    """Seconds, from the dump's own statistics (stats-dump, in CRIU's format, too)."""
    from torpor.images.directory import ImageReader
    from torpor.images.kinds import STATS

    directory = os.open(images, os.O_RDONLY | os.O_DIRECTORY)
    try:
        stats = ImageReader(directory).one(STATS, "dump").dump
        return None if stats is None else stats.frozen_time / 1e6
    finally:
        os.close(directory)


def demo(tool: list[str], work: Path) -> None:
    images = work / "images"
    images.mkdir(mode=0o700)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    heading("1. A redis-server with 100,000 keys and a client that never stops writing")
    server = start_redis(work, port)
    pid = server.pid
    writer = Writer(port)
    try:
        client = Redis(port)
        for start in range(0, KEYS, 1000):
            client.many([("SET", f"key:{number}", f"{number} {CONTENT}") for number in range(start, start + 1000)])
        client.close()
        say(f"redis-server is process {pid} with {len(os.listdir(f'/proc/{pid}/task'))} threads, on port {port}, "
            f"and holds {megabytes(resident(pid))}")  # fmt: skip
        writer.start()
        writer.wait_for(2000)
        usual = writer.longest_pause
        say(f"the client has {writer.acknowledged:,} writes acknowledged so far, and never waited longer than "
            f"{milliseconds(usual)}")  # fmt: skip

        heading("2. Dump it while the client writes; then the original is ended")
        dumping = run(tool, "dump", "-t", str(pid), "-D", str(images), "--tcp-close")
        if server.wait(10) != -signal.SIGKILL:
            raise DemoFailed(f"the original ended by itself, with status {server.returncode}")
        at_dump = writer.acknowledged
        files = list(images.iterdir())
        size = sum(file.stat().st_size for file in files)
        frozen = frozen_time(images)
        say(f"{len(files)} files with {megabytes(size)}; process {pid} is gone: {gone(pid)}")

        heading("3. Bring it back")
        restoring = run(tool, "restore", "-d", "-D", str(images), "--tcp-close")
        writer.wait_for(2000)
        writer.stop()
        if writer.connections < 2:
            raise DemoFailed("the client's connection was not closed, as --tcp-close should")

        heading("4. Is it all there?")
        client = Redis(port)
        lost = missing(client, writer.acknowledged)
        if lost:
            raise DemoFailed(f"{len(lost)} acknowledged writes are missing, the first is number {lost[0]}")
        say(f"all {writer.acknowledged:,} acknowledged writes are there: {at_dump:,} from before the dump, "
            f"{writer.acknowledged - at_dump:,} since")  # fmt: skip
        for start in range(0, KEYS, 1000):
            numbers = range(start, start + 1000)
            replies = client.many([("GET", f"key:{number}") for number in numbers])
            for number, reply in zip(numbers, replies, strict=True):
                if reply != f"{number} {CONTENT}".encode():
                    raise DemoFailed(f"key:{number} is not as it was")
        say(f"so are the {KEYS:,} keys; it is process {pid} again, and the client is on its connection number "
            f"{writer.connections}")  # fmt: skip
        client.close()

        heading("In numbers")
        say(f"images          {megabytes(size)}")
        say(f"frozen          {'(not told)' if frozen is None else milliseconds(frozen)}")
        say(f"dump command    {milliseconds(dumping)}")
        say(f"restore command {milliseconds(restoring)}")
        say(f"client's longest wait, dump and restore and all: {milliseconds(writer.longest_pause)} "
            f"(before: {milliseconds(usual)})")  # fmt: skip
    finally:
        if writer.is_alive():
            writer.stop()
        end(pid, port)


def end(pid: int, port: int) -> None:
    """Ask the server to end; it may be this process's child, or what a restore has made."""
    try:
        Redis(port)("SHUTDOWN", "NOSAVE")
    except OSError:
        pass  # the answer to SHUTDOWN is a closed connection
    deadline = time.monotonic() + 10
    while not gone(pid):
        if time.monotonic() > deadline:
            print(f"process {pid} did not end when asked to", file=sys.stderr)
            return
        time.sleep(0.01)


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo", description="Dump and restore a busy redis-server.")
    parser.add_argument("--tool", default="torpor", help="a command with CRIU's arguments (this checkout's torpor)")
    parser.add_argument("--keep", action="store_true", help="leave the images where they are, and say where")
    chosen = parser.parse_args()
    if os.geteuid() != 0:
        print("demo: taking over another process's memory needs root: sudo make demo", file=sys.stderr)
        return 1
    work = Path(tempfile.mkdtemp(prefix="torpor-demo-"))
    try:
        demo([chosen.tool], work)
    except (DemoFailed, TimeoutError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    finally:
        if chosen.keep:
            say(f"kept: {work}")
        else:
            shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
