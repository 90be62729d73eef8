# SPDX-License-Identifier: Apache-2.0
"""Files that have a name: saved, made again, compared with what they were."""

import errno
import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from filekit import Saved, look

from torpor.arch.arm import ARCH as ARM
from torpor.errors import ImageError, Refusal, RestoreFailed
from torpor.images.schema.fdinfo import FileEntry
from torpor.images.schema.fown import FownEntry
from torpor.kernel import process
from torpor.resources import build_id, description

FLAGS = [
    os.O_RDONLY,
    os.O_WRONLY,
    os.O_RDWR,
    os.O_RDWR | os.O_APPEND,
    os.O_RDWR | os.O_NONBLOCK,
    os.O_RDWR | os.O_SYNC,
    os.O_RDONLY | os.O_NOATIME,
    os.O_RDWR | os.O_NOFOLLOW,
    os.O_PATH,
    os.O_ACCMODE,
    os.O_RDWR | os.O_CREAT | os.O_TRUNC,
]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    return Saved(tmp_path / "images", {})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    return path


@pytest.mark.parametrize("flags", FLAGS, ids=oct)
def test_flags_and_position(saved: Saved, file: Path, flags: int) -> None:
    fd = os.open(file, flags)
    if not flags & os.O_PATH:
        os.lseek(fd, 5_000_000_007, os.SEEK_SET)
    content = file.read_bytes()
    was = look(fd)
    (now,) = saved.save(fd).remade()
    assert look(now) == was
    assert file.read_bytes() == content


@pytest.mark.parametrize("name", ["x (deleted)", "new\nline \\012", "\udcff\udcfe", " ", "#1", "ü" * 127])
def test_names(saved: Saved, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"content")
    fd = os.open(path, os.O_RDWR)
    was = look(fd)
    (now,) = saved.save(fd).remade()
    assert look(now) == was
    assert os.pread(now, 100, 0) == b"content"


def test_a_name_deleted_and_given_again(saved: Saved, file: Path) -> None:
    fd = os.open(file, os.O_RDWR)
    os.link(file, f"{file}2")
    file.unlink()
    os.link(f"{file}2", file)
    (now,) = saved.save(fd).remade()
    assert os.path.samestat(os.fstat(now), os.fstat(fd))
    assert not os.path.exists(saved.images / "remap-fpath.img")


def test_directories_links_and_devices(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    fds = [
        os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY),
        os.open(tmp_path / "link", os.O_PATH | os.O_NOFOLLOW),
        os.open("/dev/null", os.O_WRONLY),
        os.open("/dev/urandom", os.O_RDONLY | os.O_NONBLOCK),
    ]
    was = [look(fd) for fd in fds]
    now = saved.save(*fds).remade()
    assert [look(fd) for fd in now] == was
    assert os.readlink("", dir_fd=now[1]) == "nowhere"


def test_files_of_proc(saved: Saved) -> None:
    fd = os.open("/proc/self/status", os.O_RDONLY)
    (now,) = saved.save(fd).remade()
    assert f"\nPid:\t{os.getpid()}\n".encode() in os.pread(now, 8192, 0)


@pytest.mark.parametrize("path", ["/proc/1/status", "/proc/self/task/{pid}/stat", "/proc/self/fdinfo/0"])
def test_files_of_proc_that_are_refused(saved: Saved, path: str) -> None:
    fd = os.open(path.format(pid=os.getpid()), os.O_RDONLY)
    with pytest.raises(Refusal):
        saved.save(fd)


def test_shared_memory_by_proc_is_refused(saved: Saved) -> None:
    import mmap

    with mmap.mmap(-1, 4096) as memory:
        memory[0] = 1
        line = next(line for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/zero" in line)
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        fd = os.open(f"/proc/self/map_files/{start:x}-{end:x}", os.O_RDWR)
        with pytest.raises(Refusal, match="shared memory"):
            saved.save(fd)


# -- changed since the dump -------------------------------------------------------------------------------------------


def changed(saved: Saved, file: Path, flags: int = os.O_RDWR) -> Saved:
    return saved.save(os.open(file, flags)).write()


@pytest.mark.parametrize("path", ["/proc/cmdline", "/sys/kernel/uevent_seqnum"])
def test_sizes_that_say_nothing(saved: Saved, path: str) -> None:
    """Of /proc/cmdline, Linux 6.12 gives one, and 6.1 none."""

    def other(entry: FileEntry) -> None:
        assert entry.reg is not None
        entry.reg.size = os.stat(path).st_size + 231

    fd = os.open(path, os.O_RDONLY)
    was = look(fd)
    (now,) = saved.save(fd).write().restore(other).make()
    assert look(now) == was


def test_size(saved: Saved, file: Path) -> None:
    changed(saved, file)
    file.write_bytes(b"longer than before")
    with pytest.raises(Refusal, match="10 bytes, now it has 18"):
        saved.restore()


def test_what_is_only_appended_to_may_grow(saved: Saved, file: Path) -> None:
    changed(saved, file, os.O_WRONLY | os.O_APPEND)
    file.write_bytes(b"longer than before")
    saved.restore()


def test_outgrown_on_32_bit_machines(saved: Saved, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was opened without O_LARGEFILE and has 2 GiB by now cannot be opened so again."""
    monkeypatch.setattr(process, "native", lambda: ARM)
    small, log, path = os.open(file, os.O_RDONLY), os.open(file, os.O_WRONLY | os.O_APPEND), os.open(file, os.O_PATH)
    os.truncate(file, (1 << 31) - 1)
    saved.save(small)
    os.truncate(file, 1 << 31)
    saved.save(path)
    with pytest.raises(Refusal, match="opened without O_LARGEFILE"):
        saved.save(small)
    os.truncate(file, 100)
    written = Saved(file.parent / "more", {}).save(log)
    os.truncate(file, 1 << 31)
    with pytest.raises(Refusal, match=r"opened without O_LARGEFILE, .* has grown since the dump"):
        written.remade()


def test_what_areas_map_is_opened_with_o_largefile(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def call(name: str, where: int, path: int, flags: int, mode: int) -> int:
        asked.append(flags)
        if not flags & ARM.o_largefile:
            raise OSError(errno.EOVERFLOW, "")
        return 77

    monkeypatch.setattr(process, "native", lambda: ARM)
    monkeypatch.setattr(process, "call", call)
    assert process.open_exactly(str(file), os.O_RDWR) == 77
    assert asked == [os.O_RDWR, os.O_RDWR | ARM.o_largefile]


def test_same_size_is_enough(saved: Saved, file: Path) -> None:
    changed(saved, file)
    other = file.with_name("other")
    other.write_bytes(b"abcdefghij")
    shutil.copymode(file, other)
    other.replace(file)
    saved.restore()


def test_permissions(saved: Saved, file: Path) -> None:
    changed(saved, file)
    file.chmod(0o600)
    with pytest.raises(Refusal, match="permissions are 600, at the dump they were 644"):
        saved.restore()
    saved.restore(skip_file_rwx_check=True)


def test_gone(saved: Saved, file: Path) -> None:
    changed(saved, file)
    file.unlink()
    with pytest.raises(Refusal, match="cannot be found"):
        saved.restore()


def test_another_kind(saved: Saved, file: Path) -> None:
    changed(saved, file)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(Refusal, match="now it is a FIFO"):
        saved.restore()
    file.unlink()
    file.symlink_to("/dev/null")
    with pytest.raises(Refusal, match="now it is a character device"):
        saved.restore()


# -- build ids --------------------------------------------------------------------------------------------------------


def program(path: Path, source: str, id: str) -> Path:
    command = ["gcc", "-x", "c", "-o", str(path), f"-Wl,--build-id=0x{id}", "-"]
    subprocess.run(command, input=source.encode(), check=True)
    return path


def test_build_id(saved: Saved, tmp_path: Path) -> None:
    source = "int main(void) { return 0; }"
    path = program(tmp_path / "program", source, "0102030405060708090a0b0c0d0e0f1011121314")
    fd = os.open(path, os.O_RDONLY)
    saved.save(fd).write()
    (entry,) = saved.dump.file_entries
    assert entry.reg is not None
    assert struct.pack("=5I", *entry.reg.build_id) == bytes(range(1, 21))
    saved.restore()
    size = path.stat().st_size
    path.unlink()
    program(path, source, "ff02030405060708090a0b0c0d0e0f1011121314")
    assert path.stat().st_size == size
    with pytest.raises(Refusal, match="another build"):
        saved.restore()
    saved.restore(file_validation="filesize")


def test_no_build_id_where_only_sizes_count(tmp_path: Path) -> None:
    saved = Saved(tmp_path / "images", {"file_validation": "filesize"})
    saved.save(os.open(shutil.which("true") or "/bin/true", os.O_RDONLY)).write()
    (entry,) = saved.dump.file_entries
    assert entry.reg is not None and entry.reg.build_id == []


def test_build_ids_of_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    good = Path(shutil.which("true") or "/bin/true").read_bytes()
    assert build_id.of_path("/nowhere") == []
    for length in (0, 3, 4, 20, 52, 63, 64, 100, 500):
        path.write_bytes(good[:length])
        build_id.of_path(str(path))
    for at in range(0, 1000, 3):
        path.write_bytes(good[:at] + b"\xff\xff\xff" + good[at + 3 : 4096])
        build_id.of_path(str(path))


# -- images from strangers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "relative"),
        ("name", "/a/../b"),
        ("name", "/a\0b"),
        ("name", "/" + "x" * 5000),
        ("pos", 1 << 63),
        ("flags", os.O_PATH | 3),
        ("mode", 0o200644),
        ("ext", True),
    ],
)
def test_mangled_entries(saved: Saved, file: Path, field: str, value: object) -> None:
    changed(saved, file)

    def change(entry: FileEntry) -> None:
        setattr(entry.reg, field, value)

    with pytest.raises(ImageError):
        saved.restore(change)


def test_only_memory_devices_are_opened(saved: Saved, file: Path) -> None:
    changed(saved, file)

    def change(entry: FileEntry) -> None:
        assert entry.reg is not None
        entry.reg.name, entry.reg.mode, entry.reg.size = "/dev/tty", os.stat("/dev/tty").st_mode, None

    with pytest.raises(ImageError, match="/dev/tty"):
        saved.restore(change)


def test_nothing_is_created_or_cut(saved: Saved, file: Path) -> None:
    changed(saved, file)

    def change(entry: FileEntry) -> None:
        assert entry.reg is not None
        entry.reg.flags |= os.O_CREAT | os.O_TRUNC | os.O_EXCL

    saved.restore(change).make()
    assert file.read_bytes() == b"0123456789"


# -- owners -----------------------------------------------------------------------------------------------------------


def test_owner(saved: Saved, file: Path) -> None:
    fd = os.open(file, os.O_RDWR)
    fcntl.fcntl(fd, description.F_SETOWN_EX, struct.pack("=ii", 1, os.getpid()))
    fcntl.fcntl(fd, description.F_SETSIG, 40)
    (now,) = saved.save(fd).remade()
    assert fcntl.fcntl(now, description.F_GETOWN_EX, bytes(8)) == struct.pack("=ii", 1, os.getpid())
    assert fcntl.fcntl(now, description.F_GETSIG) == 40


def test_an_owner_under_other_ids(saved: Saved, file: Path) -> None:
    fd = os.open(file, os.O_RDWR)
    owner = FownEntry(uid=1234, euid=4321, signum=0, pid_type=1, pid=os.getpid())
    description.set_owner(fd, owner)
    assert os.getresuid() == (0, 0, 0)
    (now,) = saved.save(fd).remade()
    assert description.save_owner(now) == owner


def test_an_owner_that_is_gone(saved: Saved, file: Path) -> None:
    saved.save(os.open(file, os.O_RDWR)).write()

    def change(entry: FileEntry) -> None:
        assert entry.reg is not None
        entry.reg.fown = FownEntry(uid=1234, euid=0, signum=0, pid_type=1, pid=(1 << 22) - 1)

    with pytest.raises(RestoreFailed, match="process 4194303 is not there"):
        saved.restore(change).make()
    assert os.getresuid() == (0, 0, 0)
