# SPDX-License-Identifier: Apache-2.0
"""What an older kernel lacks: ``newer.py dump | refuse``, on a disk that goes from one to the other.

dump: a process that has all that is new (novelties.py).  refuse: `check -D` names each of it, a restore one;
nothing is made.
"""

import json
import sys

import update


def dump() -> None:
    update.begin("novelties.py", "holding")
    update.dump()
    with open(f"{update.DATA}/holding") as file:
        update.figures["has"] = file.read().split("\n")


def refuse() -> None:
    with open(f"{update.DATA}/holding") as file:
        names = file.read().split("\n")
    said = json.loads(update.answer("check", "--json", fails=True)[0])["obstacles"]
    reasons = [f"{one['what']}: {one['why']}; {one['remedy']}" for one in said]
    for name in names:
        of_it = [reason for reason in reasons if name in reason]
        if len(of_it) != 1 or f"task {update.ROOT_PID}" not in of_it[0] or "this kernel cannot do" not in of_it[0]:
            sys.exit(f"it does not say once, and in words, that {name} is lacking: {reasons}")
    if len(reasons) != len(names):
        sys.exit(f"something else is in the way: {reasons}")
    with open(f"{update.DATA}/log") as file:
        if "(mm_cid)" not in file.read():
            sys.exit("it does not warn of areas for rseq(2) that go out of date")
    update.await_clocks()
    update.figures["said"] = update.torpor("restore", "-d", fails=True)
    update.nothing_made()
    update.figures["lacking"] = names


step = sys.argv[1]
(dump if step == "dump" else refuse)()
update.report(step)
