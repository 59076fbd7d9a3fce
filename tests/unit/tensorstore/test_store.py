"""What is the local store's own: hostile policies, a full file system, what an earlier run left, mapped but unlinked bytes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tessera.domain.errors import InvalidInput, NotFound, ResourceExhausted
from tessera.domain.ids import Digest
from tessera.policy.reclaim.base import ReclaimCandidate
from tessera.tensorstore.interface import Worth
from tessera.tensorstore.local import LocalTensorStore
from tessera.tensorstore.local.mapped import store_mappings, unlinked_bytes
from tessera.tensorstore.mapping import BlobMap
from tessera.testing.blobs import ABSENT, BUDGET, StepClock, blob_of, put


class GreedyPolicy:
    """Proposes what must not go, what is not there, and everything twice."""

    name = "greedy"
    expires = True

    def __init__(self) -> None:
        self.held: list[Digest] = []

    def order(self, candidates: Sequence[ReclaimCandidate], now_s: float) -> list[Digest]:
        proposed = [*self.held, ABSENT, *(candidate.digest for candidate in candidates)]
        return proposed + proposed

    def expired(self, candidates: Sequence[ReclaimCandidate], now_s: float) -> list[Digest]:
        return self.order(candidates, now_s)


class StubbornPolicy:
    name = "stubborn"
    expires = False

    def order(self, candidates: Sequence[ReclaimCandidate], now_s: float) -> list[Digest]:
        return []

    def expired(self, candidates: Sequence[ReclaimCandidate], now_s: float) -> list[Digest]:
        return []


class StandingClock(StepClock):
    def monotonic_s(self) -> float:
        return self.now_s


class MinutePolicy(StubbornPolicy):
    """Keeps what was used within a minute; `seen` is what it was shown last."""

    name = "minute"
    expires = True

    def __init__(self) -> None:
        self.seen: list[ReclaimCandidate] = []

    def expired(self, candidates: Sequence[ReclaimCandidate], now_s: float) -> list[Digest]:
        self.seen = list(candidates)
        return [found.digest for found in candidates if now_s - found.last_used_s >= 60]


def test_what_nobody_used_for_its_keep_alive_expires_unless_it_is_held(tmp_path: Path) -> None:
    clock = StandingClock()
    with LocalTensorStore(tmp_path, BUDGET, clock, policy=MinutePolicy()) as store:
        held, used, idle = put(store, blob_of(1, 100), "a"), put(store, blob_of(2, 100)), put(store, blob_of(3, 100))
        clock.now_s += 50
        store.pin("b", [used])
        store.unpin("b", None)
        clock.now_s += 9.5
        assert store.expire() == []
        clock.now_s += 0.5
        assert store.expired() == [idle]
        assert store.has(idle)  # to be expired is not to be gone
        assert store.expire() == [idle]
        clock.now_s += 60
        assert store.expire() == [used]
        store.unpin("a", None)  # the end of a hold is a use
        assert store.expire() == []
        clock.now_s += 60
        assert store.expire() == [held]
        assert store.status().reclaimed_expired_bytes == 300
        assert store.check() == []


def test_a_greedy_policy_expires_nothing_that_is_held(tmp_path: Path) -> None:
    policy = GreedyPolicy()
    with LocalTensorStore(tmp_path, BUDGET, StepClock(), policy=policy) as store:
        policy.held = [put(store, blob_of(1, 300), "runtime-1")]
        free = put(store, blob_of(2, 200))
        assert store.expire() == [free]
        assert store.shrink(0) == []
        assert store.has(policy.held[0])


def test_policies_see_what_a_blob_is_worth(tmp_path: Path) -> None:
    policy = MinutePolicy()
    with LocalTensorStore(tmp_path, BUDGET, StepClock(), policy=policy) as store:
        digest = put(store, blob_of(1, 300))
        store.expired()
        assert [(found.sharing_count, found.refetch_ms) for found in policy.seen] == [(1, None)]
        store.appraise(lambda found, size_bytes: Worth(7 if found == digest else 0, size_bytes / 100))
        store.expired()
        assert [(found.sharing_count, found.refetch_ms) for found in policy.seen] == [(7, 3.0)]


def test_a_policy_cannot_take_what_is_held(tmp_path: Path) -> None:
    policy = GreedyPolicy()
    with LocalTensorStore(tmp_path, BUDGET, StepClock(), policy=policy) as store:
        policy.held = [put(store, blob_of(1, 300), "runtime-1")]
        free = [put(store, blob_of(seed, 200)) for seed in (2, 3, 4)]
        assert store.make_room(500) == free[:2]
        assert store.check() == []
        with pytest.raises(ResourceExhausted):
            store.make_room(701)
        assert store.has(policy.held[0])


def test_a_policy_may_keep_what_could_go(tmp_path: Path) -> None:
    with LocalTensorStore(tmp_path, BUDGET, StepClock(), policy=StubbornPolicy()) as store:
        digest = put(store, blob_of(1, 600))
        with pytest.raises(ResourceExhausted, match="used 600"):
            store.make_room(500)
        assert store.has(digest)


def test_a_full_file_system_is_said_and_nothing_stays(store: LocalTensorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: memoryview, offset: int) -> int:
        if offset == 0:
            return real(fd, data[:10], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    real = os.pwrite
    monkeypatch.setattr("tessera.tensorstore.local.writer.os.pwrite", full)
    with pytest.raises(ResourceExhausted, match="file system is full"), store.ingest(ABSENT, 100) as writer:
        writer.write(bytes(100))
    assert store.status().used_bytes == 0
    assert store.check() == []


def test_a_write_that_is_cut_short_is_finished(store: LocalTensorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr("tessera.tensorstore.local.writer.os.pwrite", lambda fd, data, offset: real(fd, data[:7], offset))
    digest = put(store, blob_of(1, 100))
    assert store.verify(digest)


def test_a_failed_rename_leaves_nothing(store: LocalTensorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("tessera.tensorstore.local.store.os.rename", refuse)
        with pytest.raises(OSError, match="Input/output"):
            put(store, blob_of(1, 100), "runtime-1")
    assert store.check() == []
    assert store.holders() == {}
    assert store.status().used_bytes == 0
    put(store, blob_of(1, 100))


@pytest.mark.unsound_store
def test_leftovers_of_an_earlier_run_are_swept_or_set_aside(tmp_path: Path) -> None:
    with LocalTensorStore(tmp_path, BUDGET, StepClock()) as store:
        good, bad = put(store, blob_of(1, 100)), put(store, blob_of(2, 50))
        store.path(bad).chmod(0o644)
    (tmp_path / "incoming/half").write_bytes(b"half")
    with LocalTensorStore(tmp_path, BUDGET, StepClock()) as store:
        assert store.digests() == {good: 100}
        assert store.check(deep=True) == []
        status = store.status()
        assert (status.quarantined, status.used_bytes) == (1, 150)
    assert list((tmp_path / "incoming").iterdir()) == []


def test_an_earlier_run_with_a_larger_budget_loses_nothing_before_room_is_asked_for(tmp_path: Path) -> None:
    with LocalTensorStore(tmp_path, BUDGET, StepClock()) as store:
        digests = [put(store, blob_of(seed, 300)) for seed in range(3)]
    with LocalTensorStore(tmp_path, 500, StepClock()) as store:
        assert len(store.digests()) == 3
        store.pin("runtime-1", digests[:1])
        assert sorted(store.make_room(0)) == sorted(digests[1:])


@pytest.mark.parametrize("give_up", [lambda store: store.make_room(BUDGET), lambda store: store.shrink(0)], ids=["make_room", "shrink"])
def test_quarantined_files_that_somebody_took_away_are_in_nobodys_way(
    store: LocalTensorStore, give_up: Callable[[LocalTensorStore], list[Digest]]
) -> None:
    taken, left = put(store, blob_of(1, 300)), put(store, blob_of(2, 200))
    for digest in (taken, left):
        store.quarantine(digest)
    (store.root / "quarantine" / taken).unlink()
    assert give_up(store) == []
    assert store.status().used_bytes == 0
    assert store.check() == []


def test_a_budget_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="budget_bytes 0"):
        LocalTensorStore(tmp_path, 0, StepClock())


def test_bytes_that_are_reclaimed_but_mapped_count(tmp_path: Path) -> None:
    budget, size = 1 << 20, 600_000
    with LocalTensorStore(tmp_path / "store", budget, StepClock()) as store:
        digest = put(store, blob_of(1, size))
        maps = BlobMap()
        view = maps.open(store.path(digest))
        pages = -(-size // 4096) * 4096
        with pytest.raises(ResourceExhausted, match=f"unlinked but still mapped {pages}"):
            store.make_room(budget)  # nobody declared a hold, so it went; the reader's bytes are still there
        assert not store.has(digest)
        assert bytes(view) == blob_of(1, size)
        status = store.status()
        assert (status.unlinked_bytes, status.used_bytes, status.files) == (pages, pages, 0)
        del view
        maps.close(digest)
        assert store.status().used_bytes == 0
        store.make_room(budget)


def test_unlinked_files_are_counted_once_and_only_below_the_root(tmp_path: Path) -> None:
    def process(pid: int, *lines: str) -> None:
        (tmp_path / "proc" / str(pid)).mkdir(parents=True)
        (tmp_path / "proc" / str(pid) / "maps").write_text("".join(f"{line}\n" for line in lines))

    process(1, "7f0000000000-7f0000003000 r--s 00000000 00:2a 11    /s/store/blobs/aa (deleted)")
    process(
        2,
        "7f0000000000-7f0000002000 r--s 00000000 00:2a 11    /s/store/blobs/aa (deleted)",
        "7f0000002000-7f0000003000 r--s 00002000 00:2a 12    /s/store/blobs/b b (deleted)",
        "7f0000005000-7f0000009000 r--s 00000000 00:2a 13    /s/store/blobs/cc",
        "7f0000005000-7f0000009000 r--s 00000000 00:2a 14    /s/store2/blobs/dd (deleted)",
        "7f0000005000-7f0000009000 rw-p 00000000 00:00 0",
        "7f0000005000-7f0000009000 rw-p 00000000 00:00 0     [heap]",
    )
    (tmp_path / "proc/3").mkdir()  # ended between the listing and the reading
    (tmp_path / "proc/self").mkdir()
    assert unlinked_bytes(store_mappings(Path("/s/store"), tmp_path / "proc")) == 0x3000 + 0x3000


@pytest.mark.unsound_store
def test_a_blob_that_leaves_while_it_is_verified_is_not_found(store: LocalTensorStore) -> None:
    digest = put(store, blob_of(1, 100))
    store.path(digest).unlink()
    with pytest.raises(NotFound, match="left tensor store"):
        store.verify(digest)
