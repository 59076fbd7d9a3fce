"""When each variant was used, and how long it was left alone in between: learnt from the agents' reports, for keep-alive policies.

Level, not edge: a pass compares each instance's count of answers with the one before, so that many uses between two reports are one, and
a report that comes twice is none. What was learnt outlives the instances, and is lost with the leadership: another leader learns anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from tessera.domain.ids import InstanceId, VariantKey
from tessera.policy.scaling.gaps import BIN_S, BINS, GapHistogram
from tessera.scheduler.core.observed import ObservedNode

FORGET_S = 6 * BINS * BIN_S
"""A day: a variant unused for this long is forgotten."""


@dataclass(frozen=True, slots=True)
class VariantUsage:
    """`last_used_s` is monotonic."""

    last_used_s: float
    gaps: GapHistogram = field(default_factory=GapHistogram)


@dataclass(frozen=True, slots=True)
class Usage:
    """`served` is what each live instance had answered when it was looked at last."""

    variants: Mapping[VariantKey, VariantUsage] = field(default_factory=dict)
    served: Mapping[InstanceId, int] = field(default_factory=dict)

    @property
    def gaps(self) -> Mapping[VariantKey, GapHistogram]:
        return {variant: usage.gaps for variant, usage in self.variants.items()}


def observe(usage: Usage, nodes: Iterable[ObservedNode], now_s: float) -> Usage:
    """Adds what the nodes report now."""
    served: dict[InstanceId, int] = {}
    used: dict[VariantKey, float] = {}
    for node in nodes:
        for item in node.instances:
            before = usage.served.get(item.instance_id, 0)
            served[item.instance_id] = max(before, item.served)
            if item.served > before:
                at_s = node.reported_at_s - item.idle_s
                used[item.variant] = max(at_s, used.get(item.variant, at_s))
    variants = {variant: known for variant, known in usage.variants.items() if now_s - known.last_used_s <= FORGET_S}
    for variant, at_s in used.items():
        known = variants.get(variant)
        if known is None:
            variants[variant] = VariantUsage(at_s)
        elif at_s > known.last_used_s:
            variants[variant] = replace(known, last_used_s=at_s, gaps=known.gaps.add(at_s - known.last_used_s))
    return Usage(variants, served)
