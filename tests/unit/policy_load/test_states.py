"""Load states in virtual time, a report each second: published thresholds, no flapping, nothing judged by a guess."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.errors import InvalidInput
from tessera.domain.records import LoadState
from tessera.policy.load import registry
from tessera.policy.load.base import Expected, Load, Observation, expected_of, state_of_variant
from tessera.policy.load.published import PublishedLoad, ReleasedLoad
from tessera.testing.builders import a_latency_row, a_profile

ACTIVE, OVERLOADED, INTERFERED = LoadState.ACTIVE, LoadState.OVERLOADED, LoadState.INTERFERED
TEN_MS = Expected(slope_ms=0.0, intercept_ms=10.0, peak_items_per_s=100.0)


def calm(per_s: float = 20.0, run_ms: float = 10.0, in_flight: int = 0, served: int = 0) -> Observation:
    return Observation(served, in_flight, per_s, per_s, run_ms, 1.0 if run_ms else 0.0)


def states(
    series: list[Observation], expected: Expected | None = TEN_MS, policy: PublishedLoad | ReleasedLoad | None = None
) -> list[LoadState]:
    load: Load | None = None
    found = []
    for at_s, seen in enumerate(series):
        load = (policy or PublishedLoad()).step(load, seen, expected, float(at_s))
        found.append(load.state)
    return found


def changes(found: list[LoadState]) -> int:
    return sum(one is not other for one, other in pairwise(found))


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        (calm(), ACTIVE),
        (calm(99.0), ACTIVE),
        (calm(100.0), OVERLOADED),
        (calm(60.0, in_flight=109), ACTIVE),
        (calm(60.0, in_flight=111), OVERLOADED),
        (replace(calm(60.0, in_flight=81), replicas=2), OVERLOADED),
        (calm(run_ms=39.0), ACTIVE),
        (calm(run_ms=41.0), INTERFERED),
        (replace(calm(run_ms=26.0), replicas=2), INTERFERED),
        (calm(9.0, run_ms=100.0, in_flight=500), INTERFERED),
        (calm(120.0, run_ms=100.0, in_flight=500), OVERLOADED),
    ],
    ids=["idle", "below the peak", "at the peak", "a second of work", "more than that", "two replicas wait less", "noise", "slow",
         "two replicas differ less", "what waits behind slow runs", "offered beyond the peak"],
)  # fmt: skip
def test_what_lasts_is_called_by_its_published_name(seen: Observation, state: LoadState) -> None:
    # Nothing grows in the queue from the second report on: what is offered is what is answered.
    assert states([seen] * 4)[-1] is state


def test_what_is_just_past_its_threshold_takes_two_reports_and_twice_as_much_takes_one() -> None:
    assert states([calm(), calm(run_ms=45.0), calm(run_ms=45.0)]) == [ACTIVE, ACTIVE, INTERFERED]
    assert states([calm(), calm(run_ms=100.0)]) == [ACTIVE, INTERFERED], "ten times slower: known at the first report"
    assert states([calm(), calm(100.0), calm(100.0)]) == [ACTIVE, ACTIVE, OVERLOADED]
    assert states([calm(), calm(50.0, in_flight=250)]) == [ACTIVE, OVERLOADED], "waiting requests were offered too"


def test_milliseconds_make_no_short_run_slow() -> None:
    short = Expected(slope_ms=0.0, intercept_ms=0.1, peak_items_per_s=10_000.0)
    assert set(states([calm(run_ms=9.0)] * 10, short)) == {ACTIVE}, "ninety times the profiled tenth of a millisecond, and nobody's doing"
    assert states([calm(run_ms=60.0)] * 2, short) == [INTERFERED, INTERFERED]


def test_it_ends_at_another_threshold_than_it_began_at() -> None:
    slow = [calm(run_ms=100.0)] * 3
    assert set(states([*slow, *[calm(run_ms=20.0)] * 50])) == {INTERFERED}, "twice the profiled latency is not calm"
    assert states([*slow, *[calm(run_ms=14.0)] * 3])[-1] is ACTIVE
    full = [calm(130.0)] * 3
    assert set(states([*full, *[calm(95.0)] * 50])[2:]) == {OVERLOADED}
    assert states([*full, *[calm(80.0)] * 3])[-1] is ACTIVE
    quiet = states([*slow, *[calm(0.0, run_ms=0.0)] * 40])
    assert (quiet[20], quiet[-1]) == (INTERFERED, ACTIVE), "nobody asks any more, which proves nothing for half a minute"


@pytest.mark.parametrize("period", [1, 2, 3, 5])
@pytest.mark.parametrize("threshold", [100.0, 90.0])
def test_a_load_that_swings_around_a_threshold_does_not_flap(threshold: float, period: int) -> None:
    series = [calm(threshold * (1.04 if at // period % 2 else 0.96)) for at in range(600)]
    assert changes(states(series)) <= 1
    assert changes(states([calm(130.0)] * 3 + series)[3:]) <= 1


@pytest.mark.parametrize("run_ms", [40.0, 15.0])
def test_a_latency_that_swings_around_a_threshold_does_not_flap(run_ms: float) -> None:
    series = [calm(run_ms=run_ms * (1.04 if at % 2 else 0.96)) for at in range(600)]
    assert changes(states(series)) <= 1
    assert changes(states([calm(run_ms=200.0)] * 3 + series)[3:]) <= 1


def test_noise_does_not_flag_what_is_well_below() -> None:
    """Latencies with a heavy tail (a few reports are beyond the factor), rates with a fifth of noise."""
    draw = random.Random(5)
    series = [calm(60.0 * draw.uniform(0.8, 1.2), run_ms=10.0 * draw.lognormvariate(0.2, 0.4)) for _ in range(3600)]
    assert sum(seen.run_ms > 40.0 for seen in series) >= 3, "the series is meant to cross the factor now and then"
    assert set(states(series)) == {ACTIVE}
    assert changes(states([calm(105.0 * draw.uniform(0.98, 1.02)) for _ in range(600)])) == 1, "and what is over stays over"


def test_a_run_that_does_not_end_is_slow() -> None:
    hung = replace(calm(0.0, run_ms=0.0, in_flight=1), served=7)
    assert states([calm(served=7), hung, hung])[-1] is INTERFERED
    busy = [replace(hung, served=7 + at) for at in range(5)]
    assert set(states(busy)) == {ACTIVE}, "another request each time: no run was seen to last"


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6), st.integers(0, 10**6)), min_size=1, max_size=20))
def test_without_a_profile_nothing_is_judged(series: list[tuple[float, float, int]]) -> None:
    seen = [Observation(0, waiting, per_s, per_s, run_ms, 1.0) for per_s, run_ms, waiting in series]
    for policy in (PublishedLoad(), ReleasedLoad()):
        assert set(states(seen, None, policy)) == {ACTIVE}
        assert policy.step(None, seen[0], None, 0.0).reason.startswith("not judged: no profile")


def test_batches_are_expected_to_take_longer() -> None:
    line = Expected(slope_ms=5.0, intercept_ms=5.0, peak_items_per_s=180.0)
    eight = Observation(0, 8, 20.0, 160.0, 45.0, 8.0)
    assert states([eight] * 4, line)[-1] is ACTIVE
    assert states([replace(eight, batch=1.0, items_per_s=20.0)] * 4, line)[-1] is INTERFERED, "45 ms is much for one"


def test_expectations_come_from_the_rows_with_the_same_threads() -> None:
    rows = (a_latency_row(1, 1, 10.0, mean_ms=10.0), a_latency_row(4, 1, 25.0, mean_ms=25.0), a_latency_row(1, 2, 6.0, mean_ms=6.0))
    profile = a_profile(rows=rows)
    two = expected_of(profile, 1)
    assert two is not None
    assert (two.run_ms(1), two.run_ms(4), two.peak_items_per_s) == (pytest.approx(10), pytest.approx(25), pytest.approx(160))
    assert expected_of(profile, 2) == Expected(0.0, 6.0, pytest.approx(1000 / 6))
    assert expected_of(profile, 4) is None
    assert expected_of(None, 1) is None


def test_the_released_flag_leaves_alone_what_is_slow_and_little_used() -> None:
    slow = calm(20.0, run_ms=100.0)
    assert states([slow] * 5, policy=ReleasedLoad()) == [ACTIVE] * 5
    assert states([slow] * 5)[-1] is INTERFERED
    assert states([calm(120.0, run_ms=100.0)], policy=ReleasedLoad()) == [INTERFERED]
    assert states([calm(20.0, in_flight=111)], policy=ReleasedLoad()) == [OVERLOADED]
    fading = states([calm(120.0, run_ms=100.0), *[calm(0.0, run_ms=0.0)] * 2], policy=ReleasedLoad())
    assert fading == [INTERFERED, ACTIVE, ACTIVE]


@pytest.mark.parametrize(
    ("instances", "state"),
    [
        ([], LoadState.INACTIVE),
        ([INTERFERED, ACTIVE, OVERLOADED], ACTIVE),
        ([INTERFERED, OVERLOADED], OVERLOADED),
        ([INTERFERED, INTERFERED, OVERLOADED], INTERFERED),
    ],
)
def test_a_variant_is_what_its_instances_are(instances: list[LoadState], state: LoadState) -> None:
    assert state_of_variant(instances) is state


def test_an_unknown_policy_is_refused_by_name() -> None:
    assert [registry.make(name).name for name in sorted(registry.POLICIES)] == ["published", "released"]
    with pytest.raises(InvalidInput, match="load policy 'calm': one of published, released"):
        registry.make("calm")
