"""The larder's threads: none of them holds anything for a caller that has gone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tessera.domain.artifact import Blob
from tessera.domain.errors import NotFound
from tessera.domain.ids import Digest, InstanceId
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
