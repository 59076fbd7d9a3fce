"""The line through a profile's rows, what it predicts, where a variant saturates, and what that costs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.cost import usd_per_1000
from tessera.domain.fit import fit_of, of_singles, predict_ms, saturation_items_per_s
from tessera.domain.records import LatencyRow, ProfileRecord
from tessera.testing.builders import a_latency_row, a_profile


def profile(*rows: tuple[int, float], threads: int = 1, more: tuple[LatencyRow, ...] = ()) -> ProfileRecord:
    return a_profile(rows=tuple(a_latency_row(batch, threads, ms) for batch, ms in rows) + more)


def test_points_on_a_line_give_that_line_without_error() -> None:
    fit = fit_of(profile((1, 5.0), (2, 7.0), (8, 19.0)), threads=1)
    assert fit is not None
    assert (fit.slope_ms, fit.intercept_ms, fit.error) == pytest.approx((2.0, 3.0, 0.0), abs=1e-6)
    assert fit.ms(16) == pytest.approx(35.0)


def test_the_error_is_relative_so_that_small_batches_count() -> None:
    """By absolute error the row of 200 ms would decide and the one of 2 ms would be missed by half."""
    fit = fit_of(profile((1, 2.0), (2, 3.0), (4, 5.0), (64, 200.0)), threads=1)
    assert fit is not None
    assert abs(fit.ms(1) / 2.0 - 1) < 0.35
    assert 0.2 < fit.error < 0.4


def test_a_line_never_falls_and_never_starts_below_zero() -> None:
    falling = fit_of(profile((1, 4.0), (2, 2.0)), threads=1)
    assert falling is not None
    assert falling.slope_ms == 0.0
    assert falling.intercept_ms == pytest.approx(2.4)  # the constant of the least relative squares
    steep = fit_of(profile((1, 1.0), (2, 4.0), (4, 16.0)), threads=1)
    assert steep is not None
    assert steep.intercept_ms == 0.0
    assert steep.slope_ms > 0


def test_one_batch_makes_no_line_and_other_threads_are_no_help() -> None:
    record = profile((1, 5.0), more=(a_latency_row(2, 1, 9.0, concurrency=2), a_latency_row(2, 2, 4.0)))
    assert fit_of(record, 1) is None
    assert fit_of(record, 4) is None
    assert predict_ms(record, 1, 1) == 5.0
    assert predict_ms(record, 2, 1) is None, "a row of two instances at a time says nothing about one"


def test_a_measured_row_beats_the_line() -> None:
    record = profile((1, 5.0), (2, 9.0), (4, 11.0))
    fit = fit_of(record, 1)
    assert fit is not None
    assert predict_ms(record, 2, 1) == 9.0
    assert predict_ms(record, 3, 1) == fit.ms(3)


def test_saturation_is_the_best_row_of_the_instances_asked_for() -> None:
    record = profile((1, 10.0), (8, 40.0), (16, 100.0), more=(a_latency_row(1, 1, 12.0, mean_ms=12.0, concurrency=2),))
    best = max(row.items_per_s for row in record.rows if row.concurrency == 1)
    assert saturation_items_per_s(record, 1) == best == pytest.approx(1000 * 8 / 44.0)
    assert saturation_items_per_s(record, 1, concurrency=2) == pytest.approx(2000 / 12.0)
    assert saturation_items_per_s(record, 2) is None


def test_requests_that_are_not_joined_get_what_batch_1_gives() -> None:
    record = profile((1, 10.0), (8, 40.0), more=(a_latency_row(1, 1, 12.0, mean_ms=12.0, concurrency=2),))
    assert of_singles(record, joins=True) == record
    alone = of_singles(record, joins=False)
    assert saturation_items_per_s(alone, 1) == pytest.approx(1000 / 11.0)
    assert saturation_items_per_s(alone, 1, concurrency=2) == pytest.approx(2000 / 12.0)


def test_the_unit_cost_is_that_of_the_row_that_keeps_the_node_busy() -> None:
    one = profile((1, 10.0))  # mean 11 ms: 90.9 items a second on one core
    assert usd_per_1000(one, 0.36, 2) == pytest.approx(1000 * 0.36 / 3600 / (2 * 1000 / 11.0))
    both = profile((1, 10.0), more=(a_latency_row(1, 1, 15.0, mean_ms=16.0, concurrency=2),))
    assert usd_per_1000(both, 0.36, 2) == pytest.approx(1000 * 0.36 / 3600 / (2000 / 16.0)), "two at a time slow each other down"
    assert usd_per_1000(a_profile(rows=()), 0.36, 2) is None


@given(
    st.floats(0.01, 100),
    st.floats(0.0, 100),
    st.lists(st.sampled_from([1, 2, 4, 8, 16, 32, 64]), min_size=2, max_size=7, unique=True),
    st.data(),
)
def test_a_fit_misses_no_more_than_the_true_line_does(slope: float, intercept: float, batches: list[int], data: st.DataObject) -> None:
    noise = [data.draw(st.floats(0.8, 1.25)) for _ in batches]
    rows = [(batch, (slope * batch + intercept) * factor) for batch, factor in zip(batches, noise, strict=True)]
    fit = fit_of(profile(*rows), 1)
    assert fit is not None
    assert fit.slope_ms >= 0
    assert fit.intercept_ms >= 0
    true = (sum(((slope * batch + intercept) / ms - 1) ** 2 for batch, ms in rows) / len(rows)) ** 0.5
    assert fit.error <= true + 1e-6
