"""Starts that are answered as soon as they are mapped, because what they open has been opened before."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tessera.domain.errors import DataCorrupted, Internal, Unavailable
from tessera.domain.ids import InstanceId, Term
from tessera.domain.instance import InstanceState, Stage, StartPath
from tessera.node_agent.core.opened import OpenedPrograms

FAILED, GONE, READY = InstanceState.FAILED, InstanceState.GONE, InstanceState.READY
A, B = InstanceId("a"), InstanceId("b")

unverified = pytest.mark.parametrize("node", [False], indirect=True, ids=["unverified"])


async def second(node: Any) -> Any:
    """An instance whose start was answered while its runtime opens it, beside a ready one of the same artifact."""
    artifact = node.make_artifact()
    await node.start("a", artifact)
    node.runtimes.opening.clear()
    found = await node.start("b", artifact)
    assert (found.state, found.opening) == (READY, True)
    return found


async def until(node: Any, name: str, *, opening: bool) -> Any:
    async with asyncio.timeout(5):
        while node.table.get(InstanceId(name)).alive and node.table.get(InstanceId(name)).opening is not opening:  # noqa: ASYNC110 - fakes
            await asyncio.sleep(0.001)
    return node.table.get(InstanceId(name))


def millis(instance: Any) -> dict[Stage, float]:
    return {time.stage: time.ms for time in instance.stages}


@unverified
async def test_the_second_opening_is_waited_for_by_nobody_and_counted(node: Any) -> None:
    told = await second(node)
    assert (told.start_path, told.private_bytes, millis(told)) == (StartPath.BIND, 0, {Stage.MAP: 0.0, Stage.LOAD: 0.0})
    assert B not in node.records.published
    node.clock.move(0.002)
    node.runtimes.opening.set()
    opened = await until(node, "b", opening=False)
    assert (opened.state, opened.private_bytes) == (READY, 1000)
    assert millis(opened) == {Stage.MAP: 0.0, Stage.LOAD: pytest.approx(2.0)}
    await asyncio.sleep(0.01)
    assert node.records.published[B].stages == opened.stages
    assert [line.words.split(":")[0] for line in node.table.story(B)][-2:] == ["loading", "ready"]


@unverified
async def test_what_is_opened_for_the_first_time_or_in_a_runtime_made_for_it_is_waited_for(node: Any) -> None:
    artifact, sibling, other = node.make_artifact(1), node.make_artifact(1, tensors=3), node.make_artifact(2)
    await node.start("a", artifact)
    await node.start("b", sibling)  # of one graph
    await node.start("c", other)
    await node.start("d", other, start_path=StartPath.FORK)
    await node.start("e", other)
    assert node.runtimes.early == [False, True, False, False, True]


async def test_verified_starts_are_whole(node: Any) -> None:
    artifact = node.make_artifact()
    for name in "abc":
        await node.start(name, artifact)
    assert node.runtimes.early == [False] * 3


@unverified
async def test_a_failed_opening_fails_the_instance_and_the_next_start_is_whole(node: Any) -> None:
    artifact = node.make_artifact()
    first = await node.start("a", artifact)
    node.runtimes.opening.clear()
    node.runtimes.faults["m"] = [Internal("cannot be opened")]
    told = await node.start("b", artifact)
    node.runtimes.opening.set()
    failed = await until(node, "b", opening=False)
    assert (told.state, failed.state, str(failed.error)) == (READY, FAILED, "cannot be opened")
    assert (failed.runtime_id, failed.blobs, set(node.records.published)) == (None, frozenset(), {A})
    with pytest.raises(Internal, match="cannot be opened"):
        await node.start("b", artifact)
    third = await node.start("c", artifact)
    assert third.runtime_id == first.runtime_id
    await node.start("d", artifact)
    assert node.runtimes.early == [False, True, False, True]


@unverified
async def test_bytes_that_turn_out_corrupted_are_replaced_by_the_next_start(node: Any) -> None:
    artifact = node.make_artifact()
    first = await node.start("a", artifact)
    victim = sorted(first.blobs - {artifact})[0]
    node.corrupt(victim)
    node.runtimes.faults["m"] = [DataCorrupted(f"blob {victim}"), DataCorrupted(f"blob {victim}")]
    node.runtimes.opening.clear()
    await node.start("b", artifact)
    node.runtimes.opening.set()
    assert (await until(node, "b", opening=False)).state is FAILED
    third = await node.start("c", artifact)
    assert (third.state, third.fetched, third.runtime_id != first.runtime_id) == (READY, True, True)
    assert node.runtimes.early == [False, True, False, False]
    assert node.store.verify(victim)


@unverified
async def test_a_runtime_that_dies_while_it_opens_is_the_fault_of_what_it_opened(node: Any, make: Any) -> None:
    artifact, good, bad = node.make_artifact(), make.variant("good"), make.variant("bad")
    neighbour = await node.start("n", artifact, variant=good)
    node.runtimes.opening.clear()
    node.runtimes.faults["bad"] = ["die"]
    assert (await node.start("b", artifact, variant=bad)).opening
    node.runtimes.opening.set()
    failed = await until(node, "b", opening=False)
    assert failed.state is FAILED
    assert "ended while it loaded variant bad@1/ort-fp32" in str(failed.error)
    assert "ended that held variant good" in str(node.table.get(neighbour.instance_id).error)
    with pytest.raises(Unavailable, match=r"not tried again for 1\.0 s"):
        await node.start("c", artifact, variant=bad)
    again = await node.start("n2", artifact, variant=good)
    node.clock.move(1.0)
    healed = await node.start("d", artifact, variant=bad)
    assert (again.runtime_id[:3], healed.runtime_id[:4], node.runtimes.early[-1]) == ("rt-", "own-", False)


@unverified
async def test_an_opening_that_hangs_costs_its_runtime(node: Any) -> None:
    artifact = node.make_artifact()
    await node.start("a", artifact)
    node.runtimes.faults["m"] = ["hang"]
    await node.start("b", artifact)
    assert "killed by the node agent" in str((await _explained(node)).error)
    assert node.runtimes.live == []


async def _explained(node: Any) -> Any:
    async with asyncio.timeout(5):
        while "killed" not in str(node.table.get(B).error):  # noqa: ASYNC110 - fakes
            await asyncio.sleep(0.001)
    return node.table.get(B)


@unverified
async def test_what_is_stopped_while_it_is_opened_is_gone_and_stays_so(node: Any) -> None:
    told = await second(node)
    stopping = asyncio.ensure_future(node.agent.stop_instance(Term(1, 5), B))
    await asyncio.sleep(0.01)
    node.runtimes.opening.set()
    await stopping
    await asyncio.sleep(0.01)
    assert (node.table.get(A).state, node.table.get(B).state) == (READY, GONE)
    assert set(node.records.published) == {A}
    assert list(node.runtimes.all[told.runtime_id].loaded) == [A]


@unverified
async def test_what_cannot_be_opened_while_it_is_stopped_is_failed_and_nothing_of_it_stays(node: Any) -> None:
    node.runtimes.faults["m"] = ["", Internal("cannot be opened")]
    told = await second(node)
    stopping = asyncio.ensure_future(node.agent.stop_instance(Term(1, 5), B))
    await asyncio.sleep(0.01)
    node.runtimes.opening.set()
    await stopping
    assert (node.table.get(A).state, node.table.get(B).state) == (READY, FAILED)
    (runtime,) = node.fleet.views()
    assert (runtime.runtime_id, runtime.instances, runtime.holds) == (told.runtime_id, 1, node.table.get(A).blobs)


def test_what_was_opened_is_remembered_by_flavour_up_to_a_number(make: Any) -> None:
    opened = OpenedPrograms(limit=2)
    one, two, three = (make.digest(number) for number in range(3))
    for program in (one, two, one, three):
        opened.opened("ort", program)
    assert [opened.knows("ort", program) for program in (one, two, three)] == [True, False, True]
    assert not opened.knows("aten", one)
    opened.failed("ort", one)
    opened.failed("ort", two)
    assert (opened.knows("ort", one), len(opened)) == (False, 1)
