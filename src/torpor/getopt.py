# SPDX-License-Identifier: Apache-2.0
"""How options are spelled: GNU getopt_long over `torpor.options.TABLE`, and CRIU's configuration files.

Not argparse, and not the standard library's getopt: scripts rely on what CRIU's C library does (options and words in
any order, ``-Dimages``, ``-vvv`` and ``-v4``, unambiguous abbreviations, ``--name=value``, an optional argument only
when it is attached), and argparse costs more to import than a small dump takes.

Configuration files, the later winning: /etc/criu/default.conf, $HOME/.criu/default.conf, the file in
$CRIU_CONFIG_FILE, the file given by ``--config`` (which turns the first two off, as does ``--no-default-config``), the
command line.  Observed on CRIU 4.2.1: a default file or ``--config`` file that does not exist is passed over silently;
what follows a line's first value is ignored; ``--config`` inside a file too.  Where CRIU drops the value of an option
whose value may be left out (``verbosity 4`` counts as ``-v``), Torpor takes it.
"""

import os

from torpor.errors import UsageError
from torpor.options import FLAG, OPTIONAL, TABLE, VALUE, Option, Options
from torpor.typed import Iterable, Iterator, Mapping, NamedTuple

DEFAULT_FILES = ("/etc/criu/default.conf", "~/.criu/default.conf")  # ~ is $HOME
ENVIRONMENT = "CRIU_CONFIG_FILE"
HELP = "torpor --help lists the options"


class Setting(NamedTuple):
    """One option as found: `argument` is None where none was given; `on` is False for a --no- form."""

    option: Option
    argument: str | None
    on: bool
    where: str


class Command(NamedTuple):
    """A parsed command line.  `words` are what is neither option nor value: the verb, usually alone."""

    options: Options
    words: list[str]
    files: list[str]  # configuration files that were read


SHORT: dict[str, Option] = {option.short: option for option in TABLE.values() if option.short}
LONG: dict[str, tuple[Option, bool]] = {}
for _option in TABLE.values():
    LONG[_option.name] = (_option, True)
    if _option.negatable:
        LONG["no-" + _option.name] = (_option, False)


def find(name: str) -> tuple[Option, bool]:
    """The option called `name`, or the only one whose name begins so.  Torpor's own options are not abbreviated, or
    they would make abbreviations ambiguous that CRIU takes."""
    if name in LONG:
        return LONG[name]
    names = [one for one, (option, _) in LONG.items() if one.startswith(name) and not option.ours]
    if not names:
        raise UsageError(f"there is no option --{name}", remedy=HELP)
    if len(names) > 1:
        raise UsageError(f"--{name} could be {', '.join('--' + one for one in names)}", remedy="write it out")
    return LONG[names[0]]


def scan(argv: Iterable[str]) -> tuple[list[Setting], list[str]]:
    """Split a command line into settings, in order, and the words between them."""
    settings: list[Setting] = []
    words: list[str] = []
    rest = iter(argv)
    for word in rest:
        if word == "--":
            words += rest
        elif word.startswith("--"):
            settings.append(_long(word[2:], rest))
        elif word.startswith("-") and word != "-":
            settings += _short(word, rest)
        else:
            words.append(word)
    return settings, words


def _long(word: str, rest: Iterator[str], where: str = "") -> Setting:
    name, equals, attached = word.partition("=")
    option, on = find(name)
    where = where or f"--{'' if on else 'no-'}{option.name}"
    argument: str | None = attached if equals else None
    if option.argument == FLAG and argument is not None:
        raise UsageError(f"{where} takes no value")
    if option.argument == VALUE and argument is None:
        argument = next(rest, None)
        if argument is None:
            raise UsageError(f"{where} needs a value", remedy=f"write {where} {option.metavar}")
    return Setting(option, argument, on, where)


def _short(word: str, rest: Iterator[str]) -> Iterator[Setting]:
    for at, letter in enumerate(word[1:], 2):
        option = SHORT.get(letter)
        if option is None:
            raise UsageError(f"there is no option -{letter}", remedy=HELP)
        if option.argument == FLAG:
            yield Setting(option, None, True, f"-{letter}")
            continue
        argument: str | None = word[at:] or None
        if option.argument == VALUE and argument is None:
            argument = next(rest, None)
            if argument is None:
                raise UsageError(f"-{letter} needs a value", remedy=f"write -{letter} {option.metavar}")
        yield Setting(option, argument, True, f"-{letter}")
        return


def apply(options: Options, settings: Iterable[Setting]) -> None:
    """Put settings into effect, in order."""
    for option, argument, on, where in settings:
        if option.name == "verbosity":
            level = options.verbosity
            if argument is None:
                level += 1
            elif set(argument) == {"v"}:  # -vvv is -v with the argument "vv"
                level += 1 + len(argument)
            else:
                options.set(option, argument, where)
                continue
            options.set(option, min(level, 9), where)
        elif option.argument == FLAG:
            options.set(option, on, where)
        elif argument is None and option.argument == OPTIONAL:
            options.set(option, option.implied, where)
        else:
            options.set(option, argument, where)


def split_line(line: str, where: str) -> list[str]:
    """The words of a configuration line: blanks part them, "quotes" join them, a word's # begins a comment."""
    words: list[str] = []
    at = 0
    while at < len(line):
        if line[at].isspace():
            at += 1
        elif line[at] == "#":
            break
        elif line[at] == '"':
            word, at = [], at + 1
            while at < len(line) and line[at] != '"':
                at += line.startswith('\\"', at)
                word.append(line[at])
                at += 1
            if at >= len(line):
                raise UsageError(f"a quotation mark is not closed in {where}", remedy='write \\" for the mark itself')
            words.append("".join(word))
            at += 1
        else:
            end = next((i for i in range(at, len(line)) if line[i].isspace() or line[i] == "#"), len(line))
            if '"' in line[at:end]:
                raise UsageError(f"a quotation mark stands inside a word in {where}", remedy="quote the whole value")
            words.append(line[at:end])
            at = end
    return words


def read_file(path: str) -> list[Setting]:
    """The settings of a configuration file.  OSError if it cannot be read."""
    settings = []
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            where = f"line {number} of {path}"
            words = split_line(line, where)
            if not words:
                continue
            try:
                setting = _long(words[0], iter(words[1:2]))
            except UsageError as error:
                raise UsageError(f"{error.what} ({where})", error.why, error.remedy) from None
            if setting.option.argument == OPTIONAL and setting.argument is None and len(words) > 1:
                setting = setting._replace(argument=words[1])
            if setting.option.name not in ("config", "no-default-config", "help", "version"):
                settings.append(setting._replace(where=f"{words[0]} ({where})"))
    return settings


def parse(argv: list[str], environment: Mapping[str, str] = os.environ) -> Command:
    """Parse a command line (without the program's name) after the configuration files.  Raises UsageError."""
    settings, words = scan(argv)
    config = [setting.argument for setting in settings if setting.option.name == "config"][-1:]
    wanted: list[str | None] = []
    if not config and not any(setting.option.name == "no-default-config" for setting in settings):
        home = environment.get("HOME")
        wanted += [path.replace("~", home or "", 1) for path in DEFAULT_FILES if home or "~" not in path]
    wanted += [environment.get(ENVIRONMENT), *config]
    options, files = Options(), []
    for path in wanted:
        if path and os.path.exists(path):
            try:
                apply(options, read_file(path))
            except OSError as error:
                raise UsageError(f"cannot read options from {path}", os.strerror(error.errno or 0)) from None
            files.append(path)
    apply(options, settings)
    return Command(options, words, files)
