# SPDX-License-Identifier: Apache-2.0
"""The command line: CRIU's verbs, options and exit statuses, so that a link called ``criu`` serves scripts.

Exit status 0: done; 1: not done, whatever the reason, usage errors and interrupted dumps and restores included (as CRIU
does); 130: another command was interrupted.  One
sentence on stderr says why, or one JSON object on stdout where ``--json`` was given.  Nothing is imported that the verb
does not need: the whole of a small dump takes less time than importing argparse, json and logging would.
"""

import gc
import os
import sys
from errno import ENOENT

from torpor import log
from torpor.cli.say import Voice
from torpor.errors import TorporError, UsageError, exhausted
from torpor.getopt import Command, parse, scan
from torpor.options import Options
from torpor.signals import SIG_BLOCK, SIG_DFL, SIG_SETMASK, SIGCHLD, SIGHUP, SIGINT, SIGTERM, pthread_sigmask, signal
from torpor.typed import Any, NoReturn

# Verbs of CRIU that Torpor does not have yet: why, and what to do instead.
REFUSED = {
    "pre-dump": ("Torpor writes whole checkpoints only, so far", "use dump --leave-running"),
    "page-server": ("Torpor writes checkpoints to directories only, so far", "copy the images directory"),
    "lazy-pages": ("Torpor fills memory before the tree runs, so far", "use restore without --lazy-pages"),
    "service": ("Torpor has no RPC yet", "use the command line or the Python library"),
    "swrk": ("Torpor has no RPC yet", "use the command line or the Python library"),
    "dedup": ("Torpor writes whole checkpoints only, so there is nothing to deduplicate", ""),
}
# Requests to stop.  A dump and a restore look for them at their safe points (engine/process.py) and hold them off
# otherwise, from here on to the end of the process: one that comes too late does not turn success into failure.
REQUESTS = (SIGINT, SIGTERM, SIGHUP)
INTERRUPTIBLE = ("dump", "restore")
VERBS = ("dump", "restore", "check", "show", "cpuinfo", *REFUSED)


def command() -> NoReturn:
    """The program ``torpor``: run the command of sys.argv, and end this process at once.

    Taking all modules apart again, as Python does at its end, would take 5 ms, a tenth of a small dump."""
    _open_streams()
    status = main()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # nobody listens any more
    os._exit(status)


def _open_streams() -> None:
    """Whoever starts us may have closed the standard streams, and what we open first would get their numbers."""
    if sys.stdin is None or sys.stdout is None or sys.stderr is None:
        while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(fd)
        sys.stdin, sys.stdout, sys.stderr = (
            stream or open(os.devnull, mode)
            for stream, mode in ((sys.stdin, "r"), (sys.stdout, "w"), (sys.stderr, "w"))
        )


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    own_process = argv is None
    if own_process:
        gc.disable()  # this process ends soon: looking for garbage would take a fifth of the time of a small dump
        signal(SIGCHLD, SIG_DFL)  # started by somebody who ignores it, it could not wait for its own children
    program = os.path.basename(sys.argv[0]) if own_process else "torpor"
    if program in ("__main__.py", ""):
        program = "torpor"
    argv = sys.argv[1:] if argv is None else argv
    voice = Voice(program)
    before = pthread_sigmask(SIG_BLOCK, REQUESTS)
    try:
        return _run(argv, voice, before)
    except TorporError as error:
        return voice.error(error)
    except KeyboardInterrupt:
        pthread_sigmask(SIG_BLOCK, REQUESTS)  # a second one, while the first is being told
        voice.error(TorporError("interrupted", code="interrupted"))
        return 130
    except BrokenPipeError:  # whoever reads our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as error:  # a bug, most likely: say so, and what is needed to find it
        told = exhausted(error)
        return voice.bug(error) if told is None else voice.error(told)
    finally:
        if not own_process:
            pthread_sigmask(SIG_SETMASK, before)


def _run(argv: list[str], voice: Voice, before: set[Any]) -> int:
    voice.json = "--json" in argv  # so that a wrong command line is answered in JSON too
    try:
        command = parse(argv)
    except UsageError as error:
        verb = _verb_of(argv)
        if verb in VERBS:
            error.remedy = f"{voice.program} {verb} --help lists its options"
        raise
    options, words, files = command
    if not words or words[0] not in INTERRUPTIBLE:
        pthread_sigmask(SIG_SETMASK, before)
    voice.json, voice.verbosity = options.json, options.verbosity
    for fd in options.close:
        _close(fd)
    if options.help or not words or options.version:
        return _about(options, words, voice)
    verb = words[0]
    if verb not in VERBS:
        raise UsageError(f"there is no command {verb}", remedy=f"the commands are {', '.join(VERBS)}")
    _count_words(verb, words)
    if options.json and options.log_path == "-":
        raise UsageError("-o - writes the log to stdout, and so does --json its object", remedy="give a file by -o")
    _directories(options, verb)
    with log.opened(options.log_path, options.verbosity, stderr=True):
        try:
            return _verb(verb, command, files, voice)
        except TorporError as error:
            if options.log_path:
                log.error(str(error))
            raise
        except Exception:
            if options.log_path:
                import traceback

                log.error(traceback.format_exc())
            raise


def _close(fd: int) -> None:
    try:
        if fd <= 2:  # what we open first would get its number
            os.fstat(fd)
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(null, fd)
            os.close(null)
        else:
            os.close(fd)
    except OSError as error:
        raise UsageError(f"cannot close descriptor {fd}", os.strerror(error.errno or 0)) from None


def _verb_of(argv: list[str]) -> str:
    try:
        return next(iter(scan(argv)[1]), "")
    except UsageError:
        return next((word for word in argv if word in VERBS), "")


def _about(options: Options, words: list[str], voice: Voice) -> int:
    from torpor.cli import help

    if options.version and not options.help:
        voice.out(help.version(voice.program))
        return 0
    text = help.verb(voice.program, words[0]) if words and words[0] in VERBS else help.overview(voice.program)
    if options.help:
        voice.out(text)
        return 0
    if options.json:
        raise UsageError("no command is given", remedy=f"the commands are {', '.join(VERBS)}")
    voice.complain(text)
    return 1


def _count_words(verb: str, words: list[str]) -> None:
    most = {"show": len(words), "swrk": 2, "cpuinfo": 2}.get(verb, 1)
    if len(words) > most:
        option = "-t" if verb in ("dump", "check") and words[most].isdecimal() else "-D"
        remedy = f"write {option} {words[most]}, if you mean that" if verb in INTERRUPTIBLE or verb == "check" else ""
        raise UsageError(f"{words[most]!r} is too much", f"{verb} takes no such word", remedy)


def _directories(options: Options, verb: str) -> None:
    """The directories must be there before anything is written to them."""
    for what, path in (("images", options.images_dir), ("work", options.work_dir)):
        if path is not None and verb in ("dump", "restore", "check", "cpuinfo"):
            try:
                os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            except OSError as error:
                makes = verb == "dump" and error.errno == ENOENT and path
                remedy = f"make it first: mkdir -m 700 {path}" if makes else ""
                raise TorporError(f"cannot open the {what} directory {path}", os.strerror(error.errno or 0), remedy,
                                  code="no-directory") from None  # fmt: skip


def _verb(verb: str, command: Command, files: list[str], voice: Voice) -> int:
    for path in files:
        log.info(f"Options were read from {path}")
    if command.options.config and command.options.config not in files:
        log.warning(f"there is no configuration file {command.options.config}")
    if verb in REFUSED:
        why, remedy = REFUSED[verb]
        raise TorporError(f"the command {verb} is not implemented yet", why, remedy, code="not-implemented")
    log.infos(command.options.settle(verb))
    if verb == "dump":
        from torpor.cli.dump import run as dump

        return dump(command.options, voice)
    if verb == "restore":
        from torpor.cli.restore import run as restore

        return restore(command.options, voice)
    if verb == "check":
        from torpor.cli.check import run as check

        return check(command.options, voice)
    if verb == "cpuinfo":
        from torpor.cli.cpuinfo import run as cpuinfo

        return cpuinfo("".join(command.words[1:2]), command.options, voice)
    return _show(command, voice)


def _show(command: Command, voice: Voice) -> int:
    from torpor.cli.show import run

    if "images_dir" in command.options.given and len(command.words) > 1:
        raise UsageError("two places are named", remedy="give either paths or -D DIR")
    return run(command.words[1:] or [command.options.images_dir], as_json=command.options.json)


if __name__ == "__main__":
    command()
