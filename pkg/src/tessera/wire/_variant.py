"""Variants: VariantRecord -> registry.v1.VariantInfo, which nobody reads back; agreements and blobs both ways."""

from __future__ import annotations

import math

from tessera.api.common.v1 import common_pb2
from tessera.api.registry.v1 import registry_pb2
from tessera.domain.accuracy import Agreement
from tessera.domain.artifact import Blob
from tessera.domain.errors import InvalidInput
from tessera.domain.ids import checked_digest
from tessera.domain.records import VariantRecord
from tessera.wire._common import encode_variant_key

_MAX_METRIC_CHARS = 128


def encode_variant_info(record: VariantRecord, progress: str = "") -> registry_pb2.VariantInfo:
    """Where the record has None, the message has the empty string. `progress`: where its making is now, which no record says."""
    info = registry_pb2.VariantInfo(
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
        recipe=record.recipe or record.key.variant,
        lossy=record.lossy,
        withheld=record.withheld,
        notes=record.notes,
        progress=progress,
    )
    if record.agreement is not None:
        info.agreement.CopyFrom(encode_agreement(record.agreement))
    return info


def encode_agreement(agreement: Agreement) -> common_pb2.Agreement:
    return common_pb2.Agreement(
        max_error=agreement.max_error,
        cosine=agreement.cosine,
        samples=agreement.samples,
        metric=agreement.metric,
        score=agreement.score,
        reference_score=agreement.reference_score,
    )


def decode_agreement(message: common_pb2.Agreement, field: str = "agreement") -> Agreement:
    """Raises: InvalidInput when a number is not finite or out of range, or nothing was compared."""
    scores = [
        message.score if message.HasField("score") else None,
        message.reference_score if message.HasField("reference_score") else None,
    ]
    ranges = [("max_error", message.max_error, 0.0, math.inf), ("cosine", message.cosine, -1.0, 1.0)]
    ranges += [(name, value, 0.0, 1.0) for name, value in zip(("score", "reference_score"), scores, strict=True) if value is not None]
    for name, value, least, most in ranges:
        if not math.isfinite(value) or not least <= value <= most:
            raise InvalidInput(f"{field}.{name}", value, f"must be a number from {least:g} to {most:g}")
    if message.samples < 1:
        raise InvalidInput(f"{field}.samples", message.samples, "must be at least 1")
    if len(message.metric) > _MAX_METRIC_CHARS:
        raise InvalidInput(f"{field}.metric", message.metric[:80], f"at most {_MAX_METRIC_CHARS} characters")
    return Agreement(message.max_error, message.cosine, message.samples, message.metric, *scores)


def encode_blob(blob: Blob) -> common_pb2.Blob:
    return common_pb2.Blob(digest=blob.digest, size_bytes=blob.size_bytes)


def decode_blob(message: common_pb2.Blob, field: str) -> Blob:
    """Raises: InvalidInput: the digest is none."""
    return Blob(checked_digest(f"{field}.digest", message.digest), message.size_bytes)
