"""Runs against a fake etcd and agents that measure, break off, or vanish."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import pytest
from runs_world import KEY, bench, eventually

from tessera.coord import keys
from tessera.coord.interface import Delete, ModRevisionIs
from tessera.domain.errors import (
    FailedPrecondition,
    Internal,
    InvalidInput,
    ModelNotFound,
    NotFound,
    ResourceExhausted,
    Unavailable,
    VersionNotFound,
)
from tessera.domain.ids import DEFAULT_TRUST_DOMAIN, ModelName, NodeId, ProfileClass, VersionNumber
from tessera.domain.records import AliasRecord, ProfileRecord
from tessera.profiler.core.grid import BATCHES, Cell, cell_of
from tessera.profiler.loops import RunRequest
from tessera.profiler.ports import Measured, MeasureOrder
from tessera.testing.builders import (
    PROFILE_CLASS,
    a_latency_row,
    a_load_cost,
    a_node,
    a_variant,
    a_variant_key,
)

SWEEPS = [(1, 1), (1, 2), (2, 1)]
GRID = [Cell(batch, threads, concurrency) for threads, concurrency in SWEEPS for batch in (1, 2, 4, 8)]


def cells(record: ProfileRecord | None) -> list[Cell]:
    assert record is not None
    return [cell_of(row) for row in record.rows]


async def test_a_full_run_stores_every_row_and_the_loads() -> None:
    async with bench() as found:
        events = await found.run()
        stored = await found.stored()
        assert cells(stored) == GRID
        assert stored is not None
        assert (stored.load, stored.quick) == ((a_load_cost(),), False)
        assert next(event.profile for event in reversed(events) if event.profile) == stored
        assert events[-1].fraction == 1.0
        fractions = [event.fraction for event in events]
        assert fractions == sorted(fractions)
        assert found.agents.cells[:3] == [Cell(1, 1), Cell(1, 1, 2), Cell(1, 2)], "each sweep gets its first row first"
        assert sorted(found.agents.cells) == sorted(GRID)
        assert {(order.seconds, order.min_repeats, order.spread) for _, order in found.agents.orders} == {(3.0, 5, 0.02)}


async def test_a_quick_run_measures_one_row_with_the_nodes_threads() -> None:
    async with bench(runtime_threads=2) as found:
        found.agents.spreads[1] = [0.5]
        await found.run(quick=True)
        stored = await found.stored()
        assert stored is not None
        assert (cells(stored), stored.quick) == ([Cell(1, 2)], True)
        assert found.agents.orders[0][1].seconds == 1.0
        assert len(found.agents.orders) == 1, "however uncertain it is"
        await found.run()
        again = await found.stored()
        assert again is not None
        assert not again.quick
        assert cells(again) == GRID
        assert sorted(set(found.agents.cells)) == sorted(GRID)


async def test_a_broken_off_run_goes_on_where_it_stopped() -> None:
    async with bench() as found:
        found.agents.break_after["n1:1"] = (2, Internal("the runtime crashed"))
        with pytest.raises(Internal, match="1 of 1 profiles failed; the first: the runtime crashed"):
            await found.run()
        stored = await found.stored()
        assert stored is not None
        assert stored.quick
        done = set(cells(stored))
        assert {Cell(1, 1), Cell(1, 1, 2), Cell(1, 2), Cell(2, 1)} <= done < set(GRID)
        found.agents.break_after.clear()
        found.agents.orders.clear()
        await found.run()
        assert sorted(found.agents.cells) == sorted(set(GRID) - done)


async def test_what_is_measured_already_is_measured_again_only_when_asked() -> None:
    async with bench() as found:
        await found.run()
        found.agents.orders.clear()
        events = await found.run()
        assert found.agents.orders == []
        assert [event.message for event in events] == [f"digits@1/aten-fp32 on {PROFILE_CLASS}: already measured"]
        assert events[0].fraction == 1.0
        found.agents.p50_ms = 7.0
        await found.run(again=True)
        stored = await found.stored()
        assert stored is not None
        assert stored.latency_ms(8, 2) == 7.0


async def test_a_row_without_memory_ends_its_sweep_and_nothing_else() -> None:
    async with bench() as found:
        found.agents.break_after["n1:1"] = (2, ResourceExhausted("no memory for the run"))
        events = await found.run()
        stored = await found.stored()
        assert stored is not None
        assert cells(stored) == [cell for cell in GRID if cell.batch < 4]
        assert not stored.quick
        assert [cell.batch for cell in found.agents.cells].count(4) == len(SWEEPS), "each sweep found out once"
        assert any("no memory for the run" in event.message for event in events)
        found.agents.break_after["n1:1"] = (0, ResourceExhausted("no memory at all"))
        with pytest.raises(ResourceExhausted, match="no memory at all"):
            await found.run(again=True)


async def test_the_profile_of_another_class_is_no_help() -> None:
    """What was measured on one class is neither taken for another's nor changed by measuring there."""
    async with bench() as found:
        other = ProfileClass("other")
        theirs = ProfileRecord(KEY, other, (a_load_cost(),), tuple(a_latency_row(batch, 1, 999.0) for batch in BATCHES), 1.0)
        await found.put(keys.profile(KEY, other), theirs)
        await found.run()
        assert sorted(found.agents.cells) == sorted(GRID)
        stored = await found.stored()
        assert stored is not None
        assert stored.latency_ms(1, 1) == 2.0
        assert await found.stored("other") == theirs
        shown = await found.profiler.profiles(DEFAULT_TRUST_DOMAIN, "digits", 0)
        assert [item.record.profile_class for item in shown] == sorted([PROFILE_CLASS, other])
        with pytest.raises(FailedPrecondition, match="no node of profile class 'other' is registered"):
            await found.run(profile_class=other)


async def test_a_run_that_ended_before_it_said_so_is_told_complete() -> None:
    async with bench() as found:
        await found.run()
        stored = await found.stored()
        assert stored is not None
        await found.put(keys.profile(KEY, PROFILE_CLASS), replace(stored, quick=True))
        found.agents.orders.clear()
        await found.run()
        assert found.agents.orders == []
        assert await found.stored() == stored


async def test_the_budget_counts_measuring_and_not_waiting_for_requests() -> None:
    async with bench() as found:
        found.agents.took_s = 25.0
        await found.run()
        assert len(found.agents.orders) == 3, "60 s: the third row was begun at 50"
        stored = await found.stored()
        assert stored is not None
        assert not stored.quick, "what a full run left out it left out on purpose"
        await found.run()
        assert len(found.agents.orders) == 6, "another run has another budget"


async def test_what_is_left_of_the_budget_goes_to_uncertain_rows() -> None:
    async with bench() as found:
        found.agents.spreads[4] = [0.3, 0.3, 0.3, 0.01, 0.5, 0.01]
        await found.run()
        stored = await found.stored()
        assert stored is not None
        assert len(found.agents.orders) == len(GRID) + 3
        assert {cell.batch for cell in found.agents.cells[len(GRID) :]} == {4}
        assert sorted(row.spread for row in stored.rows if row.batch == 4) == [0.01, 0.01, 0.3], "the steadier row of a cell stays"


async def test_a_caller_that_leaves_ends_the_measuring_and_keeps_what_is_done() -> None:
    async with bench() as found:
        found.agents.hold = asyncio.Event()
        async with aclosing(found.profiler.run(RunRequest(DEFAULT_TRUST_DOMAIN, "digits"))) as run:
            async for progress in run:
                if "batch 1, 1 thread: 2.00 ms" in progress.message:
                    break
        await eventually(lambda: found.agents.ended_early > 0)
        assert cells(await found.stored()) == [Cell(1, 1)]
        found.agents.hold.set()
        found.agents.orders.clear()
        await found.run()
        assert sorted(found.agents.cells) == sorted(set(GRID) - {Cell(1, 1)})


async def test_one_variant_at_a_time_per_node() -> None:
    async with bench() as found:
        await found.put(keys.variant(a_variant_key(variant="ort-fp32")), a_variant(variant="ort-fp32"))
        everything = await asyncio.gather(found.run(variant="aten-fp32"), found.run(variant="ort-fp32"))
        assert found.agents.most_at_once == {"n1:1": 1}
        assert any("waiting for another measurement on n1" in event.message for events in everything for event in events)


async def test_classes_are_measured_side_by_side() -> None:
    async with bench() as found:
        other = ProfileClass("other")
        await found.put(keys.node(DEFAULT_TRUST_DOMAIN, NodeId("n2")), a_node("n2", agent_address="n2:1", profile_class=other))
        found.agents.hold = asyncio.Event()
        run = asyncio.get_running_loop().create_task(found.run())
        await eventually(lambda: found.agents.running == {"n1:1": 1, "n2:1": 1})
        found.agents.hold.set()
        await run
        assert await found.stored("other") is not None


async def test_another_node_of_the_class_measures_what_an_unreachable_one_left() -> None:
    async with bench() as found:
        await found.put(keys.node(DEFAULT_TRUST_DOMAIN, NodeId("n2")), a_node("n2", agent_address="n2:1"))
        found.agents.break_after["n1:1"] = (1, Unavailable("n1 does not answer"))
        await found.run()
        asked = [(address, order.cell) for address, order in found.agents.orders]
        assert asked[:3] == [("n1:1", cell) for cell in (Cell(1, 1), Cell(1, 1, 2), Cell(1, 2))]
        assert asked[3:5] == [("n1:1", Cell(2, 1)), ("n2:1", Cell(2, 1))]
        assert {address for address, _ in asked[5:]} == {"n2:1"}, "the one that did not answer is asked last"
        assert cells(await found.stored()) == GRID
        found.agents.break_after["n2:1"] = (0, Unavailable("n2 does not answer"))
        found.agents.break_after["n1:1"] = (0, Unavailable("n1 does not answer"))
        with pytest.raises(Unavailable, match="1 of 1 profiles failed; the first: n2 does not answer"):
            await found.run(again=True)


async def test_a_failed_variant_does_not_keep_the_others_from_being_measured() -> None:
    async with bench() as found:
        other = a_variant_key(variant="ort-fp32")
        await found.put(keys.variant(other), a_variant(variant="ort-fp32"))
        found.agents.break_after["n1:1"] = (1, Internal("crashed"))
        with pytest.raises(Internal, match="2 of 2 profiles failed"):
            await found.run()
        assert {order.variant for _, order in found.agents.orders} == {KEY, other}


async def test_an_agent_that_measures_something_else_is_noticed() -> None:
    async with bench() as found:

        async def lazy(address: str, order: MeasureOrder, budget_s: float) -> AsyncGenerator[Measured, None]:
            yield a_latency_row(2, order.cell.threads)

        found.agents.measure = lazy  # type: ignore[method-assign]
        with pytest.raises(Internal, match=r"no row for batch 1, 1 thread"):
            await found.run()


async def test_a_lost_race_for_the_record_is_merged_anew() -> None:
    """Two runs of the same variant on different thread counts do not overwrite each other."""
    async with bench() as found:
        store = found.profiler._records.store
        raced = []

        async def racing(profile: ProfileRecord, based_on: ProfileRecord | None) -> None:
            if not raced:
                raced.append(True)
                theirs = ProfileRecord(KEY, PROFILE_CLASS, (), (a_latency_row(16, 4),), 1.0)
                await found.put(keys.profile(KEY, PROFILE_CLASS), theirs)
            await store(profile, based_on)

        found.profiler._records.store = racing  # type: ignore[method-assign]
        await found.run(quick=True)
        stored = await found.stored()
        assert stored is not None
        assert [(row.batch, row.threads) for row in stored.rows] == [(1, 1), (16, 4)]


async def test_a_variant_that_was_deleted_meanwhile_gets_no_profile() -> None:
    async with bench() as found:
        found.agents.hold = asyncio.Event()
        run = asyncio.get_running_loop().create_task(found.run())
        await eventually(lambda: bool(found.etcd.server.items(keys.profiles(DEFAULT_TRUST_DOMAIN))))
        for key in (keys.variant(KEY), keys.profile(KEY, PROFILE_CLASS)):
            item = await found.etcd.get(key)
            assert item is not None
            await found.etcd.transact([ModRevisionIs(key, item.mod_revision)], [Delete(key)])
        found.agents.hold.set()
        with pytest.raises(NotFound, match="was deleted while it was measured"):
            await run
        assert await found.stored() is None


async def test_names_are_resolved() -> None:
    async with bench() as found:
        alias = AliasRecord(ModelName("best"), DEFAULT_TRUST_DOMAIN, ModelName("digits"), VersionNumber(1))
        await found.put(keys.alias(DEFAULT_TRUST_DOMAIN, ModelName("best")), alias)
        await found.run("best", quick=True)
        assert [item.record.variant for item in await found.profiler.profiles(DEFAULT_TRUST_DOMAIN, "digits", 0)] == [KEY]
        with pytest.raises(ModelNotFound):
            await found.run("unknown")
        with pytest.raises(VersionNotFound, match="model 'digits' has no version 2"):
            await found.run(version=2)
        with pytest.raises(InvalidInput, match="model 'No Name'"):
            await found.run("No Name")
        with pytest.raises(FailedPrecondition, match="no node of profile class 'x'"):
            await found.run(profile_class="x")
