# SPDX-License-Identifier: Apache-2.0
"""What Torpor stores of the machine that a tree was dumped on, in an image of its own: torpor-host.img.

CRIU ignores it.  Without it, a restore cannot tell whether the machine has been booted since, or signs pointers
otherwise, nor bring back who is in a signal handler without a way back of its own (32-bit ARM).
"""

from __future__ import annotations

from torpor.images.message import BYTES, INT64, STRING, Message, optional, required


class TorporHostEntry(Message):
    """Offsets: of the tree's time namespace, in nanoseconds; 0 in the machine's own."""

    boot_id: str = required(1, STRING)  # /proc/sys/kernel/random/boot_id
    release: str = required(2, STRING)  # of the kernel, as uname(2) says
    monotonic_offset: int = required(3, INT64)
    boottime_offset: int = required(4, INT64)
    signal_page: bytes | None = optional(6, BYTES, default=None)  # what [sigpage] holds (32-bit ARM)
    signing: str | None = optional(5, STRING, default=None)  # how its CPU signs pointers (aarch64), in words
