# SPDX-License-Identifier: Apache-2.0
"""``python -m torpor``."""

import sys

from torpor.cli.__main__ import main

sys.exit(main())
