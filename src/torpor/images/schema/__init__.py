# SPDX-License-Identifier: Apache-2.0
"""The messages of CRIU's images, one module a .proto file; tools/generate_schema.py writes them."""
