"""Each thing that can be wrong with a store's folder is found and named."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from blake3 import blake3

from tessera.domain.ids import Digest
from tessera.tensorstore.local import LocalTensorStore
from tessera.testing.blobs import ABSENT, blob_of, put


def _write(store: LocalTensorStore, digest: Digest, data: bytes) -> None:
    path = store.path(digest)
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)


def _replace_lock(store: LocalTensorStore, digest: Digest) -> None:
    (store.root / "lock").unlink()
    (store.root / "lock").touch()


SPOILED: dict[str, tuple[Callable[[LocalTensorStore, Digest], object], str]] = {
    "foreign name": (lambda store, _: (store.root / "blobs/readme").touch(), "blobs/readme is not named by a digest"),
    "folder": (lambda store, _: (store.root / "blobs" / ABSENT).mkdir(), "is not a regular file"),
    "link": (lambda store, digest: (store.root / "blobs" / ABSENT).symlink_to(digest), "is not a regular file"),
    "unknown": (lambda store, _: (store.root / "blobs" / ABSENT).touch(0o444), "memory does not know it"),
    "gone": (lambda store, digest: store.path(digest).unlink(), "is in memory, not on disk"),
    "writable": (lambda store, digest: store.path(digest).chmod(0o644), "has mode 0644, should be 0444"),
    "shorter": (lambda store, digest: _write(store, digest, b"x"), "has 1 bytes, memory says 100"),
    "leftover": (lambda store, _: (store.root / "incoming/left").touch(), "incoming/left has no live writer"),
    "quarantine": (lambda store, _: (store.root / "quarantine" / ABSENT).touch(), "quarantine/ has"),
    "lock": (_replace_lock, "the lock file is not the one"),
}


@pytest.mark.parametrize("what", SPOILED)
@pytest.mark.unsound_store
def test_what_is_spoiled_is_found(store: LocalTensorStore, what: str) -> None:
    digest = put(store, blob_of(1, 100))
    assert store.check(deep=True) == []
    spoil, finding = SPOILED[what]
    spoil(store, digest)
    findings = store.check()
    assert len(findings) == 1
    assert finding in findings[0]


@pytest.mark.unsound_store
def test_a_changed_byte_is_found_by_the_deep_check_alone(store: LocalTensorStore) -> None:
    digest = put(store, blob_of(1, 100))
    _write(store, digest, bytes(100))
    assert store.check() == []
    [finding] = store.check(deep=True)
    assert finding.startswith(f"blobs/{digest} has bytes of digest")


def _during_hashing(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """In another thread, as the agent's event loop would: the hashing goes on when it is done."""

    def hasher() -> Any:
        pool = ThreadPoolExecutor(1)
        done = pool.submit(act)
        pool.shutdown(wait=False)  # it may be waiting for the lock of whoever hashes
        done.result(5)
        return blake3()

    monkeypatch.setattr("tessera.tensorstore.local.check.blake3", hasher)


def test_a_deep_check_keeps_nobody_waiting(store: LocalTensorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = put(store, blob_of(1, 100))
    seen: list[int] = []

    def use() -> None:
        store.pin("runtime-1", [digest])
        seen.append(store.status().pinned_bytes)

    _during_hashing(monkeypatch, use)
    assert store.check(deep=True) == []
    assert seen == [100]


def _bring_anew(store: LocalTensorStore, digest: Digest) -> None:
    store.quarantine(digest)
    put(store, blob_of(1, 100))


@pytest.mark.parametrize(
    "leave", [LocalTensorStore.quarantine, _bring_anew, lambda store, _: store.shrink(0)], ids=["quarantined", "anew", "reclaimed"]
)
def test_what_leaves_while_it_is_hashed_is_no_finding(
    store: LocalTensorStore, monkeypatch: pytest.MonkeyPatch, leave: Callable[[LocalTensorStore, Digest], object]
) -> None:
    digest = put(store, blob_of(1, 100))
    _write(store, digest, bytes(100))
    with monkeypatch.context() as patched:
        _during_hashing(patched, lambda: leave(store, digest))
        assert store.check(deep=True) == []
    assert store.check(deep=True) == []


def test_a_temporary_file_that_went_is_found(store: LocalTensorStore) -> None:
    with store.ingest(ABSENT, 10) as writer:
        os.unlink(writer.path)
        [finding] = store.check()
        assert finding.endswith("went while its writer lives")


@pytest.mark.unsound_store
def test_a_held_blob_that_somebody_removed_is_found(store: LocalTensorStore) -> None:
    digest = put(store, blob_of(1, 100), "runtime-1")
    store.path(digest).unlink()
    assert store.check() == [f"blobs/{digest} is in memory, not on disk"]
