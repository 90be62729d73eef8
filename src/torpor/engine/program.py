# SPDX-License-Identifier: Apache-2.0
"""Programs: lists of system calls to be run inside a task, as data.

A program is built without a kernel and without knowing where in the task it will lie::

    p = Program()
    fd = p.call("openat", AT_FDCWD, p.put(b"/etc/hostname\\0"), 0, 0)
    buffer = p.space(256)
    p.call("read", fd, buffer, 256)

An argument is a number, a `Result` (of an earlier call of the same program), a `Pointer` (bytes that travel with the
program), or a `Load32` (a 32-bit number that lies in memory when the call is made: a descriptor that recvmsg wrote).
After the run `Result.value` and `Pointer.data` hold what came back.
"""

import struct
from errno import ENOMEM

from torpor import log
from torpor.arch.base import Arch
from torpor.errors import TorporError
from torpor.typed import TYPE_CHECKING, Iterator, Mapping, Sequence

if TYPE_CHECKING:
    from typing import Literal

RESULT, LOAD32, ARG_BITS, MAY_FAIL = 1, 2, 2, 1 << 15  # as in arch/executor.c
CALL_WORDS = 9
LIST_WORDS = 2
_ALIGN = 16
_UNUSED = [(0,) * (6 - used) for used in range(7)]
MAX_ERRNO = 4095


class Result:
    """What a call returned: `value` after the run; negative errno where the call may fail and did."""

    __slots__ = ("_value", "index")

    def __init__(self, index: int) -> None:
        self.index = index
        self._value: int | None = None

    @property
    def value(self) -> int:
        if self._value is None:
            raise AssertionError("the program was not run, or stopped before this call")
        return self._value

    @property
    def ran(self) -> bool:
        return self._value is not None


class Pointer:
    """Bytes in the task while the program runs: input, output, or both.  May hold addresses of other pointers."""

    __slots__ = ("base", "data", "links", "offset")

    def __init__(self, data: bytes, links: "Sequence[tuple[int, Pointer]]" = ()) -> None:
        self.data = data
        self.links = links  # (offset in data, pointer whose address is to be put there)
        self.base: Pointer | None = None
        self.offset = 0

    def __add__(self, offset: int) -> "Pointer":
        """A pointer into the same bytes."""
        inner = Pointer(b"")
        inner.base, inner.offset = self.root, self.offset + offset
        return inner

    @property
    def root(self) -> "Pointer":
        return self if self.base is None else self.base

    def __len__(self) -> int:
        return len(self.root.data)


class Load32:
    """The signed 32-bit number at `pointer`, or at an address in the task, at the time of the call."""

    __slots__ = ("pointer",)

    def __init__(self, pointer: Pointer | int) -> None:
        self.pointer = pointer


Argument = int | Result | Pointer | Load32


class Call:
    """`needs`: all that has to lie in the task for it, each once, those linked from others too.  `fds`: descriptors of
    ours that it receives; they are sent when its batch starts.  `form`: of one that many programs share, once it was
    encoded: its bytes before the only address in it, where that leads to, and the bytes behind it."""

    __slots__ = ("args", "fds", "form", "may_fail", "name", "needs", "result")

    def __init__(self, name: str, args: tuple[Argument, ...], may_fail: bool, result: Result) -> None:
        self.name, self.args, self.may_fail, self.result = name, args, may_fail, result
        self.needs = _needs(args)
        self.fds: Sequence[int] = ()
        self.form: tuple[bytes, Pointer, int, bytes] | None = None

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(map(_describe, self.args))})"


def _describe(arg: Argument) -> str:
    if isinstance(arg, Result):
        return f"${arg.index}"
    if isinstance(arg, Pointer):
        return f"&{arg.root.data[:32]!r}+{arg.offset}" if arg.offset else f"&{arg.root.data[:32]!r}"
    if isinstance(arg, Load32):
        return f"*{_describe(arg.pointer)}"
    return hex(arg) if abs(arg) > 4096 else str(arg)


_OF_MEMORY = frozenset({"mmap", "mremap", "mprotect"})
_MORE_MEMORY = (
    "allow more memory: vm.overcommit_memory and vm.overcommit_ratio (sysctl), or a limit to it (ulimit -v, ulimit -d)"
)


class CallFailed(TorporError):
    """A system call inside a task failed.  `errno` is positive; `call` says which."""

    code = "call-failed"

    def __init__(self, tid: int, call: Call, errno: int) -> None:
        import os

        remedy = _MORE_MEMORY if call.name in _OF_MEMORY and errno == ENOMEM else ""
        super().__init__(f"system call {call!r} inside task {tid} failed", os.strerror(errno), remedy)
        self.errno, self.call, self.tid = errno, call, tid


class Program:
    """A list of system calls; see the module's text."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.own: dict[Pointer, Pointer] = {}  # see `extend`

    def call(self, name: str, *args: Argument, may_fail: bool = False) -> Result:
        """Append a call.  Without `may_fail` its failure ends the program and raises CallFailed."""
        result = Result(len(self.calls))
        self.calls.append(Call(name, args, may_fail, result))
        return result

    def extend(self, calls: "Sequence[Call]", space: Pointer) -> Pointer:
        """Append calls that were made once for many programs, which may run at the same time: what they bring back to
        `space` is in the pointer that is returned, and their Results tell nothing.  Each has one pointer, into `space`,
        and numbers."""
        self.calls += calls
        own = self.own[space] = Pointer(space.data)
        return own

    def put(self, data: bytes, links: Sequence[tuple[int, Pointer]] = ()) -> Pointer:
        """Bytes to lie in the task; at each offset in `links` the address of another pointer is put."""
        return Pointer(data, links)

    def string(self, text: str | bytes) -> Pointer:
        """A NUL-terminated string."""
        import os

        return Pointer(os.fsencode(text) + b"\0")

    def space(self, size: int) -> Pointer:
        """Zeroed room for a call to write to; read `.data` after the run."""
        return Pointer(bytes(size))

    def __len__(self) -> int:
        return len(self.calls)

    def __str__(self) -> str:
        return "\n".join(f"${c.result.index} = {c!r}" for c in self.calls)


_NONE_SHARED: dict[Pointer, Pointer] = {}


class Batch:
    """Some consecutive calls of a program, laid out for one address: what really travels."""

    def __init__(
        self,
        calls: Sequence[Call],
        pointers: dict[Pointer, int],
        size: int,
        first: int = 0,
        own: Mapping[Pointer, Pointer] = _NONE_SHARED,
    ) -> None:
        self.calls, self.pointers, self.size = calls, pointers, size
        self._first, self._own = first, own  # the first call's place in its program; Program.own

    def encode(self, address: int, arch: Arch) -> bytes:
        """struct list (arch/executor.c) and the data after it, to be written at `address`."""
        word, numbers = arch.word, arch.SYSCALLS
        code = word[1]
        width = arch.word_size
        mask = (1 << 8 * width) - 1
        first = self._first
        body = bytearray(self.size)
        struct.pack_into(f"{word[0]}2{code}", body, 0, len(self.calls), 0)
        each, one = struct.Struct(f"{word[0]}{CALL_WORDS}{code}").pack, struct.Struct(word).pack
        packed: list[bytes] = []
        at = {pointer: address + offset for pointer, offset in self.pointers.items()}
        for call in self.calls:
            if call.form is not None:
                before, pointer, inside, behind = call.form
                packed.append(before + one(at[pointer] + inside) + behind)
                continue
            how = MAY_FAIL if call.may_fail else 0
            words = []
            args: Sequence[Argument] = arch.arguments(call.name, call.args)
            for arg in args:
                if isinstance(arg, int):
                    words.append(arg & mask)
                elif isinstance(arg, Pointer):
                    words.append(at[arg if arg.base is None else arg.base] + arg.offset)
                elif isinstance(arg, Load32):
                    how |= LOAD32 << ARG_BITS * len(words)
                    place = arg.pointer
                    words.append(place if isinstance(place, int) else at[place.root] + place.offset)
                elif arg.index >= first:
                    how |= RESULT << ARG_BITS * len(words)
                    words.append(arg.index - first)
                else:
                    words.append(arg.value & mask)
            try:
                number = numbers[call.name]
            except KeyError:
                raise AssertionError(f"no system call {call.name} in this architecture's table") from None
            packed.append(each(number, *words, *_UNUSED[len(words)], how, 0))
            if call.needs and call.needs[0] in self._own:
                (place,) = [i for i, arg in enumerate(args) if isinstance(arg, Pointer)]
                cut, form = (1 + place) * width, packed[-1]
                pointer = call.needs[0]
                call.form = form[:cut], pointer, words[place] - at[pointer], form[cut + width :]
        whole = b"".join(packed)
        body[LIST_WORDS * width : LIST_WORDS * width + len(whole)] = whole
        for pointer, offset in self.pointers.items():
            data = self._own.get(pointer, pointer).data  # an earlier batch may have brought back some of it
            body[offset : offset + len(data)] = data
            for inside, target in pointer.links:
                struct.pack_into(word, body, offset + inside, at[target.root] + target.offset)
        return bytes(body)

    def results_size(self, word: str) -> int:
        return (LIST_WORDS + CALL_WORDS * len(self.calls)) * struct.calcsize(word)

    def done(self, body: bytes, word: str) -> int:
        """How many calls were made, by what was read back."""
        return int(struct.unpack_from(word, body, struct.calcsize(word))[0])

    def decode(self, tid: int, body: bytes, word: str) -> None:
        """Take results and data from what was read back.  Raises CallFailed."""
        reader = _readers.get((word, len(self.calls)))
        if reader is None:
            width = struct.calcsize(word)
            each = f"{(CALL_WORDS - 1) * width}x{word[1].lower()}"
            reader = _readers[word, len(self.calls)] = struct.Struct(
                f"{word[0]}{width}x{word[1]}{each * len(self.calls)}"
            )
        done, *values = reader.unpack_from(body)
        if word[1] == "I":
            values = [value if value >= -MAX_ERRNO else value + (1 << 32) for value in values]  # in the upper half
        if done < len(self.calls):
            del values[done + 1 :]
        for call, value in zip(self.calls, values, strict=False):
            call.result._value = value
        if log.level >= log.CALLS:
            for call, value in zip(self.calls, values, strict=False):
                log.call(f"task {tid}: {call!r} = {value}")
        for pointer, offset in self.pointers.items():
            if pointer.data:
                self._own.get(pointer, pointer).data = body[offset : offset + len(pointer.data)]
        if done < len(self.calls):
            failed = self.calls[done]
            raise CallFailed(tid, failed, -failed.result.value)


_readers: dict[tuple[str, int], struct.Struct] = {}  # by word and number of calls: how many were made, their results


class Stencil:
    """One batch for many addresses: wherever it lies, only the addresses in it differ, by as much.  So it is one large
    number, to which the address is added in all those places at once."""

    def __init__(self, batch: Batch, arch: Arch) -> None:
        self._order: Literal["little", "big"] = "little" if arch.word[0] == "<" else "big"
        self._size = batch.size
        self._at_0 = int.from_bytes(batch.encode(0, arch), self._order)
        self._places = int.from_bytes(batch.encode(1, arch), self._order) - self._at_0

    def encode(self, address: int) -> bytes:
        """What `Batch.encode` makes."""
        return (self._at_0 + address * self._places).to_bytes(self._size, self._order)


def batches(program: Program, word: str, room: int) -> Iterator[Batch]:
    """Cut a program into batches that fit into `room` bytes, in order.  Results cross from one to the next."""
    width = struct.calcsize(word)
    room -= LIST_WORDS * width + _ALIGN
    first = last = data = 0
    placed: dict[Pointer, int] = {}

    def finish() -> Batch:
        start = (LIST_WORDS + CALL_WORDS * (last - first)) * width + _ALIGN - 1 & -_ALIGN
        pointers = {p: start + offset for p, offset in placed.items()}
        return Batch(program.calls[first:last], pointers, start + data, first, program.own)

    for call in program.calls:
        extra = 0
        for pointer in call.needs:
            if pointer not in placed:
                extra += _room(pointer)
        if first < last and CALL_WORDS * width * (last + 1 - first) + data + extra > room:
            yield finish()
            first, data, placed = last, 0, {}
            extra = sum(map(_room, call.needs))
        if CALL_WORDS * width + extra > room:
            raise AssertionError(f"{call.name} needs {extra} bytes, more than a program's room of {room}")
        for pointer in call.needs:
            if pointer not in placed:
                placed[pointer] = data
                data += _room(pointer)
        last += 1
    if first < last:
        yield finish()


def _room(pointer: Pointer) -> int:
    return len(pointer.data) + _ALIGN - 1 & -_ALIGN


def _needs(args: tuple[Argument, ...]) -> tuple[Pointer, ...]:
    stack = []
    for arg in args:
        if isinstance(arg, int):
            continue  # nearly always
        if isinstance(arg, Load32):
            arg = arg.pointer
        if isinstance(arg, Pointer):
            stack.append(arg.root)
    if not stack or (len(stack) == 1 and not stack[0].links):
        return tuple(stack)
    seen: dict[Pointer, None] = {}
    while stack:
        pointer = stack.pop()
        if pointer not in seen:
            seen[pointer] = None
            stack += [target.root for _, target in pointer.links]
    return tuple(seen)
