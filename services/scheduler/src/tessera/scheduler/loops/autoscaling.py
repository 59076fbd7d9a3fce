"""Each second: what every model's load asks for by the autoscaling policy, vetted and carried out.

What is added is ready before anything is removed; what takes capacity away waits until it was proposed for long enough in a row. At most
`starts_per_tick` starts begin in a tick, and one plan of a group is carried out at a time. Nothing is removed while etcd is away, while
requests wait for a start of the group, or as the last of it (keep-alive alone ends that).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

from tessera.clock import Clock
from tessera.coord.interface import Coordinator
from tessera.domain.errors import TesseraError
from tessera.domain.ids import NodeId, VersionKey
from tessera.policy.autoscaling.base import AutoscalingPolicy, ScalePlan
from tessera.program import Tasks
from tessera.scheduler.core.assignments import Phase
from tessera.scheduler.core.capacity import Capacities, Group, Votes, why_not_removed
from tessera.scheduler.core.cluster import Cluster
from tessera.scheduler.loops.leading import Leading
from tessera.scheduler.loops.replacing import HANDOVER_S, START_BUDGET_S, require_etcd
from tessera.scheduler.loops.starting import Starter
from tessera.scheduler.ports import Meter, Records
from tessera.telemetry import get_logger

log = get_logger("tessera.scheduler")

AGAIN_AFTER_S = 10.0
"""A group whose plan failed is left alone for so long."""
SETTLE_S = 2.0
"""A group that has just changed: until reports show what the change did."""

GroupKey = tuple[VersionKey, str]


class Autoscaler:
    def __init__(
        self,
        *,
        clock: Clock,
        tasks: Tasks,
        coordinator: Coordinator,
        leading: Leading,
        cluster: Cluster,
        records: Records,
        starter: Starter,
        policy: AutoscalingPolicy,
        wake: asyncio.Event,
        meter: Meter,
        starts_per_tick: int,
        period_s: float = 1.0,
    ) -> None:
        """`wake` is set when there is a record to write."""
        self._clock = clock
        self._tasks = tasks
        self._coordinator = coordinator
        self._leading = leading
        self._cluster = cluster
        self._records = records
        self._starter = starter
        self._policy = policy
        self._wake = wake
        self._meter = meter
        self._starts_per_tick = starts_per_tick
        self._period_s = period_s
        self._votes = Votes()
        self._busy: set[GroupKey] = set()
        self._not_before_s: dict[GroupKey, float] = {}

    async def run(self) -> None:
        while True:
            if self._leading.leadership is not None:
                await self.once()
            else:
                self._votes = Votes()
            await self._clock.sleep(self._period_s)

    async def once(self) -> None:
        now_s = self._clock.monotonic_s()
        self._not_before_s = {key: at_s for key, at_s in self._not_before_s.items() if at_s > now_s}
        groups = [group for group in self._groups() if group.key not in self._busy and group.key not in self._not_before_s]
        plans = [(group, await self._plan(group)) for group in groups]
        self._votes = self._votes.count((group.key for group, plan in plans if plan.patience_s > 0), now_s)
        left = self._starts_per_tick
        for group, plan in plans:
            if plan.empty or self._votes.patient_for_s(group.key, now_s) < plan.patience_s:
                continue
            wanted = sum(count for _, count in plan.add)
            if wanted and not left:
                continue
            most = min(left, wanted)
            left -= most
            self._busy.add(group.key)
            self._tasks.start(f"scale {group.key[0]}", self._carry_out(group, plan, most))

    async def _plan(self, group: Group) -> ScalePlan:
        return await asyncio.to_thread(self._policy.plan, group.load) if self._policy.slow else self._policy.plan(group.load)

    def _groups(self) -> list[Group]:
        versions = {item.variant.version_key for node in self._cluster.observed.values() for item in node.instances}
        models = {version: self._records.model(version.trust_domain, version.model) for version in versions}
        capacities = Capacities(
            self._cluster.observed,
            self._records.nodes(),
            self._records.profiles(),
            self._cluster.loads,
            self._cluster.closed,
            self._cluster.desired.stopping(),
        )
        return capacities.groups(
            {version: tuple(self._records.variants_of(version)) for version in versions},
            {version for version, model in models.items() if model is not None and model.lossy},
        )

    async def _carry_out(self, group: Group, plan: ScalePlan, most: int) -> None:
        """What is added first, `most` of it; then what is removed, if all of that is there (else a later tick's plan says what goes)."""
        log.info("scaling", model=str(group.key[0]), variant=group.key[1], policy=self._policy.name, reason=plan.reason)
        pause_s, added = SETTLE_S, 0
        try:
            added = await self._add(group, plan, most)
            if plan.remove and added == sum(count for _, count in plan.add):
                await self._remove(group, plan, added)
        except TesseraError as error:
            pause_s = AGAIN_AFTER_S
            log.warning("scaling came to nothing", model=str(group.key[0]), added=added, reason=str(error))
        finally:
            self._busy.discard(group.key)
            self._not_before_s[group.key] = self._clock.monotonic_s() + pause_s

    async def _add(self, group: Group, plan: ScalePlan, most: int) -> int:
        """Raises: TesseraError, from the first start that fails."""
        added = 0
        taken: defaultdict[NodeId, int] = defaultdict(int)
        for kind, count in plan.add:
            for _ in range(count):
                if added == most:
                    return added
                # The least taken by this plan: the start policy chooses among equals.
                fewest = min(taken[node_id] for node_id in group.nodes[kind])
                nodes = [node_id for node_id in group.nodes[kind] if taken[node_id] == fewest]
                instance = await self._starter.add(kind.variant, nodes, START_BUDGET_S)
                taken[instance.node_id] += 1
                added += 1
                self._meter.scaled(self._policy.name, 1, 0)
        return added

    async def _remove(self, group: Group, plan: ScalePlan, added: int) -> None:
        if added:
            await self._clock.sleep(HANDOVER_S)
        await require_etcd(self._coordinator)
        refused = why_not_removed(group, plan.remove, added, self._starter.waited_for)
        if refused is not None:
            log.info("nothing is removed", model=str(group.key[0]), reason=refused)
            return
        for name in plan.remove:
            assignment = self._cluster.desired.assignments.get(name)
            if assignment is not None and assignment.phase is Phase.ACTIVE and self._cluster.find(name) is not None:
                self._cluster.stop(assignment.record, plan.reason, self._clock.monotonic_s())
                self._meter.scaled(self._policy.name, 0, 1)
                self._meter.stopped("autoscaling")
        self._wake.set()
