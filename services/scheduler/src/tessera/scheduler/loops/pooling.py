"""The pool of nodes: asks the policy every period, has the provider make a node or take one away, one at a time.

A node that leaves is closed first: nothing starts there any more. What it serves is ready elsewhere before it drains there, and only an
empty node is taken away. Nothing leaves while etcd is away, or when what it serves has nowhere to go. A node of the provider's that has
neither lease nor status stream is lost, and taken away too, so that whoever leads cleans up behind whoever led.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence

from tessera.clock import Clock
from tessera.coord.interface import Coordinator
from tessera.domain.errors import TesseraError, Unavailable
from tessera.domain.ids import NodeId
from tessera.domain.instance import InstanceState
from tessera.domain.records import LoadState
from tessera.policy.nodes.base import NodePolicy, NodeUse, PoolState
from tessera.program import Tasks
from tessera.scheduler.core.assignments import Phase, vet_drain
from tessera.scheduler.core.cluster import Cluster
from tessera.scheduler.core.observed import LIVE, ObservedInstance
from tessera.scheduler.loops.leading import Leading
from tessera.scheduler.loops.replacing import HANDOVER_S, START_BUDGET_S, require_etcd
from tessera.scheduler.loops.starting import Starter
from tessera.scheduler.ports import Meter, NodeProvider, Records
from tessera.telemetry import get_logger

log = get_logger("tessera.scheduler")

COME_S = 60.0
"""How long a node whose agent answers may take until it reports."""
EMPTY_S = 60.0
"""How long a node may take to get empty before it stays after all."""
IDLE_S = 30.0
"""An instance idle for longer is not started elsewhere: its next request starts it in milliseconds."""
LOST_S = 60.0
"""How long nothing may be heard of a node that the provider has."""
POLL_S = 0.1


class NodePool:
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
        provider: NodeProvider,
        policy: NodePolicy,
        wake: asyncio.Event,
        meter: Meter,
        most: int,
        period_s: float,
    ) -> None:
        """`most`: nodes that the provider may have at a time. `wake` is set when there is a record to write."""
        self._clock = clock
        self._tasks = tasks
        self._coordinator = coordinator
        self._leading = leading
        self._cluster = cluster
        self._records = records
        self._starter = starter
        self._provider = provider
        self._policy = policy
        self._wake = wake
        self._meter = meter
        self._most = most
        self._period_s = period_s
        self._state = PoolState()
        self._heard_s: dict[NodeId, float] = {}
        self._changing = False

    async def run(self) -> None:
        while True:
            if self._leading.leadership is None:
                self._state = PoolState()
                self._heard_s.clear()
            elif not self._changing:
                try:
                    await self.once()
                except TesseraError as error:
                    log.warning("the pool of nodes cannot be looked at", reason=str(error))
            await self._clock.sleep(self._period_s)

    async def once(self) -> None:
        """One look. What follows from it goes on beside the next looks, which wait for its end.

        Raises: TesseraError: the provider cannot be asked.
        """
        made = await self._provider.nodes()
        lost = self._lost(made)
        if lost is not None:
            self._begin(self._take_away(lost, f"nothing was heard of it for {LOST_S:.0f} s"), f"take lost node {lost} away")
            return
        plan = self._policy.step(self._state, self._uses(made))
        self._state = plan.state
        if plan.add and len(made) >= self._most:
            log.info("no node is added", reason=f"{plan.reason}; the provider has {len(made)}, at most {self._most}")
        elif plan.add:
            self._begin(self._add(plan.reason), "add a node")
        elif plan.remove:
            self._begin(self._leave(plan.remove[0], plan.reason), f"take node {plan.remove[0]} away")

    def _lost(self, made: frozenset[NodeId]) -> NodeId | None:
        """One of which nothing was heard for too long."""
        now_s, records = self._clock.monotonic_s(), self._records.nodes()
        silent = {name for name in made if name not in records and not ((node := self._cluster.observed.get(name)) and node.live)}
        self._heard_s = {name: self._heard_s.get(name, now_s) if name in silent else now_s for name in made}
        return min((name for name in silent if now_s - self._heard_s[name] > LOST_S), default=None)

    async def _take_away(self, node_id: NodeId, reason: str) -> None:
        log.warning("node is taken away", node=node_id, reason=reason)
        try:
            await require_etcd(self._coordinator)
            self._leading.require()
            await self._provider.remove(node_id)
            self._meter.pooled("removed")
        except TesseraError as error:
            log.warning("node stays", node=node_id, reason=str(error))

    def _begin(self, change: Coroutine[None, None, None], name: str) -> None:
        self._changing = True
        self._tasks.start(name, self._change(change))

    async def _change(self, change: Coroutine[None, None, None]) -> None:
        try:
            await change
        finally:
            self._changing = False

    def _uses(self, made: frozenset[NodeId]) -> list[NodeUse]:
        """Nodes that report."""
        uses = []
        for node_id, node in self._cluster.observed.items():
            if not node.live:
                continue
            states = [self._cluster.loads[item.instance_id].state for item in node.instances if item.instance_id in self._cluster.loads]
            share = min(1.0, node.report.runtime_cores / max(1, node.report.cpu_count))
            overloaded, interfered = (states.count(state) for state in (LoadState.OVERLOADED, LoadState.INTERFERED))
            uses.append(NodeUse(node_id, share, len(node.views), overloaded, interfered, node_id in made))
        return uses

    async def _add(self, reason: str) -> None:
        try:
            node_id = await self._provider.add()
        except TesseraError as error:
            log.warning("no node is added", reason=str(error))
            return
        log.info("node added", node=node_id, reason=reason)
        try:
            await self._reported(node_id)
            self._meter.pooled("added")
        except TesseraError as error:
            await self._take_away(node_id, str(error))

    async def _reported(self, node_id: NodeId) -> None:
        """Raises: Unavailable: it is gone, does not report in time, or reports to another scheduler that leads now."""
        until_s = self._clock.monotonic_s() + COME_S
        while not self._reports(node_id):
            self._leading.require()
            if self._clock.monotonic_s() > until_s or node_id not in await self._provider.nodes():
                raise Unavailable(f"it has ended, or does not report after {COME_S:.0f} s")
            await self._clock.sleep(POLL_S)

    def _reports(self, node_id: NodeId) -> bool:
        node = self._cluster.observed.get(node_id)
        return node is not None and node.live and node_id in self._records.nodes()

    async def _leave(self, node_id: NodeId, reason: str) -> None:
        log.info("node leaves", node=node_id, reason=reason)
        self._cluster.closed |= {node_id}
        try:
            await require_etcd(self._coordinator)
            await self._empty(node_id)
            await self._provider.remove(node_id)
            self._meter.pooled("removed")
        except TesseraError as error:
            log.warning("node stays", node=node_id, reason=str(error))
        finally:
            self._cluster.closed -= {node_id}

    async def _empty(self, node_id: NodeId) -> None:
        """Raises: TesseraError: what it serves has nowhere to go, it does not get empty in time, it reports no more, or another leads."""
        until_s = self._clock.monotonic_s() + EMPTY_S
        while there := self._live(node_id):
            if self._clock.monotonic_s() > until_s:
                raise Unavailable(f"{len(there)} instances are there still after {EMPTY_S:.0f} s")
            for item in there:
                await self._give_up(item)
            self._wake.set()
            await self._clock.sleep(POLL_S)

    async def _give_up(self, item: ObservedInstance) -> None:
        assignment = self._cluster.desired.assignments.get(item.instance_id)
        if item.state is not InstanceState.READY or assignment is None or assignment.phase is not Phase.ACTIVE:
            return
        if item.idle_s < IDLE_S:
            successor = self._elsewhere(item)
            if successor is None:
                others = [name for name in self._cluster.observed if name != item.node_id]
                successor = await self._starter.add(item.variant, others, START_BUDGET_S)
                await self._clock.sleep(HANDOVER_S)
            refused = vet_drain(self._cluster.find(item.instance_id), assignment, self._cluster.find(successor.instance_id))
            if refused is not None:
                raise Unavailable(f"instance {item.instance_id} stays: {refused}")
        self._cluster.stop(assignment.record, f"its node {item.node_id} leaves", self._clock.monotonic_s())
        self._meter.stopped("node leaves")

    def _live(self, node_id: NodeId) -> Sequence[ObservedInstance]:
        """What serves there or will. Raises: Unavailable: nobody can tell, because it does not report or another scheduler leads."""
        self._leading.require()
        node = self._cluster.observed.get(node_id)
        if node is None or not node.live:
            raise Unavailable("it does not report")
        return [item for item in node.instances if item.state in LIVE]

    def _elsewhere(self, item: ObservedInstance) -> ObservedInstance | None:
        """A ready instance of the same variant on a node that stays."""
        ending = self._cluster.desired.stopping() | self._starter.donors
        return next(
            (
                other
                for node_id, node in self._cluster.observed.items()
                if node.live and node_id not in self._cluster.closed
                for other in node.instances
                if other.variant == item.variant and other.state is InstanceState.READY and other.instance_id not in ending
            ),
            None,
        )
