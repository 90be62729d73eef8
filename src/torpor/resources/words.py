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
