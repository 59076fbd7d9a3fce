"""Measuring: a row at a time, apart from what serves, never against requests, and nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from tessera.domain.errors import InvalidInput, ResourceExhausted, Unavailable
from tessera.domain.instance import Stage, StartPath
from tessera.domain.records import LatencyRow, LoadCost
from tessera.node_agent.core.runtimes import Purpose, purpose_of
from tessera.node_agent.core.slices import Slice
from tessera.node_agent.loops.measuring import DISTURBED_TRIES, QUIET_S, WATCH_S, MeasureOrder

WAITING = "waiting while the node answers requests"


def order(node: Any, **changes: Any) -> MeasureOrder:
    fields: dict[str, Any] = {
        "variant": node.order("x").variant,
        "artifact": node.make_artifact(),
        "batch": 2,
        "threads": 1,
        "concurrency": 1,
        "seconds": 0.1,
        "min_repeats": 3,
        "spread": 0.02,
    }
    return MeasureOrder(**(fields | changes))


def measuring(node: Any) -> list[Any]:
    return [runtime for runtime in node.runtimes.live if purpose_of(runtime.hello.runtime_id) is Purpose.MEASURE]


async def collect(events: AsyncGenerator[Any, None], into: list[Any]) -> None:
    async for event in events:
        into += [event]


async def until(condition: Callable[[], Any]) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not come true in time")


async def test_measuring_gives_both_start_costs_and_the_row(node: Any) -> None:
    events: list[Any] = []
    await collect(node.measurer.measure(order(node, threads=2)), events)
    new, bound, row = [event for event in events if not isinstance(event, str)]
    assert [cost.start_path for cost in (new, bound)] == [StartPath.FORK, StartPath.BIND]
    assert [time.stage for time in new.stages] == [Stage.FORK, Stage.MAP, Stage.LOAD]
    assert [time.stage for time in bound.stages] == [Stage.MAP, Stage.LOAD]
    assert new.peak_private_bytes == 1000
    assert (row.batch, row.threads, row.concurrency, row.spread) == (2, 2, 1, pytest.approx(0.02))
    assert all(runtime.slow for runtime in node.runtimes.all.values())
    await asyncio.sleep(0.01)
    assert node.runtimes.live == []
    assert node.store.holders() == {}


async def test_several_at_a_time_are_as_many_instances(node: Any) -> None:
    events: list[Any] = []
    node.runtimes.measure_gate.clear()
    async with asyncio.TaskGroup() as group:
        group.create_task(collect(node.measurer.measure(order(node, concurrency=3)), events))
        await until(lambda: node.runtimes.measuring)
        (runtime,) = measuring(node)
        assert len(runtime.loaded) == 3
        node.runtimes.measure_gate.set()
    assert [event.concurrency for event in events if isinstance(event, LatencyRow)] == [3]
    assert len([event for event in events if isinstance(event, LoadCost)]) == 2, "those beside it are no start costs of one instance"


async def test_measuring_waits_until_the_node_has_been_quiet(node: Any) -> None:
    await node.start("a", node.make_artifact())
    node.runtimes.idle_s = 0.0
    events: list[Any] = []
    async with asyncio.TaskGroup() as group:
        task = group.create_task(collect(node.measurer.measure(order(node)), events))
        await node.clock.advance(20 * QUIET_S)
        assert events == [WAITING]
        assert measuring(node) == []
        assert not node.job_turn.locked(), "a bake need not wait for the requests to end"
        node.runtimes.idle_s = 2 * QUIET_S
        await node.clock.advance(QUIET_S)
        await task
    assert isinstance(events[-1], LatencyRow)


async def test_a_row_that_requests_disturb_is_ended_at_once_and_measured_again(node: Any) -> None:
    await node.start("a", node.make_artifact())
    node.runtimes.idle_s = 10.0
    node.runtimes.measure_gate.clear()
    events: list[Any] = []
    async with asyncio.TaskGroup() as group:
        task = group.create_task(collect(node.measurer.measure(order(node, seconds=4.0)), events))
        await until(lambda: node.runtimes.measuring)
        await node.clock.advance(1.0)  # quiet for longer than it has been measured
        (disturbed,) = measuring(node)
        node.runtimes.idle_s = 0.0
        await node.clock.advance(2 * WATCH_S)
        assert not disturbed.alive, "the cores are free as soon as it is seen"
        node.runtimes.measure_gate.set()
        assert not any(isinstance(event, LatencyRow | LoadCost) for event in events)
        node.runtimes.idle_s = 10.0
        await node.clock.advance(QUIET_S)
        await task
    assert events.count(WAITING) == 1
    assert [type(event) for event in events if not isinstance(event, str)] == [LoadCost, LoadCost, LatencyRow]
    assert list(node.runtimes.measuring.values()) == [4.0, 2.0], "the second try is shorter, to fit between requests"


async def test_a_request_between_two_looks_is_noticed_at_the_end(node: Any) -> None:
    """It came and was answered while the row ran: an instance has been idle for less long than the row took."""
    await node.start("a", node.make_artifact())
    node.runtimes.idle_s = 10.0
    node.runtimes.measure_gate.clear()
    events: list[Any] = []
    async with asyncio.TaskGroup() as group:
        task = group.create_task(collect(node.measurer.measure(order(node)), events))
        await until(lambda: node.runtimes.measuring)
        node.clock.move(0.15)
        node.runtimes.idle_s = 0.05
        node.runtimes.measure_gate.set()
        await until(lambda: WAITING in events)
        node.runtimes.idle_s = 10.0
        await node.clock.advance(QUIET_S)
        await task
    assert len(node.runtimes.measuring) == 2


class Slow:
    """A gate that takes its time."""

    def __init__(self, node: Any, seconds: float) -> None:
        self.node, self.seconds = node, seconds

    async def wait(self) -> None:
        await self.node.clock.sleep(self.seconds)


async def among_requests(node: Any, every_s: float, run_s: float, into: list[Any], load_s: float = 0.0) -> None:
    """Measures a row of a second while an instance answers a request each `every_s`. A slice in which one came took ten times as long."""
    await node.start("a", node.make_artifact())
    node.runtimes.gate = Slow(node, load_s)
    began_s = node.clock.monotonic_s()

    async def runs(seconds: float, min_repeats: int, spread: float) -> Slice:
        repeats = max(min_repeats, round(seconds / run_s))
        from_s = node.clock.monotonic_s() - began_s
        await node.clock.sleep(repeats * run_s)
        disturbed = from_s // every_s != (node.clock.monotonic_s() - began_s) // every_s
        times_ms = [1e3 * run_s * (10 if disturbed else 1) * (0.9 + at / 1000) for at in range(201)]
        return Slice(repeats, tuple(times_ms), times_ms[100], 0.2 / repeats**0.5, 10)

    node.runtimes.runs = runs
    events = node.measurer.measure(order(node, seconds=1.0))
    task = asyncio.get_running_loop().create_task(collect(events, into))
    while not task.done() and node.clock.monotonic_s() < began_s + 60:
        node.runtimes.idle_s = (node.clock.monotonic_s() - began_s) % every_s
        await node.clock.advance(0.01)
        await asyncio.sleep(0)  # what runs in threads is as quick as that
    assert task.done(), f"a minute was not enough: {into}"
    await task


async def test_between_requests_a_row_is_measured_in_slices(node: Any) -> None:
    events: list[Any] = []
    await among_requests(node, 1.0, 0.005, events)
    new, bound, row = [event for event in events if not isinstance(event, str)]
    assert (new.start_path, bound.start_path) == (StartPath.FORK, StartPath.BIND)
    assert row.mean_ms == pytest.approx(5.0), "nothing of what requests disturbed"
    assert (row.p50_ms, row.p99_ms) == (pytest.approx(5.0), pytest.approx(5.0 * (0.9 + 0.198)))
    assert row.repeats >= 20, "a tenth of the limit, and steady"
    assert row.spread <= 0.02
    assert min(node.runtimes.measuring.values()) < 1.0
    assert node.runtimes.live[0].alive, "what serves goes on"


async def test_a_start_that_takes_longer_than_requests_leave_is_not_told_and_delays_the_row_alone(node: Any) -> None:
    events: list[Any] = []
    await among_requests(node, 1.0, 0.005, events, load_s=0.7)
    (row,) = [event for event in events if not isinstance(event, str)]
    assert isinstance(row, LatencyRow), "both loads were disturbed"
    assert row.mean_ms == pytest.approx(5.0)
    assert not node.job_turn.locked()


async def test_what_takes_longer_than_requests_leave_is_given_up(node: Any) -> None:
    with pytest.raises(ResourceExhausted, match=f"requests leave no time to run batch 2: they disturbed {DISTURBED_TRIES} tries in a row"):
        await among_requests(node, 1.0, 1.5, [])
    await asyncio.sleep(0.01)
    assert len(node.runtimes.live) == 1
    assert not measuring(node)


async def test_a_start_is_a_request_that_comes(node: Any) -> None:
    node.runtimes.gate.clear()
    starting = asyncio.get_running_loop().create_task(node.start("a", node.make_artifact(), budget_s=60.0))
    await asyncio.sleep(0.05)
    assert await node.traffic.quiet_s() == 0.0
    node.runtimes.gate.set()
    await starting
    assert await node.traffic.quiet_s() == node.runtimes.idle_s


async def test_a_runtime_that_is_gone_is_quiet(node: Any) -> None:
    await node.start("a", node.make_artifact())
    node.runtimes.idle_s = 0.0
    assert await node.traffic.quiet_s() == 0.0
    for runtime in node.runtimes.live:
        runtime.alive = False
    assert await node.traffic.quiet_s() == float("inf")
    for runtime in node.runtimes.all.values():
        node.runtimes.ended(runtime.hello.runtime_id)


async def test_measuring_neither_serves_nor_shows(node: Any) -> None:
    node.runtimes.measure_gate.clear()
    events = node.measurer.measure(order(node))
    task = asyncio.get_running_loop().create_task(collect(events, []))
    await until(lambda: node.runtimes.measuring)
    (dedicated,) = node.runtimes.live
    instance = await node.start("a", node.make_artifact())
    assert instance.runtime_id != dedicated.hello.runtime_id
    shown = await node.agent.summary(refresh=False)
    assert [item.runtime_id for item in shown.runtimes] == [instance.runtime_id]
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0.01)
    assert not dedicated.alive


async def test_a_variant_that_dies_while_it_is_measured_is_an_error(node: Any) -> None:
    node.runtimes.faults["m"] = ["die"]
    with pytest.raises(Unavailable):
        await collect(node.measurer.measure(order(node)), [])
    await asyncio.sleep(0.01)
    assert node.store.holders() == {}
    assert not node.poison.isolated(node.order("x").variant, node.clock.monotonic_s())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": 0}, "batch 0: must be from 1 to 4096"),
        ({"threads": 1000}, "threads 1000: must be from 1 to 256"),
        ({"concurrency": 0}, "concurrency 0: must be from 1 to 256"),
        ({"seconds": float("nan")}, "seconds"),
        ({"seconds": 301.0}, "seconds"),
        ({"min_repeats": 0}, "min_repeats"),
        ({"spread": -0.1}, "spread -0.1: must be from 0 to 1"),
    ],
)
async def test_a_bad_order_names_the_field(node: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        await collect(node.measurer.measure(order(node, **changes)), [])
    assert node.runtimes.all == {}
