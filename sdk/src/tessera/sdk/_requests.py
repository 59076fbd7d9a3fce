"""Requests that both clients send alike, and the defaults that they share."""

from __future__ import annotations

from typing import TypedDict, Unpack

from tessera.api.batch.v1 import batch_pb2
from tessera.api.common.v1 import common_pb2
from tessera.api.gateway.v1 import gateway_pb2
from tessera.api.profiler.v1 import profiler_pb2
from tessera.api.registry.v1 import registry_pb2
from tessera.domain.errors import Internal, InvalidInput
from tessera.domain.objectives import NAMES, NO_OBJECTIVES, Objectives
from tessera.wire import encode_objectives

NODE_METADATA = "tessera-node"
"""Which node's agent an admin call is for (proto/tessera/api/gateway/v1)."""

LONG_S = 3600.0
"""For streams that follow a job."""


def profile_request(
    trust_domain: str, model: str, version: int | None, variant: str, profile_class: str, quick: bool, again: bool
) -> profiler_pb2.RunProfileRequest:
    return profiler_pb2.RunProfileRequest(
        trust_domain=trust_domain,
        model=model,
        version=version or 0,
        variant=variant,
        profile_class=profile_class,
        quick=quick,
        again=again,
    )


class BatchOptions(TypedDict, total=False):
    """What may be said about a batch job; what is not, the profiler decides.

    `input_format`, `output_format`: npz, jsonl or parquet, where a URL's suffix does not say it. `batch_size`: rows per request.
    `latency_ms`, `min_accuracy`, `max_cost`, `dataset`, `strict`: objectives of each request. `max_errors`: rows that may fail (100).
    `if_exists`: what an output that exists already means: "resume" or "overwrite"; else the job is refused.
    """

    input_format: str
    output_format: str
    batch_size: int
    latency_ms: float
    min_accuracy: float
    max_cost: float
    dataset: str
    strict: bool
    max_errors: int
    if_exists: str


def batch_request(
    trust_domain: str, model: str, input_url: str, output_url: str, **options: Unpack[BatchOptions]
) -> batch_pb2.SubmitBatchRequest:
    """Raises: InvalidInput: a number that no message can carry."""
    said = {name: value for name, value in options.items() if value is not None}
    for name in ("batch_size", "max_errors"):
        value = said.get(name, 0)
        if not isinstance(value, int) or not 0 <= value < 1 << 32:
            raise InvalidInput(name, value, "must be a whole number from 0 on")
    objectives = common_pb2.Objectives(**{name: said.pop(name) for name in NAMES if name in said})  # type: ignore[arg-type] # by name
    return batch_pb2.SubmitBatchRequest(
        trust_domain=trust_domain,
        model=model,
        input_url=input_url,
        output_url=output_url,
        objectives=objectives,
        **said,  # type: ignore[arg-type] # by name
    )


class PromotionOptions(TypedDict, total=False):
    """What a promotion may make worse, and whether that matters.

    `allow_loss`: of the score, 0 to 1 (None: 0). `allow_slower`, `allow_costlier`: shares of the time and cost of a request (None: 0.1).
    `force`: whatever the guard finds.
    """

    allow_loss: float | None
    allow_slower: float | None
    allow_costlier: float | None
    force: bool


def promote_request(
    trust_domain: str, alias: str, model: str, version: int | None, **options: Unpack[PromotionOptions]
) -> registry_pb2.PromoteAliasRequest:
    force = options.pop("force", False)
    guard = registry_pb2.Guard(**{name: limit for name, limit in options.items() if limit is not None})  # type: ignore[arg-type] # by name
    return registry_pb2.PromoteAliasRequest(
        trust_domain=trust_domain, alias=alias, model=model, version=version or 0, guard=guard, force=force
    )


def explain_request(model: str, objectives: Objectives | None) -> gateway_pb2.ExplainRequest:
    return gateway_pb2.ExplainRequest(
        model=model,
        objectives=encode_objectives(objectives or NO_OBJECTIVES),
    )


def result_of(last: registry_pb2.JobEvent | None) -> registry_pb2.RegistrationResult:
    """The result that a finished registration carries.

    Raises:
        Internal: the stream ended without one, or the job failed.
    """
    if last is None or not last.HasField("result"):
        raise Internal(f"the registration ended without a result{': ' + last.error if last is not None and last.error else ''}")
    return last.result
