"""A run: the asyncio shell around the pure parts (docs/states/profile-run.md).

Guarantees: one variant at a time per node, whoever asks; every row is stored when it was measured, so that an end at any moment loses
one row at most; when the caller goes away, measuring ends.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from tessera.clock import Clock
from tessera.domain.errors import Conflict, Internal, TesseraError, Unavailable, error_of
from tessera.domain.ids import NodeId, ProfileClass, TrustDomain
from tessera.domain.records import LatencyRow, LoadCost, NodeRecord, ProfileRecord
from tessera.profiler.core.grid import RowGroup, missing
from tessera.profiler.core.merging import merge
from tessera.profiler.core.targets import Target, targets
from tessera.profiler.ports import Agents, MeasureOrder, Records
from tessera.program import Tasks
from tessera.telemetry import get_logger, span

log = get_logger("tessera.profiler")

STORE_TRIES = 10
STORE_RETRY_S = 1.0


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
    quick_seconds_per_row: float = 1.0
    full_seconds_per_row: float = 3.0
    min_repeats: int = 5
    group_timeout_s: float = 600.0


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

    async def profiles(self, trust_domain: TrustDomain, model: str, version: int) -> list[ProfileRecord]:
        """Stored profiles of a version, by variant and class."""
        found = await self._records.profiles(await self._records.resolve(trust_domain, model, version))
        return sorted(found, key=lambda record: (record.variant, record.profile_class))


class _Run:
    """One request. Its work runs in tasks of its own; `events` ends them when it is closed."""

    def __init__(self, owner: Profiler, request: RunRequest, found: Sequence[Target]) -> None:
        self._owner = owner
        self._request = request
        self._targets = found
        self._events: asyncio.Queue[Progress | None] = asyncio.Queue()
        self._total = 0
        self._done = 0
        self._failures: list[TesseraError] = []

    async def events(self) -> AsyncGenerator[Progress, None]:
        planned: dict[ProfileClass, list[tuple[Target, tuple[RowGroup, ...]]]] = defaultdict(list)
        for target in self._targets:
            record = await self._owner._records.profile(target.key, target.profile_class)
            groups = missing(target.grid(self._request.quick), record, self._request.again)
            self._total += sum(len(group.batches) for group in groups)
            if groups:
                planned[target.profile_class].append((target, groups))
            else:
                yield Progress(f"{target.key} on {target.profile_class}: already measured", self._fraction(), record)
        workers = [
            self._owner._tasks.start(f"profile {profile_class}", self._work(plans)) for profile_class, plans in sorted(planned.items())
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

    async def _work(self, plans: Sequence[tuple[Target, tuple[RowGroup, ...]]]) -> None:
        """All targets of one class. A failed one does not keep the others from being measured."""
        try:
            for target, groups in plans:
                try:
                    await self._target(target, groups)
                except TesseraError as error:
                    log.warning("profile failed", variant=str(target.key), profile_class=target.profile_class, reason=error.message)
                    self._failures.append(error)
                    self._tell(f"{target.key} on {target.profile_class} failed: {error.message}")
        finally:
            self._events.put_nowait(None)

    async def _target(self, target: Target, groups: tuple[RowGroup, ...]) -> None:
        """Measures on the first node of the class that answers. Raises: TesseraError."""
        writer = _Writer(self._owner, target, self._request.again)
        with span("tessera.profiler.measure", variant=str(target.key), profile_class=target.profile_class):
            for group in groups:
                await self._group(target, group, writer)
        if writer.record is None:
            raise Internal(f"{target.key} on {target.profile_class}: the agent measured nothing")
        log.info("profiled", variant=str(target.key), profile_class=target.profile_class, rows=len(writer.record.rows))
        self._tell(f"{target.key} on {target.profile_class}: done", writer.record)

    async def _group(self, target: Target, group: RowGroup, writer: _Writer) -> None:
        unavailable: Unavailable | None = None
        for node in target.nodes:
            lock = self._owner._nodes[node.node_id]
            if lock.locked():
                self._tell(f"{target.key}: waiting for another measurement on {node.node_id}")
            async with lock:
                try:
                    await self._measure(target, group, node, writer)
                    return
                except Unavailable as error:
                    # What is stored stays; another node of the class measures the rest.
                    unavailable = error
                    group = RowGroup(group.threads, tuple(batch for batch in group.batches if (batch, group.threads) not in writer.cells))
                    if not group.batches:
                        return
        assert unavailable is not None
        raise unavailable

    async def _measure(self, target: Target, group: RowGroup, node: NodeRecord, writer: _Writer) -> None:
        """Raises: TesseraError; Internal when the agent ended before every row was there."""
        limits = self._owner._limits
        seconds = limits.quick_seconds_per_row if self._request.quick else limits.full_seconds_per_row
        order = MeasureOrder(node.node_id, target.key, target.variant.artifact, group, seconds, limits.min_repeats)
        self._tell(f"{target.key} on {node.node_id}: batches {', '.join(map(str, group.batches))} with {_threads(group.threads)}")
        async with aclosing(self._owner._agents.measure(node.agent_address, order, limits.group_timeout_s)) as events:
            async for measured in events:
                if isinstance(measured, str):
                    self._tell(f"{target.key} on {node.node_id}: {measured}")
                elif isinstance(measured, LoadCost):
                    await writer.take_load(measured)
                else:
                    await writer.take_row(measured)
                    self._done += 1
                    self._tell(f"{target.key}: batch {measured.batch}, {_threads(measured.threads)}: {measured.p50_ms:.2f} ms")
        lacking = [batch for batch in group.batches if (batch, group.threads) not in writer.cells]
        if lacking:
            raise Internal(f"{target.key} on {node.node_id}: no row for batches {lacking} with {_threads(group.threads)}")

    def _tell(self, message: str, profile: ProfileRecord | None = None) -> None:
        self._events.put_nowait(Progress(message, self._fraction(), profile))

    def _fraction(self) -> float:
        return min(1.0, self._done / self._total) if self._total else 1.0


class _Writer:
    """Stores a target's measurements as they come."""

    def __init__(self, owner: Profiler, target: Target, again: bool) -> None:
        self._owner = owner
        self._target = target
        self._again = again
        self._rows: list[LatencyRow] = []
        self._loads: list[LoadCost] = []
        self.record: ProfileRecord | None = None

    @property
    def cells(self) -> set[tuple[int, int]]:
        return {(row.batch, row.threads) for row in self._rows}

    async def take_load(self, load: LoadCost) -> None:
        """Kept until the first row: a profile without a row says nothing about serving."""
        self._loads.append(load)
        if self._rows:
            await self._store()

    async def take_row(self, row: LatencyRow) -> None:
        self._rows.append(row)
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
                    self._rows,
                    self._loads,
                    owner._clock.wall_s(),
                    target.full_grid(),
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


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
