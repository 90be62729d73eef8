# SPDX-License-Identifier: Apache-2.0
"""`torpor show` of mutated images, in all its forms: it ends soon, with words, and nothing in them commands a terminal.

TORPOR_MUTATIONS sets how many, as in test_mutations.py.
"""

import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.mutations import Entry, Mutator, Site, _encoded, _sites, for_each_mutated, in_time
from torpor.cli.show import load_image, show
from torpor.errors import ImageError, TorporError
from torpor.images.container import start_of
from torpor.images.kinds import KINDS, RAW

COUNT = max(100, int(os.environ.get("TORPOR_MUTATIONS", "600")) // 6)
NASTY = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202e"  # a title, a cleared screen, C1, right to left


def shown(path: Path, as_json: bool) -> str:
    """What it shows, or says: fit for a terminal in any case."""
    out = io.StringIO()
    try:
        with in_time():
            show(str(path), as_json=as_json, out=out)
        text = out.getvalue()
        if as_json:
            json.loads(text)
    except TorporError as error:
        text = str(error)
        assert text
    bad = {character for character in text if not character.isprintable() and character != "\n"}
    assert not bad, f"{path.name}: {bad}"
    text.encode()  # no lone surrogates, which a terminal's stream would refuse
    return text


def test_mutated(mutator: Mutator, bounded: None, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes: Counter[str] = Counter()

    def one() -> None:
        for path in (mutator.target, *(mutator.target / name for name in mutator.changed)):
            for as_json in (False, True):
                shown(path, as_json)
                outcomes["a checkpoint" if path == mutator.target else "an image"] += 1

    for_each_mutated(mutator, COUNT, one)
    with capsys.disabled():
        print(f"\nmutated and shown, for people and as JSON: {dict(outcomes)}")
    assert outcomes["a checkpoint"] >= COUNT


def test_terminal_escapes(mutator: Mutator, bounded: None) -> None:
    """Names of tasks, threads, files and sockets that would command the terminal."""
    mutator.revert()
    changed = 0
    for name, data in mutator.original.items():
        entries = mutator._entries(name, data)
        if not entries:
            continue
        for site in _strings(entries):
            setattr(site.message, site.field.name, NASTY if site.field.kind == "string" else NASTY.encode())
            changed += 1
        mutator.changed[name] = _encoded(name, entries)
        (mutator.target / name).write_bytes(mutator.changed[name] or b"")
    assert changed > 20
    for as_json in (False, True):
        assert "owned" in shown(mutator.target, as_json)
        for name in mutator.changed:
            shown(mutator.target / name, as_json)
    mutator.revert()


def _strings(entries: list[Entry]) -> Iterator[Site]:
    for site in _sites(entries):
        value = getattr(site.message, site.field.name)
        wanted = site.field.kind == "string" or (site.field.kind == "bytes" and site.field.name == "name")
        if wanted and site.field.label != "repeated" and value is not None:
            yield site


def test_empty_entries(tmp_path: Path) -> None:
    """A sparse file may be millions of entries of no length: of an image that has one, no more are read."""
    for kind in KINDS.values():
        if kind.shape == RAW or kind.name == "APPARMOR":  # of which CRIU does not say how many it has
            continue
        path = tmp_path / kind.pattern.replace("{id:x}", "1").replace("{id}", "dump" if kind.name == "STATS" else "1")
        path.write_bytes(start_of(kind))
        os.truncate(path, 1 << 20)
        with pytest.raises(ImageError):
            load_image(str(path), names=False)
        path.unlink()
