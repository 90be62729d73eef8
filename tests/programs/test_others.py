# SPDX-License-Identifier: Apache-2.0
"""Many more programs, each for what it does otherwise than the rest: languages with stacks and schedulers of their own
(Go, Ruby's fibers, Erlang), static and other C libraries, servers with workers, pipelines, builds, filters.

All are dumped while they work and looked at from outside afterwards.
"""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from support import PATIENCE, Checkpoint, Service, ask, free_port, program, wait_for

from harness.events import tree_of


def get(port: int, path: str = "/") -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as answer:
        data: bytes = answer.read()
        return data


def through(checkpoint: Checkpoint, service: Service, *options: str) -> None:
    checkpoint.dump(service.pid, *options)
    checkpoint.restore(*options)


# -- servers ----------------------------------------------------------------------------------------------------------
def test_memcached(checkpoint: Checkpoint, tmp_path: Path) -> None:
    port = free_port()
    memcached = program("memcached", "memcached")
    service = Service([memcached, "-u", "root", "-p", str(port), "-l", "127.0.0.1", "-t", "4"], tmp_path)
    wait_for("memcached", lambda: ask(port, "version"))
    assert ask(port, "set key 0 0 5\r\nhello\r") == "STORED"
    through(checkpoint, service, "--tcp-close")
    assert ask(port, "get key\r") == "VALUE key 0 5"
    service.end()


def test_go_server(checkpoint: Checkpoint, tmp_path: Path) -> None:
    port = free_port()
    command = [program("caddy", "caddy"), "file-server", "--listen", f"127.0.0.1:{port}", "--root", str(tmp_path)]
    service = Service(command, tmp_path, environment={"HOME": str(tmp_path)})
    (tmp_path / "page").write_text("hello")
    wait_for("caddy", lambda: get(port, "/page"))
    through(checkpoint, service, "--tcp-close")
    assert get(port, "/page") == b"hello"
    service.end()


def test_haproxy_with_threads(checkpoint: Checkpoint, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "conf").write_text(
        f"global\n nbthread 4\n stats socket {tmp_path}/control\ndefaults\n mode http\n timeout client 5s\n"
        f" timeout server 5s\n timeout connect 5s\nfrontend f\n bind 127.0.0.1:{port}\n"
        " http-request return status 200 content-type text/plain string hello\n"
    )
    service = Service([program("haproxy", "haproxy"), "-W", "-f", "conf"], tmp_path)
    wait_for("haproxy", lambda: get(port))
    through(checkpoint, service, "--tcp-close")
    assert get(port) == b"hello"
    service.end()


def serve_a_page(checkpoint: Checkpoint, command: list[str], directory: Path, port: int) -> None:
    """A server of files, from its directory."""
    service = Service(command, directory)
    (directory / "page").write_text("hello")
    wait_for("the server", lambda: get(port, "/page"))
    through(checkpoint, service, "--tcp-close")
    assert get(port, "/page") == b"hello"
    service.end(status=None)


def test_busybox_server(checkpoint: Checkpoint, tmp_path: Path) -> None:
    port = free_port()
    command = [program("busybox", "busybox-static"), "httpd", "-f", "-p", f"127.0.0.1:{port}", "-h", str(tmp_path)]
    serve_a_page(checkpoint, command, tmp_path, port)


def test_python_web_server(checkpoint: Checkpoint, tmp_path: Path) -> None:
    port = free_port()
    command = [os.path.realpath(sys.executable), "-B", "-m", "http.server", str(port)]
    serve_a_page(checkpoint, command, tmp_path, port)


def test_ruby_with_fibers(checkpoint: Checkpoint, tmp_path: Path) -> None:
    port = free_port()
    script = f"""
        ticks = 0
        Thread.new {{ loop {{ ticks += 1; sleep 0.01 }} }}
        fibers = (0..20).map {{ |n| Fiber.new {{ i = n; loop {{ Fiber.yield(i += 1) }} }} }}
        server = TCPServer.new("127.0.0.1", {port})
        loop {{ c = server.accept; c.gets; c.puts "#{{fibers.sum(&:resume)}} #{{ticks}}"; c.close }}
    """
    service = Service([program("ruby", "ruby"), "-rsocket", "-e", script], tmp_path)
    wait_for("ruby", lambda: ask(port, ""))
    total, ticks = map(int, ask(port, "").split())
    through(checkpoint, service, "--tcp-close")
    wait_for("its thread", lambda: int(ask(port, "").split()[1]) > ticks + 5)
    assert int(ask(port, "").split()[0]) > total
    service.end(status=None)


# -- filters and shells -----------------------------------------------------------------------------------------------
def test_rust_filter(checkpoint: Checkpoint, tmp_path: Path) -> None:
    service = Service([program("rg", "ripgrep"), "--line-buffered", "needle"], tmp_path, typed=True)
    service.type("a needle 1\nhay\n")
    service.wait_said("needle 1")
    through(checkpoint, service)
    service.type("hay\na needle 2\n")
    service.wait_said("needle 2")
    service.end(status=None)


def test_sqlite_in_memory(checkpoint: Checkpoint, tmp_path: Path) -> None:
    service = Service([program("sqlite3", "sqlite3"), ":memory:"], tmp_path, typed=True)
    service.type("create table a(x); begin; insert into a values (41); select 'ready';\n")
    service.wait_said("ready")
    through(checkpoint, service)
    service.type("commit; select x + 1 from a;\n")
    service.wait_said("42")
    service.type(".exit\n")
    wait_for("its end", service.ended)
    service.end()


@pytest.mark.one_way
def test_a_database_that_holds_locks_is_refused_in_words(checkpoint: Checkpoint, tmp_path: Path) -> None:
    service = Service([program("sqlite3", "sqlite3"), "database"], tmp_path, typed=True)
    service.type("create table a(x); begin immediate; insert into a values (41); select 'ready';\n")
    service.wait_said("ready")
    words = checkpoint.refused(service.pid)
    if checkpoint.dumper.name == "torpor":
        assert f"task {service.pid} (sqlite3), fd " in words
        assert "database" in words
        assert "lock" in words
    service.type("commit; select x + 1 from a;\n")
    service.wait_said("42")
    service.end(status=None)


def test_pipeline_without_terminal(checkpoint: Checkpoint, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    script = f"i=0; while sleep 0.02; do i=$((i+1)); echo $i; done | cat | grep --line-buffered . | tee {copy} | wc -l"
    service = Service(["sh", "-c", script], tmp_path)
    wait_for("the first lines", lambda: copy.exists() and "5\n" in copy.read_text())
    through(checkpoint, service)
    size = copy.stat().st_size
    wait_for("more lines", lambda: copy.stat().st_size > size + 30)
    writer = tree_of(service.pid)[1]
    os.kill(writer, signal.SIGTERM)  # the loop: the others read to the end of their pipes
    wait_for("its end", service.ended)
    lines = [int(line) for line in copy.read_text().split()]
    assert lines == list(range(1, len(lines) + 1))
    assert int(service.said().splitlines()[-1]) == len(lines)
    service.end()


def test_short_lived_children(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """There is a new child at any moment of the dump, just born, executing, ending, or a zombie."""
    service = Service(["sh", "-c", 'while :; do /bin/true || echo bad; n="$n"x; echo "$n" >n; done'], tmp_path)
    count = tmp_path / "n"
    wait_for("some rounds", lambda: count.exists() and count.stat().st_size > 50)
    for _ in range(3):
        size = len(count.read_text())
        through(checkpoint, service)
        wait_for("more rounds", lambda size=size: len(count.read_text()) > size + 20)  # type: ignore[misc]
    service.end(status=None)
    assert service.said() == ""


# -- computations -----------------------------------------------------------------------------------------------------
MUSL = """
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static volatile long ticks;
static void *count(void *nothing) { for (;; usleep(1000)) ticks++; return nothing; }
int main(void)
{
	pthread_t thread;
	pthread_create(&thread, 0, count, 0);
	char *memory = malloc(1 << 20);
	memset(memory, 7, 1 << 20);
	for (int i = 0;; i++, usleep(10000)) {
		for (int k = 0; k < 1 << 20; k++)
			if (memory[k] != 7)
				return 3;
		printf("%d %s\\n", i, ticks ? "good" : "early");
		fflush(stdout);
	}
}
"""


def test_static_program_of_musl(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text(MUSL)
    subprocess.run([program("musl-gcc", "musl-tools"), "-static", "-o", "a", "a.c"], cwd=tmp_path, check=True)
    service = Service([str(tmp_path / "a")], tmp_path)
    service.wait_said("10 good")
    through(checkpoint, service)
    last = int(service.said().splitlines()[-1].split()[0])
    service.wait_said(f"{last + 10} good")
    service.end(status=None)


def test_perl_with_timed_children(checkpoint: Checkpoint, tmp_path: Path) -> None:
    script = r"""
        use Time::HiRes qw(setitimer ITIMER_REAL sleep); $| = 1;
        for my $i (1 .. 10) {
            my $pid = fork; push(@pids, $pid), next if $pid;
            my $n = 0; $SIG{ALRM} = sub { $n++ }; $SIG{TERM} = sub { $SIG{ALRM} = 'IGNORE'; exit($n > 20 ? 3 : 4) };
            setitimer(ITIMER_REAL, 0.005, 0.005); sleep 0.05 while 1;
        }
        $SIG{TERM} = sub { kill 15, @pids; for (@pids) { waitpid $_, 0; print $? >> 8, " " } print "over\n"; exit 0 };
        print "ready\n"; sleep 0.1 while 1;
    """
    service = Service([program("perl", "perl"), "-e", script], tmp_path)
    service.wait_said("ready")
    time.sleep(0.2)
    through(checkpoint, service)
    time.sleep(0.3)
    service.end()
    assert service.said().splitlines()[-1] == "3 " * 10 + "over"


def test_a_build(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """make with jobs, and a compiler at work: what comes out is what would have come out."""
    code = "".join(
        f"int f{n}(int x) {{ for (int i = 0; i < x; i++) x ^= x * {n} + i; return x; }}\n" for n in range(300)
    )
    for name in "abcd":
        (tmp_path / f"{name}.c").write_text(code)
    (tmp_path / "Makefile").write_text("all: a.o b.o c.o d.o\n\t@echo all done\n%.o: %.c\n\t@gcc -O2 -c $<\n")
    service = Service([program("make", "make"), "-j2"], tmp_path)
    wait_for("a compiler", lambda: len(tree_of(service.pid)) >= 4)
    time.sleep(0.3)
    through(checkpoint, service)
    wait_for("the build", service.ended, 120)
    service.end()
    assert service.said() == "all done\n"
    subprocess.run(["gcc", "-O2", "-c", "a.c", "-o", "other.o"], cwd=tmp_path, check=True)
    assert (tmp_path / "a.o").read_bytes() == (tmp_path / "other.o").read_bytes()


# -- terminals of their own -------------------------------------------------------------------------------------------
@pytest.mark.one_way
def test_script(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """script(1) waits in poll, catches no signal, and ends when poll does: a poll must not."""
    command = [program("script", "bsdutils"), "-q", "-f", "-c", "bash --norc -i", str(tmp_path / "log")]
    service = Service(command, tmp_path, typed=True)
    service.type("x=41; PS1='> '; echo rea''dy\n")
    service.wait_said("ready")
    through(checkpoint, service)
    service.type("echo $((x+1)) $(tty)\n")
    service.wait_said("42 /dev/pts/")
    service.type("exit\n")
    wait_for("its end", service.ended)
    service.end()


@pytest.mark.one_way
def test_tmux_with_editors(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A terminal multiplexer and what lives in it: shells, editors, a pager, an interpreter."""
    command = [program("tmux", "tmux"), "-S", str(tmp_path / "tmux"), "-f", os.devnull]
    vi, nano, less = program("vi", "vim-tiny"), program("nano", "nano"), program("less", "less")
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TERM": "screen", "HOME": str(tmp_path)}

    def tmux(*words: str) -> str:
        done = subprocess.run([*command, *words], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, check=True,
                              text=True, timeout=PATIENCE)  # fmt: skip
        return done.stdout

    def shows(pane: str, text: str) -> Callable[[], bool]:
        return lambda: text in tmux("capture-pane", "-p", "-t", pane)

    (tmp_path / "text").write_text("first line\nsecond line\n")
    tmux("new-session", "-d", "-s", "s", "-x", "100", "-y", "30", "bash --norc")
    pid = int(tmux("display-message", "-p", "#{pid}"))
    checkpoint.at_end.callback(end_all, pid)
    python = os.path.realpath(sys.executable)
    for window in (f"{vi} text", f"{nano} other", f"{less} text", f"{python} -q"):
        tmux("new-window", "-t", "s", window)
    wait_for(
        "all to be there", lambda: shows("s:3", "first line")() and shows("s:4", ">>>")() and shows("s:2", "GNU")()
    )
    tmux("send-keys", "-t", "s:0", "x=41; cd /; echo rea''dy", "Enter")
    tmux("send-keys", "-t", "s:1", "ihello ", "Escape")
    tmux("send-keys", "-t", "s:2", "some text")
    tmux("send-keys", "-t", "s:4", "y = 21", "Enter")
    for pane, text in (("s:0", "\nready"), ("s:1", "hello first"), ("s:2", "some text"), ("s:4", "y = 21")):
        wait_for(text, shows(pane, text))
    time.sleep(0.2)
    before = [tmux("capture-pane", "-p", "-t", f"s:{number}") for number in range(5)]

    checkpoint.dump(pid)
    checkpoint.restore()

    time.sleep(0.3)
    assert [tmux("capture-pane", "-p", "-t", f"s:{number}") for number in range(5)] == before
    tmux("send-keys", "-t", "s:0", "echo $((x+1)) $PWD", "Enter")
    wait_for("the shell", shows("s:0", "\n42 /\n"))
    tmux("send-keys", "-t", "s:1", ":wq", "Enter")
    wait_for("vi", lambda: (tmp_path / "text").read_text().startswith("hello first"))
    tmux("send-keys", "-t", "s:2", "C-o", "Enter")
    wait_for("nano", lambda: (tmp_path / "other").exists() and "some text" in (tmp_path / "other").read_text())
    tmux("send-keys", "-t", "s:4", "print(y * 2)", "Enter")
    wait_for("the interpreter", shows("s:4", "\n42\n"))
    tmux("kill-server")


def end_all(pid: int) -> None:
    for one in tree_of(pid):
        try:
            os.kill(one, signal.SIGKILL)
        except ProcessLookupError:
            pass
