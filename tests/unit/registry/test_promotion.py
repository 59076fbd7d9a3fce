"""The guard of a promotion: what is compared, what is refused and in which words, and what it never lets pass."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.accuracy import Agreement
from tessera.domain.errors import FailedPrecondition, InvalidInput
from tessera.domain.ids import ModelName, ProfileClass, VersionNumber
from tessera.domain.records import Evaluation, LatencyRow, ProfileRecord, VariantRecord, VariantState
from tessera.domain.signature import TensorSpec
from tessera.registry.core.promotion import Comparison, Guard, Measured, check_promotable, checked_guard, compare, refusals
from tessera.testing.builders import a_digest, a_latency_row, a_model, a_node, a_profile, a_signature, a_variant, a_variant_key, a_version

GUARD = Guard()
CLASS, OTHER = ProfileClass("class-a"), ProfileClass("class-b")
SET = Evaluation(a_digest(50), 100, "top1")
EXACT = Agreement(1e-6, 1.0, 64)


def variant(version: int, name: str = "aten-fp32", score: float | None = 0.9, **fields: Any) -> VariantRecord:
    agreement = replace(EXACT, metric="top1", score=score, reference_score=score) if score is not None else None
    return a_variant(**{"key": a_variant_key(version=version, variant=name), "agreement": agreement, **fields})


def profile(version: int, *rows: LatencyRow, name: str = "aten-fp32", on: ProfileClass = CLASS) -> ProfileRecord:
    return a_profile(a_variant_key(version=version, variant=name), profile_class=on, rows=rows)


def row(batch: int = 1, ms: float = 2.0, **fields: Any) -> LatencyRow:
    return a_latency_row(batch, p50_ms=ms, mean_ms=ms, **fields)


def measured(
    version: int,
    *,
    score: float | None = 0.9,
    evaluation: Evaluation | None = SET,
    variants: tuple[VariantRecord, ...] | None = None,
    profiles: tuple[ProfileRecord, ...] = (),
    lossy: bool = False,
    **fields: Any,
) -> Measured:
    record = a_version(version=VersionNumber(version), evaluation=evaluation, **fields)
    return Measured(a_model(lossy=lossy), record, variants or (variant(version, score=score),), profiles)


def refused(candidate: Measured, current: Measured, guard: Guard = GUARD, nodes: tuple[Any, ...] = ()) -> dict[str, str]:
    """Measure -> words of what speaks against it."""
    return {each.measure: each.words for each in compare(candidate, current, nodes, guard) if each.refused}


def test_as_good_passes_and_says_what_was_compared() -> None:
    accuracy, latency = compare(measured(2), measured(1), (), GUARD)
    assert accuracy == Comparison("accuracy", "top1", 0.9, 0.9, "0.9000 after 0.9000")
    assert (latency.refused, latency.words) == (False, "digits@1 was not profiled: speed and cost are not compared")


def test_a_lower_score_is_refused_beyond_what_is_allowed() -> None:
    worse, current = measured(2, score=0.79), measured(1, score=0.8)
    assert refused(worse, current) == {"accuracy": "0.7900 after 0.8000 loses 0.01, at most 0 (allow_loss)"}
    assert refused(worse, current, Guard(allow_loss=0.01)) == {}, "at the limit"
    assert refused(worse, current, Guard(allow_loss=0.009)).keys() == {"accuracy"}


@pytest.mark.parametrize(
    ("candidate", "current", "words"),
    [
        ({"evaluation": None}, {}, "digits@2 has no evaluation set"),
        ({}, {"evaluation": None}, "digits@1 has no evaluation set"),
        ({"evaluation": replace(SET, digest=a_digest(51))}, {}, "different evaluation sets or by different metrics"),
        ({"evaluation": replace(SET, metric="f1")}, {}, "different evaluation sets or by different metrics"),
        ({"score": None}, {}, "digits@2 has no score yet"),
        ({}, {"score": None}, "digits@1 has no score yet"),
    ],
)
def test_without_a_common_measure_it_is_refused(candidate: dict[str, Any], current: dict[str, Any], words: str) -> None:
    found = refused(measured(2, **candidate), measured(1, **current), Guard(1.0, 1000.0, 1000.0))
    assert found.keys() == {"accuracy"}
    assert words in found["accuracy"]


def test_the_score_is_that_of_the_registered_model_not_of_a_lossy_build() -> None:
    int8 = variant(2, "ort-int8", agreement=Agreement(0.1, 0.99, 64, "top1", 0.5, 0.9), withheld="loses too much")
    assert refused(measured(2, variants=(int8, variant(2))), measured(1)) == {}
    assert measured(2, variants=(int8,)).score == 0.9


def test_a_version_that_takes_other_inputs_is_refused() -> None:
    other = a_signature(inputs=(TensorSpec("picture", "FP32", (-1, 1, 8, 8)),))
    assert refused(measured(2, signature=other), measured(1)) == {"signature": "its inputs are 'picture', and they are 'image' in digits@1"}


@pytest.mark.parametrize(
    ("fields", "lossy", "passes"),
    [
        ({}, False, True),
        ({"state": VariantState.BUILDING}, False, False),
        ({"withheld": "loses 0.02"}, False, False),
        ({"agreement": replace(EXACT, max_error=0.1, metric="top1", score=0.9, reference_score=0.9)}, False, False),
        ({"agreement": replace(EXACT, max_error=0.1, metric="top1", score=0.9, reference_score=0.9)}, True, True),
    ],
)
def test_one_variant_must_be_ready_that_a_plain_request_may_get(fields: dict[str, Any], lossy: bool, passes: bool) -> None:
    found = refused(measured(2, variants=(variant(2, **fields),), lossy=lossy), measured(1))
    assert found == ({} if passes else {"variants": "none of digits@2 is ready that a plain request may get"})


def test_slower_alone_and_under_load_is_refused_beyond_what_is_allowed() -> None:
    current = measured(1, profiles=(profile(1, row(1, 2.0), row(8, 8.0)),))
    slower = measured(2, profiles=(profile(2, row(1, 2.3), row(8, 8.8)),))
    assert refused(slower, current) == {"latency": "2.3 ms after 2 is 15.0% slower, at most 10.0% (allow_slower)"}
    assert refused(slower, current, Guard(allow_slower=0.15)) == {}
    found = refused(measured(2, profiles=(profile(2, row(1, 2.0), row(8, 12.0)),)), current)
    assert found == {"throughput": "666.7 items/s after 1000 is 50.0% slower, at most 10.0% (allow_slower)"}


def test_only_rows_and_classes_that_both_have_are_compared() -> None:
    quick = measured(1, profiles=(profile(1, row(1, 2.0)), profile(1, row(1, 1.0), on=OTHER)))
    whole = measured(2, profiles=(profile(2, row(1, 2.0), row(8, 80.0)),))
    found = [each for each in compare(whole, quick, (), GUARD) if each.measure != "accuracy"]
    assert [(each.measure, each.on, each.current, each.candidate, each.refused) for each in found] == [
        ("latency", CLASS, 2.0, 2.0, False),
        ("throughput", CLASS, 500.0, 500.0, False),
    ]


def test_what_was_profiled_before_must_be_profiled_now() -> None:
    current = measured(1, profiles=(profile(1, row()),))
    for there in ((), (profile(2, row(), on=OTHER),), (profile(2, row(4)),)):
        found = refused(measured(2, profiles=there), current)
        assert found == {"latency": "digits@1 was profiled there and digits@2 was not: profile it (tessera profile run digits@2)"}


def test_each_version_counts_by_its_fastest_variant_that_is_offered() -> None:
    current = measured(1, profiles=(profile(1, row(1, 2.0)),))
    variants = (variant(2), variant(2, "ort-fp32", score=None), variant(2, "ort-int8", score=None, withheld="loses"))
    slow, fast, withheld = profile(2, row(1, 9.0)), profile(2, row(1, 2.0), name="ort-fp32"), profile(2, row(1, 0.1), name="ort-int8")
    assert refused(measured(2, variants=variants, profiles=(slow, fast)), current) == {}
    assert refused(measured(2, variants=variants, profiles=(slow, withheld)), current).keys() == {"latency", "throughput"}


def test_a_request_that_costs_more_is_refused_where_the_class_has_a_price() -> None:
    current = measured(1, profiles=(profile(1, row(1, 2.0), row(1, 2.0, threads=2)),))
    candidate = measured(2, profiles=(profile(2, row(1, 2.0), row(1, 2.6, threads=2)),))
    guard = Guard(allow_slower=1.0)
    node = a_node(profile_class=CLASS, usd_per_hour=0.36, cpu_count=2)
    assert refused(candidate, current, guard, (node,)) == {
        "cost": "0.00026 USD per 1,000 after 0.0002 is 30.0% costlier, at most 10.0% (allow_costlier)"
    }
    for nodes in ((), (replace(node, usd_per_hour=0.0),), (replace(node, profile_class=OTHER),)):
        assert "cost" not in {each.measure for each in compare(candidate, current, nodes, guard)}


def test_a_refusal_names_each_figure_and_the_way_round() -> None:
    current = measured(1, profiles=(profile(1, row(1, 2.0)),))
    worse = measured(2, score=0.5, profiles=(profile(2, row(1, 3.0)),))
    found = compare(worse, current, (), GUARD)
    with pytest.raises(FailedPrecondition) as error:
        check_promotable(ModelName("live"), worse, current, found)
    for words in ("digits@2 does not replace digits@1 as 'live'", "accuracy (top1): 0.5000 after 0.9000", "latency (class-a)", "by force"):
        assert words in error.value.message
    check_promotable(ModelName("live"), current, current, compare(current, current, (), GUARD))


@pytest.mark.parametrize("field", ["allow_loss", "allow_slower", "allow_costlier"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, 1e9])
def test_an_absurd_limit_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(InvalidInput, match=f"{field} .*must be a number from 0 to"):
        checked_guard(Guard(**{field: value}))


SCORES = st.none() | st.floats(0, 1)
ROWS = st.lists(
    st.builds(
        lambda batch, ms, threads, concurrency: row(batch, ms, threads=threads, concurrency=concurrency),
        st.sampled_from([1, 2, 8]),
        st.floats(0.1, 100),
        st.sampled_from([1, 2]),
        st.sampled_from([1, 2]),
    ),
    max_size=4,
    unique_by=lambda row: (row.batch, row.threads, row.concurrency),
)
NODES = (a_node(profile_class=CLASS, usd_per_hour=1.0, cpu_count=4), a_node("node-1", profile_class=CLASS, usd_per_hour=2.0, cpu_count=4))


@st.composite
def versions(draw: st.DrawFn, number: int) -> Measured:
    names = ("aten-fp32", "ort-fp32")
    profiles = tuple(profile(number, *draw(ROWS), name=name, on=on) for name in names for on in (CLASS, OTHER) if draw(st.booleans()))
    variants = tuple(variant(number, name, score=draw(SCORES), withheld=draw(st.sampled_from(["", "why"]))) for name in names)
    return measured(number, variants=variants, profiles=profiles, evaluation=draw(st.sampled_from([None, SET])))


GUARDS = st.builds(Guard, st.floats(0, 1), st.floats(0, 10), st.floats(0, 10))


@given(versions(2), versions(1), GUARDS)
def test_what_passes_loses_no_more_than_allowed(candidate: Measured, current: Measured, guard: Guard) -> None:
    if refusals(compare(candidate, current, NODES, guard)):
        return
    assert candidate.served
    assert candidate.score is not None
    assert current.score is not None
    assert candidate.score >= current.score - guard.allow_loss - 1e-9


@given(versions(2), versions(1), GUARDS)
def test_no_figure_passes_beyond_its_limit(candidate: Measured, current: Measured, guard: Guard) -> None:
    for each in compare(candidate, current, NODES, guard):
        if each.refused or each.current is None or each.candidate is None:
            continue
        match each.measure:
            case "accuracy":
                assert each.candidate >= each.current - guard.allow_loss - 1e-9
            case "latency":
                assert each.candidate <= each.current * (1 + guard.allow_slower + 1e-6)
            case "throughput":
                assert each.candidate * (1 + guard.allow_slower + 1e-6) >= each.current
            case "cost":
                assert each.candidate <= each.current * (1 + guard.allow_costlier + 1e-6)


@given(versions(2), versions(1), GUARDS, st.randoms())
def test_the_order_of_what_was_measured_does_not_matter(candidate: Measured, current: Measured, guard: Guard, random: Any) -> None:
    def shuffled(of: Measured) -> Measured:
        variants, profiles = list(of.variants), list(of.profiles)
        random.shuffle(variants)
        random.shuffle(profiles)
        return replace(of, variants=tuple(variants), profiles=tuple(profiles))

    assert compare(shuffled(candidate), shuffled(current), NODES[::-1], guard) == compare(candidate, current, NODES, guard)


@given(versions(2), versions(1), GUARDS, GUARDS)
def test_who_allows_more_refuses_no_more(candidate: Measured, current: Measured, one: Guard, two: Guard) -> None:
    wider = Guard(max(one.allow_loss, two.allow_loss), max(one.allow_slower, two.allow_slower), max(one.allow_costlier, two.allow_costlier))
    assert refused(candidate, current, wider, NODES).keys() <= refused(candidate, current, one, NODES).keys()


@given(versions(1), GUARDS)
def test_a_version_is_never_worse_than_itself(version: Measured, guard: Guard) -> None:
    found = refused(version, version, guard, NODES)
    assert found.keys() <= {"accuracy", "variants"}
    if version.score is not None and version.version.evaluation is not None:
        assert "accuracy" not in found
