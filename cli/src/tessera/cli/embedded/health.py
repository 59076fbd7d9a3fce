"""Does something answer at an address?"""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_PROBE_S = 1.0


async def serving(address: str, *, health: bool = True) -> bool:
    """True when the gRPC health service at `address` says SERVING; with `health` off, when the port takes connections."""
    host, _, port = address.rpartition(":")
    if not health:
        try:
            async with asyncio.timeout(_PROBE_S):
                _, writer = await asyncio.open_connection(host, int(port))
            writer.close()
            return True
        except (OSError, TimeoutError):
            return False
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_PROBE_S)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
