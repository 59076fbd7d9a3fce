"""Balancers live: what a row and the goals say of calls."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.report import Report
from benchmarks.startcells import GAVE_UP, Call
from benchmarks.twonodes import OURS, Found, goals, row


def found(*took_ms: float, fetched_bytes: int = 0) -> Found:
    calls = [Call("m", float(at), ms, "warm" if ms < 5 else "bind", True) for at, ms in enumerate(took_ms)]
    return Found(calls, fetched_bytes, Counter({"node-0": 3, "node-1": 1}))


def test_a_row_counts_calls_by_path_and_node() -> None:
    report, one = Report("twonodes"), found(1.0, 2.0, 30.0, 7.0, fetched_bytes=3 << 20)
    one.calls[2] = Call("m", 2.0, 30.0, "", False, GAVE_UP)
    one.calls[3].right = False
    row(report, "trace", OURS, one)
    (told,) = report.rows
    assert (told["calls"], told["mean_ms"], told["p50_ms"], told["fetched_mib"], told["busiest_node"]) == (4, 10.0, 4.5, 3.0, 0.75)
    assert (told["paths"], told["wrong"], told["unanswered"]) == (f"warm 50%, {GAVE_UP} 25%, bind 25%", 1, 1)


def test_a_goal_is_by_how_much_k_medoids_is_shorter_and_says_the_noise() -> None:
    report = Report("twonodes")
    goals(report, {"hash": found(10.0, 10.0), OURS: found(8.0, 8.0), "none": found(5.0, 8.0)})
    assert {name: goal["met"] for name, goal in report.goals.items()} == {"k_medoids_vs_hash": True, "k_medoids_vs_none": False}
    assert report.goals["k_medoids_vs_hash"]["value"] == pytest.approx(0.2)
    assert report.goals["k_medoids_vs_hash"]["unit"] == "of 10 ms; noise 0%"
    assert report.goals["k_medoids_vs_none"]["value"] == pytest.approx(1 - 8 / 6.5, abs=1e-4)
