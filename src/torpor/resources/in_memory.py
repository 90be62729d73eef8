# SPDX-License-Identifier: Apache-2.0
"""Regular files on file systems that are in memory alone (tmpfs, ramfs), as in /dev/shm.

They have names, so images have nothing of their content; and a reboot leaves nothing of it either.  Nobody could put
such a file back then "as it was": so whoever dumps is told in time.
"""

import os
import stat as st

from torpor.kernel import file_facts
from torpor.kernel.maps import DELETED
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.kernel.maps import Area
    from torpor.resources.context import Dump

KEY, TYPES = "files in memory", "types of devices"


def note(dump: "Dump", link: str, stat: os.stat_result) -> None:
    """A file that the tree holds, as /proc shows it.  It may stand still: what its device is, is asked later."""
    if not os.major(stat.st_dev) and st.S_ISREG(stat.st_mode) and stat.st_nlink:
        dump.setdefault(KEY, {})[stat.st_dev, stat.st_ino] = link


def note_area(dump: "Dump", area: "Area") -> None:
    """A file that a running task has mapped, by a name that it has still.  Raises OSError."""
    device = os.makedev(*area.dev)
    if not area.dev[0] and (device, area.inode) not in dump.setdefault(KEY, {}) and _is_in_memory(dump, device):
        note(dump, area.path, file_facts.stat(area.path))


def warn(dump: "Dump") -> None:
    """When the tree goes on, or never stood still."""
    files = [(device, link) for (device, _), link in dump.setdefault(KEY, {}).items() if _is_in_memory(dump, device)]
    if files:
        (device, first), more = files[0], len(files) - 1
        others = f" and {more:,} more file{'s' if more > 1 else ''} are" if more else " is"
        its, it = ("their", "them") if more else ("its", "it")
        where = f"in memory alone ({dump.state[TYPES][device]})"
        dump.warn(
            f"{first.removesuffix(DELETED)}{others} {where}, and {its} content is not in the images; "
            f"copy {it} to a disk, and put {it} back before a restore after a reboot"
        )


def _is_in_memory(dump: "Dump", device: int) -> bool:
    from torpor.kernel.mounts import IN_MEMORY

    return file_system(dump, device) in IN_MEMORY


def file_system(dump: "Dump", device: int) -> str:
    """The type of one without a block device; asked once."""
    types: dict[int, str] = dump.setdefault(TYPES, {})
    if device not in types:
        from torpor.kernel.mounts import type_of_device

        types[device] = type_of_device(device)
    return types[device]
