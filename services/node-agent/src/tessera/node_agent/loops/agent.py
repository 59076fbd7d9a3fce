"""The node agent as one object: what the RPCs ask of it, the reconcile loop and the graceful end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import chain

from tessera.clock import Clock
from tessera.domain.errors import TesseraError
from tessera.domain.ids import Digest, InstanceId, Term, TrustDomain
from tessera.domain.instance import InstanceState
from tessera.domain.records import AssignmentRecord
from tessera.node_agent.core.fencing import Fence
from tessera.node_agent.core.rates import Rate
from tessera.node_agent.core.reconciler import Observed, Plan, reconcile
from tessera.node_agent.core.runtimes import Purpose, RuntimeLimits
from tessera.node_agent.core.status import InstanceSummary, MachineSummary, NodeIdentity, NodeSummary, RuntimeSummary
from tessera.node_agent.core.table import Instance, InstanceTable, accepted
from tessera.node_agent.loops.domain import Domain, Domains
from tessera.node_agent.loops.fleet import RATE_SHARE
from tessera.node_agent.loops.flight import Flight
from tessera.node_agent.loops.inspector import Inspection
from tessera.node_agent.loops.pulse import Pulse
from tessera.node_agent.loops.starter import Starter
from tessera.node_agent.ports import Machine, Meter, Records, StartOrder, Terms
from tessera.program import Stop, Tasks
from tessera.telemetry import get_logger

SAMPLE_S = 5.0
MEMORY_AGE_S = 5.0
"""A look at the memory of a runtime with thousands of mappings takes tens of milliseconds of CPU."""
GATHER_S = 0.02
"""Changes within this time are one pass, and whoever waits for an answer gets it first."""
END_S = 10.0
"""How long after its drain the end waits for an instance: whoever ends an agent has less patience than a node that goes on."""

_log = get_logger(__name__)


class Agent:
    """One per process. What lives from before is adopted first (`loops.adoption`), then `run`; the RPCs may be served in between."""

    def __init__(
        self,
        identity: NodeIdentity,
        table: InstanceTable,
        domains: Domains,
        records: Records,
        terms: Terms,
        meter: Meter,
        limits: RuntimeLimits,
        tombstone_s: float,
        reconcile_s: float,
        clock: Clock,
        tasks: Tasks,
        pulse: Pulse,
        machine: Machine,
        report_s: float = 1.0,
    ) -> None:
        self.identity = identity
        self._table = table
        self._domains = domains
        self._records = records
        self._terms = terms
        self._meter = meter
        self._limits = limits
        self._tombstone_s = tombstone_s
        self._reconcile_s = reconcile_s
        self._clock = clock
        self._tasks = tasks
        self._pulse = pulse
        self._machine = machine
        self._cpu = Rate(RATE_SHARE * report_s)
        self._fence = Fence(terms.load())
        self._saving = asyncio.Lock()
        self._sampled_at_s = 0.0

    def domain(self, name: TrustDomain) -> Domain:
        """Raises: FailedPrecondition: this node does not have it."""
        return self._domains.get(name)

    def _starter_of(self, instance: Instance) -> Starter:
        return self._domains.get(instance.variant.trust_domain).starter

    # what the scheduler's leader asks

    async def start_instance(self, order: StartOrder) -> Instance:
        """Answers when the instance is ready, and the order's term is on disk.

        Raises:
            StaleTerm: this node has obeyed a newer leader.
            FailedPrecondition: this node does not have the variant's trust domain.
            TesseraError: why the instance is not ready.
        """
        self._fence.admit(order.term)
        starter = self._domains.get(order.variant.trust_domain).starter
        now_s = self._clock.monotonic_s()
        instance = Instance(
            order.instance_id,
            order.variant,
            order.artifact,
            order.generation,
            InstanceState.ACCEPTED,
            now_s,
            now_s + order.expires_after_s,
            order.start_path,
            order.donor,
        )
        told = f"told by term {order.term.revision}, request {order.request_id or '-'}"
        starter.begin(instance, told, Flight(sources=order.sources, delta=order.delta, donor_idle_s=order.donor_idle_s))
        ready = starter.ready(order.instance_id, order.budget_s)
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
        instance = self._table.find(instance_id)
        if instance is not None:  # what is not there is over already
            await self._starter_of(instance).stop(instance_id, f"told by term {term.revision}")

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

    async def summary(self, refresh: bool, memory_age_s: float = MEMORY_AGE_S) -> NodeSummary:
        """Everything about this node; with `refresh` the runtimes are asked first. Their memory may have been looked at `memory_age_s`
        seconds ago."""
        if refresh:
            async with asyncio.TaskGroup() as group:
                for domain in self._domains:
                    group.create_task(domain.fleet.refresh(memory_age_s))
        instances = tuple(self.describe(instance) for instance in self._table if instance.state is not InstanceState.GONE)
        runtimes = tuple(chain.from_iterable(self._runtimes_of(domain) for domain in self._domains))
        stores = {domain.name: await domain.store_status() for domain in self._domains}
        evictable = {domain.name: domain.evictor.evictable_bytes() for domain in self._domains}
        return NodeSummary(self.identity, instances, runtimes, stores, evictable, await self._machine_status())

    async def _machine_status(self) -> MachineSummary:
        use = await asyncio.to_thread(self._machine.use)
        cpu_cores = self._cpu.note(use.cpu_s, self._clock.monotonic_s())
        self._meter.machine(use, cpu_cores)
        return MachineSummary(cpu_cores, use.memory_bytes, use.memory_available_bytes, use.memory_pressure)

    def _runtimes_of(self, domain: Domain) -> list[RuntimeSummary]:
        found = []
        for member in domain.fleet.members:
            if member.leaving or member.purpose is Purpose.MEASURE:
                continue
            activity, hello = member.activity, member.runtime.hello
            found.append(
                RuntimeSummary(
                    member.runtime_id,
                    hello.pid,
                    hello.flavour,
                    domain.name,
                    hello.threads,
                    len(self._table.in_runtime(member.runtime_id)),
                    activity.private_bytes if activity else 0,
                    activity.shared_bytes if activity else 0,
                    activity.proportional_bytes if activity else 0,
                    member.cpu_cores,
                    member.runtime.container_id,
                )
            )
        return found

    def digests(self) -> Mapping[TrustDomain, Mapping[Digest, int]]:
        """What lies in each domain's store, with sizes in bytes."""
        return {domain.name: domain.store.digests() for domain in self._domains}

    async def check_stores(self, deep: bool) -> Mapping[TrustDomain, Inspection]:
        """One store after the other."""
        return {domain.name: await domain.inspector.check(deep) for domain in self._domains}

    def describe(self, instance: Instance) -> InstanceSummary:
        member = self._domains.get(instance.variant.trust_domain).fleet.find(instance.runtime_id)
        return InstanceSummary(instance, member.runtime.hello.pid if member is not None else 0)

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
        """One pass over each domain."""
        plans = self._plans(self._records.assignments())
        stops = sum(len(plan.stop) for _, plan in plans)
        if stops:
            # A view that lags must not cost a running instance: what is to be stopped is looked at in etcd itself.
            try:
                plans = self._plans(await self._records.read_assignments())
            except TesseraError as error:
                _log.info("etcd is away: everything is kept", reason=str(error), would_stop=stops)
                plans = self._plans(None)
        for domain, plan in plans:
            self._carry_out(domain, plan)
        async with asyncio.TaskGroup() as group:  # one whose zygote does not come back holds up none of the others
            for domain, plan in plans:
                group.create_task(_refill(domain, plan.fork))
        await self._sample()

    def _plans(self, desired: Mapping[InstanceId, AssignmentRecord] | None) -> list[tuple[Domain, Plan]]:
        return [(domain, self._plan(domain, desired)) for domain in self._domains]

    def _plan(self, domain: Domain, desired: Mapping[InstanceId, AssignmentRecord] | None) -> Plan:
        instances = tuple(instance for instance in self._table if instance.variant.trust_domain == domain.name)
        fleet = domain.fleet
        demands = fleet.demands(domain.pooled)
        observed = Observed(instances, fleet.views(), fleet.forking(), domain.starter.starting, demands)
        if desired is not None:
            desired = {name: record for name, record in desired.items() if record.variant.trust_domain == domain.name}
        return reconcile(desired, observed, domain.pooled, self._limits, self._tombstone_s, self._clock.monotonic_s())

    def _carry_out(self, domain: Domain, plan: Plan) -> None:
        for refusal in plan.refused:
            _log.error("assignment refused", reason=refusal)
        for instance_id in plan.confirm:
            self._table.note(instance_id, expires_at_s=None)
            self._table.tell(instance_id, self._clock.monotonic_s(), "confirmed by its record")
        for instruction in plan.stop:
            self._tasks.start(f"stop {instruction.instance_id}", domain.starter.stop(instruction.instance_id, instruction.reason))
        for start in plan.start:
            self._start_assigned(domain, start.assignment)
        for instance_id in plan.forget:
            self._table.forget(instance_id)
        for runtime_id in plan.retire:
            _log.info("runtime retired", runtime_id=runtime_id)
            domain.fleet.retire(runtime_id)

    def _start_assigned(self, domain: Domain, record: AssignmentRecord) -> None:
        try:
            domain.starter.begin(accepted(record, self._clock.monotonic_s()), f"assigned by term {record.term.revision}")
        except TesseraError as error:
            _log.error("assignment refused", instance_id=record.instance_id, reason=str(error))

    async def _sample(self) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - self._sampled_at_s >= SAMPLE_S:
            self._sampled_at_s = now_s
            for domain in self._domains:
                await domain.fleet.sample_mappings()
                self._tasks.start(f"unpin what nobody needs in {domain.name}", domain.fleet.unpin_unneeded())
            members = [member for domain in self._domains for member in domain.fleet.members]
            for flavour in self.identity.flavours:
                mine = [member for member in members if member.runtime.hello.flavour == flavour]
                known = [member.activity for member in mine if member.activity is not None]
                self._meter.runtimes(flavour, len(mine), known, sum(member.cpu_cores for member in mine))

    # the end

    async def end(self, drain_ms: int) -> None:
        """The graceful end: every instance drains, every runtime and zygote ends. An instance that is not over `END_S` after its drain ends
        with its runtime."""
        try:
            async with asyncio.timeout(drain_ms / 1e3 + END_S), asyncio.TaskGroup() as group:
                for instance in self._table:
                    if instance.alive:
                        group.create_task(self._starter_of(instance).stop(instance.instance_id, "the node agent stops", drain_ms))
        except TimeoutError:
            _log.warning("instances end with their runtimes", instances=[each.instance_id for each in self._table if each.alive])
        async with asyncio.TaskGroup() as group:
            for domain in self._domains:
                group.create_task(_end(domain, drain_ms))

    async def leave(self) -> None:
        """Runtimes and zygotes go on without an agent."""
        for domain in self._domains:
            await domain.runtimes.leave()


async def _refill(domain: Domain, flavours: Sequence[str]) -> None:
    if not flavours:
        return
    try:
        await domain.runtimes.prepare(flavours)  # a zygote that died comes back
    except TesseraError as error:
        _log.warning("no warm runtimes; they are tried again", trust_domain=domain.name, reason=str(error))
        return
    for flavour in flavours:
        domain.fleet.refill(flavour)


async def _end(domain: Domain, drain_ms: int) -> None:
    await domain.fleet.end_all(drain_ms)
    await domain.runtimes.end()
