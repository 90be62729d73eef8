# SPDX-License-Identifier: Apache-2.0
"""Names for people of everything in the registry; what is covered, in a line each (docs/supported.md is made of it)."""

# Open files: what they are called, one of them.
FILES = {
    "fd:regular": "file",
    "fd:directory": "directory",
    "fd:symlink": "symbolic link",
    "fd:device": "memory device",
    "fd:path": "path (O_PATH)",
    "fd:pipe": "pipe end",
    "fd:fifo": "FIFO",
    "fd:memfd": "memfd",
    "fd:eventfd": "eventfd",
    "fd:eventpoll": "epoll instance",
    "fd:timerfd": "timerfd",
    "fd:signalfd": "signalfd",
    "fd:tty": "terminal",
    "fd:unix": "UNIX socket",
    "fd:inet": "TCP or UDP socket",
    "fd:inotify": "inotify descriptor",
    "fd:fanotify": "fanotify descriptor",
    "fd:userfaultfd": "userfaultfd",
    "fd:io_uring": "io_uring",
    "fd:perf_event": "perf event",
    "fd:bpf": "BPF object",
    "fd:pidfd": "pidfd",
    "fd:netlink": "netlink socket",
    "fd:packet": "packet socket",
    "fd:vsock": "vsock socket",
    "fd:alg": "AF_ALG socket",
    "fd:socket": "socket of another family",
    "fd:namespace": "namespace",
    "fd:secretmem": "secret memory",
    "fd:chardev": "character device",
    "fd:blockdev": "block device",
    "fd:tun": "tun or tap device",
    "fd:fuse": "FUSE connection",
    "fd:loop_control": "loop control device",
    "fd:mqueue": "message queue",
    "fd:seccomp_notify": "seccomp supervisor",
    "fd:landlock": "Landlock ruleset",
    "fd:mount_api": "file system context",
    "fd:cachefiles": "cache file",
    "fd:sync_file": "fence",
    "fd:dmabuf": "DMA buffer",
    "fd:ntsync": "ntsync object",
    "fd:kvm": "virtual machine",
    "fd:vfio": "VFIO or iommufd handle",
    "fd:hardware": "hardware handle",
    "fd:anon": "descriptor of an unknown kind",
}


# What tasks, threads and areas have; for docs/supported.md.
OTHERS = {
    "task:pid": "PID",
    "task:parent": "parent and children, orphans included",
    "task:session": "session, also one whose leader has ended",
    "task:group": "process group, also one whose leader has ended",
    "task:zombie": "zombies with their exit status",
    "task:stopped": "being stopped by job control",
    "task:sharing": "memory, descriptors, directories and handlers shared between tasks (CLONE_VM, CLONE_FILES, …)",
    "task:descriptors": "table of descriptors, close-on-exec, numbers",
    "task:umask": "umask",
    "task:cwd": "working directory, also a deleted one",
    "task:root": "root directory",
    "task:memory": "content of private memory; pages that fork shares stay shared",
    "task:layout": "brk, arguments, environment, auxiliary vector, executable",
    "task:autogroup": "nice value of the session (autogroup): refused unless 0",
    "task:cgroups": "cgroups: refused where they are not Torpor's own, unless --manage-cgroups=ignore",
    "task:child_subreaper": "being a child subreaper",
    "task:core_sched": "core scheduling: refused",
    "task:coredump_filter": "filter of core dumps",
    "task:cpuid": "CPUID turned off (x86)",
    "task:dexcr": "control of dynamic execution, and the key for hashes of return addresses (POWER10)",
    "task:dumpable": "dumpable flag",
    "task:extended_registers": "permission to use AMX: refused",
    "task:fp_exceptions": "trapping of floating-point exceptions (ppc64le)",
    "task:futex_hash": "a table of futexes of a size that it chose itself",
    "task:io_flusher": "being an I/O flusher: refused",
    "task:ioperm": "permissions for I/O ports: refused",
    "task:itimers": "interval timers (setitimer)",
    "task:keyrings": "keys of the thread and the process: refused",
    "task:kernel_thread": "threads of the kernel: refused",
    "task:label": "labels of security modules: refused unless unconfined",
    "task:loginuid": "login uid of the audit",
    "task:mce_kill": "policy for memory errors",
    "task:mdwe": "memory-deny-write-execute",
    "task:membarrier": "membarrier registrations",
    "task:memory_merge": "merging of equal pages (KSM)",
    "task:mempolicy": "memory policy (set_mempolicy): refused",
    "task:oom_score_adj": "oom_score_adj",
    "task:pending": "signals pending for the process, with their siginfo",
    "task:personality": "personality",
    "task:rlimits": "resource limits",
    "task:segments": "memory segments of its own (modify_ldt): refused",
    "task:sem_undo": "System V semaphores that it holds with SEM_UNDO: refused",
    "task:shadow_stack": "shadow stacks: refused",
    "task:sigactions": "signal handlers",
    "task:speculation": "speculation controls",
    "task:tagged_addresses": "masking of addresses (LAM): refused",
    "task:unseen_stop": "a stop that the parent was not told of yet",
    "task:thp_disable": "transparent huge pages turned off",
    "task:timers": "POSIX timers, with ids and overruns",
    "task:tsc": "time stamp counter turned off",
    "task:unaligned": "policy for unaligned accesses (ppc64le)",
    "task:32bit": "32-bit programs: refused",
    "thread:tid": "thread IDs",
    "thread:registers": "all registers (general, floating point, vector: XSTATE), TLS",
    "thread:sigmask": "signal mask",
    "thread:interrupted_call": "system calls that were interrupted anywhere, restarted or not",
    "thread:altstack": "alternate signal stack",
    "thread:byte_order": "running in the other byte order (ppc64le): refused",
    "thread:clear_child_tid": "address that is cleared at its end",
    "thread:creds": "uids, gids, groups, capabilities, securebits, no_new_privs",
    "thread:name": "name",
    "thread:nice": "nice value",
    "thread:pdeathsig": "parent-death signal",
    "thread:pending": "signals pending for the thread",
    "thread:robust_list": "robust futexes",
    "thread:thread_pointer": "thread-local storage",
    "thread:register": "a register that is its own (TPIDRURW of 32-bit ARM)",
    "thread:rseq": "restartable sequences",
    "thread:sched": "scheduling policy and priority, I/O priority, processors",
    "thread:seccomp": "seccomp: refused",
    "thread:syscall_dispatch": "system calls dispatched to user space: refused",
    "thread:timer_slack": "timer slack",
    "vma:anon": "anonymous memory, named or not, guard pages, PROT_NONE with content",
    "vma:heap": "heap",
    "vma:stack": "stack, growing",
    "vma:file": "files, private with their changed pages, and shared",
    "vma:shmem": "shared anonymous memory",
    "vma:memfd": "memfds",
    "vma:sysv": "System V shared memory",
    "vma:vdso": "vDSO: refused where the program has changed its code or protection",
    "vma:vvar": "the vDSO's data",
    "vma:vvar_vclock": "the vDSO's data of clocks",
    "vma:vsyscall": "vsyscall page",
    "vma:sigpage": "the kernel's signal trampolines (32-bit ARM)",
    "vma:vectors": "the kernel's helpers (32-bit ARM)",
    "vma:tags": "memory tags (PROT_MTE of aarch64)",
}


def file_words(key: str, number: int) -> str:
    """ "1 pipe end", "5,000 files"."""
    word = FILES.get(key, key)
    if number != 1:
        first, *rest = word.split(" ", 1)
        if rest and rest[0].startswith(("of ", "or ", "(")):
            head, tail = first, rest[0]
            if tail.startswith("or "):
                head, tail = word, ""
            word = f"{_plural(head)} {tail}".rstrip()
        else:
            word = _plural(word)
    return f"{number:,} {word}"


def _plural(word: str) -> str:
    if word.endswith("y"):
        return word[:-1] + "ies"
    return word + "s"
