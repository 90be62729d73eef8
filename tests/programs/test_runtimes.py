# SPDX-License-Identifier: Apache-2.0
"""What rules over its memory and its threads in a way of its own: a sanitizer, a Lisp, a pool of PHP workers."""

import os
import re
import signal
import socket
import struct
import subprocess
from pathlib import Path

import pytest
from support import PATIENCE, Checkpoint, Service, program, wait_for

SANITIZED = r"""
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static void *allocate(void *unused)
{
	for (;; usleep(500)) {
		char *memory = malloc(1000);
		memset(memory, 1, 1000);
		free(memory);
	}
	return unused;
}
int main(void)
{
	pthread_t threads[3];
	for (int i = 0; i < 3; i++)
		pthread_create(&threads[i], NULL, allocate, NULL);
	for (int line; scanf("%d", &line) == 1; fflush(stdout)) {
		char *memory = malloc(100);
		memory[line] = 'x';
		printf("%d %c\n", line, memory[line]);
		free(memory);
	}
}
"""


def test_address_sanitizer(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """It maps terabytes of shadow, nearly all of it untouched, and afterwards still finds what is wrong."""
    (tmp_path / "a.c").write_text(SANITIZED)
    command = [program("gcc", "gcc"), "-O0", "-g", "-fsanitize=address", "-pthread", "-o", "a", "a.c"]
    subprocess.run(command, cwd=tmp_path, check=True)
    service = Service([str(tmp_path / "a")], tmp_path, typed=True)
    service.type("7\n")
    service.wait_said("7 x\n")
    checkpoint.dump(service.pid)
    assert sum(file.stat().st_size for file in checkpoint.images.iterdir()) < 64 << 20
    checkpoint.restore()
    service.type("8\n")
    service.wait_said("8 x\n")
    assert "ERROR" not in service.said()
    service.type("100\n")
    wait_for("its end", service.ended)
    service.end(status=1)
    assert "heap-buffer-overflow" in service.said() and "a.c:23" in service.said()


LISP = """
(defvar *collected* 0)
(push (lambda () (incf *collected*)) sb-ext:*after-gc-hooks*)
(defun work ()
  (loop (let ((all (loop for i below 20000 collect (make-array 20 :initial-element i))))
          (assert (= 19999 (aref (car (last all)) 3))))))
(dotimes (i 2) (sb-thread:make-thread #'work))
(sb-ext:schedule-timer
  (sb-ext:make-timer (lambda () (format t "tick ~a~%" *collected*) (finish-output)) :thread t)
  0.05 :repeat-interval 0.05)
(loop (let ((line (read-line *standard-input* nil)))
        (unless line (return))
        (format t "~a~%" (eval (read-from-string line)))
        (finish-output)))
"""


def ticks(service: Service) -> tuple[int, int]:
    """How many there were, and how many collections until the last one."""
    lines = [line for line in service.said().splitlines()[:-1] if line.startswith("tick ")]
    return len(lines), int(lines[-1].split()[1])


@pytest.mark.one_way  # signals come all the time: one that waits when it is stopped has its handler entered first
def test_lisp(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Its collector protects pages and stops other threads by signals, all the time."""
    (tmp_path / "a.lisp").write_text(LISP)
    service = Service([program("sbcl", "sbcl"), "--script", "a.lisp"], tmp_path, typed=True)
    service.wait_said("tick 3")
    checkpoint.dump(service.pid)
    checkpoint.restore()
    before = ticks(service)
    service.type("(list (* 6 7) (length sb-ext:*after-gc-hooks*))\n")
    service.wait_said("(42 1)")
    wait_for(
        "ticks and collections", lambda: all(now > then + 2 for now, then in zip(ticks(service), before, strict=True))
    )
    service.type("(sb-ext:exit :code 5 :abort t)\n")  # SIGTERM would not do while its threads collect
    wait_for("its end", service.ended)
    service.end(status=5)


def fastcgi(path: Path, script: Path) -> bytes:
    """What a script answers over FastCGI: a request of its own connection."""

    def record(kind: int, data: bytes) -> bytes:
        return struct.pack(">BBHHBB", 1, kind, 1, len(data), 0, 0) + data

    def pair(name: str, value: str) -> bytes:
        return bytes([len(name), len(value)]) + name.encode() + value.encode()

    names = {"SCRIPT_FILENAME": str(script), "REQUEST_METHOD": "GET", "SCRIPT_NAME": "/a.php", "QUERY_STRING": ""}
    parameters = b"".join(pair(name, value) for name, value in names.items())
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(path))
        connection.sendall(
            record(1, struct.pack(">HB5x", 1, 0)) + record(4, parameters) + record(4, b"") + record(5, b"")
        )
        data = b""
        while more := connection.recv(9999):
            data += more
    return data


PHP = """<?php
echo 'sum ', array_sum(range(1, 1000)), ' ', (int) opcache_is_script_cached(__FILE__), ' ', getmypid();
"""
CONFIGURATION = """
[global]
daemonize = no
error_log = {0}/errors
[www]
user = root
group = root
listen = {0}/socket
pm = static
pm.max_children = 3
php_admin_value[opcache.file_update_protection] = 0
"""


def test_php_workers(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """They share a socket, a scoreboard, and the compiled scripts."""
    fpm = program("php-fpm8.2", "php8.2-fpm")
    script = tmp_path / "a.php"
    script.write_text(PHP)
    (tmp_path / "conf").write_text(CONFIGURATION.format(tmp_path))
    service = Service([fpm, "-R", "-F", "-y", "conf"], tmp_path)

    cached: list[int] = []

    def answer() -> int:
        data = fastcgi(tmp_path / "socket", script)
        found = re.search(rb"sum 500500 ([01]) (\d+)", data)
        assert found is not None, data
        cached.append(int(found[1]))
        return int(found[2])

    workers = {wait_for("PHP", answer) for _ in range(5)}
    checkpoint.dump(service.pid)
    checkpoint.restore()
    assert all(os.path.exists(f"/proc/{worker}") for worker in workers)
    victim = answer()
    assert cached[-1] == 1
    os.kill(victim, signal.SIGKILL)
    wait_for("another worker", lambda: all(answer() != victim for _ in range(5)))
    service.end(signal.SIGQUIT)
