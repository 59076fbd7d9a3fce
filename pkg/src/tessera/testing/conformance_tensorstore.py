"""What every tensor store does. A test class per implementation derives from `TensorStoreConformance` and says how one is opened.

class TestLocal(TensorStoreConformance):
    def open_store(self, root, budget_bytes, clock):
        return LocalTensorStore(root, budget_bytes, clock)
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tessera.domain.errors import FailedPrecondition, NotFound, ResourceExhausted
from tessera.tensorstore.artifact import digest_of
from tessera.tensorstore.interface import TensorStore
from tessera.tensorstore.mapping import BlobMap
from tessera.testing._conformance_tensorstore_writing import WritingConformance
from tessera.testing.blobs import ABSENT, BUDGET, StepClock, blob_of, put


class TensorStoreConformance(WritingConformance):
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
