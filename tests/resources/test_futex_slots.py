# SPDX-License-Identifier: Apache-2.0
"""Which numbers of slots in a process's table of futexes were its own choice."""

import os

import pytest

from torpor.resources.threads import may_be_automatic


def test_what_the_kernel_may_have_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert may_be_automatic(0, 1) and not may_be_automatic(0, 2)
    assert may_be_automatic(16, 1) and may_be_automatic(32, 1), "it may have had threads"
    assert may_be_automatic(16, 2) and may_be_automatic(32, 2)
    assert not may_be_automatic(64, 1) and not may_be_automatic(64, 2) and not may_be_automatic(8, 2)
