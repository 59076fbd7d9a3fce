"""On which node models live, balancer against balancer, on traces in virtual time; and what finding that out takes: make bench NAME=balance

Each function of a trace calls a model of its own (`families.py`: siblings over trunks, no torch). The first half of a trace is the demand
that balancers see, in slots of ten minutes; the second half is replayed on four empty nodes (`homes.py`) that together have room for a half
and for a quarter of all bytes. Start times are a model of docs/performance.md's figures: 8 ms to bind, of which 2.4 give way to what the
plan costs where one transforms, 0.5 ms a missing blob, 500 MB/s. Weights of balancers were not tuned, on these traces or on any.

    BENCH_QUICK=1 make bench NAME=balance       two generated traces instead of four, one population, 1,000 models and no more
"""

from __future__ import annotations

import os
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import TypeVar

import numpy as np

from benchmarks.families import siblings, structures
from benchmarks.homes import COSTS, PATHS, Outcome, replayed
from benchmarks.report import Report, median, percentile
from benchmarks.traces import Trace, azure, generated, thinned
from tessera.domain.ids import Digest, NodeId
from tessera.policy.balance import registry as balance_registry
from tessera.policy.balance.base import Balancer, Model, Node
from tessera.policy.balance.k_medoids import KMedoidsBalancer
from tessera.policy.transform import registry
from tessera.policy.transform.among import group_costs
from tessera.policy.transform.medoids import Clustering, farthest_first, faster_pam
from tessera.policy.transform.plans import WHOLE_PLANS, PlanCache
from tessera.policy.transform.structure import Structure

QUICK = os.environ.get("BENCH_QUICK") == "1"
NODES, SHARES = 4, {"half": 0.5, "quarter": 0.25}
SLOT_S = 600.0
MOST_FUNCTIONS = 200
TRACE_GRAPHS, GRAPHS = 60, 500
RECORDED = {"azure-2019-100", "azure-2019-500", "azure-2021-200"}
MANY_NODES, MANY_SLOTS = 16, 48
POPULATIONS = 1 if QUICK else 3
"""Models drawn anew for the same calls: who is whose sibling matters more than the policy."""
COUNTS = (1000,) if QUICK else (1000, 5000, 10000)
PAIRS = 500 if QUICK else 2000
SEED = 31
MIB, GIB = float(1 << 20), float(1 << 30)
MODELS, ADDED, MOST_MIB = 10000, 50, 64.0
"""Of the plan cache: so many models, graphs that come last, and what all of it may take."""
Found = TypeVar("Found")


def a_cache(graphs: dict[Digest, Structure], clustering: Clustering = faster_pam) -> PlanCache:
    cache = PlanCache(registry.make("tessera"), COSTS, clustering=clustering)
    for graph, structure in graphs.items():
        cache.add(graph, structure)
    cache.adopt(cache.clustered())
    return cache


def balancers(cache: PlanCache) -> dict[str, Balancer]:
    """All that there are, and k-medoids by edit alone and by demand alone."""
    found = {name: balance_registry.make(name, cache.estimates_ms) for name in sorted(balance_registry.BALANCERS)}
    alone = {"edit": (1.0, 0.0), "demand": (0.0, 1.0)}
    return found | {f"k-medoids, {name}": KMedoidsBalancer(cache.estimates_ms, *weights) for name, weights in alone.items()}


def compared(report: Report, trace: Trace, cache: PlanCache, graphs: dict[Digest, Structure], seed: int) -> dict[tuple[str, str], float]:
    """Mean start times by room and balancer."""
    half_s = trace.duration_s / 2
    slots = np.arange(0.0, half_s + SLOT_S, SLOT_S)
    demand = [tuple(np.histogram(times, slots)[0].tolist()) for times in trace.calls]
    calls = sorted((at_s, at) for at, times in enumerate(trace.calls) for at_s in times if at_s >= half_s)
    outcomes: defaultdict[tuple[str, str], Outcome] = defaultdict(Outcome)
    for population in range(POPULATIONS):
        made = siblings(len(trace.calls), graphs, seed + population)
        models = [Model(f"m{at}", graph, blobs, demand[at]) for at, (graph, blobs) in enumerate(made)]
        arrivals = [(at_s, models[at]) for at_s, at in calls]
        for (room, part), (name, balancer) in product(SHARES.items(), balancers(cache).items()):
            room_bytes = int(part * _distinct_bytes(models) / NODES)
            nodes = [Node(NodeId(f"{population}-{at}"), room_bytes) for at in range(NODES)]
            replayed(arrivals, balancer.assign(models, nodes), nodes, cache, outcomes[room, name])
    for (room, name), found in outcomes.items():
        answered = max(1, len(found.took_ms))
        report.row(
            trace=trace.name, room=room, balancer=name, calls=found.by_node.total(), refused=found.refused,
            mean_ms=sum(found.took_ms) / answered, p99_ms=percentile(found.took_ms or [0.0], 0.99),
            **{path: found.paths[path] / answered for path in PATHS},
            fetched_gib=found.fetched_bytes / GIB, busiest_node=max(found.by_node.values()) / max(1, len(calls)),
        )  # fmt: skip
    return {key: sum(found.took_ms) / max(1, len(found.took_ms)) for key, found in outcomes.items()}


def _distinct_bytes(models: Sequence[Model]) -> int:
    return sum({blob.digest: blob.size_bytes for model in models for blob in model.blobs}.values())


def timed(what: Callable[[], Found]) -> tuple[Found, float, float]:
    """What it returns, seconds, and at another run the MiB that it had more at its peak than before."""
    begun = time.perf_counter()
    found = what()
    took_s = time.perf_counter() - begun
    tracemalloc.start()
    what()
    peak_mib = tracemalloc.get_traced_memory()[1] / MIB
    tracemalloc.stop()
    return found, took_s, peak_mib


def many(report: Report, cache: PlanCache, graphs: dict[Digest, Structure], count: int) -> None:
    draw = np.random.default_rng(SEED)
    models = [
        Model(f"m{at}", graph, blobs, tuple(draw.poisson(draw.gamma(0.5, 4.0), MANY_SLOTS).tolist()))
        for at, (graph, blobs) in enumerate(siblings(count + 1, graphs, SEED))
    ]
    new = models.pop()
    nodes = [Node(NodeId(f"n{at}"), _distinct_bytes(models) // MANY_NODES) for at in range(MANY_NODES)]
    for name in sorted(balance_registry.BALANCERS):
        balancer = balance_registry.make(name, cache.estimates_ms)
        homes, took_s, peak_mib = timed(partial(balancer.assign, models, nodes))
        _, add_s, _ = timed(partial(balancer.add, new, models, nodes, homes))
        report.row(compared="many", balancer=name, models=count, nodes=MANY_NODES, assign_s=took_s, peak_mib=peak_mib, add_s=add_s)


def cached(report: Report) -> None:
    """What plans of many models take, and how long one more does. The library is left out: it imports scikit-learn where it can."""
    faster_pam(np.zeros((1, 1)), 1)
    tracemalloc.start()
    graphs = structures(GRAPHS, SEED)
    structures_mib = tracemalloc.get_traced_memory()[0] / MIB
    names = list(graphs)
    cache = a_cache({graph: graphs[graph] for graph in names[:-ADDED]})
    graph_of = {f"model-{at}@1/aten-fp32": names[at % GRAPHS] for at in range(MODELS)}
    adds_s = []
    for graph in names[-ADDED:]:
        begun = time.perf_counter()
        cache.add(graph, graphs[graph])
        adds_s.append(time.perf_counter() - begun)
    without_mib = tracemalloc.get_traced_memory()[0] / MIB
    for pair in _pairs(names)[:WHOLE_PLANS]:
        cache.plan(*pair)
    mib = tracemalloc.get_traced_memory()[0] / MIB
    tracemalloc.stop()
    report.row(
        compared="cache", models=len(graph_of), graphs=len(cache), structures_mib=structures_mib, without_plans_mib=without_mib, mib=mib,
        add_s=median(adds_s),
    )  # fmt: skip
    report.goal("cache_mib", mib, "<=", MOST_MIB, f"{MODELS} models of {GRAPHS} graphs, {WHOLE_PLANS} whole plans")
    report.goal("cache_add_s", max(adds_s), "<", 1.0, f"the slowest of {ADDED}, under tracemalloc")


def estimated(report: Report, graphs: dict[Digest, Structure]) -> None:
    """How far estimates are off, by clustering."""
    names = list(graphs)
    at = {name: place for place, name in enumerate(names)}
    group = group_costs(list(graphs.values()), list(graphs.values()), COSTS)
    pairs = _pairs(names)
    for name, way in (("faster_pam", faster_pam), ("farthest_first", farthest_first)):
        cache = a_cache(graphs, way)
        _, took_s, peak_mib = timed(cache.clustered)
        plans = {"group": [group[at[one], at[other]] for one, other in pairs], "tessera": [cache.plan(*pair).cost_ms for pair in pairs]}
        for planner, costs in plans.items():
            off = [cache.estimate_ms(*pair) / cost_ms - 1 for pair, cost_ms in zip(pairs, costs, strict=True)]
            report.row(
                compared="estimates", clustering=name, planner=planner, graphs=len(graphs), cluster_s=took_s, peak_mib=peak_mib,
                off_p50=median(off), off_p90=percentile(off, 0.9), off_max=max(off), below=sum(each < -1e-6 for each in off) / len(off),
            )  # fmt: skip


def _pairs(names: list[Digest]) -> list[tuple[Digest, Digest]]:
    draw = np.random.default_rng(SEED)
    return [(names[one], names[other]) for one, other in draw.integers(len(names), size=(PAIRS, 2)) if one != other]


def homes() -> None:
    report = Report("balance")
    traces = [generated(100, 24.0, seed) for seed in ((101, 102) if QUICK else (101, 102, 103, 104))]
    recorded = [thinned(trace, MOST_FUNCTIONS) for trace in azure()]
    graphs = structures(TRACE_GRAPHS, SEED)
    cache = a_cache(graphs)
    means = []
    for at, trace in enumerate([*traces, *recorded]):
        means.append(compared(report, trace, cache, graphs, SEED + at * POPULATIONS))
        print(f"{trace.name}: done", flush=True)
    for missing in sorted(RECORDED - {trace.name.split("/")[0] for trace in recorded}):
        report.row(trace=missing, balancer="skipped: the trace is not here")
    for room, other in product(SHARES, ("hash", "least-loaded", "bytes-shared")):
        less = median([1 - found[room, "k-medoids"] / found[room, other] for found in means])
        report.goal(f"k_medoids_vs_{other}.{room}", less, ">=", 0.0, "by how much its mean is shorter, median of the traces")
    report.finish()


def costs() -> None:
    report = Report("balance-costs")
    cached(report)
    graphs = structures(GRAPHS, SEED)
    estimated(report, graphs)
    for count in COUNTS:
        many(report, a_cache(graphs), graphs, count)
        print(f"{count} models: done", flush=True)
    report.finish()


if __name__ == "__main__":
    homes()
    costs()
