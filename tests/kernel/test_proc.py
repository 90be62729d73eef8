# SPDX-License-Identifier: Apache-2.0
"""/proc of tasks: Python's own os, resource and signal modules are the oracle; no bytes may raise the unplanned."""

import ctypes
import os
import re
import resource
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from torpor.kernel import maps, mounts, proc, status
from torpor.kernel.procfs import ParseError, read_all, read_at, read_memory, write_memory

libc = ctypes.CDLL(None, use_errno=True)


def stat_of(pid: int | str = "self") -> proc.Stat:
    return proc.parse_stat(read_all(f"/proc/{pid}/stat"))


def status_of(pid: int | str = "self") -> status.Status:
    return status.parse_status(read_all(f"/proc/{pid}/status"))


def thread_status_of(pid: int | str = "self") -> status.ThreadStatus:
    return status.parse_thread_status(read_all(f"/proc/{pid}/status"))


def test_read_all_is_the_whole_file(tmp_path: Path) -> None:
    for size in (0, 1, 65535, 65536, 65537, 300_000):
        (tmp_path / "f").write_bytes(os.urandom(size))
        assert read_all(str(tmp_path / "f")) == (tmp_path / "f").read_bytes()
        fd = os.open(tmp_path, os.O_RDONLY)
        assert read_at(fd, "f", 100) == (tmp_path / "f").read_bytes()
        os.close(fd)


def test_stat() -> None:
    stat = stat_of()
    assert (stat.pid, stat.ppid) == (os.getpid(), os.getppid())
    assert (stat.pgrp, stat.session) == (os.getpgrp(), os.getsid(0))
    assert (stat.state, stat.exit_signal, stat.num_threads) == ("R", signal.SIGCHLD, threading.active_count())
    assert stat.nice == os.getpriority(os.PRIO_PROCESS, 0)
    assert stat.policy == os.sched_getscheduler(0)
    assert stat.arg_start < stat.arg_end <= stat.env_start < stat.env_end


@pytest.mark.parametrize(
    "name", [b"plain", b") R 1 (", b"a\nb", b"back\\sl\\n", b" ends ", b"\xff\xfe", b"", b"Pid:\t1"]
)
def test_names(name: bytes) -> None:
    old = stat_of().comm
    try:
        libc.prctl(15, name)
        assert stat_of().comm == status_of().name == thread_status_of().name == name
        assert stat_of().ppid == status_of().ppid == os.getppid()
    finally:
        libc.prctl(15, old)


def test_status() -> None:
    found = status_of()
    cred = found.credentials
    assert (found.pid, found.tgid, found.ppid) == (os.getpid(), os.getpid(), os.getppid())
    assert cred.uids[:3] == os.getresuid()
    assert cred.gids[:3] == os.getresgid()
    assert sorted(cred.groups) == sorted(os.getgroups())
    umask = os.umask(0o27)
    try:
        assert status_of().umask == 0o27
    finally:
        os.umask(umask)
    assert found.ns_tids[-1] == os.getpid()
    assert (found.threads, found.state) == (threading.active_count(), "R")
    assert cred.no_new_privs == libc.prctl(39, 0, 0, 0, 0)
    assert cred.seccomp == libc.prctl(21, 0, 0, 0, 0)
    assert found.thp_enabled == 1 - libc.prctl(42, 0, 0, 0, 0)
    for bit in range(41):
        assert bool(cred.bounding >> bit & 1) == (libc.prctl(23, bit, 0, 0, 0) == 1)


def test_signal_masks() -> None:
    def bits(signals: set[int]) -> int:
        return sum(1 << number - 1 for number in signals)

    wanted = {signal.SIGUSR1, signal.SIGRTMAX}
    ignored = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    caught = signal.signal(signal.SIGWINCH, lambda *_: None)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    try:
        signal.raise_signal(signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGRTMAX)
        found = status_of()
        assert found.blocked == bits(mask | wanted) == thread_status_of().blocked
        assert found.ignored & bits({signal.SIGUSR2, signal.SIGWINCH}) == bits({signal.SIGUSR2})
        assert found.caught & bits({signal.SIGUSR2, signal.SIGWINCH}) == bits({signal.SIGWINCH})
        assert (found.pending, found.shared_pending) == (bits({signal.SIGUSR1}), bits({signal.SIGRTMAX}))
        assert found.signals_queued >= 1
        assert thread_status_of().pending == found.pending
    finally:
        signal.sigwait({signal.SIGUSR1})
        signal.sigwait({signal.SIGRTMAX})
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGUSR2, ignored)
        signal.signal(signal.SIGWINCH, caught)


def test_fast_and_slow_status_agree() -> None:
    seen = 0
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                data = read_all(f"/proc/{entry}/status")
            except (FileNotFoundError, ProcessLookupError):
                continue
            slow, fast = status.parse_status(data), status.parse_thread_status(data)
            status._parsed = status.FEW  # from here on by the pattern
            assert fast == (slow.name, slow.state, slow.pid, slow.ns_tids, slow.pending, slow.blocked, slow.credentials)
            assert status.pattern().match(data), "the fast way does not know this kernel's status"
            seen += 1
    assert seen > 1


def test_status_in_another_order() -> None:
    data = read_all("/proc/self/status")
    turned = b"\n".join(reversed(data.rstrip(b"\n").split(b"\n"))) + b"\n"
    assert status.pattern().match(turned) is None
    assert status.parse_thread_status(turned) == status.parse_thread_status(data)
    assert status.parse_status(turned)._replace(other={}) == status.parse_status(data)._replace(other={})


def test_limits() -> None:
    limits = proc.parse_limits(read_all("/proc/self/limits"))
    assert len(limits) == len(proc.LIMITS) == 16
    for number, limit in limits.items():
        expected = (value & proc.INFINITY for value in resource.getrlimit(number))
        assert limit == tuple(expected)


def test_posix_timers() -> None:
    class Event(ctypes.Structure):  # struct sigevent
        _fields_ = (
            ("value", ctypes.c_void_p),
            ("signo", ctypes.c_int),
            ("notify", ctypes.c_int),
            ("tid", ctypes.c_int * 12),
        )

    made = []
    tid = threading.get_native_id()
    for clock, event in (
        (1, Event(0x1234, signal.SIGUSR1, 0)),
        (0, Event(None, signal.SIGRTMIN, 1)),
        (1, Event(None, signal.SIGUSR2, 4, (tid,))),
    ):
        timer = ctypes.c_int()
        assert (
            libc.syscall(
                222 if os.uname().machine == "x86_64" else 107, clock, ctypes.byref(event), ctypes.byref(timer)
            )
            == 0
        )
        made.append(timer.value)
    try:
        pid = os.getpid()
        mine = {timer.id: timer for timer in proc.parse_timers(read_all("/proc/self/timers"))}
        assert [mine[number] for number in made] == [
            proc.Timer(made[0], signal.SIGUSR1, 0x1234, "signal", False, pid, 1),
            proc.Timer(made[1], signal.SIGRTMIN, 0, "none", False, pid, 0),
            proc.Timer(made[2], signal.SIGUSR2, 0, "signal", True, tid, 1),
        ]
    finally:
        for number in made:
            libc.syscall(226 if os.uname().machine == "x86_64" else 111, number)


def test_numbers() -> None:
    def number(name: str, base: int = 10) -> int:
        return proc.parse_number(name, read_all(f"/proc/self/{name}"), base)

    assert number("personality", 16) == libc.personality(0xFFFFFFFF)
    assert number("timerslack_ns") == libc.prctl(30, 0, 0, 0, 0)
    assert number("oom_score_adj") == int(Path("/proc/self/oom_score_adj").read_text())


def test_auxv() -> None:
    assert dict(proc.parse_auxv(read_all("/proc/self/auxv")))[6] == resource.getpagesize()


def test_children() -> None:
    with subprocess.Popen(["sleep", "1000"]) as child:
        tid = threading.get_native_id()
        assert child.pid in proc.parse_pids(read_all(f"/proc/self/task/{tid}/children"))
        child.kill()


def test_cgroups() -> None:
    found = proc.parse_cgroup(read_all("/proc/self/cgroup"))
    shown = ["{}:{}:{}".format(m.hierarchy, ",".join(m.controllers), m.path) for m in found]
    assert shown == Path("/proc/self/cgroup").read_text().splitlines()


def test_a_thread_has_its_own_files() -> None:
    ready, end = threading.Event(), threading.Event()
    tids = []

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        libc.prctl(15, b"other name")
        tids.append(threading.get_native_id())
        ready.set()
        end.wait()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        found = thread_status_of(f"self/task/{tids[0]}")
        assert (found.tid, found.name) == (tids[0], b"other name")
        assert found.blocked >> signal.SIGUSR1 - 1 & 1
        assert status_of(f"self/task/{tids[0]}").tgid == os.getpid()
    finally:
        end.set()
        thread.join()


def test_a_zombie() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(3)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert stat_of(pid).state == status_of(pid).state == "Z"
    assert os.waitstatus_to_exitcode(stat_of(pid).exit_code) == 3
    assert (maps.read_maps(pid), maps.read_vm_flags(pid)) == ([], {})
    os.waitpid(pid, 0)
    for gone in (stat_of, maps.read_maps):
        with pytest.raises(FileNotFoundError):
            gone(pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a mount namespace")
def test_mounts(tmp_path: Path) -> None:
    point = tmp_path / "a b\tc\\d\ne"
    point.mkdir()
    script = 'mount -t tmpfs -o ro,size=4k "so#urce x" "$1" && mount --make-shared "$1" && cat /proc/self/mountinfo'
    ran = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", point], capture_output=True)
    if ran.returncode:
        pytest.skip(f"cannot mount here: {ran.stderr.decode()}")
    found = mounts.parse_mountinfo(ran.stdout)
    ours = next(mount for mount in found if mount.point == str(point))
    assert (ours.root, ours.fstype, ours.source) == ("/", "tmpfs", "so#urce x")
    assert "relatime" in ours.options
    assert "ro" in ours.options + ours.super_options
    assert "size=4k" in ours.super_options
    assert ours.shared > 0
    assert (ours.master, ours.unbindable) == (0, False)
    assert ours.parent in {mount.id for mount in found}


def test_own_mounts() -> None:
    by_point = {mount.point: mount for mount in mounts.parse_mountinfo(read_all("/proc/self/mountinfo"))}
    assert by_point["/proc"].fstype == "proc"
    assert os.makedev(*by_point["/proc"].dev) == os.stat("/proc").st_dev


PARSERS: dict[str, Callable[[bytes], object]] = {
    "stat": proc.parse_stat,
    "status": status.parse_status,
    "thread status": status.parse_thread_status,
    "limits": proc.parse_limits,
    "timers": proc.parse_timers,
    "cgroup": proc.parse_cgroup,
    "auxv": proc.parse_auxv,
    "children": proc.parse_pids,
    "personality": lambda data: proc.parse_number("personality", data, 16),
    "mountinfo": mounts.parse_mountinfo,
}
SAMPLES = [read_all("/proc/self/" + name) for name in ("stat", "status", "limits", "cgroup", "auxv", "mountinfo")]


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """A real file with a piece cut out, or with other bytes in its place."""
    data = draw(st.sampled_from(SAMPLES))
    start = draw(st.integers(0, len(data)))
    return data[:start] + draw(st.binary(max_size=8)) + data[draw(st.integers(start, min(len(data), start + 40))) :]


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.one_of(st.binary(), mangled()))
@example(data=b"1 (" + b") R" + b" 0" * 60)
@example(data=b"ID: 1\nsignal: 1/(null)\nnotify: signal/pid.1\nClockID: 1\n" * 2)
@example(data=b"ID: 1\nsignal: 1/\nnotify: \nClockID:\n")
@example(data=b"1 1 0:0 / / rw")
def test_nonsense_is_a_parse_error(name: str, data: bytes) -> None:
    try:
        PARSERS[name](data)
    except ParseError as error:
        assert str(error)


@given(st.binary(max_size=15))
def test_names_in_stat(name: bytes) -> None:
    data = b"12 (" + name + b") S" + b" 7" * 49 + b" 8 9\n"
    stat = proc.parse_stat(data)
    assert (stat.pid, stat.comm, stat.state, stat.exit_code) == (12, name, "S", 7)


@given(st.binary(max_size=15).filter(lambda name: b"\0" not in name))
def test_names_in_status(name: bytes) -> None:
    escaped = re.sub(rb"[\\\n]", lambda m: rb"\\" if m[0] == b"\\" else rb"\n", name)
    assert status.unescape(escaped) == name


@pytest.mark.parametrize("address", [1 << 63, (1 << 64) - 8192, (1 << 64) - 1, 1 << 64])
def test_memory_that_far_is_asked_for(address: int) -> None:
    """No call takes it for a bad argument: that nothing is there is the answer."""
    fd = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        with pytest.raises(OSError):
            read_memory(fd, 8, address)
        with pytest.raises(OSError):
            write_memory(fd, b"nowhere", address)
    finally:
        os.close(fd)


def test_memory_as_it_is() -> None:
    buffer = ctypes.create_string_buffer(b"some memory")
    fd = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        assert read_memory(fd, 4, ctypes.addressof(buffer)) == b"some"
        assert write_memory(fd, b"your", ctypes.addressof(buffer)) == 4
    finally:
        os.close(fd)
    assert buffer.value == b"your memory"
