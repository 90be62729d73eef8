# SPDX-License-Identifier: Apache-2.0
"""Python with everything at work: threads, an asyncio server, subprocesses behind pipes, a pool of forked processes,
timers, queues. Answers each line of a client with "good …" or with what is wrong."""

import asyncio
import hashlib
import json
import multiprocessing
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time

STATE = {"hashes": 0, "passed": 0, "echoes": 0, "ticks": 0, "pooled": 0, "pairs": 0}
TROUBLE: list[str] = []
TABLE = {f"key {n}": (n, f"content {n}") for n in range(100_000)}
EXPECTED = hashlib.sha256(bytes(1_000_000)).hexdigest()
over = threading.Event()


def forever(step, *arguments):
    """A thread that repeats a step, and keeps what went wrong."""

    def loop():
        try:
            while not over.is_set():
                step(*arguments)
        except Exception as error:
            TROUBLE.append(f"{step.__name__}: {error!r}")

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    return thread


def hash_zeros():
    if hashlib.sha256(bytes(1_000_000)).hexdigest() != EXPECTED:
        raise ValueError("a hash came out otherwise")
    STATE["hashes"] += 1


def put(channel):
    channel.put(STATE["passed"])
    time.sleep(0.001)


def take(channel):
    channel.get()
    STATE["passed"] += 1


def echo(child):
    line = f"echo {STATE['echoes']}\n".encode()
    child.stdin.write(line)
    child.stdin.flush()
    if (answer := child.stdout.readline()) != line:
        raise ValueError(f"cat said {answer!r}")
    STATE["echoes"] += 1
    time.sleep(0.001)


def square(number):
    return number * number


def use_pool(pool):
    if pool.map(square, range(50)) != [n * n for n in range(50)]:
        raise ValueError("the pool is wrong")
    STATE["pooled"] += 1
    time.sleep(0.005)


def use_pair(ends):
    one, other = ends
    data = random.randbytes(500)
    one.send(data)
    if other.recv(1000) != data:
        raise ValueError("a socket pair changed its data")
    STATE["pairs"] += 1
    time.sleep(0.001)


def check():
    if TROUBLE:
        return TROUBLE[0]
    for n in range(len(TABLE)):
        if TABLE[f"key {n}"] != (n, f"content {n}"):
            return f"the table changed at {n}"
    return "good " + json.dumps(STATE)


async def serve(reader, writer):
    try:
        while await reader.readline():
            writer.write(check().encode() + b"\n")
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def tick():
    while True:
        await asyncio.sleep(0.005)
        STATE["ticks"] += 1


async def spawn_now_and_then():
    """A new child every 50 ms, behind asyncio's child watcher."""
    while True:
        child = await asyncio.create_subprocess_exec("/bin/echo", "hello", stdout=asyncio.subprocess.PIPE)
        said, _ = await child.communicate()
        if said != b"hello\n" or child.returncode:
            TROUBLE.append(f"a child said {said!r} and ended with {child.returncode}")
        await asyncio.sleep(0.05)


async def main(port):
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    tasks = [asyncio.create_task(tick()), asyncio.create_task(spawn_now_and_then())]
    server = await asyncio.start_server(serve, "127.0.0.1", port)
    print("ready", flush=True)
    await stop.wait()
    server.close()
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    pool = multiprocessing.get_context("fork").Pool(2)
    # A shell pipeline of several processes, with the pipe between them.
    child = subprocess.Popen("cat | cat | cat", shell=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    channel: queue.Queue[int] = queue.Queue(100)
    pooled = forever(use_pool, pool)
    for thread in [(hash_zeros,), (put, channel), (take, channel), (echo, child), (use_pair, socket.socketpair())]:
        forever(*thread)
    asyncio.run(main(int(sys.argv[1])))
    over.set()
    pooled.join(10)
    pool.terminate()
    pool.join()
    time.sleep(0.1)
    child.stdin.close()
    child.wait(10)
    verdict = check()
    print(verdict, flush=True)
    sys.exit(0 if verdict.startswith("good") else 1)
