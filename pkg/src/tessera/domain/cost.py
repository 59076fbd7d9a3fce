"""What serving costs: the price of a node's time over what the node can answer in it."""

from __future__ import annotations

from tessera.domain.records import LatencyRow, ProfileRecord


def usd_per_1000(profile: ProfileRecord, usd_per_hour: float, cpu_count: int) -> float | None:
    """USD per 1,000 requests of one item each, on a node that costs `usd_per_hour` and does nothing else: at the row that answers the most
    of those that keep the most cores busy (what one core did alone promises too much for many). None where nothing was measured."""
    busiest = max((_cores(row) for row in profile.rows), default=0)
    items_per_s = max((row.items_per_s for row in profile.rows if _cores(row) == busiest), default=0.0) * cpu_count / max(1, busiest)
    return 1000 * usd_per_hour / 3600 / items_per_s if items_per_s > 0 else None


def _cores(row: LatencyRow) -> int:
    return row.threads * row.concurrency
