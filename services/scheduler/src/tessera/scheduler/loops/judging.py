"""Judges every instance's load as reports come in, and keeps the load records at what was found. Written on changes alone."""

from __future__ import annotations

import asyncio

from tessera.clock import Clock
from tessera.coord import keys
from tessera.coord.interface import Coordinator, Delete, Leadership, Put, Write
from tessera.coord.records import encode
from tessera.domain.errors import Conflict, TesseraError
from tessera.domain.ids import InstanceId, NodeId, ProfileClass, VariantKey
from tessera.domain.records import LoadRecord, ProfileRecord
from tessera.policy.load.base import Expected, LoadPolicy, expected_of
from tessera.scheduler.core.ahead import Ahead
from tessera.scheduler.core.cluster import Cluster
from tessera.scheduler.core.loads import differences, judge
from tessera.scheduler.loops.leading import Leading
from tessera.scheduler.loops.moving import Mover
from tessera.scheduler.loops.pulse import Pulse
from tessera.scheduler.ports import Meter, Records
from tessera.telemetry import get_logger

log = get_logger("tessera.scheduler")

LONGEST_S = 1.0
GAP_S = 0.05
"""Reports that come together are judged together."""
WRITE_TIMEOUT_S = 2.0


class Judge:
    def __init__(
        self,
        *,
        clock: Clock,
        coordinator: Coordinator,
        leading: Leading,
        cluster: Cluster,
        records: Records,
        policy: LoadPolicy,
        changed: Pulse,
        mover: Mover | None,
        meter: Meter,
    ) -> None:
        """`changed` fires when a report came in. `mover` None: what is interfered with stays where it is."""
        self._clock = clock
        self._coordinator = coordinator
        self._leading = leading
        self._cluster = cluster
        self._records = records
        self._policy = policy
        self._changed = changed
        self._mover = mover
        self._meter = meter
        self._ahead: Ahead[LoadRecord] = Ahead(
            lambda shown, written: (shown.state if shown else None) is (written.state if written else None)
        )
        self._lines: dict[tuple[VariantKey, ProfileClass, int], tuple[ProfileRecord, Expected | None]] = {}

    async def run(self) -> None:
        while True:
            await self._changed.wait(LONGEST_S)
            leadership = self._leading.leadership
            if leadership is not None:
                await self.once(leadership)
            await self._clock.sleep(GAP_S)

    async def once(self, leadership: Leadership) -> None:
        """One look at all that was reported since the last one."""
        observed = list(self._cluster.observed.values())
        recorded = self._ahead.over(self._records.loads(), self._clock.monotonic_s())
        self._cluster.loads = judge(self._cluster.loads, observed, recorded, self._policy, self._expected)
        put, gone = differences(self._cluster.loads, observed, self._records.nodes().keys(), recorded, self._clock.wall_s())
        for record in put:
            log.warning("load", instance=record.instance_id, node=record.node_id, state=record.state.value, reason=record.reason)
            self._meter.judged(record.state.value)
            await self._write(leadership, record.instance_id, record, Put(_key(record), encode(record)))
        for record in gone:
            log.info("load", instance=record.instance_id, node=record.node_id, state="active", was=record.state.value)
            await self._write(leadership, record.instance_id, None, Delete(_key(record)))
        profiles = self._records.profiles()
        for key in [key for key in self._lines if key[:2] not in profiles]:
            del self._lines[key]
        if self._mover is not None:
            self._mover.consider()

    def _expected(self, variant: VariantKey, node_id: NodeId) -> Expected | None:
        """Raises: KeyError where the node has no record."""
        node = self._records.nodes()[node_id][0]
        profile = self._records.profiles().get((variant, node.profile_class))
        if profile is None:
            return None
        key = (variant, node.profile_class, node.runtime_threads)
        known = self._lines.get(key)
        if known is None or known[0] is not profile:
            known = self._lines[key] = (profile, expected_of(profile, node.runtime_threads))
        return known[1]

    async def _write(self, leadership: Leadership, name: InstanceId, record: LoadRecord | None, operation: Write) -> None:
        """Guarded by the leadership. etcd away: the next look tries again."""
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await self._coordinator.transact([leadership.guard], [operation])
            self._ahead.wrote(name, record, self._clock.monotonic_s())
        except Conflict:
            self._leading.doubt.set()
        except (TesseraError, TimeoutError) as error:
            log.info("etcd is away; written later", reason=str(error))


def _key(record: LoadRecord) -> str:
    return keys.load(record.variant.trust_domain, record.node_id, record.instance_id)
