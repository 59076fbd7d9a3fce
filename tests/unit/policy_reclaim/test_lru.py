"""The order in which blobs that nobody holds go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.ids import Digest
from tessera.policy.reclaim.base import ReclaimCandidate
from tessera.policy.reclaim.lru import LruReclaimPolicy

CANDIDATES = st.lists(
    st.builds(ReclaimCandidate, st.integers(0, 99).map(lambda n: Digest(f"{n:064x}")), st.integers(0, 1 << 40), st.floats(-1e6, 1e6)),
    unique_by=lambda candidate: candidate.digest,
)


@given(CANDIDATES)
def test_each_candidate_once_and_older_ones_first(candidates: list[ReclaimCandidate]) -> None:
    order = LruReclaimPolicy().order(candidates, 0.0)
    ages = {candidate.digest: candidate.last_used_s for candidate in candidates}
    assert sorted(order) == sorted(ages)
    assert [ages[digest] for digest in order] == sorted(ages.values())


@given(CANDIDATES, st.randoms())
def test_the_order_does_not_depend_on_the_order_of_asking(candidates: list[ReclaimCandidate], random: st.DrawFn) -> None:
    shuffled = list(candidates)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert LruReclaimPolicy().order(shuffled, 0.0) == LruReclaimPolicy().order(candidates, 0.0)
