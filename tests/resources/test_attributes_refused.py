# SPDX-License-Identifier: Apache-2.0
"""Tasks that Torpor must refuse to dump, for real: each in words, and the task goes on unharmed."""

import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import torpor
from torpor import survey
from torpor.dump import dump
from torpor.errors import Refusal
from torpor.options import Options
from torpor.resources import security

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SOURCE = r"""
#define _GNU_SOURCE
#ifdef __x86_64__
#include <asm/ldt.h>
#endif
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
static void ready(void) { write(1, "ready\n", 6); for (;;) pause(); }
static void skip(const char *why) { perror(why); exit(77); }
static volatile char selector; /* SYSCALL_DISPATCH_FILTER_ALLOW */
static int filter(void)
{
	struct sock_filter code[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
	struct sock_fprog program = {1, code};
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}
static void *apart(void *flags) { if (unshare((long)flags)) skip("unshare"); ready(); return flags; }
static void *confined(void *unused) { if (filter()) skip("seccomp"); ready(); return unused; }
#ifdef __x86_64__
static void *described(void *unused) /* a call of 32-bit programs; their pointers have 32 bits */
{
	struct user_desc *low = mmap(0, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	*low = (struct user_desc){.entry_number = 13, .base_addr = 4096, .limit = 0xfffff, .seg_32bit = 1, .useable = 1};
	long result;
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(243L), "b"(low) : "memory", "r8", "r9", "r10", "r11");
	if (result) skip("set_thread_area");
	ready();
	return unused;
}
#endif
static void *idle(void *unused) { ready(); return unused; }
int main(int count, char **words)
{
	const char *what = words[1];
	if (!strcmp(what, "filter") && filter()) skip(what);
	if (!strcmp(what, "thread")) { pthread_t t; pthread_create(&t, 0, confined, 0); for (;;) pause(); }
	if (!strcmp(what, "two")) { pthread_t t; pthread_create(&t, 0, idle, 0); for (;;) pause(); }
	long flags = !strcmp(what, "uts") ? CLONE_NEWUTS : !strcmp(what, "pidns") ? CLONE_NEWPID
		: !strcmp(what, "fs") ? CLONE_FS : !strcmp(what, "mnt") ? CLONE_NEWNS : 0;
	if (flags) { pthread_t t; pthread_create(&t, 0, apart, (void *)flags); for (;;) pause(); }
	if (!strcmp(what, "dispatch") && prctl(59, 1, 0, 0, &selector)) skip(what);
	if (!strcmp(what, "deadline")) {
		struct { unsigned size, policy; unsigned long flags; int nice; unsigned priority; unsigned long times[3]; }
			attr = {48, 6, 0, 0, 0, {1000000, 100000000, 100000000}};
		if (syscall(SYS_sched_setattr, 0, &attr, 0)) skip(what);
	}
	if (!strcmp(what, "keyring") && syscall(SYS_keyctl, 0, -2, 1) < 0) skip(what);
	if (!strcmp(what, "ioperm") && ioperm(0x80, 1, 1)) skip(what);
	void *memory = mmap(0, 65536, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned long nodes = 1;
	if (!strcmp(what, "mbind") && syscall(SYS_mbind, memory, 65536L, 2L, &nodes, 64L, 0L)) skip(what);
	unsigned long context = 0;
	if (!strcmp(what, "aio") && syscall(SYS_io_setup, 8, &context)) skip(what);
	int huge = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
	if (!strcmp(what, "huge") && mmap(0, 2 << 20, 3, huge, -1, 0) == MAP_FAILED) skip(what);
	if (!strcmp(what, "flusher") && prctl(57, 1, 0, 0, 0)) skip(what);
	if (!strncmp(what, "vdso", 4)) {
		char *vdso = (char *)getauxval(AT_SYSINFO_EHDR);
		while (mprotect(vdso, huge = 4096 * ++nodes, PROT_READ | PROT_WRITE | PROT_EXEC)) /* not a part of it alone */
			if (nodes > 64) skip(what);
		vdso[huge - 1]++;
		if (!strcmp(what, "vdso-changed")) mprotect(vdso, huge, PROT_READ | PROT_EXEC);
	}
#ifdef __x86_64__
	struct user_desc segment = {.entry_number = 3, .base_addr = 0x1000, .limit = 0xfffff, .seg_32bit = 1, .useable = 1};
	if (!strcmp(what, "described")) { pthread_t t; pthread_create(&t, 0, described, 0); for (;;) pause(); }
	if (!strcmp(what, "segments") && syscall(SYS_modify_ldt, 1, &segment, sizeof segment)) skip(what);
#endif
	ready();
}
"""

# pause() and again: int 0x80 in an ELF of 32 bits.
CODE = bytes.fromhex("b8040000 00bb0100 0000b954 800408ba 06000000 cd80 b81d000000 cd80 ebf7".replace(" ", ""))


# Of what `check -t` sees already.
REMEDIES = {"namespace": "end that thread first", "vdso-changed": "without what changes it"}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("refused")
    (place / "victim.c").write_text(SOURCE)
    subprocess.run(["gcc", "-O1", "-w", "-o", place / "victim", place / "victim.c", "-lpthread"], check=True)
    return str(place / "victim")


class Victim:
    def __init__(self, place: Path, *words: str) -> None:
        self.out = place / "out"
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, close_fds=True
            )
        while "ready" not in self.out.read_text():
            if self.process.poll() is not None:
                pytest.skip(f"cannot be had here: {self.out.read_text()}")
            time.sleep(0.01)

    def dump(self, place: Path, **options: object) -> None:
        images = place / "images"
        images.mkdir(exist_ok=True)
        dump(Options(tree=self.process.pid, images_dir=str(images), leave_running=True, **options))


@pytest.fixture
def victims(tmp_path: Path) -> Iterator[list[Victim]]:
    made: list[Victim] = []
    yield made
    for victim in made:
        victim.process.kill()
        victim.process.wait()


@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("filter", "seccomp", "runs under seccomp (mode filter)"),
        ("thread", "seccomp", "runs under seccomp (mode filter)"),
        ("dispatch", "unsupported", "PR_SET_SYSCALL_USER_DISPATCH"),
        ("deadline", "unsupported", "SCHED_DEADLINE"),
        ("keyring", "unsupported", "keyring"),
        ("ioperm", "unsupported", "ioperm"),
        ("flusher", "unsupported", "I/O flusher"),
        ("aio", "unsupported", "asynchronous I/O (io_setup)"),
        ("huge", "unsupported", "hugetlb pages"),
        ("vdso-writable", "vdso-changed", "has a protection of its own (rwx)"),
        ("vdso-changed", "vdso-changed", "was changed, which a restore would lose"),
        pytest.param(
            "segments",
            "unsupported",
            "modify_ldt",
            marks=pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86 has segments"),
        ),
        pytest.param(
            "described",
            "unsupported",
            "has memory segments of its own (set_thread_area)",
            marks=pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86 has segments"),
        ),
        ("uts", "namespace", "has another UTS namespace than the process"),
        ("pidns", "namespace", "has another PID namespace than the process for its children"),
        ("fs", "unsupported", "has a working directory of its own (unshare(CLONE_FS))"),
        ("mnt", "unsupported", "has a working directory of its own (unshare(CLONE_FS))"),
    ],
)
def test_refused(what: str, code: str, words: str, program: str, tmp_path: Path, victims: list[Victim]) -> None:
    victim = Victim(tmp_path, program, what)
    victims.append(victim)
    with pytest.raises(Refusal) as refused:
        victim.dump(tmp_path)
    assert words in refused.value.why
    assert refused.value.code == code
    assert f"task {victim.process.pid} (" in refused.value.subject
    assert not os.listdir(tmp_path / "images")
    if remedy := REMEDIES.get(code):
        (obstacle,) = torpor.check(pid=victim.process.pid, manage_cgroups="ignore").facts()["obstacles"]
        assert words in obstacle["why"] and remedy in obstacle["remedy"]
    assert victim.process.poll() is None
    status = Path(f"/proc/{victim.process.pid}/status").read_text()
    assert "TracerPid:\t0" in status
    assert "SigBlk:\t0000000000000000" in status


def elf32(path: Path) -> str:
    """A program of 32 bits that says "ready" and waits."""
    base = 0x08048000
    header = struct.pack("<16s2H5I6H", b"\x7fELF\1\1\1", 2, 3, 1, base + 0x5A, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    segment = struct.pack("<8I", 1, 0, base, base, 0x200, 0x200, 7, 0x1000)
    path.write_bytes((header + segment + b"ready\n" + CODE).ljust(0x200, b"\0"))
    path.chmod(0o755)
    return str(path)


def test_32bit_refused(tmp_path: Path, victims: list[Victim]) -> None:
    program = elf32(tmp_path / "small")
    try:
        subprocess.run([program], timeout=0.3, stdout=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        pass
    except OSError as error:
        pytest.skip(f"this kernel runs no 32-bit programs: {error}")
    victim = Victim(tmp_path, program)
    victims.append(victim)
    with pytest.raises(Refusal, match="32-bit program"):
        victim.dump(tmp_path)
    assert victim.process.poll() is None


def cgroup_directory() -> Path | None:
    """Where a cgroup of our own can be made, on v1 or v2."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        kind = fields[fields.index("-") + 1]
        if kind in ("cgroup", "cgroup2"):
            place = Path(fields[4]) / f"torpor-test-{os.getpid()}"
            try:
                place.mkdir()
            except OSError:
                continue
            return place
    return None


@pytest.fixture
def place() -> Iterator[Path]:
    """A cgroup of its own; to be asked for before `victims`, which are to end first."""
    made = cgroup_directory()
    if made is None:
        pytest.skip("no cgroup can be made here")
    yield made
    made.rmdir()


def test_other_cgroup_refused_unless_ignored(program: str, place: Path, tmp_path: Path, victims: list[Victim]) -> None:
    victim = Victim(tmp_path, program, "plain")
    victims.append(victim)
    try:
        (place / "cgroup.procs").write_text(str(victim.process.pid))
    except OSError as error:
        pytest.skip(f"the victim cannot be moved: {error}")
    with pytest.raises(Refusal, match="another cgroup than Torpor") as refused:
        victim.dump(tmp_path)
    assert refused.value.code == "cgroup"
    assert "--manage-cgroups=ignore" in refused.value.remedy
    shutil.rmtree(tmp_path / "images")
    victim.dump(tmp_path, manage_cgroups="ignore")
    assert victim.process.poll() is None


def test_thread_in_another_cgroup(program: str, place: Path, tmp_path: Path, victims: list[Victim]) -> None:
    victim = Victim(tmp_path, program, "two")
    victims.append(victim)
    (other,) = {int(tid) for tid in os.listdir(f"/proc/{victim.process.pid}/task")} - {victim.process.pid}
    try:
        (place / "tasks").write_text(str(other))
    except OSError as error:
        pytest.skip(f"a thread cannot be moved alone: {error}")
    with pytest.raises(Refusal, match=f"thread {other} is in another cgroup than the first") as refused:
        victim.dump(tmp_path)
    assert refused.value.code == "cgroup"


@pytest.mark.parametrize("first", [True, False])
def test_bound_memory(
    program: str, tmp_path: Path, victims: list[Victim], monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """mbind(2); where there is only one node, nothing depends on it.  Also in tasks behind those that the survey of a
    large tree examines in full."""
    victim = Victim(tmp_path, *([program, "mbind"] if first else ["sh", "-c", f"{program} mbind; true"]))
    victims.append(victim)
    if not first:
        monkeypatch.setattr(survey, "EXAMINED", 0)
    monkeypatch.setattr(security, "several_nodes", lambda: True)
    with pytest.raises(Refusal, match=r"has a policy of its own \(mbind, set_mempolicy: bind"):
        victim.dump(tmp_path)
    assert victim.process.poll() is None
    os.killpg(victim.process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("which", "name", "words"),
    [
        ("process", "current", r"it is confined by a security module \(docker-default \(enforce\)\)"),
        ("thread", "current", r"its thread \d+ is confined by a security module \(docker-default \(enforce\)\)"),
        ("process", "exec", r"has a label for what comes next \(attr/exec: docker-default \(enforce\)\)"),
    ],
)
def test_label(
    program: str, tmp_path: Path, victims: list[Victim], monkeypatch: pytest.MonkeyPatch, which: str, name: str,
    words: str,
) -> None:  # fmt: skip
    """As if there were AppArmor here."""
    victim = Victim(tmp_path, program, "two")
    victims.append(victim)
    leader = victim.process.pid
    (other,) = {int(tid) for tid in os.listdir(f"/proc/{leader}/task")} - {leader}
    confined = leader if which == "process" else other

    def read(tid: int, asked: str) -> bytes:
        if (tid, asked) == (confined, name):
            return b"docker-default (enforce)"
        return b"unconfined" if asked == "current" else b""

    monkeypatch.setattr(security, "_labels", None)
    monkeypatch.setattr(security, "_read_label", read)
    with pytest.raises(Refusal, match=words) as refused:
        victim.dump(tmp_path)
    assert refused.value.code == "label" and not os.listdir(tmp_path / "images")
    assert any(one.code == "label" for one in torpor.check(pid=leader, manage_cgroups="ignore").obstacles)
    confined = 0
    victim.dump(tmp_path)  # nobody is confined any more


def test_frozen_cgroup(program: str, tmp_path: Path, victims: list[Victim]) -> None:
    """A paused container: refused, where the dump would wait for ever."""
    kinds = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    mounts = [fields[4] for fields in kinds if fields[fields.index("-") + 1] == "cgroup2"]
    place = Path(mounts[0] if mounts else "/nonexistent") / f"torpor-test-{os.getpid()}"
    try:
        place.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup of version 2 can be made here: {error}")
    try:
        victim = Victim(tmp_path, program, "plain")
        victims.append(victim)
        (place / "cgroup.procs").write_text(str(victim.process.pid))
        (place / "cgroup.freeze").write_text("1")
        while "frozen 1" not in (place / "cgroup.events").read_text():
            time.sleep(0.01)
        with pytest.raises(Refusal, match="cgroup is frozen"):
            victim.dump(tmp_path, manage_cgroups="ignore")
        (place / "cgroup.freeze").write_text("0")
        assert victim.process.poll() is None
    finally:
        (place / "cgroup.freeze").write_text("0")
        for victim in victims:
            victim.process.kill()
            victim.process.wait()
        place.rmdir()


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86 has such registers")
def test_permissions_for_registers(
    monkeypatch: pytest.MonkeyPatch, program: str, tmp_path: Path, victims: list[Victim]
) -> None:
    """As where AMX is: a bit that the victim has is none that everybody has."""
    permissions = security._own_permissions()
    if not permissions:
        pytest.skip("this kernel has no such permissions")
    monkeypatch.setattr(security, "_permissions", permissions & permissions - 1)
    victim = Victim(tmp_path, program, "nothing")
    victims.append(victim)
    with pytest.raises(Refusal, match=r"ARCH_REQ_XCOMP_PERM: 0x1\), which Torpor does not restore yet"):
        victim.dump(tmp_path)
    assert victim.process.poll() is None
