# SPDX-License-Identifier: Apache-2.0
"""Tests of `torpor check`."""
