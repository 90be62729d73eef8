# SPDX-License-Identifier: Apache-2.0
"""The first task of a tree, as it begins: a clone of the engine with the wanted PID (clone3 set_tid) that executes a
tiny ELF file.

That gives an address space that holds nothing but this file, a stack and the vDSO, at addresses that are always the
same (ADDR_NO_RANDOMIZE).  From the clone on it dies with the engine: it waits until it is traced with EXITKILL.
"""

import errno
import os
import resource
import struct
from _socket import AF_UNIX, SOCK_SEQPACKET, socket, socketpair

from torpor import signals as signal
from torpor.arch import native
from torpor.arch.base import Arch
from torpor.engine.area import PAGE
from torpor.kernel.process import CLONE_PARENT, clone3, close_range
from torpor.kernel.syscall import call
from torpor.typed import NamedTuple

ADDR_NO_RANDOMIZE = 0x0040000
MFD_CLOEXEC, MFD_EXEC = 1, 0x10
STUB_AT = 0x10000  # the lowest address that may be mapped (vm.mmap_min_addr)
PT_GNU_STACK = 0x6474E551
FIRST_FD = 0  # the first task's end of its socket
SHORT_STACK = 8 << 20  # the kernel puts the vDSO as far below the stack as that may grow
GO, GO_SHORT = b"go", b"short"


def stub(arch: Arch) -> bytes:
    """An ELF file of one page that is never run: what it needs is a system-call instruction for the first step, and the
    word that its stack is not to be executed: else 32-bit ARM makes everything executable that can be read."""
    order = arch.word[0]
    wide = arch.word_size == 8
    header = 64 if wide else 52
    entry = 56 if wide else 32
    size = header + 2 * entry
    code = arch.instruction.ljust(16, b"\0")
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    start = struct.pack(
        f"{order}HHI3{arch.word[1]}I6H", 2, arch.elf_machine, 1, STUB_AT + size, header, 0,
        arch.elf_flags, header, entry, 2, 64 if wide else 40, 0, 0,
    )  # fmt: skip
    whole = size + len(code)
    if wide:
        segment = struct.pack(f"{order}II6Q", 1, 5, 0, STUB_AT, STUB_AT, whole, whole, PAGE)
        stack = struct.pack(f"{order}II6Q", PT_GNU_STACK, 6, 0, 0, 0, 0, 0, 16)
    else:
        segment = struct.pack(f"{order}8I", 1, 0, STUB_AT, STUB_AT, whole, whole, 5, PAGE)
        stack = struct.pack(f"{order}8I", PT_GNU_STACK, 0, 0, 0, 0, 0, 6, 16)
    return ident + start + segment + stack + code


class Cradle(NamedTuple):
    """What the first task begins with: its socket (both ends) and the file that it executes."""

    ours: socket
    theirs: socket
    file: int

    @classmethod
    def make(cls) -> "Cradle":
        return cls(*socketpair(AF_UNIX, SOCK_SEQPACKET), _stub_file(native()))

    def clone(self, pid: int, flags: int = 0) -> None:
        """Clone the calling process, with CLONE_PARENT in `flags` into a sibling; the clone waits to be traced and
        never returns from here.  Raises OSError: EEXIST where `pid` is taken."""
        if clone3(flags, exit_signal=0 if flags & CLONE_PARENT else signal.SIGCHLD, set_tid=[pid]) == 0:
            _become_stub(self.ours.fileno(), self.theirs.fileno(), self.file)

    def close(self) -> None:
        """Close all but our end."""
        self.theirs.close()
        os.close(self.file)


def _stub_file(arch: Arch) -> int:
    """A descriptor of the stub, executable: a memfd, or where those may not be executed, a file without a name."""
    data = stub(arch)
    fd = -1
    for flags in (MFD_CLOEXEC | MFD_EXEC, MFD_CLOEXEC):
        try:
            fd = os.memfd_create("torpor", flags)
            break
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EACCES):
                raise
    if fd < 0 or not os.fstat(fd).st_mode & 0o100:
        if fd >= 0:
            os.close(fd)
        fd = _named_stub()
    os.write(fd, data)
    # A file that is open for writing cannot be executed.
    reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    os.close(fd)
    return reader


def _named_stub() -> int:
    import tempfile

    fd, path = tempfile.mkstemp("torpor")
    os.fchmod(fd, 0o700)
    os.unlink(path)
    return fd


def _become_stub(ours: int, theirs: int, file: int) -> None:
    """In the clone: only system calls, then execve.  Never returns."""
    status = 1
    try:
        os.close(ours)  # or the end of the engine would never be read as end-of-file
        word = os.read(theirs, 8)
        if word in (GO, GO_SHORT):
            if word == GO_SHORT:
                _, hard = resource.getrlimit(resource.RLIMIT_STACK)
                short = SHORT_STACK if hard == resource.RLIM_INFINITY else min(hard, SHORT_STACK)
                resource.setrlimit(resource.RLIMIT_STACK, (short, hard))  # until its own comes back
            call("personality", call("personality", 0xFFFFFFFF) | ADDR_NO_RANDOMIZE)
            high = max(file, theirs) + 1
            os.dup2(file, high, inheritable=False)
            os.dup2(theirs, FIRST_FD, inheritable=True)
            close_range(FIRST_FD + 1, high - 1)
            if high + 1 < 1 << 20:
                close_range(high + 1)
            os.execve(high, ["torpor"], {})
    except OSError as error:
        status = error.errno or 1
    finally:
        os._exit(status)
