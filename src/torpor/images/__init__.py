# SPDX-License-Identifier: Apache-2.0
"""The image format alone: schema, container, pages.  Knows nothing of processes."""
