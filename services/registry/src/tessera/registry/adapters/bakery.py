"""Node agents as bakers, over gRPC. One channel per address, kept."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import grpc.aio

from tessera.api.node.v1 import node_pb2, node_pb2_grpc
from tessera.domain.errors import Internal
from tessera.domain.ids import BuildClass, Digest, checked_digest
from tessera.domain.records import NodeRecord
from tessera.registry.ports import BakeBlob, BakeDone, BakeEvent, BakeProgress
from tessera.rpc import connect


class GrpcBaker:
    """Implements `ports.Baker`."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def bake(
        self, node: NodeRecord, job_id: str, export: Digest, max_batch: int, timeout_s: float
    ) -> AsyncGenerator[BakeEvent, None]:
        channel = self._channels.get(node.agent_address)
        if channel is None:
            channel = self._channels[node.agent_address] = connect(node.agent_address)
        stub = node_pb2_grpc.NodeAgentStub(channel)
        request = node_pb2.BakeRequest(job_id=job_id, artifact_digest=export, max_batch=max_batch, trust_domain=node.trust_domain)
        call = stub.Bake(request, timeout=timeout_s)
        try:
            async for event in call:
                yield _event(event)
        finally:
            call.cancel()

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()


def _event(message: node_pb2.BakeEvent) -> BakeEvent:
    kind = message.WhichOneof("event")
    if kind == "progress":
        return BakeProgress(message.progress)
    if kind == "blob":
        blob = message.blob
        return BakeBlob(checked_digest("baked blob", blob.digest), blob.offset, blob.data, blob.size_bytes)
    if kind == "baked":
        return BakeDone(checked_digest("baked artifact", message.baked.artifact_digest), BuildClass(message.baked.build_class))
    raise Internal("a node agent answered baking with an empty event")
