# SPDX-License-Identifier: Apache-2.0
"""Torpor freezes running Linux applications, writes them to image files, and brings them back to life."""
