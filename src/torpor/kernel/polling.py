# SPDX-License-Identifier: Apache-2.0
"""poll(2) of one descriptor, without waiting."""

import select


def poll_events(fd: int, asked: int = 0) -> int:
    """Which of these events there are now; also POLLERR, POLLHUP and POLLNVAL, asked or not."""
    poller = select.poll()
    poller.register(fd, asked)
    return next((events for _, events in poller.poll(0)), 0)
