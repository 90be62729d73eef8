# SPDX-License-Identifier: Apache-2.0
"""The one table of options: for the command line, configuration files, the library and (later) RPC.

The class body of `Options` *is* the table: one line declares an option's name, type, default, help, the verbs on which
it has an effect, and what became of it in Torpor.  Names and meanings are CRIU's, because scripts, container engines
and configuration files use them.  Three fates:

* implemented: the code that reads the attribute is the implementation;
* ``ignored="…"``: accepted because it changes nothing for Torpor; the sentence says why and is shown at ``-v``;
* ``refused="…"``: not implemented yet; using it is an error that says so and what to do instead.

Surprising facts, all observed on CRIU 4.2.1: any option may stand with any verb, and has no effect where it does not
apply; ``--leave-running`` and ``--leave-stopped`` exclude each other, the last one wins (``-v`` tells); the verbosity
starts at 2 and ``-v`` adds one.  How options are spelled and abbreviated is `torpor.getopt`'s business.
"""

import os

from torpor.errors import Refusal, UsageError
from torpor.typed import Any, Callable, NamedTuple

GHOST_LIMIT = 1 << 20  # bytes of st_blocks, CRIU's default
COLLECT_TIMEOUT = 10  # seconds
DEFAULT_VERBOSITY = 2

_ARGUMENT = "the argument"  # how errors name an option that a library's caller has given
FLAG, VALUE, OPTIONAL = "flag", "value", "optional"  # no argument, one, or one that may be left out


class Option(NamedTuple):
    """One option, as declared in `Options`."""

    help: str
    argument: str = FLAG
    short: str = ""
    metavar: str = ""
    convert: Callable[[Any], Any] = bool  # from a word of the command line, or checks a library caller's value
    implied: str = ""  # the value of an OPTIONAL argument left out
    many: bool = False  # may be given several times, all of them count
    negatable: bool = False  # has a --no- form
    default: Any = False
    verbs: tuple[str, ...] = ()
    rpc: str = ""  # field of criu_opts where it is not called as here
    ours: bool = False  # not an option of CRIU
    ignored: str = ""
    refused: str = ""
    excludes: str = ""  # attribute that this option sets back
    name: str = ""  # long name without dashes; filled in from the attribute's name

    @property
    def attribute(self) -> str:
        return self.name.replace("-", "_")


# Converters: take the word from a command line, or a value from a library caller; raise ValueError with a reason.


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text")
    return value


def path(value: Any) -> str:
    found = os.fsdecode(value) if isinstance(value, (str, bytes, os.PathLike)) else text(value)
    if "\0" in found:
        raise ValueError("has a NUL in it")
    return found


def number(low: int, high: int = 2**31 - 1) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        if isinstance(value, str) and value.isascii() and value.strip().removeprefix("-").isdecimal():
            value = int(value)  # which passes over blanks, as CRIU does: `ps -o pid=` has them
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return value

    return convert


def size(value: Any) -> int:
    """Bytes, with an optional suffix K, M or G (powers of 1024)."""
    if isinstance(value, str):
        digits, shift = value, 0
        if value[-1:].upper() in ("K", "M", "G"):
            digits, shift = value[:-1], {"K": 10, "M": 20, "G": 30}[value[-1].upper()]
        if not (digits.isdecimal() and digits.isascii()):
            raise ValueError("must be a number of bytes, or one followed by K, M or G")
        value = int(digits) << shift
    return number(0, 2**63 - 1)(value)


def choice(*words: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if value not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return str(value)

    return convert


def capabilities(value: Any) -> str:
    words = text(value)
    for word in words.split(","):
        if word.removeprefix("^") not in ("fpu", "cpu", "ins", "all", "none"):
            raise ValueError("must be a list of fpu, cpu, ins, all and none, or ^ and one of them")
    return words


def flag(help: str, verbs: str, **more: Any) -> Any:
    return Option(help, verbs=tuple(verbs.split()), **more)


def value(metavar: str, convert: Callable[[Any], Any], help: str, verbs: str, **more: Any) -> Any:
    more.setdefault("default", () if more.get("many") else None)
    return Option(
        help, more.pop("argument", VALUE), metavar=metavar, convert=convert, verbs=tuple(verbs.split()), **more
    )


_WORK = "dump pre-dump restore"
_ALL = "dump pre-dump restore check show page-server lazy-pages service dedup cpuinfo"
_SERVERS = "page-server lazy-pages service"
_CONTAINERS = "Torpor cannot dump or restore a tree in other namespaces than its own yet"
_CGROUPS = "Torpor does not recreate cgroups yet; --manage-cgroups=ignore leaves tasks in Torpor's own cgroups"
_ITERATE = "Torpor writes whole checkpoints only, so far; leave it out"
_REMOTE = "Torpor writes checkpoints to directories only, so far; leave it out and copy the directory"
_TLS = "Torpor has no connections to other hosts yet; leave it out"
_WATCHES = "Torpor does not dump inotify watches yet"


class Options:
    """Every option, by its CRIU name with underscores; ``Options(tree=12, images_dir="d")`` checks names and values."""

    # fmt: off
    # What to work on, and where
    tree: int | None = value("PID", number(1), "root of the process tree", "dump pre-dump check", short="t", rpc="pid")
    images_dir: str = value("DIR", path, "directory of the images (default: the current one)", _ALL, short="D",
                            default=".")
    work_dir: str | None = value("DIR", path, "directory of logs, PID files and statistics (default: --images-dir)",
                                 _ALL, short="W")
    log_file: str | None = value("FILE", path, "write the log to FILE in the work directory", _ALL, short="o")
    verbosity: int = value("N", number(0, 9), "log level: -v0 nothing, 1 errors, 2 warnings, 3 what happens, "
                           "4 details, 5 system calls in tasks; -v adds one", _ALL, short="v", argument=OPTIONAL,
                           default=DEFAULT_VERBOSITY, rpc="log_level")
    pidfile: str | None = value("FILE", path, "write the restored root's PID to FILE in the work directory", "restore")
    json: bool = flag("print one JSON object: the result, or the error", _ALL, ours=True)
    display_stats: bool = flag("say where the time went", "dump restore", negatable=True)

    # Afterwards
    leave_running: bool = flag("let the tree go on after the dump", "dump", short="R", excludes="leave_stopped")
    leave_stopped: bool = flag("leave the tree stopped after the dump or restore", "dump restore", short="s",
                               excludes="leave_running")
    restore_detached: bool = flag("return once the tree runs (default: wait until its root ends)", "restore", short="d",
                                  negatable=True)
    daemon: bool = flag("the same as --restore-detached", "restore", negatable=True)
    restore_sibling: bool = flag("make the restored root a child of Torpor's parent; needs -d", "restore", short="S",
                                 negatable=True, rpc="rst_sibling")
    exec_cmd: bool = flag("become the command after -- once restored", "restore",
                          refused="Torpor cannot make another program the parent of the restored tree yet")
    allow_clock_jump: bool = flag("restore although the tree's clocks go back, where it cannot get a time namespace",
                                  "restore check", ours=True)
    dry_run: bool = flag("check the images and print the plan, create nothing", "restore", ours=True)

    # What to do about special things
    shell_job: bool = flag("the tree's session or terminal is outside the tree", _WORK + " check", short="j",
                           negatable=True)
    tcp_close: bool = flag("give up established TCP connections: they come back closed", "dump restore check",
                           negatable=True)
    tcp_established: bool = flag("keep established TCP connections", "dump restore", negatable=True,
                                 refused="Torpor cannot keep established TCP connections yet; "
                                 "--tcp-close lets them be closed")
    skip_in_flight: bool = flag("forget connections that nobody has accepted yet", "dump check", negatable=True,
                                rpc="tcp_skip_in_flight")
    link_remap: bool = flag("give deleted files that have other names a temporary one", "dump check", negatable=True)
    ghost_limit: int = value("BYTES", size, "largest deleted file to keep in the images (K, M, G; default 1M)",
                             "dump check", default=GHOST_LIMIT)
    ghost_fiemap: bool = flag("find the holes of deleted files by FIEMAP", "dump", negatable=True,
                              ignored="Torpor finds holes by SEEK_DATA")
    timeout: int = value("SECONDS", number(0),
                         "give up when the tree cannot be frozen for so long (default 10, 0: never)", "dump pre-dump",
                         default=COLLECT_TIMEOUT)
    file_validation: str = value("METHOD", choice("buildid", "filesize"),
                                 "how files are compared at restore: buildid (default) or filesize",
                                 "dump restore check", default="buildid")
    skip_file_rwx_check: bool = flag("do not compare files' permissions at restore", "restore check", negatable=True)
    manage_cgroups: str = value("MODE", choice("none", "props", "soft", "full", "strict", "ignore"),
                                "what to do about cgroups: none, props, soft (default), full, strict or ignore",
                                "dump restore check", argument=OPTIONAL, implied="soft", default="soft",
                                rpc="manage_cgroups_mode")
    file_locks: bool = flag("keep file locks", "dump restore", short="l", negatable=True,
                            refused="Torpor does not dump file locks yet; "
                            "have the program give up its locks first")
    ext_unix_sk: tuple[str, ...] = value("INODE", text, "leave UNIX sockets with a peer outside the tree connected",
                                         "dump restore", short="x", argument=OPTIONAL, many=True,
                                         refused="Torpor cannot keep UNIX sockets connected to programs outside "
                                         "the tree yet")
    evasive_devices: bool = flag("use any path that leads to the same device", "dump", negatable=True,
                                 refused="Torpor reopens devices by their own path only, so far")
    force_irmap: bool = flag("search files for inotify watches", "dump pre-dump", negatable=True, refused=_WATCHES)
    irmap_scan_path: tuple[str, ...] = value("DIR", path, "where to search", "dump pre-dump", many=True,
                                             refused=_WATCHES, rpc="irmap_scan_paths")
    allow_uprobes: bool = flag("accept uprobes", "dump restore", negatable=True,
                               refused="Torpor does not dump tasks under uprobes yet")
    cpu_cap: tuple[str, ...] = value("CAPS", capabilities, "record the CPU's features in a dump, and require them at "
                                     "restore: a list of ins, fpu, cpu (exactly the same), all, none (whatever came "
                                     "before); ^CAP: without it, of ins and fpu if it comes first",
                                     "dump restore check cpuinfo", argument=OPTIONAL, many=True, implied="all")
    action_script: tuple[str, ...] = value("FILE", path, "program to run at each stage", _WORK, many=True,
                                           refused="Torpor does not run action scripts yet")
    network_lock: str = value("METHOD", choice("iptables", "nftables", "skip", "none"), "how to lock the network",
                              "dump", default="iptables",
                              ignored="no network has to be locked, as established connections are closed")
    lsm_profile: str | None = value("TYPE:NAME", text, "security label to restore with", "restore",
                                    refused="Torpor does not restore security labels yet")
    lsm_mount_context: str | None = value("CONTEXT", text, "security context of mounts", "restore",
                                          refused="Torpor does not restore security labels yet")

    # Containers
    root: str | None = value("DIR", path, "root directory of the restored tree", "restore", short="r",
                             refused=_CONTAINERS)
    external: tuple[str, ...] = value("RES", text, "something outside that is not to be dumped", "dump restore",
                                      many=True, refused=_CONTAINERS)
    inherit_fd: tuple[str, ...] = value("fd[N]:RES", text, "use an open file of ours", "restore", many=True,
                                        refused="Torpor cannot replace files at restore yet")
    join_ns: tuple[str, ...] = value("NS:FILE", text, "restore into a namespace", "restore", short="J", many=True,
                                     refused=_CONTAINERS)
    empty_ns: str | None = value("net", choice("net"), "leave a namespace empty", "dump restore", refused=_CONTAINERS)
    ext_mount_map: tuple[str, ...] = value("KEY:VALUE", text, "external mounts", "dump restore", short="M", many=True,
                                           refused=_CONTAINERS, rpc="ext_mnt")
    skip_mnt: tuple[str, ...] = value("DIR", path, "mounts to leave out", "dump restore", many=True,
                                      refused=_CONTAINERS)
    enable_fs: tuple[str, ...] = value("TYPES", text, "file systems to take as they are", "dump restore", many=True,
                                       refused=_CONTAINERS)
    enable_external_sharing: bool = flag("accept shared external mounts", "dump restore", refused=_CONTAINERS,
                                         rpc="ext_sharing")
    enable_external_masters: bool = flag("accept slave external mounts", "dump restore", refused=_CONTAINERS,
                                         rpc="ext_masters")
    mntns_compat_mode: bool = flag("use the older mount engine", "restore", negatable=True,
                                   ignored="Torpor has only one")
    veth_pair: tuple[str, ...] = value("IN=OUT", text, "names of network pairs", "restore", many=True,
                                       refused=_CONTAINERS, rpc="veths")
    weak_sysctls: bool = flag("skip sysctls that do not exist", "restore", negatable=True,
                              ignored="no sysctls are restored, as Torpor makes no namespaces yet")
    cgroup_root: tuple[str, ...] = value("[CTRL:]DIR", text, "root of cgroups", "dump restore", many=True,
                                         refused=_CGROUPS, rpc="cg_root")
    cgroup_props: str | None = value("YAML", text, "cgroup properties", "dump", refused=_CGROUPS)
    cgroup_props_file: str | None = value("FILE", path, "cgroup properties", "dump", refused=_CGROUPS)
    cgroup_dump_controller: tuple[str, ...] = value("NAME", text, "cgroup controllers", "dump", many=True,
                                                    refused=_CGROUPS)
    cgroup_yard: str | None = value("DIR", path, "where cgroups are mounted", "dump restore", refused=_CGROUPS)
    freeze_cgroup: str | None = value("DIR", path, "freeze this cgroup", "dump pre-dump",
                                      ignored="Torpor stops the tree by ptrace, looking until no new task is "
                                      "found")
    unprivileged: bool = flag("run without root's rights", _WORK + " check", negatable=True,
                              ignored="Torpor always does what its rights allow, and says what they do not")

    # Rounds, lazy pages, servers
    track_mem: bool = flag("track memory changes", "dump pre-dump", negatable=True, refused=_ITERATE)
    prev_images_dir: str | None = value("DIR", path, "the previous round's images", "dump pre-dump", refused=_ITERATE,
                                        rpc="parent_img")
    auto_dedup: bool = flag("free what newer rounds replace", _WORK + " page-server", negatable=True,
                            refused=_ITERATE)
    pre_dump_mode: str = value("MODE", choice("splice", "read"), "how pre-dump reads memory", "pre-dump",
                               default="splice", refused=_ITERATE)
    lazy_pages: bool = flag("fill memory when it is touched", "dump restore", refused="Torpor has no lazy pages yet; "
                            "leave it out")
    page_server: bool = flag("send pages to a page server", "dump pre-dump", negatable=True, refused=_REMOTE)
    stream: bool = flag("send images to an image streamer", _WORK, negatable=True, refused=_REMOTE)
    address: str | None = value("ADDRESS", text, "of the server", _SERVERS, refused=_REMOTE)
    port: int | None = value("PORT", number(1, 65535), "of the server", _SERVERS, refused=_REMOTE)
    ps_socket: int | None = value("FD", number(0), "connection to the page server", _SERVERS + " dump pre-dump",
                                  refused=_REMOTE)
    status_fd: int | None = value("FD", number(0), "write a zero byte to FD when ready", _SERVERS, refused=_REMOTE)
    tls: bool = flag("encrypt", _SERVERS + " dump pre-dump", negatable=True, refused=_TLS)
    tls_cacert: str | None = value("FILE", path, "trusted certificates", _SERVERS + " dump pre-dump", refused=_TLS)
    tls_cacrl: str | None = value("FILE", path, "revoked certificates", _SERVERS + " dump pre-dump", refused=_TLS)
    tls_cert: str | None = value("FILE", path, "our certificate", _SERVERS + " dump pre-dump", refused=_TLS)
    tls_key: str | None = value("FILE", path, "our key", _SERVERS + " dump pre-dump", refused=_TLS)
    tls_no_cn_verify: bool = flag("trust any name", _SERVERS + " dump pre-dump", refused=_TLS)

    # Checking
    feature: tuple[str, ...] = value("NAME", text, "check only this feature of the kernel (list: name them)", "check",
                                     many=True)
    extra: bool = flag("also check what some trees need", "check", negatable=True)
    experimental: bool = flag("also check what is experimental", "check", negatable=True)
    all: bool = flag("--extra and --experimental", "check")

    # About the tool itself
    config: str | None = value("FILE", path, "read options from FILE, and not from the default files", _ALL,
                               rpc="config_file")
    no_default_config: bool = flag("do not read the default configuration files", _ALL)
    close: tuple[int, ...] = value("FD", number(0), "close this descriptor first", _ALL, many=True)
    help: bool = flag("show this text", _ALL, short="h")
    version: bool = flag("show the version", _ALL, short="V")
    log_pid: bool = flag("one log file a restored process", "restore", negatable=True,
                         ignored="Torpor restores from one process and has one log")
    libdir: str | None = value("DIR", path, "directory of plugins", "dump restore", short="L",
                               ignored="Torpor loads no plugins")
    deprecated: bool = flag("allow deprecated features", _ALL, negatable=True, ignored="Torpor has none")
    ms: bool = flag("deprecated", "", refused="--ms is deprecated; see --extra, --experimental and --all")
    # fmt: on

    def __init__(self, **keywords: Any) -> None:
        self.__dict__.update(DEFAULTS)
        self.given: dict[str, str] = {}  # attribute -> where it was given
        self.displaced: list[str] = []  # sentences about options that a later one excluded
        for name, argument in keywords.items():
            self.set_keyword(name, argument)

    def set_keyword(self, name: str, argument: Any) -> None:
        """Set one option by its attribute's name, for a library caller."""
        option = TABLE.get(name.replace("_", "-"))
        if option is None:
            raise UsageError(f"there is no option {name}", remedy="torpor --help lists them")
        self.set(option, argument, f"{_ARGUMENT} {name}")

    def set(self, option: Option, argument: Any, where: str) -> None:
        """Set one option from a word, a bool for a flag, or a library caller's value.  `where` names it in errors."""
        try:
            if option.argument == FLAG and not isinstance(argument, bool):
                raise ValueError("must be true or false")
            if option.many and isinstance(argument, (list, tuple)):
                converted: Any = tuple(option.convert(one) for one in argument)
            elif argument is None and option.default is None:
                converted = None
            else:
                converted = option.convert(argument)
        except ValueError as error:
            raise UsageError(f"{argument!r} is not a value for {where}", f"it {error}") from None
        name = option.attribute
        if option.many:
            converted = getattr(self, name) + (converted if isinstance(converted, tuple) else (converted,))
        setattr(self, name, converted)
        self.given[name] = where
        if option.excludes and converted:
            if getattr(self, option.excludes):
                self._displace(option.excludes, where)
            setattr(self, option.excludes, False)
        if name == "daemon":
            self.restore_detached = converted

    def _displace(self, name: str, where: str) -> None:
        """Two options exclude each other: as with CRIU the last one wins.  A library's caller gives no order."""
        before = self.given.pop(name)
        if before.startswith(_ARGUMENT):
            raise UsageError(f"{before} and {where} contradict each other", remedy="give one of them")
        self.displaced.append(f"{before} has no effect: {where} came after it")

    def settle(self, verb: str) -> list[str]:
        """Raise for what is refused on this verb; return sentences about what has no effect."""
        notes = list(self.displaced)
        for name, where in self.given.items():
            option = TABLE[name.replace("_", "-")]
            if getattr(self, name) == option.default:
                continue  # given, but as it is anyway
            if option.name == "ms":
                raise UsageError(option.refused)
            if verb not in option.verbs:
                notes.append(f"{where} has no effect on {verb}")
            elif option.refused:
                why, _, remedy = option.refused.partition("; ")
                raise Refusal(
                    f"{where[0].upper()}{where[1:]} is not implemented yet", why, remedy, code="not-implemented"
                )
            elif option.ignored:
                notes.append(f"{where} has no effect: {option.ignored}")
        if verb in ("dump", "pre-dump") and self.tree is None:
            raise UsageError("no process is named", remedy="give the root of the tree by -t PID")
        if verb == "restore" and self.restore_sibling and not self.restore_detached:
            raise UsageError("--restore-sibling only makes sense with --restore-detached")
        return notes

    @property
    def work_directory(self) -> str:
        """Where logs, PID files and statistics go."""
        return self.work_dir or self.images_dir

    @property
    def log_path(self) -> str | None:
        """The log file, found from where we stand; "-" is stdout, None no file."""
        return self.log_file if self.log_file in (None, "-") else self.in_work_directory(self.log_file)

    def in_work_directory(self, name: str) -> str:
        """The path of a file that is named relative to the work directory: a log, a PID file, statistics."""
        return os.path.join(self.work_directory, name)


def _table() -> dict[str, Option]:
    table = {}
    for attribute, option in vars(Options).items():
        if isinstance(option, Option):
            name = attribute.replace("_", "-")
            table[name] = Option(*option[:-1], name)
    return table


TABLE: dict[str, Option] = _table()  # long name -> option
DEFAULTS: dict[str, Any] = {option.attribute: option.default for option in TABLE.values()}
