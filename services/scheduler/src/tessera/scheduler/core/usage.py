"""When each variant was used, how long it was left alone in between, and how much it was asked for: learnt from the agents' reports, for
keep-alive policies and balancers.

Level, not edge: a pass compares each instance's count of answers with the one before, so that many uses between two reports are one, and
a report that comes twice is none. What was learnt outlives the instances, and is lost with the leadership: another leader learns anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tessera.domain.ids import InstanceId, NodeId, VariantKey
from tessera.policy.scaling.gaps import BIN_S, BINS, GapHistogram
from tessera.scheduler.core.observed import ObservedNode

FORGET_S = 6 * BINS * BIN_S
"""A day: a variant unused for this long is forgotten."""
SLOT_S, SLOTS = 600.0, 48
"""Of demand: eight hours in tens of minutes."""
NO_DEMAND = (0,) * SLOTS


@dataclass(frozen=True, slots=True)
class VariantUsage:
    """`last_used_s` is monotonic. `answers` by the number of the slot, of those slots alone in which there were any."""

    last_used_s: float
    gaps: GapHistogram = field(default_factory=GapHistogram)
    answers: Mapping[int, int] = field(default_factory=dict)

    def demand(self, now_s: float) -> tuple[int, ...]:
        """Answers per slot, the oldest first; the last slot is the one that it is now."""
        return tuple(self.answers.get(slot, 0) for slot in _slots(now_s))

    def used(self, at_s: float, answers: int, now_s: float) -> VariantUsage:
        slots = _slots(now_s)
        counts = {slot: count for slot, count in self.answers.items() if slot in slots}
        if answers:
            counts[slots[-1]] = counts.get(slots[-1], 0) + answers
        gaps = self.gaps.add(at_s - self.last_used_s) if at_s > self.last_used_s else self.gaps
        return VariantUsage(max(at_s, self.last_used_s), gaps, counts)


@dataclass(frozen=True, slots=True)
class Usage:
    """`served` is what each live instance had answered when it was looked at last, `nodes` are those that were looked at then."""

    variants: Mapping[VariantKey, VariantUsage] = field(default_factory=dict)
    served: Mapping[InstanceId, int] = field(default_factory=dict)
    nodes: frozenset[NodeId] = frozenset()

    @property
    def gaps(self) -> Mapping[VariantKey, GapHistogram]:
        return {variant: usage.gaps for variant, usage in self.variants.items()}


def observe(usage: Usage, nodes: Iterable[ObservedNode], now_s: float) -> Usage:
    """Adds what the nodes report now. What a node had answered at the first look at it is not counted: nobody knows when that was. An
    instance that comes there later counts from 0."""
    served: dict[InstanceId, int] = {}
    looked_at: set[NodeId] = set()
    used: dict[VariantKey, float] = {}
    answers: Counter[VariantKey] = Counter()
    for node in nodes:
        looked_at.add(node.report.node_id)
        for item in node.instances:
            before = usage.served.get(item.instance_id, 0)
            served[item.instance_id] = max(before, item.served)
            if item.served > before:
                at_s = node.reported_at_s - item.idle_s
                used[item.variant] = max(at_s, used.get(item.variant, at_s))
                if node.report.node_id in usage.nodes:
                    answers[item.variant] += item.served - before
    variants = {variant: known for variant, known in usage.variants.items() if now_s - known.last_used_s <= FORGET_S}
    for variant, at_s in used.items():
        known = variants.get(variant) or VariantUsage(at_s)
        variants[variant] = known.used(at_s, answers[variant], now_s)
    return Usage(variants, served, frozenset(looked_at))


def _slots(now_s: float) -> range:
    """Their numbers."""
    current = int(now_s // SLOT_S)
    return range(current - SLOTS + 1, current + 1)
