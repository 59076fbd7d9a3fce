"""VariantRecord -> registry.v1.VariantInfo; nobody reads one back."""

from __future__ import annotations

from tessera.api.registry.v1 import registry_pb2
from tessera.domain.records import VariantRecord
from tessera.wire._common import encode_variant_key


def encode_variant_info(record: VariantRecord) -> registry_pb2.VariantInfo:
    """Where the record has None, the message has the empty string."""
    return registry_pb2.VariantInfo(
        key=encode_variant_key(record.key),
        backend=record.backend,
        flavour=record.flavour,
        precision=record.precision,
        state=record.state.value,
        reason=record.reason,
        build_class=record.build_class or "",
        tensor_bytes=record.tensor_bytes,
        tensor_bytes_shared=record.tensor_bytes_shared,
        tensor_count=record.tensor_count,
        artifact_digest=record.artifact or "",
        graph_digest=record.graph or "",
        max_batch=record.max_batch,
    )
