"""Starts out of idle instances, as the scheduler sees them: who could be a donor, and what becomes of one that was."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence

from tessera.clock import Clock
from tessera.domain.ids import InstanceId, NodeId, ProfileClass, VariantKey
from tessera.domain.instance import Stage
from tessera.domain.records import VariantRecord
from tessera.policy.start.base import Donor, Donors
from tessera.policy.start.costs import CostModel
from tessera.policy.view import Candidate, NodeView
from tessera.scheduler.core.cluster import Cluster
from tessera.scheduler.core.donors import DonorRules, donors
from tessera.scheduler.core.observed import ObservedInstance
from tessera.scheduler.core.transform_costs import TransformCosts
from tessera.scheduler.ports import Plans, Records

TRANSFORMED = (Stage.MAP, Stage.TRANSFORM)
NOTE_AFTER_S = 0.002
"""Costs are corrected, which takes half a millisecond, when whoever waited for the start has its answer."""


class Donating:
    """`rules` None: nothing is made of anything else."""

    def __init__(self, clock: Clock, cluster: Cluster, records: Records, plans: Plans, rules: DonorRules | None, costs: CostModel) -> None:
        self._clock = clock
        self._cluster = cluster
        self._records = records
        self._plans = plans
        self._rules = rules
        self._costs = costs
        self._transform_costs = TransformCosts()
        self._taken: set[InstanceId] = set()

    def of(self, candidates: Sequence[Candidate], nodes: Sequence[NodeView]) -> Donors:
        """What a decision may choose from, by what transformations take on nodes of the same class. Nobody that a start has taken."""
        if self._rules is None:
            return {}
        found: dict[tuple[VariantKey, NodeId], tuple[Donor, ...]] = {}
        for profile_class in sorted({node.profile_class for node in nodes}):
            transform_ms = functools.partial(self._transform_ms, profile_class)
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
        """How the donor becomes an instance of the target; empty where that is not known any more: its agent plans it then."""
        there = self._cluster.find(donor)
        records = [self._records.variant(key) for key in ((there.variant, target) if there is not None else ())]
        graphs = [record.graph for record in records if record is not None and record.graph is not None]
        return (self._plans.delta(graphs[0], graphs[1]) or b"") if len(graphs) == 2 else b""

    def became(self, donor: InstanceId, instance: ObservedInstance) -> None:
        """The donor is gone: its assignment ends, and its start says how good the plan was."""
        assignment = self._cluster.desired.assignments.get(donor)
        if assignment is None:
            return
        self._cluster.stop(assignment.record, f"became {instance.instance_id} ({instance.variant})", self._clock.monotonic_s())
        source, target = self._records.variant(assignment.record.variant), self._records.variant(instance.variant)
        node = self._cluster.observed.get(instance.node_id)
        took_ms = sum(stage.ms for stage in instance.stages if stage.stage in TRANSFORMED)
        if source is None or target is None or source.graph is None or target.graph is None or node is None or took_ms <= 0:
            return
        steps = self._plans.steps(source.graph, target.graph)
        if steps is not None:
            place = (target.key.trust_domain, node.report.profile_class)
            note = functools.partial(self._transform_costs.note, place, self._records.meta_costs(*place), steps, took_ms)
            asyncio.get_running_loop().call_later(NOTE_AFTER_S, note)

    def _transform_ms(self, profile_class: ProfileClass, source: VariantRecord, target: VariantRecord) -> float | None:
        if source.graph is None or target.graph is None:
            return None
        pair = (source.graph, target.graph)
        steps, place = self._plans.steps(*pair), (target.key.trust_domain, profile_class)
        return None if steps is None else self._transform_costs.ms(place, self._records.meta_costs(*place), pair, steps)
