"""Node agents: starts in frames (docs/adr/0005-start-calls-in-frames.md), the rest over gRPC; one connection per address."""

from __future__ import annotations

import grpc

from tessera.api.node.v1 import node_pb2, node_pb2_grpc
from tessera.domain.ids import InstanceId, Term
from tessera.rpc import FramedCalls, connect
from tessera.scheduler.core.observed import ObservedInstance
from tessera.scheduler.ports import StartOrder
from tessera.scheduler.wire import started_instance_of
from tessera.wire import encode_term, encode_variant_key

START = "/tessera.api.node.v1.NodeAgent/StartInstance"


class RemoteAgents:
    """Connections are kept and come back when an agent restarts; the deadline of a call is its budget."""

    def __init__(self, calls: FramedCalls) -> None:
        self._calls = calls
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._stubs: dict[str, node_pb2_grpc.NodeAgentAsyncStub] = {}

    def expect(self, start_address: str) -> None:
        self._calls.expect(start_address)

    async def start(self, start_address: str, order: StartOrder) -> ObservedInstance:
        request = node_pb2.StartInstanceRequest(
            term=encode_term(order.term),
            instance_id=order.instance_id,
            generation=order.generation,
            variant=encode_variant_key(order.variant),
            artifact_digest=order.artifact or "",
            start_path=order.start_path,
            expires_after_ms=int(order.expires_after_s * 1e3),
            budget_us=int(order.budget_s * 1e6),
            request_id=order.request_id,
            donor_instance_id=order.donor or "",
            delta=order.delta,
            donor_idle_ms=int(order.donor_idle_s * 1e3),
            sources=[node_pb2.Source(node_id=source.node_id, peer_address=source.peer_address) for source in order.sources],
        )
        response = await self._calls.call(start_address, START, request, node_pb2.StartInstanceResponse, order.budget_s)
        return started_instance_of(response.instance, order.node_id)

    async def stop(self, address: str, term: Term, instance_id: InstanceId, budget_s: float) -> None:
        request = node_pb2.StopInstanceRequest(term=encode_term(term), instance_id=instance_id)
        await self._stub(address).StopInstance(request, timeout=budget_s)

    async def close(self) -> None:
        self._calls.close()
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()
        self._stubs.clear()

    def _stub(self, address: str) -> node_pb2_grpc.NodeAgentAsyncStub:
        stub = self._stubs.get(address)
        if stub is None:
            stub = self._stubs[address] = node_pb2_grpc.NodeAgentStub(self._channel(address))
        return stub

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = connect(address)
        return channel
