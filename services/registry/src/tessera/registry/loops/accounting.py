"""Variant records of what was made, with its bytes counted."""

from __future__ import annotations

from dataclasses import replace

from tessera.domain.artifact import ALONE, Artifact
from tessera.domain.ids import Digest, ModelName, TrustDomain, VariantKey, VariantName, VersionNumber
from tessera.domain.records import VariantRecord, VariantState


def placeholder(
    domain: TrustDomain, name: ModelName, variant: VariantName, backend: str, max_batch: int, precision: str = "fp32", flavour: str = ""
) -> VariantRecord:
    """A variant that is still to be made, by the recipe of its name; the flavour has the backend's name where none is given, the commit
    gives its version."""
    key = VariantKey(domain, name, VersionNumber(0), variant)
    return VariantRecord(key, backend, flavour or backend, precision, VariantState.PENDING, max_batch, recipe=variant)


def ready(record: VariantRecord, digest: Digest, artifact: Artifact, stored_before: frozenset[Digest]) -> VariantRecord:
    """The record of a variant that can be served. `stored_before`: large tensors that other versions had already brought."""
    large = {ref.digest: ref.size_bytes for ref in artifact.large_tensors()}
    return replace(
        record,
        state=VariantState.READY,
        reason="",
        artifact=digest,
        graph=artifact.graph.digest if artifact.graph else None,
        max_batch=artifact.max_batch,
        build_class=artifact.build_class,
        tensor_bytes=artifact.tensor_bytes,
        tensor_bytes_shared=sum(size for tensor, size in large.items() if tensor in stored_before),
        tensor_count=len(artifact.tensors),
        joins=ALONE not in artifact.options,
    )
