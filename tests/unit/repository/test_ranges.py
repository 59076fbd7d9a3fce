"""Ranges of one blob: several threads, a failed one again, an end at once when it is asked for or hopeless."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest

from tessera.domain.artifact import Blob
from tessera.domain.errors import Cancelled, DataCorrupted, Unavailable
from tessera.domain.ids import Digest
from tessera.repository import Repository
from tessera.repository.fetch import Fetcher
from tessera.repository.interface import Piece
from tessera.repository.ranges import TRIES, RangeReader
from tessera.repository.store import LOCAL_RANGE_BYTES
from tessera.tensorstore.local import LocalTensorStore
from tessera.testing.blobs import blob_of

MIB = 1 << 20


class FailingRanges:
    """The repository, but ranges fail as often as `faults` says for their offset, and all reads are noted."""

    def __init__(self, inner: Repository, faults: dict[int, int]) -> None:
        self._inner = inner
        self._faults = faults
        self.range_bytes = MIB
        self.read: list[int] = []
        self.threads: set[str] = set()
        self.lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def read_range(self, digest: Digest, pieces: Sequence[Piece], offset: int, length: int) -> bytes:
        with self.lock:
            self.read.append(offset)
            self.threads.add(threading.current_thread().name)
            left = self._faults.get(offset, 0)
            self._faults[offset] = left - 1
        if left > 0:
            raise Unavailable("the storage does not answer")
        return self._inner.read_range(digest, pieces, offset, length)


def stored(repository: Repository, size_bytes: int) -> Blob:
    return Blob(repository.put_bytes(blob_of(5, size_bytes)), size_bytes)


def test_a_large_blob_is_read_by_several_threads_each_range_once(repository: Repository, store: LocalTensorStore) -> None:
    blob, reads = stored(repository, 12 * MIB + 7), FailingRanges(repository, {})
    seen: list[int] = []
    Fetcher(reads, store, 3).fetch([blob], "a", lambda done, total: seen.append(done))
    assert sorted(reads.read) == [n * MIB for n in range(13)]
    assert 1 < len(reads.threads) <= 3
    assert seen == sorted(seen)
    assert seen[-1] == blob.size_bytes


def test_a_range_that_fails_is_read_again_and_no_other_is(repository: Repository, store: LocalTensorStore) -> None:
    blob, reads = stored(repository, 5 * MIB), FailingRanges(repository, {2 * MIB: 2})
    Fetcher(reads, store, 2).fetch([blob], "a")
    assert sorted(reads.read) == [0, MIB, *[2 * MIB] * 3, 3 * MIB, 4 * MIB]


def test_a_range_that_keeps_failing_ends_the_fetch_and_leaves_nothing(repository: Repository, store: LocalTensorStore) -> None:
    blob, reads = stored(repository, 5 * MIB), FailingRanges(repository, {2 * MIB: TRIES})
    with pytest.raises(Unavailable, match="the storage does not answer"):
        Fetcher(reads, store, 2).fetch([blob], "a")
    assert store.status().used_bytes == 0
    assert store.holders() == {}
    Fetcher(reads, store, 2).fetch([blob], "a")


def test_waiting_for_a_second_try_can_be_cancelled(repository: Repository, store: LocalTensorStore) -> None:
    blob, reads = stored(repository, 3 * MIB), FailingRanges(repository, {0: TRIES})
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        Fetcher(reads, store, 2).fetch([blob], "a", None, cancel)
    assert store.status().used_bytes == 0


def test_a_blob_of_another_length_is_said_before_it_is_read(repository: Repository, store: LocalTensorStore) -> None:
    blob, reads = stored(repository, MIB), FailingRanges(repository, {})
    with pytest.raises(DataCorrupted, match=f"has {MIB} bytes in the repository, not {MIB - 1}"):
        Fetcher(reads, store).fetch([Blob(blob.digest, MIB - 1)], "a")
    assert reads.read == []


def test_no_more_than_a_range_per_thread_is_in_memory(repository: Repository, store: LocalTensorStore) -> None:
    blob = stored(repository, 48 * MIB)
    reader = RangeReader(repository, 2)
    with store.ingest(blob.digest, blob.size_bytes) as writer:
        tracemalloc.start()
        reader.fill(blob, writer, lambda size_bytes: None, lambda: None)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert writer.commit()
    assert peak < 4.5 * LOCAL_RANGE_BYTES, "of two threads, a range read and one being freed at most"
