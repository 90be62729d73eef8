# SPDX-License-Identifier: Apache-2.0
"""cpuinfo.img and --cpu-cap: made-up CPUs compared; this machine written down and checked, by CRIU too."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import peer
from torpor import cpu_compare, cpu_features, cpuinfo
from torpor.cpu_compare import CPU, FPU, INS, INSTRUCTIONS, different, lacking, surplus
from torpor.cpu_names import NAMES, names
from torpor.errors import ImageError, Refusal
from torpor.images import kinds
from torpor.images.directory import ImageReader, write_small
from torpor.images.schema.cpuinfo import CpuinfoEntry, CpuinfoPpc64Entry, CpuinfoS390Entry, CpuinfoX86Entry
from torpor.images.schema.torpor_cpu import TorporCpuEntry
from torpor.options import Options

ROOT = Path(__file__).resolve().parent.parent
X86 = os.uname().machine == "x86_64"
# An AMD EPYC of the fourth generation in a virtual machine, as CRIU 4.2.1 writes it down.
EPYC = CpuinfoX86Entry(
    vendor_id=2, cpu_family=25, model=17, stepping=1, capability_ver=2,
    capability=[0x178BFBFF, 0x2FD3FBFF, 0, 0x2110000, 0xFFFA3203, 0, 0x4003F3, 0, 0, 0xF1BF07AB, 0xF, 0x405FC6, 0,
                0x50020005, 4, 0, 0, 0, 0x10],
    model_id="AMD EPYC", xfeatures_mask=0xE5, xsave_size=2432, xsave_size_max=2432,
)  # fmt: skip
AVX512F, FMAPS = 1 << 16, 1 << 3


def changed(change: Callable[[CpuinfoX86Entry], object]) -> CpuinfoEntry:
    entry = copy.deepcopy(EPYC)
    change(entry)
    return CpuinfoEntry(x86_entry=[entry])


def with_word(number: int, value: int) -> CpuinfoEntry:
    return changed(lambda entry: entry.capability.__setitem__(number, value))


def without_avx() -> CpuinfoEntry:
    def change(entry: CpuinfoX86Entry) -> None:
        entry.capability[4] &= ~(1 << 26 | 1 << 27 | 1 << 28)
        entry.capability[9] = entry.capability[10] = entry.capability[11] = 0
        entry.xfeatures_mask = entry.xsave_size = entry.xsave_size_max = None

    return changed(change)


SAME = CpuinfoEntry(x86_entry=[EPYC])


@pytest.mark.parametrize("caps", range(8))
def test_same_cpu(caps: int) -> None:
    assert lacking(SAME, SAME, caps) == different(SAME, SAME) == []


def test_instructions() -> None:
    theirs = with_word(18, 0x10 | FMAPS)
    assert lacking(theirs, SAME, INS) == ["avx512_4fmaps instructions"]
    assert lacking(theirs, SAME, FPU) == []
    assert lacking(SAME, theirs, INS | FPU) == []
    assert lacking(SAME, theirs, CPU) == []
    assert different(SAME, theirs) == ["word 18 is 0x18, there 0x10"]
    missing = lacking(SAME, without_avx(), INS)
    assert {"avx instructions", "avx2 instructions", "avx512f instructions", "bmi1 instructions"} <= set(missing)


def test_extended_registers() -> None:
    assert lacking(SAME, without_avx(), FPU) == [
        "xsave", "osxsave", "xsaveopt", "xsavec", "xgetbv1",
        *(f"component {bit} of the extended registers" for bit in (0, 2, 5, 6, 7)),
        "room for 2432 bytes of extended registers",
    ]  # fmt: skip
    assert lacking(without_avx(), SAME, INS | FPU) == []  # more than it had will do
    assert surplus(without_avx().x86_entry[0], EPYC) == []  # it had no XSAVE
    less = changed(lambda entry: setattr(entry, "xfeatures_mask", 0x5)).x86_entry[0]
    assert surplus(less, EPYC) == [5, 6, 7]
    assert surplus(EPYC, less) == surplus(EPYC, EPYC) == []
    keys = changed(lambda entry: setattr(entry, "xfeatures_mask", 0xE5 | 1 << 9)).x86_entry[0]
    assert surplus(EPYC, keys) == []  # protection keys are not among what is saved
    larger = changed(lambda entry: setattr(entry, "xsave_size", 2696))
    assert lacking(SAME, larger, FPU) == []
    assert lacking(larger, SAME, FPU) == ["room for 2696 bytes of extended registers"]
    assert different(SAME, larger) == ["xsave_size is 2696, there 2432"]


def test_the_makers_name_does_not_count() -> None:
    for field, value in (("vendor_id", 1), ("cpu_family", 6), ("model", 1), ("stepping", 0), ("model_id", None)):
        other = changed(lambda entry, field=field, value=value: setattr(entry, field, value))  # type: ignore[misc]
        assert lacking(SAME, other, INS | FPU) == different(SAME, other) == []
    assert lacking(with_word(3, 1), SAME, INS | FPU) == different(with_word(3, 1), SAME) == []  # what Linux makes up


@pytest.mark.parametrize(
    "theirs",
    [
        changed(lambda entry: setattr(entry, "capability_ver", 3)),
        changed(lambda entry: setattr(entry, "capability", entry.capability[:12])),
        CpuinfoEntry(x86_entry=[EPYC, EPYC]),
        CpuinfoEntry(),
    ],
    ids=["version", "words", "two", "none"],
)
def test_mangled(theirs: CpuinfoEntry) -> None:
    with pytest.raises(ImageError):
        lacking(theirs, SAME, INS)


def test_other_architectures() -> None:
    power = CpuinfoEntry(ppc64_entry=[CpuinfoPpc64Entry(endian=1, hwcap=[0b11, 0b100])])
    less = CpuinfoEntry(ppc64_entry=[CpuinfoPpc64Entry(endian=1, hwcap=[0b01])])
    big = CpuinfoEntry(ppc64_entry=[CpuinfoPpc64Entry(endian=0, hwcap=[0b11, 0b100])])
    mainframe = CpuinfoEntry(s390_entry=[CpuinfoS390Entry(hwcap=[0b11])])
    assert lacking(power, less, INS) == ["the feature true_le", "the feature bit 2 of AT_HWCAP2"]
    assert lacking(less, power, INS | FPU) == []
    assert different(less, power) == ["AT_HWCAP is 0x3, there 0x1", "AT_HWCAP2 is 0x4, there 0x0"]
    assert lacking(mainframe, mainframe, INS | FPU) == different(mainframe, mainframe) == []
    for theirs, ours in ((power, SAME), (SAME, power), (mainframe, power), (big, power)):
        with pytest.raises(Refusal) as error:
            lacking(theirs, ours, INS)
        assert error.value.code == "foreign-architecture"


def test_arm() -> None:
    """CRIU's image has nothing for ARM: torpor-cpu.img has."""
    sve, aes, sve2 = 1 << 22, 1 << 3, 1 << 1
    large = TorporCpuEntry(machine="aarch64", hwcap=[3 | aes | sve, sve2, 0, 0])
    small = TorporCpuEntry(machine="aarch64", hwcap=[3 | aes, 0])  # of an older kernel, which had fewer words
    assert lacking(large, small, INS | FPU) == ["the feature sve", "the feature sve2"]
    assert lacking(small, large, INS | FPU) == []
    assert lacking(large, large, INS | FPU) == different(large, large) == []
    assert different(small, large) == [
        f"AT_HWCAP is {3 | aes | sve:#x}, there {3 | aes:#x}",
        "AT_HWCAP2 is 0x2, there 0x0",
    ]
    for theirs, ours in ((TorporCpuEntry(machine="armv7l", hwcap=[1]), small), (SAME, small), (small, SAME)):
        with pytest.raises(Refusal) as error:
            lacking(theirs, ours, INS)
        assert error.value.code == "foreign-architecture"


def test_instructions_that_the_kernel_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUID tells of FSGSBASE also where the kernel's command line has nofsgsbase, and they end a program by SIGILL."""
    allowed, forbidden = (TorporCpuEntry(machine="x86_64", hwcap=[0, word]) for word in (2, 0))
    older = TorporCpuEntry(machine="x86_64")
    assert lacking(allowed, forbidden, INS) == ["the feature fsgsbase"]
    assert lacking(allowed, forbidden, FPU) == lacking(forbidden, allowed, INS) == lacking(older, allowed, INS) == []
    assert different(allowed, forbidden) == ["AT_HWCAP2 is 0x0, there 0x2"]
    assert different(older, allowed) == []
    monkeypatch.setattr(cpuinfo, "record", lambda: [forbidden])
    (problem,) = cpuinfo.problems([allowed], INS)
    assert "under a kernel that allows it (started without nofsgsbase)" in problem.remedy
    monkeypatch.undo()
    if X86:
        (own,) = [one for one in cpuinfo.record() if isinstance(one, TorporCpuEntry)]
        assert own.hwcap == [0, cpuinfo.hwcaps()[1]]


A72, MAX, A64FX = 0x8444C004, 0x9444C004, 0x86668006  # CTR_EL0 of QEMU's
DIC = 1 << 29


@pytest.mark.parametrize(
    "theirs,ours,missing",
    [
        (A72, A72, ()), (A72, MAX, ()), (A72, A64FX, ()), (0, A72, ()), (A72, 0, ()), (MAX | DIC, MAX | DIC, ()),
        (A64FX, MAX | DIC, ()),  # what is done for nothing does no harm
        (MAX, A72, ("data caches that need no care where code is written (CTR_EL0.IDC)",)),
        (MAX | DIC, MAX, ("instruction caches that need no care where code is written (CTR_EL0.DIC)",)),
        (A64FX, MAX, ("instruction caches with lines of 256 bytes, where code is written (they have 64)",)),
        (A64FX, A72, ("data caches with lines of 256 bytes, where code is written (they have 64)",
                      "instruction caches with lines of 256 bytes, where code is written (they have 64)")),
    ],
)  # fmt: skip
def test_code_that_a_program_writes(theirs: int, ours: int, missing: tuple[str, ...]) -> None:
    one, other = (TorporCpuEntry(machine="aarch64", cache_type=word or None) for word in (theirs, ours))
    assert tuple(lacking(one, other, INS)) == missing
    unlike = [f"CTR_EL0 is {ours:#x}, there {theirs:#x}"] if theirs and ours and theirs != ours else []
    assert different(one, other) == unlike


@pytest.mark.parametrize("machine,caps", [("x86_64", INS), ("s390x", INS), ("s390x", FPU), ("aarch64", FPU)])
def test_features_by_name(machine: str, caps: int) -> None:
    more = TorporCpuEntry(machine=machine, features=["facility 1", "facility 61"])
    less = TorporCpuEntry(machine=machine, features=["facility 1", "facility 2"])
    assert lacking(more, less, caps) == ["facility 61"]
    assert lacking(more, more, caps) == different(more, more) == []
    assert different(more, less) == ["facility 2 is here alone", "facility 61 is there alone"]


class _Cpuid:
    """A CPU's answers to CPUID: Sapphire Rapids' to the first two, the third made up."""

    def __init__(self, most: int) -> None:
        self.most = most

    def leaf(self, number: int, sub: int = 0) -> tuple[int, int, int, int]:
        answers = {(7, 0): (self.most, 0, 0, 0), (7, 1): (0x1C30, 0, 0, 1 << 19), (0x24, 0): (0, 2, 0, 0)}
        return answers.get((number, sub), (0, 0, 0, 0))


def test_instructions_beyond_the_words() -> None:
    cpu: Any = _Cpuid(1)
    assert cpu_features.x86_instructions(cpu) == ["avx_vnni", "avx512_bf16", "avx10.1", "avx10.2"]
    cpu = _Cpuid(0)  # the subleaf is not there, whatever is said of it
    assert cpu_features.x86_instructions(cpu) == []


@pytest.mark.parametrize(
    "module,field",
    [("aarch64", "hwcap"), ("arm", "hwcap"), ("ppc64le", "ppc64_entry"), ("s390x", "s390_entry")],
)
def test_recorded_in_the_image_of_its_architecture(module: str, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arch = import_module(f"torpor.arch.{module}").ARCH
    monkeypatch.setattr(cpuinfo, "native", lambda: arch)
    recorded = cpuinfo.record()
    assert getattr(recorded[0], field) and cpuinfo.kind() is cpuinfo.image_of(recorded[0])
    (own,) = [one for one in recorded if isinstance(one, TorporCpuEntry)]
    assert own.machine == arch.name
    assert arch.name in NAMES


@pytest.mark.parametrize(
    "arch,word,bits,expected",
    [
        ("aarch64", 0, 1 << 22 | 1 << 31, ["sve", "pacg"]), ("aarch64", 1, 1 << 17 | 1 << 23, ["bti", "sme"]),
        ("aarch64", 1, 1 << 63, ["poe"]), ("aarch64", 2, 1, ["bit 0 of AT_HWCAP3"]),
        ("armv7l", 0, 1 << 12, ["neon"]), ("armv7l", 1, 1 << 4, ["crc32"]),
        ("ppc64le", 0, 0x10000000 | 0x80, ["vsx", "altivec"]), ("ppc64le", 1, 0x800000 | 0x20000, ["mma", "arch_3_00"]),
        ("ppc64le", 1, 0x80000000, ["arch_2_07"]), ("ppc64le", 0, 4, ["bit 2 of AT_HWCAP"]),
        ("s390x", 0, 1 << 11 | 1 << 22, ["vx", "sie"]),
    ],
)  # fmt: skip
def test_names(arch: str, word: int, bits: int, expected: list[str]) -> None:
    assert names(arch, word, bits) == expected


@pytest.mark.parametrize(
    "words,caps",
    [
        ((), 5), (("all",), 7), (("none",), 0), (("ins",), 4), (("fpu,ins",), 5), (("all,^cpu",), 5), (("^ins",), 1),
        (("cpu", "fpu"), 3), (("all", "none"), 0), (("ins,none",), 0), (("none,ins",), 4), (("ins", "^none"), 4),
        (("^all",), 0), (("^cpu",), 5), (("^fpu",), 4),
    ],
)  # fmt: skip
def test_capabilities(words: tuple[str, ...], caps: int) -> None:
    assert cpuinfo.chosen(Options(cpu_cap=words), 5) == caps


def run(*words: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "torpor", *map(str, words)], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip


def write(directory: Path, entry: CpuinfoEntry) -> None:
    fd = os.open(directory, os.O_RDONLY)
    write_small(fd, kinds.CPUINFO, entry)
    os.close(fd)


def this_cpu(directory: Path) -> CpuinfoEntry:
    done = run("cpuinfo", "dump", "-D", directory)
    assert done.returncode == 0, done.stderr
    with ImageReader.open(str(directory)) as images:
        return copy.deepcopy(images.one(kinds.CPUINFO))


@pytest.mark.skipif(not X86, reason="x86's features")
def test_this_cpu(tmp_path: Path) -> None:
    """As /proc/cpuinfo has it, for what Linux does not hide."""
    (entry,) = this_cpu(tmp_path).x86_entry
    first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    assert (entry.cpu_family, entry.model) == (int(facts["cpu family"]), int(facts["model"]))
    assert entry.model_id == facts["model name"]
    flags = set(facts["flags"].split())
    names = dict(word.split()[::-1] for text in INSTRUCTIONS.values() for word in _pairs(text))
    shown = {name for name in _named(entry) if name in names}
    assert flags & names.keys() <= shown


def _pairs(text: str) -> list[str]:
    fields = text.split()
    return [f"{bit} {name}" for bit, name in zip(fields[::2], fields[1::2], strict=True)]


def _named(entry: CpuinfoX86Entry) -> set[str]:
    return set(cpu_compare._named(INSTRUCTIONS, entry.capability, [0] * len(entry.capability)))


@pytest.mark.skipif(not X86, reason="x86's features")
def test_check(tmp_path: Path) -> None:
    entry = this_cpu(tmp_path)
    assert (tmp_path / "cpuinfo.img").stat().st_mode & 0o777 == 0o600
    for caps, words in (
        ("=ins,fpu", "has all instructions and registers"), ("=fpu", "has all registers"), ("", "is the same"),
        ("=cpu", "is the same"), ("=none", "Nothing was compared"), ("=ins,none", "Nothing was compared"),
    ):  # fmt: skip
        done = run("cpuinfo", "check", "-D", tmp_path, f"--cpu-cap{caps}")
        assert done.returncode == 0 and words in done.stdout, done
    assert run("cpuinfo", "check", "-D", tmp_path).returncode == 0
    entry.x86_entry[0].capability[18] |= FMAPS
    write(tmp_path, entry)
    done = run("cpuinfo", "check", "-D", tmp_path, "--json")
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "cpu-feature" and "avx512_4fmaps" in error["why"]
    assert run("cpuinfo", "check", "-D", tmp_path, "--cpu-cap=fpu").returncode == 0
    (tmp_path / "options").write_text("cpu-cap ins\n")
    both = [run("cpuinfo", "check", "-D", tmp_path, "--config", tmp_path / "options", *more)
            for more in ([], ["--cpu-cap=none"])]  # fmt: skip
    assert [done.returncode for done in both] == [1, 0], both
    entry.x86_entry[0].capability[17] ^= 1 << 31
    write(tmp_path, entry)
    assert "it lacks avx512_4fmaps" in run("cpuinfo", "check", "-D", tmp_path, "--cpu-cap").stderr
    entry.x86_entry[0].capability[18] ^= FMAPS  # what no word of ours names is not lacking, but another
    write(tmp_path, entry)
    said = run("cpuinfo", "check", "-D", tmp_path, "--cpu-cap").stderr
    assert "it is not exactly the same: word 17 is" in said and "lacks" not in said
    os.truncate(tmp_path / "cpuinfo.img", 8)
    assert "cpuinfo.img is mangled: it has no entry" in run("cpuinfo", "check", "-D", tmp_path).stderr
    (tmp_path / "cpuinfo.img").unlink()
    assert "there is no cpuinfo.img" in run("cpuinfo", "check", "-D", tmp_path).stderr


def test_what_has_no_place_in_cpuinfo_img(tmp_path: Path) -> None:
    """It is in torpor-cpu.img; without that, CRIU's images say what there is to compare."""
    assert run("cpuinfo", "dump", "-D", tmp_path).returncode == 0
    with ImageReader.open(str(tmp_path)) as images:
        own = copy.deepcopy(images.one(kinds.TORPOR_CPU))
        own.features.append("facility 4711")
        write_small(images.dir_fd, kinds.TORPOR_CPU, own)
        assert "it lacks facility 4711" in run("cpuinfo", "check", "-D", tmp_path).stderr
        assert run("cpuinfo", "check", "-D", tmp_path, "--cpu-cap=none").returncode == 0
        if cpuinfo.kind() is kinds.CPUINFO:
            (tmp_path / "torpor-cpu.img").unlink()
            assert run("cpuinfo", "check", "-D", tmp_path).returncode == 0
            (tmp_path / "cpuinfo.img").unlink()
        own.machine = "another"
        write_small(images.dir_fd, kinds.TORPOR_CPU, own)
    done = run("cpuinfo", "check", "-D", tmp_path)
    assert done.returncode == 1 and "it is of another architecture (another)" in done.stderr, done


@pytest.mark.skipif(not X86, reason="x86's features")
def test_in_a_checkpoint(tmp_path: Path) -> None:
    """Written by dump --cpu-cap, required by restore --cpu-cap."""
    sleeper = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    try:
        assert run("dump", "-t", sleeper.pid, "-D", tmp_path, "-R").returncode == 0
        assert not (tmp_path / "cpuinfo.img").exists()
        assert run("dump", "-t", sleeper.pid, "-D", tmp_path, "--cpu-cap").returncode == 0
        sleeper.wait()
    finally:
        sleeper.kill()
        sleeper.wait()
    assert run("check", "-D", tmp_path, "--cpu-cap").returncode == 0
    entry = this_cpu(tmp_path)
    entry.x86_entry[0].capability[18] |= FMAPS
    write(tmp_path, entry)
    assert run("check", "-D", tmp_path).returncode == 0
    assert run("check", "-D", tmp_path, "--cpu-cap=none").returncode == 0
    done = run("restore", "-d", "-D", tmp_path, "--cpu-cap=ins")
    assert done.returncode == 1 and "avx512_4fmaps" in done.stderr
    (tmp_path / "cpuinfo.img").unlink()
    assert run("check", "-D", tmp_path, "--cpu-cap=fpu").returncode == 0
    assert "cpuinfo.img is missing" in run("restore", "-d", "-D", tmp_path, "--cpu-cap").stderr


@pytest.mark.skipif(not X86, reason="x86's features")
def test_a_directory_that_takes_turns(tmp_path: Path) -> None:
    """What is written down there is of the last checkpoint's CPU, whoever wrote it; or it is gone."""
    entry = this_cpu(tmp_path)
    another = copy.deepcopy(entry)
    another.x86_entry[0].capability[18] |= FMAPS
    write(tmp_path, another)
    sleeper = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    try:
        assert run("dump", "-t", sleeper.pid, "-D", tmp_path, "-R").returncode == 0
        with ImageReader.open(str(tmp_path)) as images:
            assert images.one(kinds.CPUINFO) == entry
        assert (tmp_path / "torpor-cpu.img").exists()
        (tmp_path / "cpuinfo.img").unlink()
        assert run("dump", "-t", sleeper.pid, "-D", tmp_path, "-R").returncode == 0
        assert (tmp_path / "cpuinfo.img").exists()
        assert run("dump", "-t", sleeper.pid, "-D", tmp_path, "-R", "--cpu-cap=none").returncode == 0
        assert not (tmp_path / "cpuinfo.img").exists() and not (tmp_path / "torpor-cpu.img").exists()
    finally:
        sleeper.kill()
        sleeper.wait()


@pytest.mark.skipif(not X86, reason="CRIU is set up for x86_64")
def test_criu_agrees(tmp_path: Path) -> None:
    criu, why = peer.criu()
    if criu is None:
        pytest.skip(why)
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    assert subprocess.run([criu, "cpuinfo", "dump", "-D", theirs], capture_output=True).returncode == 0
    this_cpu(ours)
    for directory in (theirs, ours):
        assert run("cpuinfo", "check", "-D", directory).returncode == 0
        assert subprocess.run([criu, "cpuinfo", "check", "-D", directory], capture_output=True).returncode == 0
    entry = this_cpu(ours)
    entry.x86_entry[0].capability[18] ^= FMAPS  # one instruction more
    write(ours, entry)
    for caps, status in (("", 1), ("=^ins", 0), ("=^fpu", 1), ("=^fpu,^ins", 0)):
        words = ["cpuinfo", "check", "-D", ours, *([f"--cpu-cap{caps}"] if caps else [])]
        assert run(*words).returncode == status, words
        if caps != "=^fpu,^ins":  # CRIU compares all where nothing is left
            assert subprocess.run([criu, *words], capture_output=True).returncode == status, words
