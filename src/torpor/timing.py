# SPDX-License-Identifier: Apache-2.0
"""Where the time of a dump goes, by kind of object: only when it is asked for (--display-stats), as asking costs."""

from time import perf_counter

from torpor.resources.base import Attribute
from torpor.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torpor.engine.program import Program
    from torpor.engine.tracee import Tracee
    from torpor.resources.context import Dump, DumpTask


class Costs:
    """By kind: how many times something was done for it, and seconds."""

    def __init__(self) -> None:
        self.kinds: dict[str, tuple[int, float]] = {}

    def add(self, kind: str, since: float) -> None:
        number, seconds = self.kinds.get(kind, (0, 0.0))
        self.kinds[kind] = number + 1, seconds + perf_counter() - since


class Timed(Attribute):
    """An attribute whose work while tasks stand still is timed."""

    def __init__(self, inner: Attribute, costs: Costs) -> None:
        self.inner, self._costs = inner, costs
        self._name = type(inner).__module__.rpartition(".")[2]
        self.examine_running = inner.examine_running  # type: ignore[method-assign]
        self.save, self.save_thread = inner.save, inner.save_thread  # type: ignore[method-assign]

    @property
    def of_threads(self) -> bool:
        return self.inner.of_threads

    @property
    def looks(self) -> bool:
        return self.inner.looks

    def examine(self, task: "DumpTask", dump: "Dump") -> None:
        since = perf_counter()
        self.inner.examine(task, dump)
        self._costs.add(self._name, since)

    def ask(self, task: "DumpTask", program: "Program") -> Any:
        since = perf_counter()
        answer = self.inner.ask(task, program)
        self._costs.add(self._name, since)
        return answer

    def ask_thread(self, task: "DumpTask", program: "Program") -> Any:
        since = perf_counter()
        answer = self.inner.ask_thread(task, program)
        self._costs.add(self._name, since)
        return answer

    def look_thread(self, task: "DumpTask", thread: "Tracee") -> Any:
        since = perf_counter()
        found = self.inner.look_thread(task, thread)
        self._costs.add(self._name, since)
        return found
