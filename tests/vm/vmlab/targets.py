# SPDX-License-Identifier: Apache-2.0
"""The machines: which Debian packages, which QEMU, which board and console for each architecture.

Surprises. pSeries under TCG has none of the speculation workarounds that the firmware offers by default, hence the four
``cap-`` settings; ``x-vof`` replaces SLOF, which takes seconds. armhf needs ``highmem=off`` or its PCI window lies
beyond what a kernel without LPAE reaches. Without LPAE a kernel writes DACR at each entry, exit and access to a task's
memory, for which QEMU forgets all translations, 250,000 times a dump: twice as slow. With LPAE 6.12 does so in another
way and is slower still, hence one kernel of each kind. Linux 6.1's cloud kernel of arm64 lacks the PL011's early set-up
that 6.12's has, so 6.1 uses the ordinary kernel. QEMU 7.2 emulates CMPXCHG16B with an error that strikes now and then,
after which the flags hold rubbish and Linux 6.12 dies of a double fault in kmalloc: no x86_64 CPU has it here.
"""

from typing import NamedTuple

from . import VmError


class Target(NamedTuple):
    """One architecture.  `kernels` maps a Linux version to (Debian suite, pattern of the package's name)."""

    arch: str  # Torpor's name
    machine: str  # what uname -m says in the guest
    debian: str
    qemu: str
    qemu_package: str
    board: tuple[str, ...]
    console: str
    triplet: str  # of the compiler
    kernels: dict[str, tuple[str, str]]


_PSERIES = "pseries,x-vof=on,cap-cfpc=broken,cap-sbbc=broken,cap-ibs=broken,cap-ccf-assist=off"

TARGETS: dict[str, Target] = {
    target.arch: target
    for target in (
        Target(
            "x86_64",
            "x86_64",
            "amd64",
            "qemu-system-x86_64",
            "qemu-system-x86",
            ("-M", "q35", "-cpu", "max,-cx16"),
            "ttyS0",
            "x86_64-linux-gnu",
            {
                "6.1": ("bookworm", r"linux-image-6\.1\.[0-9.]+-[0-9]+-cloud-amd64-unsigned"),
                "6.12": ("trixie", r"linux-image-6\.12\.[0-9]+\+deb13-cloud-amd64-unsigned"),
            },
        ),
        Target(
            "aarch64",
            "aarch64",
            "arm64",
            "qemu-system-aarch64",
            "qemu-system-arm",
            ("-M", "virt", "-cpu", "cortex-a72"),
            "ttyAMA0",
            "aarch64-linux-gnu",
            {
                "6.1": ("bookworm", r"linux-image-6\.1\.[0-9.]+-[0-9]+-arm64-unsigned"),
                "6.12": ("trixie", r"linux-image-6\.12\.[0-9]+\+deb13-cloud-arm64-unsigned"),
            },
        ),
        Target(
            "arm",
            "armv7l",
            "armhf",
            "qemu-system-arm",
            "qemu-system-arm",
            ("-M", "virt,highmem=off", "-cpu", "cortex-a15"),
            "ttyAMA0",
            "arm-linux-gnueabihf",
            {
                "6.1": ("bookworm", r"linux-image-6\.1\.[0-9.]+-[0-9]+-armmp-lpae"),
                "6.12": ("trixie", r"linux-image-6\.12\.[0-9]+\+deb13-armmp"),
            },
        ),
        Target(
            "ppc64le",
            "ppc64le",
            "ppc64el",
            "qemu-system-ppc64",
            "qemu-system-ppc",
            ("-M", _PSERIES, "-cpu", "power9"),
            "hvc0",
            "powerpc64le-linux-gnu",
            # 64 KiB pages in 6.1, 4 KiB in 6.12
            {
                "6.1": ("bookworm", r"linux-image-6\.1\.[0-9.]+-[0-9]+-powerpc64le"),
                "6.12": ("trixie", r"linux-image-6\.12\.[0-9]+\+deb13-powerpc64le"),
                "6.12-64k": ("trixie", r"linux-image-6\.12\.[0-9]+\+deb13-powerpc64le-64k"),
            },
        ),
        Target(
            "s390x",
            "s390x",
            "s390x",
            "qemu-system-s390x",
            "qemu-system-s390x",
            ("-M", "s390-ccw-virtio", "-cpu", "max"),
            "ttysclp0",
            "s390x-linux-gnu",
            {
                "6.1": ("bookworm", r"linux-image-6\.1\.[0-9.]+-[0-9]+-s390x"),
                "6.12": ("trixie", r"linux-image-6\.12\.[0-9]+\+deb13-s390x"),
            },
        ),
    )
}
KERNELS = ("6.1", "6.12")


def target_named(name: str) -> Target:
    """By Torpor's name of an architecture, or by that of Debian, `uname -m` or CRIU.  Raises VmError."""
    for target in TARGETS.values():
        if name in (target.arch, target.debian, target.machine) or (name, target.arch) == ("armv7", "arm"):
            return target
    raise VmError(f"there is no architecture {name}; there are {', '.join(TARGETS)}")


def known_kernel(name: str) -> str:
    """The same.  Raises VmError where no architecture has it."""
    known = list(dict.fromkeys(kernel for target in TARGETS.values() for kernel in target.kernels))
    if name not in known:
        raise VmError(f"there is no kernel {name}; there are {', '.join(known)}")
    return name


# What QEMU needs to emulate another CPU than the target's: to sign pointers as the architecture says takes most of the
# emulator's time, and tags need memory of their own.
CPUS = {("aarch64", "max"): ("-cpu", "max,pauth-impdef=on", "-M", "virt,mte=on")}

# The guest's userland always comes from bookworm, so that one set of byte-compiled files fits both kernels.
USERLAND_SUITE = "bookworm"
USERLAND = (
    "busybox-static", "libbz2-1.0", "libc6", "libcrypt1", "libexpat1", "libffi8", "libgcc-s1", "liblzma5",
    "libpython3.11-minimal", "libpython3.11-stdlib", "libssl3", "libuuid1", "python3.11-minimal", "zlib1g",
)  # fmt: skip

# Kernel modules packed for the guest, dependencies added; what a kernel has built in or lacks is left out.  modprobe
# loads them on demand.  Without crc32c_generic nf_tables fails on arm64.
MODULES = (
    "virtio_pci", "virtio_mmio", "virtio_ccw", "virtio_blk", "virtio_net", "virtio_rng", "virtio_console", "ext4",
    "overlay",
    "unix_diag", "inet_diag", "tcp_diag", "udp_diag", "raw_diag", "netlink_diag", "af_packet_diag",
    "nf_tables", "nft_ct", "nft_counter", "nft_reject_inet", "nft_log", "nf_conntrack", "nfnetlink",
    "nfnetlink_queue", "nf_conntrack_netlink", "nft_compat",
    "ip_tables", "iptable_filter", "ip6_tables", "ip6table_filter", "xt_mark", "xt_conntrack", "xt_tcpudp",
    "crc32c", "crc32c_generic", "crc32c_intel", "crc32c_vpmsum", "crc32c_arm64", "crc32_ce", "libcrc32c", "crc16",
    "sch_ingress", "sch_plug", "veth", "bridge", "tun", "dummy", "macvlan", "af_packet", "fuse", "loop",
)  # fmt: skip
