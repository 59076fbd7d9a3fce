"""The start that is ready soonest, unless that means a variant which the gateway likes less for little gain.

What makes who waits late comes after what does not, whatever it is worth; where all are late, worth alone decides.

A transformation costs what it takes, and what the donor's model takes when it is asked again, as often as that is expected: the published
safeguard of Optimus (never slower than the best other path) with the donor's side in it. Its own time is what is promised.

An instance serves long after its start, so the gateway's order (by objective and profile) is worth `order_ms` per place: the
second candidate wins only when it is ready that much sooner. Among equals the node with more of the bytes, then the less loaded,
then the first id wins (that is the placement policy's order).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from tessera.domain.ids import NodeId
from tessera.domain.instance import StartPath
from tessera.policy.placement.base import Placement, PlacementPolicy
from tessera.policy.placement.bytes_present import BytesPresentPlacement
from tessera.policy.placement.filters import Refusal, RefusalKind, explain, refusal, size_words
from tessera.policy.start.base import StartDecision, StartOption, StartQuestion
from tessera.policy.start.costs import CostModel
from tessera.policy.view import Candidate, InstanceView, NodeCondition, NodeView

DEFAULT_ORDER_MS = 1000.0
"""How much sooner a candidate must be ready to be taken before the one that the gateway put one place ahead of it."""


@dataclass(frozen=True, slots=True)
class CheapestStart:
    placement: PlacementPolicy = field(default_factory=BytesPresentPlacement)
    costs: CostModel = field(default_factory=CostModel)
    order_ms: float = DEFAULT_ORDER_MS

    @property
    def name(self) -> str:
        return f"cheapest({self.placement.name})"

    def decide(self, question: StartQuestion) -> StartDecision:
        options: list[tuple[StartOption, int]] = []
        refusals: list[Refusal] = []
        sentences: list[str] = []
        for rank, candidate in enumerate(question.candidates):
            nodes = {node.node_id: node for node in question.nodes}
            refused: list[Refusal] = []
            ranked = self.placement.rank(candidate, question.nodes)
            found: list[tuple[StartOption, int]] = []
            for place, placement in enumerate(ranked):
                node = nodes[placement.node_id]
                found.extend((option, place) for option in self._options(question, candidate, rank, node, placement, refused))
            options.extend(found)
            if question.no_donors and not any(option.start_path is StartPath.WARM for option, _ in found):
                options.extend(_not_made(question, candidate, rank, ranked, {item.node_id for item in refused}))
            refusals.extend(refused)
            sentences.append(f"{candidate.key}: {explain(refused, len(question.nodes))}")
        open_options = [(option, place) for option, place in options if not option.refused]
        within_ms = question.ready_within_ms

        def order(entry: tuple[StartOption, int]) -> tuple[bool, float, int, int, StartPath]:
            option, place = entry
            return _late(option, within_ms), self._worth(option), option.rank, place, option.start_path

        best = min(open_options, key=order, default=None)
        chosen = best[0] if best is not None else None
        losers = [_lost(option, chosen, within_ms) for option, _ in options if option is not chosen]
        losers.sort(key=lambda option: (option.refused, self._worth(option), option.node_id, option.start_path))
        may_pass = any(item.may_pass for item in refusals) or not question.nodes
        return StartDecision(chosen, tuple(losers), tuple(refusals), "; ".join(sentences), self.name, may_pass)

    def _worth(self, option: StartOption) -> float:
        return option.expected_ms + option.price_ms + option.rank * self.order_ms

    def _options(
        self, question: StartQuestion, candidate: Candidate, rank: int, node: NodeView, placement: Placement, refused: list[Refusal]
    ) -> Iterator[StartOption]:
        ready = _ready_instance(candidate, node)
        if ready is not None and (candidate.key, node.node_id, StartPath.WARM) not in question.failed:
            yield StartOption(candidate.key, rank, node.node_id, StartPath.WARM, 0.0, 0, True, "an instance is ready", instance=ready)
        no = refusal(candidate, node, placement)
        if no is not None:
            refused.append(no)
            path = StartPath.BIND if _bindable(candidate, node) else node.new_runtime
            yield StartOption(
                candidate.key, rank, node.node_id, path, 0.0, placement.bytes_to_fetch, False, f"refused: {node.node_id} {no.reason}", True
            )
            return
        donated = self._donated(question, candidate, rank, node, placement)
        if donated is not None:
            yield donated
        paths = [StartPath.BIND, node.new_runtime] if _bindable(candidate, node) else [node.new_runtime]
        failures = []
        for path in paths:
            option = _unless_failed(question, self._cost(question, candidate, rank, node, placement, path))
            if option.refused:
                failures.append(question.failed[option.key])
            yield option
        if len(failures) == len(paths):
            refused.append(Refusal(node.node_id, RefusalKind.FAILED, f"failed: {failures[-1]}"))

    def _donated(
        self, question: StartQuestion, candidate: Candidate, rank: int, node: NodeView, placement: Placement
    ) -> StartOption | None:
        """Out of the best of the node's donors, where it has one; among equals the one whose end frees most."""
        donors = question.donors.get((candidate.key, node.node_id))
        if not donors:
            return None
        best = min(donors, key=lambda donor: (donor.worth_ms, -donor.freed_bytes, donor.instance_id))
        fetch_ms = self.costs.fetch_ms(placement.bytes_to_wait_for, node.node_id, question.seen)
        reason = f"out of {best.instance_id} ({best.variant}): {best.transform_ms:.1f} ms planned{_fetch_words(placement, fetch_ms)}"
        reason += f", and {best.opportunity_ms:.1f} ms for its model, which comes back with a chance of {best.again:.0%}"
        reason += f", and its end frees {size_words(best.freed_bytes)}" if best.freed_bytes else ""
        reason += _away_words(placement)
        option = StartOption(
            candidate.key, rank, node.node_id, StartPath.TRANSFORM, best.transform_ms + fetch_ms, placement.bytes_to_fetch, False, reason,
            donor=best.instance_id, price_ms=best.opportunity_ms + placement.away_ms,
        )  # fmt: skip
        return _unless_failed(question, option)

    def _cost(
        self, question: StartQuestion, candidate: Candidate, rank: int, node: NodeView, placement: Placement, path: StartPath
    ) -> StartOption:
        profile = question.profiles.get((candidate.key, node.profile_class))
        cost = self.costs.expected(path, candidate.record, node.profile_class, profile, question.seen)
        fetch_ms = self.costs.fetch_ms(placement.bytes_to_wait_for, node.node_id, question.seen)
        reason = f"{cost.ms:.1f} ms {cost.words}{_fetch_words(placement, fetch_ms)}{_away_words(placement)}"
        return StartOption(
            candidate.key, rank, node.node_id, path, cost.ms + fetch_ms, placement.bytes_to_fetch, cost.measured, reason,
            price_ms=placement.away_ms,
        )  # fmt: skip


def _not_made(
    question: StartQuestion, candidate: Candidate, rank: int, ranked: Sequence[Placement], refused: Collection[NodeId]
) -> Iterator[tuple[StartOption, int]]:
    """Why the candidate is made of nothing on the best node that could take it and has idle instances: one line says it."""
    for place, placement in enumerate(ranked):
        nobody = question.no_donors.get((candidate.key, placement.node_id))
        if nobody is not None and placement.node_id not in refused:
            reason = f"no transformation: {nobody.instance_id} ({nobody.variant}) is idle, but {nobody.why}"
            path, to_fetch = StartPath.TRANSFORM, placement.bytes_to_fetch
            yield StartOption(candidate.key, rank, placement.node_id, path, 0.0, to_fetch, False, reason, refused=True), place
            return


def _fetch_words(placement: Placement, fetch_ms: float) -> str:
    if not placement.bytes_to_fetch:
        return ""
    coming = f", of which {size_words(placement.bytes_coming)} are on their way" if placement.bytes_coming else ""
    return f" + {fetch_ms:.1f} ms for {size_words(placement.bytes_to_fetch)} to fetch{'' if placement.exact else ' (estimated)'}{coming}"


def _late(option: StartOption, within_ms: float | None) -> bool:
    return within_ms is not None and option.expected_ms > within_ms


def _away_words(placement: Placement) -> str:
    return f", and {placement.away_ms:.0f} ms because it lives elsewhere" if placement.away_ms else ""


def _unless_failed(question: StartQuestion, option: StartOption) -> StartOption:
    words = question.failed.get(option.key)
    return option if words is None else replace(option, refused=True, reason=f"refused: failed before: {words}")


def _ready_instance(candidate: Candidate, node: NodeView) -> InstanceView | None:
    """A ready instance whose agent answers; a silent node's report is history, and its instance may be gone."""
    if node.condition is NodeCondition.SILENT or candidate.key.trust_domain not in node.stores:
        return None
    return node.ready_instance(candidate.key)


def _bindable(candidate: Candidate, node: NodeView) -> bool:
    """Whether a warm runtime of the flavour and of the same trust domain is there."""
    return any(
        runtime.flavour == candidate.record.flavour and runtime.trust_domain == candidate.key.trust_domain for runtime in node.runtimes
    )


def _lost(option: StartOption, chosen: StartOption | None, within_ms: float | None) -> StartOption:
    if option.refused or chosen is None:
        return option
    if within_ms is not None and _late(option, within_ms) and not _late(chosen, within_ms):
        return replace(option, reason=f"{option.reason}; {option.expected_ms - within_ms:.1f} ms too late for who waits")
    difference = option.expected_ms + option.price_ms - chosen.expected_ms - chosen.price_ms
    if option.rank > chosen.rank and difference <= 0:
        words = f"ready {-difference:.1f} ms sooner, but the gateway prefers {chosen.variant}"
    elif difference > 0:
        words = f"{difference:.1f} ms more than {chosen.start_path} on {chosen.node_id}"
    elif option.rank < chosen.rank:
        words = f"less than {chosen.start_path} on {chosen.node_id}"
    else:
        words = f"as fast as {chosen.node_id}, which has more of the bytes, less load or the lower id"
    return replace(option, reason=f"{option.reason}; {words}")
