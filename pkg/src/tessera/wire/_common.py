"""The messages of common.v1: keys, signatures, terms, stages, endpoints, objectives."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from tessera.api.common.v1 import common_pb2
from tessera.domain.errors import InvalidInput
from tessera.domain.ids import (
    Generation,
    ModelName,
    RuntimeId,
    Term,
    TrustDomain,
    VariantKey,
    VariantName,
    VersionNumber,
    checked_name,
)
from tessera.domain.instance import Stage, StageTime, StartPath
from tessera.domain.objectives import Objectives, objectives_of
from tessera.domain.signature import Signature, TensorSpec

MAX_VERSION = 999_999_999

W = TypeVar("W", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How an instance is reached: by the socket on `host_id`, by the relay from anywhere else ("host:port")."""

    host_id: str
    unix_path: str
    relay_address: str
    runtime_id: RuntimeId


def word(field: str, value: str, words: type[W]) -> W:
    """The member of an enumeration.

    Raises: InvalidInput when `value` is not one; lists those that are.
    """
    try:
        return words(value)
    except ValueError:
        raise InvalidInput(field, value[:80], f"must be one of {', '.join(words)}") from None


def duration_ms(field: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise InvalidInput(field, value, "must be a finite number of milliseconds, at least 0")
    return value


def encode_variant_key(key: VariantKey) -> common_pb2.VariantKey:
    return common_pb2.VariantKey(trust_domain=key.trust_domain, model=key.model, version=key.version, variant=key.variant)


def decode_variant_key(message: common_pb2.VariantKey, field: str = "variant") -> VariantKey:
    """Raises: InvalidInput when a part is missing or malformed; a version is a whole number from 1 to 999999999."""
    domain = TrustDomain(checked_name(f"{field}.trust_domain", message.trust_domain))
    name = ModelName(checked_name(f"{field}.model", message.model))
    if not 1 <= message.version <= MAX_VERSION:
        raise InvalidInput(f"{field}.version", message.version, f"must be from 1 to {MAX_VERSION}")
    variant = VariantName(checked_name(f"{field}.variant", message.variant))
    return VariantKey(domain, name, VersionNumber(message.version), variant)


def _tensor_spec(spec: TensorSpec) -> common_pb2.TensorSpec:
    return common_pb2.TensorSpec(name=spec.name, datatype=spec.datatype, shape=spec.shape, any_rank=spec.any_rank)


def encode_signature(signature: Signature) -> common_pb2.Signature:
    return common_pb2.Signature(
        inputs=[_tensor_spec(spec) for spec in signature.inputs],
        outputs=[_tensor_spec(spec) for spec in signature.outputs],
        batched=signature.batched,
    )


def encode_term(term: Term) -> common_pb2.Term:
    return common_pb2.Term(cluster_id=term.cluster_id, revision=term.revision)


def decode_term(message: common_pb2.Term, field: str = "term") -> Term:
    """Raises: InvalidInput when the revision is not at least 1 (no term was sent)."""
    if message.revision < 1:
        raise InvalidInput(f"{field}.revision", message.revision, "must be at least 1")
    return Term(message.cluster_id, message.revision)


def encode_stage_times(stages: Iterable[StageTime]) -> list[common_pb2.StageTime]:
    return [common_pb2.StageTime(stage=time.stage.value, ms=time.ms) for time in stages]


def decode_stage_times(messages: Iterable[common_pb2.StageTime], field: str = "stages") -> tuple[StageTime, ...]:
    """Raises: InvalidInput for an unknown stage or a time that is not a finite number of at least 0."""
    return tuple(
        StageTime(word(f"{field}[{position}].stage", message.stage, Stage), duration_ms(f"{field}[{position}].ms", message.ms))
        for position, message in enumerate(messages)
    )


def decode_start_path(value: str, field: str = "start_path") -> StartPath:
    """Raises: InvalidInput when it is not a start path."""
    return word(field, value, StartPath)


def decode_generation(value: int, field: str = "generation") -> Generation:
    """Raises: InvalidInput for 0, which no instance ever has (an unset field)."""
    if not 1 <= value < 2**64:
        raise InvalidInput(field, value, "must be from 1 to 2**64 - 1")
    return Generation(value)


def encode_endpoint(of: Endpoint) -> common_pb2.InstanceEndpoint:
    return common_pb2.InstanceEndpoint(host_id=of.host_id, unix_path=of.unix_path, relay_address=of.relay_address, runtime_id=of.runtime_id)


def decode_endpoint(message: common_pb2.InstanceEndpoint, field: str = "endpoint") -> Endpoint:
    """Raises: InvalidInput when the runtime's id, or both ways to reach it, are missing."""
    if not message.runtime_id:
        raise InvalidInput(f"{field}.runtime_id", "", "is required")
    if not message.relay_address and not (message.host_id and message.unix_path):
        raise InvalidInput(field, None, "must have a relay_address, or a host_id with a unix_path")
    return Endpoint(message.host_id, message.unix_path, message.relay_address, RuntimeId(message.runtime_id))


def encode_objectives(asked: Objectives) -> common_pb2.Objectives:
    return common_pb2.Objectives(
        latency_ms=asked.latency_ms,
        min_accuracy=asked.min_accuracy,
        max_cost=asked.max_cost,
        dataset=asked.dataset,
        strict=asked.strict,
    )


def decode_objectives(message: common_pb2.Objectives) -> Objectives:
    """Raises: InvalidInput: as a request with these parameters would."""
    return objectives_of({field.name: value for field, value in message.ListFields()})
