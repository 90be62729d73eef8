# SPDX-License-Identifier: Apache-2.0
"""The table of options."""

import sys
from pathlib import Path

import pytest

import torpor
from torpor.errors import Refusal, UsageError
from torpor.options import DEFAULTS, TABLE, Options

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))


def test_every_option_is_typed_and_has_its_default() -> None:
    options = Options()
    assert set(Options.__annotations__) >= set(DEFAULTS)
    for name, default in DEFAULTS.items():
        assert getattr(options, name) == default
    assert not options.given


def test_every_option_has_one_fate() -> None:
    for option in TABLE.values():
        assert not (option.ignored and option.refused), option.name
        assert option.verbs or option.refused, option.name


def test_implemented_options_are_read_somewhere() -> None:
    """An option that the table calls implemented but no code looks at would be ignored silently."""
    here = ("options.py", "getopt.py", "keywords.py")
    source = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py") if path.name not in here)
    source += (ROOT / "src/torpor/getopt.py").read_text().partition("def parse")[2].replace("-", "_")
    aliases = {"daemon": "restore_detached", "log_file": "log_path"}
    for option in TABLE.values():
        if not option.ignored and not option.refused:
            name = aliases.get(option.attribute, option.attribute)
            assert f".{name}" in source or f'"{name}"' in source, f"nobody reads options.{name}"


def test_keywords_are_those_of_the_table() -> None:
    import keywords

    assert keywords.TARGET.read_text() == keywords.render(), "run tools/keywords.py"


@pytest.mark.parametrize(
    ("given", "meant"), [("10", 10), ("10K", 10 << 10), ("3m", 3 << 20), ("1G", 1 << 30), ("0", 0), (5, 5)]
)
def test_sizes(given: object, meant: int) -> None:
    assert Options(ghost_limit=given).ghost_limit == meant


@pytest.mark.parametrize("given", ["  5", "5 ", " 5\n", 5])
def test_a_pid_as_other_programs_print_it(given: object) -> None:
    """`-t "$(ps -o pid= -C redis-server)"`: CRIU takes that."""
    assert Options(tree=given).tree == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ghost_limit", "10T"),
        ("ghost_limit", "1.5M"),
        ("ghost_limit", -1),
        ("tree", 0),
        ("tree", True),
        ("tree", "12x"),
        ("timeout", "x"),
        ("leave_running", "yes"),
        ("manage_cgroups", "Soft"),
        ("images_dir", 5),
        ("images_dir", "a\0b"),
        ("nonsense", 1),
    ],
)
def test_wrong_values_are_named(name: str, value: object) -> None:
    with pytest.raises(UsageError) as caught:
        Options(**{name: value})
    assert name in str(caught.value)


def test_refused_where_it_matters_only() -> None:
    with pytest.raises(Refusal) as caught:
        Options(tree=5, track_mem=True).settle("dump")
    assert caught.value.code == "not-implemented"
    assert caught.value.remedy
    assert Options(track_mem=True).settle("restore") == ["the argument track_mem has no effect on restore"]
    assert Options(track_mem=False, tree=5).settle("dump") == []


def test_what_has_no_effect_is_named() -> None:
    (note,) = Options(libdir="/usr/lib/criu").settle("restore")
    assert "plugins" in note


def test_the_library_checks_before_it_starts(tmp_path: Path) -> None:
    with pytest.raises(torpor.UsageError):
        torpor.dump(0, tmp_path)
    with pytest.raises(torpor.Refusal):
        torpor.restore(tmp_path, root="/elsewhere")
    with pytest.raises(torpor.UsageError):
        torpor.check(pid=1, images=tmp_path)  # type: ignore[call-overload]
    assert not list(tmp_path.iterdir())


def test_functions_stay_functions() -> None:
    import torpor.check
    import torpor.dump

    assert callable(torpor.dump)
    assert callable(torpor.check)
