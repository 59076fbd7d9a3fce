"""What autoscaling policies cost against the solver's optimum, on random models: make bench NAME=autoscaling

Each case has up to six kinds of instances on two classes of nodes, some that run, a load and room. Cost is the published objective: of an
hour of what runs then, and of the loads. Only cases whose load can be answered count; *answered* is the share in which the policy's plan
answers it with its headroom. The time is of one plan.

    BENCH_CASES=300 make bench NAME=autoscaling
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Mapping

from benchmarks.report import Report, percentile
from tessera.domain.ids import InstanceId, ModelName, NodeId, ProfileClass, TrustDomain, VariantKey, VariantName, VersionNumber
from tessera.policy.autoscaling import registry
from tessera.policy.autoscaling.base import AutoscalingPolicy, Kind, ModelLoad, Running, ScalePlan
from tessera.policy.autoscaling.ilp import optimal_counts

FIRST_SEED = 1000
CLASSES = (ProfileClass("small"), ProfileClass("large"))


def a_case(draw: random.Random) -> ModelLoad:
    kinds = []
    for at in range(draw.randint(2, 6)):
        variant = VariantKey(TrustDomain("default"), ModelName("m"), VersionNumber(1), VariantName(f"v{at}"))
        cores = draw.choice((1, 2, 4))
        items_per_s = cores * 10 ** draw.uniform(1, 2.5)
        kinds.append(
            Kind(variant, draw.choice(CLASSES), items_per_s, cores, cores * draw.uniform(0.5, 2.0), draw.choice((0.005, 0.5, 5.0)))
        )
    running = []
    for at in range(draw.randint(1, 4)):
        kind = draw.choice(kinds)
        running.append(Running(InstanceId(f"i-{at}"), NodeId("n"), kind, kind.items_per_s))
    capacity = sum(one.items_per_s for one in running)
    return ModelLoad(capacity * draw.uniform(0.1, 4.0), tuple(running), tuple(kinds), {name: draw.randint(4, 32) for name in CLASSES})


def counts_after(load: ModelLoad, plan: ScalePlan) -> Counter[Kind]:
    counts = Counter(one.kind for one in load.running if one.instance_id not in plan.remove)
    counts.update(dict(plan.add))
    return counts


def cost_of(load: ModelLoad, counts: Mapping[Kind, int]) -> float:
    has = Counter(one.kind for one in load.running)
    return sum(min(count, has[kind]) * kind.cost + max(0, count - has[kind]) * kind.start_cost for kind, count in counts.items())


def settled(load: ModelLoad, policy: AutoscalingPolicy) -> tuple[Counter[Kind], float]:
    """What the policy leads to under this load when it is asked until it proposes nothing more, and the time of its first plan in ms."""
    began_s = time.perf_counter()
    plan = policy.plan(load)
    took_ms = (time.perf_counter() - began_s) * 1e3
    counts = counts_after(load, plan)
    now, room = load, dict(load.room)
    for step in range(32):
        if plan.empty:
            break
        kept = [one for one in now.running if one.instance_id not in plan.remove]
        for one in now.running:
            if one.instance_id in plan.remove:
                room[one.kind.profile_class] += one.kind.cores
        for kind, count in plan.add:
            room[kind.profile_class] -= kind.cores * count
            kept += [
                Running(InstanceId(f"s-{step}-{kind.variant.variant}-{at}"), NodeId("n"), kind, kind.items_per_s) for at in range(count)
            ]
        now = ModelLoad(load.offered_items_per_s, tuple(kept), load.kinds, dict(room))
        counts = Counter(one.kind for one in kept)
        plan = policy.plan(now)
    return counts, took_ms


def main() -> None:
    cases = int(os.environ.get("BENCH_CASES", "300"))
    report = Report("autoscaling")
    ratios: dict[str, list[float]] = {name: [] for name in ("infaas", "tessera", "ilp")}
    times: dict[str, list[float]] = {name: [] for name in ratios}
    answered: Counter[str] = Counter()
    answerable = 0
    for seed in range(FIRST_SEED, FIRST_SEED + cases):
        load = a_case(random.Random(seed))
        best = optimal_counts(load)
        if best is None:
            continue
        answerable += 1
        for name in ratios:
            counts, took_ms = settled(load, registry.make(name))
            times[name].append(took_ms)
            if sum(kind.items_per_s * count for kind, count in counts.items()) >= load.needed_items_per_s - 1e-6:
                answered[name] += 1
                ratios[name].append(cost_of(load, counts) / cost_of(load, best))
    for name, found in ratios.items():
        report.row(
            policy=name,
            cases=answerable,
            answered=round(answered[name] / answerable, 3),
            cost_vs_optimum_mean=round(sum(found) / len(found), 3),
            cost_vs_optimum_p50=round(percentile(found, 0.5), 3),
            cost_vs_optimum_p99=round(percentile(found, 0.99), 3),
            plan_ms_p50=round(percentile(times[name], 0.5), 3),
            plan_ms_p99=round(percentile(times[name], 0.99), 3),
        )
    report.finish()


if __name__ == "__main__":
    main()
