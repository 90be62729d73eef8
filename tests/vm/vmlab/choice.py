# SPDX-License-Identifier: Apache-2.0
"""Which of the guests' tests are wanted: ``--arch`` and ``--kernel`` (``make test-vm ARCH=… KERNEL=…``), beside -k.

A test is of the guests that it boots.  Its parameters `arch` and `kernel` say which these are, or its mark
``boots(kernel..., arch=...)``; one that boots several kernels is of each of them.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import pytest

from . import VmError
from .targets import known_kernel, target_named


class Boots(NamedTuple):
    """The guests of a test."""

    arch: str
    kernels: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.arch} {' '.join(self.kernels)}"

    def fits(self, arch: str, kernel: str) -> bool:
        return (not arch or arch == self.arch) and (not kernel or kernel in self.kernels)


def boots(item: pytest.Item) -> Boots:
    told = dict(getattr(getattr(item, "callspec", None), "params", {}))
    if marked := item.get_closest_marker("boots"):
        told |= {"kernels": marked.args, **marked.kwargs}
    elif "kernel" in told:
        told["kernels"] = (told["kernel"],)
    if not told.keys() >= {"arch", "kernels"}:
        raise VmError(f"{item.nodeid} does not say which guests it boots: mark it with boots(kernel..., arch=...)")
    return Boots(told["arch"], told["kernels"])


def choose(items: Sequence[pytest.Item], arch: str, kernel: str, words: str) -> list[pytest.Item]:
    """Those that boot such guests; empty: any.  `words`: what -k will look for in these.

    Raises VmError where no test has such guests, and where a word names no test, or only tests of other guests: -k
    alone would pass over that in silence."""
    arch = target_named(arch).arch if arch else ""
    kernel = known_kernel(kernel) if kernel else ""
    chosen = [item for item in items if boots(item).fits(arch, kernel)]
    wanted = " ".join(filter(None, (arch, kernel)))
    if items and not chosen:
        raise VmError(f"no test boots {wanted}")
    for word in asked_for(words):
        named = [item for item in items if word in item.nodeid.lower()]
        if not named:
            raise VmError(f"no test that runs in a guest is called {word}")
        if not any(word in item.nodeid.lower() for item in chosen):
            where = ", ".join(sorted({str(boots(item)) for item in named}))
            raise VmError(f"the tests called {word} do not boot {wanted}, but {where}")
    return chosen


def asked_for(words: str) -> list[str]:
    """The names in an expression of -k or -m that are asked for, which those behind a `not` are not."""
    asked = re.sub(r"\bnot\s*(\([^()]*\)|[^\s()]+)", " ", words.lower())
    return [word for word in re.findall(r"[^\s()]+", asked) if word not in ("and", "or")]
