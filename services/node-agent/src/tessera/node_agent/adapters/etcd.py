"""This node's part of etcd: its records under a lease, the assignments it watches, the scheduler's leader.

Level-triggered: what shall stand in etcd is kept here, and a loop makes it so. Whoever publishes never waits. A lost lease means a new
session and everything written again; what an earlier agent of this node left is taken over or removed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tessera.clock import Clock
from tessera.coord import keys, records
from tessera.coord.interface import Coordinator, Delete, LeaseLost, ModRevisionIs, Put, Session
from tessera.coord.view import View
from tessera.domain.errors import Conflict, TesseraError
from tessera.domain.ids import InstanceId, TrustDomain
from tessera.domain.records import AssignmentRecord, InstanceRecord, NodeRecord, ServiceRecord
from tessera.node_agent.core.status import NodeIdentity
from tessera.program import Stop
from tessera.telemetry import get_logger

RETRY_S = 0.5
SERVICE_KIND = "node-agent"

_log = get_logger(__name__)


class EtcdRecords:
    """Implements `Records`."""

    def __init__(
        self,
        coordinator: Coordinator,
        identity: NodeIdentity,
        trust_domains: Iterable[TrustDomain],
        lease_ttl_s: float,
        clock: Clock,
        changed: Callable[[], None],
    ) -> None:
        self._coordinator = coordinator
        self._identity = identity
        self._ttl_s = lease_ttl_s
        self._clock = clock
        self._wanted: dict[str, bytes] = {}
        self._dirty: set[str] = set()
        self._revisions: dict[str, int | None] = {}
        """Key -> revision of our last write, or None where it has to be looked at."""
        self._wake = asyncio.Event()
        self._session: Session | None = None
        self._domains = tuple(trust_domains)
        self._prefixes = [keys.assignments_of(domain, identity.node_id) for domain in self._domains]
        self._views = [View(coordinator, prefix, AssignmentRecord) for prefix in self._prefixes]
        for view in self._views:
            view.on_change(lambda key, old, new: changed())
        self._nodes = {domain: View(coordinator, keys.nodes(domain), NodeRecord) for domain in self._domains}
        self._watched: tuple[View[Any], ...] = (*self._views, *self._nodes.values())

    def announce(self, store_budget_bytes: Mapping[TrustDomain, int], runtime_threads: int) -> None:
        """The node's own records, one in each trust domain that it serves, and that of its service."""
        me = self._identity
        for domain in self._domains:
            node = NodeRecord(
                me.node_id,
                me.host_id,
                me.address,
                me.start_address,
                me.relay_address,
                me.build_class,
                me.profile_class,
                me.flavours,
                me.cpu_count,
                store_budget_bytes[domain],
                domain,
                runtime_threads,
                me.usd_per_hour,
                me.peer_address,
            )
            self._want(keys.node(domain, me.node_id), node)
        service = ServiceRecord(SERVICE_KIND, me.node_id, me.address, {"relay_address": me.relay_address, "host_id": me.host_id})
        self._want(keys.service(SERVICE_KIND, me.node_id), service)

    def nodes(self, trust_domain: TrustDomain) -> tuple[NodeRecord, ...]:
        """All nodes of one of this node's trust domains, itself among them, as last seen."""
        return tuple(self._nodes[trust_domain].values())

    def assignments(self) -> Mapping[InstanceId, AssignmentRecord] | None:
        """The nodes are seen too by then: who starts what is assigned asks them for what it lacks."""
        if not all(view.synced.is_set() for view in self._watched):
            return None
        return {record.instance_id: record for view in self._views for record in view.values()}

    async def read_assignments(self) -> Mapping[InstanceId, AssignmentRecord]:
        listings = [await self._coordinator.list(prefix) for prefix in self._prefixes]
        found = [records.decode(AssignmentRecord, item.value) for listing in listings for item in listing.items]
        return {record.instance_id: record for record in found}

    def publish(self, record: InstanceRecord) -> None:
        self._want(keys.instance(record.variant.trust_domain, self._identity.node_id, record.instance_id), record)

    def withdraw(self, trust_domain: TrustDomain, instance_id: InstanceId) -> None:
        key = keys.instance(trust_domain, self._identity.node_id, instance_id)
        if self._wanted.pop(key, None) is not None:
            self._touch(key)

    async def leader(self) -> str | None:
        """The address of the scheduler's leader. Raises: Unavailable."""
        found = await self._coordinator.leader(keys.SCHEDULER_ELECTION)
        return found.value.decode() if found is not None and found.value else None

    async def watch(self, stop: Stop) -> None:
        """Follows the assignments and the nodes until `stop`."""
        async with asyncio.TaskGroup() as group:
            followers = [group.create_task(view.run()) for view in self._watched]
            await stop.wait()
            for follower in followers:
                follower.cancel()

    async def keep(self, stop: Stop) -> None:
        """Keeps etcd as wanted until `stop`; then nothing of this agent is left there."""
        while not stop.is_set():
            try:
                session = self._session = await self._coordinator.session(self._ttl_s)
                self._revisions = dict.fromkeys(self._wanted)
                self._dirty |= set(self._wanted) | await self._left_behind()
                self._wake.set()
                await self._write_until_lost(session, stop)
            except TesseraError as error:
                _log.info("records wait for etcd", reason=str(error))
                await stop.wait_for(RETRY_S)
            if self._session is not None and not stop.is_set():
                await self._session.close()

    async def close(self, *, leave: bool) -> None:
        """Takes this agent's keys away at once; with `leave` they stay until the lease runs out, for the next agent to take over."""
        if self._session is not None and not leave:
            await self._session.close()
        self._session = None

    def _want(self, key: str, record: Any) -> None:
        self._wanted[key] = records.encode(record)
        self._touch(key)

    def _touch(self, key: str) -> None:
        self._dirty.add(key)
        self._wake.set()

    async def _left_behind(self) -> set[str]:
        """Instances that an earlier agent of this node published and this one does not have."""
        prefixes = [keys.instance(domain, self._identity.node_id, InstanceId("")) for domain in self._domains]
        items = [item for prefix in prefixes for item in (await self._coordinator.list(prefix)).items]
        self._revisions.update((item.key, item.mod_revision) for item in items)
        return {item.key for item in items} - self._wanted.keys()

    async def _write_until_lost(self, session: Session, stop: Stop) -> None:
        while not stop.is_set() and not session.lost.is_set():
            if not self._dirty:
                self._wake.clear()
                await self._sleep(session, stop)
            for key in sorted(self._dirty):
                try:
                    await self._write(key, session)
                except LeaseLost:
                    return
                except Conflict:
                    self._revisions[key] = None  # somebody else wrote it: look first
                except TesseraError as error:
                    self._revisions[key] = None  # it may have been written all the same
                    _log.debug("a record waits for etcd", key=key, reason=str(error))
                    if await stop.wait_for(RETRY_S):
                        return

    async def _sleep(self, session: Session, stop: Stop) -> None:
        """Until there is something to write, the lease is lost, or the program stops."""
        async with asyncio.TaskGroup() as group:
            waits = [group.create_task(waiting) for waiting in (self._wait_wake(), self._wait_lost(session), stop.wait())]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for waiting in waits:
                waiting.cancel()

    async def _wait_wake(self) -> None:
        await self._wake.wait()

    async def _wait_lost(self, session: Session) -> None:
        await session.lost.wait()

    async def _write(self, key: str, session: Session) -> None:
        """One compare-and-swap.

        Raises:
            Conflict: somebody else wrote it since; LeaseLost: see there.
            Unavailable: etcd is away.
        """
        value = self._wanted.get(key)
        revision = self._revisions.get(key, 0)  # what was not there when this session began, and not written since, is absent
        if revision is None:
            found = await self._coordinator.get(key)
            revision = found.mod_revision if found is not None else 0
        if value is not None:
            self._revisions[key] = await self._coordinator.transact([ModRevisionIs(key, revision)], [Put(key, value, session.lease_id)])
        else:
            if revision:
                await self._coordinator.transact([ModRevisionIs(key, revision)], [Delete(key)])
            self._revisions.pop(key, None)
        if self._wanted.get(key) == value:  # else it is written again, with what is wanted now
            self._dirty.discard(key)
