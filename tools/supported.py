# SPDX-License-Identifier: Apache-2.0
"""Write docs/supported.md from the registry: every kind of kernel object, and what becomes of it.

python tools/supported.py            write it
python tools/supported.py --check    exit status 1 if it is not what it would be
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs/supported.md"
sys.path.insert(0, str(ROOT / "src"))

from torpor.memory import areas  # noqa: E402
from torpor.resources import registry, words  # noqa: E402
from torpor.resources.namespaces import FOR_CHILDREN, NAMESPACES  # noqa: E402

HEAD = """\
# Supported objects

Everything that Linux 6.18 can show of a process is in Torpor's registry, with one of two answers: it is saved and
brought back, or it is recognised and refused in words, and the tree goes on as if nothing had been. `torpor check -t
PID` says which of these a tree has, without stopping it. A kind that a newer kernel invents is refused as unknown.

Made from the registry by `make docs`.
"""


def lines() -> list[str]:
    attributes = {key for attribute in registry.attributes() for key in attribute.covers}
    known = sorted(attributes | set(registry.OTHERS))
    out = [HEAD, "## Open files", "", "Saved and brought back, with flags, position, owner, and who shares them:", ""]
    out += [f"- {words.FILES[key]}" for key in registry.FILES]
    out += [
        "",
        "Of a file that has a name, images hold the name alone. Where it lies in memory alone (tmpfs, as in "
        "/dev/shm), a dump and `torpor check -t` warn: [before a reboot](kernel-update.md), copy it to a disk.",
    ]
    out += ["", "Refused:", "", "| kind | why | what to do |", "|---|---|---|"]
    out += [f"| {words.FILES[key]} | {why} | {remedy} |" for key, (why, remedy) in registry.REFUSED.items()]
    out += ["", "File locks and leases held through any of them are refused, too.", ""]
    for title, start in (("Processes", "task:"), ("Threads", "thread:"), ("Memory", "vma:")):
        out += [f"## {title}", ""]
        entries = [words.OTHERS[key] for key in known if key.startswith(start)]
        out += [f"- {entry}" for entry in entries if not entry.endswith("refused") and ": refused " not in entry]
        out += [f"- *{entry}*" for entry in entries if entry.endswith("refused") or ": refused " in entry]
        out.append("")
    out += ["Areas that are refused:", "", "| area, or flag in smaps | why | what to do |", "|---|---|---|"]
    for table in (areas.REFUSED_KINDS, areas.REFUSED_FLAGS):
        out += [f"| {key} | {why} | {remedy} |" for key, (why, remedy) in table.items()]
    refused = [name for name in (*NAMESPACES, *FOR_CHILDREN) if not name.startswith("time")]
    out += ["", "## Namespaces", ""]
    out += [f"A task in another namespace than Torpor's own is refused, of any kind: {', '.join(refused)}."]
    out += ["A tree may be in a time namespace of its own; its clocks come back ([more](kernel-update.md)).", ""]
    out += ["## Not to be seen from outside", "",
            "Landlock rules, a session keyring, memory policies of single areas (mbind) on machines with one node, "
            "notes of changes in directories (F_NOTIFY), System V "
            "semaphores held with SEM_UNDO that somebody else has operated since, interfaces for IPv4 multicast that "
            "were chosen by number alone (IP_MULTICAST_IF), anycast addresses and a fixed source (IPV6_PKTINFO) of "
            "IPv6 sockets, programs that choose among sockets of one port (SO_ATTACH_REUSEPORT_CBPF), and messages of "
            "no bytes behind others in a UNIX socket's queue that somebody, an earlier dump included, has peeked at "
            "(MSG_PEEK) are neither saved nor refused. Nor is a length of SVE or SME vectors that was set for the next "
            "program alone (PR_SVE_SET_VL_ONEXEC), nor, before Linux 6.4, system calls that are dispatched to user "
            "space (`torpor check` says whether this kernel shows them).", ""]  # fmt: skip
    return out


def main() -> int:
    text = "\n".join(lines()).replace("\n\n\n", "\n\n")
    if "--check" not in sys.argv:
        TARGET.write_text(text)
    elif not TARGET.exists() or TARGET.read_text() != text:
        print("out of date: docs/supported.md; run make docs")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
