"""The store between real processes: writers that are killed, readers that map what is reclaimed, one writer at a time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tessera.clock import SystemClock
from tessera.domain.errors import FailedPrecondition, ResourceExhausted
from tessera.tensorstore.artifact import digest_of
from tessera.tensorstore.local import LocalTensorStore
from tessera.testing.blobs import blob_of, put

from .conftest import Child

MIB = 1 << 20
Start = Callable[..., Child]
Line = Callable[[Child], str]


def _end(child: Child) -> None:
    child.kill()
    child.wait(10)


def test_a_writer_that_is_killed_in_the_middle_leaves_nothing_visible(tmp_path: Path, start: Start, line: Line) -> None:
    child = start(
        """
store = LocalTensorStore(sys.argv[1], 64 << 20, SystemClock())
put(store, blob_of(1, 1 << 20))
data = blob_of(2, 8 << 20)
writer = store.ingest(digest_of(data), len(data))
writer.write(data[: 4 << 20])
say("half")
time.sleep(60)
""",
        tmp_path,
    )
    assert line(child) == "half"
    with pytest.raises(FailedPrecondition, match=f"process {child.pid} is its writer"):
        LocalTensorStore(tmp_path, 64 * MIB, SystemClock())
    _end(child)
    assert len(list((tmp_path / "incoming").iterdir())) == 1
    with LocalTensorStore(tmp_path, 64 * MIB, SystemClock()) as store:
        assert store.digests() == {digest_of(blob_of(1, MIB)): MIB}
        assert list((tmp_path / "incoming").iterdir()) == []
        assert store.status().used_bytes == MIB
        assert store.check(deep=True) == []
        put(store, blob_of(2, 8 * MIB))


def test_a_writer_that_is_killed_at_any_time_leaves_a_sound_store(tmp_path: Path, start: Start, line: Line) -> None:
    rng = random.Random(7)
    seen = 0
    for _ in range(8):
        child = start(
            """
store = LocalTensorStore(sys.argv[1], 4 << 20, SystemClock())
seed = int(sys.argv[2])
put(store, blob_of(seed, 200_000))
say("open")
while True:
    digest = put(store, blob_of(seed, 300_000 + seed % 7), "runtime-1")
    store.unpin("runtime-1", None)
    if seed % 5 == 0:
        store.quarantine(digest)
    seed += 1
""",
            tmp_path,
            rng.randrange(1 << 20),
        )
        assert line(child) == "open"
        time.sleep(rng.uniform(0.0, 0.1))
        _end(child)
        with LocalTensorStore(tmp_path, 4 * MIB, SystemClock()) as store:
            assert store.check(deep=True) == []
            status = store.status()
            assert status.used_bytes <= 4 * MIB
            seen += status.files
    assert seen > 0


def test_a_reader_in_another_process_keeps_its_bytes_after_reclaim(tmp_path: Path, start: Start, line: Line) -> None:
    with LocalTensorStore(tmp_path, 8 * MIB, SystemClock()) as store:
        digest = put(store, blob_of(1, 6 * MIB))
        reader = start(
            """
maps = BlobMap()
view = maps.open(sys.argv[1])
say("mapped")
sys.stdin.readline()
say(digest_of(view))
sys.stdin.readline()
del view
maps.close(sys.argv[1])
say("closed")
sys.stdin.readline()
""",
            store.path(digest),
        )
        assert reader.stdin is not None
        assert line(reader) == "mapped"
        with pytest.raises(ResourceExhausted, match=f"unlinked but still mapped {6 * MIB}"):
            put(store, blob_of(2, 4 * MIB))  # it was not held, so it is reclaimed; but its bytes are not free yet
        assert not store.has(digest)
        status = store.status()
        assert (status.unlinked_bytes, status.used_bytes) == (6 * MIB, 6 * MIB)
        reader.stdin.write("\n")
        reader.stdin.flush()
        assert line(reader) == digest
        reader.stdin.write("\n")
        reader.stdin.flush()
        assert line(reader) == "closed"
        assert store.status().unlinked_bytes == 0
        put(store, blob_of(2, 4 * MIB))


def test_a_reader_that_is_killed_gives_its_bytes_back(tmp_path: Path, start: Start, line: Line) -> None:
    with LocalTensorStore(tmp_path, 8 * MIB, SystemClock()) as store:
        digest = put(store, blob_of(1, 6 * MIB))
        reader = start("view = BlobMap().open(sys.argv[1])\nsay('mapped')\ntime.sleep(60)", store.path(digest))
        assert line(reader) == "mapped"
        store.quarantine(digest)
        store.make_room(2 * MIB)
        with pytest.raises(ResourceExhausted, match="still mapped"):
            store.make_room(3 * MIB)
        _end(reader)
        assert store.make_room(8 * MIB) == []
        assert store.status().used_bytes == 0


def test_bytes_that_only_an_earlier_runs_reader_maps_count_too(tmp_path: Path, start: Start, line: Line) -> None:
    with LocalTensorStore(tmp_path, 8 * MIB, SystemClock()) as store:
        digest = put(store, blob_of(1, 6 * MIB))
        reader = start("view = BlobMap().open(sys.argv[1])\nsay('mapped')\ntime.sleep(60)", store.path(digest))
        assert line(reader) == "mapped"
        with pytest.raises(ResourceExhausted):
            store.make_room(8 * MIB)
    with LocalTensorStore(tmp_path, 8 * MIB, SystemClock()) as store:
        with pytest.raises(ResourceExhausted, match=f"still mapped {6 * MIB}"):
            store.ingest(digest_of(b"x"), 3 * MIB)
        _end(reader)
        store.make_room(3 * MIB)
