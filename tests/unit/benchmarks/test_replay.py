"""The replay that compares policies: it must count right, or its figures say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.population import Population
from benchmarks.replay import FarthestNextUse, Life, Lives, live, replay
from benchmarks.traces import Trace, azure, generated, thinned
from tessera.domain.ids import Digest
from tessera.policy.reclaim.keep_alive import KeepAliveReclaimPolicy
from tessera.policy.reclaim.lru import LruReclaimPolicy
from tessera.policy.scaling.fixed import FixedKeepAlive
from tessera.policy.scaling.histogram import HistogramKeepAlive

A, B, C = (Digest(f"{number:064x}") for number in (1, 2, 3))
ALONE = Population(((A,), (B,), (C,)), {A: 10, B: 10, C: 10}, {A: 1, B: 1, C: 1})


def lives(*starts: tuple[float, int]) -> Lives:
    return Lives([Life(at_s, at_s + 1.0, function) for at_s, function in starts])


def test_instances_live_from_a_cold_call_until_the_window_after_the_last() -> None:
    trace = Trace("t", 1000.0, ((0.0, 50.0, 200.0), (990.0,), ()))
    found = live(trace, FixedKeepAlive(60.0))
    assert found.lives == [Life(0.0, 110.0, 0), Life(200.0, 260.0, 0), Life(990.0, 1000.0, 1)]
    assert (found.calls, found.idle_s) == (4, 50.0 + 60.0 + 60.0 + 10.0)


def test_a_histogram_keeps_a_timer_that_a_fixed_window_loses() -> None:
    timer = Trace("t", 36000.0, (tuple(900.0 * at for at in range(40)),))
    assert len(live(timer, FixedKeepAlive(600.0)).lives) == 40
    assert len(live(timer, HistogramKeepAlive(600.0)).lives) == 11


def test_what_is_fetched_again_counts_and_what_must_be_fetched_once_does_not() -> None:
    turns = lives((0, 0), (10, 1), (20, 2), (30, 0), (40, 1), (50, 2))
    lru = replay(turns, ALONE, 20, LruReclaimPolicy(), 60.0, expires=False)
    assert (lru.starts, lru.complete, lru.fetched_bytes, lru.refetched_bytes) == (6, 0, 60, 30), "LRU's worst case: a loop"
    best = replay(turns, ALONE, 20, FarthestNextUse(turns, ALONE), 60.0, expires=False)
    assert (best.complete, best.refetched_bytes) == (2, 10)
    assert replay(turns, ALONE, 30, LruReclaimPolicy(), 60.0, expires=False).refetched_bytes == 0


def test_what_is_held_stays_and_a_start_that_does_not_fit_is_refused() -> None:
    together = Lives([Life(0.0, 100.0, 0), Life(1.0, 100.0, 1), Life(2.0, 100.0, 2), Life(200.0, 201.0, 2)])
    found = replay(together, ALONE, 20, LruReclaimPolicy(), 300.0, expires=False)
    assert (found.starts, found.refused, found.refetched_bytes) == (3, 1, 0)


def test_an_expiring_policy_holds_less_for_less_long() -> None:
    turns = lives((0, 0), (500, 0))
    kept = replay(turns, ALONE, 30, LruReclaimPolicy(), 1000.0, expires=False)
    expired = replay(turns, ALONE, 30, KeepAliveReclaimPolicy(60.0), 1000.0, expires=True)
    assert (kept.held_byte_s, kept.refetched_bytes) == (10.0 * 1000.0, 0)
    # One second in use, the window, and up to ten until somebody looks.
    assert expired.held_byte_s == pytest.approx(2 * 10.0 * 66.0, abs=2 * 10.0 * 5.0)
    assert expired.refetched_bytes == 10


def test_shared_bytes_are_there_once() -> None:
    siblings = Population(((A, B), (A, C)), {A: 100, B: 1, C: 1}, {A: 2, B: 1, C: 1})
    found = replay(lives((0, 0), (10, 1)), siblings, 200, LruReclaimPolicy(), 20.0, expires=False)
    assert (found.fetched_bytes, found.needed_bytes) == (102, 202)


def test_a_seed_is_a_trace() -> None:
    trace = generated(30, 4.0, 7)
    assert trace == generated(30, 4.0, 7)
    assert trace != generated(30, 4.0, 8)
    assert all(
        list(calls) == sorted(calls) and (not calls or (calls[0] >= 0.0 and calls[-1] <= trace.duration_s + 1.0)) for calls in trace.calls
    )
    assert len(thinned(trace, 10).calls) == 10


def test_azure_files_are_read_where_they_lie(tmp_path: Path) -> None:
    assert azure(tmp_path) == []
    folder = tmp_path / "azure_functions_2019"
    folder.mkdir()
    (folder / "sample100_invocations.csv").write_text("HashOwner,HashApp,HashFunction,Trigger,480,481,482\no,a,f,timer,1,0,2\n")
    other = tmp_path / "azure_functions_2021"
    other.mkdir()
    (other / "Azure2021_200.csv").write_text("app,func,end_timestamp,duration\na,f,10.0,1.0\na,g,14.0,1.0\na,f,20.0,5.0\n")
    first, second = azure(tmp_path)
    assert (first.name, first.duration_s, [int(at_s // 60) for at_s in first.calls[0]]) == ("azure-2019-100", 180.0, [0, 2, 2])
    assert (second.calls, second.duration_s) == (((0.0, 6.0), (4.0,)), 6.0)
