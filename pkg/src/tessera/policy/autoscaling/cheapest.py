"""The cheapest set of instances that answers the load with its headroom: an exact search over all mixtures of kinds.

The published program (INFaaS, Case II) without its solver: a model has few kinds, and the cost of the rest by the best ratio of
cost to items bounds the search. What starts in milliseconds is not held: capacity goes after its own load time and `LEAST_S`, not after
ten ticks. A change that saves less than `WORTH` of the cost is not made. Ties end in the kinds' order.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from tessera.domain.ids import ProfileClass
from tessera.policy.autoscaling.base import NOTHING, Kind, ModelLoad, ScalePlan, least_useful

LEAST_S = 3.0
"""Assumed: a report is wrong now and then, three in a row are not."""
WORTH = 0.05
MOST_STEPS = 4_000
"""Of the search: then the best set found so far is taken."""


@dataclass(frozen=True, slots=True)
class CheapestAutoscaling:
    @property
    def name(self) -> str:
        return "tessera"

    @property
    def slow(self) -> bool:
        return False

    def plan(self, load: ModelLoad) -> ScalePlan:
        if not load.running:
            return NOTHING
        return plan_of(load, cheapest_counts(load), self.name)


def plan_of(load: ModelLoad, counts: dict[Kind, int], name: str, least_s: float = LEAST_S) -> ScalePlan:
    """From how many of each kind there shall be to what is added and removed."""
    has = Counter(one.kind for one in load.running)
    add = tuple((kind, counts[kind] - has[kind]) for kind in sorted(counts) if counts[kind] > has[kind])
    removed = [
        one
        for kind in sorted(has)
        for one in least_useful([each for each in load.running if each.kind == kind])[: max(0, has[kind] - counts.get(kind, 0))]
    ]
    short = load.capacity_items_per_s < load.needed_items_per_s
    before, after = (sum(kind.cost * count for kind, count in found.items()) for found in (has, counts))
    if not short and after > (1 - WORTH) * before:
        return NOTHING
    patience_s = 0.0 if short else max([least_s, *(one.kind.load_s for one in removed)])
    figures = f"{load.offered_items_per_s:.3g} items/s offered, capacity {load.capacity_items_per_s:.3g}"
    words = f"{name}: {figures}, cost {before:.3g} to {after:.3g}"
    if not add and not removed:
        return ScalePlan(reason=f"no room for more; {words}") if short else NOTHING
    return ScalePlan(add, tuple(one.instance_id for one in removed), patience_s, words)


@dataclass(slots=True)
class _Search:
    load: ModelLoad
    kinds: list[Kind]
    has: Counter[Kind]
    gives: dict[Kind, list[float]]
    ratio: list[float]
    best_cost: float = math.inf
    best: dict[Kind, int] | None = None
    most: float = -1.0
    fallback: dict[Kind, int] | None = None
    steps: int = 0

    def descend(self, at: int, counts: dict[Kind, int], cost: float, items: float, room: dict[ProfileClass, float]) -> None:
        self.steps += 1
        needed = self.load.needed_items_per_s
        if items >= needed - 1e-9 and any(counts.values()):
            if cost < self.best_cost - 1e-12:
                self.best_cost, self.best = cost, dict(counts)
            return
        if items > self.most:
            self.most, self.fallback = items, dict(counts)
        if at == len(self.kinds) or self.steps > MOST_STEPS or cost + (needed - items) * self.ratio[at] >= self.best_cost - 1e-12:
            return
        kind = self.kinds[at]
        there = self.has[kind]
        left = room.get(kind.profile_class, 0.0)
        most = there + self.load.fits_into(kind, left)
        missing = max(0.0, needed - items)
        for count in range(min(most, self._enough(kind, missing)), -1, -1):
            added = max(0, count - there)
            self.descend(
                at + 1,
                {**counts, kind: count},
                cost + min(count, there) * kind.cost + added * kind.start_cost,
                items + self._items(kind, count),
                {**room, kind.profile_class: left - added * kind.cores},
            )

    def _items(self, kind: Kind, count: int) -> float:
        """The best of those that run stay; a new one is taken by its profile."""
        gives = self.gives.get(kind, [])
        return sum(gives[:count]) + max(0, count - len(gives)) * kind.items_per_s

    def _enough(self, kind: Kind, missing: float) -> int:
        gives, count, items = self.gives.get(kind, []), 0, 0.0
        for each in gives:
            if items >= missing - 1e-9:
                break
            items, count = items + each, count + 1
        return max(1, count + max(0, math.ceil((missing - items) / kind.items_per_s - 1e-9)))


def cheapest_counts(load: ModelLoad) -> dict[Kind, int]:
    """How many of each kind: the cheapest set that answers; where there is no room for one, what there is and all that fits beside it."""
    has = Counter(one.kind for one in load.running)
    kinds = sorted({*load.kinds, *has}, key=lambda kind: (kind.cost / kind.items_per_s if kind.items_per_s > 0 else math.inf, kind))
    kinds = [kind for kind in kinds if kind.items_per_s > 0]
    gives = {kind: sorted((one.items_per_s for one in load.running if one.kind == kind), reverse=True) for kind in has}
    ratio = [min(kind.cost / kind.items_per_s for kind in kinds[at:]) for at in range(len(kinds))]
    search = _Search(load, kinds, has, gives, ratio)
    search.descend(0, {}, 0.0, 0.0, dict(load.room))
    found = search.best if search.best is not None else search.fallback
    return {kind: count for kind, count in (found or dict(has)).items() if count}
