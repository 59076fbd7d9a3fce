"""node.v1.Instance <-> InstanceRecord: what an agent reports of an instance."""

from __future__ import annotations

from tessera.api.node.v1 import node_pb2
from tessera.domain.errors import InvalidInput
from tessera.domain.ids import InstanceId, NodeId
from tessera.domain.instance import InstanceState
from tessera.domain.records import InstanceRecord
from tessera.wire._common import (
    decode_endpoint,
    decode_generation,
    decode_stage_times,
    decode_start_path,
    decode_variant_key,
    encode_endpoint,
    encode_stage_times,
    encode_variant_key,
    word,
)


def encode_instance(record: InstanceRecord) -> node_pb2.Instance:
    """The message without what only the agent knows (pid, bytes, idle time, counts): the caller sets those."""
    return node_pb2.Instance(
        instance_id=record.instance_id,
        generation=record.generation,
        variant=encode_variant_key(record.variant),
        runtime_id=record.runtime_id,
        state=record.state.value,
        start_path=record.start_path.value,
        fetched=record.fetched,
        stages=encode_stage_times(record.stages),
        endpoint=encode_endpoint(record),
        max_batch=record.max_batch,
    )


def decode_instance(message: node_pb2.Instance, node_id: NodeId, field: str = "instance") -> InstanceRecord:
    """Raises: InvalidInput names the field. `max_batch` 0 (not said) is 1."""
    if not message.instance_id:
        raise InvalidInput(f"{field}.instance_id", "", "is required")
    endpoint = decode_endpoint(message.endpoint, f"{field}.endpoint")
    return InstanceRecord(
        instance_id=InstanceId(message.instance_id),
        node_id=node_id,
        runtime_id=endpoint.runtime_id,
        variant=decode_variant_key(message.variant, f"{field}.variant"),
        generation=decode_generation(message.generation, f"{field}.generation"),
        state=word(f"{field}.state", message.state, InstanceState),
        start_path=decode_start_path(message.start_path, f"{field}.start_path"),
        fetched=message.fetched,
        host_id=endpoint.host_id,
        unix_path=endpoint.unix_path,
        relay_address=endpoint.relay_address,
        max_batch=message.max_batch or 1,
        stages=decode_stage_times(message.stages, f"{field}.stages"),
    )
