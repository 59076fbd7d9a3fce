"""Comparing measured configurations: constraints, objectives, the front, and what is wrong with a wish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.cli import views
from tessera.cli.commands.profiles import _csv, _wish
from tessera.cli.compare import Candidate, candidates, parse_constraint, parse_objective, plain, rank, wish_of
from tessera.cli.pareto import front
from tessera.cli.report import report
from tessera.domain.errors import InvalidInput
from tessera.testing.builders import a_latency_row, a_profile, a_variant_key
from tessera.wire import encode_profile


def candidate(variant: str = "m@1/v", batch: int = 1, **metrics: float) -> Candidate:
    return Candidate(variant, "class", batch, 1, 1, metrics)


def profile(variant: str = "ort-fp32", usd_per_hour: float = 0.0, accuracy: float | None = None, **fields: Any) -> views.Plain:
    message = encode_profile(a_profile(a_variant_key(variant=variant), **fields))
    if usd_per_hour:
        message.usd_per_hour, message.cpu_count, message.usd_per_1000 = usd_per_hour, 2, 1.0
    if accuracy is not None:
        message.accuracy, message.accuracy_source = accuracy, "stated"
    return views.profile(message)


def test_rows_are_candidates_with_what_is_known_of_them() -> None:
    rows = (a_latency_row(4, 1, 10.0, mean_ms=10.0, peak_private_bytes=3_000_000),)
    (found,) = candidates([profile(rows=rows)])
    assert dict(found.metrics) == {
        "perf_throughput": 400.0,
        "perf_latency_avg": 10.0,
        "perf_latency_p50": 10.0,
        "perf_latency_p99": 15.0,
        "cpu_used_ram": 3.0,
        "load_time": 4.0,
    }
    (priced,) = candidates([profile(rows=rows, usd_per_hour=0.36, accuracy=0.9)])
    assert priced.metrics["accuracy"] == 0.9
    assert priced.metrics["usd_per_1000"] == pytest.approx(1000 * 0.36 / 3600 / 2 / 400)


def test_the_best_row_of_each_variant_under_constraints() -> None:
    found = [
        candidate("a", 1, perf_throughput=100, perf_latency_p99=5),
        candidate("a", 8, perf_throughput=300, perf_latency_p99=40),
        candidate("b", 4, perf_throughput=200, perf_latency_p99=15),
        candidate("c", 1, perf_throughput=900, perf_latency_p99=80),
        candidate("c", 8, perf_throughput=950, perf_latency_p99=300),
    ]
    ranked = rank(found, wish_of(["perf_throughput"], {"perf_latency_p99": {"max": 20}}))
    assert [(each.candidate.variant, each.candidate.batch, each.score) for each in ranked] == [("b", 4, 1.0), ("a", 1, 0.5), ("c", 1, 0.0)]
    assert ranked[-1].reason == "perf_latency_p99 80 is above max 20", "the row that misses it least"
    assert plain(ranked[0])["accuracy"] is None
    free = rank(found, wish_of(None, None))
    assert [(each.candidate.variant, each.candidate.batch) for each in free] == [("c", 8), ("a", 8), ("b", 4)]


def test_objectives_are_weighed_against_the_best_of_each() -> None:
    found = [candidate("fast", perf_throughput=100, perf_latency_p99=10), candidate("much", perf_throughput=200, perf_latency_p99=40)]
    assert [each.candidate.variant for each in rank(found, wish_of({"perf_throughput": 1, "perf_latency_p99": 3}, {}))] == ["fast", "much"]
    ranked = rank(found, wish_of({"perf_throughput": 9, "perf_latency_p99": 1}, {}))
    assert [(each.candidate.variant, each.score) for each in ranked] == [("much", pytest.approx(0.925)), ("fast", pytest.approx(0.55))]


def test_what_is_not_known_meets_no_constraint_and_scores_nothing() -> None:
    found = [candidate("known", accuracy=0.9), candidate("unknown")]
    ranked = rank(found, wish_of(["accuracy"], {"accuracy": {"min": 0.5}}))
    assert [(each.candidate.variant, each.score, each.reason) for each in ranked] == [
        ("known", 1.0, ""),
        ("unknown", 0.0, "accuracy is not known"),
    ]
    assert [each.score for each in rank(found, wish_of(["accuracy"], {}))] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("objectives", "constraints", "words"),
    [
        (["speed"], None, "objectives 'speed': there are perf_throughput"),
        ({"perf_throughput": 0}, None, r"objectives.perf_throughput 0: must be more than 0"),
        ({"perf_throughput": "much"}, None, "must be a finite number"),
        ({"perf_throughput": float("inf")}, None, "must be a finite number"),
        ("perf_throughput", None, "must be a list"),
        (None, {"perf_latency_p99": 20}, "must have min, max or both"),
        (None, {"perf_latency_p99": {"most": 20}}, "must have min, max or both"),
        (None, {"latency": {"max": 20}}, "constraints 'latency': there are"),
        (None, ["perf_latency_p99"], "must be limits by metric"),
    ],
)
def test_a_wish_that_makes_no_sense_names_the_field(objectives: Any, constraints: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        wish_of(objectives, constraints)


def test_the_command_line_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "wish.yaml"
    file.write_text("objectives: [perf_throughput]\nconstraints:\n  perf_latency_p99: {max: 100}\n  accuracy: {min: 0.5}\n")
    wish = _wish(file, ["usd_per_1000=2"], ["perf_latency_p99:max=20", "accuracy:max=0.99"])
    assert wish.objectives == {"perf_throughput": 1.0, "usd_per_1000": 2.0}
    assert wish.constraints == {"perf_latency_p99": {"max": 20.0}, "accuracy": {"min": 0.5, "max": 0.99}}
    assert dict(_wish(None, ["perf_latency_p99"], []).objectives) == {"perf_latency_p99": 1.0}
    for text in ("[1]", "profile_models: [m]", "objectives: ["):
        file.write_text(text)
        with pytest.raises(InvalidInput, match="--config-file"):
            _wish(file, [], [])
    with pytest.raises(InvalidInput, match="METRIC:min=NUMBER"):
        parse_constraint("perf_latency_p99<20")
    with pytest.raises(InvalidInput, match="finite number"):
        parse_objective("perf_throughput=x")


def test_the_front_is_what_nothing_beats() -> None:
    found = [
        candidate("fast", perf_latency_p50=1, accuracy=0.9, usd_per_1000=3),
        candidate("right", perf_latency_p50=5, accuracy=0.99, usd_per_1000=3),
        candidate("cheap", perf_latency_p50=9, accuracy=0.9, usd_per_1000=1),
        candidate("beaten", perf_latency_p50=6, accuracy=0.9, usd_per_1000=3),
        candidate("unknown", perf_latency_p50=7, accuracy=0.9),
    ]
    assert front(found) == [True, True, True, False, False]
    alike = [candidate("a", perf_latency_p50=1), candidate("b", perf_latency_p50=1)]
    assert front(alike) == [True, True], "of what nobody knows nothing is held against anybody"


points = st.lists(st.tuples(*[st.integers(1, 5)] * 3), min_size=1, max_size=12)


@given(points)
def test_every_point_is_on_the_front_or_beaten_by_one_that_is(found: list[tuple[int, int, int]]) -> None:
    made = [candidate(perf_latency_p50=ms, accuracy=acc, usd_per_1000=usd) for ms, acc, usd in found]
    ahead = front(made)
    assert any(ahead)
    best = [point for point, first in zip(found, ahead, strict=True) if first]
    for point in found:
        assert any(ms <= point[0] and acc >= point[1] and usd <= point[2] for ms, acc, usd in best)


def test_csv_has_a_line_for_each_row() -> None:
    lines = _csv([profile(rows=(a_latency_row(1), a_latency_row(2)), accuracy=0.5)]).splitlines()
    assert lines[0].startswith("variant,profile_class,accuracy,accuracy_source,usd_per_hour,batch,threads,concurrency")
    assert len(lines) == 3
    assert lines[1].startswith("digits@1/ort-fp32,")
    assert len({line.count(",") for line in lines}) == 1


def test_a_report_needs_nothing_from_elsewhere_and_escapes_what_it_shows() -> None:
    page = report([profile(usd_per_hour=0.1, accuracy=0.9), profile("aten-fp32", rows=(a_latency_row(),))], "<b>Profiles</b>")
    assert "&lt;b&gt;Profiles" in page
    assert "<b>Profiles" not in page
    assert " src=" not in page.split("<body>")[0]
    assert 'script src="http' not in page
    assert page.count("<table>") == 4
