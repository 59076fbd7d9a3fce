"""What serving costs: the price of a node's time over what the node can answer in it."""

from __future__ import annotations

from tessera.domain.records import ProfileRecord


def usd_per_1000(profile: ProfileRecord, usd_per_hour: float, cpu_count: int) -> float | None:
    """USD per 1,000 requests of one item each, on a node that costs `usd_per_hour` and does nothing else: at the row that answers the most
    per core. None where nothing was measured."""
    per_core = max((row.items_per_s / row.threads for row in profile.rows), default=0.0)
    return 1000 * usd_per_hour / 3600 / (per_core * cpu_count) if per_core > 0 else None
