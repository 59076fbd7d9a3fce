"""Groups brought up to date one change at a time, and the figures of candidates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.accuracy import Agreement
from tessera.domain.ids import BuildClass, ProfileClass
from tessera.gateway.core import groups
from tessera.gateway.core.candidates import Row, node_class, why_nowhere
from tessera.gateway.core.groups import Group
from tessera.policy.variant.base import NO_CRITERIA, Activity, Candidate, Criteria, NodeClass, Ranking
from tessera.policy.variant.completion import CompletionVariantPolicy
from tessera.testing.builders import a_latency_row, a_load_cost, a_model, a_node, a_profile, a_variant

POLICY = CompletionVariantPolicy()
CRITERIA = (NO_CRITERIA, Criteria(min_accuracy=0.9), Criteria(timed=True), Criteria(max_cost=0.001, timed=True))


def candidate(at: int, latency_ms: float | None, accuracy: float) -> Candidate:
    record = a_variant(f"m{at % 3}", f"ort-{at}", agreement=Agreement(0.3, accuracy, 9) if accuracy < 1 else None, build_class=None)
    profiles = {} if latency_ms is None else {ProfileClass("p"): a_profile(record.key, rows=(a_latency_row(p50_ms=latency_ms),))}
    cls = NodeClass(BuildClass("b"), ProfileClass("p"), ("ort",), 1, 2, 0.1)
    return Row(record, Activity(), profiles).judge(a_model(record.key.model), {cls: 1})


def said(ranking: Ranking) -> tuple[list[Candidate], list[Candidate], bool]:
    return list(ranking.slate), list(ranking.meeting), ranking.by_number


steps = st.tuples(
    st.integers(0, 8), st.none() | st.tuples(st.sampled_from([None, 1.0, 2.0, 500.0, 9000.0]), st.sampled_from([1.0, 0.95, 0.8])),
    st.lists(st.sampled_from(CRITERIA), max_size=2),
)  # fmt: skip


@given(st.booleans(), st.lists(steps, max_size=40))
def test_a_ranking_is_what_one_made_anew_would_be(one_model: bool, story: list[Any]) -> None:
    group = Group(one_model=one_model)
    held: dict[int, Candidate] = {}
    for at, figures, asked in story:
        if figures is None:
            if at in held:
                group.remove(held.pop(at).key)
        else:
            held[at] = candidate(at, *figures)
            group.put(held[at])
        anew = Group(one_model=one_model)
        anew.fill(held.values())
        for criteria in asked:
            assert said(group.ranking(POLICY, criteria, None)) == said(anew.ranking(POLICY, criteria, None))


def test_more_changes_than_are_remembered_make_it_anew() -> None:
    group = Group(one_model=False)
    made = [candidate(at, float(at + 1), 1.0) for at in range(3)]
    for one in made:
        group.put(one)
    before = group.ranking(POLICY, NO_CRITERIA, None)
    assert list(before.meeting) == made
    for _ in range(groups.MAX_CHANGES * 3):
        group.put(made[0])
    newest = candidate(0, 99.0, 1.0)
    group.put(newest)
    assert list(group.ranking(POLICY, NO_CRITERIA, None).meeting) == [*made[1:], newest]
    assert list(before.meeting) == made, "a decision keeps what it was made from"
    assert len(group._changes) <= 2 * groups.MAX_CHANGES


def test_rankings_are_bounded() -> None:
    group = Group(one_model=False)
    group.put(candidate(0, 1.0, 1.0))
    for number in range(groups.MAX_RANKINGS + 10):
        group.ranking(POLICY, Criteria(min_accuracy=number / 1000), None)
    assert len(group._rankings) <= groups.MAX_RANKINGS


def test_a_candidate_has_the_best_figures_of_the_classes_that_can_run_it() -> None:
    record = a_variant("digits", "ort-fp32", build_class=BuildClass("vnni"))
    fast, slow = (
        NodeClass(BuildClass("vnni"), ProfileClass(name), ("ort",), threads, 2, 0.36) for name, threads in (("fast", 2), ("slow", 1))
    )
    foreign = NodeClass(BuildClass("avx2"), ProfileClass("foreign"), ("ort",), 1)
    rows = (a_latency_row(1, 1, 40.0), a_latency_row(1, 2, 20.0, mean_ms=20.0), a_latency_row(8, 2, 80.0, mean_ms=80.0))
    profiles = {
        ProfileClass("fast"): a_profile(record.key, rows=rows, load=(a_load_cost(load_ms=29.0),)),
        ProfileClass("slow"): a_profile(record.key, rows=rows, load=(a_load_cost(load_ms=1.0),)),
        ProfileClass("foreign"): a_profile(record.key, rows=(a_latency_row(1, 1, 0.1),)),
    }
    row = Row(record, Activity(), profiles)
    both = row.judge(a_model(accuracy=0.9, dataset="mnist"), {fast: 3, slow: 1, foreign: 2})
    assert (both.latency_ms, both.load_ms, both.start_ms) == (20.0, 2.0, 42.0), "each the best, but a start is of one class"
    assert (both.accuracy.value, both.dataset, both.plain, both.nowhere) == (0.9, "mnist", True, "")
    assert both.work_ms == pytest.approx(20.0)  # two cores for 80 ms answer eight items
    assert both.usd_per_1000 == pytest.approx(1000 * 0.36 / 3600 / 100)
    assert (both.priced, row.judge(None, {fast: 3, slow: 1}).priced) == (False, True), "one node without a price, and USD compare nothing"
    nowhere = row.judge(None, {foreign: 2, replace(fast, flavours=("aten",)): 1})
    assert nowhere.nowhere == "0 of 3 nodes: 2 are not of build class vnni, 1 run no ort runtimes"
    assert (nowhere.latency_ms, nowhere.start_ms, nowhere.accuracy.value) == (None, None, 1.0)
    assert why_nowhere(record, {}) == "no node is there"


def test_the_class_of_a_node_has_its_price() -> None:
    node = a_node(usd_per_hour=0.2, cpu_count=4, runtime_threads=2)
    assert node_class(node) == NodeClass(node.build_class, node.profile_class, node.flavours, 2, 4, 0.2)


@pytest.mark.parametrize(("joins", "work_ms"), [(True, 2.0), (False, 10.0)])
def test_the_work_of_who_is_joined_with_nobody_is_that_of_batch_1(joins: bool, work_ms: float) -> None:
    rows = (a_latency_row(1, 1, 10.0, mean_ms=10.0), a_latency_row(8, 1, 16.0, mean_ms=16.0))
    record = a_variant(joins=joins)
    cls = NodeClass(BuildClass("b"), ProfileClass("p"), ("aten",), 1, 2, 7.2)
    found = Row(record, Activity(), {ProfileClass("p"): a_profile(record.key, rows=rows)}).judge(None, {cls: 1})
    assert found.work_ms == work_ms
    assert found.usd_per_1000 == pytest.approx(work_ms / 1000), "0.1 cents a core second"
    assert found.latency is not None
    assert found.latency.at(8) == 16.0, "a request with eight rows is one run"
