"""The comparison of what is served by need with fixed variants: its schedules, judgements and bills."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from benchmarks.arrivals import FLAT, FLUCTUATING, RISE, STEADY, Arrival, Shape, arrivals
from benchmarks.judging import Bill, Held, Tally, best_of, fewer_violations, highest, next_factor, share_of, tally, violation
from benchmarks.modelless import FULL, OURS, QUICK, SHAPES, SIDES, Found, Length, compared_at, goals, held_of, visits
from benchmarks.openloop import Answer, Form
from benchmarks.report import Report
from benchmarks.workload import MODELS, OBJECTIVES, PHOTOS, Measured, as_registered, asked_for, mixture_items_per_s, single_best, zipf
from tessera.api.common.v1 import common_pb2
from tessera.api.node.v1 import node_pb2

FORM = Form("m", "quick", 50.0, b"")
VARIANTS = (
    Measured("large", "aten-fp32", 40.0, 0.70, 0.4),
    Measured("large", "ort-fp32", 20.0, 0.70, 0.2),
    Measured("large", "ort-int8", 8.0, 0.69, 0.1),
    Measured("small", "aten-fp32", 15.0, 0.65, 0.2),
    Measured("small", "ort-int8", 4.0, 0.64, 0.05),
)


def answered(latency_ms: float, start_path: str = "warm", missed: str = "", served_by: str = "m/ort-fp32") -> Answer:
    return Answer(FORM, latency_ms, 0.1, "", served_by, start_path, missed)


def a_tally(requests: int, violations: int) -> Tally:
    return Tally(requests, violations, {"late": violations}, {}, 0, 1.0, 2.0, 0.1)


# --- when requests come


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_shape_asks_for_its_mean_and_never_more_than_its_peak(shape: Shape) -> None:
    multiples = [shape.multiple(at / 1000) for at in range(1000)]
    assert sum(multiples) / 1000 == pytest.approx(shape.mean, rel=0.01)
    assert max(multiples) == pytest.approx(shape.peak, rel=0.01)


def test_the_shapes_are_the_published_ones() -> None:
    assert (FLAT.multiple(0.0), FLAT.multiple(0.9)) == (0.3, 0.3)
    assert (RISE.multiple(0.0), RISE.multiple(1.0)) == (0.5, 1.5)
    assert (min(FLUCTUATING.multiple(at / 300) for at in range(300)), FLUCTUATING.multiple(1 / 6)) == pytest.approx((0.1, 2.0))


def test_arrivals_come_at_the_rate_that_the_shape_says() -> None:
    found = arrivals(RISE, 200.0, 60.0, (3.0, 1.0), seed=1)
    times = [one.at_s for one in found]
    assert times == sorted(times)
    assert 0.0 <= times[0] < times[-1] < 60.0
    assert len(found) == pytest.approx(200.0 * 60.0, rel=0.05)
    first, last = sum(at_s < 10.0 for at_s in times), sum(at_s >= 50.0 for at_s in times)
    assert last / first == pytest.approx((0.5 + 11 / 12) / (0.5 + 1 / 12), rel=0.15)
    assert sum(one.form == 0 for one in found) / len(found) == pytest.approx(0.75, abs=0.03)
    gaps = [after - before for before, after in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) >= 0.9 * mean**2, "as irregular as independent users"


def test_arrivals_are_the_same_for_everybody_who_has_the_seed() -> None:
    assert arrivals(STEADY, 50.0, 5.0, (1.0,), seed=7) == arrivals(STEADY, 50.0, 5.0, (1.0,), seed=7)
    assert arrivals(STEADY, 50.0, 5.0, (1.0,), seed=7) != arrivals(STEADY, 50.0, 5.0, (1.0,), seed=8)
    assert arrivals(STEADY, 0.0, 5.0, (1.0,), seed=7) == []
    assert {type(one) for one in arrivals(FLAT, 50.0, 5.0, (0.0, 1.0), seed=7)} == {Arrival}


# --- what counts as a violation


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (answered(50.0), ""),
        (answered(50.1), "late"),
        (answered(50.1, "bind"), "late after a start"),
        (answered(49.0, missed="latency_ms by 3.1"), ""),
        (answered(49.0, missed="latency_ms by 3.1, min_accuracy by 0.02"), "min_accuracy"),
        (answered(49.0, missed="max_cost by 0.1"), "max_cost"),
        (answered(60.0, missed="max_cost by 0.1"), "late"),
        (Answer(FORM, 1.0, 0.0, "unavailable"), "unavailable"),
    ],
)
def test_a_request_is_violated_by_the_clock_an_error_or_a_worse_answer(answer: Answer, why: str) -> None:
    assert violation(answer) == why


def test_a_tally_counts_by_reason_and_by_who_served() -> None:
    found = tally([answered(5.0), answered(10.0), answered(60.0, "bind", served_by="m/ort-int8"), Answer(FORM, 1.0, 3.0, "unavailable")])
    assert (found.requests, found.violations, found.starts) == (4, 2, 1)
    assert found.reasons == {"late after a start": 1, "unavailable": 1}
    assert found.served_by == {"m/ort-fp32": 2, "m/ort-int8": 1}
    assert (found.p50_ms, found.p99_ms, found.lag_p99_ms) == (10.0, 60.0, 3.0)
    assert tally([Answer(FORM, 1.0, 0.0, "unavailable")]).p99_ms == 0.0


def test_two_in_a_hundred_may_be_violated() -> None:
    assert a_tally(100, 2).kept
    assert not a_tally(100, 3).kept


# --- the search for the highest rate


def test_the_search_brackets_and_then_halves() -> None:
    tried: dict[float, bool] = {}
    for _ in range(10):
        factor = next_factor(tried, 1.0)
        tried[factor] = factor <= 5.0
    assert 4.9 < highest(tried) <= 5.0
    assert list(tried)[:5] == pytest.approx([1.0, 1.6, 2.56, 4.096, 6.5536])


def test_the_search_goes_down_where_the_first_rate_is_too_much() -> None:
    tried = {1.0: False}
    assert next_factor(tried, 1.0) == pytest.approx(1 / 1.6)
    assert highest(tried) == 0.0


def test_a_rate_kept_above_one_that_was_not_does_not_count() -> None:
    assert highest({1.0: True, 2.0: False, 3.0: True}) == 1.0
    assert next_factor({1.0: True, 2.0: False, 3.0: True}, 1.0) == pytest.approx(2**0.5)


# --- cost


def test_every_instance_pays_its_share_of_the_node_for_as_long_as_it_is_held() -> None:
    bill = Bill()
    bill.add(1800.0, [Held("a", 0.5, 0.1), Held("a", 0.5, 0.1), Held("b", 1.0, 0.1)], 1.5)
    bill.add(1800.0, [Held("b", 1.0, 0.1)], 0.0)
    assert bill.usd == pytest.approx(0.05 + 0.05 + 0.05)
    assert (bill.instance_s, bill.core_s, bill.most) == (4 * 1800.0, 2700.0, Counter(a=2, b=1))


def test_a_bill_says_what_waited_and_for_how_long_instances_were_in_trouble() -> None:
    bill = Bill()
    bill.add(2.0, [Held("a", 0.5, 0.1, "overloaded", 4), Held("b", 0.5, 0.1, waiting=3)], 0.0)
    bill.add(2.0, [Held("a", 0.5, 0.1, "overloaded", 1)], 0.0)
    assert (bill.waiting, bill.troubled_s) == (7, {"overloaded": 4.0})


def test_a_share_is_by_threads_or_by_memory_whichever_is_more() -> None:
    assert share_of(1, 4, 10, 100) == 0.25
    assert share_of(1, 4, 50, 100) == 0.5
    assert share_of(8, 4, 0, 0) == 1.0, "more threads than cores hold all of them"


def test_what_is_gone_pays_nothing() -> None:
    node = node_pb2.NodeStatus(cpu_count=2, memory_bytes=1000, runtimes=[node_pb2.Runtime(runtime_id="r", threads=1)])
    for state in ("ready", "loading", "draining", "gone", "failed"):
        node.instances.add(state=state, runtime_id="r", variant=common_pb2.VariantKey(model="m", version=1, variant="v"), private_bytes=100)
    assert held_of(node, 0.2) == [Held("m/v", 0.5, 0.2)] * 3


# --- the comparison


def test_the_best_baseline_is_the_best_of_that_run() -> None:
    assert best_of({"b": 2.0, "a": 3.0, "c": 3.0}, largest=True) == ("a", 3.0)
    assert best_of({"b": 2.0, "a": 3.0}, largest=False) == ("b", 2.0)


def test_few_violations_say_nothing() -> None:
    assert fewer_violations(19, 0) is None
    assert fewer_violations(20, 10) == 2.0
    assert fewer_violations(20, 0) == 20.0


def a_found(highest_factor: float, usd: float, at: dict[float, int]) -> Found:
    tallies = {factor: a_tally(1000, violations) for factor, violations in at.items()}
    return Found(10.0, {1.0: a_tally(1000, 0), highest_factor: a_tally(1000, 10), **tallies}, {1.0: Bill(usd)})


def test_goals_are_against_the_best_of_the_three_each_time() -> None:
    found = {
        "static": a_found(4.0, 0.9, {6.0: 300, 9.0: 500}),
        "static, scaled": a_found(5.0, 0.8, {6.0: 80, 9.0: 600}),
        "single best": a_found(3.0, 0.6, {6.0: 90}),
        OURS.name: a_found(6.5, 0.3, {6.0: 20, 9.0: 50}),
    }
    assert compared_at(found) == (6.0, 4.0)
    report = Report("x", machine={})
    goals(report, FLAT, found)
    values = {name: goal["value"] for name, goal in report.goals.items()}
    assert values == {"throughput_vs_best.flat": 1.3, "violations_vs_best.flat": 4.0, "cost_vs_best.flat": 0.5}
    assert all(goal["met"] for goal in report.goals.values())


def test_violations_are_not_compared_where_the_best_baseline_has_few() -> None:
    found = {side.name: a_found(4.0, 1.0, {6.0: 300}) for side in SIDES}
    found["single best"] = a_found(4.0, 1.0, {6.0: 19})
    assert compared_at(found) is None


def test_a_rate_that_nothing_was_too_high_for_is_no_throughput() -> None:
    found = {side.name: a_found(4.0, 1.0, {}) for side in SIDES}
    report = Report("x", machine={})
    goals(report, FLAT, found)
    assert list(report.goals) == ["cost_vs_best.flat"]


def test_every_side_has_every_shape_once_and_another_one_begins_each_time() -> None:
    for quick in (False, True):
        seen = [(side.name, shape.name) for side, shapes in visits(quick) for shape in shapes]
        assert sorted(seen) == sorted((side.name, shape.name) for side in SIDES for shape in SHAPES)
    assert len({side.name for side, (shape,) in list(visits(False))[:: len(SIDES)]}) == len(SHAPES)


@pytest.mark.parametrize(("length", "most_s"), [(FULL, 900.0), (QUICK, 180.0)])
def test_a_run_is_bounded(length: Length, most_s: float) -> None:
    assert len(SHAPES) * len(SIDES) * (length.equal_s + length.probes * length.probe_s) < 0.7 * most_s


# --- who is asked for what


def test_objectives_are_multiples_of_the_model_as_registered() -> None:
    base = as_registered(VARIANTS)
    assert base == VARIANTS[0], "of a task the most accurate model"
    quick, exact, cheap = (asked_for(objective, base) for objective in OBJECTIVES)
    assert (quick.latency_ms, quick.min_accuracy, quick.max_cost) == (80.0, 0.63, None)
    assert (exact.latency_ms, exact.min_accuracy) == (160.0, 0.7)
    assert (cheap.latency_ms, cheap.max_cost) == (320.0, 0.4)
    assert asked_for(OBJECTIVES[0], Measured("tiny", "aten-fp32", 0.5, 1.0, None)).latency_ms == 25.0


def test_the_single_best_is_the_fastest_that_is_good_enough_for_all() -> None:
    assert single_best(VARIANTS).reference == "large@1/ort-fp32"


def test_the_rate_of_a_mixture_is_that_of_one_process_for_all() -> None:
    assert mixture_items_per_s({"slow": 10.0, "fast": 1000.0}, {"slow": 1.0, "fast": 1.0}) == pytest.approx(2 / (0.1 + 0.001))
    assert list(zipf(["a", "b", "c"]).values()) == pytest.approx([1.0, 0.5, 1 / 3])


def test_there_are_twenty_models_and_the_task_is_among_them() -> None:
    assert len({model.name for model in MODELS}) == 20
    assert set(PHOTOS) < {model.name for model in MODELS}
