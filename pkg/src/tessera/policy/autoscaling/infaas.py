"""INFaaS's heuristic (USENIX ATC'21, and its released autoscaler): below a headroom of 1.05 the model grows by the cheaper of more
replicas and a variant that answers more; when it would keep that headroom with less, an instance goes, or all give way to a cheaper
variant. One kind at a time is looked at, so that mixtures are not found. Ties end in the variant's name.
"""

from __future__ import annotations

from dataclasses import dataclass

from tessera.policy.autoscaling.base import (
    NOTHING,
    Kind,
    ModelLoad,
    Running,
    ScalePlan,
    instances_needed,
    least_useful,
    patience_s,
)

UPGRADE_FACTOR = 1.5
"""Released: replicas may cost so many times what the faster variant does before it takes their place."""
MOST_KINDS = 10
"""Released: of the variants that answer more, so many of the fastest are looked at."""


@dataclass(frozen=True, slots=True)
class InfaasAutoscaling:
    @property
    def name(self) -> str:
        return "infaas"

    @property
    def slow(self) -> bool:
        return False

    def plan(self, load: ModelLoad) -> ScalePlan:
        if not load.running:
            return NOTHING
        if load.capacity_items_per_s < load.needed_items_per_s:
            return _grow(load)
        return _shrink(load)


def _grow(load: ModelLoad) -> ScalePlan:
    missing = load.needed_items_per_s - load.capacity_items_per_s
    now = sum(one.kind.cost for one in load.running)
    mine = {one.kind.variant for one in load.running}
    same = [kind for kind in load.kinds if kind.variant in mine]
    more = [
        (now + count * kind.cost, kind, count) for kind in same if (count := instances_needed(missing, kind.items_per_s)) <= load.fits(kind)
    ]
    best_more = min(more, default=None)
    best_other = min(_instead(load, faster=True), default=None)
    words = f"{load.offered_items_per_s:.3g} items/s offered, capacity {load.capacity_items_per_s:.3g}"
    if best_other is not None and (best_more is None or best_more[0] > UPGRADE_FACTOR * best_other[0]):
        _, kind, count = best_other
        gone = tuple(one.instance_id for one in least_useful(load.running))
        return ScalePlan(((kind, count),), gone, 0.0, f"upgrade to {count} of {kind.variant}: {words}")
    if best_more is not None:
        _, kind, count = best_more
        return ScalePlan(((kind, count),), (), 0.0, f"{count} more of {kind.variant}: {words}")
    return _as_many_as_fit(load, words)


def _as_many_as_fit(load: ModelLoad, words: str) -> ScalePlan:
    """There is room for a part of it: the kind that brings the most."""
    parts = [(-load.fits(kind) * kind.items_per_s, kind.cost, kind) for kind in load.kinds if load.fits(kind)]
    if not parts:
        return ScalePlan(reason=f"no room for more: {words}")
    kind = min(parts)[2]
    return ScalePlan(((kind, load.fits(kind)),), (), 0.0, f"{load.fits(kind)} more of {kind.variant}, there is no room for enough: {words}")


def _shrink(load: ModelLoad) -> ScalePlan:
    now = sum(one.kind.cost for one in load.running)
    spare = load.capacity_items_per_s - load.needed_items_per_s
    plans: list[tuple[float, str, ScalePlan]] = []
    words = f"{load.offered_items_per_s:.3g} items/s offered, capacity {load.capacity_items_per_s:.3g}"
    if len(load.running) > 1:
        free = [one for one in least_useful(load.running) if one.items_per_s <= spare + 1e-9]
        if free:
            gone = max(free, key=lambda one: one.kind.cost)
            plans.append((now - gone.kind.cost, str(gone.kind.variant), _less(gone, words)))
    for cost, kind, count in _instead(load, faster=False):
        if cost < now - 1e-12:
            removed = least_useful(load.running)
            plan = ScalePlan(
                ((kind, count),),
                tuple(one.instance_id for one in removed),
                patience_s(removed),
                f"downgrade to {count} of {kind.variant}: {words}",
            )
            plans.append((cost, str(kind.variant), plan))
    return min(plans, key=lambda entry: entry[:2])[2] if plans else NOTHING


def _less(gone: Running, words: str) -> ScalePlan:
    return ScalePlan((), (gone.instance_id,), patience_s([gone]), f"one less of {gone.kind.variant}: {words}")


def _instead(load: ModelLoad, faster: bool) -> list[tuple[float, Kind, int]]:
    """Another variant in the place of all: (cost, kind, how many). To grow, one that answers more than any that runs."""
    mine = {one.kind.variant for one in load.running}
    least = max(one.kind.items_per_s for one in load.running) if faster else 0.0
    others = [kind for kind in load.kinds if kind.variant not in mine and kind.items_per_s > least]
    others.sort(key=lambda kind: (-kind.items_per_s, kind))
    counts = [(kind, max(1, instances_needed(load.needed_items_per_s, kind.items_per_s))) for kind in others[:MOST_KINDS]]
    return [(count * kind.cost, kind, count) for kind, count in counts if count <= load.fits(kind)]
