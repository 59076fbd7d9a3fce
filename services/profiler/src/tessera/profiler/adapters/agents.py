"""Node agents over gRPC, one channel per address."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import grpc.aio

from tessera.api.node.v1 import node_pb2, node_pb2_grpc
from tessera.domain.ids import TrustDomain
from tessera.domain.transformation import Observation
from tessera.profiler.ports import Measured, MeasureOrder
from tessera.rpc import connect
from tessera.wire import decode_latency_row, decode_load_cost, decode_observation, encode_variant_key


class GrpcAgents:
    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def measure(self, address: str, order: MeasureOrder, budget_s: float) -> AsyncGenerator[Measured, None]:
        request = node_pb2.MeasureRequest(
            variant=encode_variant_key(order.variant),
            artifact_digest=order.artifact or "",
            batch=order.cell.batch,
            threads=order.cell.threads,
            concurrency=order.cell.concurrency,
            seconds=order.seconds,
            min_repeats=order.min_repeats,
            spread=order.spread,
        )
        call = self._stub(address).Measure(request, timeout=budget_s)
        try:
            async for event in call:
                match event.WhichOneof("event"):
                    case "load":
                        yield decode_load_cost(event.load)
                    case "row":
                        yield decode_latency_row(event.row)
                    case _:
                        yield event.progress
        finally:
            # Closed early or cancelled: the agent must stop measuring.
            call.cancel()

    async def observe(
        self, address: str, trust_domain: TrustDomain, seconds: float, budget_s: float
    ) -> AsyncGenerator[Observation | str, None]:
        request = node_pb2.MeasureTransformationsRequest(trust_domain=trust_domain, seconds=seconds)
        call = self._stub(address).MeasureTransformations(request, timeout=budget_s)
        try:
            async for event in call:
                yield decode_observation(event.transformation) if event.HasField("transformation") else event.progress
        finally:
            call.cancel()

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    def _stub(self, address: str) -> node_pb2_grpc.NodeAgentAsyncStub:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = connect(address)
        return node_pb2_grpc.NodeAgentStub(channel)
