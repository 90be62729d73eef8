# SPDX-License-Identifier: Apache-2.0
"""Internet sockets that were where this host cannot have them are refused before anything is made."""

import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attributekit import restore

from torpor.errors import Refusal
from torpor.images.schema.sk_inet import InetSkEntry, IpOptsEntry
from torpor.images.schema.sk_opts import SkOptsEntry
from torpor.images.schema.torpor_file import GroupEntry, TorporFileEntry
from torpor.resources import inet_places, socket_trial

if os.geteuid():
    pytest.skip("network namespaces need root", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
TCP, UDP = (socket.SOCK_STREAM, socket.IPPROTO_TCP), (socket.SOCK_DGRAM, socket.IPPROTO_UDP)
ESTABLISHED, CLOSE, LISTEN = 1, 7, 10
NOWHERE = "192.0.2.7"  # RFC 5737: for documentation
FREE = IpOptsEntry(freebind=True)
TRANSPARENT = TorporFileEntry(id=1, option_numbers=[19], option_values=[1])


def words(family: int, address: str) -> list[int]:
    raw = socket.inet_pton(family, address)
    return list(struct.unpack(f"={len(raw) // 4}I", raw))


def entry(sort: tuple[int, int], source: str, state: int = CLOSE, peer: str = "", **more: Any) -> InetSkEntry:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    opts = SkOptsEntry(
        so_sndbuf=0, so_rcvbuf=0, so_snd_tmo_sec=0, so_snd_tmo_usec=0, so_rcv_tmo_sec=0, so_rcv_tmo_usec=0
    )
    opts.so_broadcast = more.pop("broadcast", None)
    none = "::" if family == socket.AF_INET6 else "0.0.0.0"
    return InetSkEntry(
        id=1, ino=1, family=family, type=sort[0], proto=sort[1], state=state, src_port=4444,
        dst_port=53 if peer else 0, flags=2, backlog=0, src_addr=words(family, source),
        dst_addr=words(family, peer or none), opts=opts, **more,
    )  # fmt: skip


def check(isk: InetSkEntry, own: TorporFileEntry | None = None, asked: Any = None) -> None:
    inet_places.check(asked or restore(), 1, "internet socket", isk, own)


@pytest.mark.parametrize("sort", [TCP, UDP])
def test_addresses(sort: tuple[int, int]) -> None:
    for good in ("127.0.0.1", "0.0.0.0", "239.1.1.1"):
        check(entry(sort, good))
    check(entry(sort, NOWHERE, ip_opts=FREE))
    check(entry(sort, NOWHERE), TRANSPARENT)
    with pytest.raises(Refusal, match=f"bound to {NOWHERE}, an address that this host does not have") as failed:
        check(entry(sort, NOWHERE))
    assert failed.value.code == "no-address" and "ip addr add" in failed.value.remedy


def test_a_connection_that_is_given_up_is_nowhere() -> None:
    check(entry(TCP, NOWHERE, ESTABLISHED, NOWHERE))


def test_addresses_of_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"IPv6: {error.strerror}")
    for good in ("::", "::1", "::ffff:127.0.0.1"):
        check(entry(UDP, good))
    for sort in (TCP, UDP):
        check(entry(sort, "2001:db8::7", ip_opts=FREE))
        check(entry(sort, f"::ffff:{NOWHERE}", ip_opts=FREE))
        for bad in ("2001:db8::7", f"::ffff:{NOWHERE}", "fe80::7"):
            with pytest.raises(Refusal, match="an address that this host does not have"):
                check(entry(sort, bad, ifname="lo" if bad.startswith("fe80") else None))
        with pytest.raises(Refusal, match="there is no such interface here; make the interface none, with"):
            check(entry(sort, "fe80::7", ifname="none"))


@pytest.mark.parametrize("sort", [TCP, UDP])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_trying_takes_no_port(monkeypatch: pytest.MonkeyPatch, sort: tuple[int, int], address: str) -> None:
    """Not even for a moment."""
    try:
        socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET).close()
    except OSError as error:
        pytest.skip(f"{address}: {error.strerror}")
    bound: list[Any] = []
    leave = socket.socket.__exit__

    def look(one: socket.socket, *how: Any) -> None:
        bound.append(one.getsockname()[:2])
        leave(one, *how)

    monkeypatch.setattr(socket.socket, "__exit__", look)
    check(entry(sort, address))
    assert bound == [(address, 0)]


def test_each_place_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    monkeypatch.setattr(inet_places, "prepare", lambda *_: tried.append(1))
    asked = restore()
    for address in ("127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.1"):
        check(entry(UDP, address), None, asked)
    assert len(tried) == 2
    check(entry(UDP, "127.0.0.1", ESTABLISHED, "127.0.0.1"), None, asked)
    assert len(tried) == 3


def test_peers() -> None:
    check(entry(UDP, "127.0.0.1", ESTABLISHED, "127.0.0.1"))
    check(entry(UDP, "127.0.0.1", ESTABLISHED, "127.255.255.255", broadcast=True))
    with pytest.raises(Refusal, match=r"connected to 127.255.255.255 port 53, to where no way leads") as failed:
        check(entry(UDP, "127.0.0.1", ESTABLISHED, "127.255.255.255"))
    assert failed.value.code == "no-route" and "a route to there" in failed.value.remedy


def test_groups() -> None:
    check(entry(UDP, "0.0.0.0"), TorporFileEntry(id=1, groups=[GroupEntry(interface="lo", group=b"\xef\1\1\1")]))
    with pytest.raises(Refusal, match="a multicast group on none, and there is no such interface here"):
        check(entry(UDP, "0.0.0.0"), TorporFileEntry(id=1, groups=[GroupEntry(interface="none", group=b"\xef\1\1\1")]))


@pytest.mark.parametrize("name, error", [("AF_INET6", 97), ("AF_INET6", 93), ("AF_INET", 97)])
def test_a_kernel_without_such_sockets(monkeypatch: pytest.MonkeyPatch, name: str, error: int) -> None:
    """As with ipv6.disable=1 on the kernel's command line."""
    family, isk = getattr(socket, name), entry(TCP, "::" if name == "AF_INET6" else "0.0.0.0")

    def none(*_: object) -> socket.socket:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(socket, "socket", none)
    what = "a socket of IPv6" if family == socket.AF_INET6 else "a socket"
    with pytest.raises(Refusal, match=f"it is {what}, which this kernel does not have") as failed:
        socket_trial.check(restore(), 1, "internet socket", (family, isk.type), isk.opts, None, lambda *_: None)
    assert failed.value.code == "needs-kernel"
    assert ("ipv6.disable=1" in failed.value.remedy) == (family == socket.AF_INET6)


# In a network namespace of its own: a tree is dumped, and restored where its address is gone, and where all is.
HOST = """
import fcntl, os, signal, socket, struct, subprocess, sys
import torpor
from torpor.kernel.process import CLONE_NEWNET, unshare

unshare(CLONE_NEWNET)
control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

def up(name, on):
    flags = struct.unpack("16xH", fcntl.ioctl(control, 0x8913, struct.pack("16sH14x", name, 0))[:18])[0]
    fcntl.ioctl(control, 0x8914, struct.pack("16sH14x", name, flags | 1 if on else flags & ~1))

def give(name, address):
    packed = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))
    fcntl.ioctl(control, 0x8916, struct.pack("16s16s", name, packed))

def codes(images):
    return [one.code for one in torpor.check(images=images, manage_cgroups="ignore").obstacles]

kind, images = sys.argv[1:]
up(b"lo", True)
give(b"lo:9", "10.9.9.9")
victim = subprocess.Popen([sys.executable, "-c", '''
import socket, sys, time
if sys.argv[1] == "tcp":
    one = socket.create_server(("10.9.9.9", 4444))
else:
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if sys.argv[1] == "udp":
        one.bind(("10.9.9.9", 4444))
    one.connect(("10.9.9.9", 53))
print(flush=True)
time.sleep(1000)
''', kind], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
victim.stdout.read(1)
victim.stdout.close()
torpor.dump(victim.pid, images, manage_cgroups="ignore")
victim.wait()
assert codes(images) == [], codes(images)
up(b"lo:9", False)
assert codes(images) == ["no-address"], codes(images)
try:
    torpor.restore(images, manage_cgroups="ignore")
    raise SystemExit("it has been restored")
except torpor.TorporError as error:
    assert error.code == "no-address", error
    assert f"task {victim.pid} " in error.what and "10.9.9.9" in error.why and error.remedy, error
unshare(CLONE_NEWNET)  # without any network, where this kernel binds to whatever it is told
expected = [] if kind == "tcp" else ["no-route"]
assert codes(images) in (expected, ["no-address"]), codes(images)
control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
up(b"lo", True)
give(b"lo:9", "10.9.9.9")
torpor.restore(images, manage_cgroups="ignore")
os.kill(victim.pid, signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["tcp", "udp", "chosen"])
def test_another_host(kind: str, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir(mode=0o700)
    done = subprocess.run(
        [sys.executable, "-c", HOST, kind, images], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
