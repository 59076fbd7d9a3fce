"""Starts and stops of instances: fetch, choose or make a runtime, hold, load, and the way back.

One flight per instance, however many callers wait for it. Nothing on the path waits for a disk or for etcd: records are written
behind. A blob is pinned for whoever will map it before it is mapped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from tessera import failpoint
from tessera.clock import Clock
from tessera.domain.errors import (
    AlreadyExists,
    DataCorrupted,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    NotFound,
    ResourceExhausted,
    TesseraError,
    Unavailable,
)
from tessera.domain.ids import Digest, InstanceId, RuntimeId
from tessera.domain.instance import InstanceState, Stage, StartPath
from tessera.node_agent.core.artifacts import Load
from tessera.node_agent.core.opened import OpenedPrograms
from tessera.node_agent.core.pinned import unfit
from tessera.node_agent.core.poison import PoisonLedger
from tessera.node_agent.core.runtimes import Purpose, RuntimeLimits, Wanted, choose_runtime
from tessera.node_agent.core.status import NodeIdentity, record_of
from tessera.node_agent.core.table import Instance, InstanceTable
from tessera.node_agent.loops.corruption import Corruption
from tessera.node_agent.loops.eviction import Evictor
from tessera.node_agent.loops.fetching import FetchProgress, note_fetched
from tessera.node_agent.loops.fleet import Fleet
from tessera.node_agent.loops.flight import Flight, StarterSettings
from tessera.node_agent.loops.larder import Larder, holder_of
from tessera.node_agent.loops.losses import Losses
from tessera.node_agent.loops.stopwatch import Loading, Stopwatch
from tessera.node_agent.loops.transforming import Transformer
from tessera.node_agent.ports import LoadReport, Meter, Notes, Records
from tessera.program import Tasks
from tessera.repository.fetch import Fetched
from tessera.telemetry import get_logger

ROOM_TRIES, ROOM_PAUSE_S = 8, 0.25
"""How often a start that does not fit looks for instances that have become idle; two seconds are what a caller waits anyway."""

_log = get_logger(__name__)


class Starter:
    """Carries out one trust domain's starts and stops on one node."""

    def __init__(
        self,
        identity: NodeIdentity,
        table: InstanceTable,
        fleet: Fleet,
        larder: Larder,
        evictor: Evictor,
        poison: PoisonLedger,
        limits: RuntimeLimits,
        records: Records,
        notes: Notes,
        meter: Meter,
        transformer: Transformer,
        settings: StarterSettings,
        clock: Clock,
        tasks: Tasks,
        changed: Callable[[], None],
    ) -> None:
        self._identity = identity
        self._table = table
        self._fleet = fleet
        self._larder = larder
        self._evictor = evictor
        self._poison = poison
        self._limits = limits
        self._records = records
        self._notes = notes
        self._meter = meter
        self._transformer = transformer
        self._settings = settings
        self._clock = clock
        self._tasks = tasks
        self._changed = changed
        self._opened = OpenedPrograms()
        self._flights: dict[InstanceId, Flight] = {}
        self._stopping: dict[InstanceId, asyncio.Event] = {}
        self._losses = Losses(table, poison, meter, records, notes, clock, tasks, self._fail, changed)
        self._corruption = Corruption(table, fleet, larder, tasks, self._fail)
        fleet.on_lost(self._losses.lost)

    @property
    def starting(self) -> int:
        return len(self._flights)

    @property
    def holders(self) -> frozenset[str]:
        """Who holds blobs for starts under way."""
        return frozenset(holder_of(instance_id) for instance_id in self._flights)

    def begin(self, instance: Instance, why: str, flight: Flight | None = None) -> None:
        """Accepts an instance and starts it in the background; nothing when it is here already. `flight` is what the start is told.

        Raises:
            AlreadyExists: its id is here with another generation or artifact, or its generation with another id.
            FailedPrecondition: it belongs to another trust domain.
            InvalidInput: it names no artifact, and its model is not built in.
        """
        instance = replace(instance, artifact=self._larder.artifact_of(instance.variant, instance.artifact))
        known = self._table.find(instance.instance_id)
        if known is not None:
            if (known.generation, known.artifact) != (instance.generation, instance.artifact):
                raise AlreadyExists(
                    f"instance {instance.instance_id!r} is here with generation {known.generation:016x} of artifact {known.artifact}"
                )
            if known.expires_at_s is not None and instance.expires_at_s is not None:
                self._table.note(known.instance_id, expires_at_s=max(known.expires_at_s, instance.expires_at_s))
            return
        if instance.variant.trust_domain != self._fleet.trust_domain:
            raise FailedPrecondition(f"variant {instance.variant} is of trust domain {instance.variant.trust_domain!r}, not of "
                                     f"{self._fleet.trust_domain!r}")  # fmt: skip
        self._table.add(instance, why)
        flight = self._flights[instance.instance_id] = flight or Flight()
        self._tasks.start(f"start {instance.instance_id}", self._fly(instance, flight))

    def bury(self, instance: Instance) -> None:
        """Takes in an instance whose runtime went with an earlier agent: failed from the start."""
        try:
            self._table.add(instance, "assigned in an earlier agent's life")
        except AlreadyExists as error:
            _log.error("assignment refused", instance_id=instance.instance_id, reason=str(error))
            return
        self._fail(instance.instance_id, Unavailable(f"the runtime of instance {instance.instance_id} is gone since before this agent"))

    async def ready(self, instance_id: InstanceId, budget_s: float) -> Instance:
        """Waits until a begun instance is ready.

        Raises:
            DeadlineExceeded: it is not, after `budget_s`; its start goes on.
            Cancelled: it was stopped meanwhile.
            TesseraError: why it failed.
        """
        flight = self._flights.get(instance_id)
        if flight is not None:
            try:
                async with asyncio.timeout(budget_s):
                    await flight.done.wait()
            except TimeoutError as error:
                where = self._table.get(instance_id).whereabouts
                raise DeadlineExceeded(f"instance {instance_id} is {where} after {budget_s:.3f} s; its start goes on") from error
        instance = self._table.get(instance_id)
        if instance.error is None and flight is not None:
            flight.check_wanted(instance_id)
        if instance.state is InstanceState.READY:
            return instance
        raise instance.error or FailedPrecondition(f"instance {instance_id} is {instance.state}")

    async def stop(self, instance_id: InstanceId, reason: str, drain_ms: int | None = None) -> None:
        """Drains an instance and takes it out of its runtime; returns when it is over. What is not there is over already."""
        flight = self._flights.get(instance_id)
        if flight is not None:
            flight.stop_reason = flight.stop_reason or reason
            flight.cancel.set()
            await flight.over.wait()
        instance = self._table.find(instance_id)
        if instance is None or not instance.alive:
            return
        other = self._stopping.get(instance_id)
        if other is not None:
            await other.wait()
            return
        over = self._stopping[instance_id] = asyncio.Event()
        try:
            await self._stop(instance, reason, self._settings.drain_ms if drain_ms is None else drain_ms)
        finally:
            del self._stopping[instance_id]
            over.set()
            self._changed()

    async def _stop(self, instance: Instance, reason: str, drain_ms: int) -> None:
        self._table.move(instance.instance_id, InstanceState.DRAINING, self._clock.monotonic_s(), reason)
        self._records.withdraw(instance.variant.trust_domain, instance.instance_id)
        _log.info("instance stops", instance_id=instance.instance_id, variant=str(instance.variant), reason=reason)
        assert instance.runtime_id is not None
        try:
            await self._fleet.get(instance.runtime_id).unload(instance.instance_id, drain_ms)
        except NotFound:
            pass  # its runtime has let go of it already
        except TesseraError as error:
            _log.warning("a runtime does not unload", runtime_id=instance.runtime_id, reason=str(error))
            await self._fleet.kill(instance.runtime_id)
        if self._table.get(instance.instance_id).alive:
            self._table.move(instance.instance_id, InstanceState.GONE, self._clock.monotonic_s(), "unloaded")
        self._fleet.unpin(instance.runtime_id, instance.blobs)
        self._notes.remove(instance.runtime_id, instance.instance_id)

    async def _fly(self, instance: Instance, flight: Flight) -> None:
        watch = Stopwatch(self._clock)
        instance_id = instance.instance_id
        try:
            await self._bring_up(instance, flight, watch)
        except TesseraError as error:
            self._fail(instance_id, error)
            await self._losses.explained(self._table.get(instance_id).runtime_id)
        except Exception as error:
            _log.exception("a start failed unexpectedly", instance_id=instance_id)
            self._fail(instance_id, Internal(f"start of instance {instance_id}: {type(error).__name__}: {error}"))
        finally:
            del self._flights[instance_id]
            flight.end()
            try:
                if self._settings.behind_s and self._ready_one(instance_id) is not None:
                    await self._clock.sleep(self._settings.behind_s)
            finally:
                self._larder.release(instance_id)
                self._changed()
        await self._record(instance_id)
        self._tell(instance_id, watch)

    async def _bring_up(self, instance: Instance, flight: Flight, watch: Stopwatch) -> None:
        instance_id, artifact = instance.instance_id, instance.artifact
        assert artifact is not None
        isolated = self._poison.isolated(instance.variant, self._clock.monotonic_s())
        load = self._larder.take(artifact, instance_id)
        if load is None:
            load = await self._fetch(instance_id, artifact, flight, watch)
        self._table.note(instance_id, shared_bytes=sum(load.blobs.values()), max_batch=load.max_batch)
        path = instance.start_path
        for last in (False, True):
            flight.check_wanted(instance_id)
            runtime_id = await self._placed(instance_id, load, path, isolated, watch)
            try:
                report = await self._load(instance_id, runtime_id, load, flight, watch, whole=last or isolated)
                break
            except DataCorrupted as error:
                self._fleet.taint(runtime_id)
                if last or flight.done.is_set():
                    raise
                await self._corruption.replace(instance_id, load, flight.sources, watch)
                self._table.tell(instance_id, self._clock.monotonic_s(), f"loads once more: {error}")
                if path is StartPath.TRANSFORM:
                    path = StartPath.BIND  # the donor's runtime takes nothing more
        outcome = {"stages": watch.stages(), "private_bytes": report.private_bytes, "opening": False}
        if flight.done.is_set():
            self._table.note(instance_id, **outcome)
        else:
            self._table.move(instance_id, InstanceState.READY, self._clock.monotonic_s(), f"in {runtime_id}", **outcome)
        if path is StartPath.TRANSFORM:
            self._transformer.done(instance)

    async def _placed(self, instance_id: InstanceId, load: Load, path: StartPath, isolated: bool, watch: Stopwatch) -> RuntimeId:
        if path is StartPath.TRANSFORM:
            return self._transformer.place(self._table.get(instance_id), load, isolated)
        return await self._place(instance_id, load, path, isolated, watch)

    async def _fetch(self, instance_id: InstanceId, artifact: Digest, flight: Flight, watch: Stopwatch) -> Load:
        self._table.move(instance_id, InstanceState.FETCHING, self._clock.monotonic_s(), f"artifact {artifact[:12]}")
        with watch.stage(Stage.FETCH):
            await failpoint.async_hit("node_agent.before_fetch")
            try:
                load, fetched, tries = await self._fetch_into_room(instance_id, artifact, flight)
            except ResourceExhausted as error:
                raise unfit(self._table.get(instance_id).variant, error, self._table, self._larder.sizes()) from error
        note_fetched(self._table, instance_id, fetched, self._clock.monotonic_s(), made_room=tries > 0)
        return load

    async def _fetch_into_room(self, instance_id: InstanceId, artifact: Digest, flight: Flight) -> tuple[Load, Fetched, int]:
        """Where the store is full of what idle instances hold, these make room, for as long as the start is wanted: so often."""
        follow, check_wanted = FetchProgress(self._table, instance_id, self._clock), partial(flight.check_wanted, instance_id)
        tries = 0
        while True:
            check_wanted()  # a fetch that finds no room does not look at `cancel`
            try:
                return *await self._larder.fetch(artifact, instance_id, flight.cancel, flight.sources, follow), tries
            except ResourceExhausted:
                if (tries := tries + 1) == ROOM_TRIES:
                    raise
            if not await self._evictor.make_room(self._larder.lacking(artifact), instance_id, self.stop, check_wanted):
                await self._clock.sleep(ROOM_PAUSE_S)

    async def _place(self, instance_id: InstanceId, load: Load, path: StartPath, isolated: bool, watch: Stopwatch) -> RuntimeId:
        """Reserves a place: from the moment of the choice the instance counts in that runtime."""
        wanted = Wanted(load.flavour, self._fleet.trust_domain, self._fleet.threads, load.blobs, path, isolated)
        waited = False
        while True:
            choice = choose_runtime(wanted, self._fleet.views(), self._limits)
            runtime_id = choice.runtime_id
            if runtime_id is None:
                with watch.stage(self._fleet.stage):
                    may_wait = choice.purpose is Purpose.SHARED and path is StartPath.BIND
                    if may_wait and await self._fleet.wait_for_one(load.flavour):
                        waited = True
                        continue
                    runtime_id = await self._fleet.create(load.flavour, choice.purpose)
                    waited = True
            start_path = self._fleet.start_path if waited else StartPath.BIND
            self._fleet.taken(runtime_id)
            self._table.note(instance_id, runtime_id=runtime_id, start_path=start_path, blobs=frozenset(load.blobs))
            self._table.tell(instance_id, self._clock.monotonic_s(), f"{start_path} into {runtime_id}: {choice.reason}")
            return runtime_id

    async def _load(
        self, instance_id: InstanceId, runtime_id: RuntimeId, load: Load, flight: Flight, watch: Stopwatch, whole: bool
    ) -> LoadReport:
        """Unless it has to be `whole`, the start of what has been opened before is answered as soon as it is mapped."""
        instance = self._table.get(instance_id)
        bind = instance.start_path is StartPath.BIND
        early = bind and not whole and not self._settings.verify and self._opened.knows(load.flavour, load.program)
        try:
            await failpoint.async_hit("node_agent.before_load")
            self._fleet.pin(runtime_id, load.blobs)
            runtime = self._fleet.get(runtime_id)
            if instance.state is not InstanceState.LOADING:  # a second try stays where it is: states go forward only
                self._table.move(
                    instance_id, InstanceState.MAPPED, self._clock.monotonic_s(), f"{len(load.blobs)} blobs pinned for {runtime_id}"
                )
                self._table.move(instance_id, InstanceState.LOADING, self._clock.monotonic_s(), "")
            transform = instance.start_path is StartPath.TRANSFORM
            rest = Stage.TRANSFORM if transform else Stage.LOAD if bind else self._fleet.stage
            with watch.loading(rest) as loading:
                how = (flight.delta, flight.donor_idle_s)
                becoming = await self._transformer.becoming(instance, load, *how) if transform else None
                mapped = partial(self._mapped, instance_id, flight, watch, loading) if early else None
                report = await runtime.load(
                    instance_id,
                    instance.generation,
                    instance.variant,
                    load.artifact,
                    self._settings.verify,
                    self._settings.load_timeout_s,
                    mapped,
                    becoming,
                )
                loading.take(report.stages)
            self._opened.opened(load.flavour, load.program)
            return report
        except TesseraError as error:
            if instance.start_path is not StartPath.TRANSFORM:  # a donor that refuses says nothing of the program
                self._opened.failed(load.flavour, load.program)
            if isinstance(error, Unavailable):
                # Dead, or hanging, which is as bad. Its loss is dealt with (and blamed) as any other before this start ends.
                await self._fleet.kill(runtime_id)
                raise
            # Refused: nothing of it stays held.
            self._table.note(instance_id, runtime_id=None, blobs=frozenset())
            self._fleet.unpin(runtime_id, load.blobs)
            if instance.start_path is StartPath.TRANSFORM:
                await self._transformer.refused(instance, self._fail)
            raise

    def _mapped(self, instance_id: InstanceId, flight: Flight, watch: Stopwatch, loading: Loading, report: LoadReport) -> None:
        """It is opened while its start's answer travels; requests wait for it in its runtime."""
        if self._table.get(instance_id).state is not InstanceState.LOADING:
            return  # lost by now
        loading.take(report.stages)
        now_s = self._clock.monotonic_s()
        self._table.move(instance_id, InstanceState.READY, now_s, "mapped, being opened", stages=watch.stages(), opening=True)
        flight.done.set()

    def _fail(self, instance_id: InstanceId, error: TesseraError) -> None:
        instance = self._table.find(instance_id)
        if instance is None or not instance.alive:
            return
        self._table.move(instance_id, InstanceState.FAILED, self._clock.monotonic_s(), f"{error.kind}: {error}", error=error)
        self._records.withdraw(instance.variant.trust_domain, instance_id)
        self._meter.failed(error.kind)
        _log.warning("instance failed", instance_id=instance_id, variant=str(instance.variant), kind=error.kind, reason=str(error))

    def _tell(self, instance_id: InstanceId, watch: Stopwatch) -> None:
        instance = self._table.find(instance_id)
        if instance is None:
            return
        watch.record_spans(instance)
        if instance.state is InstanceState.READY:
            self._meter.started(instance.start_path, instance.stages)
            total_ms = round(sum(stage.ms for stage in instance.stages), 3)
            _log.info("instance ready", instance_id=instance_id, variant=str(instance.variant), runtime_id=instance.runtime_id,
                      start_path=str(instance.start_path), fetched=instance.fetched, total_ms=total_ms)  # fmt: skip

    def _ready_one(self, instance_id: InstanceId) -> Instance | None:
        instance = self._table.find(instance_id)
        return instance if instance is not None and instance.state is InstanceState.READY else None

    async def _record(self, instance_id: InstanceId) -> None:
        """Unless it was stopped or lost since, or is while this is written: what was withdrawn stays so."""
        instance = self._ready_one(instance_id)
        if instance is not None:
            record = record_of(self._identity, instance)
            self._records.publish(record)
            await asyncio.to_thread(self._notes.write, record, instance.shared_bytes, instance.private_bytes)
            if self._ready_one(instance_id) is None:
                self._notes.remove(record.runtime_id, instance_id)
