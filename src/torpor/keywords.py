# SPDX-License-Identifier: Apache-2.0
"""Typed keyword arguments of `torpor.dump`, `torpor.restore` and `torpor.check`.  Written by tools/keywords.py."""

import os
from collections.abc import Sequence
from typing import TypedDict


class DumpKeywords(TypedDict, total=False):
    work_dir: str | os.PathLike[str]
    log_file: str | os.PathLike[str]
    verbosity: int
    display_stats: bool
    leave_running: bool
    leave_stopped: bool
    shell_job: bool
    tcp_close: bool
    tcp_established: bool
    skip_in_flight: bool
    link_remap: bool
    ghost_limit: int | str
    ghost_fiemap: bool
    timeout: int
    file_validation: str
    manage_cgroups: str
    file_locks: bool
    ext_unix_sk: Sequence[str]
    evasive_devices: bool
    force_irmap: bool
    irmap_scan_path: Sequence[str | os.PathLike[str]]
    allow_uprobes: bool
    cpu_cap: Sequence[str]
    action_script: Sequence[str | os.PathLike[str]]
    network_lock: str
    external: Sequence[str]
    empty_ns: str
    ext_mount_map: Sequence[str]
    skip_mnt: Sequence[str | os.PathLike[str]]
    enable_fs: Sequence[str]
    enable_external_sharing: bool
    enable_external_masters: bool
    cgroup_root: Sequence[str]
    cgroup_props: str
    cgroup_props_file: str | os.PathLike[str]
    cgroup_dump_controller: Sequence[str]
    cgroup_yard: str | os.PathLike[str]
    freeze_cgroup: str | os.PathLike[str]
    unprivileged: bool
    track_mem: bool
    prev_images_dir: str | os.PathLike[str]
    auto_dedup: bool
    lazy_pages: bool
    page_server: bool
    stream: bool
    ps_socket: int
    tls: bool
    tls_cacert: str | os.PathLike[str]
    tls_cacrl: str | os.PathLike[str]
    tls_cert: str | os.PathLike[str]
    tls_key: str | os.PathLike[str]
    tls_no_cn_verify: bool
    libdir: str | os.PathLike[str]
    deprecated: bool


class RestoreKeywords(TypedDict, total=False):
    work_dir: str | os.PathLike[str]
    log_file: str | os.PathLike[str]
    verbosity: int
    pidfile: str | os.PathLike[str]
    display_stats: bool
    leave_stopped: bool
    restore_detached: bool
    restore_sibling: bool
    exec_cmd: bool
    allow_clock_jump: bool
    dry_run: bool
    shell_job: bool
    tcp_close: bool
    tcp_established: bool
    file_validation: str
    skip_file_rwx_check: bool
    manage_cgroups: str
    file_locks: bool
    ext_unix_sk: Sequence[str]
    allow_uprobes: bool
    cpu_cap: Sequence[str]
    action_script: Sequence[str | os.PathLike[str]]
    lsm_profile: str
    lsm_mount_context: str
    root: str | os.PathLike[str]
    external: Sequence[str]
    inherit_fd: Sequence[str]
    join_ns: Sequence[str]
    empty_ns: str
    ext_mount_map: Sequence[str]
    skip_mnt: Sequence[str | os.PathLike[str]]
    enable_fs: Sequence[str]
    enable_external_sharing: bool
    enable_external_masters: bool
    mntns_compat_mode: bool
    veth_pair: Sequence[str]
    weak_sysctls: bool
    cgroup_root: Sequence[str]
    cgroup_yard: str | os.PathLike[str]
    unprivileged: bool
    auto_dedup: bool
    lazy_pages: bool
    stream: bool
    log_pid: bool
    libdir: str | os.PathLike[str]
    deprecated: bool


class CheckKeywords(TypedDict, total=False):
    work_dir: str | os.PathLike[str]
    log_file: str | os.PathLike[str]
    verbosity: int
    allow_clock_jump: bool
    shell_job: bool
    tcp_close: bool
    skip_in_flight: bool
    link_remap: bool
    ghost_limit: int | str
    file_validation: str
    skip_file_rwx_check: bool
    manage_cgroups: str
    cpu_cap: Sequence[str]
    unprivileged: bool
    feature: Sequence[str]
    extra: bool
    experimental: bool
    all: bool
    deprecated: bool
