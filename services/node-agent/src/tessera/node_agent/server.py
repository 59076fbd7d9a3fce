"""The RPCs of a node agent: wire in, domain call, wire out."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from tessera.api.node.v1 import node_pb2, node_pb2_grpc
from tessera.domain.errors import InvalidInput
from tessera.domain.ids import InstanceId, NodeId, TrustDomain, checked_digest, checked_name
from tessera.domain.instance import StartPath
from tessera.domain.records import LatencyRow, LoadCost
from tessera.domain.source import Source
from tessera.node_agent.core.changes import DigestChange
from tessera.node_agent.core.status import InstanceSummary, NodeIdentity, RuntimeSummary
from tessera.node_agent.core.table import Instance
from tessera.node_agent.loops.agent import Agent
from tessera.node_agent.loops.jobs import Baked, BakeOrder, BlobChunk
from tessera.node_agent.loops.measuring import MeasureOrder
from tessera.node_agent.loops.reporter import Report
from tessera.node_agent.ports import StartOrder
from tessera.tensorstore.interface import StoreStatus
from tessera.wire import (
    Endpoint,
    decode_blob,
    decode_generation,
    decode_start_path,
    decode_term,
    decode_variant_key,
    encode_agreement,
    encode_endpoint,
    encode_latency_row,
    encode_load_cost,
    encode_observation,
    encode_stage_times,
    encode_variant_key,
)

DEFAULT_BUDGET_S = 60.0
DEFAULT_EXPIRY_S = 30.0
DEFAULT_OBSERVED_S = 10.0
MAX_EXPIRY_S = 7200.0
"""The longest budget of a start is an hour, and what it makes is kept for a while beyond that."""
FRESH_S = 0.25
"""Memory figures that somebody asked for may be this old."""

MAX_SOURCES = 16

_ADDRESS = re.compile(r"[^\s/]{1,255}:[0-9]{1,5}")
_INSTANCE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class NodeAgentServer(node_pb2_grpc.NodeAgentServicer):
    """Decides nothing. Domain errors pass; the RPC kit turns them into statuses."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def StartInstance(self, request: node_pb2.StartInstanceRequest, context: Any) -> node_pb2.StartInstanceResponse:
        path = decode_start_path(request.start_path or StartPath.BIND.value)
        if (path is StartPath.TRANSFORM) != bool(request.donor_instance_id):
            raise InvalidInput(
                "donor_instance_id", request.donor_instance_id, f"start path {path}: transform needs one, no other path has one"
            )
        order = StartOrder(
            decode_term(request.term),
            _instance_id(request.instance_id),
            decode_generation(request.generation),
            decode_variant_key(request.variant),
            checked_digest("artifact_digest", request.artifact_digest) if request.artifact_digest else None,
            path if path is not StartPath.WARM else StartPath.BIND,
            min(request.expires_after_ms / 1e3, MAX_EXPIRY_S) or DEFAULT_EXPIRY_S,
            request.budget_us / 1e6 or DEFAULT_BUDGET_S,
            request.request_id,
            _sources(request.sources),
            _instance_id(request.donor_instance_id) if request.donor_instance_id else None,
            _delta(request.delta),
            request.donor_idle_ms / 1e3,
        )
        instance = await self._agent.start_instance(order)
        return node_pb2.StartInstanceResponse(instance=instance_message(self._agent.describe(instance), self._agent.identity))

    async def StopInstance(self, request: node_pb2.StopInstanceRequest, context: Any) -> node_pb2.StopInstanceResponse:
        await self._agent.stop_instance(decode_term(request.term), _instance_id(request.instance_id))
        return node_pb2.StopInstanceResponse()

    async def GetStatus(self, request: node_pb2.GetStatusRequest, context: Any) -> node_pb2.GetStatusResponse:
        summary = await self._agent.summary(refresh=True, memory_age_s=FRESH_S)
        if request.trust_domain:
            summary = summary.of(self._agent.domain(_trust_domain(request.trust_domain)).name)
        changes = {domain: DigestChange(True, tuple(digests), ()) for domain, digests in self._agent.digests().items()}
        return node_pb2.GetStatusResponse(status=status_message((summary, changes)))

    async def CheckStores(self, request: node_pb2.CheckStoresRequest, context: Any) -> node_pb2.CheckStoresResponse:
        found = await self._agent.check_stores(request.deep)
        return node_pb2.CheckStoresResponse(
            findings=[
                node_pb2.CheckStoresResponse.Finding(trust_domain=domain, words=words)
                for domain, inspection in found.items()
                for words in inspection.findings
            ],
            stores=len(found),
            blobs=sum(inspection.blobs for inspection in found.values()),
            bytes=sum(inspection.size_bytes for inspection in found.values()),
            unlinked_bytes=sum(inspection.unlinked_bytes for inspection in found.values()),
        )

    async def Bake(self, request: node_pb2.BakeRequest, context: Any) -> AsyncIterator[node_pb2.BakeEvent]:
        order = BakeOrder(
            checked_digest("artifact_digest", request.artifact_digest),
            request.max_batch or 1,
            request.recipe or "ort-fp32",
            decode_blob(request.evaluation, "evaluation") if request.HasField("evaluation") else None,
            request.metric,
            decode_blob(request.calibration, "calibration") if request.HasField("calibration") else None,
        )
        jobs = self._agent.domain(_trust_domain(request.trust_domain)).jobs
        async with aclosing(jobs.bake(order)) as events:
            async for event in events:
                yield _bake_event(event)

    async def Measure(self, request: node_pb2.MeasureRequest, context: Any) -> AsyncIterator[node_pb2.MeasureEvent]:
        order = MeasureOrder(
            decode_variant_key(request.variant),
            checked_digest("artifact_digest", request.artifact_digest) if request.artifact_digest else None,
            request.batch,
            request.threads,
            request.concurrency or 1,
            request.seconds or 1.0,
            request.min_repeats or 1,
            request.spread,
        )
        measurer = self._agent.domain(order.variant.trust_domain).measurer
        async with aclosing(measurer.measure(order)) as events:
            async for event in events:
                yield _measure_event(event)

    async def MeasureTransformations(
        self, request: node_pb2.MeasureTransformationsRequest, context: Any
    ) -> AsyncIterator[node_pb2.MeasureTransformationsEvent]:
        observer = self._agent.domain(_trust_domain(request.trust_domain)).observer
        async with aclosing(observer.observe(request.seconds or DEFAULT_OBSERVED_S)) as events:
            async for event in events:
                if isinstance(event, str):
                    yield node_pb2.MeasureTransformationsEvent(progress=event)
                else:
                    yield node_pb2.MeasureTransformationsEvent(transformation=encode_observation(event))


def _delta(data: bytes) -> bytes:
    """Its content is the runtime's to judge; it travels there as text."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput("delta", f"{len(data)} bytes", f"must be JSON: {error}") from None
    return data


def status_message(report: Report) -> node_pb2.NodeStatus:
    """A node's status, as RPC answer and as stream message alike."""
    summary, changes = report
    me = summary.identity
    return node_pb2.NodeStatus(
        node_id=me.node_id,
        build_class=me.build_class,
        profile_class=me.profile_class,
        flavours=me.flavours,
        instances=[instance_message(item, me) for item in summary.instances],
        runtimes=[_runtime_message(item) for item in summary.runtimes],
        stores=[
            _store_message(domain, status, summary.evictable_bytes[domain], changes[domain]) for domain, status in summary.stores.items()
        ],
        full=all(change.full for change in changes.values()),
        agent_address=me.address,
        cpu_count=me.cpu_count,
        start_address=me.start_address,
        cpu_cores=summary.machine.cpu_cores,
        memory_bytes=summary.machine.memory_bytes,
        memory_available_bytes=summary.machine.memory_available_bytes,
        memory_pressure=summary.machine.memory_pressure,
        peer_address=me.peer_address,
        new_runtimes=me.new_runtimes,
    )


def instance_message(item: InstanceSummary, me: NodeIdentity) -> node_pb2.Instance:
    """An instance in any state; before it has a runtime its endpoint is empty."""
    instance = item.instance
    message = node_pb2.Instance(
        instance_id=instance.instance_id,
        generation=instance.generation,
        variant=encode_variant_key(instance.variant),
        runtime_id=instance.runtime_id or "",
        pid=item.pid,
        state=instance.state.value,
        start_path=instance.start_path.value,
        fetched=instance.fetched,
        stages=encode_stage_times(instance.stages),
        shared_bytes=instance.shared_bytes,
        private_bytes=instance.private_bytes,
        idle_s=instance.idle_s,
        served=instance.served,
        error=str(instance.error) if instance.error is not None else "",
        artifact_digest=instance.artifact or "",
        max_batch=instance.max_batch,
        queue=instance.queue,
        executing=instance.executing,
        requests_per_s=instance.requests_per_s,
        run_p50_ms=instance.run_p50_ms,
        run_p99_ms=instance.run_p99_ms,
        parked=instance.parked,
        fetched_from_peers_bytes=instance.fetched_from_peers_bytes,
        items_per_s=instance.items_per_s,
        run_items=instance.run_items,
        opening=instance.opening,
        fetched_bytes=instance.fetched_bytes,
    )
    endpoint = _endpoint(instance, me)
    if endpoint is not None:
        message.endpoint.CopyFrom(encode_endpoint(endpoint))
    return message


def _endpoint(instance: Instance, me: NodeIdentity) -> Endpoint | None:
    if instance.runtime_id is None:
        return None
    return Endpoint(me.host_id, me.unix_path(instance.runtime_id), me.relay_address, instance.runtime_id)


def _runtime_message(item: RuntimeSummary) -> node_pb2.Runtime:
    return node_pb2.Runtime(
        runtime_id=item.runtime_id,
        pid=item.pid,
        flavour=item.flavour,
        trust_domain=item.trust_domain,
        instances=item.instances,
        private_bytes=item.private_bytes,
        proportional_bytes=item.proportional_bytes,
        threads=item.threads,
        shared_bytes=item.shared_bytes,
        cpu_cores=item.cpu_cores,
        kind=item.kind,
        container_id=item.container_id,
    )


def _store_message(domain: TrustDomain, status: StoreStatus, evictable_bytes: int, change: DigestChange) -> node_pb2.StoreStatus:
    return node_pb2.StoreStatus(
        trust_domain=domain,
        used_bytes=status.used_bytes,
        budget_bytes=status.budget_bytes,
        pinned_bytes=status.pinned_bytes,
        evictable_bytes=evictable_bytes,
        unlinked_bytes=status.unlinked_bytes,
        files=status.files,
        huge_pages=status.huge_pages,
        sharing=status.sharing,
        fetched_bytes=status.ingested_bytes,
        quarantined=status.quarantined,
        reclaimed_bytes=status.reclaimed_bytes,
        peer_bytes=status.pulled_bytes,
        digests_added=[bytes.fromhex(digest) for digest in change.added],
        digests_removed=[bytes.fromhex(digest) for digest in change.removed],
    )


def _bake_event(event: str | BlobChunk | Baked) -> node_pb2.BakeEvent:
    if isinstance(event, str):
        return node_pb2.BakeEvent(progress=event)
    if isinstance(event, BlobChunk):
        blob = node_pb2.BakeEvent.Blob(digest=event.digest, offset=event.offset, data=event.data, size_bytes=event.size_bytes)
        return node_pb2.BakeEvent(blob=blob)
    return node_pb2.BakeEvent(
        baked=node_pb2.Baked(
            artifact_digest=event.artifact,
            build_class=event.build_class,
            agreement=encode_agreement(event.agreement),
            notes=event.notes,
        )
    )


def _measure_event(event: str | LoadCost | LatencyRow) -> node_pb2.MeasureEvent:
    if isinstance(event, str):
        return node_pb2.MeasureEvent(progress=event)
    if isinstance(event, LoadCost):
        return node_pb2.MeasureEvent(load=encode_load_cost(event))
    return node_pb2.MeasureEvent(row=encode_latency_row(event))


def _trust_domain(text: str) -> TrustDomain:
    return TrustDomain(checked_name("trust_domain", text))


def _sources(messages: Sequence[node_pb2.Source]) -> tuple[Source, ...]:
    if len(messages) > MAX_SOURCES:
        raise InvalidInput("sources", len(messages), f"at most {MAX_SOURCES}")
    for index, message in enumerate(messages):
        if not _ADDRESS.fullmatch(message.peer_address):
            raise InvalidInput(f"sources[{index}].peer_address", message.peer_address[:80], "must be HOST:PORT")
    return tuple(Source(NodeId(message.node_id), message.peer_address) for message in messages)


def _instance_id(text: str) -> InstanceId:
    if not _INSTANCE_ID.fullmatch(text):
        raise InvalidInput("instance_id", text[:80], "must match [A-Za-z0-9][A-Za-z0-9._-]{0,127}")
    return InstanceId(text)
