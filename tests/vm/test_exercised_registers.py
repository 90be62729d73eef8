# SPDX-License-Identifier: Apache-2.0
"""Which register sets and features each guest has really exercised: test_register_sets[ARCH-KERNEL].

The workloads cpu_* say so themselves ("exercised: ..."), having held the registers across a dump and a restore.  They
skip what the processor does not have, so that a guest that lost a feature would pass: `EXPECTED` is what must be there.
"""

import pytest
from vmlab.subset import usual_mode
from vmlab.targets import KERNELS

from harness.workload import all_workloads

MODULE = "workloads"
CASES = " ".join(
    f"{workload.name}-{usual_mode(workload.name)}" for workload in all_workloads() if workload.name.startswith("cpu_")
)
_AARCH64 = "general registers, flags, FP/SIMD, FPSR, FPCR, TLS register, rseq, tagged addresses"
EXPECTED = {
    ("x86_64", ""): "general registers, flags, SSE, x87, MXCSR, AVX, protection keys, FS base, GS base, rseq",
    ("aarch64", ""): _AARCH64,
    ("aarch64", "max"): f"{_AARCH64}, address keys, generic key, SVE, FFR, SVE vector length, BTI, MTE, "
    "tagged pointers, tagged rseq",
    ("arm", ""): "general registers, flags, Thumb state, VFP, NEON, FPSCR, TLS register, rseq",
    ("ppc64le", ""): "general registers, XER, LR, CR, FP, FPSCR, VMX, VSX, VRSAVE, TAR, TLS register, rseq",
    ("s390x", ""): "general registers, access registers, condition code, program mask, FP, FPC, vector registers, "
    "TLS register, rseq",
}  # fmt: skip


@pytest.mark.vm
@pytest.mark.vm_subset
@pytest.mark.parametrize("case", [pytest.param(CASES, id="registers")])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("arch", "cpu"), [pytest.param(*key, id="-".join(filter(None, key))) for key in EXPECTED])
def test_register_sets(guests, arch: str, kernel: str, cpu: str, case: str) -> None:  # type: ignore[no-untyped-def]
    found: set[str] = set()
    for name in case.split():
        try:
            said = guests.check(arch, kernel, MODULE, name, cpu)
        except pytest.skip.Exception:
            continue  # not of this architecture, or not of this CPU
        for line in said.splitlines():
            found |= set(line.removeprefix("exercised: ").split(", ")) if line.startswith("exercised: ") else set()
    where = f"{arch} {cpu}".strip()
    guests.exercised.append(f"{where} {kernel}: {', '.join(sorted(found))}")
    missing = set(EXPECTED[arch, cpu].split(", ")) - found
    assert not missing, f"{where} under Linux {kernel} did not exercise {', '.join(sorted(missing))}"
