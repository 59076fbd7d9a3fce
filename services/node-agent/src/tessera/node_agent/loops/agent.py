"""The node agent as one object: what the RPCs ask of it, the reconcile loop, adoption and the graceful end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from tessera.clock import Clock
from tessera.domain.errors import NotFound, TesseraError
from tessera.domain.ids import (
    DEFAULT_TRUST_DOMAIN,
    Digest,
    InstanceId,
    Term,
    TrustDomain,
    VariantKey,
    VariantName,
    VersionNumber,
    parse_reference,
)
from tessera.domain.instance import InstanceState, StartPath
from tessera.domain.records import AssignmentRecord
from tessera.node_agent.core.fencing import Fence
from tessera.node_agent.core.reconciler import Observed, Plan, reconcile
from tessera.node_agent.core.runtimes import Purpose, RuntimeLimits, purpose_of
from tessera.node_agent.core.status import InstanceSummary, NodeIdentity, NodeSummary, RuntimeSummary, record_of
from tessera.node_agent.core.table import Instance, InstanceTable
from tessera.node_agent.loops.fleet import Fleet
from tessera.node_agent.loops.larder import Larder
from tessera.node_agent.loops.pulse import Pulse
from tessera.node_agent.loops.starter import Starter
from tessera.node_agent.ports import HeldInstance, Hello, Meter, Notes, Records, Runtimes, StartOrder, Terms
from tessera.program import Stop, Tasks
from tessera.telemetry import get_logger
from tessera.tensorstore.interface import StoreStatus, TensorStore

STORE_STATUS_S = 5.0
LOOK_BACK_S = 3.0
SAMPLE_S = 5.0
GATHER_S = 0.02
"""Changes within this time are one pass, and whoever waits for an answer gets it first."""

_log = get_logger(__name__)


class Agent:
    """One per process. `adopt` first, then `run`; the RPCs may be served in between."""

    def __init__(
        self,
        identity: NodeIdentity,
        table: InstanceTable,
        fleet: Fleet,
        starter: Starter,
        larder: Larder,
        store: TensorStore,
        runtimes: Runtimes,
        records: Records,
        notes: Notes,
        terms: Terms,
        meter: Meter,
        limits: RuntimeLimits,
        adoption_grace_s: float,
        tombstone_s: float,
        reconcile_s: float,
        clock: Clock,
        tasks: Tasks,
        pulse: Pulse,
    ) -> None:
        self.identity = identity
        self._table = table
        self._fleet = fleet
        self._starter = starter
        self._larder = larder
        self._store = store
        self._runtimes = runtimes
        self._records = records
        self._notes = notes
        self._terms = terms
        self._meter = meter
        self._limits = limits
        self._adoption_grace_s = adoption_grace_s
        self._tombstone_s = tombstone_s
        self._reconcile_s = reconcile_s
        self._clock = clock
        self._tasks = tasks
        self._pulse = pulse
        self._fence = Fence(terms.load())
        self._saving = asyncio.Lock()
        self._store_status: StoreStatus | None = None
        self._store_status_at_s = 0.0
        self._store_blobs: frozenset[Digest] = frozenset()
        self._sampled_at_s = 0.0

    # what the scheduler's leader asks

    async def start_instance(self, order: StartOrder) -> Instance:
        """Answers when the instance is ready, and the order's term is on disk.

        Raises:
            StaleTerm: this node has obeyed a newer leader.
            TesseraError: why the instance is not ready.
        """
        self._fence.admit(order.term)
        now_s = self._clock.monotonic_s()
        accepted = Instance(
            order.instance_id,
            order.variant,
            order.artifact,
            order.generation,
            InstanceState.ACCEPTED,
            now_s,
            now_s + order.expires_after_s,
            order.start_path,
        )
        self._starter.begin(accepted, f"told by term {order.term.revision}, request {order.request_id or '-'}")
        ready = self._starter.ready(order.instance_id, order.budget_s)
        if self._fence.durable:
            return await ready
        saved, outcome = await asyncio.gather(self._save_term(), ready, return_exceptions=True)  # once per leader, beside the start
        if isinstance(outcome, BaseException):
            raise outcome
        if saved is not None:
            raise saved
        return outcome

    async def stop_instance(self, term: Term, instance_id: InstanceId) -> None:
        """Answers when it is gone. Raises: StaleTerm."""
        self._fence.admit(term)
        if not self._fence.durable:
            await self._save_term()
        await self._starter.stop(instance_id, f"told by term {term.revision}")

    async def observe_term(self, term: Term) -> None:
        """The leader introduced itself: its term is on disk before it asks for anything. An older one is passed over."""
        if self._fence.newest is None or not term.is_older_than(self._fence.newest):
            self._fence.admit(term)
            await self._save_term()

    async def _save_term(self) -> None:
        async with self._saving:
            term = self._fence.newest
            if term is None or self._fence.durable:
                return
            await asyncio.to_thread(self._terms.save, term)
            self._fence.persisted(term)
            _log.info("obeying a new leader", cluster_id=term.cluster_id, revision=term.revision)

    # what it says about itself

    async def summary(self, refresh: bool) -> NodeSummary:
        """Everything about this node; with `refresh` the runtimes are asked first."""
        if refresh:
            await self._fleet.refresh()
        instances = tuple(self.describe(instance) for instance in self._table if instance.state is not InstanceState.GONE)
        runtimes = []
        for member in self._fleet.members:
            held = len(self._table.in_runtime(member.runtime_id))
            if member.leaving or member.purpose is Purpose.MEASURE:
                continue
            activity, hello = member.activity, member.runtime.hello
            runtimes.append(
                RuntimeSummary(
                    member.runtime_id,
                    hello.pid,
                    hello.flavour,
                    self.identity.trust_domain if held else "",
                    hello.threads,
                    held,
                    activity.private_bytes if activity else 0,
                    activity.proportional_bytes if activity else 0,
                )
            )
        return NodeSummary(self.identity, instances, tuple(runtimes), await self._status_of_store())

    def digests(self) -> Mapping[Digest, int]:
        return self._store.digests()

    async def check_store(self, deep: bool) -> list[str]:
        """Findings in words; with `deep` every blob is hashed, in a thread."""
        return await asyncio.to_thread(lambda: self._store.check(deep=deep))

    def describe(self, instance: Instance) -> InstanceSummary:
        member = self._fleet.find(instance.runtime_id)
        return InstanceSummary(instance, member.runtime.hello.pid if member is not None else 0)

    async def _status_of_store(self) -> StoreStatus:
        """Every few seconds, and when blobs came or went: counting what is mapped but deleted walks /proc."""
        now_s, blobs = self._clock.monotonic_s(), frozenset(self._store.digests())
        if self._store_status is None or blobs != self._store_blobs or now_s - self._store_status_at_s >= STORE_STATUS_S:
            self._store_status_at_s, self._store_blobs = now_s, blobs
            self._store_status = status = await asyncio.to_thread(self._store.status)
            self._meter.store(status.used_bytes, status.pinned_bytes, status.ingested_bytes)
        return self._store_status

    # reconciling

    async def run(self, stop: Stop) -> None:
        """Reconciles on every change, and every `reconcile_s` all the same, until `stop`."""
        while not stop.is_set():
            try:
                await self.reconcile_once()
            except TesseraError as error:
                _log.warning("reconciling failed; it is tried again", reason=str(error))
            await self._pulse.wait_or(stop, self._reconcile_s)
            await stop.wait_for(GATHER_S)

    async def reconcile_once(self) -> None:
        """One pass. Raises: FailedPrecondition when a zygote does not come back."""
        plan = self._plan(self._records.assignments())
        if plan.stop:
            # A view that lags must not cost a running instance: what is to be stopped is looked at in etcd itself.
            try:
                plan = self._plan(await self._records.read_assignments())
            except TesseraError as error:
                _log.info("etcd is away: everything is kept", reason=str(error), would_stop=len(plan.stop))
                plan = self._plan(None)
        self._carry_out(plan)
        if plan.fork:
            await self._runtimes.prepare()  # a zygote that died comes back
            for flavour in plan.fork:
                self._fleet.refill(flavour)
        await self._sample()

    def _plan(self, desired: Mapping[InstanceId, AssignmentRecord] | None) -> Plan:
        observed = Observed(tuple(self._table), self._fleet.views(), self._fleet.forking(), self._starter.starting)
        return reconcile(desired, observed, self.identity.flavours, self._limits, self._tombstone_s, self._clock.monotonic_s())

    def _carry_out(self, plan: Plan) -> None:
        for refusal in plan.refused:
            _log.error("assignment refused", reason=refusal)
        for instance_id in plan.confirm:
            self._table.note(instance_id, expires_at_s=None)
            self._table.tell(instance_id, self._clock.monotonic_s(), "confirmed by its record")
        for instruction in plan.stop:
            self._tasks.start(f"stop {instruction.instance_id}", self._starter.stop(instruction.instance_id, instruction.reason))
        for start in plan.start:
            self._start_assigned(start.assignment)
        for instance_id in plan.forget:
            self._table.forget(instance_id)
        for runtime_id in plan.retire:
            _log.info("runtime retired", runtime_id=runtime_id)
            self._fleet.retire(runtime_id)

    def _accepted(self, record: AssignmentRecord) -> Instance:
        now_s = self._clock.monotonic_s()
        return Instance(
            record.instance_id, record.variant, record.artifact, record.generation, InstanceState.ACCEPTED, now_s, None, record.start_path
        )

    def _start_assigned(self, record: AssignmentRecord) -> None:
        try:
            self._starter.begin(self._accepted(record), f"assigned by term {record.term.revision}")
        except TesseraError as error:
            _log.error("assignment refused", instance_id=record.instance_id, reason=str(error))

    async def _sample(self) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - self._sampled_at_s >= SAMPLE_S:
            self._sampled_at_s = now_s
            await self._fleet.sample_mappings()
            for flavour in self.identity.flavours:
                self._meter.runtimes(flavour, sum(1 for member in self._fleet.members if member.runtime.hello.flavour == flavour))

    # beginning and end

    async def adopt(self) -> None:
        """Takes over the runtimes that live from before: their holds first, then their instances with the generations they have. Nothing
        is fetched or reclaimed before this has returned."""
        adopted = await self._runtimes.adopt()
        for runtime in adopted:
            self._fleet.add(runtime)
        for runtime in adopted:
            hello = runtime.hello
            if purpose_of(hello.runtime_id) is Purpose.MEASURE:
                self._fleet.retire(hello.runtime_id)  # whoever wanted to know is gone
                continue
            for held in hello.instances:
                await self._adopt_instance(hello, held)
        if adopted:
            _log.info("adopted", runtimes=len(adopted), instances=len(self._table))

    async def look_back(self) -> None:
        """After adoption, before anybody is answered: what an earlier agent's life was assigned and no living runtime holds was lost with
        its runtime. Its generation has served and is not loaded again: it shows as failed, the leader takes the record away, and the next
        request starts its model anew. Without etcd there is nothing to look at, and nothing is done."""
        try:
            async with asyncio.timeout(LOOK_BACK_S):
                desired = await self._records.read_assignments()
        except (TesseraError, TimeoutError) as error:
            _log.info("etcd is away: earlier assignments are not looked at", reason=str(error))
            return
        for instance_id, record in desired.items():
            if self._table.find(instance_id) is None:
                self._starter.bury(self._accepted(record))

    async def _adopt_instance(self, hello: Hello, held: HeldInstance) -> None:
        now_s = self._clock.monotonic_s()
        note = self._notes.read(hello.runtime_id, held.instance_id)
        instance = Instance(
            held.instance_id,
            variant_of(held.variant, self.identity.trust_domain),
            held.artifact,
            held.generation,
            InstanceState.READY,
            now_s,
            now_s + self._adoption_grace_s,
            StartPath.BIND,
            hello.runtime_id,
            blobs=hello.holds,
        )
        try:
            if held.artifact is not None:
                load = self._larder.load(held.artifact)
                self._fleet.pin(hello.runtime_id, load.blobs)
                changes = {"blobs": frozenset(load.blobs), "shared_bytes": sum(load.blobs.values()), "max_batch": load.max_batch}
            else:
                changes = {}
        except (NotFound, TesseraError) as error:
            _log.warning("an adopted instance's artifact is not in the store", instance_id=held.instance_id, reason=str(error))
            changes = {}
        try:
            self._table.add(instance, f"adopted with {hello.runtime_id}")
        except TesseraError as error:
            _log.error("an instance is here twice; the later one is unloaded", instance_id=held.instance_id, reason=str(error))
            await self._fleet.get(hello.runtime_id).unload(held.instance_id, 0)
            return
        if note is not None:
            record, shared_bytes, private_bytes = note
            changes |= {"start_path": record.start_path, "fetched": record.fetched, "stages": record.stages, "max_batch": record.max_batch}
            changes |= {"shared_bytes": shared_bytes, "private_bytes": private_bytes}
        self._table.note(held.instance_id, **changes)
        self._records.publish(record_of(self.identity, self._table.get(held.instance_id)))

    async def end(self, drain_ms: int) -> None:
        """The graceful end: every instance drains, every runtime and zygote ends."""
        async with asyncio.TaskGroup() as group:
            for instance in self._table:
                if instance.alive:
                    group.create_task(self._starter.stop(instance.instance_id, "the node agent stops", drain_ms))
        await self._fleet.end_all(drain_ms)
        await self._runtimes.end()

    async def leave(self) -> None:
        """Runtimes and zygotes go on without an agent."""
        await self._runtimes.leave()


def variant_of(text: str, trust_domain: TrustDomain = DEFAULT_TRUST_DOMAIN) -> VariantKey:
    """MODEL@VERSION/VARIANT, as a runtime names it.

    Raises:
        InvalidInput: it is not that.
    """
    reference = parse_reference(text)
    return VariantKey(trust_domain, reference.name, reference.version or VersionNumber(1), reference.variant or VariantName("unknown"))
