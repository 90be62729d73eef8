# SPDX-License-Identifier: Apache-2.0
"""Command lines and configuration files, spelled in every way that CRIU takes."""

from pathlib import Path

import pytest

from torpor.errors import UsageError
from torpor.getopt import parse, split_line
from torpor.options import Options


def options(*argv: str, **environment: str) -> Options:
    return parse(list(argv), environment).options


@pytest.mark.parametrize("argv", ["-t 5", "-t5", "--tree 5", "--tree=5", "--tre 5", "-Rt5"])
def test_spellings(argv: str) -> None:
    command = parse(["dump", *argv.split(), "-D", "x"], {})
    assert (command.options.tree, command.options.images_dir, command.words) == (5, "x", ["dump"])


def test_words_stand_anywhere() -> None:
    assert parse(["-R", "dump", "-t", "5", "--", "-x"], {}).words == ["dump", "-x"]
    assert parse(["-", "dump"], {}).words == ["-", "dump"]


@pytest.mark.parametrize(
    ("argv", "level"),
    [
        ("", 2),
        ("-v", 3),
        ("-vv", 4),
        ("-vvv", 5),
        ("-v -v", 4),
        ("-v0", 0),
        ("-v4", 4),
        ("-v3 -v", 4),
        ("-v -v1", 1),
        ("--verbosity", 3),
        ("--verbosity=1", 1),
        ("-jv", 3),
    ],
)
def test_verbosity(argv: str, level: int) -> None:
    assert options(*argv.split()).verbosity == level


def test_optional_values_are_attached() -> None:
    command = parse(["--manage-cgroups", "ignore"], {})
    assert (command.options.manage_cgroups, command.words) == ("soft", ["ignore"])
    assert options("--manage-cgroups=ignore").manage_cgroups == "ignore"
    assert options("-x123", "-x").ext_unix_sk == ("123", "")


def test_negation_and_order() -> None:
    assert not options("--shell-job", "--no-shell-job").shell_job
    assert options("--no-shell-job", "-j").shell_job
    assert options("--daemon").restore_detached
    made = options("-R", "-s")
    assert (made.leave_running, made.leave_stopped) == (False, True)
    assert "-R has no effect: -s came after it" in options("-R", "-s", "-t1").settle("dump")
    made = options("-s", "-R", "-s", "-R", "-t1")
    assert (made.leave_running, made.leave_stopped) == (True, False)
    assert made.settle("dump") == ["-s has no effect: -R came after it", "-R has no effect: -s came after it",
                                   "-s has no effect: -R came after it"]  # fmt: skip


def test_a_library_gives_no_order() -> None:
    with pytest.raises(
        UsageError, match="leave_running and the argument leave_stopped contradict each other; give one"
    ):
        Options(leave_running=True, leave_stopped=True)
    assert Options(leave_running=False, leave_stopped=True).leave_stopped


@pytest.mark.parametrize(
    "argv",
    ["--le", "--nonsense", "-Z", "-t", "--tree", "--leave-running=1", "--no-leave-running", "-va", "--js", "-t 0"],
)
def test_wrong_spellings(argv: str) -> None:
    with pytest.raises(UsageError):
        options(*argv.split())


def test_our_own_options_do_not_spoil_abbreviations() -> None:
    assert options("--j", "net:1").join_ns == ("net:1",)
    assert options("--json").json


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("# all", []),
        ("  shell-job  ", ["shell-job"]),
        ("tree 5 # five", ["tree", "5"]),
        ("log-file x#y", ["log-file", "x"]),
        (r'log-file "a b\"c"', ["log-file", 'a b"c']),
        ('log-file ""', ["log-file", ""]),
        ("log-file a\\ b", ["log-file", "a\\", "b"]),
    ],
)
def test_lines(line: str, words: list[str]) -> None:
    assert split_line(line, "here") == words


@pytest.mark.parametrize("line", ['log-file "x', 'log-file a"b', "nonsense", "--tree 5", "log-file", "v 3", "tree x"])
def test_wrong_lines(line: str, tmp_path: Path) -> None:
    path = tmp_path / "conf"
    path.write_text(f"# first\n{line}\n")
    with pytest.raises(UsageError) as caught:
        options("--config", str(path))
    assert f"line 2 of {path}" in str(caught.value)


def test_files_and_their_order(tmp_path: Path) -> None:
    home, named, given = tmp_path / ".criu/default.conf", tmp_path / "named", tmp_path / "given"
    home.parent.mkdir()
    home.write_text("verbosity=1\ntimeout 1\nghost-limit 1\nshell-job yes")
    named.write_text("timeout 2\nghost-limit 2\nconfig nowhere")
    given.write_text("ghost-limit 3\nno-shell-job\nmanage-cgroups ignore")
    where = {"HOME": str(tmp_path), "CRIU_CONFIG_FILE": str(named)}

    def numbers(*argv: str) -> tuple[int, int, int]:
        made = options(*argv, **where)
        return made.verbosity, made.timeout, made.ghost_limit

    assert numbers() == (1, 2, 2)
    assert numbers("-v4", "--timeout", "9") == (4, 9, 2)
    assert numbers("--no-default-config") == (2, 2, 2)
    assert numbers("--config", str(given)) == (2, 2, 3)
    assert numbers("--config", str(home), "--config", str(given)) == (2, 2, 3)
    assert numbers("--config", str(tmp_path / "missing")) == (2, 2, 2)
    assert options("--config", str(given), **where).manage_cgroups == "ignore"
    assert parse(["--config", str(given)], where).files == [str(named), str(given)]
