"""The larder's threads: none of them holds anything for a caller that has gone. And whom it has them ask for bytes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tessera.domain.artifact import Blob
from tessera.domain.errors import NotFound
from tessera.domain.ids import Digest, InstanceId, NodeId
from tessera.domain.source import Source
from tessera.node_agent.loops.larder import Larder
from tessera.repository.fetch import Fetcher
from tessera.tensorstore.artifact import digest_of

WHO = InstanceId("who")
MADE = {digest_of(data): data for data in (b"one", b"two")}

CALLS: dict[str, Callable[[Any, Digest], Awaitable[object]]] = {
    "fetch": lambda node, artifact: node.larder.fetch(artifact, WHO),
    "fetch with an event": lambda node, artifact: node.larder.fetch(artifact, WHO, threading.Event()),
    "bring": lambda node, artifact: node.larder.bring(artifact, WHO),
    "put": lambda node, artifact: node.larder.put(MADE, WHO),
}


async def gone(node: Any, monkeypatch: pytest.MonkeyPatch, call: Awaitable[object]) -> None:
    """Whoever calls is cancelled, twice, while a thread is about to take its first hold for him, and releases what he holds."""
    there, go_on, pin = threading.Event(), threading.Event(), node.store.pin

    def held_up(holder: str, digests: Any) -> None:
        there.set()
        assert go_on.wait(10)
        pin(holder, digests)

    monkeypatch.setattr(node.store, "pin", held_up)

    async def use() -> None:
        try:
            await call
        finally:
            node.larder.release(WHO)

    using = asyncio.create_task(use())
    assert await asyncio.to_thread(there.wait, 10)
    for _ in range(2):
        using.cancel()
        await asyncio.sleep(0.01)
    assert not using.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await using


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
async def test_who_goes_away_is_held_nothing_for_and_fetching_ends(
    node: Any, monkeypatch: pytest.MonkeyPatch, call: Callable[[Any, Digest], Awaitable[object]]
) -> None:
    await gone(node, monkeypatch, call(node, node.make_artifact()))
    assert node.store.holders() == {}
    assert len(node.store.digests()) <= 1, "what is under way may be finished, the rest is not begun"


async def test_who_goes_away_while_all_is_there_is_held_nothing_for(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact, evaluation = node.make_artifact(), Blob(node.repository.put_bytes(b"evaluation"), 10)
    await node.larder.bring(artifact, WHO, [evaluation])
    assert evaluation.digest in node.store.holders()[f"start-{WHO}"]
    node.larder.release(WHO)
    await gone(node, monkeypatch, node.larder.bring(artifact, WHO, [evaluation]))
    assert node.store.holders() == {}


async def test_what_fails_fails_for_whoever_stays(node: Any, make: Any) -> None:
    with pytest.raises(NotFound):
        await node.larder.fetch(make.digest(9), WHO)
    await node.larder.put(MADE, WHO)
    assert node.store.holders() == {f"start-{WHO}": frozenset(MADE)}
    node.larder.release(WHO)


class Following(Fetcher):
    """Notes whom each call is to take bytes from: the sources that were named, and the neighbours that are to be asked."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.told: list[tuple[tuple[Source, ...], tuple[Source, ...]]] = []

    def fetch_artifact(self, *args: Any, **others: Any) -> Any:
        return super().fetch_artifact(*args[:4], *self._noted(*args[4:], **others))

    def fetch(self, *args: Any, **others: Any) -> Any:
        return super().fetch(*args[:4], *self._noted(*args[4:], **others))

    def _noted(self, sources: Any = (), neighbours: Any = ()) -> Any:
        self.told.append((tuple(sources), tuple(neighbours)))
        return self.told[-1]


async def test_neighbours_are_asked_where_nobody_named_sources_and_only_there(node: Any) -> None:
    known = [Source(NodeId("n2"), "h:1")]
    blobs = Following(node.repository, node.store)
    larder = Larder(node.store, blobs, node.identity.build_class, neighbours=lambda: known)
    evaluation = Blob(node.repository.put_bytes(b"evaluation"), 10)
    named = (Source(NodeId("n3"), "h:2"),)
    await larder.fetch(node.make_artifact(1), WHO, None, named)
    await larder.fetch(node.make_artifact(2), WHO, None, ())
    assert blobs.told == [(named, ()), ((), ())], "the leader knows who has what"
    blobs.told.clear()
    await larder.fetch(node.make_artifact(3), WHO)
    known.append(Source(NodeId("n4"), "h:3"))
    await larder.bring(node.make_artifact(4), WHO, [evaluation])
    assert blobs.told == [((), tuple(known[:1])), ((), tuple(known)), ((), tuple(known))]
    larder.release(WHO)
