"""What every tensor store does. A test class per implementation derives from `TensorStoreConformance` and says how one is opened.

class TestLocal(TensorStoreConformance):
    def open_store(self, root, budget_bytes, clock):
        return LocalTensorStore(root, budget_bytes, clock)
"""

from __future__ import annotations

import os
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
from tessera.domain.errors import DataCorrupted, FailedPrecondition, InvalidInput, NotFound, ResourceExhausted
from tessera.domain.ids import Digest
from tessera.tensorstore.artifact import digest_of
from tessera.tensorstore.interface import TensorStore
from tessera.tensorstore.mapping import BlobMap

BUDGET = 1000
ABSENT = Digest("0" * 64)


class StepClock:
    """A clock on which every reading is a second later, so that no two uses have the same age."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic_s(self) -> float:
        self.now_s += 1.0
        return self.now_s

    def wall_s(self) -> float:
        return self.monotonic_s()

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def blob_of(seed: int, size_bytes: int) -> bytes:
    """Bytes that differ from those of every other seed (from 4 bytes up)."""
    return ((seed + 1).to_bytes(4, "little") * (size_bytes // 4 + 1))[:size_bytes]


def bring(store: TensorStore, digest: Digest, size_bytes: int, data: bytes | Iterator[bytes], holder: str | None = None) -> bool:
    with store.ingest(digest, size_bytes, holder) as writer:
        for chunk in (data,) if isinstance(data, bytes) else data:
            writer.write(chunk)
        return writer.commit()


def put(store: TensorStore, data: bytes, holder: str | None = None) -> Digest:
    digest = digest_of(data)
    bring(store, digest, len(data), data, holder)
    return digest


class TensorStoreConformance:
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

    # holds

    def test_holds_add_up_and_end(self, store: TensorStore) -> None:
        first, second, third = (put(store, blob_of(seed, 10)) for seed in range(3))
        store.pin("a", [first])
        store.pin("a", [second, second])
        store.pin("b", [second])
        assert store.holders() == {"a": frozenset({first, second}), "b": frozenset({second})}
        assert store.status().pinned_bytes == 20
        store.unpin("a", [second, third])
        assert store.holders() == {"a": frozenset({first}), "b": frozenset({second})}
        store.unpin("a", None)
        store.unpin("nobody", None)
        store.unpin("b", [second])
        assert store.holders() == {}
        assert store.status().pinned_bytes == 0

    def test_a_hold_on_what_is_absent_holds_nothing(self, store: TensorStore) -> None:
        there = put(store, blob_of(1, 10))
        with pytest.raises(NotFound, match=ABSENT):
            store.pin("a", [there, ABSENT])
        assert store.holders() == {}

    def test_a_blob_is_held_from_the_instant_it_is_visible(self, store: TensorStore) -> None:
        digest = put(store, blob_of(1, 10), "a")
        assert store.holders() == {"a": frozenset({digest})}
        assert put(store, blob_of(1, 10), "b") == digest
        assert store.holders() == {"a": frozenset({digest}), "b": frozenset({digest})}

    # room

    def test_the_least_recently_used_go_first_and_no_more_than_needed(self, store: TensorStore) -> None:
        first, second, third, fourth = (put(store, blob_of(seed, 250)) for seed in range(4))
        store.pin("a", [first])
        store.unpin("a", [first])
        assert store.fits(0)
        assert not store.fits(300)
        assert store.make_room(0) == []
        assert store.make_room(300) == [second, third]
        assert store.fits(300)
        assert set(store.digests()) == {first, fourth}
        assert store.make_room(500) == []

    def test_the_end_of_a_hold_is_a_use(self, store: TensorStore) -> None:
        first = put(store, blob_of(1, 250), "a")
        second, third = put(store, blob_of(2, 250)), put(store, blob_of(3, 250))
        store.unpin("a", None)
        assert store.make_room(900) == [second, third, first]

    def test_bringing_in_makes_room(self, store: TensorStore) -> None:
        first, second = put(store, blob_of(1, 600)), put(store, blob_of(2, 300))
        third = put(store, blob_of(3, 400))
        assert set(store.digests()) == {second, third}
        assert not store.has(first)

    def test_what_is_held_stays_and_the_refusal_says_who_holds_it(self, store: TensorStore) -> None:
        first, second, third = (put(store, blob_of(seed, 300)) for seed in range(3))
        store.pin("runtime-1", [first, second])
        store.pin("runtime-2", [second])
        with pytest.raises(ResourceExhausted) as refusal:
            store.make_room(401)
        for part in ("401 bytes needed", "budget 1000", "used 900", "pinned 600", "runtime-1: 600", "runtime-2: 300"):
            assert part in refusal.value.message
        assert store.has(third)  # it could not have helped
        assert store.make_room(400) == [third]
        assert set(store.digests()) == {first, second}

    def test_room_of_open_writers_is_taken(self, store: TensorStore) -> None:
        with store.ingest(ABSENT, 700):
            with pytest.raises(ResourceExhausted, match="arriving 700"):
                store.ingest(digest_of(b"x"), 301)
            with store.ingest(digest_of(b"x"), 300):
                pass
        store.make_room(BUDGET)

    def test_a_blob_above_the_budget_is_refused_with_nothing_reclaimed(self, store: TensorStore) -> None:
        digest = put(store, blob_of(1, 10))
        with pytest.raises(ResourceExhausted, match=f"{BUDGET + 1} bytes needed, budget {BUDGET}, which is 1 more than all of it"):
            store.ingest(ABSENT, BUDGET + 1)
        assert store.has(digest)

    def test_a_second_writer_takes_room_of_its_own_until_one_has_won(self, store: TensorStore) -> None:
        data = blob_of(1, 600)
        with store.ingest(digest_of(data), 600) as first:
            with pytest.raises(ResourceExhausted, match="arriving 600"):
                store.ingest(digest_of(data), 600)
            first.write(data)
            assert first.commit()
        store.pin("a", [digest_of(data)])  # nothing has to be brought in any more
        assert store.status().used_bytes == 600

    # giving up unasked

    def test_shrinking_gives_up_what_nobody_holds_and_is_content_with_less(self, store: TensorStore) -> None:
        first, second, third = (put(store, blob_of(seed, 200)) for seed in range(3))
        store.pin("a", [first])
        assert store.shrink(600) == []
        assert store.shrink(450) == [second]
        assert store.shrink(0) == [third]
        assert store.shrink(0) == []
        status = store.status()
        assert (status.used_bytes, status.reclaimed_pressure_bytes, status.reclaimed_bytes) == (200, 400, 400)
        assert store.path(first).read_bytes() == blob_of(0, 200)

    def test_shrinking_takes_quarantined_files_first(self, store: TensorStore) -> None:
        good, bad = put(store, blob_of(1, 300)), put(store, blob_of(2, 300))
        store.quarantine(bad)
        assert store.shrink(300) == []
        assert store.has(good)
        assert store.status().quarantined == 0

    def test_nothing_expires_that_the_policy_keeps(self, store: TensorStore) -> None:
        digest = put(store, blob_of(1, 100))
        assert (store.expired(), store.expire()) == ([], [])
        assert store.has(digest)

    def test_what_is_reclaimed_for_room_is_counted(self, store: TensorStore) -> None:
        put(store, blob_of(1, 600))
        put(store, blob_of(2, 600))
        status = store.status()
        assert (status.reclaimed_room_bytes, status.reclaimed_expired_bytes, status.reclaimed_bytes) == (600, 0, 600)

    def test_mappings_are_those_of_this_store_alone(self, store: TensorStore, tmp_path: Path) -> None:
        kept, gone = put(store, blob_of(1, 400)), put(store, blob_of(2, 300))
        (tmp_path / "other").write_bytes(b"other")
        maps = BlobMap()
        views = [maps.open(path) for path in (store.path(kept), store.path(gone), tmp_path / "other")]
        store.pin("a", [kept])
        store.shrink(400)
        seen = {file.name: file for file in store.mappings()}
        assert set(seen) == {kept, gone}
        assert {file.pid for file in seen.values()} == {os.getpid()}
        assert (seen[kept].deleted, seen[gone].deleted) == (False, True)
        assert bytes(views[1]) == blob_of(2, 300)
        assert store.status().unlinked_bytes == 4096
        del views
        for name in (kept, gone, "other"):
            maps.close(name)
        assert list(store.mappings()) == []
        assert store.status().unlinked_bytes == 0

    # corrupted

    def test_a_corrupted_blob_is_found_taken_away_and_brought_in_again(self, store: TensorStore) -> None:
        data = blob_of(1, 100)
        digest = put(store, data, "a")
        assert store.verify(digest)
        path = store.path(digest)
        os.chmod(path, 0o644)
        path.write_bytes(b"x" + data[1:])
        os.chmod(path, 0o444)
        assert not store.verify(digest)
        assert any(digest in finding for finding in store.check(deep=True))
        store.quarantine(digest)
        assert not store.has(digest)
        assert store.holders() == {}
        assert store.check(deep=True) == []
        assert store.status().quarantined == 1
        assert put(store, data) == digest
        assert store.verify(digest)
        assert store.path(digest).read_bytes() == data

    def test_quarantined_files_count_and_go_before_good_ones(self, store: TensorStore) -> None:
        good, bad = put(store, blob_of(1, 500)), put(store, blob_of(2, 400))
        store.quarantine(bad)
        assert store.status().used_bytes == 900
        assert store.make_room(500) == []
        assert store.has(good)
        status = store.status()
        assert (status.quarantined, status.quarantined_bytes, status.used_bytes) == (0, 0, 500)

    def test_absent_blobs_cannot_be_verified_or_quarantined(self, store: TensorStore) -> None:
        for call in (store.verify, store.quarantine, store.path):
            with pytest.raises(NotFound, match=ABSENT):
                call(ABSENT)

    # opening again

    @pytest.mark.parametrize("older", [0, 1])
    def test_a_store_that_is_opened_again_has_its_blobs_and_no_leftovers(self, tmp_path: Path, older: int) -> None:
        store = self.open_store(tmp_path / "store", BUDGET, StepClock())
        both = [put(store, blob_of(1, 300), "a"), put(store, blob_of(2, 300), "a")]
        os.utime(store.path(both[older]), (1_000_000, 1_000_000))
        open_writer = store.ingest(ABSENT, 100)
        store.close()
        store.close()
        with pytest.raises((FailedPrecondition, ValueError)):
            open_writer.commit()
        again = self.open_store(tmp_path / "store", BUDGET, StepClock())
        assert again.digests() == dict.fromkeys(both, 300)
        assert again.holders() == {}
        status = again.status()
        assert (status.used_bytes, status.incoming_bytes) == (600, 0)
        assert again.make_room(500) == [both[older]]
        assert again.check(deep=True) == []
        again.close()

    def test_a_second_writer_is_refused_with_the_first_ones_process(self, store: TensorStore, tmp_path: Path) -> None:
        with pytest.raises(FailedPrecondition, match=f"process {os.getpid()} is its writer"):
            self.open_store(tmp_path / "store", BUDGET, StepClock())

    def test_a_closed_store_takes_nothing(self, tmp_path: Path) -> None:
        store = self.open_store(tmp_path / "store", BUDGET, StepClock())
        store.close()
        with pytest.raises(FailedPrecondition, match="closed"):
            store.ingest(ABSENT, 1)
        with pytest.raises(FailedPrecondition, match="closed"):
            store.make_room(1)
