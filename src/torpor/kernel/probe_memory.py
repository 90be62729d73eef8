# SPDX-License-Identifier: Apache-2.0
"""Probes about memory.  See `torpor.kernel.probe`."""

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import sys
from contextlib import contextmanager

from torpor.kernel import pagemap as pages
from torpor.kernel import process
from torpor.kernel.ioctls import iowr
from torpor.kernel.probe import Missing, in_child
from torpor.kernel.syscall import call, map_memory
from torpor.typed import Iterator

PAGE = mmap.PAGESIZE
_PRESENT = 1 << 63  # in a pagemap entry
_READ, _WRITE = 1, 2
_PRIVATE, _ANONYMOUS = 2, 0x20
_PR_SET_MM, _PR_SET_MM_MAP, _PR_SET_MM_MAP_SIZE = 35, 14, 15
_MFD_HUGETLB, _MFD_EXEC = 4, 0x10
_PROCMAP_QUERY = iowr("f", 17, 104)  # struct procmap_query
_UFFDIO_API, _UFFDIO_REGISTER = iowr(0xAA, 0x3F, 24), iowr(0xAA, 0, 32)
_WP_ASYNC, _WP_UNPOPULATED, _WP, _MOVE = 1 << 15, 1 << 13, 1 << 0, 1 << 16


@contextmanager
def page(protection: int = _READ | _WRITE, count: int = 1, fd: int = -1) -> Iterator[int]:
    """The address of a private area of our own."""
    size = count * PAGE
    at = map_memory(size, protection, _PRIVATE | (_ANONYMOUS if fd < 0 else 0), fd)
    try:
        yield at
    finally:
        call("munmap", at, size)


@in_child
def set_mm_map() -> None:
    with open("/proc/self/stat", "rb") as stat:
        words = stat.read().rpartition(b")")[2].split()
    start_code, end_code, start_stack = (int(words[at]) for at in (23, 24, 25))
    start_data, end_data, start_brk, arg_start, arg_end, env_start, env_end = (int(word) for word in words[42:49])
    size = ctypes.c_uint()
    process.prctl(_PR_SET_MM, _PR_SET_MM_MAP_SIZE, ctypes.addressof(size))
    # struct prctl_mm_map has a pointer in it, and ends at a multiple of 8 bytes.
    packed = struct.pack("@11QPIi0Q", start_code, end_code, start_data, end_data, start_brk, call("brk", 0),
                         start_stack, arg_start, arg_end, env_start, env_end, 0, 0, -1)  # fmt: skip
    if size.value != len(packed):
        raise Missing(f"struct prctl_mm_map has {size.value} bytes, not {len(packed)}")
    layout = ctypes.create_string_buffer(packed, len(packed))
    process.prctl(_PR_SET_MM, _PR_SET_MM_MAP, ctypes.addressof(layout), len(packed))


def map_files() -> None:
    fd = os.open(sys.executable, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with page(_READ, fd=fd) as at:
            link = os.open(f"/proc/self/map_files/{at:x}-{at + PAGE:x}", os.O_RDONLY | os.O_CLOEXEC)
        same = os.fstat(link).st_ino == os.fstat(fd).st_ino
        os.close(link)
    finally:
        os.close(fd)
    if not same:
        raise Missing("it is another file")


def proc_mem() -> None:
    mem = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        with page(_READ) as at:
            os.pwrite(mem, b"torpor", at)  # into memory that may not be written
            if os.pread(mem, 6, at) != b"torpor":
                raise Missing("what was written is not there")
    finally:
        os.close(mem)


def pagemap() -> None:
    with page(count=2) as at:
        ctypes.memset(at, 1, 1)
        fd = pages.open_pagemap("self")
        first, second = struct.unpack("=QQ", os.pread(fd, 16, at // PAGE * 8))
        os.close(fd)
    if not first & _PRESENT or second & _PRESENT:
        raise Missing("present pages are not shown as such")


def pagemap_scan() -> None:
    if not pages.abilities().scan:
        raise Missing("the ioctl is not there")


def pagemap_scan_guard() -> None:
    if not pages.abilities().guard:
        raise Missing("guard pages are not told from others")


def guard_pages() -> None:
    with page() as at:
        call("madvise", at, PAGE, pages.MADV_GUARD_INSTALL)


def procmap_query() -> None:
    with page() as at:
        query = bytearray(struct.pack("=3Q", 104, 0, at) + bytes(80))
        maps = os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(maps, _PROCMAP_QUERY, query)
        finally:
            os.close(maps)
        start, end = struct.unpack_from("=QQ", query, 24)
        if not start <= at < end:
            raise Missing("the answer is about another area")


def vm_readv() -> None:
    with page() as at:
        ctypes.memset(at, 7, 1)
        if process.process_vm_readv(os.getpid(), [(at, at + 1)]) != b"\x07":
            raise Missing("what is read is not what is there")


def memfd() -> None:
    os.close(os.memfd_create("torpor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))


def memfd_hugetlb() -> None:
    fd = call("memfd_create", ctypes.addressof(ctypes.create_string_buffer(b"torpor")), _MFD_HUGETLB | 1)
    os.close(fd)


@in_child
def memfd_exec() -> None:
    name = ctypes.create_string_buffer(b"torpor")
    try:
        fd = call("memfd_create", ctypes.addressof(name), _MFD_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fd = call("memfd_create", ctypes.addressof(name), 0)  # before 6.3 all may be executed
    os.write(fd, f"#!{os.path.realpath('/proc/self/exe')} -V\n".encode())
    os.fchmod(fd, 0o700)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)  # what is open for writing is "text file busy"
    os.close(fd)
    os.set_inheritable(reader, True)
    _, status = os.waitpid(os.posix_spawn(f"/proc/self/fd/{reader}", ["torpor"], {}), 0)
    if status:
        raise Missing(f"one that was run ended with wait status {status}")


@contextmanager
def userfaultfd(features: int) -> Iterator[int]:
    fd = call("userfaultfd", os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, _UFFDIO_API, bytearray(struct.pack("=QQQ", 0xAA, features, 0)))
        yield fd
    finally:
        os.close(fd)


def wp_async() -> None:
    with userfaultfd(_WP_ASYNC | _WP_UNPOPULATED | _WP) as fd, page(count=2) as at:
        end = at + 2 * PAGE
        ctypes.memset(at, 1, 2 * PAGE)
        fcntl.ioctl(fd, _UFFDIO_REGISTER, bytearray(struct.pack("=QQQQ", at, end - at, 2, 0)))  # MODE_WP
        scan = pages.open_pagemap("self")
        try:
            flags = pages.PM_SCAN_WP_MATCHING | pages.PM_SCAN_CHECK_WPASYNC
            wanted = {"anyof": pages.PAGE_IS_WRITTEN, "returned": pages.PAGE_IS_WRITTEN, "flags": flags}
            pages.ioctl_scan(scan, at, end, **wanted)
            ctypes.memset(at + PAGE, 2, 1)
            written = pages.ioctl_scan(scan, at, end, **wanted)
        finally:
            os.close(scan)
    if [run[:2] for run in written] != [(at + PAGE, end)]:
        raise Missing("the pages that were written are not told from the others")


def uffd_move() -> None:
    with userfaultfd(_MOVE):
        pass


def uffd() -> None:
    with userfaultfd(0):
        pass


def uffd_noncoop() -> None:
    with userfaultfd(1 << 1 | 1 << 2 | 1 << 3 | 1 << 6):  # EVENT_FORK, EVENT_REMAP, EVENT_REMOVE, EVENT_UNMAP
        pass


def soft_dirty() -> None:
    with page(count=1) as at:
        ctypes.memset(at, 1, 1)
        with open("/proc/self/clear_refs", "w") as clear:
            clear.write("4")
        ctypes.memset(at, 2, 1)
        fd = pages.open_pagemap("self")
        (entry,) = struct.unpack("=Q", os.pread(fd, 8, at // PAGE * 8))
        os.close(fd)
    if not entry >> 55 & 1:
        raise Missing("written pages are not marked (no CONFIG_MEM_SOFT_DIRTY)")
