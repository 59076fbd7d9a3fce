"""What transformations take is found out once per profile class, after the rows of full runs, and stored whole or not at all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from runs_world import Bench, bench, eventually

from tessera.coord import keys
from tessera.coord.interface import Delete, ModRevisionIs
from tessera.domain.errors import ResourceExhausted, Unavailable
from tessera.domain.ids import DEFAULT_TRUST_DOMAIN, NodeId
from tessera.domain.transformation import MetaOperator
from tessera.policy.transform.costs import costs_of
from tessera.profiler.loops import LEAST_OBSERVED
from tessera.testing.builders import PROFILE_CLASS, a_node, a_variant, a_variant_key


async def told(found: Bench, **fields: Any) -> str:
    return "; ".join(progress.message for progress in await found.run(**fields) if "transformations on" in progress.message)


async def forget(found: Bench) -> None:
    key = keys.meta_cost(DEFAULT_TRUST_DOMAIN, "aten", PROFILE_CLASS)
    item = await found.etcd.get(key)
    assert item is not None
    await found.etcd.transact([ModRevisionIs(key, item.mod_revision)], [Delete(key)])


async def test_a_full_run_finds_it_out_once_after_the_rows() -> None:
    async with bench() as found:
        assert f"transformations on {PROFILE_CLASS}: 40 observed, error 0%" in await told(found)
        record = await found.costs()
        assert record is not None
        assert (record.profile_class, record.dialect, record.observations) == (PROFILE_CLASS, "aten", 40)
        assert record.error == pytest.approx(0.0, abs=1e-6)
        costs = costs_of(record)
        assert costs.base_ms == pytest.approx(1.0)
        assert costs.line(MetaOperator.ADD, "aten.linear.default").fixed_ms == pytest.approx(0.1)
        assert await told(found) == "", "it is known"
        assert found.agents.observed == ["n1:1"]
        rows = len(found.agents.orders)
        await told(found, again=True)
        assert len(found.agents.observed) == 2
        assert len(found.agents.orders) > rows


async def test_a_quick_run_leaves_it_out_and_a_run_with_nothing_else_to_measure_does_it() -> None:
    async with bench() as found:
        assert await told(found, quick=True) == ""
        await told(found)
        await forget(found)
        rows = len(found.agents.orders)
        assert "observed" in await told(found)
        assert len(found.agents.orders) == rows, "all rows were there"


async def test_nodes_without_torch_are_not_asked() -> None:
    async with bench(flavours=("ort",)) as found:
        await found.put(keys.variant(a_variant_key()), a_variant(flavour="ort"))
        await found.run()
        assert found.agents.observed == []


@pytest.mark.parametrize("observations", [0, LEAST_OBSERVED - 1])
async def test_too_few_observations_are_said_and_nothing_is_stored(observations: int) -> None:
    async with bench() as found:
        found.agents.observations = observations
        assert f"{observations} observed within 10 s, at least 32 are needed" in await told(found)
        assert await found.costs() is None
        found.agents.observations = 40
        assert "40 observed" in await told(found), "the next run tries again"


async def test_what_no_costs_fit_is_not_stored() -> None:
    """Every time another one: the machine had something else to do."""
    async with bench() as found:
        found.agents.uneven = 100.0
        assert "40 observed, but costs miss them by" in await told(found)
        assert await found.costs() is None


async def test_a_node_that_goes_away_hands_over_and_one_that_refuses_ends_it() -> None:
    async with bench() as found:
        await found.put(keys.node(DEFAULT_TRUST_DOMAIN, NodeId("n2")), a_node("n2", agent_address="n2:1"))
        found.agents.observing_fails = {"n1:1": Unavailable("gone"), "n2:1": ResourceExhausted("requests leave no time")}
        assert "requests leave no time" in await told(found)
        assert found.agents.observed == ["n1:1", "n2:1"]
        assert await found.costs() is None, "what was seen before is not enough"
        del found.agents.observing_fails["n2:1"]
        await told(found)
        record = await found.costs()
        assert record is not None
        assert record.observations == 40


async def test_a_run_that_is_broken_off_half_way_leaves_nothing_and_the_next_one_starts_over() -> None:
    async with bench() as found:
        await found.run(quick=True)
        await found.run()
        await forget(found)
        found.agents.hold = asyncio.Event()
        run = asyncio.ensure_future(found.run())
        await eventually(lambda: len(found.agents.observed) == 2)
        for _ in range(20):
            await asyncio.sleep(0)
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        await eventually(lambda: found.agents.ended_early == 1)
        assert await found.costs() is None
        found.agents.hold = None
        await found.run()
        record = await found.costs()
        assert record is not None
        assert record.observations == 40
