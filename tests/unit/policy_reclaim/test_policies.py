"""What reclaim policies order and let expire, and what each of them promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.errors import InvalidInput
from tessera.domain.ids import Digest
from tessera.policy.fading import FadingCount
from tessera.policy.reclaim import registry
from tessera.policy.reclaim.base import ReclaimCandidate, ReclaimPolicy
from tessera.policy.reclaim.keep_alive import KeepAliveReclaimPolicy
from tessera.policy.reclaim.shared_cost import USES_HORIZON_S, SharedCostReclaimPolicy, value

NOW_S = 1e6
MIB = 1 << 20


def digest(number: int) -> Digest:
    return Digest(f"{number:064x}")


def blob(number: int = 1, age_s: float = 100.0, **changes: object) -> ReclaimCandidate:
    return replace(ReclaimCandidate(digest(number), MIB, NOW_S - age_s), **changes)  # type: ignore[arg-type]


CANDIDATES = st.lists(
    st.builds(
        ReclaimCandidate,
        st.integers(0, 99).map(digest),
        st.integers(0, 1 << 40),
        st.floats(0, NOW_S),
        st.integers(0, 50),
        st.none() | st.floats(0, 1e6),
        st.floats(0, 1e4),
        st.none() | st.floats(0, USES_HORIZON_S),
    ),
    unique_by=lambda candidate: candidate.digest,
)
EVERY_POLICY = pytest.mark.parametrize("name", sorted(registry.POLICIES))


@EVERY_POLICY
@given(candidates=CANDIDATES, random=st.randoms())
def test_every_policy_names_each_candidate_once_in_an_order_of_its_own(
    name: str, candidates: list[ReclaimCandidate], random: st.DrawFn
) -> None:
    policy: ReclaimPolicy = registry.make(name, 60.0)
    assert policy.name == name
    order = policy.order(candidates, NOW_S)
    assert sorted(order) == sorted(found.digest for found in candidates)
    shuffled = list(candidates)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert policy.order(shuffled, NOW_S) == order
    expired = policy.expired(candidates, NOW_S)
    assert policy.expired(shuffled, NOW_S) == expired
    assert set(expired) <= set(order)
    assert len(set(expired)) == len(expired)


@EVERY_POLICY
@given(candidates=CANDIDATES)
def test_a_policy_that_does_not_expire_lets_nothing_go_unasked(name: str, candidates: list[ReclaimCandidate]) -> None:
    policy = registry.make(name, 0.0)
    assert policy.expires or policy.expired(candidates, NOW_S) == []


def test_an_unknown_policy_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="reclaim policy 'mru': one of keep-alive, lru, shared-cost"):
        registry.make("mru", 60.0)


def test_keep_alive_lets_go_what_is_past_its_window_the_oldest_first() -> None:
    policy = KeepAliveReclaimPolicy()
    found = [blob(1, 59.0), blob(2, 60.0), blob(3, 61.0), blob(4, 600.0)]
    assert policy.expired(found, NOW_S) == [digest(4), digest(3)]
    assert policy.order(found, NOW_S) == [digest(4), digest(3), digest(2), digest(1)]
    assert KeepAliveReclaimPolicy(0.0).expired([blob(1, 0.001)], NOW_S) == [digest(1)]


@pytest.mark.parametrize("name", ["lru", "shared-cost"])
def test_the_others_let_nothing_go_unasked(name: str) -> None:
    assert registry.make(name, 60.0).expired([blob(1, 1e5)], NOW_S) == []


@pytest.mark.parametrize(
    ("goes", "stays"),
    [
        ({"sharing_count": 1}, {"sharing_count": 8}),
        ({"refetch_ms": 1.0}, {"refetch_ms": 2.0}),
        ({"size_bytes": 2 * MIB, "refetch_ms": 2.0}, {"size_bytes": MIB, "refetch_ms": 2.0}),
        ({"last_used_s": NOW_S - 5000.0}, {"last_used_s": NOW_S - 50.0}),
        ({"uses": 1.0, "watched_s": 3600.0}, {"uses": 5.0, "watched_s": 3600.0}),
        ({"sharing_count": 0, "refetch_ms": 1e6, "uses": 1e3}, {"sharing_count": 1, "refetch_ms": 0.1, "last_used_s": 0.0}),
        ({"sharing_count": 16, "uses": 1.0, "watched_s": 7200.0}, {"sharing_count": 1, "uses": 40.0, "watched_s": 7200.0}),
    ],
    ids=["fewer share it", "cheaper", "frees more for the same", "older", "used less", "nobody needs it", "use outweighs sharing"],
)
def test_shared_cost_gives_up_what_is_cheapest_to_be_without(goes: dict[str, float], stays: dict[str, float]) -> None:
    # The digests stand against the expected order, so that a tie would show.
    assert SharedCostReclaimPolicy().order([blob(1, **stays), blob(2, **goes)], NOW_S) == [digest(2), digest(1)]


ONE = st.builds(
    ReclaimCandidate, st.just(digest(1)), st.integers(1, 1 << 40), st.floats(0, NOW_S), st.integers(1, 50), st.floats(1e-3, 1e6)
)


@given(ONE, st.integers(1, 50), st.floats(1.0, 1e3), st.floats(0, 1e5))
def test_a_value_grows_with_cost_sharing_and_use_and_shrinks_with_age(
    found: ReclaimCandidate, more: int, times: float, later_s: float
) -> None:
    before = value(found, NOW_S)
    assert before > 0
    assert value(replace(found, sharing_count=found.sharing_count + more), NOW_S) > before
    assert value(replace(found, uses=found.uses + more), NOW_S) > before
    assert value(replace(found, refetch_ms=(found.refetch_ms or 0.0) * times), NOW_S) >= before
    assert value(found, NOW_S + later_s) <= before


def test_an_unknown_cost_is_assumed_from_the_size() -> None:
    known = 0.5 + MIB * 2e-6
    assert value(blob(), NOW_S) == pytest.approx(value(blob(refetch_ms=known), NOW_S))


def test_a_fading_count_is_the_rate_of_what_it_saw() -> None:
    count = FadingCount(3600.0, 0.0)
    for at_s in range(0, 36000, 60):
        count = count.again(float(at_s))
    seen = count.faded(36000.0)
    assert seen.count / seen.watched_s == pytest.approx(1 / 60.0, rel=0.02)
    assert count.faded(10.0) == count, "time does not go back"
    later = seen.faded(36000.0 + 3600.0)
    assert later.count == pytest.approx(seen.count / 2.71828, rel=1e-3)
    assert later.watched_s <= 3600.0


def test_events_close_together_are_one() -> None:
    count = FadingCount(3600.0, 100.0)
    for at_s in (100.0, 103.0, 109.9, 110.0):
        count = count.again(at_s, 10.0)
    assert count.count == pytest.approx(2.0, rel=0.01)


@given(st.lists(st.floats(0, 1e5), max_size=20), st.floats(0, 1e5))
def test_fading_in_steps_is_fading_at_once(steps: list[float], last_s: float) -> None:
    begun = FadingCount(600.0, 0.0).again(0.0)
    stepped = begun
    for at_s in sorted(at_s for at_s in steps if at_s <= last_s):
        stepped = stepped.faded(at_s)
    stepped, straight = stepped.faded(last_s), begun.faded(last_s)
    assert stepped.count == pytest.approx(straight.count, abs=1e-9)
    assert stepped.watched_s == pytest.approx(straight.watched_s, abs=1e-6)
