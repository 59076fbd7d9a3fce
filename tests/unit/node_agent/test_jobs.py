"""Baking: one job at a time, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from tessera.domain.accuracy import Agreement
from tessera.domain.artifact import Blob
from tessera.domain.errors import Internal, NotFound, Unavailable
from tessera.domain.ids import BuildClass, Digest
from tessera.node_agent.loops.jobs import CHUNK_BYTES, Baked, BakedBlob, BakeFiles, BakeOrder, BlobChunk, Jobs
from tessera.tensorstore.artifact import digest_of

AGREEMENT = Agreement(1e-6, 1.0, 3)


class FakeBaker:
    """Writes `contents` as blobs, or raises `error`; `begun` counts."""

    def __init__(self) -> None:
        self.contents: list[bytes] = []
        self.files: list[BakeFiles] = []
        self.error: Exception | None = None
        self.begun = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def bake(self, files: BakeFiles) -> AsyncGenerator[str | Baked, None]:
        self.begun += 1
        self.files.append(files)
        assert files.source.is_file()
        yield "optimising"
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        blobs = []
        for data in self.contents:
            digest = digest_of(data)
            (files.out / digest).write_bytes(data)
            blobs.append(BakedBlob(digest, len(data), files.out / digest))
        yield Baked(blobs[-1].digest, BuildClass("b"), tuple(blobs), AGREEMENT, "notes")


class World:
    def __init__(self, node: Any, folder: Path) -> None:
        self.node, self.baker, self.folder = node, FakeBaker(), folder
        folder.mkdir()
        self.jobs = Jobs(
            node.larder, self.baker, node.repository.has, self.scratch, self.remove, node.store.path, os.urandom, node.job_turn
        )

    def scratch(self) -> Path:
        found = self.folder / os.urandom(4).hex()
        found.mkdir()
        return found

    def remove(self, path: Path) -> None:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()


@pytest.fixture
def world(node: Any, tmp_path: Path) -> World:
    return World(node, tmp_path / "scratch")


async def test_only_blobs_that_the_repository_lacks_are_sent_in_chunks(world: World) -> None:
    known, new = b"known", bytes(range(256)) * (CHUNK_BYTES // 256 * 2) + b"end"
    world.node.repository.put_bytes(known)
    world.baker.contents = [known, new, b""]
    events = [event async for event in world.jobs.bake(BakeOrder(world.node.make_artifact(), 8, "ort-fp32"))]
    chunks = [event for event in events if isinstance(event, BlobChunk)]
    assert b"".join(chunk.data for chunk in chunks if chunk.digest == digest_of(new)) == new
    assert [(chunk.offset, len(chunk.data)) for chunk in chunks if chunk.digest == digest_of(new)] == [
        (0, CHUNK_BYTES),
        (CHUNK_BYTES, CHUNK_BYTES),
        (2 * CHUNK_BYTES, 3),
    ]
    assert [chunk.data for chunk in chunks if chunk.digest == digest_of(b"")] == [b""]  # an empty blob is told, too
    assert digest_of(known) not in {chunk.digest for chunk in chunks}
    assert isinstance(events[-1], Baked)
    assert events[0] == "fetching the export"
    assert list(world.folder.iterdir()) == []
    assert world.node.store.holders() == {}


async def test_what_a_repository_that_does_not_answer_may_lack_is_sent(world: World) -> None:
    asked: list[Digest] = []

    def has(digest: Digest) -> bool:
        asked.append(digest)
        raise Unavailable("no way to the storage")

    node = world.node
    jobs = Jobs(node.larder, world.baker, has, world.scratch, world.remove, node.store.path, os.urandom, node.job_turn)
    world.baker.contents = [b"one", b"two"]
    events = [event async for event in jobs.bake(BakeOrder(node.make_artifact(), 8, "ort-fp32"))]
    assert [event.data for event in events if isinstance(event, BlobChunk)] == [b"one", b"two"]
    assert isinstance(events[-1], Baked)
    assert len(asked) == 1, "each question may take as long as its client has patience"


async def test_sets_lie_in_the_store_while_it_bakes_and_are_let_go(world: World) -> None:
    world.baker.contents = [b"x"]
    sets = [Blob(world.node.repository.put_bytes(data), len(data)) for data in (b"evaluation", b"calibration")]
    order = BakeOrder(world.node.make_artifact(), 8, "ort-int8", sets[0], "top1", sets[1])
    events = [event async for event in world.jobs.bake(order)]
    (files,) = world.baker.files
    assert (files.recipe, files.metric, files.max_batch) == ("ort-int8", "top1", 8)
    assert files.evaluation is not None
    assert files.evaluation.read_bytes() == b"evaluation"
    assert files.calibration is not None
    assert files.calibration.read_bytes() == b"calibration"
    assert isinstance(events[-1], Baked)
    assert (events[-1].agreement, events[-1].notes) == (AGREEMENT, "notes")
    assert world.node.store.holders() == {}
    lost = BakeOrder(order.export, 8, "ort-int8", Blob(Digest("9" * 64), 1), "top1")
    with pytest.raises(NotFound):
        _ = [event async for event in world.jobs.bake(lost)]
    assert world.node.store.holders() == {}


async def test_a_bake_that_fails_says_why_and_leaves_nothing(world: World) -> None:
    world.baker.error = Internal("output y differs")
    with pytest.raises(Internal, match="output y differs"):
        _ = [event async for event in world.jobs.bake(BakeOrder(world.node.make_artifact(), 8, "ort-fp32"))]
    with pytest.raises(NotFound):
        _ = [event async for event in world.jobs.bake(BakeOrder(Digest("9" * 64), 8, "ort-fp32"))]
    assert list(world.folder.iterdir()) == []
    assert world.node.store.holders() == {}


async def test_jobs_take_turns(world: World) -> None:
    world.baker.contents = [b"x"]
    world.baker.gate.clear()
    artifact = world.node.make_artifact()

    first: asyncio.Queue[Any] = asyncio.Queue()
    second: asyncio.Queue[Any] = asyncio.Queue()

    async def run(events: asyncio.Queue[Any]) -> Any:
        async for event in world.jobs.bake(BakeOrder(artifact, 8, "ort-fp32")):
            events.put_nowait(event)
        return event

    async with asyncio.timeout(10):
        begun = asyncio.create_task(run(first))
        while await first.get() != "optimising":
            pass
        waiting = asyncio.create_task(run(second))
        assert await second.get() == "waiting for another job of this node"
        assert world.baker.begun == 1
        world.baker.gate.set()
        assert isinstance(await begun, Baked)
        assert isinstance(await waiting, Baked)


async def test_a_caller_that_goes_away_ends_the_job(world: World) -> None:
    world.baker.contents = [b"x"]
    events = world.jobs.bake(BakeOrder(world.node.make_artifact(), 8, "ort-fp32"))
    async for event in events:
        if event == "optimising":
            break
    await events.aclose()
    assert list(world.folder.iterdir()) == []
    assert world.node.store.holders() == {}


async def test_a_caller_that_goes_away_while_it_fetches_leaves_no_hold_and_the_turn_only_then(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on, real = threading.Event(), threading.Event(), world.node.repository.read_range

    def held_up(*args: Any) -> bytes:
        reading.set()
        assert go_on.wait(10)
        return real(*args)

    monkeypatch.setattr(world.node.repository, "read_range", held_up)
    events = world.jobs.bake(BakeOrder(world.node.make_artifact(), 8, "ort-fp32"))
    assert await anext(events) == "fetching the export"
    fetching = asyncio.ensure_future(anext(events))
    assert await asyncio.to_thread(reading.wait, 10)
    fetching.cancel()
    await asyncio.sleep(0.05)
    assert world.node.job_turn.locked(), "another job would fetch beside it"
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert not world.node.job_turn.locked()
    assert world.node.store.holders() == {}
    assert list(world.folder.iterdir()) == []
