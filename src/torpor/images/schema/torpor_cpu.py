# SPDX-License-Identifier: Apache-2.0
"""What Torpor writes down of an ARM CPU, for which CRIU's cpuinfo.img has no room, in an image of its own:
torpor-cpu.img.  CRIU ignores it.
"""

from __future__ import annotations

from torpor.images.message import STRING, UINT64, Message, repeated, required


class TorporCpuEntry(Message):
    machine: str = required(1, STRING)  # Torpor's name of the architecture
    hwcap: list[int] = repeated(2, UINT64, default_factory=list)  # AT_HWCAP, AT_HWCAP2, AT_HWCAP3, AT_HWCAP4
