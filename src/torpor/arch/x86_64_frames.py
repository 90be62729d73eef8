# SPDX-License-Identifier: Apache-2.0
"""Signal frames of x86_64 that another CPU's kernel has made.

The extended registers are behind struct rt_sigframe, as an XSAVE area (see `arch.x86_64_core`).  Its software bytes say
how large it is and which components it has room for, and a magic number follows it.  rt_sigreturn takes an area that is
smaller than this CPU's.  Of a larger one it takes but the SSE part, without a word; and one with a component in use
that the CPU lacks ends the process.  So what is too much goes, as long as it is in its initial state.

Facts: arch/x86/kernel/signal_64.c and fpu/signal.c of Linux 6.1 and 6.12.
"""

import struct

from torpor.arch import x86_64_core as core
from torpor.arch.base import CannotReturn, Frame, Memory
from torpor.errors import Refusal
from torpor.typed import TYPE_CHECKING, Iterator

if TYPE_CHECKING:
    from torpor.images.schema.core_x86 import UserX86FpregsEntry

# struct rt_sigframe: where it has the stack pointer, the program counter, the segments, and a pointer to the area,
# which is so far from its beginning that both are aligned.
_SP, _PC, _SEGMENTS, _POINTER, _AREA = 168, 176, 192, 232, 456
_OF_USERS = struct.pack("<4H", 0x33, 0, 0, 0x2B)  # CS, GS, FS, SS

_SOFTWARE_AT, _SOFTWARE = 464, struct.Struct("<IIQI28x")  # magic number, size with the second one, components, size
_MAGIC, _MAGIC2 = 0x46505853, struct.pack("<I", 0x46505845)
_MASK_AT, _MASK = 28, struct.Struct("<I")  # MXCSR_MASK
_IN_USE, _EXTENDED = 512, 576  # XSTATE_BV; what is not in FXSAVE's part begins there
_ALWAYS = 3  # x87 and SSE


def find(stack: bytes, base: int, memory: Memory) -> Iterator[Frame]:
    at = stack.find(_OF_USERS)
    while at >= 0:
        start = at - _SEGMENTS
        pointer = int.from_bytes(stack[start + _POINTER : start + _POINTER + 8], "little")
        if start + _SP >= 0 and pointer == base + start + _AREA:
            sp, pc = struct.unpack_from("<2Q", stack, start + _SP)
            yield Frame(pointer, pc, sp, memory)
        at = stack.find(_OF_USERS, at + 1)


def _software(frame: Frame) -> tuple[int, int]:
    """Components and size of the area, as the kernel understands it."""
    magic, _, features, size = _SOFTWARE.unpack(frame.memory(frame.at + _SOFTWARE_AT, _SOFTWARE.size))
    is_extended = magic == _MAGIC and size >= _EXTENDED and frame.memory(frame.at + size, 4) == _MAGIC2
    return (features | _ALWAYS, size) if is_extended else (_ALWAYS, _SOFTWARE_AT)


def may_refuse(own: Frame, theirs: "UserX86FpregsEntry") -> bool:
    """Whether the CPU with which a thread has computed had registers that this one lacks, or has elsewhere: the makers'
    orders differ (`arch.x86_64_core`), and so do, where they are known, the bits that MXCSR can have."""
    if theirs.xsave is None:
        return False
    ours, _ = _software(own)
    had = sum(1 << bit for bit, (_, field, _) in core.COMPONENTS.items() if field and getattr(theirs.xsave, field))
    (mask,) = _MASK.unpack(own.memory(own.at + _MASK_AT, _MASK.size))
    return bool(had & ~ours) or (mask != theirs.mxcsr_mask and 0 not in (mask, theirs.mxcsr_mask))


def _layout(features: int, size: int) -> dict[int, int]:
    try:
        return core.layout(features, size)
    except Refusal:
        raise CannotReturn("extended registers in an order that Torpor does not know") from None


def mended(frame: Frame, own: Frame) -> Iterator[tuple[int, bytes]]:
    (features, size), (our_features, our_size) = _software(frame), _software(own)
    if size < _EXTENDED or (features, size) == (our_features, our_size):
        return
    area = frame.memory(frame.at, size)
    (in_use,) = struct.unpack_from("<Q", area, _IN_USE)
    theirs, ours = _layout(features, size), _layout(our_features, our_size)
    new_size = min(size, our_size)
    new = bytearray(area[:_EXTENDED]).ljust(new_size, b"\0")
    kept = _ALWAYS
    for bit, offset in theirs.items():
        length, _, _ = core.COMPONENTS.get(bit, (0, "", ""))
        data = area[offset : offset + length] if in_use >> bit & 1 else b""
        if in_use >> bit & 1 and not length:
            raise CannotReturn(core.name(bit))
        if bit in ours and ours[bit] + length <= new_size:
            kept |= 1 << bit
            new[ours[bit] : ours[bit] + len(data)] = data
        elif not core.is_initial(bit, data):
            raise CannotReturn(core.name(bit))
    if our_size < _EXTENDED or (kept == features and new_size == size and new == area):
        return  # a CPU without XSAVE looks at no more than FXSAVE's part
    struct.pack_into("<Q", new, _IN_USE, in_use & kept)
    _SOFTWARE.pack_into(new, _SOFTWARE_AT, _MAGIC, new_size + len(_MAGIC2), kept, new_size)
    yield frame.at, bytes(new) + _MAGIC2
