"""Kinds, loads and random instances of the scaling problem."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping

from tessera.domain.ids import InstanceId, NodeId, ProfileClass
from tessera.policy.autoscaling.base import Kind, ModelLoad, Running, ScalePlan
from tessera.testing.builders import a_variant_key

CPU, OTHER = ProfileClass("cpu"), ProfileClass("other")


def kind(name: str, items_per_s: float, cost: float = 1.0, cores: float = 1.0, load_s: float = 0.005, at: ProfileClass = CPU) -> Kind:
    return Kind(a_variant_key(variant=name), at, items_per_s, cores, cost, load_s)


SMALL = kind("small", 100.0)
LARGE = kind("large", 300.0, cost=2.0, cores=2.0)
SLOW = kind("slow", 40.0, cost=0.5)


def running(of: Kind, count: int = 1, items_per_s: float | None = None) -> tuple[Running, ...]:
    name = of.variant.variant
    each = of.items_per_s if items_per_s is None else items_per_s
    return tuple(Running(InstanceId(f"{name}-{at}"), NodeId("n1"), of, each) for at in range(count))


def load(offered: float, has: tuple[Running, ...], *kinds: Kind, room: float = 8.0, elsewhere: float = 0.0) -> ModelLoad:
    return ModelLoad(offered, has, kinds or (SMALL, LARGE, SLOW), {CPU: room, OTHER: elsewhere})


def a_random_load(draw: random.Random) -> ModelLoad:
    """Up to six kinds on two classes of nodes whose cores give items at costs that differ by up to ten times."""
    kinds = tuple(
        kind(f"v{at}", draw.uniform(10, 500), draw.uniform(0.2, 4), draw.choice((1, 2, 4)), draw.choice((0.005, 0.5, 5.0)),
             draw.choice((CPU, OTHER)))
        for at in range(draw.randint(1, 6))
    )  # fmt: skip
    has: list[Running] = []
    for at in range(draw.randint(1, 4)):
        of = draw.choice(kinds)
        has.append(Running(InstanceId(f"i-{at}"), NodeId("n1"), of, of.items_per_s))
    limits = {of: draw.randint(0, 6) for of in kinds if draw.random() < 0.3}
    return ModelLoad(draw.uniform(0, 3000), tuple(has), kinds, {CPU: draw.randint(0, 16), OTHER: draw.randint(0, 16)}, limits)


def counts_after(given: ModelLoad, plan: ScalePlan) -> Counter[Kind]:
    found = Counter(one.kind for one in given.running if one.instance_id not in plan.remove)
    for of, count in plan.add:
        found[of] += count
    return found


def capacity_after(given: ModelLoad, plan: ScalePlan) -> float:
    left = sum(one.items_per_s for one in given.running if one.instance_id not in plan.remove)
    return left + sum(of.items_per_s * count for of, count in plan.add)


def objective(given: ModelLoad, counts: Mapping[Kind, int]) -> float:
    """Of the published program, without its constant: cost of what runs then, and of the loads."""
    has = Counter(one.kind for one in given.running)
    return sum(min(count, has[of]) * of.cost + max(0, count - has[of]) * of.start_cost for of, count in counts.items())
