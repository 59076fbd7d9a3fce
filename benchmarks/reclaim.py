"""Which bytes and which instances to keep, policy against policy, on traces in virtual time: make bench NAME=reclaim

Traces are called against a lab's models (`population.py`), with one node's store of half and of a quarter of all bytes that the trace ever
needs. *Refetched* bytes were in the store before. *Offline* knows the future (Belady's rule by blobs) and is a yardstick. The start time
is a model: 8 ms to bind, 0.5 ms a missing blob, 500 MB/s. A start that does not fit beside what is held is refused, with every policy
alike. Constants of policies were chosen on seeds 1 to 4; reported are seeds 101 to 104 and the Azure traces, where they lie.

    BENCH_SEEDS=101,102 BENCH_HOURS=24 BENCH_FUNCTIONS=100 make bench NAME=reclaim
"""

from __future__ import annotations

import os
from collections import defaultdict

from benchmarks.population import Population, populate
from benchmarks.replay import FarthestNextUse, Lives, Outcome, live, replay
from benchmarks.report import Report, percentile
from benchmarks.traces import Trace, azure, generated, thinned
from tessera.policy.reclaim.base import ReclaimPolicy
from tessera.policy.reclaim.keep_alive import KeepAliveReclaimPolicy
from tessera.policy.reclaim.lru import LruReclaimPolicy
from tessera.policy.reclaim.shared_cost import SharedCostReclaimPolicy
from tessera.policy.scaling.base import KeepAlivePolicy
from tessera.policy.scaling.fixed import FixedKeepAlive
from tessera.policy.scaling.histogram import HistogramKeepAlive

GIB = float(1 << 30)
HOUR_S = 3600.0
INSTANCE_KEEP_ALIVE_S = 60.0
"""Of the store's comparison: with the default of 600 s most of what is called at all stays held, and no policy has anything to decide."""
SHARES = {"half": 0.5, "quarter": 0.25}
REFETCH_GOAL = 0.20
MOST_FUNCTIONS = 200
"""Of a trace: replaying takes time with the square of it."""
POPULATION_SEED = 1000


def reclaiming(report: Report, trace: Trace, population: Population, totals: dict[tuple[str, str], int]) -> None:
    lives = live(trace, FixedKeepAlive(INSTANCE_KEEP_ALIVE_S))
    policies: list[ReclaimPolicy] = [
        KeepAliveReclaimPolicy(),
        LruReclaimPolicy(),
        SharedCostReclaimPolicy(),
        FarthestNextUse(lives, population),
    ]
    for share, part in SHARES.items():
        outcomes = {}
        for policy in policies:
            budget = int(part * population.total_bytes)
            outcomes[policy.name] = replay(lives, population, budget, policy, trace.duration_s, policy.name == "keep-alive")
        for name, outcome in outcomes.items():
            totals[share, name] += outcome.refetched_bytes
            _reclaim_row(report, trace, share, name, outcome, outcomes["lru"].refetched_bytes)
    print(f"{trace.name}: stores done", flush=True)


def _reclaim_row(report: Report, trace: Trace, share: str, policy: str, outcome: Outcome, lru_bytes: int) -> None:
    report.row(
        compared="store",
        trace=trace.name,
        budget=share,
        policy=policy,
        starts=outcome.starts,
        refused=outcome.refused,
        starts_hit=outcome.complete / max(1, outcome.starts),
        bytes_hit=1.0 - outcome.fetched_bytes / max(1, outcome.needed_bytes),
        refetched_gib=outcome.refetched_bytes / GIB,
        less_than_lru=1.0 - outcome.refetched_bytes / max(1, lru_bytes),
        p50_ms=percentile(outcome.start_ms, 0.5),
        p99_ms=percentile(outcome.start_ms, 0.99),
        held_gib=outcome.held_byte_s / GIB / trace.duration_s,
    )


def keeping(report: Report, trace: Trace) -> None:
    """Cold starts and idle time of instances, whatever the store does."""
    policies: dict[str, KeepAlivePolicy] = {
        "fixed 60 s": FixedKeepAlive(60.0),
        "fixed 600 s": FixedKeepAlive(600.0),
        "fixed 1800 s": FixedKeepAlive(1800.0),
        "histogram": HistogramKeepAlive(600.0),
    }
    for name, policy in policies.items():
        lives: Lives = live(trace, policy)
        report.row(
            compared="instances",
            trace=trace.name,
            policy=name,
            calls=lives.calls,
            starts=len(lives.lives),
            cold_share=len(lives.lives) / max(1, lives.calls),
            idle_instance_hours=lives.idle_s / HOUR_S,
        )


def main() -> None:
    seeds = [int(seed) for seed in os.environ.get("BENCH_SEEDS", "101,102,103,104").split(",")]
    functions, hours = int(os.environ.get("BENCH_FUNCTIONS", "100")), float(os.environ.get("BENCH_HOURS", "24"))
    traces = [generated(functions, hours, seed) for seed in seeds] + [thinned(trace, MOST_FUNCTIONS) for trace in azure()]
    report = Report("reclaim")
    totals: dict[tuple[str, str], int] = defaultdict(int)
    for at, trace in enumerate(traces):
        reclaiming(report, trace, populate(len(trace.calls), POPULATION_SEED + at), totals)
    for trace in traces:
        keeping(report, trace)
    for share in SHARES:
        saved = {name: 1.0 - totals[share, name] / max(1, totals[share, "lru"]) for name in ("shared-cost", "offline")}
        name = "refetch_vs_lru" if share == "half" else f"refetch_vs_lru.{share}"
        report.goal(name, saved["shared-cost"], ">=", REFETCH_GOAL, f"fewer bytes, all traces (offline: {saved['offline']:.3f})")
    report.finish()


if __name__ == "__main__":
    main()
