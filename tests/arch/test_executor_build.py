# SPDX-License-Identifier: Apache-2.0
"""The executor builds for every architecture that this machine has a compiler for, and its checks do check."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

_TOOL = Path(__file__).parents[2] / "tools/build_executor.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_executor", _TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build_executor = _load()


@pytest.mark.parametrize("arch", build_executor.ARCHES)
def test_builds(arch: str) -> None:
    tools = build_executor.ARCHES[arch]
    if arch != build_executor.native() and not shutil.which(tools.triplet + "-gcc"):
        pytest.skip(f"no compiler for {arch}: tools/setup vm installs it ({tools.package})")
    blob = build_executor.build(arch, "gcc")
    assert 64 <= len(blob) < build_executor.LIMIT


@pytest.mark.parametrize(
    ("addition", "complaint"),
    [
        ("word counter; word *volatile where = &counter;", "may have only code"),
        ('word filler(word x) { __asm__(".fill 2048,1,0"); return x; }', "should have less"),
        ('__asm__(".text\\n.quad _start\\n");', "depends on the address"),
    ],
)
def test_bad_code_is_refused(addition: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "executor.c"
    source.write_text(build_executor.SOURCE.read_text() + "\n" + addition + "\n")
    monkeypatch.setattr(build_executor, "SOURCE", source)
    with pytest.raises(build_executor.BuildError, match=complaint):
        build_executor.build(build_executor.native(), "gcc")


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_executor.shutil, "which", lambda name: None)
    monkeypatch.setattr(build_executor, "_zig", lambda: None)
    with pytest.raises(build_executor.BuildError, match="gcc-s390x-linux-gnu"):
        build_executor.build("s390x")
