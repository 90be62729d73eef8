# SPDX-License-Identifier: Apache-2.0
"""Write src/torpor/keywords.py: the options of `torpor.options` as typed keyword arguments of the library.

The table stays the only place where an option is declared; tests/cli/test_options.py fails when the two disagree.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "src/torpor/keywords.py"
POSITIONAL = {"tree", "images_dir"}  # parameters of their own in the library's functions
COMMAND_LINE = {"config", "no_default_config", "help", "version", "close", "json", "daemon", "ms"}
LOOSE = {"str": "str | os.PathLike[str]", "tuple[str, ...]": "Sequence[str | os.PathLike[str]]"}  # for paths

HEADER = '''\
# SPDX-License-Identifier: Apache-2.0
"""Typed keyword arguments of `torpor.dump`, `torpor.restore` and `torpor.check`.  Written by tools/keywords.py."""

import os
from collections.abc import Sequence
from typing import TypedDict
'''


def render() -> str:
    sys.path.insert(0, str(ROOT / "src"))
    from torpor.options import TABLE, Options, path, size

    text = HEADER
    for verb in ("dump", "restore", "check"):
        text += f"\n\nclass {verb.capitalize()}Keywords(TypedDict, total=False):\n"
        for option in TABLE.values():
            name = option.attribute
            if name in POSITIONAL | COMMAND_LINE or verb not in option.verbs:
                continue
            kind = Options.__annotations__[name]
            kind = str(kind if not isinstance(kind, type) or "[" in str(kind) else kind.__name__)
            bare = kind.removesuffix(" | None")
            if option.convert is path:
                bare = LOOSE[bare]
            elif option.convert is size:
                bare = "int | str"
            bare = bare.replace("tuple[str, ...]", "Sequence[str]").replace("tuple[int, ...]", "Sequence[int]")
            text += f"    {name}: {bare}\n"
    return text


if __name__ == "__main__":
    TARGET.write_text(render())
