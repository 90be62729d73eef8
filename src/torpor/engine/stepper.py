# SPDX-License-Identifier: Apache-2.0
"""Programs without an executor: one call after the other by PTRACE_SYSCALL.

Slower (27 µs a call), and a task whose controller is killed in here does not go home by itself.  It serves tasks that
an executor cannot enter: full fd tables, no room for a mapping.  Data lies on a page that is mapped for the purpose,
and so does the little code of what is no system call (`Arch.own_code`).
"""

import struct

from torpor.engine.program import ARG_BITS, CALL_WORDS, LIST_WORDS, LOAD32, MAY_FAIL, RESULT, Program, batches
from torpor.engine.tracee import Tracee
from torpor.errors import KernelError

SCRATCH = 1 << 16
_PROT_RW, _PROT_RX, _MAP_PRIVATE_ANON = 3, 5, 0x22
_CODE = 1 << 12


class Stepper:
    def __init__(self, tracee: Tracee) -> None:
        self.tracee = tracee
        self._scratch = self._code = 0

    def run(self, program: Program) -> None:
        """Run all of it; raises CallFailed like the executor."""
        tracee = self.tracee
        arch = tracee.arch
        tracee.block_signals()
        if not self._scratch:
            self._scratch = self._map(SCRATCH, _PROT_RW)
        order, code = arch.word[0], arch.word[1]
        call_format = struct.Struct(f"{order}{CALL_WORDS}{code}")
        for batch in batches(program, arch.word, SCRATCH):
            body = batch.encode(self._scratch, arch)
            tracee.write(self._scratch, body)
            results: list[int] = []
            done = len(batch.calls)
            for i, call in enumerate(batch.calls):
                fields = call_format.unpack_from(body, LIST_WORDS * arch.word_size + i * call_format.size)
                how = fields[7]
                args = []
                for n, value in enumerate(fields[1:7]):
                    kind = how >> ARG_BITS * n & 3
                    if kind == RESULT:
                        value = results[value]
                    elif kind == LOAD32:
                        value = struct.unpack(f"{order}i", tracee.read(value, 4))[0]
                    args.append(value)
                if call.name in arch.own_code:
                    result = self._run_code(arch.own_code[call.name], args)
                else:
                    result = tracee.step_number(arch.SYSCALLS[call.name], args)
                results.append(result)
                if -4096 < result < 0 and not how & MAY_FAIL:
                    done = i
                    break
            after = bytearray(tracee.read(self._scratch, batch.size))
            mask = (1 << 8 * arch.word_size) - 1
            struct.pack_into(arch.word, after, arch.word_size, done)
            for i, result in enumerate(results):
                at = LIST_WORDS * arch.word_size + i * call_format.size + (CALL_WORDS - 1) * arch.word_size
                struct.pack_into(arch.word, after, at, result & mask)
            batch.decode(tracee.tid, bytes(after), arch.word)

    def _map(self, size: int, prot: int) -> int:
        at = self.tracee.step_map(0, size, prot, _MAP_PRIVATE_ANON)
        if -4096 < at < 0:
            self.remove()
            remedy = (
                "its address space, its own memory or its locked memory is at the limit: raise that first "
                "(prlimit --as, --data, --memlock)"
            )
            raise KernelError(f"cannot map a page inside task {self.tracee.tid}", -at, remedy)
        return at

    def _run_code(self, code: bytes, args: "list[int]") -> int:
        if not self._code:
            self._code = self._map(_CODE, _PROT_RX)
        self.tracee.write(self._code, code)
        self.tracee.step_code(self._code, args)
        return 0

    def remove(self) -> None:
        for at, size in ((self._code, _CODE), (self._scratch, SCRATCH)):
            if at:
                self.tracee.step_unmap(at, size)
        self._scratch = self._code = 0
        self.tracee.rewind()
