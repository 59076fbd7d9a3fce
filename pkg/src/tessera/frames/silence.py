"""How this side learns that a peer is gone which could not say so: its machine lost power, or the network is cut."""

from __future__ import annotations

import socket

_IDLE_S = 4
_INTERVAL_S = 2
_PROBES = 3
"""An idle connection ends after 4 + 3 * 2 = 10 s without a word from the peer's kernel, which answers however busy its processes are."""
_UNACKNOWLEDGED_MS = 10_000
"""As long for a connection on which something was sent; the kernel's own limit is 15 minutes. A lease runs out in that time as well. It
also ends a connection whose peer reads nothing at all for so long."""


def end_on_silence(own: socket.socket) -> None:
    """Has the kernel end this TCP connection when the peer's machine is silent for 10 s."""
    own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    own.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_S)
    own.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _INTERVAL_S)
    own.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
