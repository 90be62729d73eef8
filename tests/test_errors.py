# SPDX-License-Identifier: Apache-2.0
"""What errors say: every one about images also says what to do about it."""

import ast
import errno
import pickle
import shutil
import subprocess
from pathlib import Path

import pytest

import torpor
from torpor.errors import ImageError, TorporError, exhausted

SOURCE = Path(__file__).resolve().parents[1] / "src/torpor"


def test_image_errors_have_a_remedy() -> None:
    assert "with every file in it" in str(ImageError("pages-1.img is missing", code="missing-image"))
    assert "copy the whole directory again" in ImageError("mm-1.img is mangled", "it ends early").remedy
    assert ImageError("a", "b", "do this").remedy == "do this"
    assert "another dump" in ImageError("a", code="some-other-code").remedy


def test_names_do_nothing_to_a_terminal() -> None:
    error = TorporError("fd 3 (/tmp/a\nb\x1b[2J\udcff é)", "why\r", "remedy")
    assert str(error) == r"fd 3 (/tmp/a\nb\x1b[2J\xff é): why\r; remedy".replace(r"\n", r"\x0a").replace(r"\r", r"\x0d")
    assert error.what.count("\n") == 1  # programs get what there is


def test_they_cross_from_the_engine() -> None:
    error = ImageError("pages-1.img is missing", code="missing-image")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.code, again.remedy) == (str(error), error.code, error.remedy)


def test_what_a_process_may_have_no_more_of() -> None:
    for error, code in (
        (MemoryError(), "no-memory"),
        (OSError(errno.ENOMEM, "x"), "no-memory"),
        (OSError(errno.EMFILE, "x"), "no-descriptors"),
        (OSError(errno.ENFILE, "x"), "no-descriptors"),
    ):
        told = exhausted(error)
        assert told is not None and told.code == code and told.remedy
    assert exhausted(OSError(errno.ENOENT, "x")) is None and exhausted(ValueError()) is None


def test_every_refusal_in_restores_has_a_remedy_or_says_not_yet() -> None:
    """Errors about images that are no ImageError: read from the source."""
    silent = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "RestoreFailed":
                given = len(node.args) + sum(word.arg == "remedy" for word in node.keywords)
                if given < 2:
                    silent.append(f"{path.relative_to(SOURCE)}:{node.lineno}")
    assert not silent, "neither why nor what to do"


@pytest.mark.parametrize("name", ["pages-1.img", "mm-{pid}.img", "core-{pid}.img", "pstree.img", "fs-{pid}.img"])
def test_a_missing_image(tmp_path: Path, name: str) -> None:
    victim = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        torpor.dump(victim.pid, tmp_path)
    finally:
        victim.kill()
        victim.wait()
    (tmp_path / name.format(pid=victim.pid)).unlink()
    with pytest.raises(TorporError) as failure:
        torpor.restore(tmp_path)
    said = str(failure.value)
    assert name.format(pid=victim.pid) in said and failure.value.remedy, said
    shutil.rmtree(tmp_path)
