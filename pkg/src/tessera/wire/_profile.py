"""Load costs, latency rows and whole profiles."""

from __future__ import annotations

import math

from tessera.api.node.v1 import node_pb2
from tessera.api.profiler.v1 import profiler_pb2
from tessera.domain.errors import InvalidInput
from tessera.domain.fit import fit_rows, rows_of, saturation_items_per_s
from tessera.domain.records import LatencyRow, LoadCost, ProfileRecord
from tessera.wire._common import (
    decode_stage_times,
    decode_start_path,
    duration_ms,
    encode_stage_times,
    encode_variant_key,
)


def encode_load_cost(cost: LoadCost) -> node_pb2.LoadCost:
    return node_pb2.LoadCost(
        start_path=cost.start_path.value, stages=encode_stage_times(cost.stages), peak_private_bytes=cost.peak_private_bytes
    )


def decode_load_cost(message: node_pb2.LoadCost, field: str = "load") -> LoadCost:
    """Raises: InvalidInput for an unknown start path or a bad stage."""
    return LoadCost(
        decode_start_path(message.start_path, f"{field}.start_path"),
        decode_stage_times(message.stages, f"{field}.stages"),
        message.peak_private_bytes,
    )


def encode_latency_row(row: LatencyRow) -> node_pb2.LatencyRow:
    return node_pb2.LatencyRow(
        batch=row.batch,
        threads=row.threads,
        repeats=row.repeats,
        p50_ms=row.p50_ms,
        p99_ms=row.p99_ms,
        mean_ms=row.mean_ms,
        peak_private_bytes=row.peak_private_bytes,
        concurrency=row.concurrency,
        spread=row.spread,
    )


def decode_latency_row(message: node_pb2.LatencyRow, field: str = "row") -> LatencyRow:
    """Raises: InvalidInput when batch, threads or repeats are 0, or a time or the spread is not a finite number of at least 0."""
    for name, value in (("batch", message.batch), ("threads", message.threads), ("repeats", message.repeats)):
        if value < 1:
            raise InvalidInput(f"{field}.{name}", value, "must be at least 1")
    return LatencyRow(
        batch=message.batch,
        threads=message.threads,
        repeats=message.repeats,
        p50_ms=duration_ms(f"{field}.p50_ms", message.p50_ms),
        p99_ms=duration_ms(f"{field}.p99_ms", message.p99_ms),
        mean_ms=duration_ms(f"{field}.mean_ms", message.mean_ms),
        peak_private_bytes=message.peak_private_bytes,
        concurrency=max(1, message.concurrency),
        spread=_share(f"{field}.spread", message.spread),
    )


def _share(field: str, value: float) -> float:
    if not 0 <= value < math.inf:
        raise InvalidInput(field, value, "must be a finite number of at least 0")
    return value


def encode_profile(profile: ProfileRecord) -> profiler_pb2.Profile:
    """A record and the lines through its rows."""
    places = sorted({(row.threads, row.concurrency) for row in profile.rows})
    return profiler_pb2.Profile(
        variant=encode_variant_key(profile.variant),
        profile_class=profile.profile_class,
        load=[encode_load_cost(cost) for cost in profile.load],
        rows=[encode_latency_row(row) for row in profile.rows],
        measured_unix_s=profile.measured_unix_s,
        quick=profile.quick,
        fits=[_encode_fit(profile, threads, concurrency) for threads, concurrency in places],
    )


def _encode_fit(profile: ProfileRecord, threads: int, concurrency: int) -> profiler_pb2.Fit:
    fit = fit_rows(rows_of(profile, threads, concurrency))
    return profiler_pb2.Fit(
        threads=threads,
        concurrency=concurrency,
        line=profiler_pb2.Fit.Line(slope_ms=fit.slope_ms, intercept_ms=fit.intercept_ms, error=fit.error) if fit is not None else None,
        saturation_items_per_s=saturation_items_per_s(profile, threads, concurrency) or 0.0,
    )
