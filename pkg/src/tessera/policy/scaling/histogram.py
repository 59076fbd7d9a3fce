"""An instance stays for as long as its variant's gaps usually last: to their 99th percentile and a tenth more.

Shahrad et al., "Serverless in the Wild", USENIX ATC'20, section 4.2, without its pre-warming: a start from bytes that are on the node
costs milliseconds here, so that nothing is started ahead of a request. Where the histogram says little the fixed window holds: too few
gaps, half of them longer than the histogram is wide, or counts so even that no gap is typical (their coefficient of variation is below
2, as published). Ties end in node and instance id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tessera.domain.ids import VariantKey
from tessera.policy.scaling.base import DEFAULT_KEEP_ALIVE_S, StopProposal, Window, idle_beyond
from tessera.policy.scaling.gaps import GapHistogram
from tessera.policy.view import NodeView

TAIL = 0.99
MARGIN = 0.10
LEAST_VARIATION = 2.0
"""The three as published."""

LEAST_GAPS = 10
"""Assumed: the 99th percentile of fewer is their longest, which chance decides."""

MOST_BEYOND = 0.5
"""Assumed: the paper says "many" and goes over to a forecast."""

NOTHING_SEEN = GapHistogram()


@dataclass(frozen=True, slots=True)
class HistogramKeepAlive:
    """`fallback_s` is the fixed window for variants whose histogram is not representative."""

    fallback_s: float = DEFAULT_KEEP_ALIVE_S

    @property
    def name(self) -> str:
        return "histogram"

    def window(self, gaps: GapHistogram) -> Window:
        why = unfit(gaps)
        if why:
            return Window(self.fallback_s, f" (fixed: {why})")
        return Window(gaps.longest_of(TAIL) * (1 + MARGIN), f" ({TAIL:.0%} of {gaps.within} gaps were shorter)")

    def propose(self, nodes: Sequence[NodeView], gaps: Mapping[VariantKey, GapHistogram]) -> tuple[StopProposal, ...]:
        used = {item.variant for node in nodes for item in node.instances}
        windows = {variant: self.window(gaps.get(variant, NOTHING_SEEN)) for variant in used}
        return idle_beyond(nodes, windows.__getitem__)


def unfit(gaps: GapHistogram) -> str:
    """Why the histogram is not representative, in words; empty where it is."""
    if gaps.total < LEAST_GAPS:
        return f"{gaps.total} gaps seen, {LEAST_GAPS} are needed"
    if gaps.beyond > MOST_BEYOND * gaps.total:
        return f"{gaps.beyond} of {gaps.total} gaps are longer than the histogram"
    if gaps.variation < LEAST_VARIATION:
        return f"no gap is typical: variation {gaps.variation:.1f}"
    return ""
