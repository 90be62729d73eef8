# SPDX-License-Identifier: Apache-2.0
"""What images have and this kernel lacks is refused by the checks, in words (the guests' newer.py has real kernels)."""

import ctypes
import errno
import socket
import struct
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
from attributekit import PID, be, credentials, restore, task, thread

from torpor import restore_load
from torpor.arch import aarch64, native, x86_64
from torpor.arch.base import ERESTARTSYS, Arch, Call, Registers
from torpor.engine.program import Program
from torpor.errors import KernelError, Refusal, RestoreFailed
from torpor.images.schema.core import TaskRlimitsEntry, ThreadSasEntry
from torpor.images.schema.fdinfo import FileEntry
from torpor.images.schema.rlimit import RlimitEntry
from torpor.images.schema.rseq import RseqEntry
from torpor.images.schema.sk_opts import SkOptsEntry
from torpor.images.schema.sk_unix import UnixSkEntry
from torpor.images.schema.torpor import TaskExtraEntry, ThreadExtraEntry
from torpor.images.schema.torpor_file import TorporFileEntry
from torpor.kernel.procfs import read_all
from torpor.kernel.sched import SCHED_FIFO, ioprio_get
from torpor.resources import (
    inet_options,
    lacking,
    memfd,
    prctl,
    rlimits,
    sched,
    signals,
    socket_options,
    socket_trial,
    switches,
    threads,
    unix,
)  # fmt: skip
from torpor.resources.creds import Credentials
from torpor.resources.description import NOBODY
from torpor.resources.eventfd import Eventfd
from torpor.resources.fdtable import Files
from torpor.resources.sched import Scheduling
from torpor.restore import _failed

PR_SET_NAME = 15


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    be(monkeypatch)


def test_calls_that_change_a_process_are_tried_elsewhere() -> None:
    tried = restore()
    assert lacking.error_of(tried, "madvise", 0, 0, 4000) == errno.EINVAL
    assert lacking.error_in_child(tried, "exit_group", 1) == -1
    assert lacking.error_in_child(tried, "dup3", 1, 1, 0) == errno.EINVAL
    name = ctypes.create_string_buffer(b"another", 16)
    before = read_all("/proc/self/comm")
    assert lacking.error_in_child(tried, "prctl", PR_SET_NAME, ctypes.addressof(name)) == 0
    assert read_all("/proc/self/comm") == before


def test_a_setting_that_cannot_be_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked = task(), restore()
    found: list[Refusal] = []
    monkeypatch.setattr(asked, "problem", found.append, raising=False)
    made.extras.process = TaskExtraEntry(mdwe=1 << 20)
    asked.state["extras"] = {made.pid: made.extras}
    switches.Switches().check(made, asked)
    assert [one.code for one in found] == ["needs-kernel"]
    assert "PR_SET_MDWE" in str(found[0])


@pytest.mark.parametrize(
    ("wanted", "ours", "refused"),
    [(5, 2, True), (9, 2, True), (3, 2, False), (5, 0, False), (5, 4, False), (5, 3, False)],
)
def test_speculation_that_nobody_can_turn_off_here(
    monkeypatch: pytest.MonkeyPatch, wanted: int, ours: int, refused: bool
) -> None:
    """Bits of PR_GET_SPECULATION_CTRL: 1, each may choose; 2, on; 4, off; 8, off for good.  0: there is no need."""
    made, asked, program = task(), restore(), Program()
    found: list[Refusal] = []
    monkeypatch.setattr(asked, "problem", found.append, raising=False)
    monkeypatch.setattr(switches, "own_speculation", lambda which: ours)
    made.extras.process = TaskExtraEntry(store_bypass=wanted)
    asked.state["extras"] = {made.pid: made.extras}
    switches.Switches().check(made, asked)
    assert bool(found) == refused
    switches.Switches().place(made, program)
    assert len(program) == (ours & 1)


@pytest.mark.parametrize("size", [20, 33])
def test_an_area_for_rseq_of_a_size_that_no_kernel_takes(size: int) -> None:
    made = task()
    asked = restore()
    asked.state["rseq kept"] = threads.RSEQ_KEPT if size > threads.RSEQ_SIZE else 28
    thread(made).rseq_entry = RseqEntry(rseq_abi_pointer=4096, rseq_abi_size=size, signature=1)
    with pytest.raises(Refusal, match=rf"an area of {size} bytes for rseq\(2\)"):
        threads.Rseq().check(made, asked)
    thread(made).rseq_entry = RseqEntry(rseq_abi_pointer=4096, rseq_abi_size=threads.RSEQ_SIZE, signature=1)
    threads.Rseq().check(made, asked)


QARMA5 = "QARMA5 in the bits 0x7f000000000000"


@pytest.mark.parametrize(
    "theirs,ours,refused",
    [
        (QARMA5, QARMA5, False), (None, QARMA5, False),  # CRIU's images do not tell
        (QARMA5, "QARMA5 in the bits 0x70000000000000", True),  # the same, under a kernel with longer addresses
        (QARMA5, "QARMA3 in the bits 0x7f000000000000", True), (QARMA5, "", True),
    ],
)  # fmt: skip
def test_pointers_signed_otherwise(
    monkeypatch: pytest.MonkeyPatch, theirs: str | None, ours: str, refused: bool
) -> None:
    found: list[Refusal] = []
    asked = restore()
    asked.images = SimpleNamespace(find=lambda kind: SimpleNamespace(signing=theirs))
    asked.problem = found.append
    arch = native()
    monkeypatch.setattr(arch, "signs_pointers", True, raising=False)
    monkeypatch.setattr(arch, "signing", lambda: ours, raising=False)
    restore_load.registers(asked, arch, Registers(b"", {}))
    assert [one.code for one in found] == ["cpu-feature"] * refused
    if refused:
        assert f"by {theirs}, and this one does by {ours or 'nothing that it tells'}" in found[0].why


X86, ARM = x86_64.ARCH, aarch64.ARCH
# What the kernel tells programs they need (AT_MINSIGSTKSZ): with AVX, with AVX-512 and keys, with AMX too.
AVX, KEYS, AMX = 1776, 3632, 11952


@pytest.mark.parametrize(
    "arch,there,here,size,refused",
    [
        (X86, AVX, KEYS, AVX, True), (X86, AVX, KEYS, KEYS - 1, True), (X86, AVX, KEYS, KEYS, False),
        (X86, AVX, KEYS, AVX - 1, False), (X86, 0, KEYS, AVX, False), (X86, KEYS, AVX, KEYS, False),
        (X86, KEYS, AMX, 8192, False), (X86, AVX, AMX, 2048, True), (X86, AMX, AMX, 8192, False),
        (ARM, 4720, 9984, 4720, False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("shared", [False, True])
def test_alternate_stacks_on_which_no_signal_fits(
    monkeypatch: pytest.MonkeyPatch, arch: Arch, there: int, here: int, size: int, refused: bool, shared: bool
) -> None:
    made, asked = task(3), restore()
    vector = [17, 100, signals.AT_MINSIGSTKSZ, there] if there else [17, 100]
    mm = SimpleNamespace(mm_saved_auxv=vector)
    made.ids = SimpleNamespace(vm_id=7)  # type: ignore[assignment]
    if shared:
        other = task()
        other.ids, other.mm = made.ids, mm  # type: ignore[assignment]
        asked.tasks = {1: task(), PID: made, 2: other}
    else:
        made.mm = mm  # type: ignore[assignment]
    monkeypatch.setattr(signals, "native", lambda: arch)
    own = struct.pack("=4Q", signals.AT_MINSIGSTKSZ, here, 0, 0)
    monkeypatch.setattr(signals, "read_all", lambda path: own)
    signals.AltStack().check(made, asked)  # no thread has one
    thread(made).sas = ThreadSasEntry(ss_sp=4096, ss_size=size, ss_flags=signals.SS_DISABLE)
    signals.AltStack().check(made, asked)  # or it is not in use
    for tid in made.threads[1:]:
        thread(made, tid).sas = ThreadSasEntry(ss_sp=4096, ss_size=size, ss_flags=signals.SS_AUTODISARM)
    if not refused:
        signals.AltStack().check(made, asked)
        return
    with pytest.raises(Refusal, match=f"thread {made.threads[1]} .and 1 more of them. has an alternate") as failed:
        signals.AltStack().check(made, asked)
    assert failed.value.code == "cpu-feature" and f"of {size} bytes" in failed.value.why


NOT_YET = 1 << 30  # a flag of SO_TIMESTAMPING that no kernel has
GENERAL = SkOptsEntry(
    so_sndbuf=0, so_rcvbuf=0, so_snd_tmo_sec=0, so_snd_tmo_usec=0, so_rcv_tmo_sec=0, so_rcv_tmo_usec=0
)


def _try_socket(asked: Any, opts: SkOptsEntry = GENERAL, **own: Any) -> None:
    extra = TorporFileEntry(id=1, **own)
    inet = (socket.AF_INET, socket.SOCK_STREAM)
    socket_trial.check(asked, 1, "internet socket", inet, opts, extra, inet_options.try_all)


def test_options_of_internet_sockets() -> None:
    asked = restore()
    _try_socket(asked)
    with pytest.raises(Refusal, match="its congestion control is none such, which this kernel cannot do") as failed:
        _try_socket(asked, congestion="none such")
    assert failed.value.code == "needs-kernel"
    with pytest.raises(
        Refusal, match=rf"SO_TIMESTAMPING with the value {NOT_YET}, which this kernel cannot do"
    ) as failed:
        _try_socket(asked, option_numbers=[socket.SOL_SOCKET << 16 | 37], option_values=[NOT_YET])
    assert failed.value.code == "needs-kernel"
    with pytest.raises(Refusal, match="SO_BINDTODEVICE with the value none, which cannot be here: No such device"):
        opts = deepcopy(GENERAL)
        opts.so_bound_dev = "none"
        _try_socket(asked, opts)
    with pytest.raises(Refusal, match="IP_UNICAST_IF with the value none, which cannot be here: No such device"):
        _try_socket(asked, interface_options=[50], interface_names=["none"])


def test_each_set_of_options_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, tried = restore(), []
    monkeypatch.setattr(socket_options, "restore", lambda *_: tried.append(1))
    for value in (16, 16, 24, 16):
        _try_socket(asked, option_numbers=[socket.SOL_SOCKET << 16 | 37], option_values=[value])
    assert len(tried) == 2


def test_options_of_unix_sockets() -> None:
    asked = restore()
    for type in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        asked.state["file extras"] = {1: TorporFileEntry(id=1, option_numbers=[37], option_values=[16])}
        usk = UnixSkEntry(
            id=1, ino=1, type=type, state=1, flags=0, uflags=0, backlog=0, peer=0, fown=NOBODY, opts=GENERAL, name=b""
        )
        unix._check_options(FileEntry(type=5, id=1, usk=usk), asked)
        asked.state["file extras"] = {1: TorporFileEntry(id=1, option_numbers=[37], option_values=[NOT_YET])}
        with pytest.raises(Refusal, match=rf"SO_TIMESTAMPING with the value {NOT_YET}, which this kernel cannot do"):
            unix._check_options(FileEntry(type=5, id=1, usk=usk), asked)


@pytest.mark.parametrize("priority, code", [(2 << 13 | 4, ""), (7 << 13, "needs-kernel")])
def test_io_priorities(monkeypatch: pytest.MonkeyPatch, priority: int, code: str) -> None:
    made, asked = task(), restore()
    found: list[Refusal] = []
    monkeypatch.setattr(asked, "problem", found.append, raising=False)
    before = ioprio_get(0)
    made.extras.threads = {tid: ThreadExtraEntry(tid=tid, io_priority=priority) for tid in made.cores}
    sched.Scheduling().check(made, asked)
    assert [one.code for one in found] == ([code] if code else [])
    assert ioprio_get(0) == before


def test_a_priority_that_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a control group without time for real-time threads.  Whoever fails late says of which thread it is."""
    made, asked = task(), restore()
    found: list[Refusal] = []
    monkeypatch.setattr(asked, "problem", found.append, raising=False)
    monkeypatch.setattr(sched.sched, "sched_setattr", _not_permitted)
    thread(made).sched_policy, thread(made).sched_prio = SCHED_FIFO, 5
    sched.Scheduling().check(made, asked)
    assert [one.code for one in found] == ["no-rights"] and "Operation not permitted" in str(found[0])
    asked.state["extras"] = {made.pid: made.extras}
    with pytest.raises(KernelError, match=f"its thread {made.pid} cannot be scheduled as it was"):
        sched.Scheduling().outside(made, asked)


def _not_permitted(*_: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("hook", ["wire", "last"])
def test_what_fails_late_says_of_which_file(monkeypatch: pytest.MonkeyPatch, hook: str) -> None:
    kind = Eventfd()
    monkeypatch.setattr(Eventfd, hook, _not_permitted)
    asked = restore()
    asked.made, asked.files = {1: 0}, {1: FileEntry(type=6, id=1)}
    files = object.__new__(Files)
    files.restore, files.kinds, files.order = asked, {1: kind}, [1]
    with pytest.raises(
        RestoreFailed, match=r"files\.img, eventfd 1 cannot come back as it was: Operation not permitted"
    ):
        files.make() if hook == "wire" else files.last()


def test_what_fails_late_says_of_which_attribute() -> None:
    made = task()
    told = str(_failed(made, Scheduling(), PermissionError(errno.EPERM, "no")))
    assert told.startswith(f"{made.subject} cannot get back: nice value, scheduling policy") and "not permitted" in told


def test_more_open_files_than_anybody_may_have() -> None:
    made, asked = task(), restore()
    limits = [RlimitEntry(cur=0, max=0) for _ in range(16)]
    limits[7] = RlimitEntry(cur=10, max=(1 << 64) - 1)
    assert made.core.tc is not None
    made.core.tc.rlimits = TaskRlimitsEntry(rlimits=limits)
    with pytest.raises(Refusal, match="higher than anybody may have here"):
        rlimits.Rlimits().check(made, asked)


def test_memory_barriers_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    made = task(membarrier_registration_mask=1 << 2 | 1 << 4)
    monkeypatch.setattr(prctl, "_membarrier", lambda command: 1 << 4)
    with pytest.raises(Refusal, match=r"memory barriers \(membarrier, 0x4\), which this kernel cannot do"):
        prctl.Membarrier().check(made, restore())
    monkeypatch.setattr(prctl, "_membarrier", lambda command: 1 << 2 | 1 << 4)
    prctl.Membarrier().check(made, restore())


def test_securebits_of_a_newer_kernel() -> None:
    made, asked = task(), restore()
    thread(made).creds = credentials(secbits=1 << 30)
    with pytest.raises(Refusal, match="it has securebits that are not in every kernel") as failed:
        Credentials().check(made, asked)
    assert failed.value.code == "needs-kernel"


def test_what_a_memfd_cannot_have() -> None:
    own = TorporFileEntry(id=1, attribute_names=[b"none.such"], attribute_values=[b"1"])
    has, error = memfd._trial(0, own)
    assert has == "it has the extended attribute none.such" and error == errno.EOPNOTSUPP
    assert memfd._trial(1 << 20, None) == ("it has seals that are not in every kernel (0x100000)", errno.EINVAL)
    assert memfd._trial(0, TorporFileEntry(id=1, write_hint=2)) == ("", 0)
    assert lacking.refused("task 1, fd 3 (memfd)", has, error).code == "needs-kernel"
    assert lacking.refused("task 1, fd 3 (memfd)", has, errno.EPERM).code == "no-rights"
    assert "none.such, which cannot be here" in str(lacking.refused("x", has, errno.ENOSPC))


def test_a_call_that_this_kernel_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked, arch = task(), restore(), native()
    found: list[Refusal] = []
    monkeypatch.setattr(asked, "problem", found.append, raising=False)
    monkeypatch.setattr(lacking, "NEW_CALLS", ("futex_wait",))
    monkeypatch.setattr(lacking, "error_of", lambda *_: errno.ENOSYS)
    waits, _ = arch.inside_call(bytes(27 * 8), Call(arch.SYSCALLS["futex_wait"], [0] * 6), ERESTARTSYS)
    elsewhere, _ = arch.inside_call(bytes(27 * 8), Call(arch.SYSCALLS["read"], [0] * 6), ERESTARTSYS)
    lacking.check_calls(asked, made, {made.pid: Registers(elsewhere, {})})
    assert not found
    lacking.check_calls(asked, made, {made.pid: Registers(waits, {})})
    assert "waits in the system call futex_wait" in str(found[0])


def test_an_instruction_that_this_cpu_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked, arch = task(), restore(), native()
    found: list[Refusal] = []
    monkeypatch.setattr(asked, "problem", found.append, raising=False)
    monkeypatch.setattr(arch, "lacks_entry", lambda word: "scv" if word == 0x3000 else "", raising=False)
    general, _ = arch.inside_call(bytes(27 * 8), Call(arch.SYSCALLS["read"], [0] * 6), ERESTARTSYS)
    for word in (0xC00, 0x3000):
        made.extras.threads[made.pid] = ThreadExtraEntry(tid=made.pid, interrupted=ERESTARTSYS, call=word)
        lacking.check_calls(asked, made, {made.pid: Registers(general, {})})
    (refused,) = found
    assert refused.code == "cpu-feature" and "made by scv, which this CPU does not have" in refused.why
