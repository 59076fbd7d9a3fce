"""What transformations took, and what they are expected to take."""

from __future__ import annotations

from tessera.api.node.v1 import node_pb2
from tessera.api.profiler.v1 import profiler_pb2
from tessera.domain.errors import InvalidInput
from tessera.domain.records import MetaCostRecord
from tessera.domain.transformation import MetaOperator, Observation, StepSum
from tessera.wire._common import duration_ms

MOST_SUMS = 1024
"""Of one transformation: operators times kinds of operations."""


def encode_observation(seen: Observation) -> node_pb2.Transformation:
    return node_pb2.Transformation(
        steps=[
            node_pb2.Transformation.StepSum(
                operator=each.operator.value,
                kind=each.kind,
                steps=each.steps,
                new_bytes=each.new_bytes,
                changed_bytes=each.changed_bytes,
            )
            for each in seen.steps
        ],
        ms=seen.ms,
    )


def decode_observation(message: node_pb2.Transformation, field: str = "transformation") -> Observation:
    """Raises: InvalidInput for an unknown operator, steps of none, too many of them, or a time that is not finite and more than 0."""
    if len(message.steps) > MOST_SUMS:
        raise InvalidInput(f"{field}.steps", len(message.steps), f"at most {MOST_SUMS}")
    steps = tuple(_step_sum(each, f"{field}.steps[{at}]") for at, each in enumerate(message.steps))
    ms = duration_ms(f"{field}.ms", message.ms)
    if not ms:
        raise InvalidInput(f"{field}.ms", ms, "must be more than 0")
    return Observation(steps, ms)


def _step_sum(message: node_pb2.Transformation.StepSum, field: str) -> StepSum:
    if message.operator not in set(MetaOperator):
        raise InvalidInput(f"{field}.operator", message.operator[:80], f"must be one of {', '.join(MetaOperator)}")
    if not message.steps:
        raise InvalidInput(f"{field}.steps", 0, "must be at least 1")
    return StepSum(MetaOperator(message.operator), message.kind, message.steps, message.new_bytes, message.changed_bytes)


def encode_meta_costs(record: MetaCostRecord) -> profiler_pb2.MetaCosts:
    return profiler_pb2.MetaCosts(
        profile_class=record.profile_class,
        dialect=record.dialect,
        base_ms=record.base_ms,
        lines=[
            profiler_pb2.MetaCosts.Line(
                operator=line.operator.value,
                kind=line.kind,
                fixed_ms=line.fixed_ms,
                per_mib_ms=line.per_mib_ms,
                per_changed_mib_ms=line.per_changed_mib_ms,
            )
            for line in record.lines
        ],
        error=record.error,
        observations=record.observations,
        measured_unix_s=record.measured_unix_s,
    )
