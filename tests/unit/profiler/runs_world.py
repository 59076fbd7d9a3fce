"""A profiler on a fake etcd, with agents that measure, break off, or vanish."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tessera.coord import keys
from tessera.coord.interface import ModRevisionIs, Put
from tessera.coord.records import decode, encode
from tessera.domain.ids import DEFAULT_TRUST_DOMAIN, ModelName, NodeId, ProfileClass, TrustDomain
from tessera.domain.records import MetaCostRecord, ProfileRecord
from tessera.domain.transformation import MetaOperator, Observation, StepSum
from tessera.profiler.adapters.records import EtcdRecords
from tessera.profiler.core.grid import BATCHES, Cell
from tessera.profiler.loops import Profiler, Progress, RunLimits, RunRequest
from tessera.profiler.ports import Measured, MeasureOrder
from tessera.program import Stop, Tasks
from tessera.testing import VirtualClock
from tessera.testing.builders import (
    PROFILE_CLASS,
    a_latency_row,
    a_load_cost,
    a_model,
    a_node,
    a_variant,
    a_variant_key,
    a_version,
    a_version_key,
)
from tessera.testing.coord import FakeCoordinator

KEY = a_variant_key()


@dataclass
class FakeAgents:
    """Measures at once, or in the `took_s` of a virtual clock. With `break_after[address]` = n every row after n of a sweep raises;
    `hold` makes each row but the first wait."""

    clock: VirtualClock
    orders: list[tuple[str, MeasureOrder]] = field(default_factory=list)
    break_after: dict[str, tuple[int, Exception]] = field(default_factory=dict)
    hold: asyncio.Event | None = None
    running: dict[str, int] = field(default_factory=dict)
    most_at_once: dict[str, int] = field(default_factory=dict)
    ended_early: int = 0
    observed: list[str] = field(default_factory=list)
    observations: int = 40
    uneven: float = 1.0
    observing_fails: dict[str, Exception] = field(default_factory=dict)
    p50_ms: float = 2.0
    took_s: float = 0.0
    spreads: dict[int, list[float]] = field(default_factory=dict)
    """By batch: of its first row, its second, and so on; none where the list is at its end."""

    @property
    def cells(self) -> list[Cell]:
        return [order.cell for _, order in self.orders]

    async def measure(self, address: str, order: MeasureOrder, budget_s: float) -> AsyncGenerator[Measured, None]:
        self.orders.append((address, order))
        cell = order.cell
        self.running[address] = self.running.get(address, 0) + 1
        self.most_at_once[address] = max(self.most_at_once.get(address, 0), self.running[address])
        finished = False
        left, error = self.break_after.get(address, (10**6, None))
        try:
            yield "waiting while the node answers requests"
            self.clock.move(100.0)
            yield "measuring"
            if error is not None and BATCHES.index(cell.batch) >= left:
                raise error
            yield a_load_cost()
            if len(self.orders) > 1 and self.hold is not None:
                await self.hold.wait()
            self.clock.move(self.took_s)
            await asyncio.sleep(0)
            spreads = self.spreads.get(cell.batch, [])
            finished = True
            spread = spreads.pop(0) if spreads else 0.0
            yield a_latency_row(cell.batch, cell.threads, self.p50_ms, concurrency=cell.concurrency, spread=spread)
        finally:
            self.running[address] -= 1
            self.ended_early += not finished

    async def observe(
        self, address: str, trust_domain: TrustDomain, seconds: float, budget_s: float
    ) -> AsyncGenerator[Observation | str, None]:
        self.observed.append(address)
        finished = False
        try:
            yield "making specimens"
            for count in range(self.observations):
                if self.hold is not None and count:
                    await self.hold.wait()
                yield Observation(
                    (StepSum(MetaOperator.ADD, "aten.relu.default", count),), (1.0 + 0.1 * count) * (self.uneven if count % 2 else 1.0)
                )
            if address in self.observing_fails:
                raise self.observing_fails[address]
            finished = True
        finally:
            self.ended_early += not finished

    async def close(self) -> None: ...


class Bench:
    def __init__(self, etcd: FakeCoordinator, agents: FakeAgents, profiler: Profiler) -> None:
        self.etcd = etcd
        self.agents = agents
        self.profiler = profiler

    async def put(self, key: str, record: Any) -> None:
        found = await self.etcd.get(key)
        await self.etcd.transact([ModRevisionIs(key, found.mod_revision if found else 0)], [Put(key, encode(record))])

    async def stored(self, profile_class: str = PROFILE_CLASS) -> ProfileRecord | None:
        found = await self.etcd.get(keys.profile(KEY, ProfileClass(profile_class)))
        return None if found is None else decode(ProfileRecord, found.value)

    async def costs(self, profile_class: str = PROFILE_CLASS) -> MetaCostRecord | None:
        found = await self.etcd.get(keys.meta_cost(DEFAULT_TRUST_DOMAIN, "aten", ProfileClass(profile_class)))
        return None if found is None else decode(MetaCostRecord, found.value)

    async def run(self, model: str = "digits", **fields: Any) -> list[Progress]:
        return [progress async for progress in self.profiler.run(RunRequest(DEFAULT_TRUST_DOMAIN, model, **fields))]


@asynccontextmanager
async def bench(**node: Any) -> AsyncIterator[Bench]:
    etcd, clock, stop = FakeCoordinator(), VirtualClock(), Stop()
    agents = FakeAgents(clock)
    async with Tasks(stop) as tasks:
        profiler = Profiler(clock=clock, tasks=tasks, records=EtcdRecords(etcd), agents=agents, limits=RunLimits())
        found = Bench(etcd, agents, profiler)
        await found.put(keys.model(DEFAULT_TRUST_DOMAIN, ModelName("digits")), a_model())
        await found.put(keys.version(a_version_key()), a_version())
        await found.put(keys.variant(KEY), a_variant())
        await found.put(keys.node(DEFAULT_TRUST_DOMAIN, NodeId("n1")), a_node("n1", agent_address="n1:1", **node))
        yield found
    await etcd.close()
    assert stop.error is None


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come true in time")
