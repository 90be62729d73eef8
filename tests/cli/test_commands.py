# SPDX-License-Identifier: Apache-2.0
"""The command from outside: sentences, exit statuses, logs, JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from torpor.cli.__main__ import REFUSED, VERBS
from torpor.options import TABLE

from .conftest import SOURCE, Run

NOBODY = "4194304"  # PIDs end below it


def test_help(torpor: Run) -> None:
    for argv in (["--help"], ["-h"], *([verb, "--help"] for verb in VERBS)):
        done = torpor(*argv)
        assert done.returncode == 0
        assert (
            f"torpor {argv[0] if argv[0] in ('dump', 'restore', 'check', 'show', 'cpuinfo') else 'dump -t PID'}"
            in done.stdout
        )
        assert not done.stderr
        assert max(map(len, done.stdout.splitlines())) <= 120


def test_help_names_every_option_of_the_verb(torpor: Run) -> None:
    text = torpor("dump", "--help").stdout
    for option in TABLE.values():
        if "dump" in option.verbs:
            assert option.name in text


def test_version(torpor: Run, tmp_path: Path) -> None:
    import tomllib

    project = tomllib.loads((SOURCE.parent / "pyproject.toml").read_text())["project"]
    assert torpor("--version").stdout.startswith(f"torpor {project['version']}\n")
    link = tmp_path / "criu"
    link.write_text("import sys\nfrom torpor.cli.__main__ import main\nsys.exit(main())\n")
    assert torpor("-V", program=str(link)).stdout.startswith("Version: 4.2\n")
    assert torpor("frob", program=str(link)).stderr.startswith("criu: there is no command frob")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("frob", "there is no command frob"),
        ("dump", "no process is named"),
        ("dump -t 0", "'0' is not a value for -t"),
        ("dump -t", "-t needs a value"),
        ("dump --le", "--le could be --leave-running, --leave-stopped"),
        ("dump --nonsense", "there is no option --nonsense"),
        ("dump -t 1 extra", "'extra' is too much: dump takes no such word; write -D extra, if you mean that"),
        ("dump 1", "'1' is too much: dump takes no such word; write -t 1, if you mean that"),
        ("dump -t 1 -D nowhere", "cannot open the images directory nowhere: No such file or directory"),
        ("dump -t 1 -D /dev/null", "cannot open the images directory /dev/null: Not a directory\n"),
        ("cpuinfo dump -D /proc", "cannot write cpuinfo.img to /proc: No such file or directory; name another"),
        ("dump -t 1 -W nowhere", "cannot open the work directory nowhere"),
        ("restore -D nowhere", "cannot open the images directory nowhere"),
        ("restore -S", "--restore-sibling only makes sense with --restore-detached"),
        ("dump -t 1 --ms", "--ms is deprecated"),
        ("dump -t 1 --tcp-established", "--tcp-close"),
        ("check --feature nonsense", "there is no feature nonsense"),
        ("dump -t 1 --close 999", "cannot close descriptor 999"),
    ],
)
def test_mistakes(torpor: Run, argv: str, words: str) -> None:
    done = torpor(*argv.split())
    assert done.returncode == 1
    assert not done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr


def test_without_a_command(torpor: Run) -> None:
    done = torpor()
    assert done.returncode == 1
    assert "torpor dump -t PID" in done.stderr


@pytest.mark.parametrize("verb", REFUSED)
def test_verbs_to_come(torpor: Run, verb: str) -> None:
    done = torpor(verb)
    assert done.returncode == 1
    assert f"the command {verb} is not implemented yet" in done.stderr


@pytest.mark.parametrize("option", [option.name for option in TABLE.values() if option.refused and option.verbs])
def test_options_to_come(torpor: Run, option: str) -> None:
    """Each is refused in words by the command on which it would work, and nothing is done."""
    row = TABLE[option]
    verb = next((verb for verb in ("dump", "restore") if verb in row.verbs), None)
    if verb is None:
        pytest.fail(f"--{option} would work on no command that Torpor has") if not set(row.verbs) & set(
            REFUSED
        ) else None
        return
    value = {"PORT": "5", "FD": "0", "net": "net"}.get(row.metavar, "x")
    argv = [f"--{option}"] if row.argument == "flag" else [f"--{option}={value}"]
    done = torpor(verb, *(["-t", NOBODY] if verb == "dump" else []), *argv)
    assert done.returncode == 1
    assert f"--{option} is not implemented yet" in done.stderr


def test_json_errors(torpor: Run) -> None:
    for argv in (["dump", "--json", "-t", "0"], ["swrk", "--json"], ["restore", "--json", "-D", "nowhere"]):
        done = torpor(*argv)
        assert done.returncode == 1
        assert not done.stderr
        error = json.loads(done.stdout)["error"]
        assert error["code"] in ("usage", "not-implemented", "no-directory")
        assert set(error) == {"code", "what", "why", "remedy"}


def test_json_is_one_object(torpor: Run, tmp_path: Path) -> None:
    """Whatever goes wrong, and however much is shown."""
    (tmp_path / "images").mkdir()
    assert torpor("cpuinfo", "dump", "-D", "images").returncode == 0
    image = "images/cpuinfo.img"
    assert len(json.loads(torpor("show", "--json", image, image).stdout)) == 2
    for argv, code in (
        (["show", image, "nowhere.img"], "bad-image"),
        ([], "usage"),
        (["check", "-o", "-"], "usage"),
        (["cpuinfo", "dump", "-D", "/proc"], "dump-failed"),
        (["restore", "--dry-run", "-D", "images"], "no-checkpoint"),
    ):
        done = torpor("--json", *argv)
        assert (done.returncode, done.stderr) == (1, "")
        assert json.loads(done.stdout)["error"]["code"] == code


def test_a_log_even_when_all_fails(torpor: Run, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "work").mkdir()
    done = torpor("dump", "-t", NOBODY, "-D", "images", "-W", "work", "-o", "dump.log", "-v4", "--libdir", "x")
    assert done.returncode == 1
    log = tmp_path / "work/dump.log"
    assert log.stat().st_mode & 0o777 == 0o600
    text = log.read_text()
    assert "-libdir has no effect: Torpor loads no plugins" in text
    assert "Error: " in text
    assert done.stderr.count("\n") == 1
    assert not list((tmp_path / "images").iterdir())

    torpor("restore", "-D", "images", "-o", str(tmp_path / "absolute.log"))
    assert "Error: " in (tmp_path / "absolute.log").read_text()


def test_closing_standard_streams(torpor: Run) -> None:
    """Their numbers are not given to what is opened next, and what is written to them goes nowhere."""
    assert torpor("check", "--feature", "list", "--close", "1").stdout == ""
    done = torpor("check", "--feature", "list", "--close", "0", "--close", "2", "-v4")
    assert (done.returncode, done.stderr) == (0, "") and "uffd" in done.stdout


def test_silence(torpor: Run) -> None:
    done = torpor("dump", "-t", NOBODY, "-v0")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_a_missing_configuration_file_is_named(torpor: Run) -> None:
    assert "Warn: there is no configuration file nowhere" in torpor("swrk", "--config", "nowhere").stderr


def test_nobody_reads(tmp_path: Path) -> None:
    """`torpor --help | true` ends without a traceback."""
    theirs, ours = os.pipe()
    os.close(theirs)
    done = subprocess.run(
        [sys.executable, "-m", "torpor", "--help"], stdout=ours, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )  # fmt: skip
    os.close(ours)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_terminal_without_unicode(torpor: Run) -> None:
    done = torpor("dump", "-t", NOBODY, "-D", "nöwhere", PYTHONIOENCODING="ascii")
    assert "nowhere" not in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize("verb", ["dump", "restore", "check"])
def test_nothing_is_imported_in_vain(verb: str) -> None:
    """What costs milliseconds at every start stays out."""
    heavy = {"argparse", "asyncio", "dataclasses", "inspect", "json", "logging", "subprocess", "tempfile", "socket"}
    heavy |= {"contextlib", "enum", "re", "warnings"}
    if verb == "dump":  # this error does not come out of an engine, by way of _pickle
        heavy |= {"collections", "operator"}
    if verb == "check":  # tries sockets, too
        heavy = {"argparse", "asyncio", "logging", "torpor.dump", "torpor.restore"}
    argv = {"dump": ["dump", "-t", NOBODY], "restore": ["restore"], "check": ["check", "--feature", "nonsense"]}[verb]
    code = (
        "import sys\nfrom torpor.cli.__main__ import main\n"
        f"main({argv!r})\nprint(*sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n{code}"],
        capture_output=True, text=True, cwd="/", stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.stdout == "\n", done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str, tmp_path: Path) -> None:
    """Started without standard streams, as some services are: what it opens does not take their places."""
    if os.geteuid():
        pytest.skip("freezing needs root")
    nothing = subprocess.DEVNULL
    command = ["sleep", "100"]
    with subprocess.Popen(command, start_new_session=True, stdin=nothing, stdout=nothing, stderr=nothing) as victim:
        images, log = tmp_path / "images", tmp_path / "log"
        images.mkdir()
        words = f"'{sys.executable}' -m torpor dump -t {victim.pid} -D {images} -o {log} --leave-running {closed}"
        done = subprocess.run(
            ["sh", "-c", words], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SOURCE)}
        )
        victim.kill()
    assert (done.returncode, done.stderr) == (0, "")
    assert (images / "inventory.img").exists()
