# SPDX-License-Identifier: Apache-2.0
"""A program with many kinds of kernel objects, for CRIU to dump.  Run as `victim.py DIR [namespaces]`; says `ready`."""

import ctypes
import mmap
import os
import select
import signal
import socket
import sys
import threading
import time

SCRATCH = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)


def files() -> list[object]:
    ghosts = []
    for name, content in (("small", b"ghost"), ("big", b"x" * 20000 + b"\0" * 100000 + b"y")):
        path = f"{SCRATCH}/{name}"
        file = open(path, "w+b", buffering=0)
        file.write(content)
        os.unlink(path)
        ghosts.append(file)
    fifo = f"{SCRATCH}/fifo"
    os.mkfifo(fifo)
    both = os.open(fifo, os.O_RDWR)
    os.write(both, b"in the fifo")
    reader, writer = os.pipe()
    os.write(writer, b"in the pipe" * 100)
    memfd = os.memfd_create("some memfd")
    os.write(memfd, b"memfd" * 2000)
    strange = os.open(os.fsencode(SCRATCH) + b"/na\xffme \xc3\xa9", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    return [ghosts, both, reader, writer, memfd, strange, os.eventfd(5), os.open(SCRATCH, os.O_RDONLY)]


def sockets() -> list[object]:
    made: list[object] = []
    for sort in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        one, other = socket.socketpair(socket.AF_UNIX, sort)
        one.send(b"queued")
        one.send(b"also queued")
        made += [one, other]
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    socket.send_fds(one, [b"with a file"], [0])
    named, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    named.bind(f"{SCRATCH}/socket")
    abstract.bind(f"\0{SCRATCH}")
    tcp, tcp6, udp = socket.socket(), socket.socket(socket.AF_INET6), socket.socket(type=socket.SOCK_DGRAM)
    tcp.bind(("127.0.0.1", 0))
    udp.bind(("127.0.0.1", 0))
    tcp6.bind(("::1", 0))
    for listener in (named, abstract, tcp, tcp6):
        listener.listen(3)
    poll = select.epoll()
    poll.register(tcp)
    poll.register(one, select.EPOLLIN | select.EPOLLET)
    return [*made, one, other, named, abstract, tcp, tcp6, udp, poll]


def memory() -> list[mmap.mmap]:
    shared = mmap.mmap(-1, 1 << 20)
    shared[:6] = b"shared"
    private = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in (0, 1, 5, 9):
        private[page * 4096] = 1
    return [shared, private]


def system_v() -> None:
    """CRIU takes these only from an IPC namespace of their own."""
    shm = libc.shmget(0, 20000, 0o1600)
    libc.shmat.restype = ctypes.c_void_p
    ctypes.memset(libc.shmat(shm, None, 0), 7, 12000)
    queue = libc.msgget(0, 0o1600)
    for number, text in enumerate((b"", b"five!", b"eight by", b"z" * 300)):
        libc.msgsnd(queue, ctypes.c_long(number + 1).value.to_bytes(8, "little") + text, len(text), 0)
    semaphores = libc.semget(0, 3, 0o1600)
    libc.semctl(semaphores, 1, 16, 42)  # SETVAL


def timers_and_signals() -> None:
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 10000, 5)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGRTMIN})
    os.kill(os.getpid(), signal.SIGUSR1)


def main() -> None:
    if "namespaces" in sys.argv:
        libc.unshare(0x0C000000)  # CLONE_NEWUTS | CLONE_NEWIPC
        system_v()
    kept = [files(), sockets(), memory()]
    timers_and_signals()
    for _ in range(3):
        threading.Thread(target=time.sleep, args=(10000,), daemon=True).start()
    if not os.fork():
        if not os.fork():
            os._exit(7)
        os.setsid()
        os.chdir(SCRATCH)
        time.sleep(10000)
    time.sleep(0.1)
    os.write(1, b"ready\n")
    time.sleep(10000)
    del kept


main()
