# SPDX-License-Identifier: Apache-2.0
"""The guardian: a process that does nothing until the engine dies, and then puts its tasks back.

Tasks that run the executor go home by themselves when the engine dies.  What they cannot do: unmap the page that their
way home leads over, go on with a sleep instead of ending it (EINTR), or live at all if the engine died while it stepped
them.  The guardian can: it knows from the journal (engine/journal.py) what is to be put back where.

It traces the engine for one event, PTRACE_EVENT_EXIT.  There the engine stands still, killed, but its tasks are not
released yet and its descriptors are open: the guardian takes the executors' sockets, so that no task goes home before
it comes, and sends SIGSTOP to tasks that were being stepped, so that none runs a single instruction with wrong
registers.  Where the engine cannot be traced (somebody does so already), tasks go home first and are tidied up then.
"""

import os

from torpor import signals as signal
from torpor.engine import journal, stops
from torpor.engine.stops import Kind
from torpor.engine.waiting import forget_cancellation
from torpor.kernel import ptrace

PR_SET_PTRACER = 0x59616D61


class Guardian:
    """The engine's side."""

    def __init__(self, pid: int, fd: int, ready: int) -> None:
        self.pid, self._fd, self._ready = pid, fd, ready

    @classmethod
    def start(cls) -> "Guardian":
        """Fork the guardian, and keep a journal.  Before the freeze `await_ready` is to be called, too."""
        from torpor.engine import rescue  # noqa: F401  (imported here, for the guardian)
        from torpor.kernel.process import fork, prctl

        journal.open_journal()
        theirs, ours = os.pipe2(os.O_CLOEXEC)
        ready, say_ready = os.pipe2(os.O_CLOEXEC)
        engine = os.getpid()
        pid = fork()
        if pid == 0:
            try:
                os.close(ours)
                os.setsid()
                _guard(engine, theirs, say_ready)
            finally:
                os._exit(0)
        os.close(theirs)
        os.close(say_ready)
        try:
            prctl(PR_SET_PTRACER, pid)  # Yama lets nobody trace an ancestor else
        except OSError:
            pass
        return cls(pid, ours, ready)

    def await_ready(self) -> None:
        """Wait until it watches: from here on the engine may die."""
        os.read(self._ready, 1)

    def finish(self) -> None:
        """Everything is put back, or ended: the guardian has nothing to do any more."""
        journal.close_journal()
        os.kill(self.pid, signal.SIGKILL)
        os.close(self._fd)
        os.close(self._ready)
        os.waitpid(self.pid, 0)


def _guard(engine: int, fd: int, say_ready: int) -> None:
    from torpor.engine.rescue import Rescue

    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    forget_cancellation()
    _close_all_but(fd, say_ready)
    traced = True
    try:
        ptrace.seize(engine, ptrace.O_TRACEEXIT)
    except OSError:
        traced = False
    os.write(say_ready, b"r")
    os.close(say_ready)
    rescue = Rescue(engine)
    if traced and _await_exit(engine):
        rescue.before_release()
        ptrace.cont(engine)
        while stops.wait(engine).kind != Kind.ENDED:
            ptrace.cont(engine)
    else:
        os.read(fd, 1)  # end-of-file; the engine writes nothing
        rescue.late(traced)
    rescue.run()


def _await_exit(engine: int) -> bool:
    """Wait until the engine is about to exit.  False: it has done so already (killed twice)."""
    while True:
        stop = stops.wait(engine)
        if stop.kind == Kind.ENDED:
            return False
        if stop.kind == Kind.EVENT and stop.event == ptrace.EVENT_EXIT:
            return True
        if stop.kind == Kind.GROUP_STOP:
            ptrace.listen(engine)
        else:
            ptrace.cont(engine, stop.signal if stop.kind == Kind.SIGNAL else 0)


def _close_all_but(*keep: int) -> None:
    """Hold nothing of the engine's: an image directory could not be unmounted, a pipe would not see its end."""
    from torpor.kernel.process import close_range

    first = 0
    for fd in sorted(keep):
        if fd > first:
            close_range(first, fd - 1)
        first = fd + 1
    close_range(first)
