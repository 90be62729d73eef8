# SPDX-License-Identifier: Apache-2.0
"""``torpor check``: of the kernel, of a tree (``-t PID``), of images (``-D DIR``).

The words ``Looks good.`` are what scripts look for in the output of ``criu check``; so is the exit status: 1 where
something is missing that was asked for (required things always; ``--extra``, ``--experimental``, ``--all`` add theirs).
"""

from torpor.cli.say import Voice
from torpor.errors import UsageError
from torpor.options import Options


def run(options: Options, voice: Voice) -> int:
    from torpor.check import Report, check_images, check_kernel, check_tree

    if options.feature:
        return _features(options, voice)
    if options.tree is not None and options.given.get("images_dir", "").startswith("-"):
        # A configuration file may say where images are; who says it here means them.
        raise UsageError(
            "-t names a tree and -D names images", "check looks at one of them", "give one, then the other"
        )
    if options.tree is not None:
        report: Report = check_tree(options)
    elif "images_dir" in options.given:
        report = check_images(options)
    else:
        report = check_kernel(options)
    voice.result("\n".join(report.lines()), report.facts())
    return 0 if report.ok else 1


def _features(options: Options, voice: Voice) -> int:
    from torpor.check import check_feature, feature_names

    if "list" in options.feature:
        voice.result("\n".join(feature_names()), {"features": list(feature_names())})
        return 0
    findings = [check_feature(name) for name in options.feature]
    lines = [f"{one.name} is {'supported' if one.works else f'not supported: {one.why}'}" for one in findings]
    voice.result("\n".join(lines), {"features": [one.facts() for one in findings]})
    return 0 if all(one.works for one in findings) else 1
