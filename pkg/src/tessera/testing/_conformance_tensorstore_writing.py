"""The part of the tensor store's conformance suite that brings blobs in: `conformance_tensorstore` is the whole."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tessera.clock import Clock
from tessera.domain.errors import DataCorrupted, InvalidInput, NotFound
from tessera.domain.ids import Digest
from tessera.tensorstore.artifact import digest_of
from tessera.tensorstore.interface import TensorStore
from tessera.testing.blobs import ABSENT, BUDGET, StepClock, blob_of, bring, put


class WritingConformance:
    def open_store(self, root: Path, budget_bytes: int, clock: Clock) -> TensorStore:
        raise AssertionError("a conformance class says how its store is opened")

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[TensorStore]:
        store = self.open_store(tmp_path / "store", BUDGET, StepClock())
        yield store
        findings = store.check(deep=True)
        store.close()
        assert findings == []

    # visible means complete

    def test_a_blob_is_visible_complete_and_read_only_after_commit_and_not_before(self, store: TensorStore) -> None:
        data = blob_of(1, 100)
        digest = digest_of(data)
        with store.ingest(digest, 100) as writer:
            writer.write(data[:60])
            writer.write(memoryview(data)[60:])
            assert not store.has(digest)
            with pytest.raises(NotFound):
                store.path(digest)
            assert store.digests() == {}
            assert writer.commit()
        path = store.path(digest)
        assert path.read_bytes() == data
        assert path.name == digest
        assert path.stat().st_mode & 0o777 == 0o444
        assert store.digests() == {digest: 100}

    def test_a_blob_of_no_length_is_a_blob(self, store: TensorStore) -> None:
        digest = put(store, b"")
        assert store.path(digest).read_bytes() == b""

    def test_chunks_of_any_item_type_and_shape_count_by_their_bytes(self, store: TensorStore) -> None:
        data = blob_of(5, 96)
        with store.ingest(digest_of(data), 96) as writer:
            floats: Any = memoryview(data).cast("f", (4, 6))
            writer.write(floats)
            writer.write(b"")
            assert writer.commit()

    @pytest.mark.parametrize("arrived", [99, 101])
    def test_a_wrong_length_is_refused_and_leaves_nothing(self, store: TensorStore, arrived: int) -> None:
        data = blob_of(1, 100)
        with pytest.raises(DataCorrupted, match="100 bytes"):
            bring(store, digest_of(data), 100, (data + b"x")[:arrived])
        assert store.digests() == {}
        assert store.status().used_bytes == 0

    def test_wrong_bytes_are_refused_and_leave_nothing(self, store: TensorStore) -> None:
        digest = digest_of(blob_of(1, 100))
        with pytest.raises(DataCorrupted, match=digest):
            bring(store, digest, 100, blob_of(2, 100))
        assert not store.has(digest)
        assert store.status().used_bytes == 0

    def test_an_error_in_the_middle_discards(self, store: TensorStore) -> None:
        def source() -> Iterator[bytes]:
            yield blob_of(1, 100)[:50]
            assert store.status().incoming_bytes == 100
            raise RuntimeError("source")

        with pytest.raises(RuntimeError, match="source"):
            bring(store, digest_of(blob_of(1, 100)), 100, source())
        status = store.status()
        assert (status.used_bytes, status.incoming_bytes, status.files) == (0, 0, 0)

    def test_a_writer_that_is_dropped_gives_its_room_back(self, store: TensorStore) -> None:
        writer = store.ingest(digest_of(blob_of(1, 100)), 100)
        writer.write(b"half")
        del writer
        store.sweep()
        assert store.status().used_bytes == 0
        put(store, blob_of(2, BUDGET))

    def test_a_refused_commit_has_discarded_already(self, store: TensorStore) -> None:
        writer = store.ingest(digest_of(b"right"), 5)
        writer.write(b"wrong")
        with pytest.raises(DataCorrupted):
            writer.commit()
        assert store.status().used_bytes == 0
        assert store.check() == []

    def test_a_used_up_writer_says_so(self, store: TensorStore) -> None:
        writer = store.ingest(digest_of(b"abcd"), 4)
        writer.write(b"abcd")
        assert writer.commit()
        writer.abort()
        assert store.has(digest_of(b"abcd"))
        with pytest.raises(ValueError, match="closed"):
            writer.write(b"e")
        with pytest.raises(ValueError, match="closed"):
            writer.commit()

    @pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "0" * 63])
    def test_what_is_no_digest_is_refused(self, store: TensorStore, digest: str) -> None:
        with pytest.raises(InvalidInput, match="digest"):
            store.ingest(Digest(digest), 4)
        with pytest.raises(NotFound):
            store.path(Digest(digest))

    def test_a_negative_size_is_refused(self, store: TensorStore) -> None:
        with pytest.raises(InvalidInput, match="size_bytes -1"):
            store.ingest(ABSENT, -1)

    # ways in

    @pytest.mark.parametrize("size_bytes", [100, 5 << 20])
    def test_ranges_may_come_in_any_order_from_several_threads(self, tmp_path: Path, size_bytes: int) -> None:
        data = blob_of(3, size_bytes)
        cuts = [size_bytes * part // 7 for part in range(8)]
        store = self.open_store(tmp_path / "large", 8 << 20, StepClock())
        with closing(store), ThreadPoolExecutor(3) as pool, store.ingest(digest_of(data), size_bytes) as writer:
            writer.write_at(cuts[6], data[cuts[6] :])
            assert writer.written_bytes == 0
            list(pool.map(lambda part: writer.write_at(cuts[part], data[cuts[part] : cuts[part + 1]]), range(5, -1, -1)))
            assert writer.written_bytes == size_bytes
            assert writer.commit()
            assert store.check(deep=True) == []

    def test_a_gap_is_not_taken_for_bytes(self, store: TensorStore) -> None:
        data = bytes(100)
        with store.ingest(digest_of(data), 100) as writer:
            writer.write_at(50, data[50:])
            with pytest.raises(DataCorrupted, match="0 of 100 bytes"):
                writer.commit()
        assert store.status().used_bytes == 0

    @pytest.mark.parametrize("size_bytes", [100, 5 << 20])
    def test_what_a_socket_carries_goes_on_from_what_is_there(self, tmp_path: Path, size_bytes: int) -> None:
        data = blob_of(4, size_bytes)
        here, there = socket.socketpair()
        store = self.open_store(tmp_path / "large", 8 << 20, StepClock())
        with closing(store), here, there, ThreadPoolExecutor(1) as pool, store.ingest(digest_of(data), size_bytes) as writer:
            writer.write(data[:10])
            sent = pool.submit(there.sendall, data[10:] + b"next")
            while writer.written_bytes < size_bytes:
                assert writer.pull(here.fileno(), size_bytes) > 0
            sent.result(10)
            assert writer.pull(here.fileno(), 100) == 0, "complete: what comes next belongs to somebody else"
            assert here.recv(100) == b"next"
            assert writer.commit()
            assert store.status().pulled_bytes == size_bytes - 10
            assert store.check(deep=True) == []

    def test_a_socket_that_falls_silent_or_ends_leaves_the_writer_as_it_is(self, store: TensorStore) -> None:
        data = blob_of(4, 100)
        here, there = socket.socketpair()
        here.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 50_000))
        with here, store.ingest(digest_of(data), 100) as writer:
            there.send(data[:60])
            assert writer.pull(here.fileno(), 100) == 60
            with pytest.raises(BlockingIOError):
                writer.pull(here.fileno(), 100)
            there.close()
            assert writer.pull(here.fileno(), 100) == 0
            writer.write(data[60:])
            assert writer.commit()

    # one winner

    def test_two_writers_of_one_blob_both_succeed_and_one_wins(self, store: TensorStore) -> None:
        data = blob_of(1, 100)
        first, second = (store.ingest(digest_of(data), 100) for _ in range(2))
        assert store.status().incoming_bytes == 200
        first.write(data)
        second.write(data)
        assert second.commit()
        inode = store.path(digest_of(data)).stat().st_ino
        assert not first.commit()
        assert store.path(digest_of(data)).stat().st_ino == inode
        assert store.status().used_bytes == 100

    def test_many_threads_bring_in_the_same_blobs(self, store: TensorStore) -> None:
        blobs = [blob_of(seed, 16) for seed in range(12)]
        barrier = threading.Barrier(4)

        def bring(shift: int) -> int:
            barrier.wait(10)
            wins = 0
            for data in blobs[shift:] + blobs[:shift]:
                with store.ingest(digest_of(data), 16, f"holder-{shift}") as writer:
                    writer.write(data)
                    wins += writer.commit()
                store.status()
            return wins

        with ThreadPoolExecutor(4) as pool:
            wins = sum(pool.map(bring, range(4)))
        assert wins == len(blobs)
        assert store.status().used_bytes == 12 * 16
        assert set(store.digests()) == {digest_of(data) for data in blobs}
        assert {len(held) for held in store.holders().values()} == {12}

    def test_threads_that_bring_in_and_reclaim_at_once_stay_within_the_budget(self, store: TensorStore) -> None:
        over = []

        def churn(thread: int) -> None:
            for step in range(40):
                digest = put(store, blob_of(thread * 1000 + step, 90), f"holder-{thread}")
                assert store.path(digest).stat().st_size == 90
                status = store.status()
                if status.used_bytes - status.unlinked_bytes > BUDGET:
                    over.append(status)
                store.unpin(f"holder-{thread}", None)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(churn, range(4)))
        assert over == []
        assert store.holders() == {}
