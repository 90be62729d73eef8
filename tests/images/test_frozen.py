# SPDX-License-Identifier: Apache-2.0
"""Messages that the decoder shares cannot be changed; copies of them can."""

from copy import copy, deepcopy

import pytest

from torpor.images.frozen import freeze
from torpor.images.schema.core import CoreEntry, TaskCoreEntry, TaskRlimitsEntry, ThreadCoreEntry, ThreadSasEntry
from torpor.images.schema.rlimit import RlimitEntry
from torpor.images.schema.torpor import ThreadExtraEntry


def core() -> CoreEntry:
    tc = TaskCoreEntry(task_state=1, exit_code=0, personality=0, flags=0, blk_sigset=0, comm="a")
    sas = ThreadSasEntry(ss_sp=1, ss_size=2, ss_flags=3)
    return CoreEntry(mtype=1, tc=tc, thread_core=ThreadCoreEntry(futex_rla=0, futex_rla_len=0, sas=sas))


def test_shared_is_frozen() -> None:
    data = core().encode()
    one, other = CoreEntry.decode(data), CoreEntry.decode(data)
    assert one == core() and one.tc is other.tc and one.tc is not None
    assert isinstance(one.tc, TaskCoreEntry) and type(one.tc).__name__ == "TaskCoreEntry"
    with pytest.raises(TypeError, match="shared"):
        one.tc.comm = "b"
    with pytest.raises(TypeError, match="shared"):
        del one.tc.comm
    assert one.thread_core is not None and one.thread_core.sas is not None
    with pytest.raises(TypeError, match="shared"):
        one.thread_core.sas.ss_sp = 5  # and what is in it
    assert other == core() and one.encode() == data


def test_lists_of_shared_are_frozen() -> None:
    made = core()
    assert made.tc is not None
    made.tc.rlimits = TaskRlimitsEntry(rlimits=[RlimitEntry(cur=1, max=2), RlimitEntry(cur=3, max=4)])
    read = CoreEntry.decode(made.encode())
    assert read == made and read.tc is not None and read.tc.rlimits is not None
    limits = read.tc.rlimits.rlimits
    for change in (
        lambda: limits.append(limits[0]), lambda: limits.clear(), lambda: limits.sort(), lambda: limits.pop(),
        lambda: limits.__setitem__(0, limits[1]), lambda: limits.__delitem__(0), lambda: limits.extend(limits),
    ):  # fmt: skip
        with pytest.raises(TypeError, match="shared"):
            change()
    with pytest.raises(TypeError, match="shared"):
        limits[0].cur = 7
    assert limits == made.tc.rlimits.rlimits


def test_copies_can_be_changed() -> None:
    read = CoreEntry.decode(core().encode())
    assert read.tc is not None
    for clone in (copy(read.tc), deepcopy(read.tc), deepcopy(read).tc):
        assert clone is not None and clone == read.tc
        clone.comm = "b"
        assert read.tc.comm == "a"


def test_lists_of_copies_are_their_own() -> None:
    """deepcopy() copies an object that is in two places once; empty lists of frozen messages are one object."""
    read = ThreadExtraEntry(tid=1)
    freeze(read)
    clone = deepcopy(read)
    clone.cpu_timers.append(1)
    assert clone.registers == [] and read.cpu_timers == []


def test_it_remembers_how_it_is_encoded() -> None:
    made = core()
    expected = made.encode()
    freeze(made)
    assert made.encode() == expected and made.encode() is made.encode()
    assert made == core() and list(made.items()) == list(core().items())
    assert repr(made) == repr(core())
    for clone in (copy(made), deepcopy(made)):
        assert clone.encode() == expected and clone == core()
        clone.mtype = 2
        assert clone.encode() != expected and made.encode() == expected
