"""Node agents as bakers, over gRPC. One channel per address, kept."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import grpc.aio

from tessera.api.node.v1 import node_pb2, node_pb2_grpc
from tessera.domain.artifact import Blob
from tessera.domain.errors import Internal
from tessera.domain.ids import BuildClass, checked_digest
from tessera.domain.records import NodeRecord
from tessera.registry.ports import BakeBlob, BakeDone, BakeEvent, BakeOrder, BakeProgress
from tessera.rpc import connect
from tessera.wire import decode_agreement, encode_blob

_MAX_NOTES_CHARS = 500


class GrpcBaker:
    """Implements `ports.Baker`."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def bake(self, node: NodeRecord, order: BakeOrder, timeout_s: float) -> AsyncGenerator[BakeEvent, None]:
        channel = self._channels.get(node.agent_address)
        if channel is None:
            channel = self._channels[node.agent_address] = connect(node.agent_address)
        stub = node_pb2_grpc.NodeAgentStub(channel)
        call = stub.Bake(_request(node, order), timeout=timeout_s)
        try:
            async for event in call:
                yield _event(event)
        finally:
            call.cancel()

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()


def _request(node: NodeRecord, order: BakeOrder) -> node_pb2.BakeRequest:
    request = node_pb2.BakeRequest(
        job_id=order.job_id,
        artifact_digest=order.export,
        max_batch=order.max_batch,
        trust_domain=node.trust_domain,
        recipe=order.recipe,
    )
    if order.evaluation is not None:
        request.evaluation.CopyFrom(encode_blob(Blob(order.evaluation.digest, order.evaluation.size_bytes)))
        request.metric = order.evaluation.metric
    if order.calibration is not None:
        request.calibration.CopyFrom(encode_blob(order.calibration))
    return request


def _event(message: node_pb2.BakeEvent) -> BakeEvent:
    kind = message.WhichOneof("event")
    if kind == "progress":
        return BakeProgress(message.progress)
    if kind == "blob":
        blob = message.blob
        return BakeBlob(checked_digest("baked blob", blob.digest), blob.offset, blob.data, blob.size_bytes)
    if kind == "baked":
        done = message.baked
        return BakeDone(
            checked_digest("baked artifact", done.artifact_digest),
            BuildClass(done.build_class),
            decode_agreement(done.agreement),
            done.notes[:_MAX_NOTES_CHARS],
        )
    raise Internal("a node agent answered baking with an empty event")
