# SPDX-License-Identifier: Apache-2.0
"""A Python interpreter with threads that wait in a queue, a lock and a sleep, a child, and a big heap of objects."""
# wl:

import os
import queue
import threading
import time

import wl

wl.begin()
objects = {f"key {i}": [i, str(i) * 3, {"n": i}] for i in range(20_000)}
orders: "queue.Queue[int]" = queue.Queue()
answers: "queue.Queue[int]" = queue.Queue()
lock = threading.Lock()
lock.acquire()
stop = threading.Event()
ticks = 0


def worker() -> None:
    while number := orders.get():
        answers.put(number * 2)


def waiter() -> None:
    with lock:
        answers.put(-1)


def ticker() -> None:
    global ticks
    while not stop.is_set():
        time.sleep(0.02)
        ticks += 1


def child() -> None:
    pid, parent = os.getpid(), os.getppid()
    wl.child_ready_wait()
    wl.same(os.getpid(), pid, "the child's PID")
    wl.same(os.getppid(), parent, "the child's parent")
    wl.same(objects["key 777"], [777, "777777777", {"n": 777}], "an object in the child")


pid = wl.child(child)  # before there are threads
threads = [threading.Thread(target=target) for target in (worker, waiter, ticker)]
for thread in threads:
    thread.start()
wl.ready_wait()
before = ticks
wl.same(len(objects), 20_000, "number of objects")
for i in range(0, 20_000, 97):
    wl.same(objects[f"key {i}"], [i, str(i) * 3, {"n": i}], f"object {i}")
orders.put(21)
wl.same(answers.get(timeout=20), 42, "answer")
lock.release()
wl.same(answers.get(timeout=20), -1, "answer of the one who waited for the lock")
deadline = time.monotonic() + 20
while ticks < before + 3 and time.monotonic() < deadline:
    time.sleep(0.005)
wl.check(ticks >= before + 3, "a sleeping thread does not wake")
stop.set()
orders.put(0)
for thread in threads:
    thread.join()
wl.end(pid)
wl.passed()
