# SPDX-License-Identifier: Apache-2.0
"""Which pages there are, and how they get from the tasks to the images and back."""
