# SPDX-License-Identifier: Apache-2.0
"""The help texts, made from the table of options."""

from torpor import __version__
from torpor.options import OPTIONAL, TABLE, VALUE, Option

COMPATIBLE = "4.2"  # the version of CRIU whose options, images and exit statuses these are

OVERVIEW = """\
Torpor freezes running applications, writes them to images, and brings them back to life.

  {program} dump -t PID -D DIR       write the tree of PID to images in DIR, and end it (-R: let it go on)
  {program} restore -D DIR           bring it back, and wait until it ends (-d: do not wait)
  {program} check                    can this kernel do it all?  What is missing, and what to do
  {program} check -t PID             can this tree be dumped?  What is in the way
  {program} check -D DIR             can these images be restored here and now?
  {program} cpuinfo dump -D DIR      write down what this CPU has; cpuinfo check: will this CPU do?
  {program} show DIR                 draw what is in images; show FILE.img prints an image as JSON

{program} COMMAND --help lists a command's options. They are CRIU's, long names may be shortened, and a link to this
program called criu takes its place in scripts. Options are also read from configuration files
(/etc/criu/default.conf, $HOME/.criu/default.conf, $CRIU_CONFIG_FILE, --config FILE), one a line.
"""

SUMMARIES = {
    "dump": ("dump -t PID [-D DIR] [options]", "Freeze the tree whose root is PID, write it to images, and end it."),
    "restore": ("restore [-D DIR] [options]", "Bring back the tree in DIR, with the PIDs that it had."),
    "check": (
        "check [-t PID | -D DIR | --feature NAME] [options]",
        "Say what this kernel can do, whether a tree can be dumped, or whether images can be restored. "
        "Nothing is stopped or changed.",
    ),
    "cpuinfo": (
        "cpuinfo dump|check [-D DIR] [--cpu-cap=CAPS]",
        "Write what this CPU has to cpuinfo.img and torpor-cpu.img in DIR (dump), or say whether this CPU has all that "
        "is written there (check), so that a tree from the other machine can be restored on this one. CAPS: ins,fpu "
        "unless said.",
    ),
    "show": ("show [DIR | FILE]... [--json]", "Draw a checkpoint for people, or print any image as JSON."),
}


def version(program: str) -> str:
    if program == "criu":
        return f"Version: {COMPATIBLE}\nTorpor {__version__}"
    return f"torpor {__version__}\nOptions and images are those of CRIU {COMPATIBLE}"


def overview(program: str) -> str:
    return OVERVIEW.format(program=program)


def verb(program: str, name: str) -> str:
    """The help of one command: what works, then what is accepted without effect, then what is not there yet."""
    if name not in SUMMARIES:
        return f"{name} is not implemented yet.\n\n{overview(program)}"
    from textwrap import wrap  # which takes longer to import than --version takes without it

    usage, summary = SUMMARIES[name]
    options = [option for option in TABLE.values() if name in option.verbs]
    works = [option for option in options if not option.refused and not option.ignored]
    ignored = [f"--{option.name}" for option in options if option.ignored]
    refused = [f"--{option.name}" for option in options if option.refused]
    lines = [f"Usage: {program} {usage}", "", *wrap(summary, 110), ""]
    for option in works:
        lines += _entry(option, wrap(option.help, 72))
    for title, names in (("Accepted, without effect", ignored), ("Not implemented yet, refused", refused)):
        if names:
            lines += ["", *wrap(f"{title}: {', '.join(names)}.", 110, break_on_hyphens=False)]
    return "\n".join(lines)


def _entry(option: Option, words: list[str]) -> list[str]:
    short = f"-{option.short}, " if option.short else "    "
    name = f"  {short}--{'[no-]' if option.negatable else ''}{option.name}"
    if option.argument in (VALUE, OPTIONAL):
        name += f" {option.metavar}" if option.argument == VALUE else f"[={option.metavar}]"
    first = f"{name:38}{words[0]}" if len(name) < 37 else f"{name}\n{'':38}{words[0]}"
    return [first, *(f"{'':38}{line}" for line in words[1:])]
