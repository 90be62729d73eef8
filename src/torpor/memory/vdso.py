# SPDX-License-Identifier: Apache-2.0
"""The vDSO of another kernel: what calls to it become.

A program remembers addresses of vDSO functions (libc looks them up once), so after a restore they must be where they
were.  If this kernel's vDSO has them at the same offsets, it is moved to the old place and that is all.  Otherwise the
old text, which is in the images, stays where it was as ordinary memory, each of its functions begins with a jump to the
same function of this kernel's vDSO, and that lies where there is room.

- What only the old vDSO has keeps its old code.  That finds zeros where the kernel's data were: clock mode "none" and
  "random numbers not ready", upon which all of it falls back to the system call.
- Signal trampolines, and where s390x restarts calls, keep their old code too: it is a system call, and unwinders know
  it by its bytes.
- Bytes may differ between two boots of one kernel (alternatives are patched for the CPU): offsets decide, not bytes.
- A thread in the middle of a function cannot go on in the old code, whose data are gone.  A dump lets threads out
  (`torpor.dump_collect`), and whoever has not come out is refused.
- At the next update the old text is ordinary memory, and its jumps lead to the vDSO that is then the old one.

Facts: vdso(7), elf(5), arch/*/kernel/vdso of Linux 6.1 and 6.12.
"""

import struct

from torpor.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torpor.arch.base import Arch

_SHT_DYNSYM, _PT_LOAD = 11, 1
_STT_NOTYPE, _STT_FUNC = 0, 2
_KEPT = ("sigreturn", "sigtramp", "restart_syscall")


class NotElf(Exception):
    """What was taken for a vDSO is none; the text says why."""


class Symbol(NamedTuple):
    offset: int  # from the beginning of the text
    size: int


def symbols(text: bytes) -> dict[str, Symbol]:
    """The functions of a vDSO by name.  Raises NotElf."""
    try:
        return _symbols(text)
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        raise NotElf(str(error)) from None


def _symbols(text: bytes) -> dict[str, Symbol]:
    if text[:4] != b"\x7fELF" or text[4] not in (1, 2) or text[5] not in (1, 2):
        raise NotElf("no ELF header")
    wide, order = text[4] == 2, "<" if text[5] == 1 else ">"
    header = struct.unpack_from(f"{order}{'QQQ' if wide else 'III'}I6H", text, 24)
    _, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, _ = header
    base = 0
    for i in range(phnum):
        at = phoff + i * phentsize
        if struct.unpack_from(f"{order}I", text, at)[0] == _PT_LOAD:
            base = struct.unpack_from(f"{order}{'Q' if wide else 'I'}", text, at + (16 if wide else 8))[0]
            break
    code = f"{order}IIQQQQII" if wide else f"{order}IIIIIIII"
    sections = [struct.unpack_from(code, text, shoff + i * shentsize) for i in range(shnum)]
    found: dict[str, Symbol] = {}
    for _, kind, _, _, start, size, link, _ in sections:
        if kind != _SHT_DYNSYM or link >= len(sections):
            continue
        names = sections[link][4]
        for at in range(start, start + size, 24 if wide else 16):
            if wide:
                name, info, _, section, value, length = struct.unpack_from(f"{order}IBBHQQ", text, at)
            else:
                name, value, length, info, _, section = struct.unpack_from(f"{order}IIIBBH", text, at)
            if not section or info & 15 not in (_STT_NOTYPE, _STT_FUNC) or not 0 <= value - base < len(text):
                continue
            end = text.index(b"\0", names + name)
            if section < 0xFF00 and end > names + name:  # not an absolute symbol: the version's name is one
                found[text[names + name : end].decode("ascii", "replace")] = Symbol((value - base) & ~1, length)
    if not found:
        raise NotElf("no symbols")
    return found


def fits(old: dict[str, Symbol], new: dict[str, Symbol]) -> bool:
    """Whether every function of the old vDSO is at the same offset in the new one."""
    return all(name in new and new[name].offset == symbol.offset for name, symbol in old.items())


class TooShort(Exception):
    """A function is shorter than a jump; the text names it."""


def redirect(text: bytes, new: dict[str, Symbol], new_base: int, arch: "Arch") -> bytes:
    """The old text, with a jump at the beginning of each function that the new vDSO at `new_base` has.

    Raises NotElf, TooShort."""
    old = symbols(text)
    starts = sorted({symbol.offset for symbol in old.values()})
    names: dict[int, str] = {}  # aliases are at one offset
    for name, symbol in sorted(old.items()):
        if name in new and not any(kept in name for kept in _KEPT):
            names.setdefault(symbol.offset, name)
    patched = bytearray(text)
    for offset, name in names.items():
        jump = arch.jump(new_base + new[name].offset)
        after = next((start for start in starts if start > offset), len(text))
        if offset + len(jump) > after:
            raise TooShort(name)
        patched[offset : offset + len(jump)] = jump
    return bytes(patched)


def entries(text: bytes) -> frozenset[int]:
    """Offsets at which functions begin."""
    return frozenset(symbol.offset for symbol in symbols(text).values())
