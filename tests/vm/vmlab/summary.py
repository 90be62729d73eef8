# SPDX-License-Identifier: Apache-2.0
"""What tests of guests want to be read when they have passed, too: ``record_property("said", ...)``.

pytest shows what a test prints only if it fails; but how often the power failed, what was lost, and how a program came
through a change of the kernel is what such a run is made for.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any


def said(reports: Iterable[Any]) -> Iterator[str]:
    """A line for each that the tests have said, with the test's name."""
    for report in reports:
        who = re.sub(r".*::(test_)?", "", report.nodeid)
        for name, value in report.user_properties:
            if name == "said":
                yield from (f"{who}: {line}" for line in str(value).splitlines())
