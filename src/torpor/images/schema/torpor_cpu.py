# SPDX-License-Identifier: Apache-2.0
"""What Torpor writes down of a CPU for which CRIU's cpuinfo.img has no place, in an image of its own: torpor-cpu.img.
CRIU ignores it.
"""

from __future__ import annotations

from torpor.images.message import STRING, UINT64, Message, optional, repeated, required


class TorporCpuEntry(Message):
    machine: str = required(1, STRING)  # Torpor's name of the architecture
    # AT_HWCAP, AT_HWCAP2, AT_HWCAP3, AT_HWCAP4 of ARM; of x86_64 0 and AT_HWCAP2; on others they are in cpuinfo.img
    hwcap: list[int] = repeated(2, UINT64, default_factory=list)
    features: list[str] = repeated(3, STRING, default_factory=list)  # in words, see torpor.cpu_features
    cache_type: int | None = optional(4, UINT64, default=None)  # CTR_EL0 of aarch64
