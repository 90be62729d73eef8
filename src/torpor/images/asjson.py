# SPDX-License-Identifier: Apache-2.0
"""Messages as JSON.

Enums go by name, bytes as hexadecimal.  For people (`names=True`) so do flags, and addresses and masks are hexadecimal
strings; for programs numbers stay numbers.
"""

from __future__ import annotations

import json

from torpor.images.kinds import KINDS
from torpor.images.schema.constants import PagemapFlags, TaskState, VmaStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from torpor.images.kinds import ImageKind
    from torpor.images.message import Field, Message

WIDTH = 110


def _constants(cls: type) -> dict[int, str]:
    return {value: name for name, value in vars(cls).items() if isinstance(value, int) and not name.startswith("_")}


# From <fcntl.h> and <sys/mman.h> of Linux; the same on all architectures that matter here but for O_DIRECTORY and
# O_DIRECT, which arm64, arm and ppc64 number otherwise (what they call it then shows as a number).
_OPEN = {
    0o100: "O_CREAT", 0o2000: "O_APPEND", 0o4000: "O_NONBLOCK", 0o10000: "O_DSYNC", 0o20000: "FASYNC",
    0o40000: "O_DIRECT", 0o100000: "O_LARGEFILE", 0o200000: "O_DIRECTORY", 0o400000: "O_NOFOLLOW",
    0o1000000: "O_NOATIME", 0o4000000: "O_SYNC", 0o10000000: "O_PATH", 0o20000000: "O_TMPFILE",
}  # fmt: skip
_PROT = {1: "PROT_READ", 2: "PROT_WRITE", 4: "PROT_EXEC"}
_MAP = {
    1: "MAP_SHARED", 2: "MAP_PRIVATE", 8: "MAP_DROPPABLE", 0x20: "MAP_ANONYMOUS", 0x100: "MAP_GROWSDOWN",
    0x2000: "MAP_LOCKED", 0x4000: "MAP_NORESERVE", 0x40000: "MAP_HUGETLB",
}  # fmt: skip
_FLAGS: dict[tuple[str, str], dict[int, str]] = {
    ("VmaEntry", "status"): _constants(VmaStatus),
    ("VmaEntry", "prot"): _PROT,
    ("VmaEntry", "flags"): _MAP,
    ("PagemapEntry", "flags"): _constants(PagemapFlags),
    ("FdinfoEntry", "flags"): {1: "FD_CLOEXEC"},
}
_HEX = {
    "start", "end", "vaddr", "mm_brk", "sigaction", "mask", "gprs", "blk_sigset", "blk_sigset_extended", "events",
    "cap_inh", "cap_prm", "cap_eff", "cap_bnd", "cap_amb", "sigmask", "rdev", "dev", "s_dev", "flags",
}  # fmt: skip
_DECIMAL = {
    "pos", "size", "rlim_cur", "rlim_max", "i_ino", "ino", "len", "off", "frozen_time", "dump_uptime",
}  # fmt: skip


def flag_names(value: int, names: dict[int, str], none: str = "0x0") -> str:
    """ "A | B | 0x8": the names of the bits that are set, and what is left."""
    found = [name for bit, name in names.items() if bit and value & bit == bit]
    for bit in names:
        value &= ~bit
    return " | ".join([*found, *([hex(value)] if value else [])]) or none


def open_flags(value: int) -> str:
    """ "O_RDWR | O_APPEND"."""
    mode = ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE")[value & 3]
    rest = flag_names(value & ~3, _OPEN, "")
    return f"{mode} | {rest}" if rest else mode


def enum_name(field: Field, value: int) -> str | int:
    return _constants(field.load()).get(value, value)


def message_to_json(message: Message, names: bool = False) -> dict[str, Any]:
    """The fields that are set."""
    cls = type(message).__name__
    return {field.name: _value(cls, field, value, names) for field, value in message.items()}


def _value(cls: str, field: Field, value: Any, names: bool) -> Any:
    if field.label == "repeated":
        if names and field.kind in ("uint64", "fixed64") and any(item >> 32 for item in value):
            return [hex(item) for item in value]
        return [_single(cls, field, item, names) for item in value]
    return _single(cls, field, value, names)


def _single(cls: str, field: Field, value: Any, names: bool) -> Any:
    if field.is_message:
        return message_to_json(value, names)
    if field.is_enum:
        return enum_name(field, value)
    if isinstance(value, bytes):
        return value.hex()
    if not names or not isinstance(value, int) or isinstance(value, bool):
        return value
    if (cls, field.name) in _FLAGS:
        return flag_names(value, _FLAGS[cls, field.name])
    if field.name in ("flags", "fdflags") and cls.endswith(("FileEntry", "PipeEntry", "SkEntry", "VmaEntry")):
        return open_flags(value)
    if field.name == "mode" and cls.endswith(("FileEntry", "PermsEntry", "InodeEntry", "Perms")):
        return oct(value)
    if field.name == "task_state":
        return _constants(TaskState).get(value, value)
    if field.name in _HEX or field.name.startswith(("mm_", "vm_")):
        return hex(value)
    if field.kind == "uint64" and value >> 32 and field.name not in _DECIMAL:
        return hex(value)
    return value


def image_to_json(kind: ImageKind[Any], entries: list[tuple[Any, bytes]], names: bool = False) -> dict[str, Any]:
    """A whole image; the raw bytes after an entry appear by their number."""
    shown = []
    for message, payload in entries:
        entry = message_to_json(message, names)
        if payload or kind.payload:
            entry["payload_bytes"] = len(payload)
        shown.append(entry)
    return {"magic": _magic_name(kind), "entries": shown}


def _magic_name(kind: ImageKind[Any]) -> str:
    """As crit has it: several kinds of images may begin with the same word."""
    return next((one.name for one in KINDS.values() if kind.magic and one.magic == kind.magic), kind.name)


def render(value: Any, indent: int = 0) -> Iterator[str]:
    """JSON in pieces, with as much on a line as fits: short objects on one, numbers many to a line."""
    pad = " " * indent
    if not isinstance(value, dict | list) or not value:
        yield json.dumps(value)
        return
    if _size(value, WIDTH - indent) > 0:
        yield json.dumps(value)
        return
    last = len(value) - 1
    if isinstance(value, dict):
        items, open_, close = [(f"{json.dumps(key)}: ", item) for key, item in value.items()], "{", "}"
    else:
        items, open_, close = [("", item) for item in value], "[", "]"
    yield open_
    if not any(isinstance(item, dict | list) for _, item in items):
        line = f"\n{pad} "
        for at, (key, item) in enumerate(items):
            text = f" {key}{json.dumps(item)}{',' if at < last else ''}"
            if len(line) + len(text) > WIDTH and line.strip():
                yield line
                line = f"\n{pad} "
            line += text
        yield line
    else:
        for at, (key, item) in enumerate(items):
            yield f"\n{pad}  {key}"
            yield from render(item, indent + 2)
            if at < last:
                yield ","
    yield f"\n{pad}{close}"


def _size(value: Any, room: int) -> int:
    """How much of `room` is left when `value` stands on one line; not above 0 when it does not fit."""
    if isinstance(value, dict):
        for key, item in value.items():
            room = _size(item, room - len(key) - 6)
            if room <= 0:
                break
    elif isinstance(value, list):
        for item in value:
            room = _size(item, room - 2)
            if room <= 0:
                break
    elif isinstance(value, str):
        room -= len(value) + 2
    else:
        room -= len(str(value))
    return room
