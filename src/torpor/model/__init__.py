# SPDX-License-Identifier: Apache-2.0
"""Pure: who shares what, and the plan of a restore, as data."""
