# SPDX-License-Identifier: Apache-2.0
"""The command finds its modules by itself: they must be those that Python would find, and never stale ones."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import SOURCE

FACTS = """
import sys
{before}
import torpor.kernel.maps, torpor.images.schema.core, torpor.cli.say
for name in ("torpor.kernel", "torpor.kernel.maps", "torpor.images.schema.core", "torpor.cli.say"):
    module = sys.modules[name]
    spec = module.__spec__
    print(name, module.__file__, module.__cached__, module.__package__, getattr(module, "__path__", None),
          spec.origin, spec.cached, spec.has_location, spec.submodule_search_locations,
          spec.loader.get_filename(name), spec.loader.is_package(name), len(spec.loader.get_source(name)))
print(type(sys.modules["torpor.kernel.maps"].__loader__).__module__, file=sys.stderr)
"""


def python(code: str, source: Path = SOURCE, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *flags, "-c", f"import sys; sys.path.insert(0, {str(source)!r})\n{code}"],
        capture_output=True, text=True, cwd="/", stdin=subprocess.DEVNULL, check=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
    )  # fmt: skip


def test_modules_are_as_python_makes_them() -> None:
    ours = python(FACTS.format(before="import torpor.cli"))
    pythons = python(FACTS.format(before="import torpor.finder; torpor.finder.install = lambda: None"))
    assert ours.stderr.strip() == "torpor.finder"
    assert pythons.stderr.strip() == "_frozen_importlib_external"
    assert ours.stdout == pythons.stdout


def test_a_library_leaves_importing_alone() -> None:
    before = "import torpor; torpor.Options; import torpor.dump, torpor.restore, torpor.infect"
    done = python(before + "; print([finder for finder in sys.meta_path if 'torpor' in repr(finder)])")
    assert done.stdout == "[]\n"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package, without byte code."""
    shutil.copytree(SOURCE / "torpor", tmp_path / "torpor", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def interval(copy: Path) -> str:
    return python("import torpor.cli, torpor.progress; print(torpor.progress.INTERVAL)", copy).stdout.strip()


def test_byte_code_is_written_and_used(copy: Path) -> None:
    """Byte code that is there is taken: here one that was made of another source, of the same time and size."""
    module = copy / "torpor/progress.py"
    text, times = module.read_text(), (module.stat().st_atime, module.stat().st_mtime)
    module.write_text(text.replace("INTERVAL = 0.2 ", "INTERVAL = 0.7 "))
    os.utime(module, times)
    assert interval(copy) == "0.7"
    module.write_text(text)
    os.utime(module, times)
    assert interval(copy) == "0.7"


@pytest.mark.parametrize("change", ["time", "size", "cut", "magic", "gone"])
def test_stale_byte_code_is_not_used(copy: Path, change: str) -> None:
    module = copy / "torpor/progress.py"
    text, times = module.read_text(), (module.stat().st_atime, module.stat().st_mtime)
    assert interval(copy) == "0.2"
    (cached,) = (copy / "torpor/__pycache__").glob("progress.*.pyc")
    if change in ("time", "size"):
        module.write_text(text.replace("INTERVAL = 0.2 ", "INTERVAL = 0.75" if change == "size" else "INTERVAL = 0.7 "))
        if change == "size":
            module.write_text(module.read_text() + "\n")
            os.utime(module, times)
        else:
            os.utime(module, (times[0], times[1] + 2))
        assert interval(copy) == ("0.75" if change == "size" else "0.7")
        return
    data = cached.read_bytes()
    cached.write_bytes(data[:10] if change == "cut" else bytes(4) + data[4:] if change == "magic" else data)
    if change == "gone":
        cached.unlink()
    assert interval(copy) == "0.2"


def test_byte_code_checked_by_a_hash_is_python_business(copy: Path) -> None:
    command = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", str(copy)]
    subprocess.run(command, check=True)
    module = copy / "torpor/progress.py"
    times = (module.stat().st_atime, module.stat().st_mtime)
    module.write_text(module.read_text().replace("INTERVAL = 0.2 ", "INTERVAL = 0.7 "))
    os.utime(module, times)
    assert interval(copy) == "0.7"


def test_other_ways_of_python_are_respected(copy: Path) -> None:
    """-O has byte code of its own, -X pycache_prefix another place for it."""
    code = "import torpor.cli; print(any('torpor' in repr(finder) for finder in sys.meta_path))"
    assert python(code, copy, "-O").stdout == "False\n"
    assert python(code, copy, "-X", f"pycache_prefix={copy}/elsewhere").stdout == "False\n"
    assert python(code, copy).stdout == "True\n"
