# SPDX-License-Identifier: Apache-2.0
"""``torpor cpuinfo dump`` writes down what this CPU has; ``torpor cpuinfo check`` says whether this one will do."""

import os

from torpor import cpuinfo
from torpor.cli.say import Voice
from torpor.errors import DumpFailed, ImageError, UsageError
from torpor.images.directory import ImageReader, write_small
from torpor.options import Options


def run(action: str, options: Options, voice: Voice) -> int:
    if action not in ("dump", "check"):
        raise UsageError(f"cpuinfo needs a word more, dump or check{f', not {action}' if action else ''}")
    fd = os.open(options.images_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        name = cpuinfo.kind().file_name()
        if action == "dump":
            try:
                write_small(fd, cpuinfo.kind(), cpuinfo.record())
            except OSError as error:
                what = f"cannot write {name} to {options.images_dir}"
                raise DumpFailed(what, os.strerror(error.errno or 0), "name another directory with -D") from None
            voice.result(f"wrote {options.images_dir}/{name}".replace("//", "/"), {"ok": True})
            return 0
        theirs = ImageReader(fd).find(cpuinfo.kind())
        if theirs is None:
            raise ImageError(
                f"there is no {name} in {options.images_dir}",
                remedy="make one on the other machine: torpor cpuinfo dump -D DIR",
                code="missing-image",
            )
        caps = cpuinfo.chosen(options, cpuinfo.INS | cpuinfo.FPU)
        for problem in cpuinfo.problems(theirs, caps):
            raise problem
        voice.result("This CPU has all that the other one had.", {"ok": True})
        return 0
    finally:
        os.close(fd)
