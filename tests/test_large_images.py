# SPDX-License-Identifier: Apache-2.0
"""Pages images beyond 4 GiB: the offset at which a task writes and reads its own pages is a 64-bit number.

Both sides are made to begin at 5 GiB of a pages image that is a hole up to there.
"""

import os
from pathlib import Path

import pytest

import torpor
from harness.events import Nursery
from harness.workload import DIRECTORY, Running, Workload
from torpor.images import pages

FAR = (5 << 30) // pages.PAGE_SIZE


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_offsets_beyond_4_gib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_writer, read_runs = pages.PagemapWriter.__init__, pages.PagemapReader._read_runs

    def writer(self: pages.PagemapWriter, *args: object, **more: object) -> None:
        make_writer(self, *args, **more)  # type: ignore[arg-type]
        self.nr_present = FAR

    def reader(self: pages.PagemapReader, entries: list[pages.PagemapEntry]) -> None:
        self.nr_present = FAR
        read_runs(self, entries)

    monkeypatch.setattr(pages.PagemapWriter, "__init__", writer)
    monkeypatch.setattr(pages.PagemapReader, "_read_runs", reader)
    images = tmp_path / "images"
    images.mkdir()
    with Nursery():
        running = Running(Workload(DIRECTORY / "mem_anon.c"), tmp_path / "home")
        running.start()
        torpor.dump(running.pid, images)
        running.wait_killed()
        assert any(path.stat().st_size > 5 << 30 for path in images.glob("pages-*.img"))
        torpor.restore(images)
        running.finish()
