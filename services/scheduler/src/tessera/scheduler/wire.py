"""Node agents' messages as values of the scheduler's core, and its answers as messages."""

from __future__ import annotations

from collections.abc import Iterable

from tessera.api.node.v1 import node_pb2
from tessera.api.scheduler.v1 import scheduler_pb2
from tessera.domain.errors import Internal, InvalidInput
from tessera.domain.ids import BuildClass, Digest, InstanceId, NodeId, ProfileClass, RuntimeId, TrustDomain, checked_name
from tessera.domain.instance import InstanceState, StartPath
from tessera.policy.start.base import StartOption
from tessera.policy.view import RuntimeView
from tessera.scheduler.core.explanations import Explanation
from tessera.scheduler.core.observed import NodeReport, ObservedInstance, StoreReport
from tessera.scheduler.loops.starting import StartAnswer
from tessera.wire import (
    Endpoint,
    decode_endpoint,
    decode_generation,
    decode_stage_times,
    decode_start_path,
    decode_variant_key,
    encode_endpoint,
    encode_stage_times,
    encode_variant_key,
)

DIGEST_BYTES = 32


def instance_of(message: node_pb2.Instance, node_id: NodeId, field: str = "instance") -> ObservedInstance:
    """An instance in any state; before it has a runtime its endpoint is empty. Raises: InvalidInput names the field."""
    try:
        state = InstanceState(message.state)
    except ValueError:
        raise InvalidInput(f"{field}.state", message.state[:80], f"must be one of {', '.join(InstanceState)}") from None
    endpoint = message.endpoint
    return ObservedInstance(
        instance_id=InstanceId(message.instance_id),
        node_id=node_id,
        variant=decode_variant_key(message.variant, f"{field}.variant"),
        generation=decode_generation(message.generation, f"{field}.generation"),
        runtime_id=RuntimeId(endpoint.runtime_id or message.runtime_id),
        state=state,
        start_path=decode_start_path(message.start_path, f"{field}.start_path"),
        fetched=message.fetched,
        stages=decode_stage_times(message.stages, f"{field}.stages"),
        host_id=endpoint.host_id,
        unix_path=endpoint.unix_path,
        relay_address=endpoint.relay_address,
        idle_s=message.idle_s,
        served=message.served,
        artifact=Digest(message.artifact_digest) if message.artifact_digest else None,
        in_flight=message.queue + message.executing,
        requests_per_s=message.requests_per_s,
        items_per_s=message.items_per_s,
        run_ms=message.run_p50_ms,
        run_items=message.run_items,
        parked=message.parked,
        opening=message.opening,
        fetched_bytes=message.fetched_bytes,
    )


def started_instance_of(message: node_pb2.Instance, node_id: NodeId) -> ObservedInstance:
    """The answer to a start: ready, and reachable. Raises: Internal when the agent answered with anything else."""
    try:
        decode_endpoint(message.endpoint, "instance.endpoint")
        instance = instance_of(message, node_id)
    except InvalidInput as error:
        raise Internal(f"node {node_id} answered a start with {error}") from None
    if instance.state is not InstanceState.READY:
        raise Internal(f"node {node_id} answered a start with an instance that is {instance.state}: {message.error or 'no reason given'}")
    return instance


def report_of(message: node_pb2.NodeStatus) -> NodeReport:
    """Raises: InvalidInput names the field that is not valid."""
    node_id = NodeId(checked_name("node_id", message.node_id))
    return NodeReport(
        node_id=node_id,
        build_class=BuildClass(message.build_class),
        profile_class=ProfileClass(message.profile_class),
        agent_address=message.agent_address,
        start_address=message.start_address,
        flavours=tuple(message.flavours),
        cpu_count=message.cpu_count,
        instances=tuple(instance_of(item, node_id, f"instances[{index}]") for index, item in enumerate(message.instances)),
        runtimes=tuple(
            RuntimeView(RuntimeId(item.runtime_id), item.flavour, TrustDomain(item.trust_domain), item.instances)
            for item in message.runtimes
        ),
        stores=dict(_store_of(item, f"stores[{index}]") for index, item in enumerate(message.stores)),
        full=message.full,
        peer_address=message.peer_address,
        new_runtime=StartPath.CONTAINER if message.new_runtimes == "container" else StartPath.FORK,
        cpu_cores=message.cpu_cores,
        memory_bytes=message.memory_bytes,
        runtime_cores=sum(item.cpu_cores for item in message.runtimes),
    )


def _store_of(message: node_pb2.StoreStatus, field: str) -> tuple[TrustDomain, StoreReport]:
    return TrustDomain(checked_name(f"{field}.trust_domain", message.trust_domain)), StoreReport(
        message.budget_bytes,
        max(0, min(message.used_bytes, message.pinned_bytes + message.unlinked_bytes) - message.evictable_bytes),
        _digests(f"{field}.digests_added", message.digests_added),
        _digests(f"{field}.digests_removed", message.digests_removed),
    )


def _digests(field: str, raw: Iterable[bytes]) -> frozenset[Digest]:
    found = []
    for digest in raw:
        if len(digest) != DIGEST_BYTES:
            raise InvalidInput(field, f"{len(digest)} bytes", f"a digest has {DIGEST_BYTES} bytes")
        found.append(Digest(digest.hex()))
    return frozenset(found)


def start_response(answer: StartAnswer) -> scheduler_pb2.StartInstanceResponse:
    instance = answer.instance
    return scheduler_pb2.StartInstanceResponse(
        instance_id=instance.instance_id,
        generation=instance.generation,
        variant=encode_variant_key(instance.variant),
        node_id=instance.node_id,
        endpoint=encode_endpoint(Endpoint(instance.host_id, instance.unix_path, instance.relay_address, instance.runtime_id)),
        start_path=instance.start_path,
        fetched=instance.fetched,
        stages=encode_stage_times(answer.stages),
    )


def explanation_response(found: Explanation) -> scheduler_pb2.ExplainStartResponse:
    decision = found.decision
    options = [] if decision.chosen is None else [_option(decision.chosen, True)]
    return scheduler_pb2.ExplainStartResponse(
        options=[*options, *(_option(loser, False) for loser in decision.losers)], actual_ms=found.actual_ms, policy=decision.policy
    )


def _option(option: StartOption, chosen: bool) -> scheduler_pb2.StartOption:
    return scheduler_pb2.StartOption(
        variant=encode_variant_key(option.variant),
        node_id=option.node_id,
        start_path=option.start_path,
        expected_ms=option.expected_ms,
        bytes_to_fetch=option.bytes_to_fetch,
        chosen=chosen,
        reason=option.reason,
    )
