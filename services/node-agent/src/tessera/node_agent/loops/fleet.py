"""The live runtimes of one trust domain on this node: who they are, what they hold, how new ones come and old ones go.

Invariant: what a runtime may map is pinned in the store under its id before it is told to map it, and stays pinned until it says that
it let go, or until its process has ended. Decides nothing (`core.runtimes` does).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from tessera.clock import Clock
from tessera.domain.errors import TesseraError, Unavailable
from tessera.domain.ids import Digest, InstanceId, RuntimeId, TrustDomain
from tessera.domain.instance import Stage, StartPath
from tessera.node_agent.core.demand import Demand
from tessera.node_agent.core.rates import Rate
from tessera.node_agent.core.runtimes import Purpose, RuntimeView, purpose_of, runtime_id_for
from tessera.node_agent.core.table import InstanceTable
from tessera.node_agent.ports import RandomBytes, Runtime, RuntimeActivity, Runtimes
from tessera.policy.pool.base import PoolDemand
from tessera.program import Tasks
from tessera.telemetry import get_logger
from tessera.tensorstore.interface import TensorStore

ACTIVITY_S = 2.0
RATE_SHARE = 0.9
"""Of a report interval: one that came a little early counts as a whole one."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
GONE_S = 10.0

_log = get_logger(__name__)


@dataclass(slots=True)
class Member:
    """`mappings` as sampled when it held `sampled_holds` digests. `pins`: how often something was pinned for it."""

    runtime: Runtime
    purpose: Purpose
    idle_since_s: float
    holds: set[Digest] = field(default_factory=set)
    pins: int = 0
    mappings: int = 0
    sampled_holds: int = 0
    tainted: bool = False
    leaving: bool = False
    hung: bool = False
    """Killed by us because it did not answer."""
    activity: RuntimeActivity | None = None
    cpu_cores: float = 0.0
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def runtime_id(self) -> RuntimeId:
        return self.runtime.hello.runtime_id


class Fleet:
    """All its live runtimes by id."""

    def __init__(
        self,
        runtimes: Runtimes,
        store: TensorStore,
        table: InstanceTable,
        trust_domain: TrustDomain,
        threads: int,
        clock: Clock,
        random_bytes: RandomBytes,
        tasks: Tasks,
        report_s: float = 1.0,
    ) -> None:
        self.trust_domain = trust_domain
        self.threads = threads
        self._runtimes = runtimes
        self._store = store
        self._table = table
        self._clock = clock
        self._random_bytes = random_bytes
        self._tasks = tasks
        self._report_s = report_s
        self._served: dict[InstanceId, Rate] = {}
        self._items: dict[InstanceId, Rate] = {}
        self._cpu: dict[RuntimeId, Rate] = {}
        self._members: dict[RuntimeId, Member] = {}
        self._forking: dict[str, set[asyncio.Future[None]]] = {}
        self._in_flight: set[asyncio.Future[None]] = set()
        self._ending = False
        self.used_flavours: set[str] = set()
        """Of which it has or had runtimes."""
        self._demand = Demand()
        self._not_before_s: dict[str, float] = {}
        self._pauses_s: dict[str, float] = {}
        self._lost: Callable[[Member, bool], None] = lambda member, asked: None
        runtimes.on_lost(self._on_lost)

    def on_lost(self, callback: Callable[[Member, bool], None]) -> None:
        """`callback(member, asked)`: its process ended; `asked` when we wanted that. Its holds are dropped after the callback."""
        self._lost = callback

    @property
    def start_path(self) -> StartPath:
        """How a new runtime comes to be."""
        return self._runtimes.start_path

    @property
    def stage(self) -> Stage:
        """The stage in which a new runtime is made."""
        return Stage(self._runtimes.start_path.value)

    @property
    def members(self) -> tuple[Member, ...]:
        return tuple(self._members.values())

    def find(self, runtime_id: RuntimeId | None) -> Member | None:
        return self._members.get(runtime_id) if runtime_id is not None else None

    def get(self, runtime_id: RuntimeId) -> Runtime:
        """Raises: Unavailable when it is gone."""
        member = self._members.get(runtime_id)
        if member is None:
            raise Unavailable(f"runtime {runtime_id} is gone")
        return member.runtime

    def views(self) -> tuple[RuntimeView, ...]:
        """Everything that may be chosen from, or counted."""
        counts = Counter(instance.runtime_id for instance in self._table if instance.alive)
        return tuple(
            RuntimeView(
                member.runtime_id,
                member.runtime.hello.flavour,
                self.trust_domain,
                member.runtime.hello.threads,
                counts[member.runtime_id],
                member.mappings + max(0, len(member.holds) - member.sampled_holds),
                frozenset(member.holds),
                member.purpose,
                member.tainted,
                member.idle_since_s,
            )
            for member in self._members.values()
            if not member.leaving
        )

    def forking(self) -> dict[str, int]:
        """Shared runtimes on their way, by flavour. A flavour whose last one failed counts one for a while: its pool can wait."""
        now_s = self._clock.monotonic_s()
        pausing = {flavour: 1 for flavour, until_s in self._not_before_s.items() if until_s > now_s}
        return pausing | {flavour: len(futures) for flavour, futures in self._forking.items() if futures}

    async def wait_for_one(self, flavour: str) -> bool:
        """Waits for one shared runtime that is on its way; False when there is none."""
        futures = self._forking.get(flavour)
        if not futures:
            return False
        await asyncio.wait(set(futures), return_when=asyncio.FIRST_COMPLETED)
        return True

    async def create(self, flavour: str, purpose: Purpose, threads: int | None = None) -> RuntimeId:
        """A new runtime.

        Raises:
            TesseraError: it did not come up.
            Unavailable: all of them are being ended.
        """
        if self._ending:
            raise Unavailable(f"no runtime of flavour {flavour} is made: the node agent is stopping")
        runtime_id = runtime_id_for(purpose, flavour, self.trust_domain, self._random_bytes(5))
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._forking.setdefault(flavour, set())
        self._in_flight.add(done)
        self.used_flavours.add(flavour)
        if purpose is Purpose.SHARED:
            waiting.add(done)
        try:
            began_s = self._clock.monotonic_s()
            runtime = await self._runtimes.create(flavour, runtime_id, threads or self.threads)
            now_s = self._clock.monotonic_s()
            self._demand = self._demand.created(flavour, now_s - began_s, now_s)
            self.add(runtime)
            self._pauses_s.pop(flavour, None)
        except TesseraError:
            pause_s = self._pauses_s[flavour] = min(LONGEST_PAUSE_S, 2 * self._pauses_s.get(flavour, FIRST_PAUSE_S / 2))
            self._not_before_s[flavour] = self._clock.monotonic_s() + pause_s
            raise
        finally:
            self._in_flight.discard(done)
            waiting.discard(done)
            done.set_result(None)
        return runtime_id

    def taken(self, runtime_id: RuntimeId) -> None:
        """A start is about to go into this runtime: where it is empty, the pool has one less."""
        member = self._members.get(runtime_id)
        if member is not None and member.purpose is Purpose.SHARED and not self._table.in_runtime(runtime_id):
            self._demand = self._demand.taken(member.runtime.hello.flavour, self._clock.monotonic_s())

    def demands(self, flavours: Iterable[str]) -> tuple[PoolDemand, ...]:
        """What is asked of the pools; an empty runtime's memory is the most that one has said."""
        sizes: dict[str, int] = {}
        for member in self.members:
            if member.activity is not None and not self._table.in_runtime(member.runtime_id):
                flavour = member.runtime.hello.flavour
                sizes[flavour] = max(sizes.get(flavour, 0), member.activity.private_bytes)
        return self._demand.asked(flavours, sizes, self._clock.monotonic_s())

    def refill(self, flavour: str) -> None:
        """Makes a warm runtime in the background."""
        self._tasks.start(f"make a runtime of {flavour}", self._refill(flavour))

    async def _refill(self, flavour: str) -> None:
        try:
            runtime_id = await self.create(flavour, Purpose.SHARED)
        except TesseraError as error:
            _log.warning("no warm runtime", flavour=flavour, reason=str(error))
        else:
            _log.info("warm runtime made", flavour=flavour, runtime_id=runtime_id)

    def add(self, runtime: Runtime) -> Member:
        """Takes in a new or adopted runtime; what it holds is pinned."""
        hello = runtime.hello
        member = Member(runtime, purpose_of(hello.runtime_id), self._clock.monotonic_s())
        member.holds = {digest for digest in hello.holds if self._store.has(digest)}
        self._store.pin(hello.runtime_id, member.holds)
        self._members[hello.runtime_id] = member
        self.used_flavours.add(hello.flavour)
        if not runtime.alive:  # it ended between its hello and now: nobody else will tell
            self._on_lost(hello.runtime_id)
        return member

    def pin(self, runtime_id: RuntimeId, digests: Collection[Digest]) -> None:
        """Before it maps them.

        Raises:
            Unavailable: the runtime is gone.
            NotFound: a blob is not in the store.
        """
        self.get(runtime_id)
        self._store.pin(runtime_id, digests)
        member = self._members[runtime_id]
        member.holds.update(digests)
        member.pins += 1

    def unpin(self, runtime_id: RuntimeId, digests: Iterable[Digest]) -> None:
        """It maps them no longer. What another instance in it needs stays, whatever is asked."""
        member = self._members.get(runtime_id)
        if member is None:
            return
        dropped = set(digests) - self._needed(runtime_id)
        member.holds -= dropped
        self._store.unpin(runtime_id, dropped)
        if not self._table.in_runtime(runtime_id):
            member.idle_since_s = self._clock.monotonic_s()

    def _needed(self, runtime_id: RuntimeId) -> set[Digest]:
        return {digest for instance in self._table.in_runtime(runtime_id) for digest in instance.blobs}

    async def unpin_unneeded(self) -> None:
        """Asks the runtimes for which more is pinned than their instances need, and unpins what they do not hold any more: of an instance
        that was draining when an earlier agent died nobody else hears the end. One that does not answer in time is asked the next time."""
        async with asyncio.TaskGroup() as group:
            for member in self.members:
                unneeded = member.holds - self._needed(member.runtime_id)
                if unneeded and member.purpose is not Purpose.MEASURE:  # what is measured is in no table
                    group.create_task(self._unpin_unneeded(member, unneeded))

    async def _unpin_unneeded(self, member: Member, unneeded: set[Digest]) -> None:
        pins = member.pins
        try:
            async with asyncio.timeout(ACTIVITY_S):
                ended = unneeded - (await member.runtime.declare()).holds
        except (TesseraError, TimeoutError) as error:
            _log.debug("a runtime does not say what it holds", runtime_id=member.runtime_id, reason=str(error))
            return
        if ended and member.pins == pins:  # the answer may be older than a pin for a start
            self.unpin(member.runtime_id, ended)

    def taint(self, runtime_id: RuntimeId | None) -> None:
        """It mapped corrupted bytes: nothing new goes into it."""
        member = self.find(runtime_id)
        if member is not None:
            member.tainted = True

    def retire(self, runtime_id: RuntimeId, drain_ms: int = 0) -> None:
        """Ends an empty runtime in the background; one that is taken meanwhile stays."""
        member = self._members.get(runtime_id)
        if member is None or member.leaving or self._table.in_runtime(runtime_id):
            return
        member.leaving = True
        self._tasks.start(f"end {runtime_id}", member.runtime.end(drain_ms))

    def discard(self, runtime_id: RuntimeId) -> None:
        """Kills one whose work is of no more use; nothing in it is lost that anybody wants."""
        member = self._members.get(runtime_id)
        if member is not None:
            member.leaving = True
            member.runtime.kill()

    async def kill(self, runtime_id: RuntimeId) -> None:
        """Kills it, when it lives, and waits until its loss has been dealt with."""
        member = self._members.get(runtime_id)
        if member is None:
            return
        member.hung = not member.leaving and member.runtime.alive
        member.runtime.kill()
        try:
            async with asyncio.timeout(GONE_S):
                await member.gone.wait()
        except TimeoutError:
            _log.error("a killed runtime does not end", runtime_id=runtime_id)

    async def end_all(self, drain_ms: int) -> None:
        """Ends every runtime, each after its drain. None is made from here on; what is on its way ends as well: it outlives its
        zygote, and nobody else would know of it."""
        self._ending = True
        if self._in_flight:
            await asyncio.wait(set(self._in_flight))
        async with asyncio.TaskGroup() as group:
            for member in self.members:
                if not member.leaving:
                    member.leaving = True
                    group.create_task(member.runtime.end(drain_ms))

    async def refresh(self, memory_age_s: float) -> None:
        """Asks every runtime what it does now. One that does not answer in time keeps what it said before. Memory may have been looked at
        `memory_age_s` seconds ago. What one says of instances that are not in it is passed over: it may have been taken over."""
        async with asyncio.TaskGroup() as group:
            for member in self.members:
                group.create_task(self._refresh(member, memory_age_s))
        self._served, self._items = (
            {name: rate for name, rate in rates.items() if self._table.find(name) is not None} for rates in (self._served, self._items)
        )
        self._cpu = {name: rate for name, rate in self._cpu.items() if name in self._members}

    async def _refresh(self, member: Member, memory_age_s: float) -> None:
        try:
            async with asyncio.timeout(ACTIVITY_S):
                member.activity = await member.runtime.activity(self._report_s, memory_age_s)
        except (TesseraError, TimeoutError) as error:
            _log.debug("no activity report", runtime_id=member.runtime_id, reason=str(error))
            return
        now_s = self._clock.monotonic_s()
        member.cpu_cores = self._cpu.setdefault(member.runtime_id, self._rate()).note(member.activity.cpu_s, now_s)
        for activity in member.activity.instances:
            if (found := self._table.find(activity.instance_id)) is not None and found.runtime_id == member.runtime_id:
                per_s = self._served.setdefault(activity.instance_id, self._rate()).note(activity.served, now_s)
                items_per_s = self._items.setdefault(activity.instance_id, self._rate()).note(activity.items, now_s)
                self._table.note(
                    activity.instance_id,
                    idle_s=activity.idle_s,
                    served=activity.served,
                    queue=activity.queue,
                    executing=activity.executing,
                    requests_per_s=per_s,
                    run_p50_ms=activity.run_p50_ms,
                    run_p99_ms=activity.run_p99_ms,
                    parked=activity.parked,
                    items_per_s=items_per_s,
                    run_items=activity.run_items,
                )

    def _rate(self) -> Rate:
        return Rate(RATE_SHARE * self._report_s)

    async def trim(self, digests: Collection[Digest] | None = None) -> None:
        """Has every runtime let go of blobs that it maps for no instance (all, or what maps one of `digests`). One that does not answer in
        time is passed over."""
        async with asyncio.TaskGroup() as group:
            for member in self.members:
                group.create_task(self._trim(member, digests))

    async def _trim(self, member: Member, digests: Collection[Digest] | None) -> None:
        try:
            async with asyncio.timeout(ACTIVITY_S):
                await member.runtime.trim(digests)
        except (TesseraError, TimeoutError) as error:
            _log.warning("a runtime does not let go of idle blobs", runtime_id=member.runtime_id, reason=str(error))

    async def sample_mappings(self) -> None:
        """Counts every runtime's mappings; in a thread, because the kernel takes milliseconds for large ones."""
        members = self.members
        holds = [len(member.holds) for member in members]
        counts = await asyncio.to_thread(lambda: [member.runtime.mappings() for member in members])
        for member, count, held in zip(members, counts, holds, strict=True):
            member.mappings, member.sampled_holds = count, held

    def _on_lost(self, runtime_id: RuntimeId) -> None:
        member = self._members.pop(runtime_id, None)
        if member is None:
            return
        try:
            self._lost(member, member.leaving)
        finally:
            self._store.unpin(runtime_id, None)
            member.gone.set()
