# SPDX-License-Identifier: Apache-2.0
"""One leg of a kernel update, on the guest's disk: ``update.py begin | hop | end | refuse``.

begin: starts the busy tree of clockwork.py and dumps it.  hop: restores it, lets it work, dumps it again.  end:
restores it, lets it work, ends it, and looks at what it has to say.  refuse: this kernel's pages are of another size;
that is said, and nothing is made.  What else begin, hop and end do about the vDSO and clocks is in vdso_calls.py.
Prints one JSON object of figures, and exits with 0 only if all was as it should be.
"""

import importlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time

import vdso_calls

from harness.warm import WARM, start
from torpor.arch import native
from torpor.engine import own_frame, stops
from torpor.images import kinds
from torpor.images.directory import ImageReader
from torpor.images.schema.timens import Timespec
from torpor.kernel import ptrace
from torpor.memory import vdso
from torpor.resources import clocks

importlib.import_module("torpor.cli.__main__")  # so that no command has to
DATA, IMAGES = "/data", "/data/images"
OFFSETS = "/proc/self/timens_offsets"  # not there: no time namespaces
ROOT_PID = 12000  # beyond whatever a booting kernel uses
WORK = 0.5  # seconds, or longer: until each part has got on
COUNTERS = {"busy": 0, "pings": 1, "waits": 2, "ticks": 3}
RETURNS = 4
figures: dict[str, object] = {"kernel": os.uname().release}


def counters() -> list[int]:
    with open(f"{DATA}/counters", "rb") as file:
        return list(struct.unpack("=6Q", file.read(48)))


def work() -> None:
    """Every part of the tree must get on."""
    parts = COUNTERS | ({"calls": vdso_calls.ROUNDS} if vdso_calls.is_there() else {})
    before = counters()
    deadline = time.monotonic() + 60
    begun = time.monotonic()
    while time.monotonic() < deadline:
        time.sleep(0.1)
        now = counters()
        if all(now[i] > before[i] for i in parts.values()) and time.monotonic() - begun > WORK:
            figures["counted"] = {name: now[i] for name, i in parts.items()}
            return
    sys.exit(f"the tree does not get on: {before} became {counters()}; {look()}")


def look() -> str:
    """What the tree's tasks do, and what the kernel has said."""
    pids = [ROOT_PID, *(int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) > ROOT_PID)]
    return "; ".join(map(state, pids)) + "\n" + kernel_messages()


def kernel_messages() -> str:
    """The newest, where the kernel tells of a task that a fault has ended, and how."""
    lines: list[str] = []
    messages = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        while line := os.read(messages, 8192):
            lines.append(line.decode(errors="replace").partition(";")[2].rstrip())
    except BlockingIOError:
        pass
    finally:
        os.close(messages)
    return "\n".join(lines[-40:])


def state(pid: int) -> str:
    """What a task of the tree is doing."""
    try:
        with (
            open(f"/proc/{pid}/stat") as stat,
            open(f"/proc/{pid}/syscall") as call,
            open(f"/proc/{pid}/wchan") as where,
        ):
            return (
                f"{pid} is in state {stat.read().rpartition(')')[2].split()[0]}, {call.read().strip()}, {where.read()}"
            )
    except OSError as error:
        return f"{pid}: {error.strerror}"


def torpor(*arguments: str, images: str = IMAGES, fails: bool = False) -> str:
    """Run the command; returns what it said on stderr."""
    output, errors = answer(*arguments, images=images, fails=fails)
    print(output, end="")
    return errors


def answer(*arguments: str, images: str = IMAGES, fails: bool = False) -> tuple[str, str]:
    """Run the command, in a fork, as Python takes seconds to start here; returns what it said on stdout and stderr."""
    words = [*arguments, "-D", images, "-W", DATA, "-o", "log", "-v4"]
    streams = [os.memfd_create(name) for name in ("output", "errors")]
    with open(os.devnull) as nothing:
        child = start([WARM, *words], (nothing.fileno(), *streams))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    output, errors = (os.pread(fd, 1 << 20, 0).decode(errors="replace") for fd in streams)
    for fd in streams:
        os.close(fd)
    if (status != 0) != fails:
        if os.path.exists(log := f"{DATA}/log"):
            with open(log) as file:
                print(file.read()[-3000:])
        sys.exit(f"torpor {' '.join(arguments)}: exit status {status}: {output}{errors}")
    return output, errors


def begin(program: str = "clockwork.py", sign: str = "counters", *arguments: str, output: str = os.devnull) -> None:
    """Start a program, from the disk; it shows by a file that it is at work."""
    shutil.copy(f"/t/{program}", DATA)
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(ROOT_PID - 1))
    null = os.open("/dev/null", os.O_RDWR)
    victim = subprocess.Popen(
        [*([sys.executable] if program.endswith(".py") else []), f"{DATA}/{program}", DATA, *arguments],
        stdin=null,
        stdout=os.open(output, os.O_WRONLY | os.O_CREAT, 0o600),
        stderr=null,
        start_new_session=True,
    )
    if victim.pid != ROOT_PID:
        sys.exit(f"the tree has PID {victim.pid}")
    while not os.path.exists(f"{DATA}/{sign}") or os.path.getsize(f"{DATA}/{sign}") == 0:
        if victim.poll() is not None:
            sys.exit(f"{program} has ended: {victim.returncode}")
        time.sleep(0.05)


def dump(*options: str) -> None:
    shutil.rmtree(IMAGES, ignore_errors=True)
    os.mkdir(IMAGES, 0o700)
    known = [*kernels(), (vdso_span(ROOT_PID)[0], vdso_functions())]
    with open(f"{DATA}/kernels", "w") as file:
        json.dump(known, file)
    before = time.monotonic()
    torpor("dump", "-t", str(ROOT_PID), *options)
    if vdso_calls.is_there():
        vdso_calls.note_clocks(time.monotonic() - before)
        if found := vdso_calls.inside(IMAGES):
            sys.exit(f"threads {found} were dumped inside the vDSO")
    figures["uptime at dump"] = round(time.monotonic(), 1)


def await_clocks() -> None:
    """Without time namespaces (32-bit ARM) a restore is refused until the clocks are where the tree has seen them."""
    then = clocks_then()
    behind = then.tv_sec + 1 - time.monotonic()
    if not os.path.exists(OFFSETS) and behind > 0:
        figures["said"] = said = torpor("restore", "-d", fails=True)
        if "this kernel has no time namespaces" not in said:
            sys.exit(f"it does not say that the clocks would go back: {said}")
        time.sleep(behind)


def clocks_then() -> Timespec:
    images = ImageReader(os.open(IMAGES, os.O_RDONLY))
    return images.one(kinds.TIMENS, 9 if images.exists(kinds.TIMENS, 9) else 0).monotonic


def restore() -> None:
    then = clocks_then()
    await_clocks()
    torpor("check")
    before = time.monotonic()
    torpor("restore", "-d")
    figures["uptime at restore"] = round(before, 1)
    if not os.path.exists(OFFSETS):
        return
    offset = clocks.offsets(ROOT_PID).monotonic
    now = time.monotonic()
    ahead = now + offset / 1e9 - (then.tv_sec + then.tv_nsec / 1e9)
    figures["clock offset"] = round(offset / 1e9, 3)
    if not 0 <= ahead <= now - before:
        sys.exit(f"the tree's clock is {ahead:.3f} s ahead of the dump, {now - before:.3f} s after the restore began")


def vdso_span(pid: int | str) -> tuple[int, int]:
    with open(f"/proc/{pid}/maps") as file:
        (span,) = [line.split()[0] for line in file if "[vdso]" in line]
    start, end = (int(word, 16) for word in span.split("-"))
    return start, end


def kernels() -> list[tuple[int, dict[str, int]]]:
    """Under which the tree was: where each had its vDSO, and its functions there."""
    if not os.path.exists(f"{DATA}/kernels"):
        return []
    with open(f"{DATA}/kernels") as file:
        return [(start, functions) for start, functions in json.load(file)]


def vdso_functions() -> dict[str, int]:
    """Where in its vDSO this kernel has which function."""
    start, end = vdso_span("self")
    with open("/proc/self/mem", "rb") as file:
        file.seek(start)
        return {name: symbol.offset for name, symbol in vdso.symbols(file.read(end - start)).items()}


def look_at_vdso() -> None:
    """A busy thread is found in the vDSO's text sooner or later: it uses it, wherever it is.  Where the kernel before
    had its functions elsewhere, their old addresses are not in this one's."""
    start, end = vdso_span(ROOT_PID)
    before, here = kernels()[-1][1], vdso_functions()
    with open(f"/proc/{ROOT_PID}/auxv", "rb") as file:
        words = list(struct.iter_unpack("2L", file.read()))
    remembered = dict(words)[33]  # AT_SYSINFO_EHDR
    figures["vDSO"] = "where it was" if remembered == start else f"redirected from {remembered:#x} to {start:#x}"
    moved = sorted(name for name in before if here.get(name) != before[name])
    figures["functions elsewhere"] = f"{len(moved)} of {len(before)}"
    if moved and remembered == start:
        sys.exit(f"the kernel before had {moved} elsewhere, and nothing is redirected")
    figures["functions that lead on"] = vdso_calls.compare_jumps([*kernels(), (start, here)])
    busy = vdso_calls.spinner(vdso_calls.child())
    ptrace.seize(busy, 0)
    for tries in range(1, 20001):
        ptrace.interrupt(busy)
        stop = stops.wait(busy)
        while stop.kind is not stops.Kind.INTERRUPTED:
            ptrace.cont(busy, stop.signal if stop.kind is stops.Kind.SIGNAL else 0)
            stop = stops.wait(busy)
        if start <= native().pc(ptrace.get_regset(busy, 1)) < end:
            figures["found in the vDSO at look"] = tries
            break
        ptrace.cont(busy)
        time.sleep(0.0001)
    else:
        sys.exit("the busy thread was never found in the vDSO")
    ptrace.detach(busy)


def returned(before: int) -> None:
    """Whoever was dumped inside a signal handler gets out of it, by a frame of the other kernel."""
    deadline = time.monotonic() + 60
    while counters()[RETURNS] == before:
        if time.monotonic() > deadline:
            sys.exit(f"it has not returned from its signal handler; {look()}")
        time.sleep(0.05)
    figures["returned from handlers"] = counters()[RETURNS]


def frames_are_known() -> None:
    """What this kernel writes for a signal handler is what Torpor takes for a signal frame."""
    frame = own_frame.make({})
    if frame is None:
        sys.exit("this kernel's signal frames are not recognised")
    figures["frames"] = "known"


def nothing_made() -> None:
    if os.path.exists(f"/proc/{ROOT_PID}"):
        sys.exit("a refused restore has left a process behind")


def refuse() -> None:
    figures["said"] = said = torpor("restore", "-d", fails=True)
    if f"and this one's have {os.sysconf('SC_PAGESIZE')}" not in said:
        sys.exit(f"it does not say that pages are of another size: {said}")
    torpor("check", fails=True)
    nothing_made()


def finish() -> None:
    os.kill(ROOT_PID, signal.SIGTERM)
    deadline = time.monotonic() + 240  # on a busy machine a guest gets a tenth of a processor
    while not os.path.exists(f"{DATA}/result"):
        if time.monotonic() > deadline:
            sys.exit(f"the tree does not end; {look()}")
        time.sleep(0.05)
    with open(f"{DATA}/result") as file:
        result = json.load(file)
    os.unlink(f"{DATA}/result")
    if any(result.values()):
        sys.exit(f"the tree says: {json.dumps(result, indent=1)}")
    figures["the tree says"] = "nothing was wrong"


def report(case: str) -> None:
    os.sync()
    print(f"@@RESULT {json.dumps({'case': case, 'outcome': 'passed', 'output': figures})}", flush=True)


def main() -> None:
    what = sys.argv[1]
    with open("/proc/sys/kernel/print-fatal-signals", "w") as switch:
        switch.write("1")
    frames_are_known()
    if what == "begin":
        vdso_calls.begin_alone()
        begin()
        work()
        dump()
    elif what == "refuse":
        refuse()
    else:
        returns = counters()[RETURNS]
        await_clocks()
        if what == "hop":
            vdso_calls.refuse_inside()
        begun = time.monotonic()
        restore()
        work()
        vdso_calls.compare_clocks(begun)
        returned(returns)
        look_at_vdso()
        work()
        if what == "hop":
            dump()
        else:
            vdso_calls.restore_inside()
            finish()
    report(what)


if __name__ == "__main__":
    importlib.import_module("update").main()  # the module that others import, with its figures
