# SPDX-License-Identifier: Apache-2.0
"""Whatever the kernel can show is either saved and brought back, or refused in words: nothing falls through.

The tables below are Linux 6.18's, from its sources.  What this machine's kernel shows is looked at, too: a line or a
file that is in no table fails the test, and whoever adds it has to say what becomes of it.  A reason in the place of a
registry key says why there is nothing to save.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import torpor
from torpor.kernel import maps
from torpor.memory import areas
from torpor.resources import registry, words
from torpor.resources.base import Attribute, FileKind
from torpor.resources.namespaces import FOR_CHILDREN, NAMESPACES

SOURCE = Path(torpor.__file__).parent


def covered() -> set[str]:
    found = set(registry.FILES) | set(registry.OTHERS)
    for attribute in registry.attributes():
        found |= attribute.covers
    return found


class Because(str):
    """Why there is nothing to save."""


COUNTS = Because("an account of the past, begun anew")
FOLLOWS = Because("follows from what is restored")
KERNEL = Because("the kernel's own business")
SHOWS = Because("shows what others hold")


def answered(key: str) -> bool:
    return isinstance(key, Because) or key in covered() or key in registry.REFUSED or key.startswith("ns:")


# ---- the registry itself ---------------------------------------------------------------------------------------------


def test_nothing_is_answered_twice() -> None:
    attributes = [key for attribute in registry.attributes() for key in attribute.covers]
    every = [*registry.FILES, *registry.OTHERS, *registry.REFUSED, *attributes]
    assert sorted(every) == sorted(set(every))


@pytest.mark.parametrize("key", sorted(registry.FILES))
def test_covered_files_go_both_ways(key: str) -> None:
    kind = registry.file_kind(key)
    assert kind is not None
    assert key in kind.covers
    assert type(kind).save is not FileKind.save
    assert type(kind).make is not FileKind.make
    assert registry.file_kind_of_type(kind.type) is not None


# Attributes that are asked for, or put back, by others; and those that are always refused.
SAVED_ELSEWHERE = {
    "task:dumpable": Because("memory's image has it"), "thread:thread_pointer": Because("it is one of the registers"),
}  # fmt: skip
RESTORED_ELSEWHERE = {"task:unseen_stop": Because("resources/tree.py stops the task so that the parent is told")}
ONLY_REFUSED = {"Confinement", "Cgroups", "Ports", "Undo"}
SAVES = {"ask", "save", "ask_thread", "look_thread", "save_thread"}
RESTORES = {"place", "place_thread", "in_turn", "last", "outside"}


@pytest.mark.parametrize("attribute", registry.attributes(), ids=lambda attribute: type(attribute).__name__)
def test_attributes_go_both_ways_or_are_refused(attribute: Attribute) -> None:
    own = {name for name in vars(Attribute) if getattr(type(attribute), name) is not getattr(Attribute, name)}
    assert attribute.covers
    if type(attribute).__name__ in ONLY_REFUSED:
        assert "examine" in own and not own & RESTORES
        return
    assert own & SAVES or attribute.covers <= SAVED_ELSEWHERE.keys()
    assert own & RESTORES or attribute.covers <= RESTORED_ELSEWHERE.keys()


@pytest.mark.parametrize("key", sorted(registry.OTHERS))
def test_others_are_where_the_registry_says(key: str) -> None:
    assert (SOURCE / registry.OTHERS[key]).exists()


def test_refusals_say_why_and_what_to_do() -> None:
    for table in (registry.REFUSED, areas.REFUSED_FLAGS, areas.REFUSED_KINDS):
        for key, (why, remedy) in table.items():
            assert why, key
            assert remedy, key


def test_all_kinds_of_files_have_names() -> None:
    assert set(words.FILES) == set(registry.FILES) | {key for key in registry.REFUSED if key.startswith("fd:")}
    assert words.file_words("fd:regular", 1) == "1 file"
    assert words.file_words("fd:directory", 2) == "2 directories"
    assert words.file_words("fd:inet", 5000) == "5,000 TCP or UDP sockets"
    assert words.file_words("fd:path", 2) == "2 paths (O_PATH)"
    assert words.file_words("fd:socket", 2) == "2 sockets of another family"


# ---- open files ------------------------------------------------------------------------------------------------------

# Names given to anon_inode_getfd(), anon_inode_getfile(), anon_inode_create_getfile(), anon_inode_getfile_fmode() and
# shown by pidfs: fs, kernel, virt, drivers and arch of Linux 6.18.  Where a number follows, one stands for all.
ANON_INODES = (
    "[eventfd]", "[eventpoll]", "[timerfd]", "[signalfd]", "inotify", "[fanotify]", "[userfaultfd]", "[io_uring]",
    "[perf_event]", "[pidfd]", "bpf-map", "bpf-prog", "bpf_link", "bpf_iter", "bpf-stats", "btf", "seccomp notify",
    "[landlock-ruleset]", "[fscontext]", "[cachefiles]", "sync_file", "syncobj_file", "ntsync", "kvm-vm", "kvm-vcpu:0",
    "kvm-vcpu-stats:0", "kvm-vm-stats", "[kvm-gmem]", "kvm-device", "mshv_partition", "mshv_vp", "[vfio-device]",
    "[iommufd-pgfault]", "[iommufd-viommu]", "[iommufd-veventq]", "iio:event", "iio:buffer0", "gpio-linehandle",
    "gpio-line", "gpio-event", "[infinibandevent]", "[i915_perf]", "[xe_oa]", "drm_lease", "request", "[papr-hvpipe]",
    "[papr-vpd]", "[papr-platform-dump]",
)  # fmt: skip
# Address families of sockets, include/linux/socket.h.
FAMILIES = range(1, 47)


@pytest.mark.parametrize("name", ANON_INODES)
def test_anonymous_inodes(name: str) -> None:
    key = registry.key_of_link(f"anon_inode:{name}")
    assert answered(key)
    assert key != "fd:anon"


def test_what_nobody_knows_is_refused() -> None:
    assert registry.key_of_link("anon_inode:[of-the-future]") == "fd:anon"
    assert answered("fd:anon")


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_sockets(family: int) -> None:
    stat = os.stat_result((0o140777, 1, 1, 1, 0, 0, 0, 0, 0, 0))
    assert answered(registry.file_key("socket:[1]", stat, family))


@pytest.mark.parametrize("kind", [0o010000, 0o020000, 0o040000, 0o060000, 0o100000, 0o120000, 0o140000])
def test_every_type_of_file(kind: int) -> None:
    seen = os.stat_result((kind | 0o600, 1, 1, 1, 0, 0, 0, 0, 0, 0), {"st_rdev": os.makedev(99, 1), "st_dev": 1})
    assert answered(registry.file_key("/a/path", seen))


# ---- memory ----------------------------------------------------------------------------------------------------------

# fs/proc/task_mmu.c, show_smap_vma_flags(), of Linux 6.18; "nl" and "gu" of older and newer ones.
_FLAGS = "rd wr ex sh mr mw me ms gd pf lo io sr rr dc de lf ac nr ht sf ar wf dd bt sd mm hg nh mg um uw mt ui ss dp"
VM_FLAGS = [*_FLAGS.split(), "sl", "nl", "gu"]


@pytest.mark.parametrize("flag", VM_FLAGS)
def test_flags_of_areas(flag: str) -> None:
    assert flag in areas.KNOWN_FLAGS or flag in areas.REFUSED_FLAGS


def test_flags_of_this_kernel() -> None:
    seen = set().union(*maps.read_vm_flags(os.getpid()).values())
    assert seen <= areas.KNOWN_FLAGS | areas.REFUSED_FLAGS.keys()


@pytest.mark.parametrize("kind", sorted(maps.KINDS))
def test_kinds_of_areas(kind: str) -> None:
    in_words = kind in areas.REFUSED_KINDS
    assert f"vma:{kind}" in registry.OTHERS or in_words


# ---- namespaces ------------------------------------------------------------------------------------------------------


def test_namespaces() -> None:
    assert set(os.listdir("/proc/self/ns")) <= {*NAMESPACES, *FOR_CHILDREN}


# ---- tasks: /proc/PID/status -----------------------------------------------------------------------------------------

STATUS = {
    "Name": "thread:name", "Umask": "task:umask", "State": "task:stopped", "Tgid": "task:pid", "Ngid": KERNEL,
    "Pid": "thread:tid", "PPid": "task:parent", "TracerPid": Because("a task that is traced cannot be dumped"),
    "Uid": "thread:creds", "Gid": "thread:creds", "FDSize": FOLLOWS, "Groups": "thread:creds", "NStgid": "ns:pid",
    "NSpid": "ns:pid", "NSpgid": "task:group", "NSsid": "task:session", "Kthread": "task:kernel_thread",
    "VmPeak": COUNTS, "VmSize": "task:memory", "VmLck": "task:memory", "VmPin": KERNEL, "VmHWM": COUNTS,
    "VmRSS": FOLLOWS, "RssAnon": FOLLOWS, "RssFile": FOLLOWS, "RssShmem": FOLLOWS, "VmData": FOLLOWS,
    "VmStk": FOLLOWS, "VmExe": "task:layout", "VmLib": FOLLOWS, "VmPTE": KERNEL, "VmPMD": KERNEL, "VmSwap": FOLLOWS,
    "HugetlbPages": Because("areas of such pages are refused"), "CoreDumping": Because("such a task is ending"),
    "THP_enabled": "task:thp_disable", "untag_mask": "task:tagged_addresses",
    "Threads": "thread:tid", "SigQ": "task:pending", "SigPnd": "thread:pending", "ShdPnd": "task:pending",
    "SigBlk": "thread:sigmask", "SigIgn": "task:sigactions", "SigCgt": "task:sigactions", "CapInh": "thread:creds",
    "CapPrm": "thread:creds", "CapEff": "thread:creds", "CapBnd": "thread:creds", "CapAmb": "thread:creds",
    "NoNewPrivs": "thread:creds", "Seccomp": "thread:seccomp", "Seccomp_filters": "thread:seccomp",
    "Speculation_Store_Bypass": "task:speculation", "SpeculationIndirectBranch": "task:speculation",
    "Cpus_allowed": "thread:sched", "Cpus_allowed_list": "thread:sched", "Mems_allowed": "task:cgroups",
    "Mems_allowed_list": "task:cgroups", "voluntary_ctxt_switches": COUNTS, "nonvoluntary_ctxt_switches": COUNTS,
    "x86_Thread_features": "task:shadow_stack", "x86_Thread_features_locked": "task:shadow_stack",
}  # fmt: skip


@pytest.mark.parametrize("line", sorted(STATUS))
def test_lines_of_status(line: str) -> None:
    assert answered(STATUS[line])


def test_status_of_this_kernel() -> None:
    lines = {line.partition(":")[0] for line in Path("/proc/self/status").read_text().splitlines()}
    assert lines <= STATUS.keys()


# ---- tasks: /proc/PID ------------------------------------------------------------------------------------------------

FILES = {
    "arch_status": COUNTS, "attr": "task:label", "autogroup": "task:autogroup", "auxv": "task:layout",
    "cgroup": "task:cgroups", "clear_refs": KERNEL, "cmdline": "task:layout", "comm": "thread:name",
    "coredump_filter": "task:coredump_filter", "cpu_resctrl_groups": "task:cgroups", "cpuset": "task:cgroups",
    "cwd": "task:cwd", "environ": "task:layout", "exe": "task:layout", "fail-nth": KERNEL, "fd": "task:descriptors",
    "fdinfo": "task:descriptors", "gid_map": "ns:user", "io": COUNTS, "ksm_merging_pages": COUNTS, "ksm_stat": COUNTS,
    "latency": COUNTS, "limits": "task:rlimits", "loginuid": "task:loginuid", "make-it-fail": KERNEL,
    "map_files": "vma:file", "maps": "task:memory", "mem": "task:memory", "mountinfo": "ns:mnt", "mounts": "ns:mnt",
    "mountstats": "ns:mnt", "net": "ns:net", "ns": "ns:pid", "numa_maps": "task:mempolicy",
    "oom_adj": "task:oom_score_adj", "oom_score": FOLLOWS, "oom_score_adj": "task:oom_score_adj",
    "pagemap": "task:memory", "patch_state": KERNEL, "personality": "task:personality", "projid_map": "ns:user",
    "root": "task:root", "sched": COUNTS, "schedstat": COUNTS, "seccomp_cache": "thread:seccomp",
    "sessionid": Because("an audit session's number, which comes with loginuid and cannot be chosen"),
    "setgroups": "ns:user", "smaps": "task:memory", "smaps_rollup": "task:memory", "stack": KERNEL,
    "stack_depth": COUNTS, "stat": SHOWS, "statm": SHOWS, "status": SHOWS, "syscall": "thread:interrupted_call",
    "task": "thread:tid", "timens_offsets": "ns:time", "timers": "task:timers", "timerslack_ns": "thread:timer_slack",
    "uid_map": "ns:user", "wchan": KERNEL,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(FILES))
def test_files_of_proc(name: str) -> None:
    assert answered(FILES[name])


def test_proc_of_this_kernel() -> None:
    assert set(os.listdir("/proc/self")) <= FILES.keys()


# ---- tasks: prctl ----------------------------------------------------------------------------------------------------

# Everything that prctl(2) can be asked for (include/uapi/linux/prctl.h, Linux 6.18).
ELSEWHERE = Because("of an architecture that is not restored yet")
PRCTL = {
    "PR_GET_PDEATHSIG": "thread:pdeathsig", "PR_GET_DUMPABLE": "task:dumpable", "PR_GET_UNALIGN": "task:unaligned",
    "PR_GET_KEEPCAPS": "thread:creds", "PR_GET_FPEMU": ELSEWHERE, "PR_GET_FPEXC": "task:fp_exceptions",
    "PR_GET_TIMING": Because("only one answer is possible"), "PR_GET_NAME": "thread:name",
    "PR_GET_ENDIAN": "thread:byte_order",
    "PR_GET_SECCOMP": "thread:seccomp", "PR_CAPBSET_READ": "thread:creds", "PR_GET_TSC": "task:tsc",
    "PR_GET_SECUREBITS": "thread:creds", "PR_GET_TIMERSLACK": "thread:timer_slack", "PR_MCE_KILL_GET": "task:mce_kill",
    "PR_SET_MM": "task:layout", "PR_GET_CHILD_SUBREAPER": "task:child_subreaper",
    "PR_GET_NO_NEW_PRIVS": "thread:creds", "PR_GET_TID_ADDRESS": "thread:clear_child_tid",
    "PR_GET_THP_DISABLE": "task:thp_disable", "PR_GET_FP_MODE": ELSEWHERE, "PR_CAP_AMBIENT": "thread:creds",
    "PR_SVE_GET_VL": "thread:registers", "PR_GET_SPECULATION_CTRL": "task:speculation",
    "PR_PAC_GET_ENABLED_KEYS": "thread:registers",
    "PR_GET_TAGGED_ADDR_CTRL": "thread:registers", "PR_GET_IO_FLUSHER": "task:io_flusher",
    "PR_SET_SYSCALL_USER_DISPATCH": "thread:syscall_dispatch", "PR_SCHED_CORE": "task:core_sched",
    "PR_SME_GET_VL": "thread:registers", "PR_GET_MDWE": "task:mdwe", "PR_SET_VMA": "vma:anon",
    "PR_GET_MEMORY_MERGE": "task:memory_merge", "PR_RISCV_V_GET_CONTROL": ELSEWHERE, "PR_PPC_GET_DEXCR": "task:dexcr",
    "PR_GET_SHADOW_STACK_STATUS": "task:shadow_stack", "PR_GET_AUXV": "task:layout",
    "PR_TIMER_CREATE_RESTORE_IDS": Because("only checkpoint tools set it, for a moment"),
    "PR_FUTEX_HASH": "task:futex_hash",
}  # fmt: skip
# What a task has besides, and only its own calls tell.
CALLS = {
    "sigaltstack": "thread:altstack", "rt_sigaction": "task:sigactions", "getitimer": "task:itimers",
    "get_robust_list": "thread:robust_list", "rseq": "thread:rseq", "membarrier": "task:membarrier",
    "sched_getattr": "thread:sched", "getpriority": "thread:nice", "ioprio_get": "thread:sched",
    "get_mempolicy": "task:mempolicy", "keyctl": "task:keyrings", "ioperm": "task:ioperm", "iopl": "task:ioperm",
    "modify_ldt": "task:segments", "set_thread_area": "task:segments", "pkey_alloc": "task:protection_keys",
    "arch_prctl": "thread:registers", "personality": "task:personality", "io_setup": "vma:aio",
    "landlock": Because("not to be seen from outside"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*PRCTL, *CALLS])
def test_what_calls_tell(name: str) -> None:
    key = {**PRCTL, **CALLS}[name]
    assert answered(key) or key.removeprefix("vma:") in areas.REFUSED_KINDS


# ---- the document ----------------------------------------------------------------------------------------------------


def test_all_is_named_in_the_document() -> None:
    attributes = {key for attribute in registry.attributes() for key in attribute.covers}
    assert set(words.OTHERS) == attributes | set(registry.OTHERS)
    script = Path(__file__).resolve().parents[1] / "tools/supported.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
