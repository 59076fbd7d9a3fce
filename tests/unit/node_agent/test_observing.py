"""Observing transformations between specimens: apart from what serves, never against requests, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tessera.domain.errors import InvalidInput, NotFound, ResourceExhausted
from tessera.domain.transformation import MetaOperator, Observation
from tessera.node_agent.core.runtimes import Purpose, purpose_of
from tessera.node_agent.core.specimens import specimens
from tessera.node_agent.loops import observing
from tessera.node_agent.loops.observing import REPEATS


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two siblings and another network: six ways, by two planners."""
    found = specimens()
    monkeypatch.setattr(observing, "specimens", lambda: (found[0], found[5], found[6]))


async def observed(node: Any, seconds: float = 10.0) -> list[Observation]:
    return [event async for event in node.observer.observe(seconds) if not isinstance(event, str)]


async def test_each_becomes_each_other_one_some_times_in_a_runtime_of_their_own(node: Any) -> None:
    found = await observed(node)
    assert len(found) == 6
    assert {step.operator for seen in found for step in seen.steps} == set(MetaOperator)
    assert any(step.changed_bytes for seen in found for step in seen.steps)
    (runtime,) = node.runtimes.all.values()
    assert purpose_of(runtime.hello.runtime_id) is Purpose.MEASURE
    assert not runtime.slow, "as starts are"
    assert not runtime.alive
    assert len(runtime.trims) == len(runtime.deltas) == 6 * REPEATS, "nothing of a target is mapped before"
    assert all(json.loads(delta)["format"] == 1 for delta in runtime.deltas)
    assert node.store.holders() == {}
    again = await observed(node)
    assert {seen.steps for seen in again} == {seen.steps for seen in found}


async def test_a_request_that_comes_meanwhile_makes_it_count_for_nothing(node: Any) -> None:
    await node.start("a", node.make_artifact())
    node.runtimes.idle_s = 10.0
    found: list[Observation] = []
    events = node.observer.observe(10.0)
    disturbed = False
    async for event in events:
        if isinstance(event, str):
            continue
        found.append(event)
        if not disturbed:
            disturbed = True
            node.runtimes.idle_s = 0.0  # from now on it answers requests
            waiting = asyncio.ensure_future(anext(events))
            await node.clock.advance(1.0)
            assert not waiting.done()
            node.runtimes.idle_s = 10.0
            await node.clock.advance(1.0)
            found.append(await waiting)
    assert len(found) == 6


async def test_requests_without_end_leave_no_time(node: Any) -> None:
    await node.start("a", node.make_artifact())
    node.runtimes.idle_s = 0.0
    waiting = asyncio.ensure_future(observed(node, seconds=2.0))
    while not any(purpose_of(runtime.hello.runtime_id) is Purpose.MEASURE for runtime in node.runtimes.live):  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    while not waiting.done():
        await node.clock.advance(0.5)
    with pytest.raises(ResourceExhausted, match="requests leave no time to observe a transformation: none within 2 s"):
        await waiting
    assert [purpose_of(runtime.hello.runtime_id) for runtime in node.runtimes.live] == [Purpose.SHARED]


async def test_who_goes_away_ends_it_at_once(node: Any) -> None:
    events = node.observer.observe(10.0)
    async for event in events:
        if isinstance(event, Observation):
            break
    assert [purpose_of(runtime.hello.runtime_id) for runtime in node.runtimes.live] == [Purpose.MEASURE]
    await events.aclose()
    assert node.runtimes.live == []
    assert node.store.holders() == {}
    assert not node.job_turn.locked()


async def test_a_runtime_that_fails_says_why_and_leaves_nothing(node: Any) -> None:
    node.runtimes.faults["specimen"] = [NotFound("blob")]
    with pytest.raises(NotFound):
        await observed(node)
    assert node.runtimes.live == []
    assert node.store.holders() == {}


@pytest.mark.parametrize("seconds", [0.0, -1.0, 61.0, float("nan")])
async def test_numbers_out_of_range_are_refused(node: Any, seconds: float) -> None:
    with pytest.raises(InvalidInput, match=r"seconds .*must be more than 0 and at most 60"):
        await observed(node, seconds)


def test_specimens_are_always_the_same_and_hold_what_they_name() -> None:
    found = specimens()
    assert [each.artifact for each in specimens()] == [each.artifact for each in found]
    assert len({each.artifact for each in found}) == len(found)
    assert found[0].graph == found[5].graph != found[6].graph == found[11].graph, "of each family there are siblings"
    assert sum(len(data) for each in found for data in each.blobs.values()) < 20 << 20
