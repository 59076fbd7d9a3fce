"""registry.v1.VariantInfo <-> VariantRecord."""

from __future__ import annotations

from tessera.api.registry.v1 import registry_pb2
from tessera.domain.errors import InvalidInput
from tessera.domain.ids import BuildClass, checked_digest
from tessera.domain.records import VariantRecord, VariantState
from tessera.wire._common import decode_variant_key, encode_variant_key, word


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


def decode_variant_info(message: registry_pb2.VariantInfo, field: str = "variant_info") -> VariantRecord:
    """Raises: InvalidInput names the field."""
    for name, value in (("backend", message.backend), ("flavour", message.flavour), ("precision", message.precision)):
        if not value:
            raise InvalidInput(f"{field}.{name}", "", "is required")
    if message.max_batch < 1:
        raise InvalidInput(f"{field}.max_batch", message.max_batch, "must be at least 1")
    return VariantRecord(
        key=decode_variant_key(message.key, f"{field}.key"),
        backend=message.backend,
        flavour=message.flavour,
        precision=message.precision,
        state=word(f"{field}.state", message.state, VariantState),
        max_batch=message.max_batch,
        build_class=BuildClass(message.build_class) if message.build_class else None,
        artifact=checked_digest(f"{field}.artifact_digest", message.artifact_digest) if message.artifact_digest else None,
        graph=checked_digest(f"{field}.graph_digest", message.graph_digest) if message.graph_digest else None,
        tensor_bytes=message.tensor_bytes,
        tensor_bytes_shared=message.tensor_bytes_shared,
        tensor_count=message.tensor_count,
        reason=message.reason,
    )
