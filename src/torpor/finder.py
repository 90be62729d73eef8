# SPDX-License-Identifier: Apache-2.0
"""Torpor's own modules, found and loaded quickly: by the command only, not in a host that uses the library.

A small dump imports a hundred modules of Torpor's.  For each, Python looks in every directory of sys.path, lists
directories, and takes a general way through importlib, which costs more processor time than running most of the modules
does: a seventh of what the whole dump costs.  Where a module of this package lies is known: here it takes a fifth of
that.

It takes byte code only from where Python keeps it (__pycache__), by the rule by which Python does (PEP 552: the time
and the size of the source stand in the file), and leaves everything else to Python: byte code that is stale, missing or
checked by a hash, other places for it, sources inside an archive.
"""

import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import MAGIC_NUMBER, SourceFileLoader
from _imp import _fix_co_filename  # type: ignore[attr-defined]
from marshal import loads
from os import O_CLOEXEC, O_RDONLY, close, fstat, open, read, stat, stat_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType, ModuleType

_PREFIX = "torpor."
_ROOT = __file__.rpartition("/")[0] + "/"
_SUFFIX = f".{sys.implementation.cache_tag}.pyc"
_HEADER = 16  # bytes: magic number, flags, time of the source in seconds, its size


class _Finder:
    """In sys.meta_path."""

    @staticmethod
    def find_spec(
        name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None, /
    ) -> "ModuleSpec | None":
        if not name.startswith(_PREFIX):
            return None
        place = _ROOT + name[len(_PREFIX) :].replace(".", "/")
        source = place + ".py"
        directory = None
        try:
            facts = stat(source)
        except OSError:
            directory, source = [place], place + "/__init__.py"
            try:
                facts = stat(source)
            except OSError:
                return None
        head, _, tail = source.rpartition("/")
        loader = _Loader(name, source)
        loader.cached = f"{head}/__pycache__/{tail[:-3]}{_SUFFIX}"
        loader.facts = facts
        spec = ModuleSpec(name, loader, origin=source)
        spec.submodule_search_locations = directory
        spec.has_location = True
        spec.cached = loader.cached
        return spec


class _Loader(SourceFileLoader):
    """Python's own loader, but for the way to the byte code."""

    cached: str
    facts: stat_result

    def get_code(self, fullname: str) -> "CodeType | None":
        try:
            fd = open(self.cached, O_RDONLY | O_CLOEXEC)
        except OSError:
            return super().get_code(fullname)
        try:
            size = fstat(fd).st_size
            data = read(fd, size)
        finally:
            close(fd)
        facts = self.facts
        header = MAGIC_NUMBER + bytes(4) + (int(facts.st_mtime) & 0xFFFFFFFF).to_bytes(4, "little")
        header += (facts.st_size & 0xFFFFFFFF).to_bytes(4, "little")
        if len(data) != size or data[:_HEADER] != header:
            return super().get_code(fullname)
        code: CodeType = loads(memoryview(data)[_HEADER:])
        if code.co_filename != self.path:
            _fix_co_filename(code, self.path)
        return code


def install() -> None:
    """From now on modules of this package are found so."""
    if not (sys.flags.optimize or sys.pycache_prefix or _Finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder)
