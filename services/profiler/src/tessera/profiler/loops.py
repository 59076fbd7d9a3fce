"""A run: the asyncio shell around the pure parts (docs/states/profile-run.md).

Guarantees: one variant at a time per node, whoever asks; every row is stored when it was measured, so that an end at any moment loses
one row at most; when the caller goes away, measuring ends. Which row comes next is decided by `core.planning`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from tessera.clock import Clock
from tessera.domain.errors import Conflict, FailedPrecondition, Internal, ResourceExhausted, TesseraError, Unavailable, error_of
from tessera.domain.ids import NodeId, ProfileClass, TrustDomain
from tessera.domain.records import LatencyRow, LoadCost, MetaCostRecord, NodeRecord, ProfileRecord
from tessera.domain.transformation import ATEN, Observation
from tessera.policy.transform.costs import lines_of
from tessera.policy.transform.fitting import fit
from tessera.profiler.core.grid import Cell, below, cell_of
from tessera.profiler.core.merging import merge, steadier
from tessera.profiler.core.planning import Limits, Taken, next_cell, row_seconds, settled
from tessera.profiler.core.targets import Target, targets
from tessera.profiler.core.valuing import Valued, valued
from tessera.profiler.ports import Agents, MeasureOrder, Records
from tessera.program import Tasks
from tessera.telemetry import get_logger, span

log = get_logger("tessera.profiler")

STORE_TRIES = 10
STORE_RETRY_S = 1.0
OBSERVED_S = 10.0
"""How long transformations are measured, once per class."""
LEAST_OBSERVED, MOST_OBSERVED = 32, 4096
MOST_ERROR = 0.5
"""Costs that miss what they were fitted to by more say that the node was not at rest. Transformations that are held dear without a reason
are made no more, and then nothing corrects it."""


@dataclass(frozen=True, slots=True)
class RunRequest:
    """Empty strings and version 0 mean all, or the newest."""

    trust_domain: TrustDomain
    model: str
    version: int = 0
    variant: str = ""
    profile_class: str = ""
    quick: bool = False
    again: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """`fraction` of all rows of the run that are done, 0..1. `profile` when a variant is done on a class."""

    message: str
    fraction: float
    profile: ProfileRecord | None = None


@dataclass(frozen=True, slots=True)
class RunLimits:
    full: Limits = field(default_factory=Limits)
    quick_seconds_per_row: float = 1.0
    row_timeout_s: float = 900.0

    def of(self, quick: bool) -> Limits:
        """A quick run is one row: what it costs to be surer of it is a full run's to spend."""
        return replace(self.full, seconds_per_row=self.quick_seconds_per_row, repeats=False) if quick else self.full


class Profiler:
    def __init__(self, *, clock: Clock, tasks: Tasks, records: Records, agents: Agents, limits: RunLimits) -> None:
        self._clock = clock
        self._tasks = tasks
        self._records = records
        self._agents = agents
        self._limits = limits
        self._nodes: defaultdict[NodeId, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def run(self, request: RunRequest) -> AsyncGenerator[Progress, None]:
        """Measures what is missing; classes side by side, the variants of a class one after another.

        Raises:
            NotFound, FailedPrecondition: nothing of this name, or nothing that can be measured.
            TesseraError: at the end, when some targets failed; the kind of the first, and how many there were.
        """
        version = await self._records.resolve(request.trust_domain, request.model, request.version)
        found = targets(
            str(version),
            await self._records.variants(version),
            await self._records.nodes(request.trust_domain),
            request.variant,
            request.profile_class,
        )
        run = _Run(self, request, found)
        async with aclosing(run.events()) as events:
            async for progress in events:
                yield progress

    async def meta_costs(self, trust_domain: TrustDomain) -> list[MetaCostRecord]:
        """Of every class where they were measured."""
        return await self._records.all_meta_costs(trust_domain)

    async def profiles(self, trust_domain: TrustDomain, model: str, version: int) -> list[Valued]:
        """Stored profiles of a version, by variant and class."""
        key = await self._records.resolve(trust_domain, model, version)
        found = await self._records.profiles(key)
        return valued(found, await self._records.variants(key), await self._records.nodes(trust_domain), await self._records.model(key))


class _Run:
    """One request. Its work runs in tasks of its own; `events` ends them when it is closed."""

    def __init__(self, owner: Profiler, request: RunRequest, found: Sequence[Target]) -> None:
        self._owner = owner
        self._request = request
        self._targets = found
        self._limits = owner._limits.of(request.quick)
        self._events: asyncio.Queue[Progress | None] = asyncio.Queue()
        self._total = 0
        self._settled: dict[tuple[str, ProfileClass], int] = {}
        self._failures: list[TesseraError] = []

    async def events(self) -> AsyncGenerator[Progress, None]:
        planned: dict[ProfileClass, list[tuple[Target, _Writer]]] = defaultdict(list)
        known: list[tuple[Target, ProfileRecord]] = []
        for target in self._targets:
            record = await self._owner._records.profile(target.key, target.profile_class)
            writer = _Writer(self._owner, target, self._request.again, record)
            nothing = next_cell(target.grid(self._request.quick), writer.rows, (), self._limits) is None
            if record is not None and nothing and (self._request.quick or not record.quick):
                known.append((target, record))
                continue
            self._total += len(target.grid(self._request.quick))
            self._note(target, writer)
            planned[target.profile_class].append((target, writer))
        for target, record in known:
            yield Progress(f"{target.key} on {target.profile_class}: already measured", self._fraction(), record)
        due = await self._unobserved()
        workers = [
            self._owner._tasks.start(f"profile {name}", self._work(planned[name], name, due.get(name, ())))
            for name in sorted({*planned, *due})
        ]
        try:
            left = len(workers)
            while left:
                progress = await self._events.get()
                if progress is None:
                    left -= 1
                else:
                    yield progress
        finally:
            for worker in workers:
                worker.cancel()
        if self._failures:
            first = self._failures[0]
            raise error_of(first.kind, f"{len(self._failures)} of {len(self._targets)} profiles failed; the first: {first.message}")

    async def _unobserved(self) -> dict[ProfileClass, tuple[NodeRecord, ...]]:
        """Classes of which a full run has to find out what transformations take, and the nodes that can tell."""
        if self._request.quick:
            return {}
        able: defaultdict[ProfileClass, dict[NodeId, NodeRecord]] = defaultdict(dict)
        for target in self._targets:
            able[target.profile_class] |= {node.node_id: node for node in target.nodes if ATEN in node.flavours}
        return {name: tuple(nodes.values()) for name, nodes in able.items() if nodes and await self._lacks_costs(name)}

    async def _lacks_costs(self, profile_class: ProfileClass) -> bool:
        known = None if self._request.again else await self._owner._records.meta_costs(self._request.trust_domain, profile_class)
        return known is None

    async def _work(self, plans: Sequence[tuple[Target, _Writer]], profile_class: ProfileClass, observers: Sequence[NodeRecord]) -> None:
        """All targets of one class, then its transformations. A failed one does not keep the others from being measured."""
        try:
            for target, writer in plans:
                try:
                    await self._target(target, writer)
                except TesseraError as error:
                    log.warning("profile failed", variant=str(target.key), profile_class=target.profile_class, reason=error.message)
                    self._failures.append(error)
                    self._tell(f"{target.key} on {target.profile_class} failed: {error.message}")
            if observers:
                await self._observe(profile_class, observers)
        finally:
            self._events.put_nowait(None)

    async def _observe(self, profile_class: ProfileClass, nodes: Sequence[NodeRecord]) -> None:
        """Stores, whole, what transformations take on a class. No part of what was asked for: where it fails that is told, and the next run
        tries again."""
        domain = self._request.trust_domain
        error: TesseraError | None = None
        for node in nodes:
            try:
                async with self._owner._nodes[node.node_id]:
                    if not await self._lacks_costs(profile_class):
                        return  # another run was here
                    seen = await self._observed(node)
                record = await asyncio.to_thread(_costs, domain, profile_class, seen, self._owner._clock.wall_s())
                await self._owner._records.store_meta_costs(record)
                self._tell(f"transformations on {profile_class}: {len(seen)} observed, error {record.error:.0%}")
                return
            except Unavailable as unavailable:
                error = unavailable
            except TesseraError as refused:
                error = refused
                break
        assert error is not None
        log.warning("transformations not observed", profile_class=profile_class, reason=error.message)
        self._tell(f"transformations on {profile_class}: {error.message}")

    async def _observed(self, node: NodeRecord) -> list[Observation]:
        seen: list[Observation] = []
        agents, budget_s = self._owner._agents, self._owner._limits.row_timeout_s
        async with aclosing(agents.observe(node.agent_address, self._request.trust_domain, OBSERVED_S, budget_s)) as events:
            async for event in events:
                if isinstance(event, str):
                    self._tell(f"transformations on {node.node_id}: {event}")
                elif len(seen) < MOST_OBSERVED:
                    seen.append(event)
        return seen

    async def _target(self, target: Target, writer: _Writer) -> None:
        """Measures until there is nothing left, or the budget is spent. A row for which there is no memory, or no time between requests,
        ends its sweep.

        Raises:
            TesseraError: a row could not be measured; ResourceExhausted when none could.
        """
        taken: list[Taken] = []
        grid, nodes = target.grid(self._request.quick), list(target.nodes)
        with span("tessera.profiler.measure", variant=str(target.key), profile_class=target.profile_class):
            while (cell := next_cell(grid, writer.rows, taken, self._limits)) is not None:
                try:
                    taken.append(Taken(cell, await self._cell(target, cell, row_seconds(taken, self._limits), nodes, writer)))
                except ResourceExhausted as error:
                    grid = below(grid, cell)
                    if not grid:
                        raise
                    self._tell(f"{target.key}: {cell}: {error.message}")
                self._note(target, writer)
            if not self._request.quick:
                await writer.complete()
        self._note(target, None)
        assert writer.record is not None  # a run's first cell is measured whatever it takes, and a grid without cells raised
        seconds = sum(each.seconds for each in taken)
        log.info("profiled", variant=str(target.key), profile_class=target.profile_class, rows=len(writer.record.rows), seconds=seconds)
        self._tell(f"{target.key} on {target.profile_class}: done, {len(taken)} rows in {seconds:.0f} s", writer.record)

    async def _cell(self, target: Target, cell: Cell, seconds: float, nodes: list[NodeRecord], writer: _Writer) -> float:
        """Measures for `seconds` at most, on the first of `nodes` that answers; one that does not is asked last from then on. Returns how
        long it took."""
        unavailable: Unavailable | None = None
        for node in tuple(nodes):
            lock = self._owner._nodes[node.node_id]
            if lock.locked():
                self._tell(f"{target.key}: waiting for another measurement on {node.node_id}")
            async with lock:
                try:
                    return await self._measure(target, cell, seconds, node, writer)
                except Unavailable as error:
                    # What is stored stays; another node of the class measures the rest.
                    unavailable = error
                    nodes.remove(node)
                    nodes.append(node)
        assert unavailable is not None
        raise unavailable

    async def _measure(self, target: Target, cell: Cell, seconds: float, node: NodeRecord, writer: _Writer) -> float:
        """Raises: TesseraError; Internal when the agent ended before the row was there."""
        limits, clock = self._limits, self._owner._clock
        order = MeasureOrder(node.node_id, target.key, target.variant.artifact, cell, seconds, limits.min_repeats, limits.spread)
        begun_s = clock.monotonic_s()
        async with aclosing(self._owner._agents.measure(node.agent_address, order, self._owner._limits.row_timeout_s)) as events:
            async for measured in events:
                if isinstance(measured, str):
                    begun_s = clock.monotonic_s()
                    self._tell(f"{target.key} on {node.node_id}: {measured}")
                elif isinstance(measured, LoadCost):
                    writer.take_load(measured)
                elif cell_of(measured) == cell:
                    took_s = clock.monotonic_s() - begun_s
                    await writer.take_row(measured)
                    self._tell(f"{target.key}: {cell}: {measured.p50_ms:.2f} ms")
                    return took_s
        raise Internal(f"{target.key} on {node.node_id}: no row for {cell}")

    def _note(self, target: Target, writer: _Writer | None) -> None:
        """How far a target is; None: at its end. Never further back: a row that is measured again may open what seemed to be settled."""
        grid, place = target.grid(self._request.quick), (str(target.key), target.profile_class)
        count = len(grid) if writer is None else settled(grid, writer.rows, self._limits)
        self._settled[place] = max(count, self._settled.get(place, 0))

    def _tell(self, message: str, profile: ProfileRecord | None = None) -> None:
        self._events.put_nowait(Progress(message, self._fraction(), profile))

    def _fraction(self) -> float:
        return min(1.0, sum(self._settled.values()) / self._total) if self._total else 1.0


def _costs(domain: TrustDomain, profile_class: ProfileClass, seen: Sequence[Observation], now_unix_s: float) -> MetaCostRecord:
    """Raises: FailedPrecondition: too few were seen, or no costs fit what was."""
    if len(seen) < LEAST_OBSERVED:
        raise FailedPrecondition(f"{len(seen)} observed within {OBSERVED_S:.0f} s, at least {LEAST_OBSERVED} are needed")
    costs = fit(seen)
    assert costs.error is not None
    if costs.error > MOST_ERROR:
        raise FailedPrecondition(
            f"{len(seen)} observed, but costs miss them by {costs.error:.0%}, more than {MOST_ERROR:.0%}: others were busy"
        )
    return MetaCostRecord(domain, profile_class, ATEN, costs.base_ms, lines_of(costs), costs.error, len(seen), now_unix_s)


class _Writer:
    """Stores a target's measurements as they come."""

    def __init__(self, owner: Profiler, target: Target, again: bool, record: ProfileRecord | None) -> None:
        self._owner = owner
        self._target = target
        self._again = again
        self._rows: dict[Cell, LatencyRow] = {}
        self._loads: list[LoadCost] = []
        self._complete = False
        self.record = record

    @property
    def rows(self) -> tuple[LatencyRow, ...]:
        """What need not be measured: this run's rows, and the stored ones unless all is to be measured again."""
        stored = self.record.rows if self.record is not None and not self._again else ()
        return tuple(({cell_of(row): row for row in stored} | self._rows).values())

    def take_load(self, load: LoadCost) -> None:
        """Stored with the next row: a profile without a row says nothing about serving."""
        self._loads.append(load)

    async def take_row(self, row: LatencyRow) -> None:
        cell = cell_of(row)
        self._rows[cell] = steadier(self._rows.get(cell), row)
        await self._store()

    async def complete(self) -> None:
        """The run over the full grid has ended; what it left out it left out on purpose."""
        self._complete = True
        await self._store()

    async def _store(self) -> None:
        """Compare-and-swap; who loses reads again and merges anew. Raises: Unavailable, NotFound, Conflict after many tries."""
        target, owner = self._target, self._owner
        for attempt in range(STORE_TRIES):
            try:
                known = await owner._records.profile(target.key, target.profile_class)
                merged = merge(
                    known,
                    target.key,
                    target.profile_class,
                    self._rows.values(),
                    self._loads,
                    owner._clock.wall_s(),
                    complete=self._complete,
                    replace_loads=self._again,
                )
                await owner._records.store(merged, known)
                self.record = merged
                return
            except (Conflict, Unavailable) as error:
                if attempt == STORE_TRIES - 1:
                    raise
                log.info("profile not stored; tried again", variant=str(target.key), reason=error.message)
                await owner._clock.sleep(0.0 if isinstance(error, Conflict) else STORE_RETRY_S)
