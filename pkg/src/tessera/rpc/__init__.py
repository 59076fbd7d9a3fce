"""gRPC as Tessera uses it: one server, one channel, errors by kind on both sides, trace context through both.

The server's side is imported when it is first named: clients (SDK, CLI) start in half the time without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tessera.rpc._channel import connect
from tessera.rpc._channel_sync import connect_sync
from tessera.rpc._options import MAX_MESSAGE_BYTES, MESSAGE_OVERHEAD_BYTES
from tessera.rpc._status import KIND_METADATA, abort, error_of_rpc, status_of

if TYPE_CHECKING:
    from tessera.rpc._framed import FramedCalls, FramedServer
    from tessera.rpc._reflection import CombinedPool
    from tessera.rpc._server import HEALTH_SERVICE, RpcServer
    from tessera.rpc._traces import encode_span

__all__ = [
    "HEALTH_SERVICE",
    "KIND_METADATA",
    "MAX_MESSAGE_BYTES",
    "MESSAGE_OVERHEAD_BYTES",
    "CombinedPool",
    "FramedCalls",
    "FramedServer",
    "RpcServer",
    "abort",
    "connect",
    "connect_sync",
    "encode_span",
    "error_of_rpc",
    "status_of",
]


def __getattr__(name: str) -> Any:
    if name == "CombinedPool":
        from tessera.rpc import _reflection

        return _reflection.CombinedPool
    if name in ("FramedCalls", "FramedServer"):
        from tessera.rpc import _framed

        return getattr(_framed, name)
    if name in ("HEALTH_SERVICE", "RpcServer"):
        from tessera.rpc import _server

        return getattr(_server, name)
    if name == "encode_span":
        from tessera.rpc import _traces

        return _traces.encode_span
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
