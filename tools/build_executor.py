# SPDX-License-Identifier: Apache-2.0
"""Builds the executor, src/torpor/arch/executor.c, into one blob an architecture: src/torpor/arch/blobs/ARCH.bin.

    python tools/build_executor.py             this machine's (what a checkout needs)
    python tools/build_executor.py --all       all five (what a released wheel holds)
    python tools/build_executor.py ARCH...     those

Compilers: gcc for the machine itself, Debian's cross compilers for the others, or, where these are missing, the
``ziglang`` package from PyPI.  What comes out is checked: it does the same wherever it lies (it is linked for two
addresses, and must be the same bytes), it has no data of its own, and it is shorter than a kibibyte.  So it can be
copied into a task as it is.
"""

import argparse
import importlib.util
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src/torpor/arch/executor.c"
BLOBS = ROOT / "src/torpor/arch/blobs"
LIMIT = 1024

# Only general registers may be used: the victim's floating-point and vector registers are still live.
_FLAGS = (  # noqa: SIM905
    "-std=gnu11 -Os -Wall -Wextra -Werror -ffreestanding -fPIC -fomit-frame-pointer -fno-builtin -fno-stack-protector"
    " -fno-asynchronous-unwind-tables -fno-unwind-tables -fno-tree-vectorize -fno-jump-tables"
).split()


class Toolchain(NamedTuple):
    """How one architecture's code is compiled.  `triplet` names Debian's compiler, `zig` and `emulation` zig's."""

    triplet: str
    package: str
    flags: tuple[str, ...]
    zig: str
    zig_flags: tuple[str, ...]
    emulation: str


ARCHES: dict[str, Toolchain] = {
    "x86_64": Toolchain(
        "x86_64-linux-gnu", "gcc-x86-64-linux-gnu", ("-mgeneral-regs-only", "-fcf-protection=none"),
        "x86_64-linux-gnu", ("-mgeneral-regs-only", "-fcf-protection=none"), "elf_x86_64",
    ),
    "aarch64": Toolchain(
        "aarch64-linux-gnu", "gcc-aarch64-linux-gnu", ("-mgeneral-regs-only", "-mbranch-protection=none"),
        "aarch64-linux-gnu", ("-mgeneral-regs-only", "-mbranch-protection=none"), "aarch64linux",
    ),
    "armv7l": Toolchain(
        "arm-linux-gnueabihf", "gcc-arm-linux-gnueabihf", ("-march=armv7-a+fp", "-marm", "-mgeneral-regs-only"),
        "arm-linux-gnueabihf", ("-marm",), "armelf_linux_eabi",
    ),
    "ppc64le": Toolchain(
        "powerpc64le-linux-gnu", "gcc-powerpc64le-linux-gnu",
        ("-O2", "-mcpu=power8", "-mno-vsx", "-mno-altivec", "-msoft-float"),
        "powerpc64le-linux-gnu", ("-mcpu=pwr8-altivec-vsx-power8_vector-direct_move-crypto",), "elf64lppc",
    ),
    "s390x": Toolchain(
        "s390x-linux-gnu", "gcc-s390x-linux-gnu", ("-march=z10", "-msoft-float"),
        "s390x-linux-gnu", ("-mcpu=z10", "-msoft-float"), "elf64_s390",
    ),
}  # fmt: skip
ALIASES = {"armv8l": "armv7l", "arm": "armv7l"}


class BuildError(Exception):
    """No compiler, or the code does not meet what an executor must be; the text says which and what to do."""


def _run(*command: str, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def _script(path: Path, base: int) -> str:
    path.write_text(f"SECTIONS {{ . = {base:#x}; .text : {{ *(.text.start) *(.text*) }} }}\n")
    return str(path)


def _link_gcc(compiler: str, flags: tuple[str, ...], scratch: Path, base: int) -> Path:
    out = scratch / f"{base:x}.elf"
    script = _script(scratch / "script", base)
    link = ("-nostdlib", "-static", "-no-pie", "-Wl,-T," + script, "-Wl,--build-id=none", "-Wl,-e,_start")
    _run(compiler, *_FLAGS, *flags, *link, "-o", str(out), str(SOURCE))
    return out


def _link_zig(zig: list[str], tools: Toolchain, scratch: Path, base: int) -> Path:
    # Not linked by "zig cc": that brings compiler-rt along.
    out, unit = scratch / f"{base:x}.elf", scratch / "executor.o"
    script = _script(scratch / "script", base)
    env = {"ZIG_GLOBAL_CACHE_DIR": str(scratch / "cache"), **os.environ}
    extra = ("-fno-sanitize=all", "-target", tools.zig, *tools.zig_flags)
    _run(*zig, "cc", *_FLAGS, *extra, "-c", "-o", str(unit), str(SOURCE), env=env)
    link = ("-m", tools.emulation, "-static", "-T", script, "-e", "_start", "-o", str(out))
    _run(*zig, "ld.lld", *link, str(unit), env=env)
    return out


def _text(path: Path) -> bytes:
    """The code of a linked file, which must be all that it would load."""
    data = path.read_bytes()
    order = "<" if data[5] == 1 else ">"
    wide = data[4] == 2
    at, count, strings = struct.unpack_from(order + ("40xQ10xHHH" if wide else "32xI10xHHH"), data)[0], 0, 0
    size, count, strings = struct.unpack_from(order + "HHH", data, 58 if wide else 46)
    sections = [struct.unpack_from(order + ("IIQQQQ" if wide else "IIIIII"), data, at + size * i) for i in range(count)]
    names = sections[strings][4]
    text = b""
    for name, kind, flags, _address, offset, length in sections:
        called = data[names + name : data.index(b"\0", names + name)].decode()
        if called == ".text":
            text = data[offset : offset + length]
        elif flags & 2 and length and not called.startswith((".note", ".ARM.exidx")):
            raise BuildError(f"the executor has {length} bytes of {called} (type {kind}); it may have only code")
    return text


def native() -> str:
    """The architecture that this machine's kernel runs."""
    machine = os.uname().machine
    return ALIASES.get(machine, machine)


def _zig() -> list[str] | None:
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang"]
    found = shutil.which("zig")
    return [found] if found else None


def build(arch: str, compiler: str = "") -> bytes:
    """The executor's code for `arch`; `compiler` is "gcc", "zig", or empty for the first of these that is there."""
    if arch not in ARCHES:
        raise BuildError(f"no architecture {arch}; there are {', '.join(ARCHES)}")
    tools = ARCHES[arch]
    names = [tools.triplet + "-gcc", *((os.environ.get("CC", "cc"), "gcc") if arch == native() else ())]
    gcc = next((path for path in map(shutil.which, reversed(names)) if path), None)
    zig = _zig()
    if compiler == "zig":
        gcc = None
    elif compiler == "gcc":
        zig = None
    if not gcc and not zig:
        package = "gcc" if arch == native() else tools.package
        raise BuildError(
            f"no compiler for {arch}; install one with: apt-get install --no-install-recommends {package}"
            " (or: pip install ziglang)"
        )
    with tempfile.TemporaryDirectory(prefix="torpor-executor-") as directory:
        scratch = Path(directory)
        code = []
        for base in (0, 0x1234000):
            out = _link_gcc(gcc, tools.flags, scratch, base) if gcc else _link_zig(zig or [], tools, scratch, base)
            code.append(_text(out))
    if code[0] != code[1]:
        raise BuildError(f"the executor for {arch} depends on the address it is linked for")
    if not 64 <= len(code[0]) < LIMIT:
        raise BuildError(f"the executor for {arch} has {len(code[0])} bytes; it should have less than {LIMIT}")
    return code[0]


def install(arch: str, compiler: str = "") -> Path:
    """Build the blob of `arch` and put it where the package looks for it."""
    blob = build(arch, compiler)
    BLOBS.mkdir(exist_ok=True)
    path = BLOBS / f"{arch}.bin"
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_bytes(blob)
    partial.replace(path)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description="Build Torpor's executor.")
    parser.add_argument("arches", nargs="*", metavar="ARCH", help=f"{', '.join(ARCHES)} (default: this machine's)")
    parser.add_argument("--all", action="store_true", help="all architectures")
    parser.add_argument("--compiler", choices=("gcc", "zig"), default="", help="default: gcc, else zig")
    options = parser.parse_args()
    failed = 0
    for arch in list(ARCHES) if options.all else options.arches or [native()]:
        try:
            path = install(ALIASES.get(arch, arch), options.compiler)
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")
        except BuildError as error:
            sys.stderr.write(f"{arch}: {error}\n")
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
