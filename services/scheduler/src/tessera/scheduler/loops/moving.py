"""Moves what is interfered with: the new instance is ready before the old one drains. Policies propose; this carries one out at a time
for each variant, and keeps what must never happen."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from tessera.clock import Clock
from tessera.coord.interface import Coordinator
from tessera.domain.errors import TesseraError
from tessera.domain.ids import VariantKey
from tessera.domain.records import LoadState, VariantState
from tessera.policy.load.moving import Interfered, MoveProposal, propose_moves
from tessera.policy.view import Candidate
from tessera.program import Tasks
from tessera.scheduler.core.assignments import vet_drain
from tessera.scheduler.core.cluster import Cluster
from tessera.scheduler.loops.replacing import HANDOVER_S, START_BUDGET_S, require_etcd
from tessera.scheduler.loops.starting import Starter
from tessera.scheduler.ports import ArtifactBlobs, Meter, Records
from tessera.telemetry import get_logger

log = get_logger("tessera.scheduler")

AGAIN_AFTER_S = 30.0
"""A variant that was moved, or could not be, is left alone for so long."""


class Mover:
    def __init__(
        self,
        *,
        clock: Clock,
        tasks: Tasks,
        coordinator: Coordinator,
        cluster: Cluster,
        records: Records,
        blobs: ArtifactBlobs,
        starter: Starter,
        wake: asyncio.Event,
        meter: Meter,
    ) -> None:
        """`wake` is set when there is a record to write."""
        self._clock = clock
        self._tasks = tasks
        self._coordinator = coordinator
        self._cluster = cluster
        self._records = records
        self._blobs = blobs
        self._starter = starter
        self._wake = wake
        self._meter = meter
        self._not_before_s: dict[VariantKey, float] = {}

    def consider(self) -> None:
        """Begins what the policy proposes now."""
        now_s = self._clock.monotonic_s()
        self._not_before_s = {variant: at_s for variant, at_s in self._not_before_s.items() if at_s > now_s}
        found = list(self._interfered())
        interfered = [item for item in found if item.instance.variant not in self._not_before_s]
        if not interfered:
            return
        views = self._cluster.views(self._records.nodes(), {})
        for move in propose_moves(interfered, views, {item.node_id for item in found}):
            variant = next(item.instance.variant for item in interfered if item.instance.instance_id == move.instance_id)
            self._not_before_s[variant] = now_s + AGAIN_AFTER_S
            self._tasks.start(f"move {move.instance_id}", self._move(move))

    def _interfered(self) -> Iterator[Interfered]:
        for node_id, node in self._cluster.observed.items():
            for view in node.views if node.live else ():
                load = self._cluster.loads.get(view.instance_id)
                if load is not None and load.state is LoadState.INTERFERED:
                    yield Interfered(node_id, view, self._candidates(view.variant), load.reason)

    def _candidates(self, variant: VariantKey) -> tuple[Candidate, ...]:
        """The variant itself, then what a plain request for its version may get."""
        own = self._records.variant(variant)
        others = (
            [] if own is None or own.lossy else [item for item in self._records.variants_of(variant.version_key) if item.key != variant]
        )
        found = [] if own is None else [own]
        found += sorted((item for item in others if not item.lossy and not item.withheld), key=lambda item: item.key)
        ready = (item for item in found if item.state is VariantState.READY)
        return tuple(Candidate(item, self._blobs.blobs(item.artifact) if item.artifact else ()) for item in ready)

    async def _move(self, move: MoveProposal) -> None:
        log.warning(
            "instance moves", instance=move.instance_id, node=move.node_id, to=move.target, variant=str(move.variant), reason=move.reason
        )
        try:
            there = await self._starter.add(move.variant, (move.target,), START_BUDGET_S)
            await self._clock.sleep(HANDOVER_S)
            await require_etcd(self._coordinator)
        except TesseraError as error:
            log.warning("instance not moved", instance=move.instance_id, node=move.node_id, to=move.target, reason=str(error))
            return
        assignment = self._cluster.desired.assignments.get(move.instance_id)
        refused = vet_drain(self._cluster.find(move.instance_id), assignment, self._cluster.find(there.instance_id))
        if refused is not None:
            log.info("moved instance stays", instance=move.instance_id, node=move.node_id, reason=refused)
            return
        assert assignment is not None
        self._cluster.stop(assignment.record, f"moved to {there.node_id}: {move.reason}", self._clock.monotonic_s())
        self._meter.stopped("moved")
        self._wake.set()
