# SPDX-License-Identifier: Apache-2.0
"""System call numbers, written as text: a number, then the names of the calls from that number on.

Taken from the kernel headers of each architecture (asm/unistd.h).  From 424 on all architectures share their numbers.
"""

FROM_424 = """
424 pidfd_send_signal io_uring_setup io_uring_enter io_uring_register open_tree move_mount fsopen fsconfig fsmount
fspick pidfd_open clone3 close_range openat2 pidfd_getfd faccessat2 process_madvise epoll_pwait2 mount_setattr
quotactl_fd landlock_create_ruleset landlock_add_rule landlock_restrict_self
448 process_mrelease futex_waitv set_mempolicy_home_node cachestat fchmodat2
454 futex_wake futex_wait futex_requeue statmount listmount
462 mseal
"""


def numbers(text: str) -> dict[str, int]:
    """The table that `text` spells."""
    table: dict[str, int] = {}
    at = 0
    for word in text.split():
        if word[0].isdigit():
            at = int(word)
        else:
            table[word] = at
            at += 1
    return table
