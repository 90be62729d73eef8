# SPDX-License-Identifier: Apache-2.0
"""The test harness: workloads (one kernel object each), modes (what is done to them), and the comparison of all that
/proc shows of a tree before and after.

- events.py    waiting for processes and files by event, cleaning up by PID
- workload.py  finding, compiling, starting a workload; its verdict
- tools.py     Torpor and CRIU as commands
- warm.py      Torpor's command without a start of Python
- modes.py     one function a mode
- procview.py  a tree as /proc shows it, and the differences of two in words
"""
