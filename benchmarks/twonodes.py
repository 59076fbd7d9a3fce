"""Balancers on two node agents of this machine, live: make bench NAME=twonodes

The eighteen models of `startpaths`, the same calls for all, time and timers compressed as there; the two stores together have room for half
of all weights. Each balancer begins with empty stores and without any demand, and finds everybody's home anew every minute of the trace;
*none* leaves placement to the bytes that are there. `balance` compares the same balancers on whole traces in virtual time.

    BENCH_MINUTES=4 make bench NAME=twonodes       of each balancer (2)
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.arrivals import Arrival
from benchmarks.embedded import platform
from benchmarks.report import Report, median, percentile
from benchmarks.startcells import COMPRESSED, GAVE_UP, MIB, STATE, Call, asker, schedules, sent, settings
from benchmarks.startpaths import prepare
from tessera.policy.balance.registry import BALANCERS
from tessera.sdk import AsyncClient

NODES = 2
ROOM = 0.5
"""Of all weights, on all nodes together."""
AGAIN_S = 60.0
NONE, OURS = "none", "k-medoids"
PREFERRED, OTHERWISE = "azure-2019-100", "poisson, middle"
"""The trace; the other one where the sample does not lie here."""


@dataclass
class Found:
    calls: list[Call]
    fetched_bytes: int
    by_node: Counter[str] = field(default_factory=Counter)

    @property
    def mean_ms(self) -> float:
        return statistics.fmean(call.ms for call in self.calls)


def run(balancer: str, store_bytes: int, schedule: Sequence[Arrival]) -> Found:
    env = settings(transforms=True) | {"TESSERA_BALANCE_POLICY": balancer, "TESSERA_BALANCE_S": str(AGAIN_S / COMPRESSED)}
    with platform("--nodes", str(NODES), env=env, store=str(store_bytes), state=STATE):
        return asyncio.run(_called(schedule))


async def _called(schedule: Sequence[Arrival]) -> Found:
    by_node = Counter[str]()
    async with AsyncClient(state=STATE) as client:
        calls = await sent(schedule, await asker(client, by_node))
        return Found(calls, sum(store.fetched_bytes for node in await client.nodes() for store in node.stores), by_node)


def row(report: Report, trace: str, balancer: str, found: Found) -> None:
    took = [call.ms for call in found.calls]
    paths = Counter(call.path or GAVE_UP for call in found.calls)
    report.row(
        trace=trace, balancer=balancer, calls=len(took), mean_ms=found.mean_ms, p50_ms=median(took), p99_ms=percentile(took, 0.99),
        paths=", ".join(f"{path} {count / len(took):.0%}" for path, count in paths.most_common()), fetched_mib=found.fetched_bytes / MIB,
        busiest_node=max(found.by_node.values(), default=0) / max(1, found.by_node.total()),
        wrong=sum(not call.right for call in found.calls if not call.error), unanswered=sum(bool(call.error) for call in found.calls),
    )  # fmt: skip


def goals(report: Report, found: Mapping[str, Found]) -> None:
    """By how much the mean with k-medoids is shorter; what two standard errors of the differences are is said beside it."""
    for name in sorted(found.keys() - {OURS}):
        apart = [one.ms - other.ms for one, other in zip(found[name].calls, found[OURS].calls, strict=True)]
        noise = 2 * float(np.std(apart)) / len(apart) ** 0.5 / found[name].mean_ms
        less = 1 - found[OURS].mean_ms / found[name].mean_ms
        report.goal(f"k_medoids_vs_{name}", less, ">=", 0.0, f"of {found[name].mean_ms:.0f} ms; noise {noise:.0%}")


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends it, the platform is taken down
    duration_s = 60.0 * float(os.environ.get("BENCH_MINUTES", "2"))
    report = Report("twonodes")
    store_bytes = int(ROOM * sum(each.size_bytes for each in prepare().values()) / NODES)
    traces = schedules(duration_s, duration_s)
    trace = PREFERRED if PREFERRED in traces else OTHERWISE
    found = {}
    for balancer in (NONE, *sorted(BALANCERS)):
        print(f"{trace}: {balancer}, {len(traces[trace])} calls", flush=True)
        found[balancer] = run(balancer, store_bytes, traces[trace])
        row(report, trace, balancer, found[balancer])
    goals(report, found)
    report.finish()


if __name__ == "__main__":
    main()
