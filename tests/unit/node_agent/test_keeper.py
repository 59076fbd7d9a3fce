"""What goes unasked: expired blobs, and more under pressure; whoever maps it is asked to let go before."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from tessera.domain.ids import Digest
from tessera.node_agent.core.pressure import MemoryReading, PressureLimits
from tessera.node_agent.loops.keeper import Keeper
from tessera.policy.reclaim.keep_alive import KeepAliveReclaimPolicy
from tessera.tensorstore.local import LocalTensorStore
from tessera.testing import VirtualClock
from tessera.testing.blobs import blob_of, put

PLENTY, BUDGET = 1 << 40, 10_000
LIMITS = PressureLimits(stall_share=0.1, reserve_bytes=1000, step_bytes=250, pause_s=5.0)


class World:
    """A store whose runtimes, memory and clock the test sets. `trimmed` is what runtimes were asked to let go of."""

    def __init__(self, store: LocalTensorStore, clock: VirtualClock) -> None:
        self.store, self.clock = store, clock
        self.reading = MemoryReading(0.0, PLENTY)
        self.trimmed: list[frozenset[Digest] | None] = []
        self.keeper = Keeper(store, self.trim, self, LIMITS, clock)

    def read(self) -> MemoryReading:
        return self.reading

    async def trim(self, digests: Collection[Digest] | None) -> None:
        assert digests is None or all(self.store.has(digest) for digest in digests), "asked when it was too late"
        self.trimmed.append(None if digests is None else frozenset(digests))

    def put(self, *seeds: int, holder: str | None = None) -> list[Digest]:
        return [put(self.store, blob_of(seed, 100), holder) for seed in seeds]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    clock = VirtualClock()
    with LocalTensorStore(tmp_path / "store", BUDGET, clock, policy=KeepAliveReclaimPolicy(60.0)) as store:
        yield World(store, clock)


async def test_what_is_unused_for_its_keep_alive_goes_and_its_mappers_hear_of_it_first(world: World) -> None:
    old = world.put(1, 2)
    held = world.put(3, holder="rt-1")
    world.clock.move(30)
    young = world.put(4)
    world.clock.move(30.5)
    await world.keeper.look()
    assert set(world.store.digests()) == {*held, *young}
    assert world.trimmed == [frozenset(old)]
    await world.keeper.look()
    assert len(world.trimmed) == 1  # nobody is bothered for nothing


async def test_what_is_used_while_runtimes_let_go_stays(world: World) -> None:
    first, second = world.put(1, 2)
    world.clock.move(61)
    trim = world.trim

    async def trim_and_use(digests: Collection[Digest] | None) -> None:
        await trim(digests)
        world.store.pin("start-x", [first])

    world.keeper._trim = trim_and_use
    await world.keeper.look()
    assert world.store.has(first)
    assert not world.store.has(second)


async def test_when_little_is_left_as_much_as_is_missing_goes(world: World) -> None:
    digests = world.put(1, 2, 3, 4)
    world.reading = MemoryReading(0.0, 1000 - 150)
    await world.keeper.look()
    assert world.trimmed == [None]
    assert len(world.store.digests()) == 2
    world.reading = MemoryReading(0.0, 1000)
    await world.keeper.look()
    assert len(world.store.digests()) == 2
    assert set(world.store.digests()) <= set(digests)
    assert world.store.status().reclaimed_pressure_bytes == 200


async def test_a_stall_costs_a_step_and_the_next_one_waits(world: World) -> None:
    world.put(1, 2, 3, 4, 5, 6)
    world.reading = MemoryReading(0.3, PLENTY)
    await world.keeper.look()
    await world.keeper.look()
    assert len(world.store.digests()) == 3
    world.clock.move(5)
    await world.keeper.look()
    assert len(world.store.digests()) == 0


async def test_held_blobs_stay_however_short_memory_is(world: World) -> None:
    held = world.put(1, 2, holder="rt-1")
    world.reading = MemoryReading(1.0, 0)
    await world.keeper.look()
    assert set(world.store.digests()) == set(held)
    assert world.trimmed == []
