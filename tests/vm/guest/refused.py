# SPDX-License-Identifier: Apache-2.0
"""What Torpor refuses on some kernels and machines, though other kernels and machines can do it: the words.

By workload: a list of (machine, beginning of the release, words); either of the first two may be empty.
"""

import os

NO_THREAD = "not its first, and this kernel cannot do that"  # PIDFD_THREAD, 6.9

REFUSED = {
    "fd_table_thread": [("", "6.1.", NO_THREAD)],
    "tree_zombie_leader": [("", "6.1.", NO_THREAD)],
}


def here(workload: str, source: str) -> str:
    """The words in which this workload's dump is refused here; empty: it is not."""
    facts = os.uname()
    for machine, release, words in REFUSED.get(workload, ()):
        if machine in ("", facts.machine) and facts.release.startswith(release):
            return words
    return ""
