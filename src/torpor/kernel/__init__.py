# SPDX-License-Identifier: Apache-2.0
"""What Linux offers, typed and documented: system calls, ptrace, /proc, pagemaps, netlink, feature probes."""
