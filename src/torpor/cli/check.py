# SPDX-License-Identifier: Apache-2.0
"""``torpor check``: of the kernel, of a tree (``-t PID``), of images (``-D DIR``).

The words ``Looks good.`` are what scripts look for in the output of ``criu check``; so is the exit status: 1 where
something is missing that was asked for (required things always; ``--extra``, ``--experimental``, ``--all`` add theirs).
"""

from torpor.cli.say import Voice
from torpor.errors import UsageError
from torpor.options import Options


def run(options: Options, voice: Voice) -> int:
    from torpor.check import Report, check_features, check_images, check_kernel, check_tree, feature_names

    if "list" in options.feature:
        voice.result("\n".join(feature_names()), {"features": feature_names()})
        return 0
    if options.feature:
        report: Report = check_features(options)
    elif options.tree is not None and options.given.get("images_dir", "").startswith("-"):
        # A configuration file may say where images are; who says it here means them.
        raise UsageError(
            "-t names a tree and -D names images", "check looks at one of them", "give one, then the other"
        )
    elif options.tree is not None:
        report = check_tree(options)
    elif "images_dir" in options.given:
        report = check_images(options)
    else:
        report = check_kernel(options)
    voice.result("\n".join(report.lines()), report.facts())
    return 0 if report.ok else 1
