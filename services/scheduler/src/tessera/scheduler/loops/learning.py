"""What starts took, from the agents' reports, for the estimates of the next ones."""

from __future__ import annotations

from tessera.clock import Clock
from tessera.domain.ids import ProfileClass
from tessera.domain.instance import Stage, StartPath
from tessera.policy.start.costs import CostModel, StartsSeen, path_kind
from tessera.scheduler.core.cluster import Cluster
from tessera.scheduler.core.observed import ObservedInstance
from tessera.scheduler.core.start_times import StartTimes
from tessera.scheduler.ports import Records

LEARNT = frozenset({StartPath.BIND, StartPath.FORK, StartPath.CONTAINER})


class Learning:
    """`learns` False: estimates stay as they were before anything started."""

    def __init__(self, clock: Clock, cluster: Cluster, records: Records, costs: CostModel, *, learns: bool) -> None:
        self._clock = clock
        self._cluster = cluster
        self._records = records
        self._costs = costs
        self._learns = learns
        self._times = StartTimes()

    @property
    def seen(self) -> StartsSeen:
        return self._times.seen

    def reset(self) -> None:
        """Another leads: what starts until this one leads again is not seen here."""
        self._times = StartTimes()

    def look(self) -> None:
        """At the reports of now. The end of each start counts once."""
        if not self._learns:
            return
        now_s = self._clock.monotonic_s()
        for item, profile_class, took_ms in self._times.ended(self._cluster.observed.values()):
            fetch_ms = sum(stage.ms for stage in item.stages if stage.stage is Stage.FETCH)
            self._times.note_fetch(item.node_id, item.fetched_bytes, fetch_ms, now_s)
            self._note(item, profile_class, took_ms, now_s)
        self._times.forget(now_s)

    def _note(self, item: ObservedInstance, profile_class: ProfileClass, took_ms: float, now_s: float) -> None:
        """For the path that was chosen: where binding meant a new runtime after all, that is what choosing it costs. What began as a
        transformation, finished or not, is learnt by its steps (`transform_costs`)."""
        if any(stage.stage is Stage.TRANSFORM for stage in item.stages):
            return
        assignment = self._cluster.desired.assignments.get(item.instance_id)
        path = assignment.record.start_path if assignment is not None else item.start_path
        variant = self._records.variant(item.variant)
        if variant is None or path not in LEARNT:
            return
        profile = self._records.profiles().get((variant.key, profile_class))
        expected_ms, measured = self._costs.path(path, variant.backend, profile)
        if expected_ms > 0:
            kind = path_kind(variant, profile_class, path, measured)
            self._times.note((variant.key, profile_class, path), kind, took_ms, expected_ms, now_s)
