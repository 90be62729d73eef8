# SPDX-License-Identifier: Apache-2.0
"""Puts the executor's blobs into wheels: hatchling runs this before it packs.

A released wheel holds all architectures, so that installing it needs no compiler.  Where a wheel is built on a machine
without cross compilers it holds what could be built, the machine's own at least, and the build says what is missing;
with ``TORPOR_ALL_ARCHES=1``, as releases are built, that is an error.
"""

import os
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent))
import build_executor


class ExecutorHook(BuildHookInterface):  # type: ignore[type-arg]
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        native = build_executor.native()
        strict = os.environ.get("TORPOR_ALL_ARCHES") == "1"
        for arch in [native] if version == "editable" else build_executor.ARCHES:
            try:
                path = build_executor.install(arch)
            except build_executor.BuildError as error:
                if arch == native or strict:
                    raise SystemExit(f"torpor's executor for {arch} cannot be built: {error}") from None
                self.app.display_warning(f"this wheel will not run on {arch}: {error}")
                continue
            build_data["artifacts"].append(str(path.relative_to(build_executor.ROOT)))
