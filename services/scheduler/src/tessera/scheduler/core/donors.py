"""Which idle instances a start could be made of, with what it takes and what it costs. Pure.

Donors are ready instances of the candidate's backend and trust domain that nobody has asked for a while. A program of `aten` becomes any
other that there is a plan for, parked or not; what has its graph inside (`ort`, `aoti`) another of that graph, where its recipe reads
weights in place and it is open (docs/adr/0013). A donor's model comes back with the chance that the gaps seen so far give it: of those that
lasted as long as this one already, those that end within the keep-alive. Donors that are worth the same differ in the bytes that nothing on
the node holds when they end, and that the candidate does not need: counted from the blob lists that are known.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tessera.domain.artifact import Blob
from tessera.domain.ids import Digest, InstanceId, NodeId, ProfileClass, VariantKey
from tessera.domain.instance import InstanceState, StartPath
from tessera.domain.records import ProfileRecord, VariantRecord
from tessera.domain.transformation import MetaOperator, StepSum
from tessera.policy.scaling.gaps import BIN_S, GapHistogram
from tessera.policy.start.base import Donor, Donors, NoDonor, NoDonors
from tessera.policy.start.costs import CostModel, StartsSeen
from tessera.policy.transform.costs import REPLACED
from tessera.policy.view import Candidate, InstanceView, NodeCondition, NodeView

MOST_DONORS = 32
"""Of a node and a candidate that one decision looks at: those that have been idle for the longest."""
UNKNOWN = 0.5
"""The chance that a model comes back of which no gap was seen. An assumption."""

PLANNED = "aten"
"""The backend whose programs are transformed by plans."""

TransformMs = Callable[[VariantRecord, VariantRecord], float | None]
"""From, to: what a transformation takes in ms; None where no plan is known."""
WhyNot = Callable[[VariantRecord, VariantRecord], str]
"""From, to: why no plan is known."""
BlobsOf = Callable[[VariantKey], Sequence[Blob] | None]
"""What a variant needs on a node; None where that is not known."""


@dataclass(frozen=True, slots=True)
class DonorRules:
    """`idle_s`: how long nobody has asked a donor; `keep_alive_s`: how long it would be kept."""

    idle_s: float
    keep_alive_s: float


def donors(
    candidates: Sequence[Candidate],
    nodes: Sequence[NodeView],
    record: Callable[[VariantKey], VariantRecord | None],
    transform_ms: TransformMs,
    why_not: WhyNot,
    gaps: Mapping[VariantKey, GapHistogram],
    rules: DonorRules,
    costs: CostModel,
    profiles: Mapping[tuple[VariantKey, ProfileClass], ProfileRecord],
    refused: Mapping[tuple[InstanceId, VariantKey], str],
    blobs_of: BlobsOf,
    seen: StartsSeen,
) -> tuple[Donors, NoDonors]:
    """Of every candidate on every usable node, those that there are, and where none is left of the idle instances of its backend, why.
    `refused`: who is not to be asked to become what, with what was said to that."""
    able = [candidate for candidate in candidates if candidate.record.backend == PLANNED or candidate.record.recipe in REPLACED]
    found: dict[tuple[VariantKey, NodeId], tuple[Donor, ...]] = {}
    nobody: dict[tuple[VariantKey, NodeId], NoDonor] = {}
    sizes = functools.cache(lambda variant: {blob.digest: blob.size_bytes for blob in blobs_of(variant) or ()})
    for node in nodes if able else ():
        idle = _idle(node, rules.idle_s)
        for candidate in able:
            alike = [
                (item, there)
                for item in idle
                if item.variant != candidate.key
                and item.variant.trust_domain == candidate.key.trust_domain
                and (there := record(item.variant)) is not None
                and there.backend == candidate.record.backend
            ]
            able_ones = (
                Donor(
                    item.instance_id,
                    item.variant,
                    ms,
                    _return_ms(there, node, costs, profiles, seen),
                    _again(item, gaps, rules.keep_alive_s),
                )
                for item, there in alike
                if (item.instance_id, candidate.key) not in refused
                and (there.backend == PLANNED or not item.parked)
                and (ms := transform_ms(there, candidate.record)) is not None
            )
            made = tuple(itertools.islice(able_ones, MOST_DONORS))
            if made:
                found[candidate.key, node.node_id] = _told_apart(made, candidate, node, sizes)
            elif alike:
                nobody[candidate.key, node.node_id] = _no_donor(*alike[0], candidate.record, why_not, refused)
    return found, nobody


def _told_apart(
    made: tuple[Donor, ...], candidate: Candidate, node: NodeView, sizes: Callable[[VariantKey], Mapping[Digest, int]]
) -> tuple[Donor, ...]:
    """With what their ends free, where several are the best: to count it for all would take longer than what it decides is worth."""
    least_ms = min(donor.worth_ms for donor in made)
    if sum(donor.worth_ms == least_ms for donor in made) == 1:
        return made
    domain = candidate.key.trust_domain
    held = Counter(itertools.chain.from_iterable(sizes(item.variant) for item in node.instances if item.variant.trust_domain == domain))
    held.update(blob.digest for blob in candidate.blobs or ())

    def freed(donor: Donor) -> int:
        return sum(size for digest, size in sizes(donor.variant).items() if held[digest] == 1)

    return tuple(replace(donor, freed_bytes=freed(donor)) if donor.worth_ms == least_ms else donor for donor in made)


def _no_donor(
    item: InstanceView,
    there: VariantRecord,
    target: VariantRecord,
    why_not: WhyNot,
    refused: Mapping[tuple[InstanceId, VariantKey], str],
) -> NoDonor:
    why = refused.get((item.instance_id, target.key))
    if why is None:
        why = "it is parked" if item.parked and there.backend != PLANNED else why_not(there, target)
    return NoDonor(item.instance_id, item.variant, why)


def _idle(node: NodeView, least_s: float) -> list[InstanceView]:
    if node.condition is not NodeCondition.USABLE:
        return []
    ready = [item for item in node.instances if item.state is InstanceState.READY and item.idle_s >= least_s]
    return sorted(ready, key=lambda item: (-item.idle_s, item.instance_id))


def replaced(source: VariantRecord, target: VariantRecord) -> tuple[StepSum, ...] | None:
    """Giving a live instance of one graph other weights. None: the graphs differ, or it reads copies of its weights."""
    if source.graph is None or (source.graph, source.recipe) != (target.graph, target.recipe) or target.recipe not in REPLACED:
        return None
    return (StepSum(MetaOperator.REPLACE, target.recipe, 1, target.tensor_bytes, 0),)


def _return_ms(
    there: VariantRecord,
    node: NodeView,
    costs: CostModel,
    profiles: Mapping[tuple[VariantKey, ProfileClass], ProfileRecord],
    seen: StartsSeen,
) -> float:
    return costs.expected(StartPath.BIND, there, node.profile_class, profiles.get((there.key, node.profile_class)), seen).ms


def _again(item: InstanceView, gaps: Mapping[VariantKey, GapHistogram], keep_alive_s: float) -> float:
    known = gaps.get(item.variant)
    if known is None:
        return UNKNOWN
    since, until = int(item.idle_s / BIN_S), int((item.idle_s + keep_alive_s) / BIN_S)
    lasting = sum(known.counts[since:]) + known.beyond
    return sum(known.counts[since:until]) / lasting if lasting else UNKNOWN
