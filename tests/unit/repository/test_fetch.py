"""Fetching: each missing blob once, verified, held, cancellable, and nothing visible when it fails."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from tessera.domain.artifact import Artifact, Blob
from tessera.domain.errors import Cancelled, DataCorrupted, NotFound, ResourceExhausted
from tessera.domain.ids import Digest
from tessera.domain.signature import Signature
from tessera.repository import Repository
from tessera.repository.artifacts import store_artifact, store_tensors
from tessera.repository.fetch import Fetcher
from tessera.repository.interface import Piece, RepositoryReader
from tessera.tensorstore.artifact import digest_of
from tessera.tensorstore.local import LocalTensorStore
from tessera.testing.blobs import ABSENT, StepClock, blob_of, put

MIB = 1 << 20


class CountingRepository(RepositoryReader):
    """A repository that counts how often each blob is opened, and can be made to wait in the middle of one."""

    def __init__(self, inner: Repository) -> None:
        self.inner = inner
        self.opened: dict[Digest, int] = {}
        self.pause_s = 0.0
        self.at_once = 0
        self.most_at_once = 0
        self.first_chunk = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.lock = threading.Lock()

    @property
    def range_bytes(self) -> int:
        return MIB

    def read_range(self, digest: Digest, pieces: Sequence[Piece], offset: int, length: int) -> bytes:
        with self.lock:
            self.opened[digest] = self.opened.get(digest, 0) + (offset == 0)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            data = self.inner.read_range(digest, pieces, offset, length)
            self.first_chunk.set()
            time.sleep(self.pause_s)
            assert self.go_on.wait(20)
            return data
        finally:
            with self.lock:
                self.at_once -= 1

    def open_reader(self, digest: Digest, *, verify: bool = True) -> Generator[bytes, None, None]:
        return self.inner.open_reader(digest, verify=verify)

    def locate(self, digest: Digest) -> list[Piece]:
        return self.inner.locate(digest)

    def read(self, digest: Digest) -> bytes:
        return self.inner.read(digest)

    def has(self, digest: Digest) -> bool:
        return self.inner.has(digest)

    def verify(self, digest: Digest) -> bool:
        return self.inner.verify(digest)

    def digests(self) -> Iterator[tuple[Digest, int]]:
        return self.inner.digests()


@pytest.fixture
def counting(repository: Repository) -> CountingRepository:
    return CountingRepository(repository)


def _blobs(repository: Repository, sizes: list[int]) -> list[Blob]:
    return [Blob(repository.put_bytes(blob_of(seed, size)), size) for seed, size in enumerate(sizes)]


def _corrupt(repository: Repository, digest: Digest, data: bytes) -> None:
    path = Path(repository.url.removeprefix("file://"), repository.locate(digest)[0].object)
    os.chmod(path, 0o644)
    path.write_bytes(data)


def test_what_is_missing_comes_once_and_all_is_held(counting: CountingRepository, store: LocalTensorStore) -> None:
    blobs = _blobs(counting.inner, [3 * MIB + 5, 10, 0, 2 * MIB])
    there = put(store, blob_of(1, 10))
    assert there == blobs[1].digest
    seen: list[tuple[int, int]] = []
    fetched = Fetcher(counting, store, concurrency=2).fetch([*blobs, blobs[0]], "fetch-1", lambda done, total: seen.append((done, total)))
    assert set(fetched.digests) == {blobs[n].digest for n in (0, 2, 3)}
    assert fetched.bytes_fetched == 5 * MIB + 5
    assert counting.opened == {blobs[n].digest: 1 for n in (0, 3)}, "and the one of no length is no reading"
    assert counting.most_at_once <= 2
    assert store.holders() == {"fetch-1": frozenset(blob.digest for blob in blobs)}
    assert [total for _, total in seen] == [5 * MIB + 5] * len(seen)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == 5 * MIB + 5
    again = Fetcher(counting, store).fetch(blobs, "fetch-2")
    assert (again.bytes_fetched, again.digests) == (0, ())
    assert sum(counting.opened.values()) == 2


def test_an_artifact_comes_with_all_that_it_names(counting: CountingRepository, store: LocalTensorStore) -> None:
    repository = counting.inner
    stored = store_tensors(repository, [("w", "UINT8", (MIB,), blob_of(7, MIB)), ("b", "UINT8", (4,), b"bias")])
    artifact = Artifact(
        "aten", "fp32", "aten", Blob(repository.put_bytes(b"graph"), 5), stored.pack, stored.tensors, Signature((), ()), None, 8
    )
    digest = store_artifact(repository, artifact)
    fetcher = Fetcher(counting, store)
    found, fetched = fetcher.fetch_artifact(digest, "fetch-1")
    assert found == artifact
    assert set(fetched.digests) == {digest, *(blob.digest for blob in artifact.blobs())}
    assert fetched.bytes_fetched == sum(store.digests().values())
    assert store.holders()["fetch-1"] == set(fetched.digests)
    found, fetched = fetcher.fetch_artifact(digest, "fetch-2")
    assert (found, fetched.bytes_fetched, fetched.digests) == (artifact, 0, ())
    assert store.holders()["fetch-2"] == store.holders()["fetch-1"]


def test_an_artifact_whose_tensor_is_missing_leaves_no_hold(repository: Repository, store: LocalTensorStore) -> None:
    stored = store_tensors(repository, [("w", "UINT8", (MIB,), blob_of(7, MIB))])
    artifact = Artifact("aten", "fp32", "", None, None, stored.tensors, Signature((), ()), None, 8)
    digest = store_artifact(repository, artifact)
    repository.delete(stored.tensors[0].digest)
    with pytest.raises(NotFound, match=stored.tensors[0].digest):
        Fetcher(repository, store).fetch_artifact(digest, "fetch-1")
    assert store.holders() == {}


def test_what_is_no_artifact_is_said(repository: Repository, store: LocalTensorStore) -> None:
    digest = repository.put_bytes(b"not JSON")
    with pytest.raises(DataCorrupted, match="Artifact"):
        Fetcher(repository, store).fetch_artifact(digest, "fetch-1")
    assert store.holders() == {}
    with pytest.raises(NotFound, match=ABSENT):
        Fetcher(repository, store).fetch_artifact(ABSENT, "fetch-1")


@pytest.mark.parametrize("stored", [bytes(MIB), blob_of(0, MIB)[:-1], blob_of(0, MIB) + b"x"])
def test_a_corrupted_object_is_never_visible(repository: Repository, store: LocalTensorStore, stored: bytes) -> None:
    blobs = _blobs(repository, [MIB, 100, 100])
    _corrupt(repository, blobs[0].digest, stored)
    before = put(store, blob_of(1, 100), "fetch-1")
    with pytest.raises(DataCorrupted, match=blobs[0].digest):
        Fetcher(repository, store).fetch(blobs, "fetch-1")
    assert not store.has(blobs[0].digest)
    assert store.holders() == {"fetch-1": frozenset({before})}  # only holds of this call were dropped
    assert store.status().incoming_bytes == 0
    repository.delete(blobs[0].digest)
    repository.put_bytes(blob_of(0, MIB))
    assert Fetcher(repository, store).fetch(blobs, "fetch-1").bytes_fetched >= MIB


def test_a_corrupted_store_file_is_set_aside_and_fetched_again(repository: Repository, store: LocalTensorStore) -> None:
    blobs = _blobs(repository, [MIB])
    fetcher = Fetcher(repository, store)
    fetcher.fetch(blobs, "fetch-1")
    path = store.path(blobs[0].digest)
    path.chmod(0o644)
    path.write_bytes(bytes(MIB))
    path.chmod(0o444)
    assert not store.verify(blobs[0].digest)
    store.quarantine(blobs[0].digest)
    assert fetcher.fetch(blobs, "fetch-1").bytes_fetched == MIB
    assert store.verify(blobs[0].digest)


def test_no_room_is_said_before_the_first_byte(counting: CountingRepository, tmp_path: Path) -> None:
    blobs = _blobs(counting.inner, [600, 600])
    with LocalTensorStore(tmp_path / "small", 1000, StepClock()) as small:
        with pytest.raises(ResourceExhausted, match="1200 bytes needed, budget 1000"):
            Fetcher(counting, small).fetch(blobs, "fetch-1")
        assert counting.opened == {}
        assert small.holders() == {}


def test_a_fetch_is_cancelled_between_chunks(counting: CountingRepository, store: LocalTensorStore) -> None:
    blobs = _blobs(counting.inner, [8 * MIB, 8 * MIB - 4, 100])
    cancel = threading.Event()
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        cancel.set()

    with pytest.raises(Cancelled, match="fetch-1 was cancelled"):
        Fetcher(counting, store, concurrency=2).fetch(blobs, "fetch-1", progress, cancel)
    assert len(seen) <= 4
    assert store.digests() == {}
    assert store.holders() == {}
    assert store.status().used_bytes == 0
    assert counting.at_once == 0


def test_calls_that_want_the_same_blob_share_one_copying(counting: CountingRepository, store: LocalTensorStore) -> None:
    blobs = _blobs(counting.inner, [2 * MIB, 100])
    fetcher = Fetcher(counting, store)
    counting.go_on.clear()
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(fetcher.fetch, blobs, f"fetch-{n}") for n in range(3)]
        assert counting.first_chunk.wait(20)
        counting.go_on.set()
        fetched = [call.result(30) for call in calls]
    assert counting.opened == {blob.digest: 1 for blob in blobs}
    assert sum(found.bytes_fetched for found in fetched) == 2 * MIB + 100
    assert store.holders() == {f"fetch-{n}": frozenset(blob.digest for blob in blobs) for n in range(3)}


def test_what_another_call_copies_takes_room_once(counting: CountingRepository, tmp_path: Path) -> None:
    blobs = _blobs(counting.inner, [3 * MIB])
    counting.go_on.clear()
    with LocalTensorStore(tmp_path / "tight", 4 * MIB, StepClock()) as tight, ThreadPoolExecutor(2) as pool:
        fetcher = Fetcher(counting, tight)
        first = pool.submit(fetcher.fetch, blobs, "fetch-1")
        assert counting.first_chunk.wait(20)
        second = pool.submit(fetcher.fetch, blobs, "fetch-2")
        early = wait((second,), timeout=0.2).done  # it waits; for want of room it would have failed by now
        counting.go_on.set()
        assert not early
        assert [(call.result(30).bytes_fetched, call.result(30).waited) for call in (first, second)] == [(3 * MIB, False), (0, True)]


def test_the_first_error_stops_the_other_blobs(counting: CountingRepository, store: LocalTensorStore) -> None:
    large, lost = _blobs(counting.inner, [24 * MIB, 100])
    counting.inner.delete(lost.digest)
    counting.pause_s = 0.05
    with pytest.raises(NotFound, match=lost.digest):
        Fetcher(counting, store, concurrency=2).fetch([large, lost], "fetch-1")
    assert not store.has(large.digest)
    assert store.status().used_bytes == 0


def test_who_waits_takes_over_when_the_first_is_cancelled(counting: CountingRepository, store: LocalTensorStore) -> None:
    blobs = _blobs(counting.inner, [8 * MIB])
    fetcher = Fetcher(counting, store)
    cancel = threading.Event()
    counting.go_on.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(fetcher.fetch, blobs, "fetch-1", None, cancel)
        assert counting.first_chunk.wait(20)
        second = pool.submit(fetcher.fetch, blobs, "fetch-2")
        cancel.set()
        counting.go_on.set()
        with pytest.raises(Cancelled):
            first.result(30)
        assert second.result(30).bytes_fetched == 8 * MIB
    assert store.holders() == {"fetch-2": frozenset({blobs[0].digest})}


def test_who_waits_can_be_cancelled_too(counting: CountingRepository, store: LocalTensorStore) -> None:
    blobs = _blobs(counting.inner, [2 * MIB])
    fetcher = Fetcher(counting, store)
    cancel = threading.Event()
    counting.go_on.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(fetcher.fetch, blobs, "fetch-1")
        assert counting.first_chunk.wait(20)
        second = pool.submit(fetcher.fetch, blobs, "fetch-2", None, cancel)
        cancel.set()
        with pytest.raises(Cancelled):
            second.result(30)
        counting.go_on.set()
        assert first.result(30).digests == (digest_of(blob_of(0, 2 * MIB)),)


def test_who_maps_without_a_hold_is_asked_before_anything_is_reclaimed(counting: CountingRepository, store: LocalTensorStore) -> None:
    asked: list[int] = []
    fetcher = Fetcher(counting, store, before_reclaim=lambda: asked.append(len(store.digests())))
    fetcher.fetch(_blobs(counting.inner, [MIB]), "fetch-1")
    store.unpin("fetch-1", None)
    assert asked == []
    room = store.status().budget_bytes - MIB
    fetcher.fetch(_blobs(counting.inner, [room + 1]), "fetch-2")
    assert asked == [1], "once, and the blob was there still"
    assert len(store.digests()) == 1
