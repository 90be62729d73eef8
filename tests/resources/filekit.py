# SPDX-License-Identifier: Apache-2.0
"""Saves descriptors of this process to images, as a dump does, and makes them again, as a restore does."""

import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from torpor.images import kinds
from torpor.images.directory import ImageReader, ImageWriter
from torpor.images.schema.fdinfo import FileEntry
from torpor.kernel import fdinfo
from torpor.memory import segments
from torpor.options import Options
from torpor.resources import description, ghost, registry
from torpor.resources.base import FileKind
from torpor.resources.context import Dump, Restore, RestoreTask, SeenFile


class Saved:
    """What was saved: change `dump` before `restore` writes it."""

    def __init__(self, images: Path, options: dict[str, Any]) -> None:
        self.images = images
        images.mkdir(exist_ok=True)
        self.dir_fd = os.open(images, os.O_RDONLY)
        self.dump = Dump(Options(tree=os.getpid(), images_dir=str(images), **options), ImageWriter(self.dir_fd))
        self.dump.tasks[os.getpid()] = None  # type: ignore[assignment]
        self.pidfd = os.pidfd_open(os.getpid())
        self.kinds: dict[int, FileKind] = {}
        self.ids: list[int] = []

    def save(self, *fds: int) -> "Saved":
        for fd in fds:
            link = os.readlink(f"/proc/self/fd/{fd}")
            info = fdinfo.read("self", fd)
            seen = SeenFile(self.dump.new_file_id(), os.getpid(), fd, link, os.fstat(fd), info, self.pidfd)
            key = "fd:path" if info.flags & os.O_PATH else registry.file_key(link, seen.stat)
            kind = registry.file_kind(key)
            assert kind is not None
            self.kinds[id(kind)] = kind
            kind.examine(seen, self.dump)
            self.dump.file_entries.append(kind.save(seen, self.dump))
            self.ids.append(seen.id)
            seen.close()
        return self

    def fail(self) -> None:
        """The dump does not come to its end."""
        for undo in self.dump.state.get("undo", ()):
            undo()
        os.close(self.dir_fd)

    def write(self) -> "Saved":
        segments.store(self.dump, 1)
        for kind in self.kinds.values():
            kind.late(self.dump)
        segments.save_inodes(self.dump)
        self.dump.images.write(kinds.FILES, self.dump.file_entries)
        description.write_extras(self.dump)
        os.close(self.dir_fd)
        os.close(self.pidfd)
        return self

    def restore(self, change: Callable[[FileEntry], None] | None = None, **options: Any) -> "Made":
        made = Made(self, options)
        if change:
            made.restore.files = deepcopy(made.restore.files)  # messages that are alike are shared, and frozen
        for entry in made.restore.files.values():
            if change:
                change(entry)
            made.kind(entry).check(entry, made.restore)
        return made

    def remade(self, **options: Any) -> list[int]:
        """The usual way: written, restored, all of it made."""
        return self.write().restore(**options).make()


class Made:
    """A restore in this process."""

    def __init__(self, saved: Saved, options: dict[str, Any]) -> None:
        self.saved = saved
        reader = ImageReader.open(str(saved.images))
        self.restore = Restore(Options(images_dir=str(saved.images), **options), reader)
        self.restore.tasks[os.getpid()] = RestoreTask(os.getpid(), 0, 0, 0, [os.getpid()])
        self.restore.files.update({entry.id: entry for entry in reader.entries(kinds.FILES)})
        segments.check(self.restore)

    @staticmethod
    def kind(entry: FileEntry) -> FileKind:
        kind = registry.file_kind_of_type(entry.type)
        assert kind is not None
        return kind

    def make(self) -> list[int]:
        made, files = self.restore.made, self.restore.files
        for id in self.saved.ids:
            if id not in made:
                made[id] = self.kind(files[id]).make(files[id], self.restore)
        segments.seal(self.restore)
        for id in self.saved.ids:
            self.kind(files[id]).last(files[id], made[id], self.restore)
        return [made[id] for id in self.saved.ids]

    def end(self) -> None:
        for action in self.restore.state.get("at end", ()):
            action()


def look(fd: int) -> dict[str, Any]:
    """What a restore must bring back of a description."""
    info, stat = fdinfo.read("self", fd), os.fstat(fd)
    return {
        "flags": info.status_flags,
        "pos": info.pos,
        "link": os.readlink(f"/proc/self/fd/{fd}"),
        "mode": stat.st_mode,
        "owner": (stat.st_uid, stat.st_gid),
        "size": stat.st_size,
        "links": stat.st_nlink,
        "rdev": stat.st_rdev,
    }


def remap(saved: Saved) -> list[tuple[int, int]]:
    return [(one.remap_type or 0, one.remap_id) for one in ghost.remaps(saved.dump)]


def opened(path: Path, content: bytes = b"content") -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
    os.write(fd, content)
    return fd
