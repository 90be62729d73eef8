# SPDX-License-Identifier: Apache-2.0
"""The process that alone holds ptrace: stops tasks, runs programs in many of them at once, puts them back."""
