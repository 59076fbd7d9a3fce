"""What serving costs: the price of a node's time over what the node can answer in it."""

from __future__ import annotations

from tessera.domain.records import LatencyRow, ProfileRecord


def usd_per_1000(profile: ProfileRecord, usd_per_hour: float, cpu_count: int) -> float | None:
    """USD per 1,000 requests of one item each, on a node that costs `usd_per_hour` and does nothing else: at the row that answers the most
    of those that keep the most cores busy (what one core did alone promises too much for many). None where nothing was measured."""
    busiest = max((_cores(row) for row in profile.rows), default=0)
    costs = [usd_per_1000_at(row.items_per_s, _cores(row), usd_per_hour, cpu_count) for row in profile.rows if _cores(row) == busiest]
    return min((cost for cost in costs if cost is not None), default=None)


def usd_per_1000_at(items_per_s: float, cores: int, usd_per_hour: float, cpu_count: int) -> float | None:
    """USD per 1,000 items while `cores` of a node's `cpu_count` answer `items_per_s`: the price of that share of it."""
    if items_per_s <= 0 or cpu_count <= 0:
        return None
    return 1000 * usd_per_hour / 3600 * (cores / cpu_count) / items_per_s


def _cores(row: LatencyRow) -> int:
    return row.threads * row.concurrency
