# SPDX-License-Identifier: Apache-2.0
"""The kernel is updated, and the application goes on: a busy tree is dumped to a guest's disk under one kernel and
restored from it under another, there and back.  And the host is another, whose CPU has more, or less.  Each leg is a
boot; guest/update.py and guest/hosts.py are what happens in it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from vmlab import VmError, disk, machine, programs
from vmlab.targets import TARGETS, Target

WAYS = {"there_and_back": ("6.1", "6.12", "6.1"), "back_and_there": ("6.12", "6.1", "6.12")}
# Debian's 6.1 for ppc64le has pages of 64 KiB, its 6.12 of 4 KiB, unless it is the -64k one.
OWN_WAYS = {("ppc64le", "there_and_back"): ("6.1", "6.12", "6.12-64k", "6.1")}
# Without CX16: vmlab/targets.py.
NEW, OLD, OLDEST = "max,-cx16", "IvyBridge,-cx16", "max,-cx16,-avx"  # OLD has no AVX2, OLDEST no AVX
NEW_WITHOUT_MPX = NEW + ",-mpx"  # whose registers the C library saves: cpuinfo.surplus
LESS_AND_MORE = {
    "aarch64": ("cortex-a72", "max,pauth=off"),  # no SVE. Threads of a CPU that signs pointers have keys: refused
    "ppc64le": ("power8", "power9"),
    "s390x": ("max,vx=off", "max"),  # the vector facility
}


def kernels_of(arch: str, way: str) -> tuple[str, ...]:
    return OWN_WAYS.get((arch, way), WAYS[way])


def _there_and_back(less: str, more: str) -> tuple[tuple[str, str], ...]:
    return (less, "dump"), (more, "hop"), (less, "lacking"), (more, "restore")


def _with_vectors(less: str, more: str) -> tuple[tuple[str, str], ...]:
    return (more, "vectors"), (less, "refuse"), (more, "hold")


def _in_handler(less: str, more: str) -> tuple[tuple[str, str], ...]:
    return (more, "vectors_in_handler"), (less, "refuse"), (more, "hold")


# (CPU, step of guest/hosts.py)
JOURNEYS = {
    ("x86_64", "to_more"): ((OLD, "dump"), (NEW, "surplus"), (NEW_WITHOUT_MPX, "restore")),
    ("x86_64", "to_less"): ((NEW, "dump"), (OLD, "lacking"), (NEW, "restore")),
    ("x86_64", "with_vectors"): _with_vectors(OLDEST, NEW),
    ("x86_64", "in_handler"): (
        (NEW, "vectors_in_handler"), (OLDEST, "refuse"), (NEW_WITHOUT_MPX + ",-pku", "hold"),
    ),
    ("x86_64", "to_less_in_idle_handlers"): ((NEW, "in_handlers"), (OLDEST, "hold")),
    ("aarch64", "to_less_in_idle_handlers"): ((LESS_AND_MORE["aarch64"][1], "in_handlers"), ("cortex-a72", "hold")),
    ("aarch64", "in_handler"): _in_handler(*LESS_AND_MORE["aarch64"]),
    ("s390x", "in_handler"): _in_handler(*LESS_AND_MORE["s390x"]),
    ("arm", "to_another"): (("cortex-a15", "dump"), ("max", "lacking"), ("cortex-a7", "restore")),  # max is an ARMv8
    ("x86_64", "far_memory"): ((NEW, "far"), (NEW + ",-la57", "shorter_addresses"), (NEW, "hold")),
    ("aarch64", "signing"): (("max", "dump"), ("max,pauth-impdef=on", "signs_otherwise")),
    ("aarch64", "shorter_vectors"): (("max,pauth=off", "dump"), ("max,pauth=off,sve-max-vq=1", "shorter_vectors")),
    ("s390x", "facilities"): (("max,vx=off", "dump"), ("max,vx=off,minste2=off,minste3=off", "fewer_facilities")),
    ("ppc64le", "vectored_calls"): (("power9", "dump"), ("power8", "vectored_calls"), ("power9", "restore")),
    **{(arch, "to_more_and_less"): _there_and_back(*cpus) for arch, cpus in LESS_AND_MORE.items()},
    **{(arch, "with_vectors"): _with_vectors(*LESS_AND_MORE[arch]) for arch in ("aarch64", "s390x")},
}  # fmt: skip
UPDATES = [*((arch, "there_and_back") for arch in TARGETS), ("x86_64", "back_and_there")]
LEGS = {3: ("begin", "hop", "end"), 4: ("begin", "refuse", "hop", "end")}
SECONDS = 400
GUEST = Path(__file__).parent / "guest"


class Disk:
    """A disk that one guest after the other lives on."""

    def __init__(self, target: Target, path: Path, record_property: Callable[[str, object], None]) -> None:
        self.target, self.path, self.files = target, path, dict(programs.sources())
        self._record = record_property

    def add(self, name: str, alone: bool = False) -> None:
        """A program of guest/ that has to be compiled.  `alone`: without a library."""
        build = programs.build_alone if alone else programs.build_one
        self.files[f"t/{name}"] = build(self.target, GUEST / f"{name}.c")

    def add_workload(self, name: str) -> None:
        built, _ = programs.build(self.target, [name])
        self.files[f"t/{name}"] = next(path for place, path in built.items() if place.endswith(f"/{name}"))

    def boot(self, kernel: str, script: str, step: str, *extra: str) -> None:
        if not self.path.exists():
            disk.make(self.target, self.path, kernel)
        outcome = machine.run(
            self.target, kernel, ["/t/switch.py", f"/t/{script}", step],
            files=self.files, modules=disk.MODULES, extra=[*disk.arguments(self.target, self.path), *extra],
            timeout=SECONDS,
        )  # fmt: skip
        where = f"{self.target.arch} {kernel} {' '.join(extra)} {step}"
        if outcome.status != 0:
            pytest.fail(f"{where}: {machine.describe_failure(outcome)}", pytrace=False)
        shown = outcome.results[-1]["output"]
        self._record(
            "said", f"{where}: " + "; ".join(f"{name}: {' '.join(str(shown[name]).split())}" for name in shown)
        )


@pytest.fixture
def traveller(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Iterator[Disk]:
    arch = request.node.callspec.params.get("arch", "x86_64")
    with machine.scratch_directory(f"update-{arch}-") as scratch:
        yield Disk(TARGETS[arch], scratch / "disk", record_property)


@pytest.mark.vm
@pytest.mark.parametrize(
    "arch,way", [pytest.param(*one, marks=pytest.mark.boots(*kernels_of(*one))) for one in UPDATES]
)
def test_update(traveller: Disk, arch: str, way: str) -> None:
    try:
        kernels = kernels_of(arch, way)
        traveller.add("vdso_calls")
        for kernel, leg in zip(kernels, LEGS[len(kernels)], strict=True):
            traveller.boot(kernel, "update.py", leg)
    except VmError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.mark.vm
@pytest.mark.boots("6.12")
@pytest.mark.parametrize("arch,journey", JOURNEYS)
def test_update_host(traveller: Disk, arch: str, journey: str) -> None:
    try:
        if any(step == "in_handlers" for _, step in JOURNEYS[arch, journey]):
            traveller.add("in_handler", alone=True)
        for cpu, step in JOURNEYS[arch, journey]:
            traveller.boot("6.12", "hosts.py", step, "-cpu", cpu)
    except VmError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.mark.vm
@pytest.mark.boots("6.1", "6.12")
@pytest.mark.parametrize("arch", ["arm"])
def test_update_stacks(traveller: Disk, arch: str) -> None:
    """Signal frames in shared memory, and on stacks that green threads have left."""
    try:
        traveller.add_workload("sig_frames")
        traveller.boot("6.1", "stacks.py", "begin")
        traveller.boot("6.12", "stacks.py", "end")
    except VmError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.mark.vm
@pytest.mark.boots("6.12", "6.1")
@pytest.mark.parametrize("arch", ["x86_64", "aarch64", "s390x"])
def test_update_lacking(traveller: Disk, arch: str) -> None:
    """What the newer kernel alone has is refused by the older one."""
    try:
        traveller.boot("6.12", "newer.py", "dump")
        traveller.boot("6.1", "newer.py", "refuse")
    except VmError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.mark.vm
@pytest.mark.boots("6.12")
@pytest.mark.parametrize("arch", ["ppc64le"])
def test_update_hashes(traveller: Disk, arch: str) -> None:
    """POWER10 alone has them."""
    try:
        traveller.boot("6.12", "hashes.py", "checkpoint", "-cpu", "power10")
    except VmError as error:
        pytest.fail(str(error), pytrace=False)
