"""What starts took, from the agents' reports, for the estimates of the next ones."""

from __future__ import annotations

from tessera.clock import Clock
from tessera.policy.start.costs import CostModel, StartsSeen, path_kind
from tessera.scheduler.core.cluster import Cluster
from tessera.scheduler.core.start_times import StartTimes
from tessera.scheduler.ports import Records


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

    def look(self) -> None:
        """At the reports of now. The end of each start counts once."""
        if not self._learns:
            return
        now_s = self._clock.monotonic_s()
        profiles = self._records.profiles()
        for item, profile_class, took_ms in self._times.ended(self._cluster.observed.values()):
            variant = self._records.variant(item.variant)
            if variant is None:
                continue
            expected_ms, _ = self._costs.path(item.start_path, variant.backend, profiles.get((variant.key, profile_class)))
            if expected_ms > 0:
                start, path = (variant.key, profile_class, item.start_path), path_kind(variant, profile_class, item.start_path)
                self._times.note(start, path, took_ms, expected_ms, now_s)
        self._times.forget(now_s)
