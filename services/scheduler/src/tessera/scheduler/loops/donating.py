"""Starts out of idle instances, as the scheduler sees them: who could be a donor, and what becomes of one that was."""

from __future__ import annotations

from collections.abc import Sequence

from tessera.clock import Clock
from tessera.domain.ids import InstanceId, NodeId, ProfileClass, VariantKey
from tessera.domain.instance import Stage
from tessera.domain.records import VariantRecord
from tessera.policy.start.base import Donor, Donors
from tessera.policy.start.costs import CostModel
from tessera.policy.view import Candidate, NodeView
from tessera.scheduler.core.cluster import Cluster
from tessera.scheduler.core.donors import PLANNED, DonorRules, donors, replaced_ms
from tessera.scheduler.core.observed import ObservedInstance
from tessera.scheduler.core.trust import Trust
from tessera.scheduler.ports import Plans, Records

TRANSFORMED = (Stage.MAP, Stage.TRANSFORM)


class Donating:
    """`rules` None: nothing is made of anything else."""

    def __init__(self, clock: Clock, cluster: Cluster, records: Records, plans: Plans, rules: DonorRules | None, costs: CostModel) -> None:
        self._clock = clock
        self._cluster = cluster
        self._records = records
        self._plans = plans
        self._rules = rules
        self._costs = costs
        self._trust = Trust()
        self._taken: set[InstanceId] = set()

    def of(self, candidates: Sequence[Candidate], nodes: Sequence[NodeView]) -> Donors:
        """What a decision may choose from, by what transformations took on nodes of the same class. Nobody that a start has taken."""
        if self._rules is None:
            return {}
        found: dict[tuple[VariantKey, NodeId], tuple[Donor, ...]] = {}
        for profile_class in sorted({node.profile_class for node in nodes}):

            def transform_ms(source: VariantRecord, target: VariantRecord, profile_class: ProfileClass = profile_class) -> float | None:
                planned_ms = self._planned_ms(source, target)
                return None if planned_ms is None else planned_ms * self._trust.factor(profile_class, target.backend)

            some = [node for node in nodes if node.profile_class == profile_class]
            found |= donors(
                candidates, some, self._records.variant, transform_ms, self._cluster.usage.gaps, self._rules, self._costs,
                self._records.profiles(), self._taken,
            )  # fmt: skip
        return found

    def take(self, donor: InstanceId) -> None:
        """A start is about to be told of it."""
        self._taken.add(donor)

    def release(self, donor: InstanceId) -> None:
        """That start is over."""
        self._taken.discard(donor)

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
        planned_ms = self._planned_ms(source, target) if source is not None and target is not None else None
        took_ms = sum(stage.ms for stage in instance.stages if stage.stage in TRANSFORMED)
        if node is not None and target is not None and planned_ms and took_ms > 0:
            self._trust.note(node.report.profile_class, target.backend, planned_ms, took_ms)

    def _planned_ms(self, source: VariantRecord, target: VariantRecord) -> float | None:
        if target.backend != PLANNED:
            return replaced_ms(source, target)
        if source.graph is None or target.graph is None:
            return None
        return self._plans.transform_ms(source.graph, target.graph)
