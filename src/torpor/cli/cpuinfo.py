# SPDX-License-Identifier: Apache-2.0
"""``torpor cpuinfo dump`` writes down what this CPU has; ``torpor cpuinfo check`` says whether this one will do."""

import os

from torpor import cpuinfo
from torpor.cli.say import Voice
from torpor.cpu_compare import CPU, FPU, INS
from torpor.errors import DumpFailed, ImageError, UsageError
from torpor.images.directory import ImageReader, write_small
from torpor.options import Options


def run(action: str, options: Options, voice: Voice) -> int:
    if action not in ("dump", "check"):
        raise UsageError(f"cpuinfo needs a word more, dump or check{f', not {action}' if action else ''}")
    fd = os.open(options.images_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if action == "dump":
            names = []
            for entry in cpuinfo.record():
                names.append(cpuinfo.image_of(entry).file_name())
                try:
                    write_small(fd, cpuinfo.image_of(entry), entry)
                except OSError as error:
                    what = f"cannot write {names[-1]} to {options.images_dir}"
                    raise DumpFailed(what, os.strerror(error.errno or 0), "name another directory with -D") from None
            voice.result(f"wrote {' and '.join(names)} to {options.images_dir}", {"ok": True})
            return 0
        theirs = cpuinfo.read(ImageReader(fd))
        if not theirs:
            raise ImageError(
                f"there is no {cpuinfo.kind().file_name()} in {options.images_dir}",
                remedy="make one on the other machine: torpor cpuinfo dump -D DIR",
                code="missing-image",
            )
        caps = cpuinfo.chosen(options, cpuinfo.DEFAULT)
        for problem in cpuinfo.problems(theirs, caps):
            raise problem
        voice.result(_agreement(caps), {"ok": True})
        return 0
    finally:
        os.close(fd)


def _agreement(caps: int) -> str:
    if not caps:
        return "Nothing was compared, as --cpu-cap asks."
    if caps & CPU:
        return "This CPU is the same as the other one."
    what = [name for name, cap in (("instructions", INS), ("registers", FPU)) if caps & cap]
    return f"This CPU has all {' and '.join(what)} that are written down of the other one."
