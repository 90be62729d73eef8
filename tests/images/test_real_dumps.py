# SPDX-License-Identifier: Apache-2.0
"""What CRIU dumped, read and written again: byte for byte the same, and no other facts in it than `crit` finds."""

import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

import peer
from torpor.cli.show import load_image, show
from torpor.errors import ImageError
from torpor.images.container import encode_entries, start_of
from torpor.images.directory import ImageReader
from torpor.images.kinds import IPCNS_MSG, RAW, SHMEM_PAGEMAP, kind_of_file
from torpor.images.pages import PageStore
from torpor.images.payloads import encode_ipc_messages, ipc_messages

VICTIM = Path(__file__).with_name("victim.py")


@functools.cache
def criu() -> Path:
    command, why = peer.criu()
    if command is None:
        pytest.skip(f"no peer: {why}")
    return command


@pytest.fixture(scope="module", params=["plain", "namespaces"])
def dump(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory of images that CRIU made of the victim."""
    command = criu()
    base = Path(tempfile.mkdtemp(prefix="torpor-dump-"))
    (base / "scratch").mkdir()
    (base / "images").mkdir()
    victim = subprocess.Popen(
        [os.path.realpath(sys.executable), "-S", "-E", str(VICTIM), str(base / "scratch"), request.param],
        stdin=subprocess.DEVNULL,
        stdout=(base / "out").open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    child = 0
    try:
        for _ in range(500):
            if "ready" in (base / "out").read_text():
                break
            try:
                victim.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
            pytest.fail((base / "out").read_text())
        child = int(Path(f"/proc/{victim.pid}/task/{victim.pid}/children").read_text().split()[0])
        done = subprocess.run(
            [command, "dump", "-t", str(victim.pid), "-D", str(base / "images"), "-o", "dump.log", "--leave-running"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (base / "images" / "dump.log").read_text()[-2000:]
        yield base / "images"
    finally:
        for pid in (child, victim.pid):
            if pid:
                os.kill(pid, signal.SIGKILL)
        victim.wait()
        shutil.rmtree(base)


def test_byte_for_byte(dump: Path) -> None:
    seen = set()
    with ImageReader.open(str(dump)) as images:
        assert images.inventory().img_version == 2
        for name in images.names():
            known = kind_of_file(name)
            if known is None:
                assert name == "dump.log"
                continue
            kind, id = known
            seen.add(kind.name)
            if kind.shape != RAW:
                entries = images.entries_with_payload(kind, id)
                assert entries
                again = b"".join([start_of(kind), *encode_entries(entries)])
                assert again == (dump / name).read_bytes(), name
    print("kinds:", *sorted(seen))
    assert {"CORE", "FILES", "FIFO_DATA", "GHOST_FILE", "MEMFD_INODE", "PIPES_DATA", "REMAP_FPATH", "SK_QUEUES"} <= seen


def test_pagemaps(dump: Path) -> None:
    with ImageReader.open(str(dump)) as images:
        found = [known for name in images.names() if (known := kind_of_file(name)) and known[0].has_head]
        assert SHMEM_PAGEMAP in [kind for kind, _ in found]
        for kind, id in found:
            assert isinstance(id, int)
            with PageStore(images, id, kind) as store:
                stored = sum(run.nr_pages * 4096 for run, level in store.pieces if level)
                pages = dump / f"pages-{store.levels[0].pages_id}.img"
                assert stored == store.levels[0].bytes_stored == pages.stat().st_size


def test_messages_of_a_queue(dump: Path) -> None:
    with ImageReader.open(str(dump)) as images:
        names = [name for name in images.names() if name.startswith("ipcns-msg-")]
        for name in names:
            known = kind_of_file(name)
            assert known
            for entry, payload in images.entries_with_payload(IPCNS_MSG, known[1]):
                messages = [(message, body) for message, body, _ in ipc_messages(entry, payload)]
                assert [body for _, body in messages] == [b"", b"five!", b"eight by", b"z" * 300]
                assert encode_ipc_messages(messages) == payload


def flat(value: object) -> Iterator[str]:
    """The numbers in a JSON value, as text with their keys; names of enums and flags are left out."""
    if isinstance(value, dict):
        for key in sorted(value):
            if key not in ("extra", "payload_bytes"):
                yield from (f"{key}.{leaf}" for leaf in flat(value[key]))
    elif isinstance(value, list):
        for item in value:
            yield from flat(item)
    elif isinstance(value, int):
        yield str(value)
    elif isinstance(value, str) and value.startswith("0x") and "|" not in value:
        yield str(int(value, 16))


def test_crit_finds_the_same(dump: Path) -> None:
    """Every number that crit shows as a number, we show as well, in the same place."""
    crit = peer.crit()
    assert crit
    names = ["pstree.img", "pipes-data.img", "inventory.img", "stats-dump", "sk-queues.img", "remap-fpath.img"]
    names += [name for name in os.listdir(dump) if name.startswith(("core-", "ids-", "fs-", "timens-"))][:6]
    names += [name for name in os.listdir(dump) if name.startswith("pagemap-shmem-")][:3]
    for name in names:
        done = subprocess.run([crit, "decode", "-i", str(dump / name)], capture_output=True, text=True)
        theirs = json.loads(done.stdout)
        ours = load_image(str(dump / name), names=False)
        assert ours["magic"] == theirs["magic"]
        assert len(ours["entries"]) == len(theirs["entries"])
        missing = sorted(set(flat(theirs["entries"])) - set(flat(ours["entries"])))
        assert not missing, name


def test_drawn(dump: Path) -> None:
    out = io.StringIO()
    show(str(dump), as_json=False, out=out)
    text = out.getvalue()
    print(text)
    expected = [
        "3 processes", "4 threads", "zombie, exit status 7", "biggest areas", "file private", "heap", "stack", "fifo ",
        "pipe", "unix socket", "tcp 127.0.0.1:", "tcp [::1]:", "(listening)", "epoll watching", "eventfd counter 5",
        "memfd some memfd", "deleted", "na\\xffme é",
    ]  # fmt: skip
    assert not [words for words in expected if words not in text]
    assert all(character.isprintable() or character == "\n" for character in text)
    out = io.StringIO()
    show(str(dump), as_json=True, out=out)
    assert len(json.loads(out.getvalue())["tasks"]) == 3


def test_every_image_as_json(dump: Path) -> None:
    for name in os.listdir(dump):
        if kind_of_file(name):
            for as_json in (False, True):
                out = io.StringIO()
                show(str(dump / name), as_json=as_json, out=out)
                value = json.loads(out.getvalue())
                assert value["magic"]
                assert all(len(line) < 400 for line in out.getvalue().splitlines()) or as_json


def test_mutations(dump: Path, tmp_path: Path) -> None:
    """Images that were tampered with are shown, or refused in words."""
    random = Random(1)
    whole = {path.name: path.read_bytes() for path in dump.iterdir() if kind_of_file(path.name)}
    pages = {name for name in whole if name.startswith("pages-")}
    for name, data in whole.items():
        (tmp_path / name).write_bytes(data)
    refused = 0
    for _ in range(200):
        name = random.choice(sorted(whole.keys() - pages) if random.random() < 0.95 else sorted(pages))
        data = bytearray(whole[name])
        for _ in range(random.randint(1, 3)):
            at = random.randrange(4 if random.random() < 0.9 else 0, len(data) + 1)
            data[at : at + random.choice((0, 1, 1, 1, 4, 1000))] = random.randbytes(random.choice((0, 1, 1, 1, 4)))
        (tmp_path / name).write_bytes(data)
        for as_json in (False, True):
            try:
                show(str(tmp_path), as_json=as_json, out=io.StringIO())
            except ImageError as error:
                assert str(error)
                refused += 1
        (tmp_path / name).write_bytes(whole[name])
    print(refused, "of 400 refused")
    show(str(tmp_path), as_json=False, out=io.StringIO())
