# SPDX-License-Identifier: Apache-2.0
"""What this kernel can do for Torpor, found by doing it: never by version, configuration file or a file's existence.

A probe is a function that makes the kernel do the thing once, on objects of its own, and raises OSError or `Missing`
where it does not.  Many unshare namespaces, trace children or take rights away, so `run` must be called in a process
that may be spoilt and that nobody waits for (`torpor.check` forks one); what they spoil most, they spoil in a child of
their own (`in_child`).  Nothing is left behind.
"""

import os
from functools import wraps
from typing import Any, NamedTuple

from torpor import signals as signal
from torpor.typed import Callable, Iterable

REQUIRED, OPTIONAL, EXPERIMENTAL = "required", "optional", "experimental"


class Missing(Exception):
    """The kernel answered, but does not do what is wanted; the text says what is wrong."""


class Probe(NamedTuple):
    """One facility: what needs it, since when the kernel has it, how to try it, and what to do without it."""

    name: str
    group: str
    since: str
    use: str
    test: Callable[[], None]
    remedy: str
    criu: str = ""  # what `criu check --feature` calls it


class Finding(NamedTuple):
    """What a probe found; `why` is empty where it works."""

    name: str
    group: str
    works: bool
    why: str
    use: str
    remedy: str

    def facts(self) -> dict[str, Any]:
        return dict(self._asdict())


def run(probes: Iterable[Probe]) -> list[Finding]:
    """Try them, in this process."""
    found = []
    for probe in probes:
        why = ""
        try:
            probe.test()
        except Missing as missing:
            why = str(missing)
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
        found.append(Finding(probe.name, probe.group, not why, why, probe.use, probe.remedy))
    return found


WORKS = "works"  # what a probe's child says at its end


def in_child(test: Callable[[], None]) -> Callable[[], None]:
    """Run a probe in a child of its own, because it changes the process for good."""

    @wraps(test)
    def outside() -> None:
        theirs, ours = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                test()
                os.write(ours, WORKS.encode())
                status = 0
            except Missing as missing:
                os.write(ours, str(missing).encode())
            except OSError as error:
                os.write(ours, str(error.errno or error).encode())
            except BaseException as error:
                os.write(ours, f"the probe is wrong: {error!r}".encode())
            finally:
                os._exit(status)
        os.close(ours)
        with open(theirs, "rb") as pipe:
            answer = pipe.read().decode()
        status = -1
        try:
            _, status = os.waitpid(pid, 0)
        except ChildProcessError:
            pass  # the host ignores SIGCHLD, or has collected it
        if answer.isdecimal():
            raise OSError(int(answer), os.strerror(int(answer)))
        if answer != WORKS:
            raise Missing(answer or f"the probe ended with wait status {status}")

    return outside


def probes() -> tuple[Probe, ...]:
    """What Torpor uses."""
    from torpor.kernel import probe_memory as memory
    from torpor.kernel import probe_net as net
    from torpor.kernel import probe_tasks as tasks

    newer = "use a newer kernel"
    rooted = "use a newer kernel, as root"
    config = "use a kernel with CONFIG_CHECKPOINT_RESTORE"
    root = "run as root, in the initial user namespace"
    slower = "nothing: Torpor takes a slower way"
    return (
        Probe("ptrace", REQUIRED, "3.4", "stopping tasks, reading and setting registers", tasks.ptrace,
              "allow ptrace: kernel.yama.ptrace_scope below 3, CAP_SYS_PTRACE"),
        Probe("rseq configuration", REQUIRED, "5.13", "threads inside restartable sequences", tasks.rseq, newer,
              "get_rseq_conf"),
        Probe("pidfd_getfd", REQUIRED, "5.6", "bringing open files out of tasks", tasks.pidfd_getfd, root,
              "pidfd_store"),
        Probe("kcmp", REQUIRED, "3.5", "telling what tasks share", tasks.kcmp, "use a kernel with CONFIG_KCMP"),
        Probe("kcmp of epoll targets", REQUIRED, "4.13", "epoll", tasks.kcmp_epoll, "use a kernel with CONFIG_KCMP",
              "kcmp_epoll"),
        Probe("clone3 with set_tid", REQUIRED, "5.5", "restoring PIDs", tasks.clone3_set_tid,
              "run as root, or with CAP_CHECKPOINT_RESTORE; no other program may take the PIDs", "clone3_set_tid"),
        Probe("PR_SET_MM_MAP", REQUIRED, "3.18", "restoring the layout of memory", memory.set_mm_map, config),
        Probe("map_files", REQUIRED, "3.3", "files that are only mapped, deleted ones among them", memory.map_files,
              root),
        Probe("/proc/PID/mem", REQUIRED, "2.6.39", "the executor's page", memory.proc_mem,
              "boot without proc_mem.force_override=never"),
        Probe("pagemap", REQUIRED, "2.6.25", "telling which pages have content", memory.pagemap, root),
        Probe("process_vm_readv", REQUIRED, "3.2", "reading memory", memory.vm_readv, newer),
        Probe("memfd_create", REQUIRED, "3.17", "shared memory, and the first restored process", memory.memfd, newer),
        Probe("peeking at signals", REQUIRED, "3.10", "pending signals", tasks.peek_signals, config),
        Probe("POSIX timers in /proc", REQUIRED, "3.10", "POSIX timers", tasks.proc_timers, config),
        Probe("mount IDs in fdinfo", REQUIRED, "3.15", "open files", tasks.fdinfo_mnt_id, newer, "mnt_id"),
        Probe("timerfd in fdinfo", REQUIRED, "3.17", "timerfds", tasks.timerfd, newer, "timerfd"),
        Probe("unix_diag", REQUIRED, "3.3", "UNIX sockets", net.unix_diag, "load the module unix_diag"),
        Probe("inet_diag", REQUIRED, "3.3", "TCP and UDP sockets", net.inet_diag,
              "load the modules inet_diag, tcp_diag and udp_diag"),
        Probe("PAGEMAP_SCAN", OPTIONAL, "6.7", "finding pages with content quickly", memory.pagemap_scan, slower,
              "pagemap_scan"),
        Probe("guard pages", OPTIONAL, "6.13", "programs with guard pages", memory.guard_pages,
              "nothing: programs cannot have them here either"),
        Probe("guard pages in PAGEMAP_SCAN", OPTIONAL, "6.15", "programs with guard pages",
              memory.pagemap_scan_guard, slower, "pagemap_scan_guard_pages"),
        Probe("PROCMAP_QUERY", OPTIONAL, "6.11", "looking at single areas", memory.procmap_query, slower),
        Probe("PIDFD_THREAD", OPTIONAL, "6.9", "threads with descriptors of their own, zombie leaders",
              tasks.pidfd_thread, "use a newer kernel for programs that have them"),
        Probe("timer IDs at will", OPTIONAL, "6.15", "POSIX timers", tasks.timer_ids, slower, "timer_cr_ids"),
        Probe("running memfds", OPTIONAL, "3.17", "the first restored process", memory.memfd_exec,
              "nothing: Torpor uses a file; vm.memfd_noexec=0 allows it"),
        Probe("seccomp suspended", OPTIONAL, "4.3", "tasks under seccomp", tasks.seccomp_suspend,
              "run as root", "seccomp_suspend"),
        Probe("dispatch of system calls shown", OPTIONAL, "6.4", "refusing programs that dispatch their system calls",
              tasks.dispatch_shown, "dump no program with PR_SET_SYSCALL_USER_DISPATCH (Wine): it would lose that"),
        Probe("raised limits", OPTIONAL, "2.6.36", "tasks whose limits are above ours", tasks.sys_resource,
              "run with CAP_SYS_RESOURCE for trees that need it"),
        Probe("TCP repair mode", OPTIONAL, "3.5", "TCP connections", net.tcp_repair, "run with CAP_NET_ADMIN"),
        Probe("socket buffer locks", OPTIONAL, "5.16", "sizes of socket buffers", net.buf_lock, newer,
              "sockopt_buf_lock"),
        Probe("close_range", OPTIONAL, "5.9", "tables with many open files", tasks.close_range, slower),
        Probe("openat2", OPTIONAL, "5.6", "opening files in other roots", tasks.openat2, newer, "openat2"),
        Probe("hugetlb memfds", OPTIONAL, "4.14", "shared memory of huge pages", memory.memfd_hugetlb, newer,
              "memfd_hugetlb"),
        Probe("userfaultfd write-protect, asynchronous", EXPERIMENTAL, "6.7", "tracking what changed in memory",
              memory.wp_async, rooted),
        Probe("UFFDIO_MOVE", EXPERIMENTAL, "6.8", "filling memory lazily", memory.uffd_move, rooted),
        Probe("time namespaces", EXPERIMENTAL, "5.6", "clocks after a reboot", tasks.time_namespace,
              "use a kernel with CONFIG_TIME_NS, as root", "timens"),
        Probe("set_syscall_info", EXPERIMENTAL, "6.16", "a portable way to step", tasks.set_syscall_info, slower),
    )  # fmt: skip


def features() -> dict[str, Probe]:
    """The probes behind CRIU's names, in CRIU's order: those above, and what CRIU asks besides."""
    from torpor.kernel import probe_criu

    named = {probe.criu: probe for probe in probes() if probe.criu}
    others = {probe.name: probe for probe in probe_criu.probes()}
    return {name: named.get(name) or others[name] for name in probe_criu.NAMES}
