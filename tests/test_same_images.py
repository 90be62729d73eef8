# SPDX-License-Identifier: Apache-2.0
"""One stopped tree dumped by Torpor and by CRIU: the images say the same, but for what differs by nature.  And the
comparison sees what does not."""

import os
from pathlib import Path

import pytest

from harness import same_images
from harness.checkpoint_view import AS_IN_FILE, View
from harness.modes import MODES
from harness.same_images import EINTR
from harness.workload import all_workloads
from test_workloads import test_workload as run_workload

NAMES = ("cpu_registers", "fd_epoll", "mem_shared_anon", "py_threads", "sys_interrupted", "time_posix", "tty_session")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("name", NAMES)
def test_same_images(name: str, tmp_path: Path) -> None:
    (workload,) = (one for one in all_workloads() if one.name == name)
    assert "same-images" in MODES
    run_workload(workload, "same-images", tmp_path)


def compared(monkeypatch: pytest.MonkeyPatch, ours: View, theirs: View) -> same_images.Compared:
    views = iter((ours, theirs))
    monkeypatch.setattr(same_images, "view", lambda directory: next(views))
    return same_images.compare(Path("ours"), Path("theirs"))


PAGE = bytes(range(256)) * 16
RSEQ = {"core-7 thread_core rseq_entry rseq_abi_pointer": 0x1000}
# struct siginfo of a timer: id, overruns; value; what is the kernel's own.
TIMER = "2c00000000000000feffffff000000000f000000{}000000770000000000000{}0{}00000000000000"


@pytest.mark.parametrize(
    "ours,theirs,wrong",
    [
        ({"core-7 tc blk_sigset": 1}, {"core-7 tc blk_sigset": 2}, ["core-7 tc blk_sigset = 1 / 2"]),
        ({"core-7 tc blk_sigset": 1}, {}, ["core-7 tc blk_sigset = 1 / (absent)"]),
        ({}, {"core-7 tc blk_sigset": 1}, ["core-7 tc blk_sigset = (absent) / 1"]),
        ({"mm-7 mm_brk": 0}, {}, []),
        ({"torpor-7 x": 5}, {}, []),
        ({}, {"torpor-7 x": 5}, ["torpor-7 x = (absent) / 5"]),
        ({"pagemap-7 0x1000": PAGE}, {"pagemap-7 0x1000": PAGE[:8] + b"1234" + PAGE[12:]},
         ["pagemap-7 0x1008 = b'\\x08\\t\\n\\x0b' / b'1234'"]),
        ({"pagemap-7 0x1000": PAGE}, {}, ["pagemap-7 0x1000 = 4096 bytes / (absent)"]),
        ({}, {"pagemap-7 0x1000": AS_IN_FILE}, []),
        ({"pagemap-7 0x1000": AS_IN_FILE}, {}, ["pagemap-7 0x1000 = as in the file / (absent)"]),
        ({**RSEQ, "pagemap-7 0x1000": PAGE}, {**RSEQ, "pagemap-7 0x1000": b"1234" + PAGE[4:]}, []),
        ({**RSEQ, "pagemap-7 0x1000": PAGE}, {**RSEQ, "pagemap-7 0x1000": PAGE[:16] + b"1234" + PAGE[20:]},
         ["rseq of 7 16 = b'\\x10\\x11\\x12\\x13' / b'1234'"]),
        ({"core-7 tc timers real remaining": 5 * 10**9}, {"core-7 tc timers real remaining": 4 * 10**9}, []),
        ({"core-7 tc timers real remaining": 5 * 10**9}, {"core-7 tc timers real remaining": 500 * 10**9},
         ["core-7 tc timers real remaining = 5000000000 / 500000000000"]),
        ({"core-7 thread_info gpregs ip": 8}, {"core-7 thread_info gpregs ip": 10}, []),
        ({"core-7 thread_info gpregs ip": 8}, {"core-7 thread_info gpregs ip": 9},
         ["core-7 thread_info gpregs ip = 8 / 9"]),
        ({"core-7 thread_info gpregs ax": 128}, {"core-7 thread_info gpregs ax": EINTR}, []),
        ({"core-7 thread_info gpregs ax": 128}, {"core-7 thread_info gpregs ax": 0},
         ["core-7 thread_info gpregs ax = 128 / 0"]),
        ({"core-7 thread_info gpregs orig_ax": 0x202_00000080}, {"core-7 thread_info gpregs orig_ax": 0x80}, []),
        ({"core-7 thread_info gpregs orig_ax": 0x202_00000081}, {"core-7 thread_info gpregs orig_ax": 0x80},
         ["core-7 thread_info gpregs orig_ax = 2207613190273 / 128"]),
        ({"core-7 tc signals_s signals 0 siginfo": TIMER.format("4c", 0, 0)},
         {"core-7 tc signals_s signals 0 siginfo": TIMER.format("00", 0, 0)}, []),
        ({"core-7 tc signals_s signals 0 siginfo": TIMER.format("4c", 0, 0)},  # seen on s390x
         {"core-7 tc signals_s signals 0 siginfo": TIMER.format("01", 0, 9)}, []),
        ({"core-7 tc signals_s signals 0 siginfo": TIMER.format("4c", 0, 0)},
         {"core-7 tc signals_s signals 0 siginfo": TIMER.format("02", 0, 0)},
         [f"core-7 tc signals_s signals 0 siginfo = {TIMER.format('4c', 0, 0)} / {TIMER.format('02', 0, 0)}"]),
        ({"core-7 tc signals_s signals 0 siginfo": TIMER.format("4c", 0, 0)},  # seen on aarch64
         {"core-7 tc signals_s signals 0 siginfo": TIMER.format("00", 0, 9)},
         []),
        # Seen on ppc64le.
        ({"core-7 ti_ppc64 gpregs gpr 3": 70366602175128}, {"core-7 ti_ppc64 gpregs gpr 3": 4}, []),
        ({"core-7 ti_ppc64 gpregs nip": 4426307728}, {"core-7 ti_ppc64 gpregs nip": 4426307732}, []),
        ({"core-7 ti_ppc64 gpregs msr": 9223372036854829107}, {"core-7 ti_ppc64 gpregs msr": 9223372036896772147},
         ["core-7 ti_ppc64 gpregs msr = 9223372036854829107 / 9223372036896772147"]),
        # Seen on s390x.
        ({"core-7 ti_s390 gpregs gprs 2": 4397358617784}, {"core-7 ti_s390 gpregs gprs 2": EINTR}, []),
        ({"core-7 ti_s390 gpregs gprs 2": 1}, {"core-7 ti_s390 gpregs gprs 2": 2},
         ["core-7 ti_s390 gpregs gprs 2 = 1 / 2"]),
        ({"core-7 ti_s390 gpregs orig_gpr2": 4397358617784, "core-7 ti_s390 gpregs system_call": 0},
         {"core-7 ti_s390 gpregs orig_gpr2": 0, "core-7 ti_s390 gpregs system_call": 196604}, []),
        ({"core-7 ti_s390 gpregs psw_addr": 44}, {"core-7 ti_s390 gpregs psw_addr": 46}, []),
        ({"core-7 ti_s390 vxrs_low regs 3": 44}, {"core-7 ti_s390 vxrs_low regs 3": 46},
         ["core-7 ti_s390 vxrs_low regs 3 = 44 / 46"]),
        ({"mm-7 mm_saved_auxv number": 40}, {"mm-7 mm_saved_auxv number": 42}, []),
        ({"mm-7 mm_saved_auxv number": 42}, {"mm-7 mm_saved_auxv number": 40},
         ["mm-7 mm_saved_auxv number = 42 / 40"]),
        ({"core-7 tc signals_s signals 0 siginfo": TIMER.format("4c", 0, 0)},
         {"core-7 tc signals_s signals 0 siginfo": TIMER.format("00", 1, 0)},
         [f"core-7 tc signals_s signals 0 siginfo = {TIMER.format('4c', 0, 0)} / {TIMER.format('00', 1, 0)}"]),
    ],
)  # fmt: skip
def test_what_differs(monkeypatch: pytest.MonkeyPatch, ours: View, theirs: View, wrong: list[str]) -> None:
    found = compared(monkeypatch, ours, theirs)
    assert found.wrong == wrong
    assert bool(found.by_nature) == (not wrong)


@pytest.mark.parametrize("told", [True, False])
def test_registrations_that_a_kernel_does_not_tell(monkeypatch: pytest.MonkeyPatch, told: bool) -> None:
    monkeypatch.setattr(same_images, "_registrations_are_told", lambda: told)
    path = "core-7 tc membarrier_registration_mask"
    assert compared(monkeypatch, {path: 4}, {}).wrong == ([f"{path} = 4 / (absent)"] if told else [])
    assert compared(monkeypatch, {path: 20}, {}).wrong == [f"{path} = 20 / (absent)"]
    assert compared(monkeypatch, {path: 4}, {path: 16}).wrong == [f"{path} = 4 / 16"]


@pytest.mark.parametrize("many", [True, False])
def test_zero_pages_of_which_criu_does_not_know_all(monkeypatch: pytest.MonkeyPatch, many: bool) -> None:
    monkeypatch.setattr(same_images, "_zero_pages_are_many", lambda: many)
    path, zeros = "pagemap-7 0x1000", bytes(4096)
    assert compared(monkeypatch, {}, {path: zeros}).wrong == ([] if many else [f"{path} = (absent) / 4096 bytes"])
    assert compared(monkeypatch, {}, {path: PAGE}).wrong == [f"{path} = (absent) / 4096 bytes"]
    assert compared(monkeypatch, {path: zeros}, {}).wrong == [f"{path} = 4096 bytes / (absent)"]
    segment = path.replace("pagemap-7", "segment of mm-7, page at")
    assert compared(monkeypatch, {}, {segment: zeros}).wrong == [f"{segment} = (absent) / 4096 bytes"]
