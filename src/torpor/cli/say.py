# SPDX-License-Identifier: Apache-2.0
"""What the command line says to people (sentences) and to programs (one JSON object)."""

import os
import sys

from torpor import log
from torpor.errors import TorporError
from torpor.typed import Any


class Voice:
    """Where a command's result and its errors go."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.json = False
        self.verbosity = log.WARNING

    def out(self, text: str) -> None:
        """A line on stdout; characters that it cannot show are replaced."""
        encoding = sys.stdout.encoding or "ascii"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            text = text.replace("→", "->").replace("←", "<-").encode(encoding, "backslashreplace").decode(encoding)
        print(text, flush=True)

    def complain(self, text: str) -> None:
        try:
            print(text.encode(errors="backslashreplace").decode(), file=sys.stderr, flush=True)
        except OSError:
            pass  # nowhere left to say so

    def result(self, sentence: str, facts: dict[str, Any]) -> None:
        """The end of a command that did its work: nobody who listens to that changes it."""
        if self.json:
            import json

            sentence = json.dumps(facts)
        try:
            self.out(sentence)
        except OSError as error:
            log.warning(f"the result could not be written: {error}")
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what Python flushes at its end

    def error(self, error: TorporError) -> int:
        """The end of one that did not."""
        if self.json:
            import json

            facts = {"code": error.code, "what": error.what, "why": error.why, "remedy": error.remedy}
            self.out(json.dumps({"error": facts}))
        elif self.verbosity > log.NOTHING:
            self.complain(f"{self.program}: {error}")
        return 1

    def bug(self, error: Exception) -> int:
        import traceback

        trace = "".join(traceback.format_exception(error))
        self.complain(trace)
        why = f"{type(error).__name__}: {error}"
        remedy = "please report it with the text above"
        return self.error(TorporError("this is a bug in Torpor", why, remedy, code="internal"))


def count(number: int, noun: str, nouns: str = "") -> str:
    """1 task, 5 tasks."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"
