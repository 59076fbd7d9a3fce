"""gRPC as Tessera uses it: one server, one channel, errors by kind on both sides, trace context through both."""

from tessera.rpc._channel import connect
from tessera.rpc._channel_sync import connect_sync
from tessera.rpc._options import MAX_MESSAGE_BYTES, MESSAGE_OVERHEAD_BYTES
from tessera.rpc._reflection import CombinedPool
from tessera.rpc._server import HEALTH_SERVICE, RpcServer
from tessera.rpc._status import KIND_METADATA, abort, error_of_rpc, status_of

__all__ = [
    "HEALTH_SERVICE",
    "KIND_METADATA",
    "MAX_MESSAGE_BYTES",
    "MESSAGE_OVERHEAD_BYTES",
    "CombinedPool",
    "RpcServer",
    "abort",
    "connect",
    "connect_sync",
    "error_of_rpc",
    "status_of",
]
