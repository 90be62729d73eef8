# SPDX-License-Identifier: Apache-2.0
"""Errors that say what happened, why, and what to do about it.

Every error that reaches a user is a `TorporError`.  Its text is made of three parts: *what* failed, *why*, and the
*remedy*.  `code` is a stable kebab-case word for programs (``--json`` and the library expose it).
"""

import errno
import os


def clean(text: str) -> str:
    """One line, fit for a terminal.  Programs choose names (of files, of themselves), and so do images: in a message of
    ours, what cannot be printed is escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as os.fsdecode shows it
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class TorporError(Exception):
    """Base of all errors Torpor raises on purpose.

    code: stable kebab-case identifier, e.g. ``"no-such-task"``.
    what: what could not be done.  why: the cause, if known.  remedy: what the user can do, if anything.
    """

    code = "error"

    def __init__(self, what: str, why: str = "", remedy: str = "", *, code: str | None = None) -> None:
        super().__init__(what, why, remedy)
        self.what, self.why, self.remedy = what, why, remedy
        if code is not None:
            self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)

    def __str__(self) -> str:
        text = f"{self.what}: {self.why}" if self.why else self.what
        return clean(f"{text}; {self.remedy}" if self.remedy else text)


def _rebuild(cls: type[TorporError], args: tuple[object, ...], state: dict[str, object]) -> TorporError:
    """Unpickle without calling a subclass's __init__: errors cross from the engine process to the front."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class UsageError(TorporError):
    """The command line or an option's value makes no sense."""

    code = "usage"


class Refusal(TorporError):
    """Something in the tree (or its images) that Torpor cannot save or bring back faithfully.

    `subject` names task and object, e.g. ``"task 123 (redis), fd 7"``.  Refusals are raised before anything is touched.
    """

    code = "unsupported"

    def __init__(self, subject: str, why: str, remedy: str = "", *, code: str | None = None) -> None:
        super().__init__(subject, why, remedy, code=code)
        self.subject = subject


class ImageError(TorporError):
    """Images are missing, truncated, mangled, or not of this program.  There is a usual remedy, by code."""

    code = "bad-image"

    def __init__(self, what: str, why: str = "", remedy: str = "", *, code: str | None = None) -> None:
        super().__init__(what, why, remedy or _USUAL.get(code or self.code, _USUAL["bad-image"]), code=code)


# What to do about images, by code.
_USUAL = {
    "bad-image": "copy the whole directory again from where the dump was made, or use another dump",
    "missing-image": "copy the whole directory again from where the dump was made, with every file in it",
    "foreign-architecture": "restore on a machine like the one that it comes from",
    "foreign-image": "restore it with the program that made it, on a machine like the one it comes from",
    "bad-value": "this is a bug in Torpor; please report it",
}


class KernelError(TorporError):
    """A system call failed where it should not have."""

    code = "kernel"

    def __init__(self, what: str, error: OSError | int, remedy: str = "") -> None:
        number = error if isinstance(error, int) else (error.errno or 0)
        self.errno = number
        super().__init__(what, f"{os.strerror(number)} ({errno.errorcode.get(number, number)})", remedy)


class TaskGone(TorporError):
    """A task ended, or was never there, while Torpor needed it."""

    code = "no-such-task"


class DumpFailed(TorporError):
    """The dump was abandoned; the tree runs on unharmed."""

    code = "dump-failed"


class RestoreFailed(TorporError):
    """The restore was undone; nothing of the tree is left."""

    code = "restore-failed"


def exhausted(error: BaseException) -> TorporError | None:
    """What to say of an error that tells only that this process may have no more of something; None: of another."""
    number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    if number == errno.ENOMEM:
        why, remedy = "there is none left", "free some, or raise the limit for Torpor's processes (ulimit -v)"
        return TorporError("Torpor gets no more memory", why, remedy, code="no-memory")
    if number == errno.EMFILE:
        from resource import RLIMIT_NOFILE, getrlimit

        why = f"its own hard limit is {getrlimit(RLIMIT_NOFILE)[1]}"
        return TorporError("Torpor may open no more files", why, "raise it: ulimit -Hn NUMBER", code="no-descriptors")
    if number == errno.ENFILE:
        return TorporError(
            "nobody can open more files", os.strerror(number), "raise fs.file-max", code="no-descriptors"
        )
    return None
