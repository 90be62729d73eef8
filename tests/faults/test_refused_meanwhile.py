# SPDX-License-Identifier: Apache-2.0
"""A dump that is refused while tasks write their pages, which takes them several programs: they keep nothing of it."""

import os
import subprocess
from pathlib import Path

import pytest

import torpor
from torpor import dump_files
from torpor.errors import Refusal

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

FRAGMENTS = 60_000  # runs of one page: some 18,000 go into one program
VICTIM = f"""if True:
    import mmap, os, time
    memory = mmap.mmap(-1, {FRAGMENTS} * 2 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(15)  # MADV_NOHUGEPAGE
    for at in range({FRAGMENTS}):
        memory[2 * at * mmap.PAGESIZE] = 1
    os.write(1, b".")
    while True: time.sleep(1)
"""


@pytest.mark.parametrize("refused", [False, True])
def test_descriptors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refused: bool) -> None:
    reader, writer = os.pipe()
    command = ["/usr/bin/python3", "-c", VICTIM]
    victim = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=writer)
    os.close(writer)

    def refuse(*_: object) -> None:
        raise Refusal("task 1", "no")

    try:
        assert os.read(reader, 1) == b"."
        before = {name: os.readlink(f"/proc/{victim.pid}/fd/{name}") for name in os.listdir(f"/proc/{victim.pid}/fd")}
        if refused:
            monkeypatch.setattr(dump_files, "look", refuse)
            with pytest.raises(Refusal):
                torpor.dump(victim.pid, tmp_path, leave_running=True, manage_cgroups="ignore")
        else:
            done = torpor.dump(victim.pid, tmp_path, leave_running=True, manage_cgroups="ignore")
            assert done.bytes > FRAGMENTS * os.sysconf("SC_PAGE_SIZE")
        after = {name: os.readlink(f"/proc/{victim.pid}/fd/{name}") for name in os.listdir(f"/proc/{victim.pid}/fd")}
        assert after == before and victim.poll() is None
    finally:
        victim.kill()
        victim.wait()
        os.close(reader)
