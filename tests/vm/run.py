# SPDX-License-Identifier: Apache-2.0
"""Run one Python program in a guest by hand: ``python tests/vm/run.py ARCH KERNEL SCRIPT [ARGUMENT...]``.

With ``-`` for SCRIPT the guest is only prepared.  ``all`` stands for every architecture or kernel.
"""

import sys
import time
from pathlib import Path

from vmlab import VmError, image, machine
from vmlab.targets import KERNELS, TARGETS, known_kernel, target_named


def main() -> int:
    if len(sys.argv) < 4:
        sys.stderr.write((__doc__ or "") + "\n")
        return 2
    _, arch, kernel, script, *arguments = sys.argv
    try:
        targets = list(TARGETS.values()) if arch == "all" else [target_named(arch)]
        kernels = KERNELS if kernel == "all" else [known_kernel(kernel)]
    except VmError as error:
        sys.stderr.write(f"{error}, and all\n")
        return 2
    if script != "-" and not Path(script).is_file():
        sys.stderr.write(f"there is no script {script}\n")
        return 2
    worst = 0
    for target in targets:
        for version in kernels:
            start = time.monotonic()
            try:
                if script == "-":
                    prepared = image.prepare(target, version)
                    print(f"{target.arch} {version}: {prepared.release} ({time.monotonic() - start:.1f} s)", flush=True)
                    continue
                path = Path(script)
                outcome = machine.run(
                    target, version, [f"/s/{path.name}", *arguments], files={f"s/{path.name}": path}, echo=print
                )
            except VmError as error:
                sys.stderr.write(f"{target.arch} {version}: {error}\n")
                return 1
            print(f"{target.arch} {version}: exit status {outcome.status}, {outcome.seconds:.1f} s", flush=True)
            worst = max(worst, 1 if outcome.status is None else outcome.status)
    return worst


if __name__ == "__main__":
    sys.exit(main())
