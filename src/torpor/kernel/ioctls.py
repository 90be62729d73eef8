# SPDX-License-Identifier: Apache-2.0
"""Numbers of ioctl(2) as the kernel's _IO, _IOR, _IOW and _IOWR make them (include/uapi/asm-generic/ioctl.h).

A number holds who copies (the kernel to the program: "read"; the other way: "write"), the size of what is copied, a
letter and a number.  powerpc has other bits for the first.
"""

from torpor.arch import native

_NONE, _WRITE, _READ = native().ioctl_directions


def io(letter: int | str, number: int) -> int:
    """_IO: nothing is copied."""
    return _number(_NONE, letter, number, 0)


def ior(letter: int | str, number: int, size: int) -> int:
    """_IOR: `size` bytes come from the kernel."""
    return _number(_READ, letter, number, size)


def iow(letter: int | str, number: int, size: int) -> int:
    """_IOW: `size` bytes go to the kernel."""
    return _number(_WRITE, letter, number, size)


def iowr(letter: int | str, number: int, size: int) -> int:
    """_IOWR: they go there, and come back."""
    return _number(_READ | _WRITE, letter, number, size)


def _number(direction: int, letter: int | str, number: int, size: int) -> int:
    return direction | size << 16 | (ord(letter) if isinstance(letter, str) else letter) << 8 | number
