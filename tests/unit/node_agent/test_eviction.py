from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.errors import Cancelled, ResourceExhausted
from tessera.domain.ids import DEFAULT_TRUST_DOMAIN, Digest, InstanceId, Term
from tessera.domain.instance import InstanceState, StartPath
from tessera.node_agent.core.eviction import Idle, evictable, freed_bytes, plan_eviction

TRUNK, A, B, C = (Digest(letter * 64) for letter in "0abc")
SIZES = {TRUNK: 100, A: 10, B: 20, C: 30}


def idle(name: str, idle_s: float, *blobs: Digest) -> Idle:
    return Idle(InstanceId(name), idle_s, frozenset(blobs))


def counted(*instances: Idle) -> Counter[Digest]:
    found: Counter[Digest] = Counter()
    for instance in instances:
        found.update(instance.blobs)
    return found


OLD, MIDDLE, NEW = idle("old", 90.0, TRUNK, A), idle("middle", 50.0, TRUNK, B), idle("new", 10.0, TRUNK, C)
ALL = (OLD, MIDDLE, NEW)


def plan(needed: int, keep: frozenset[Digest] = frozenset(), others: dict[str, frozenset[Digest]] | None = None) -> list[str] | None:
    found = plan_eviction(evictable(ALL, 1.0), needed, keep, others or {}, SIZES, counted(*ALL))
    return None if found is None else [instance.instance_id for instance in found]


def test_the_longest_idle_goes_and_no_more_than_it_takes() -> None:
    assert plan(0) == []
    assert plan(10) == ["old"]
    assert plan(11) == ["middle"], "20 bytes of its own are enough; the older one would free too little and stays"
    assert plan(25) == ["old", "middle"]


def test_a_shared_trunk_comes_free_with_its_last_instance_only() -> None:
    assert plan(61) == ["old", "middle", "new"]
    assert plan(160) == ["old", "middle", "new"]
    assert plan(161) is None


def test_what_the_start_needs_or_another_holder_keeps_is_no_gain() -> None:
    assert plan(61, keep=frozenset({TRUNK})) is None
    assert plan(60, others={"start-x": frozenset({TRUNK})}) == ["old", "middle", "new"]
    assert plan(10, keep=frozenset({A})) == ["middle"]


def test_who_served_a_moment_ago_stays() -> None:
    assert [found.instance_id for found in evictable([idle("a", 0.9), idle("b", 1.0), idle("c", 5.0)], 1.0)] == ["c", "b"]


@given(
    st.lists(st.sets(st.sampled_from([TRUNK, A, B, C]), min_size=1), min_size=1, max_size=6),
    st.integers(0, 200),
    st.sets(st.sampled_from([TRUNK, A, B, C])),
)
def test_a_plan_frees_enough_and_everyone_in_it_is_needed(blobs: list[set[Digest]], needed: int, keep: set[Digest]) -> None:
    instances = [idle(f"i{at}", 100.0 - at, *held) for at, held in enumerate(blobs)]
    mine, kept = counted(*instances), {"start": frozenset(keep)}
    found = plan_eviction(instances, needed, frozenset(keep), {}, SIZES, mine)
    if found is None:
        assert freed_bytes(instances, kept, SIZES, mine) < needed
        return
    assert freed_bytes(found, kept, SIZES, mine) >= needed
    for instance in found:
        assert freed_bytes([other for other in found if other is not instance], kept, SIZES, mine) < needed


# Carried out: a node whose store takes two of these, of 480 KiB each.


async def three(node: Any, make: Any) -> list[Digest]:
    """Two are ready, the third has to be brought in."""
    artifacts = [node.make_artifact(seed, tensors=60) for seed in (1, 2, 3)]
    for name, artifact in zip("ab", artifacts, strict=False):
        await node.start(name, artifact, variant=make.variant(name))
    return artifacts


async def test_an_idle_instance_makes_room_for_a_start(node: Any, make: Any) -> None:
    artifacts = await three(node, make)
    summary = await node.agent.summary(refresh=True)
    assert summary.evictable_bytes[DEFAULT_TRUST_DOMAIN] == node.store.status().pinned_bytes, "both are idle"
    ready = await node.start("c", artifacts[2], variant=make.variant("c"))
    assert ready.state is InstanceState.READY
    assert [(found.instance_id, found.state) for found in node.table if found.alive] == [
        ("b", InstanceState.READY),
        ("c", InstanceState.READY),
    ]
    assert "makes room for c" in node.table.story("a")[-2].words
    assert "a" not in node.records.published
    assert node.store.check(deep=True) == []


async def test_the_donor_of_a_start_goes_last(node: Any, make: Any) -> None:
    artifacts = await three(node, make)
    into = {"start_path": StartPath.TRANSFORM, "donor": InstanceId("a"), "delta": b"{}"}
    ready = await node.start("c", artifacts[2], variant=make.variant("c"), **into)
    assert ready.start_path is StartPath.TRANSFORM
    assert "makes room for c" in node.table.story("b")[-2].words
    assert "became c" in node.table.story("a")[-1].words


async def test_instances_in_use_are_not_touched_and_the_refusal_names_who_holds(node: Any, make: Any) -> None:
    artifacts = await three(node, make)
    node.runtimes.idle_s = 0.0
    assert (await node.agent.summary(refresh=True)).evictable_bytes[DEFAULT_TRUST_DOMAIN] == 0
    start = asyncio.ensure_future(node.start("c", artifacts[2], variant=make.variant("c")))
    while not start.done():
        await asyncio.sleep(0.01)
        node.clock.move(0.1)
    with pytest.raises(ResourceExhausted, match=r"pinned .* by"):
        start.result()
    assert [found.instance_id for found in node.table if found.state is InstanceState.READY] == ["a", "b"]


async def test_a_start_waits_a_moment_for_an_instance_to_become_idle(node: Any, make: Any) -> None:
    artifacts = await three(node, make)
    node.runtimes.idle_s = 0.0
    start = asyncio.ensure_future(node.start("c", artifacts[2], variant=make.variant("c")))
    await asyncio.sleep(0.1)
    node.runtimes.idle_s = 1.0
    while not start.done():
        await asyncio.sleep(0.01)
        node.clock.move(0.1)
    assert start.result().state is InstanceState.READY


async def stopped_while_held_up(node: Any, start: asyncio.Future[Any], go_on: Callable[[], None]) -> None:
    """Stops `c`, then lets what holds its start up go on, and sees that nobody has to leave for it."""
    stopping = asyncio.ensure_future(node.agent.stop_instance(Term(1, 5), InstanceId("c")))
    while not node.starter._flights[InstanceId("c")].stop_reason:  # noqa: ASYNC110 - a word, no event
        await asyncio.sleep(0)
    go_on()
    await stopping
    with pytest.raises(Cancelled):
        await start
    assert [(found.instance_id, found.state) for found in node.table] == [
        ("a", InstanceState.READY),
        ("b", InstanceState.READY),
        ("c", InstanceState.FAILED),
    ]


async def test_nobody_is_evicted_for_a_start_that_is_stopped_when_it_finds_no_room(
    node: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = await three(node, make)
    loop, full, go_on, make_room = asyncio.get_running_loop(), asyncio.Event(), threading.Event(), node.store.make_room

    def slowly(size_bytes: int) -> Any:
        try:
            return make_room(size_bytes)
        except ResourceExhausted:
            loop.call_soon_threadsafe(full.set)
            assert go_on.wait(5)
            raise

    monkeypatch.setattr(node.store, "make_room", slowly)
    start = asyncio.ensure_future(node.start("c", artifacts[2], variant=make.variant("c")))
    await full.wait()
    await stopped_while_held_up(node, start, go_on.set)


async def test_nobody_is_evicted_for_a_start_that_is_stopped_while_runtimes_are_asked_who_is_idle(
    node: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = await three(node, make)
    asked, go_on, refresh = asyncio.Event(), asyncio.Event(), node.fleet.refresh

    async def slowly(**how: Any) -> None:
        await refresh(**how)
        asked.set()
        await go_on.wait()

    monkeypatch.setattr(node.fleet, "refresh", slowly)
    start = asyncio.ensure_future(node.start("c", artifacts[2], variant=make.variant("c")))
    await asked.wait()
    await stopped_while_held_up(node, start, go_on.set)
