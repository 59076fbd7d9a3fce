"""Spans in a terminal."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.cli.waterfall import WIDTH, bar, draw, rows


def _span(name: str, start: int, end: int, parent: str = "") -> dict[str, Any]:
    return {"name": name, "span_id": name, "parent_span_id": parent, "start_unix_ns": start, "end_unix_ns": end, "ms": 0.0, "status": "ok"}


def test_parents_come_before_children_and_siblings_by_start() -> None:
    spans = [
        _span("late", 50, 60, "root"),
        _span("root", 0, 100, "elsewhere"),
        _span("inner", 12, 13, "early"),
        _span("early", 10, 20, "root"),
    ]
    assert [(depth, span["name"]) for depth, span in rows(spans)] == [(0, "root"), (1, "early"), (2, "inner"), (1, "late")]


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), min_size=1, max_size=20))
def test_every_bar_fits_and_shows_something(spans: list[tuple[int, int]]) -> None:
    ordered = [(min(pair), max(pair)) for pair in spans]
    first, last = min(start for start, _ in ordered), max(end for _, end in ordered)
    for start, end in ordered:
        drawn = bar(start, end, first, last)
        assert len(drawn) == WIDTH
        assert drawn.strip()


def test_nothing_held_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    draw([])
    assert "no spans are held" in capsys.readouterr().out


def test_a_failure_stands_behind_its_bar(capsys: pytest.CaptureFixture[str]) -> None:
    draw([{**_span("tessera.gateway.infer", 0, 10), "status": "unavailable: no node"}])
    assert capsys.readouterr().out.rstrip().endswith("unavailable: no node")
