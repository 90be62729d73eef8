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
from collections.abc import Iterator, Sequence

from torpor import log
from torpor.arch.base import Arch
from torpor.errors import TorporError

RESULT, LOAD32, ARG_BITS, MAY_FAIL = 1, 2, 2, 1 << 15  # as in arch/executor.c
CALL_WORDS = 9
LIST_WORDS = 2
_ALIGN = 16
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
        inner.base, inner.offset = self.base or self, self.offset + offset
        return inner

    @property
    def root(self) -> "Pointer":
        return self.base or self

    def __len__(self) -> int:
        return len(self.root.data)


class Load32:
    """The signed 32-bit number at `pointer`, or at an address in the task, at the time of the call."""

    __slots__ = ("pointer",)

    def __init__(self, pointer: Pointer | int) -> None:
        self.pointer = pointer


Argument = int | Result | Pointer | Load32


class Call:
    __slots__ = ("args", "may_fail", "name", "result")

    def __init__(self, name: str, args: tuple[Argument, ...], may_fail: bool, result: Result) -> None:
        self.name, self.args, self.may_fail, self.result = name, args, may_fail, result

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


class CallFailed(TorporError):
    """A system call inside a task failed.  `errno` is positive; `call` says which."""

    code = "call-failed"

    def __init__(self, tid: int, call: Call, errno: int) -> None:
        import os

        super().__init__(f"system call {call!r} inside task {tid} failed", os.strerror(errno))
        self.errno, self.call, self.tid = errno, call, tid


class Program:
    """A list of system calls; see the module's text."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def call(self, name: str, *args: Argument, may_fail: bool = False) -> Result:
        """Append a call.  Without `may_fail` its failure ends the program and raises CallFailed."""
        result = Result(len(self.calls))
        self.calls.append(Call(name, args, may_fail, result))
        return result

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


class Batch:
    """Some consecutive calls of a program, laid out for one address: what really travels."""

    def __init__(self, calls: Sequence[Call], pointers: dict[Pointer, int], size: int) -> None:
        self.calls, self.pointers, self.size = calls, pointers, size

    def encode(self, address: int, arch: Arch) -> bytes:
        """struct list (arch/executor.c) and the data after it, to be written at `address`."""
        word, numbers = arch.word, arch.SYSCALLS
        code = word[1]
        width = struct.calcsize(word)
        mask = (1 << 8 * width) - 1
        first = self.calls[0].result.index if self.calls else 0
        pack = struct.Struct(f"{word[0]}{CALL_WORDS}{code}").pack
        out = [struct.pack(f"{word[0]}2{code}", len(self.calls), 0)]
        at = {pointer: address + offset for pointer, offset in self.pointers.items()}
        for call in self.calls:
            how = MAY_FAIL if call.may_fail else 0
            args = [0] * 6
            call_args: Sequence[Argument] = arch.arguments(call.name, call.args)
            for i, arg in enumerate(call_args):
                if isinstance(arg, int):
                    args[i] = arg & mask
                elif isinstance(arg, Pointer):
                    args[i] = at[arg.root] + arg.offset
                elif isinstance(arg, Load32):
                    where = arg.pointer
                    args[i] = where if isinstance(where, int) else at[where.root] + where.offset
                    how |= LOAD32 << ARG_BITS * i
                elif arg.index >= first:
                    args[i] = arg.index - first
                    how |= RESULT << ARG_BITS * i
                else:
                    args[i] = arg.value & mask
            try:
                number = numbers[call.name]
            except KeyError:
                raise AssertionError(f"no system call {call.name} in this architecture's table") from None
            out.append(pack(number, *args, how, 0))
        body = bytearray(b"".join(out).ljust(self.size, b"\0"))
        for pointer, offset in self.pointers.items():
            body[offset : offset + len(pointer.data)] = pointer.data
            for inside, target in pointer.links:
                struct.pack_into(word, body, offset + inside, at[target.root] + target.offset)
        return bytes(body)

    def results_size(self, word: str) -> int:
        return (LIST_WORDS + CALL_WORDS * len(self.calls)) * struct.calcsize(word)

    def decode(self, tid: int, body: bytes, word: str) -> None:
        """Take results and data from what was read back.  Raises CallFailed."""
        width = struct.calcsize(word)
        order, code = word[0], word[1]
        done = struct.unpack_from(word, body, width)[0]
        signed = struct.Struct(order + code.lower())
        step = CALL_WORDS * width
        at = (LIST_WORDS + CALL_WORDS - 1) * width
        for i, call in enumerate(self.calls):
            if i > done:
                break
            value = signed.unpack_from(body, at + i * step)[0]
            if width == 4 and value < -MAX_ERRNO:
                value += 1 << 32  # an address in the upper half
            call.result._value = value
            if log.level >= log.CALLS:
                log.call(f"task {tid}: {call!r} = {value}")
        for pointer, offset in self.pointers.items():
            if pointer.data:
                pointer.data = body[offset : offset + len(pointer.data)]
        if done < len(self.calls):
            failed = self.calls[done]
            raise CallFailed(tid, failed, -failed.result.value)


def batches(program: Program, word: str, room: int) -> Iterator[Batch]:
    """Cut a program into batches that fit into `room` bytes, in order.  Results cross from one to the next."""
    width = struct.calcsize(word)
    calls: list[Call] = []
    data = 0
    known: set[Pointer] = set()

    def finish() -> Batch:
        offset = (LIST_WORDS + CALL_WORDS * len(calls)) * width
        placed: dict[Pointer, int] = {}
        for call in calls:
            for pointer in _pointers(call):
                if pointer not in placed:
                    offset = (offset + _ALIGN - 1) & -_ALIGN
                    placed[pointer] = offset
                    offset += len(pointer.data)
        return Batch(list(calls), placed, offset)

    for call in program.calls:
        needs = [p for p in _pointers(call) if p not in known]
        extra = CALL_WORDS * width + sum(len(p.data) + _ALIGN for p in needs)
        if calls and data + extra > room - 64:
            yield finish()
            calls, data, known = [], 0, set()
            needs = list(_pointers(call))
            extra = CALL_WORDS * width + sum(len(p.data) + _ALIGN for p in needs)
        if extra > room - 64:
            raise AssertionError(f"{call.name} needs {extra} bytes, more than a program's room of {room}")
        calls.append(call)
        known.update(needs)
        data += extra
    if calls:
        yield finish()


_IN_MEMORY = (Pointer, Load32)


def _pointers(call: Call) -> Sequence[Pointer]:
    """All pointers that a call needs, each once, those linked from others too."""
    args = [arg.pointer if isinstance(arg, Load32) else arg for arg in call.args if isinstance(arg, _IN_MEMORY)]
    stack = [arg.root for arg in args if isinstance(arg, Pointer)]
    if not stack or (len(stack) == 1 and not stack[0].links):  # nearly always; a thousand threads ask five times each
        return stack
    seen: dict[Pointer, None] = {}
    while stack:
        pointer = stack.pop()
        if pointer not in seen:
            seen[pointer] = None
            stack += [target.root for _, target in pointer.links]
    return list(seen)
