# SPDX-License-Identifier: Apache-2.0
"""Write the documents that are made from the source: docs/errors.md and docs/options.md.

python tools/docs.py            write them
python tools/docs.py --check    exit status 1 if they are not what they would be
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src/torpor"

ERRORS = """\
# Errors

Every error that Torpor raises on purpose has a *code* for programs, and for people *what* could not be done, *why*,
and the *remedy*. The command line prints them as one sentence, `what: why; remedy`, and ends with status 1; with
`--json` it prints `{"error": {"code": …, "what": …, "why": …, "remedy": …}}`. The library raises `torpor.TorporError`,
or the class named here, with the same as attributes.

Made from the source by `make docs`.

| code | class | raised for |
|---|---|---|
"""

OPTIONS = """\
# Options

Names, short forms and meanings are CRIU's; *ours* marks Torpor's own. The library takes the same names with
underscores. An option without effect on a command is accepted there and named at `-v`. Configuration files hold one
option a line.

Made from the table in `src/torpor/options.py` by `make docs`.
"""


MANY = 10  # sentences: more say less than what the class means


class Raised(ast.NodeVisitor):
    """Finds what error classes are called with, and the codes of the classes themselves."""

    def __init__(self) -> None:
        self.classes: dict[str, tuple[str, str]] = {}  # class -> (base, code)
        self.calls: dict[tuple[str, str], set[str]] = defaultdict(
            set
        )  # (class, code or "") -> what, or why if that varies
        self.meanings: dict[str, str] = {}  # class -> its docstring's first line
        self.own: dict[str, str] = {}  # class -> what it says itself, whatever it is called with

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        code = ""
        for line in node.body:
            if isinstance(line, ast.Assign) and getattr(line.targets[0], "id", "") == "code":
                code = ast.literal_eval(line.value)
        self.meanings[node.name] = (ast.get_docstring(node) or "").partition("\n")[0]
        for base in node.bases:
            self.classes[node.name] = (getattr(base, "id", ""), code)
        for call in ast.walk(node):
            match call:
                case ast.Call(func=ast.Attribute(attr="__init__"), args=[ast.JoinedStr() as first, *_]):
                    self.own[node.name] = sentence(first)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        code = next((word.value.value for word in node.keywords
                     if word.arg == "code" and isinstance(word.value, ast.Constant)), "")  # fmt: skip
        if node.args:
            said = [sentence(argument) for argument in node.args[:2]]
            self.calls[name, str(code)].add(next((one for one in said if one.strip("… ")), ""))
        self.generic_visit(node)


def sentence(node: ast.expr) -> str:
    """The text of a string, with … for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return "…"


def errors() -> str:
    raised = Raised()
    for path in sorted(SOURCE.rglob("*.py")):
        raised.visit(ast.parse(path.read_text()))

    def is_error(name: str) -> bool:
        return name == "TorporError" or (name in raised.classes and is_error(raised.classes[name][0]))

    def code_of(name: str) -> str:
        base, code = raised.classes[name]
        return code or (code_of(base) if base in raised.classes else "")

    rows: dict[tuple[str, str], set[str]] = defaultdict(set)
    for (name, code), whats in raised.calls.items():
        if is_error(name) and name in raised.classes:
            rows[code or code_of(name), name] |= {raised.own[name]} if name in raised.own else whats
    for name in raised.classes:
        if is_error(name):
            rows.setdefault((code_of(name), name), set())
    text = ERRORS
    for (code, name), whats in sorted(rows.items()):
        said = sorted(what.replace("|", "\\|") for what in whats if what)
        if not said or len(said) > MANY:
            said = [raised.meanings[name]]
        text += f"| `{code}` | `{name}` | {'<br>'.join(said)} |\n"
    return text


def options() -> str:
    sys.path.insert(0, str(ROOT / "src"))
    from torpor.options import OPTIONAL, TABLE, VALUE, Option

    def name(option: Option) -> str:
        text = f"`--{option.name}`"
        if option.argument == VALUE:
            text = f"`--{option.name} {option.metavar}`"
        if option.argument == OPTIONAL:
            text = f"`--{option.name}[={option.metavar}]`"
        short = f"`-{option.short}`, " if option.short else ""
        return short + text + (f", `--no-{option.name}`" if option.negatable else "")

    text = OPTIONS
    parts: tuple[tuple[str, Callable[[Option], object], Callable[[Option], str]], ...] = (
        ("Implemented", lambda one: not one.ignored and not one.refused, lambda one: one.help),
        ("Accepted, because they change nothing", lambda one: one.ignored, lambda one: one.ignored),
        ("Not implemented yet, refused", lambda one: one.refused, lambda one: one.refused),
    )
    for title, chosen, say in parts:
        text += f"\n## {title}\n\n| option | commands | |\n|---|---|---|\n"
        for option in TABLE.values():
            if chosen(option):
                ours = " *(ours)*" if option.ours else ""
                verbs = "all" if len(option.verbs) > 8 else ", ".join(option.verbs)
                text += f"| {name(option).replace('|', chr(92) + '|')} | {verbs} | {say(option)}{ours} |\n"
    return text


def main() -> int:
    wrong = []
    for name, text in (("errors.md", errors()), ("options.md", options())):
        path = ROOT / "docs" / name
        if "--check" not in sys.argv:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            wrong.append(name)
    if wrong:
        print(f"out of date: {', '.join('docs/' + name for name in wrong)}; run make docs")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
