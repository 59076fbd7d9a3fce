"""Stops, before and after an instance is there: nothing of it stays behind."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from tessera.domain.errors import Cancelled, Unavailable
from tessera.domain.ids import InstanceId, Term
from tessera.domain.instance import InstanceState
from tessera.node_agent.adapters.files import RuntimeNotes

A = InstanceId("a")
GONE = InstanceState.GONE


async def stop_noted(node: Any) -> None:
    """Waits until the start of `a` knows that it is to end, or has ended by that: the stop's term is on disk before that."""
    async with asyncio.timeout(5):
        while (flight := node.starter._flights.get(A)) is not None and not flight.stop_reason:  # noqa: ASYNC110 - a word, no event
            await asyncio.sleep(0.001)


async def test_a_stop_drains_unloads_and_lets_go(node: Any) -> None:
    artifact, other = node.make_artifact(1), node.make_artifact(2)
    first, second = await node.start("a", artifact), await node.start("b", artifact)
    third = await node.start("c", other)
    runtime = node.runtimes.live[0]
    await node.agent.stop_instance(Term(1, 5), A)
    assert runtime.unloads == [("a", 100)]
    assert node.table.get(first.instance_id).state is GONE
    assert A not in node.records.published
    assert first.blobs <= node.store.holders()[runtime.hello.runtime_id]  # `b` maps the same
    await node.agent.stop_instance(Term(1, 5), second.instance_id)
    assert node.store.holders()[runtime.hello.runtime_id] == third.blobs
    await node.agent.stop_instance(Term(1, 5), second.instance_id)  # again is nothing
    await node.agent.stop_instance(Term(1, 5), InstanceId("never-there"))


async def test_a_stop_during_the_start_wins(node: Any) -> None:
    artifact = node.make_artifact()
    node.runtimes.fork_gate.clear()
    starting = asyncio.gather(node.start("a", artifact), return_exceptions=True)
    await asyncio.sleep(0.02)
    assert node.starter.starting == 1
    stopping = asyncio.gather(node.agent.stop_instance(Term(1, 5), A))
    await stop_noted(node)
    node.runtimes.fork_gate.set()
    await stopping
    (outcome,) = await starting
    assert isinstance(outcome, Cancelled)
    assert not node.table.get(A).alive
    assert all(not runtime.loaded for runtime in node.runtimes.live)


async def test_a_stop_ends_a_long_fetch(node: Any) -> None:
    artifact = node.make_artifact(1, tensors=3)
    asked: list[Any] = []

    def never(*where: Any) -> bytes:
        asked.append(where)
        raise Unavailable("the storage does not answer")

    node.repository.read_range = never
    starting = asyncio.gather(node.start("a", artifact), return_exceptions=True)
    async with asyncio.timeout(5):
        while not asked:  # noqa: ASYNC110 - a thread asks
            await asyncio.sleep(0.001)
    assert node.table.get(A).state is InstanceState.FETCHING
    async with asyncio.timeout(5):
        await node.agent.stop_instance(Term(1, 5), A)
        (outcome,) = await starting
    assert isinstance(outcome, Cancelled)
    assert node.store.status().incoming_bytes == 0
    assert len(asked) < 3, "it was being waited for"


async def test_a_load_that_survives_its_stop_is_no_start_and_nothing_of_it_stays(node: Any) -> None:
    artifact = node.make_artifact()
    node.runtimes.gate.clear()
    starting = asyncio.gather(node.start("a", artifact), return_exceptions=True)
    while not node.runtimes.early:  # noqa: ASYNC110 - a list that fills
        await asyncio.sleep(0.001)
    stopping = asyncio.gather(node.agent.stop_instance(Term(1, 5), A))
    await stop_noted(node)
    assert node.table.get(A).state is InstanceState.LOADING
    node.runtimes.gate.set()
    await stopping
    (outcome,) = await starting
    assert isinstance(outcome, Cancelled), "who asked for it must not be sent to what is gone"
    (runtime,) = node.runtimes.live
    (view,) = node.fleet.views()
    assert (node.table.get(A).state, runtime.loaded, view.instances, view.holds) == (GONE, {}, 0, frozenset())
    assert not any(node.store.holders().values())
    await node.behind()
    assert node.records.published == {}
    assert [*(node.folder / "notes").rglob("*.note")] == []
    assert (node.starter.starting, node.starter.holders) == (0, frozenset())
    assert (await node.start("b", artifact)).runtime_id == view.runtime_id


async def test_a_note_that_is_being_written_when_its_instance_ends_does_not_stay(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    go, write = threading.Event(), RuntimeNotes.write

    def slowly(*arguments: Any) -> None:
        assert go.wait(5)
        write(*arguments)

    monkeypatch.setattr(RuntimeNotes, "write", slowly)
    await node.start("a", node.make_artifact())
    await node.agent.stop_instance(Term(1, 5), A)
    go.set()
    await node.behind()
    assert [*(node.folder / "notes").rglob("*.note")] == []
