# SPDX-License-Identifier: Apache-2.0
"""What can be done here: with this kernel, with a tree, with images.  Nothing is stopped or changed.

The kernel's part: the probes of `torpor.kernel.probe`, run in a process of their own.
"""

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torpor.errors import UsageError
from torpor.kernel.probe import EXPERIMENTAL, OPTIONAL, REQUIRED, Finding, features, probes, run
from torpor.options import Options

if TYPE_CHECKING:
    from torpor.check_images import ImagesReport
    from torpor.check_tree import TreeReport

GROUPS = (REQUIRED, OPTIONAL, EXPERIMENTAL)
GOOD = "Looks good."
NOT_ALL = (
    "Looks good but some kernel features are missing\n"
    "which, depending on your process tree, may cause\n"
    "dump or restore failure."
)
BAD = "Torpor cannot work here: something that it requires is missing."


class Report(Protocol):
    """What a check found."""

    @property
    def ok(self) -> bool: ...
    def lines(self) -> list[str]: ...
    def facts(self) -> dict[str, Any]: ...


class KernelReport(NamedTuple):
    """Which facilities of the kernel work.  `asked` are the groups that count for `ok`."""

    findings: tuple[Finding, ...]
    asked: tuple[str, ...]

    @property
    def missing(self) -> tuple[Finding, ...]:
        return tuple(one for one in self.findings if not one.works)

    @property
    def ok(self) -> bool:
        return not any(one.group in self.asked for one in self.missing)

    def lines(self) -> list[str]:
        lines = []
        width = max(len(one.name) for one in self.findings)
        for group in GROUPS:
            lines.append(f"{group.capitalize()}:")
            for one in self.findings:
                if one.group == group:
                    lines.append(f"  {one.name:{width}}  {'works' if one.works else 'MISSING':7}  for {one.use}")
                    if not one.works:
                        lines.append(f"  {'':{width}}           {one.why}; {one.remedy}")
        required = any(one.group == REQUIRED for one in self.missing)
        return [*lines, "", BAD if required else GOOD if self.ok else NOT_ALL]

    def facts(self) -> dict[str, Any]:
        return {"ok": self.ok, "asked": list(self.asked), "findings": [one.facts() for one in self.findings]}


class FeaturesReport(KernelReport):
    """Which of CRIU's features of the kernel work; all that were named count for `ok`."""

    __slots__ = ()

    def lines(self) -> list[str]:
        return [f"{one.name} is {'supported' if one.works else f'not supported: {one.why}'}" for one in self.findings]

    def facts(self) -> dict[str, Any]:
        return {"ok": self.ok, "features": [one.facts() for one in self.findings]}


def check_kernel(options: Options) -> KernelReport:
    """Try everything that Torpor uses."""
    from torpor.engine.process import run_engine

    asked = [REQUIRED]
    if options.extra or options.all:
        asked.append(OPTIONAL)
    if options.experimental or options.all:
        asked.append(EXPERIMENTAL)
    findings = run_engine(lambda _: run(probes()))
    return KernelReport(tuple(findings), tuple(asked))


def feature_names() -> list[str]:
    return list(features())


def check_features(options: Options) -> FeaturesReport:
    """Try the features that options.feature names, by CRIU's names for them."""
    from torpor.engine.process import run_engine

    known = features()
    for name in options.feature:
        if name not in known:
            raise UsageError(f"there is no feature {name}", remedy="check --feature list names them")
    findings = run_engine(lambda _: run([known[name] for name in options.feature]))
    named = zip(findings, options.feature, strict=True)
    return FeaturesReport(tuple(finding._replace(name=name) for finding, name in named), GROUPS)


def check_tree(options: Options) -> "TreeReport":
    """Can this tree be dumped?"""
    from torpor.check_tree import check

    return check(options)


def check_images(options: Options) -> "ImagesReport":
    """Can these images be restored here and now?"""
    from torpor.check_images import check

    return check(options)
