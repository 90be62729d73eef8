# SPDX-License-Identifier: Apache-2.0
"""One file per kind of kernel object, its dump beside its restore."""
