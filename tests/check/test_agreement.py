# SPDX-License-Identifier: Apache-2.0
"""``torpor check -t`` says of what the dump refuses that it is in the way, but for what docs/checking.md names."""

import os
from pathlib import Path

import pytest

import torpor
from harness.workload import Skipped, Workload, all_workloads

ROOT = Path(__file__).resolve().parents[2]
# Workloads that only the dump refuses, and the words for it in docs/checking.md.
LEFT_TO_THE_DUMP = {
    "attr_dispatch": "dispatch of system calls",
    **dict.fromkeys(("attr_ioperm_thread", "attr_iopl", "attr_iopl_dropped"), "I/O port permissions"),
    "cpu_code32": "32-bit code in a 64-bit program",
    "attr_io_flusher_thread": "is an I/O flusher",
    "attr_mempolicy_thread": "memory policy of its own",
    "mem_data_limit": "a limit of memory that it has reached",
    "sk_udp_senders": "chosen senders",
}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(
    "workload", [one for one in all_workloads() if one.refused], ids=lambda workload: str(workload.name)
)
def test_refused(workload: Workload, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)  # for workloads that become another user
    running = workload.running(tmp_path / "home")
    try:
        running.start()
    except Skipped as why:
        pytest.skip(f"cannot run here: {why}")
    try:
        report = torpor.check(pid=running.pid, manage_cgroups="ignore")
    finally:
        running.finish()
    named = any(workload.refused in str(one) for one in report.obstacles)
    assert named == (workload.name not in LEFT_TO_THE_DUMP), report.lines()


def test_the_document_says_so() -> None:
    text = " ".join((ROOT / "docs/checking.md").read_text().split())
    for words in set(LEFT_TO_THE_DUMP.values()):
        assert words in text
