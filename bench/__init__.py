# SPDX-License-Identifier: Apache-2.0
"""Torpor and CRIU measured in turn on the same victims: ``python -m bench``."""
