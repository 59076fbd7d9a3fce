"""A restarted agent takes over what lived on: runtimes with their holds and instances, and the assignments of its earlier life."""

from __future__ import annotations

import asyncio

from tessera.clock import Clock
from tessera.domain.errors import NotFound, TesseraError
from tessera.domain.ids import InstanceId, RuntimeId, TrustDomain, VariantKey, VariantName, VersionNumber, parse_reference
from tessera.domain.instance import InstanceState, StartPath
from tessera.node_agent.core.runtimes import Purpose, purpose_of
from tessera.node_agent.core.status import NodeIdentity, record_of
from tessera.node_agent.core.table import Instance, InstanceTable, accepted
from tessera.node_agent.loops.domain import Domain, Domains
from tessera.node_agent.ports import HeldInstance, Hello, Notes, Records
from tessera.program import to_the_end
from tessera.telemetry import get_logger

LOOK_BACK_S = 3.0

_log = get_logger(__name__)


class Adoption:
    """Once per life of an agent: `adopt`, then `look_back`, before anybody is answered."""

    def __init__(
        self, identity: NodeIdentity, table: InstanceTable, domains: Domains, records: Records, notes: Notes, grace_s: float, clock: Clock
    ) -> None:
        self._identity = identity
        self._table = table
        self._domains = domains
        self._records = records
        self._notes = notes
        self._grace_s = grace_s
        self._clock = clock

    async def adopt(self) -> None:
        """Takes over the runtimes that live from before: their holds first, then their instances with the generations they have. Nothing
        is fetched or reclaimed before this has returned."""
        await to_the_end(map(self._adopt, self._domains))  # each may have to wait for loads
        self._notes.keep(member.runtime_id for domain in self._domains for member in domain.fleet.members)

    async def _adopt(self, domain: Domain) -> None:
        adopted = await domain.runtimes.adopt()
        for runtime in adopted:
            domain.fleet.add(runtime)
        for runtime in adopted:
            hello = runtime.hello
            if domain.fleet.find(hello.runtime_id) is None:
                continue  # it ended while others were waited for
            if purpose_of(hello.runtime_id) is Purpose.MEASURE:
                domain.fleet.retire(hello.runtime_id)  # whoever wanted to know is gone
                continue
            for held in hello.instances:
                if domain.fleet.find(hello.runtime_id) is not None:
                    await self._adopt_instance(domain, hello, held)
        if adopted:
            _log.info("adopted", trust_domain=domain.name, runtimes=len(adopted), instances=len(self._table))

    async def _adopt_instance(self, domain: Domain, hello: Hello, held: HeldInstance) -> None:
        now_s = self._clock.monotonic_s()
        note = self._notes.read(hello.runtime_id, held.instance_id)
        instance = Instance(
            held.instance_id,
            variant_of(held.variant, domain.name),
            held.artifact,
            held.generation,
            InstanceState.READY,
            now_s,
            now_s + self._grace_s,
            StartPath.BIND,
            runtime_id=hello.runtime_id,
            blobs=hello.holds,
        )
        try:
            if held.artifact is not None:
                load = domain.larder.load(held.artifact)
                domain.fleet.pin(hello.runtime_id, load.blobs)
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
            await _unload(domain, hello.runtime_id, held.instance_id)
            return
        if note is not None:
            record, shared_bytes, private_bytes = note
            changes |= {"start_path": record.start_path, "fetched": record.fetched, "stages": record.stages, "max_batch": record.max_batch}
            changes |= {"shared_bytes": shared_bytes, "private_bytes": private_bytes}
        self._table.note(held.instance_id, **changes)
        self._records.publish(record_of(self._identity, self._table.get(held.instance_id)))

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
                self._domains.get(record.variant.trust_domain).starter.bury(accepted(record, self._clock.monotonic_s()))


async def _unload(domain: Domain, runtime_id: RuntimeId, instance_id: InstanceId) -> None:
    """A runtime that does not is killed: what it serves nobody would know."""
    try:
        await domain.fleet.get(runtime_id).unload(instance_id, 0)
    except TesseraError as error:
        _log.warning("a runtime does not unload", runtime_id=runtime_id, reason=str(error))
        await domain.fleet.kill(runtime_id)


def variant_of(text: str, trust_domain: TrustDomain) -> VariantKey:
    """MODEL@VERSION/VARIANT, as a runtime names it.

    Raises:
        InvalidInput: it is not that.
    """
    reference = parse_reference(text)
    return VariantKey(trust_domain, reference.name, reference.version or VersionNumber(1), reference.variant or VariantName("unknown"))
