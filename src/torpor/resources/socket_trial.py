# SPDX-License-Identifier: Apache-2.0
"""Whether a socket can have its options here: tried on a fresh one of its kind, before anything is made.

A kernel may know an option and not this value of it (SO_TIMESTAMPING gets new flags every other year), or want rights
for it.  Nothing but setting it tells.  Each set of options is tried once: thousands of sockets have the same.
"""

import errno
import socket
from _operator import attrgetter  # operator itself has much in Python besides

from torpor.errors import Refusal
from torpor.resources import lacking, socket_options
from torpor.resources.socket_options import OptionRefused
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torpor.images.schema.sk_opts import SkOptsEntry
    from torpor.images.schema.torpor_file import TorporFileEntry
    from torpor.resources.context import Restore

# What is set as it is, but for the sizes of buffers, of which no more is given than can be.
_GENERAL = attrgetter(
    "so_snd_tmo_sec", "so_snd_tmo_usec", "so_rcv_tmo_sec", "so_rcv_tmo_usec", "so_priority", "so_rcvlowat", "so_mark",
    "so_passcred", "so_passsec", "so_dontroute", "so_no_check", "so_bound_dev", "so_reuseport", "so_broadcast",
    "so_keepalive", "so_oobinline", "so_linger",
)  # fmt: skip
_OWN = attrgetter(
    "option_numbers", "option_values", "interface_options", "interface_names", "long_options", "long_values",
    "congestion",
)  # fmt: skip


def check(
    restore: "Restore", id: int, kind: str, sort: "tuple[int, int]", opts: "SkOptsEntry",
    own: "TorporFileEntry | None", put: "Callable[[socket.socket, TorporFileEntry], None]",
) -> None:  # fmt: skip
    """Of file `id`, a `kind`, whose family and type are `sort`; `put` sets what is in Torpor's own image of it.  Raises
    Refusal."""
    key: object = (sort, _GENERAL(opts), str(_OWN(own)) if own is not None else "")
    known: dict[object, OptionRefused | None] = restore.state.setdefault("socket options tried", {})
    if key not in known:
        known[key] = None
        with _fresh(restore, id, kind, sort) as fresh:
            try:
                socket_options.restore(fresh, opts)
                if own is not None:
                    put(fresh, own)
            except OptionRefused as error:
                known[key] = error
    if (failed := known[key]) is not None:
        raise lacking.refused(lacking.file_subject(restore, id, kind), failed.has, failed.errno)


def _fresh(restore: "Restore", id: int, kind: str, sort: "tuple[int, int]") -> socket.socket:
    """Raises Refusal where this kernel has no such sockets at all: IPv6 can be turned off, or be a module."""
    try:
        return socket.socket(*sort)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
            raise
    name, remedy = "", lacking.REMEDY
    if sort[0] == socket.AF_INET6:
        name, remedy = " of IPv6", "let this kernel have IPv6: load its module, and boot without ipv6.disable=1"
    why = f"it is a socket{name}, which this kernel does not have"
    raise Refusal(lacking.file_subject(restore, id, kind), why, remedy, code="needs-kernel")
