# SPDX-License-Identifier: Apache-2.0
"""``python -m torpor``."""

from torpor.cli.__main__ import command

command()
