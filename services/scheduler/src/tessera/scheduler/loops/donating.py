"""Starts out of idle instances, as the scheduler sees them: who could be a donor, and what becomes of one that was."""

from __future__ import annotations

import asyncio
import functools
from collections import OrderedDict
from collections.abc import Sequence

from tessera.clock import Clock
from tessera.domain.artifact import Blob
from tessera.domain.errors import FailedPrecondition, Internal, InvalidInput, TesseraError, Unsupported
from tessera.domain.ids import InstanceId, NodeId, ProfileClass, RuntimeId, VariantKey
from tessera.domain.instance import Stage
from tessera.domain.records import MetaCostRecord, VariantRecord
from tessera.domain.transformation import StepSum
from tessera.policy.start.base import Donor, Donors, NoDonor, NoDonors
from tessera.policy.start.costs import CostModel
from tessera.policy.view import Candidate, NodeView
from tessera.scheduler.core.cluster import Cluster
from tessera.scheduler.core.donors import PLANNED, DonorRules, donors, replaced
from tessera.scheduler.core.observed import ObservedInstance
from tessera.scheduler.core.transform_costs import Place, TransformCosts
from tessera.scheduler.loops.learning import Learning
from tessera.scheduler.ports import ArtifactBlobs, Plans, Records

TRANSFORMED = (Stage.MAP, Stage.TRANSFORM)
NOTE_AFTER_S = 0.002
"""Costs are corrected, which takes half a millisecond, when whoever waited for the start has its answer."""
REFUSED_S = 60.0
"""How long a runtime that refused to make something of an instance is not asked to again: most of what it says so for stays (it holds what
crashed another one, its sessions cannot be mapped over), and each start would hear it first."""
REFUSALS = (FailedPrecondition, Internal, InvalidInput, Unsupported)
"""What a runtime that says it will say again. A donor that is not idle may be soon, and bytes that do not come say nothing of it."""
MOST_REFUSED = 1024
"""Refusals that are kept: the latest."""


class Donating:
    """`rules` None: nothing is made of anything else."""

    def __init__(
        self,
        clock: Clock,
        cluster: Cluster,
        records: Records,
        plans: Plans,
        blobs: ArtifactBlobs,
        rules: DonorRules | None,
        costs: CostModel,
        learning: Learning,
    ) -> None:
        self._clock = clock
        self._cluster = cluster
        self._records = records
        self._plans = plans
        self._blobs = blobs
        self._rules = rules
        self._costs = costs
        self._learning = learning
        self._transform_costs = TransformCosts()
        self._taken: set[InstanceId] = set()
        self._refused: OrderedDict[tuple[NodeId, RuntimeId, VariantKey], tuple[float, str]] = OrderedDict()
        """Until when, the soonest first, and what was said."""

    @property
    def idle_s(self) -> float:
        """How long nobody has asked a donor. Reports are a moment old: whoever makes something of it looks once more."""
        return self._rules.idle_s if self._rules is not None else 0.0

    @property
    def taken(self) -> frozenset[InstanceId]:
        """Donors of the starts in flight. They take no more requests, and another start gets none of them."""
        return frozenset(self._taken)

    def of(self, candidates: Sequence[Candidate], nodes: Sequence[NodeView]) -> tuple[Donors, NoDonors]:
        """What a decision may choose from, by what transformations take on nodes of the same class, and where there is nothing, why."""
        found: dict[tuple[VariantKey, NodeId], tuple[Donor, ...]] = {}
        nobody: dict[tuple[VariantKey, NodeId], NoDonor] = {}
        if self._rules is None:
            return found, nobody
        self._transform_costs.forget(self._clock.monotonic_s())
        refused = self._refused_by(candidates)
        gaps = self._cluster.usage.gaps
        for profile_class in sorted({node.profile_class for node in nodes}):
            transform_ms = functools.partial(self._transform_ms, profile_class)
            some = [node for node in nodes if node.profile_class == profile_class]
            made, none = donors(
                candidates, some, self._records.variant, transform_ms, self._why_not, gaps, self._rules, self._costs,
                self._records.profiles(), refused, self._blobs_of, self._learning.seen,
            )  # fmt: skip
            found |= made
            nobody |= none
        return found, nobody

    def take(self, donor: InstanceId) -> None:
        """A start is about to be told of it."""
        self._taken.add(donor)

    def release(self, donor: InstanceId) -> None:
        """That start is over."""
        self._taken.discard(donor)

    def reset(self) -> None:
        """Another leads: a leader begins with what was measured."""
        self._transform_costs = TransformCosts()

    def failed(self, donor: InstanceId, target: VariantKey, error: TesseraError) -> None:
        """Nothing was made of it. Where its runtime refused, no decision is offered an instance there for that target for `REFUSED_S`."""
        there = self._cluster.find(donor)
        if there is None or not isinstance(error, REFUSALS):
            return
        where = (there.node_id, there.runtime_id, target)
        self._refused[where] = (self._clock.monotonic_s() + REFUSED_S, f"its runtime refused a moment ago: {error.message}")
        self._refused.move_to_end(where)
        if len(self._refused) > MOST_REFUSED:
            self._refused.popitem(last=False)

    def _refused_by(self, candidates: Sequence[Candidate]) -> dict[tuple[InstanceId, VariantKey], str]:
        """Instances in runtimes that refused one of the candidates a moment ago, with that candidate, and in which words."""
        now_s = self._clock.monotonic_s()
        while self._refused and next(iter(self._refused.values()))[0] <= now_s:
            self._refused.popitem(last=False)
        wanted = {candidate.key for candidate in candidates}
        return {
            (item.instance_id, target): words
            for (node_id, runtime_id, target), (_, words) in self._refused.items()
            if target in wanted and (node := self._cluster.observed.get(node_id)) is not None
            for item in node.instances
            if item.runtime_id == runtime_id
        }

    def delta(self, donor: InstanceId, target: VariantKey) -> bytes:
        """How the donor becomes an instance of the target; empty where both have one graph, and where it is not known any more: its agent
        plans it then."""
        there = self._cluster.find(donor)
        records = [self._records.variant(key) for key in ((there.variant, target) if there is not None else ())]
        graphs = [record.graph for record in records if record is not None and record.graph is not None]
        return (self._plans.delta(graphs[0], graphs[1]) or b"") if len(set(graphs)) == 2 else b""

    def became(self, donor: InstanceId, instance: ObservedInstance) -> None:
        """The donor is gone: its assignment ends, and its start says how good the plan was."""
        assignment = self._cluster.desired.assignments.get(donor)
        if assignment is None:
            return
        self._cluster.stop(assignment.record, f"became {instance.instance_id} ({instance.variant})", self._clock.monotonic_s())
        source, target = self._records.variant(assignment.record.variant), self._records.variant(instance.variant)
        node = self._cluster.observed.get(instance.node_id)
        took_ms = sum(stage.ms for stage in instance.stages if stage.stage in TRANSFORMED)
        if source is None or target is None or node is None or took_ms <= 0:
            return
        steps = self._steps(source, target)
        if steps is not None:
            place, record = self._place(target, node.report.profile_class)
            note = functools.partial(self._transform_costs.note, place, record, steps, took_ms, self._clock.monotonic_s())
            asyncio.get_running_loop().call_later(NOTE_AFTER_S, note)

    def _transform_ms(self, profile_class: ProfileClass, source: VariantRecord, target: VariantRecord) -> float | None:
        steps = self._steps(source, target)
        if steps is None or source.graph is None or target.graph is None:
            return None
        place, record = self._place(target, profile_class)
        return self._transform_costs.ms(place, record, (source.graph, target.graph), steps)

    def _blobs_of(self, variant: VariantKey) -> Sequence[Blob] | None:
        record = self._records.variant(variant)
        return self._blobs.blobs(record.artifact) if record is not None and record.artifact else None

    def _why_not(self, source: VariantRecord, target: VariantRecord) -> str:
        if target.backend != PLANNED:
            return "it is of another graph or recipe, or nobody knows of which"
        if source.graph is None or target.graph is None:
            return "nobody knows the graphs of both"
        return self._plans.why_not(source.graph, target.graph)

    def _place(self, target: VariantRecord, profile_class: ProfileClass) -> tuple[Place, MetaCostRecord | None]:
        """Where costs are alike, and what the profiler measured of them: programs that are planned, and nothing else."""
        domain = target.key.trust_domain
        measured = self._records.meta_costs(domain, profile_class) if target.backend == PLANNED else None
        return (domain, profile_class, target.backend), measured

    def _steps(self, source: VariantRecord, target: VariantRecord) -> tuple[StepSum, ...] | None:
        """None where no plan is known."""
        if target.backend != PLANNED:
            return replaced(source, target)
        return self._plans.steps(source.graph, target.graph) if source.graph is not None and target.graph is not None else None
