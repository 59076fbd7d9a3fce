"""What starts took, and what the next ones are expected to take by that."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scheduler_builders import DOMAIN, instance, key, node
from scheduler_world import World, slow, until

from tessera.coord import keys
from tessera.domain.ids import NodeId, ProfileClass
from tessera.domain.instance import InstanceState, Stage, StageTime, StartPath
from tessera.domain.records import LoadCost, ProfileRecord
from tessera.scheduler.core.observed import ObservedInstance
from tessera.scheduler.core.start_times import FORGET_S, LEAST, LEAST_BYTES, LEAST_OFF, MOST_OFF, WINDOW, StartTimes
from tessera.testing import run_virtual

CLASS = ProfileClass("p")
BIND = (key(), CLASS, StartPath.BIND)
BINDS = (DOMAIN, "ort", CLASS, StartPath.BIND, False)
LATER = instance("i-2", stages=(StageTime(Stage.FETCH, 90.0), StageTime(Stage.MAP, 1.0), StageTime(Stage.LOAD, 5.0)))


def ended(times: StartTimes, *instances: ObservedInstance) -> list[tuple[str, float]]:
    return [(item.instance_id, took_ms) for item, profile_class, took_ms in times.ended([node("n1", instances)]) if profile_class == CLASS]


def looked() -> StartTimes:
    """At the node once, when `i-1` was ready there."""
    times = StartTimes()
    assert ended(times, instance("i-1")) == []
    return times


def test_a_start_counts_once_when_its_end_is_reported_and_without_its_fetch() -> None:
    times = looked()
    assert ended(times, instance("i-1"), LATER) == [("i-2", 6.0)]
    assert ended(times, instance("i-1"), LATER) == []


def test_whoever_was_ready_at_the_first_look_at_its_node_says_nothing() -> None:
    """Another leader's starts, or those before a node came back."""
    times = looked()
    assert times.ended([node("n2", [instance("i-9", "n2")]), node("n1", [instance("i-1")])]) == []
    assert ended(times) == [], "n2 is gone"
    assert times.ended([node("n2", [instance("i-9", "n2"), instance("i-8", "n2")]), node("n1")]) == []


@pytest.mark.parametrize("unended", [replace(LATER, opening=True), replace(LATER, state=InstanceState.LOADING)])
def test_one_that_is_being_opened_counts_when_that_is_over(unended: ObservedInstance) -> None:
    """Its answer was early, and has the stages until then."""
    times = looked()
    assert ended(times, unended) == []
    assert ended(times, LATER) == [("i-2", 6.0)]


def test_what_took_nothing_is_no_start() -> None:
    assert ended(looked(), replace(LATER, stages=())) == []


def test_the_median_of_a_variants_last_starts_is_what_it_takes() -> None:
    times = StartTimes()
    for took_ms in [30.0] * (LEAST - 1):
        times.note(BIND, BINDS, took_ms, 5.0, 0.0)
    assert dict(times.seen.took_ms) == {}, "too few"
    times.note(BIND, BINDS, 900.0, 5.0, 0.0)
    assert dict(times.seen.took_ms) == {BIND: 30.0}
    for took_ms in [7.0] * WINDOW:
        times.note(BIND, BINDS, took_ms, 5.0, 0.0)
    assert dict(times.seen.took_ms) == {BIND: 7.0}, "earlier ones are out of the window"


def test_a_backends_starts_say_how_far_estimates_are_off_and_not_beyond_all_bounds() -> None:
    times = StartTimes()
    for at in range(LEAST_OFF):
        assert dict(times.seen.off) == {}
        times.note((key(model=f"m-{at}"), CLASS, StartPath.BIND), BINDS, 1e6 if at % 2 else 15.0, 5.0, 0.0)
    assert dict(times.seen.off) == {BINDS: (3.0 + MOST_OFF) / 2}
    assert dict(times.seen.took_ms) == {}


def test_one_variant_that_is_started_all_the_time_does_not_speak_for_its_backend() -> None:
    times = StartTimes()
    for _ in range(10 * LEAST_OFF):
        times.note(BIND, BINDS, 30.0, 5.0, 0.0)
    assert (dict(times.seen.took_ms), dict(times.seen.off)) == ({BIND: 30.0}, {})


def test_the_median_of_a_nodes_last_fetches_is_what_a_byte_takes_there() -> None:
    times = StartTimes()
    for mib in [1, 2, 4]:
        assert dict(times.seen.ms_per_byte) == {}
        times.note_fetch(NodeId("n1"), mib * LEAST_BYTES, 3.0 * mib * LEAST_BYTES, 0.0)
        times.note_fetch(NodeId("n1"), LEAST_BYTES - 1, 1e12, 0.0)
    assert dict(times.seen.ms_per_byte) == {"n1": 3.0}
    times.forget(FORGET_S)
    assert dict(times.seen.ms_per_byte) == {}


def test_what_was_seen_is_forgotten_and_what_is_seen_again_stays() -> None:
    times = StartTimes()
    others = [(key(model=f"m-{at}"), CLASS, StartPath.BIND) for at in range(LEAST_OFF)]
    for start, at_s in [(BIND, 0.0)] * LEAST + [(other, 1.0) for other in others] * LEAST:
        times.note(start, BINDS, 30.0, 5.0, at_s)
    times.note(BIND, BINDS, 30.0, 5.0, 2.0)
    times.forget(FORGET_S + 1.0)
    assert (list(times.seen.took_ms), list(times.seen.off)) == ([BIND], [])
    times.forget(FORGET_S + 2.0)
    assert dict(times.seen.took_ms) == {}


@pytest.mark.parametrize("learns", [True, False])
def test_a_path_that_takes_longer_than_expected_is_taken_no_more_until_that_is_long_ago(learns: bool) -> None:
    """Binding is profiled at 2 ms and forking assumed at 14; on this node a bind takes 50."""
    then = StartPath.FORK if learns else StartPath.BIND

    async def main() -> None:
        async with World() as world:
            cost = LoadCost(StartPath.BIND, (StageTime(Stage.LOAD, 2.0),))
            await world.put(keys.profile(key(), CLASS), ProfileRecord(key(), CLASS, (cost,), (), 0.0))
            scheduler = await world.add_scheduler(learn_start_times=learns)
            world.nodes["n1"].bind_ms = 50.0
            await world.clock.sleep(2.0)  # the leader has looked at its nodes once

            async def path() -> StartPath:
                answer = await world.start(scheduler)
                await until(lambda: len(world.recorded()) == 1, 2.0)
                await world.clock.sleep(2.0)
                await scheduler.reconciler.stop(NodeId("n1"), answer.instance.instance_id)
                await until(lambda: not world.recorded(), 5.0)
                return answer.instance.start_path

            assert [await path() for _ in range(LEAST + 1)] == [StartPath.BIND] * LEAST + [then]
            await world.clock.sleep(FORGET_S)
            assert await path() is StartPath.BIND

    run_virtual(main)


def test_where_binding_means_a_new_runtime_after_all_that_is_what_binding_takes() -> None:
    """Its runtimes are full, say: the agent forks, and says so."""

    async def main() -> None:
        async with World() as world:
            scheduler = await world.add_scheduler()
            node = world.nodes["n1"]
            node.bind_ms, node.binds = 50.0, StartPath.FORK
            await world.clock.sleep(2.0)
            for _ in range(LEAST):
                answer = await world.start(scheduler)
                assert (node.orders[-1].start_path, answer.instance.start_path) == (StartPath.BIND, StartPath.FORK)
                await world.clock.sleep(2.0)
                await scheduler.reconciler.stop(NodeId("n1"), answer.instance.instance_id)
                await until(lambda: not world.recorded(), 5.0)
            await world.start(scheduler)
            assert node.orders[-1].start_path is StartPath.FORK

    run_virtual(main)


def test_transformations_are_learnt_elsewhere_and_what_they_fetched_here() -> None:
    """One that met wrong bytes and was bound in another runtime then says nothing of binding either."""

    async def main() -> None:
        async with World() as world:
            scheduler = await world.add_scheduler()
            await world.clock.sleep(2.0)
            turned_back = (
                StageTime(Stage.FETCH, 5e6),
                StageTime(Stage.TRANSFORM, 4.0),
                StageTime(Stage.MAP, 1.0),
                StageTime(Stage.LOAD, 5.0),
            )
            there = [instance(f"i-{at}", stages=turned_back, fetched_bytes=5 * LEAST_BYTES) for at in range(LEAST)]
            world.nodes["n1"].instances.update({each.instance_id: each for each in there})
            await world.clock.sleep(2.0)
            seen = scheduler.starter._learning.seen
            assert (dict(seen.took_ms), list(seen.ms_per_byte)) == ({}, ["n1"])

    run_virtual(main)


def test_a_start_that_is_taken_up_again_is_no_bind() -> None:
    """Its agent was at it for a leader before, or for a request that gave up."""

    async def main() -> None:
        async with World() as world:
            node = world.nodes["n1"]
            scheduler = await world.add_scheduler()
            await world.clock.sleep(2.0)
            for at in range(LEAST):
                begun = instance(f"i-{at}", state=InstanceState.LOADING, start_path=StartPath.FORK)
                node.instances[begun.instance_id] = begun
                node.behave = slow(1.0)
                node.push()
                answer = await world.start(scheduler)
                assert answer.instance.instance_id == begun.instance_id
                await world.clock.sleep(2.0)
                await scheduler.reconciler.stop(NodeId("n1"), begun.instance_id)
                await until(lambda: not world.recorded(), 5.0)
            assert [path for _, _, path in scheduler.starter._learning.seen.took_ms] == [StartPath.FORK]

    run_virtual(main)


def test_a_slow_fetch_is_expected_again_on_that_node_and_not_in_the_next_term() -> None:
    async def main() -> None:
        async with World() as world:
            scheduler = await world.add_scheduler()
            await world.clock.sleep(2.0)
            node = world.nodes["n1"]
            fetched = {"stages": (StageTime(Stage.FETCH, 5e6), StageTime(Stage.LOAD, 3.0)), "fetched_bytes": 5 * LEAST_BYTES}
            node.instances.update({each.instance_id: each for each in (instance(f"i-{at}", **fetched) for at in range(LEAST))})
            await world.clock.sleep(2.0)
            seen = scheduler.starter._learning.seen
            assert dict(seen.ms_per_byte) == {"n1": pytest.approx(1e6 / LEAST_BYTES)}
            scheduler._forget()
            assert dict(scheduler.starter._learning.seen.ms_per_byte) == {}
            await world.clock.sleep(2.0)
            assert dict(scheduler.starter._learning.seen.ms_per_byte) == {}, "ready at the first look of the term"

    run_virtual(main)
