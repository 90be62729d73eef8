# SPDX-License-Identifier: Apache-2.0
"""The command line."""

from torpor import finder

finder.install()
