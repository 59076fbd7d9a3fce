"""Blob lists: read ahead from the repository, bounded, and never in the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from scheduler_builders import eventually

from tessera.domain.artifact import Blob
from tessera.domain.ids import Digest
from tessera.program import Stop, Tasks
from tessera.repository import Repository
from tessera.repository.artifacts import encode
from tessera.scheduler.adapters.artifacts import QUEUE_LENGTH, BlobLists
from tessera.testing.builders import a_digest, an_artifact


@asynccontextmanager
async def running(lists: BlobLists) -> AsyncIterator[None]:
    async with Tasks(Stop()) as tasks:
        tasks.start("blob lists", lists.run())
        yield


async def known(lists: BlobLists, artifact: Digest) -> None:
    await eventually(lambda: lists.blobs(artifact) is not None)


async def test_what_is_wanted_is_read_and_kept(tmp_path: Path) -> None:
    url = f"file://{tmp_path}"
    artifact = an_artifact(tensors=3)
    digest = Repository(url).put_bytes(encode(artifact))
    lists = BlobLists(url, capacity=8)
    assert lists.blobs(digest) is None
    async with running(lists):
        lists.want(digest)
        await known(lists, digest)
    assert lists.blobs(digest) == (Blob(digest, len(encode(artifact))), *artifact.blobs())
    assert len(artifact.blobs()) == 5


async def test_the_least_recently_used_list_makes_room(tmp_path: Path) -> None:
    url = f"file://{tmp_path}"
    first, second, third = (Repository(url).put_bytes(encode(an_artifact(tensors=count))) for count in (1, 2, 3))
    lists = BlobLists(url, capacity=2)
    async with running(lists):
        for digest in (first, second):
            lists.want(digest)
            await known(lists, digest)
        lists.blobs(first)
        lists.want(third)
        await known(lists, third)
    assert lists.blobs(first) is not None
    assert lists.blobs(second) is None


async def test_what_cannot_be_read_is_left_out_and_may_be_asked_again(tmp_path: Path) -> None:
    url = f"file://{tmp_path}"
    good = Repository(url).put_bytes(encode(an_artifact()))
    other = Repository(url).put_bytes(b"no artifact")
    lists = BlobLists(url, capacity=2)
    async with running(lists):
        for digest in (a_digest(5), other, good):
            lists.want(digest)
        await known(lists, good)
        assert lists.blobs(a_digest(5)) is None
        assert lists.blobs(other) is None
        lists.want(a_digest(5))


async def test_the_queue_is_bounded_and_without_a_repository_nothing_is_queued() -> None:
    lists = BlobLists("memory://bounded", capacity=2)
    for number in range(QUEUE_LENGTH + 10):
        lists.want(a_digest(number))
    none = BlobLists("", capacity=2)
    none.want(a_digest(1))
    assert none.blobs(a_digest(1)) is None
