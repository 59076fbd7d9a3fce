"""Sharing counts: counted along they equal a count from nothing; artifacts are read once, from the store or the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.errors import Unavailable
from tessera.domain.ids import Digest
from tessera.node_agent.core.sharing import SharingLedger, refetch_ms
from tessera.node_agent.loops.appraiser import Appraiser
from tessera.program import Stop

A, B, C = (Digest(letter * 64) for letter in "abc")
NEEDS = {A: (Digest("1" * 64), Digest("2" * 64)), B: (Digest("2" * 64), Digest("3" * 64)), C: ()}

steps = st.lists(
    st.tuples(st.just("set"), st.sampled_from(["m/1/x", "m/1/y", "m/2/x"]), st.sampled_from([A, B, C, None]))
    | st.tuples(st.just("learn"), st.sampled_from([A, B, C]), st.none()),
    max_size=30,
)


@given(steps)
def test_counted_along_is_counted_from_nothing(done: list[tuple[str, Any, Any]]) -> None:
    ledger = SharingLedger()
    for what, subject, artifact in done:
        if what == "set":
            ledger.set_variant(subject, artifact)
        else:
            ledger.learn(subject, NEEDS[subject])
        assert ledger.counts() == ledger.recount()
        assert all(count > 0 for count in ledger.counts().values())


def test_a_blob_counts_once_per_variant_that_needs_it() -> None:
    ledger = SharingLedger()
    ledger.complete = True
    for key, artifact in (("m/1/x", A), ("m/2/x", A), ("m/3/x", B)):
        ledger.set_variant(key, artifact)
    assert ledger.count(NEEDS[A][1]) == 1  # not everything is known yet: nothing is worth nothing
    for artifact in ledger.unknown():
        ledger.learn(artifact, NEEDS[artifact])
    assert [ledger.count(digest) for digest in (*NEEDS[A], NEEDS[B][1], A, C)] == [2, 3, 1, 2, 0]
    assert ledger.worth_of(NEEDS[A][1], 1_000_000).refetch_ms == refetch_ms(1_000_000) == 4.0
    ledger.set_variant("m/2/x", None)
    ledger.set_variant("m/3/x", None)
    assert [ledger.count(digest) for digest in (*NEEDS[A], NEEDS[B][1])] == [1, 1, 0]


async def test_artifacts_are_read_from_the_store_else_from_the_repository(node: Any) -> None:
    here, there = node.make_artifact(1), node.make_artifact(2)
    await node.start("a", here)
    read: list[Digest] = []
    variants = node.fake_variants()

    def from_repository(digest: Digest) -> bytes:
        read.append(digest)
        if len(read) == 1:
            raise Unavailable("the repository is away")
        return bytes(node.repository.read(digest))

    appraiser = Appraiser(node.store, variants, from_repository)
    variants.tell("m/1/x", here)
    variants.tell("m/2/x", there)
    variants.tell("m/3/x", here)
    await appraiser.learn(Stop())
    assert appraiser.ledger.unknown() == [there]
    variants.synced = True
    await appraiser.learn(Stop())
    await appraiser.learn(Stop())
    assert read == [there, there]
    blobs = node.table.get("a").blobs
    assert {appraiser.ledger.count(digest) for digest in blobs} == {2}
    assert appraiser.ledger.count(there) == 1
    assert appraiser.ledger.count(C) == 0


async def test_policies_see_the_counts(tmp_path: Path, node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = node.fake_variants()
    appraiser = Appraiser(node.store, variants, node.repository.read)
    artifact = node.make_artifact(1)
    await node.start("a", artifact)
    await node.starter.stop("a", "test")
    variants.synced = True
    variants.tell("m/1/x", artifact)
    variants.tell("m/2/x", artifact)
    await appraiser.learn(Stop())
    seen: list[int] = []
    monkeypatch.setattr(node.store._policy, "order", lambda found, now_s: seen.extend(each.sharing_count for each in found) or [])
    node.store.shrink(0)
    assert seen
    assert set(seen) == {2}
