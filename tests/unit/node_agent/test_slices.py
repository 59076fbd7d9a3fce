"""Rows from slices: the same as of all their runs at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.node_agent.core.slices import LEAST_S, Pace, Slice, enough, together

TIMES = st.lists(st.floats(0.01, 1000.0), min_size=1, max_size=60)


def slice_of(times_ms: Sequence[float], peak: int = 0) -> Slice:
    """As a runtime measures it."""
    count, mean = len(times_ms), float(np.mean(times_ms))
    spread = float(np.std(times_ms, ddof=1)) / math.sqrt(count) / mean if count > 1 else 1.0
    return Slice(count, tuple(np.quantile(times_ms, np.linspace(0, 1, 201)).tolist()), mean, spread, peak)


@given(TIMES)
def test_one_slice_is_its_row(times_ms: list[float]) -> None:
    alone = slice_of(times_ms, 7)
    found = together([alone])
    assert (found.repeats, found.quantiles_ms, found.peak_private_bytes) == (alone.repeats, alone.quantiles_ms, 7)
    assert (found.mean_ms, found.spread) == (pytest.approx(alone.mean_ms), pytest.approx(alone.spread, abs=1e-6))


@given(st.lists(TIMES, min_size=2, max_size=6))
def test_mean_and_spread_are_those_of_all_runs(parts: list[list[float]]) -> None:
    found, whole = together([slice_of(part) for part in parts]), slice_of([ms for part in parts for ms in part])
    assert found.repeats == whole.repeats
    assert (found.mean_ms, found.spread) == (pytest.approx(whole.mean_ms), pytest.approx(whole.spread, abs=1e-6))
    assert list(found.quantiles_ms) == sorted(found.quantiles_ms)
    assert min(map(min, parts)) <= found.quantiles_ms[0] <= found.quantiles_ms[-1] <= max(map(max, parts))


def test_quantiles_weigh_slices_by_their_runs() -> None:
    random = np.random.default_rng(3)
    times_ms = random.lognormal(1.0, 0.5, 4000)
    found = together([slice_of(part) for part in np.split(times_ms, [40, 400, 3000])])
    for at in (20, 100, 180, 198):
        assert found.quantiles_ms[at] == pytest.approx(np.quantile(times_ms, at / 200), rel=0.03)


@pytest.mark.parametrize(
    ("repeats", "spread", "concurrency", "is_enough"),
    [
        (4, 0.0, 1, False),  # too few
        (5, 0.01, 1, False),  # steady, but less than a tenth of the time
        (10, 0.01, 1, True),
        (10, 0.01, 2, False),  # two at a time ran half as long
        (10, 0.05, 1, False),
        (100, 0.05, 1, True),  # as steady as it gets
    ],
)
def test_a_row_is_complete_by_the_measure_of_one_that_ran_at_once(repeats: int, spread: float, concurrency: int, is_enough: bool) -> None:
    found = Slice(repeats, (10.0,), 10.0, spread, 0)
    assert enough(found, concurrency, seconds=1.0, min_repeats=5, spread=0.02) is is_enough


def test_each_try_is_shorter_and_sooner() -> None:
    pace, tries = Pace(1.0), []
    for _ in range(6):
        pace = pace.hurried(3.0)
        tries.append((pace.quiet_s, pace.slice_s))
    assert tries[:2] == [(0.5, 1.5), (0.25, 0.75)]
    assert tries[-1] == (LEAST_S, LEAST_S)
    assert Pace(1.0).hurried(0.01) == Pace(0.5, 0.01), "never longer than the row"


def test_runs_that_others_held_up_do_not_count_for_one_instance_by_itself() -> None:
    held_up = slice_of([0.027] * 95 + [8.0] * 5)
    assert held_up.mean_ms > 0.4
    assert held_up.row_mean_ms(1) == pytest.approx(0.027)
    assert held_up.row_mean_ms(2) == held_up.mean_ms, "several hold each other up: that is what is measured"


@given(TIMES)
def test_a_rows_mean_lies_in_the_middle_half(times_ms: list[float]) -> None:
    found = slice_of(times_ms)
    low, high = np.quantile(times_ms, (0.25, 0.75))
    assert low * (1 - 1e-9) <= found.row_mean_ms(1) <= high * (1 + 1e-9)
