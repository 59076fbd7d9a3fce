"""A blocking socket with time limits in the kernel (SO_RCVTIMEO, SO_SNDTIMEO), which `splice` and `sendfile` respect as well."""

from __future__ import annotations

import math
import socket
import struct

from tessera.domain.errors import Unavailable

_TIMEVAL = struct.Struct("ll")


def limit_waiting(sock: socket.socket, receive_s: float, send_s: float) -> None:
    """From here on a call that moves no byte for so long raises BlockingIOError. `sock` must be blocking."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(receive_s))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(send_s))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def read_exactly(sock: socket.socket, size_bytes: int) -> bytes:
    """One message, or a part of it, as a whole within the time that one wait may take.

    Raises:
        Unavailable: the other end closes or falls silent in the middle.
        OSError: the socket's; BlockingIOError when not a byte came in time.
    """
    if not size_bytes:
        return b""
    data = sock.recv(size_bytes, socket.MSG_WAITALL)
    if len(data) < size_bytes:
        raise Unavailable(f"the stream ended or stalled after {len(data)} of {size_bytes} bytes of a message")
    return data


def split_address(address: str) -> tuple[str, int]:
    """HOST:PORT. Raises: ValueError."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _timeval(seconds: float) -> bytes:
    whole = math.floor(seconds)
    return _TIMEVAL.pack(whole, int((seconds - whole) * 1e6))
