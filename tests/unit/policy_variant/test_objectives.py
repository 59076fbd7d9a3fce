"""What the policies make of objectives, and what none of them ever does."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_world import LOSSY, a_candidate, choose, chosen, rank

from tessera.domain.objectives import NO_OBJECTIVES, Objectives
from tessera.domain.records import VariantState
from tessera.policy.instance.base import completion_ms
from tessera.policy.variant import registry
from tessera.policy.variant.account import accounts
from tessera.policy.variant.base import Candidate, Choice
from tessera.policy.variant.completion import CompletionVariantPolicy
from tessera.policy.variant.misses import misses, words
from tessera.policy.variant.permitted import is_lossy

OWN = CompletionVariantPolicy()
EVERY = pytest.mark.parametrize("name", sorted(registry.POLICIES))


def three(**fields: Any) -> tuple[Candidate, Candidate, Candidate]:
    """Small, middle and large models of one task."""
    return (
        a_candidate("ort-fp32", 2.0, model="small", accuracy=0.90, usd=0.1, **fields),
        a_candidate("ort-fp32", 8.0, model="middle", accuracy=0.96, usd=0.4, **fields),
        a_candidate("ort-fp32", 30.0, model="large", accuracy=0.99, usd=1.5, **fields),
    )


def model(choice: Choice | None) -> str:
    return "" if choice is None else choice.candidate.key.model


@pytest.mark.parametrize("busy", [None, [0]])
@pytest.mark.parametrize("name", ["infaas", "plain", "static", "tessera"])
def test_three_objectives_choose_three_networks(name: str, busy: list[int] | None) -> None:
    policy, candidates = registry.make(name), three(busy=busy)
    assert model(choose(policy, candidates, Objectives(max_cost=0.2))) == "small"
    assert model(choose(policy, candidates, Objectives(min_accuracy=0.95, latency_ms=20.0))) == "middle"
    assert model(choose(policy, candidates, Objectives(min_accuracy=0.98))) == "large"


def test_in_time_the_least_work_wins() -> None:
    fast, cheap = a_candidate("ort-fp32", 2.0, work_ms=9.0, busy=[0]), a_candidate("aten-fp32", 15.0, work_ms=3.0, busy=[0])
    assert chosen(OWN, fast, cheap, latency_ms=20.0) == "aten-fp32"
    assert chosen(OWN, fast, cheap, latency_ms=10.0) == "ort-fp32"
    assert chosen(OWN, fast, cheap) == "ort-fp32"


def test_work_has_one_unit_for_all_candidates() -> None:
    def pair(own_usd: float, priced: bool) -> tuple[Candidate, Candidate]:
        return (
            a_candidate("ort-fp32", 15.0, work_ms=3.0, usd=own_usd, priced=priced, busy=[0]),
            a_candidate("aten-fp32", 2.0, work_ms=9.0, usd=0.01, priced=priced, busy=[0]),
        )

    assert chosen(OWN, *pair(0.0, priced=False), latency_ms=20.0) == "ort-fp32", "a price is not less work than none"
    assert chosen(OWN, *pair(0.02, priced=True), latency_ms=20.0) == "aten-fp32"


def test_the_queue_now_counts() -> None:
    """Five in flight: half of their batch, then ours: 15 + 10 ms."""
    busy, idle = a_candidate("ort-fp32", 10.0, busy=[5]), a_candidate("aten-fp32", 20.0, busy=[0])
    choice = choose(OWN, [busy, idle])
    assert choice is not None
    assert (choice.candidate, choice.expected_ms) == (idle, 20.0)
    assert [(one.candidate, one.in_flight, one.expected_ms) for one in choice.looked] == [(busy, 5, 25.0), (idle, 0, 20.0)]
    assert chosen(registry.make("plain"), busy, idle) == "ort-fp32"


def test_the_batch_that_it_would_join_counts() -> None:
    """A variant that gains from batches answers a queue sooner than one that does not, though it is slower alone."""
    batching, single = a_candidate("ort-fp32", 12.0, slope=0.05, busy=[20]), a_candidate("aten-fp32", 10.0, slope=1.0, busy=[20])
    assert chosen(OWN, batching, single) == "ort-fp32"


def test_a_queue_of_requests_that_are_not_joined_is_longer() -> None:
    """Both gain from batches by their profiles, but one of them makes none of different requests."""
    alone, joined = a_candidate("ort-int8", 8.0, slope=0.05, busy=[6], joins=False), a_candidate("ort-fp32", 12.0, slope=0.05, busy=[6])
    choice = choose(OWN, [alone, joined], Objectives(min_accuracy=0.1))
    assert choice is not None
    assert choice.candidate is joined
    assert [(one.candidate, one.expected_ms) for one in choice.looked] == [(alone, 52.0), (joined, pytest.approx(19.5))]


@pytest.mark.parametrize("name", ["tessera", "infaas", "plain", "static"])
@pytest.mark.parametrize("busy", [None, [0]])
def test_who_is_in_time_depends_on_how_many_items_there_are(name: str, busy: list[int] | None) -> None:
    by_one = a_candidate("ort-fp32", 10.0, slope=0.9, work_ms=5.0, busy=busy)
    by_many = a_candidate("ort-int8", 12.0, slope=0.1, work_ms=8.0, busy=busy)
    policy = registry.make(name)
    assert [chosen(policy, by_one, by_many, latency_ms=30.0, items=items) for items in (1, 4)] == ["ort-fp32", "ort-int8"]
    choice = choose(policy, [by_one, by_many], Objectives(latency_ms=5.0), items=4)
    assert choice is not None
    assert choice.candidate is by_many, "the closest is so for the request that there is"


@pytest.mark.parametrize("trouble", [{}, {"troubled": True}])
def test_a_start_passes_a_queue_by_only_with_less_work(trouble: dict[str, bool]) -> None:
    busy = a_candidate("ort-fp32", 10.0, busy=[30], **trouble)
    more, less = a_candidate("aten-fp32", 15.0, 5.0, work_ms=11.0), a_candidate("ort-int8", 15.0, 5.0, work_ms=9.0)
    for candidates in ([busy, more, less], [less, more, busy]):
        choice = choose(OWN, candidates, Objectives(latency_ms=40.0))
        assert choice is not None
        assert (choice.candidate, choice.instance, choice.expected_ms) == (less, None, 20.0)
    choice = choose(OWN, [more, busy], Objectives(latency_ms=40.0))
    assert choice is not None
    assert (choice.candidate, choice.instance) == (busy, busy.activity.instances[0]), "the cores that it would take are what it waits for"


def test_a_start_is_chosen_where_what_is_active_is_too_slow_by_itself() -> None:
    busy = a_candidate("ort-fp32", 10.0, busy=[30], work_ms=1.0)
    quick, slow = a_candidate("aten-fp32", 15.0, 5.0), a_candidate("aten-bf16", 15.0, 500.0)
    lean = a_candidate("ort-int8", 50.0, busy=[0], work_ms=1.0)
    choice = choose(OWN, [lean, quick, slow], Objectives(latency_ms=40.0))
    assert choice is not None
    assert (choice.candidate, choice.instance, choice.expected_ms) == (quick, None, 20.0)
    assert chosen(OWN, busy, slow, latency_ms=40.0) == "ort-fp32", "no start would be in time either"
    assert chosen(OWN, busy, quick) == "ort-fp32", "a queue alone starts nothing"


def test_infaas_takes_the_least_loaded_instance_and_never_looks_at_the_queue() -> None:
    choice = choose(registry.make("infaas"), [a_candidate("ort-fp32", 10.0, busy=[9, 3, 7]), a_candidate("aten-fp32", 20.0, busy=[0])])
    assert choice is not None
    assert choice.instance is choice.candidate.activity.instances[1]


def test_infaas_starts_another_variant_rather_than_use_one_with_trouble() -> None:
    troubled = a_candidate("ort-fp32", 10.0, busy=[9], troubled=True)
    assert chosen(registry.make("infaas"), troubled, a_candidate("aten-fp32", 20.0)) == "aten-fp32"


def test_the_released_code_takes_the_slowest_that_is_fast_enough_and_stays_with_it() -> None:
    policy = registry.make("infaas-released")
    fast, slow, late = a_candidate("a", 2.0, busy=[0]), a_candidate("b", 15.0, busy=[0]), a_candidate("c", 25.0, busy=[0])
    assert chosen(policy, fast, slow, late, latency_ms=20.0) == "b"
    better = a_candidate("d", 19.0, busy=[0])
    assert chosen(policy, fast, slow, better, latency_ms=20.0) == "b", "a recent winner"
    assert chosen(registry.make("infaas-released"), fast, a_candidate("e", 19.0), latency_ms=20.0) == "a", "not loaded: 1000 ms more"


def test_the_released_code_looks_at_a_few_only_and_at_troubled_ones_one_time_in_ten() -> None:
    policy = registry.make("infaas-released")
    many = [a_candidate(f"v{number}", 1.0 + number, busy=[0]) for number in range(9)]
    assert chosen(policy, *many, latency_ms=12.0) == "v2"
    policy = registry.make("infaas-released")
    pair = (a_candidate("a", 2.0, busy=[0]), a_candidate("b", 15.0, busy=[0], troubled=True))
    assert [chosen(policy, *pair, latency_ms=20.0) for _ in range(9)] == ["a"] * 9


@EVERY
def test_nothing_meets_them_the_closest_answers_and_says_by_how_much(name: str) -> None:
    policy, candidates = registry.make(name), three(busy=[0])
    choice = choose(policy, candidates, Objectives(min_accuracy=0.995))
    assert choice is not None
    assert model(choice) == "large"
    assert words(misses(Objectives(min_accuracy=0.995), choice.candidate, choice.expected_ms)) == "min_accuracy by 0.005"
    fast = Objectives(latency_ms=1.0)
    choice = choose(policy, candidates, fast)
    assert choice is not None
    assert (model(choice), words(misses(fast, choice.candidate, choice.expected_ms))) == ("small", "latency_ms by 1")


@EVERY
def test_what_nobody_measured_cannot_be_shown_to_meet_anything(name: str) -> None:
    unknown, known = a_candidate("ort-fp32", None, usd=None, busy=[0]), a_candidate("aten-fp32", 50.0, usd=9.0, busy=[0])
    policy = registry.make(name)
    assert chosen(policy, unknown, known, latency_ms=60.0) == "aten-fp32"
    assert chosen(policy, unknown, known, latency_ms=40.0) == "aten-fp32", "a known miss is closer than an unknown"
    assert words(misses(Objectives(latency_ms=60.0, max_cost=1.0), unknown, None)) == "latency_ms (not measured), max_cost (not measured)"


@EVERY
def test_the_accuracy_must_be_measured_on_the_dataset(name: str) -> None:
    own, other = a_candidate("ort-fp32", 9.0, dataset="mnist"), a_candidate("aten-fp32", 1.0, dataset="svhn")
    policy = registry.make(name)
    assert chosen(policy, own, other, dataset="mnist") == "ort-fp32"
    asked = Objectives(dataset="usps")
    assert words(misses(asked, own, None)) == "dataset (measured on mnist)"
    assert words(misses(asked, a_candidate("ort-fp32"), None)) == "dataset (measured on no dataset)"


def test_an_account_gives_every_candidate_its_figures_and_reasons() -> None:
    lossy = a_candidate("ort-int8", 1.0, precision="int8", agreement=LOSSY)
    busy, idle, idle_too = (
        a_candidate("ort-fp32", 10.0, busy=[5]), a_candidate("aten-fp32", 20.0, busy=[0]), a_candidate("aten-bf16", 40.0, busy=[0])
    )  # fmt: skip
    inactive = a_candidate("aten-x", 5.0)
    candidates = [busy, idle, idle_too, inactive]
    ranking = rank(OWN, [*candidates, lossy])
    choice = choose(OWN, candidates)
    found = accounts(OWN, ranking, NO_OBJECTIVES, choice, [(lossy, "int8 may differ")])
    reasons = {one.candidate.key.variant: one.reason for one in found}
    assert [one.chosen for one in found] == [True, False, False, False, False]
    assert reasons == {
        "aten-fp32": "active, policy tessera",
        "aten-x": "inactive, and aten-fp32 is active; 10 ms with its load",
        "ort-fp32": "5 in flight: 5 ms slower than aten-fp32",
        "aten-bf16": "not looked at: 20 ms slower than aten-fp32 at best",
        "ort-int8": "int8 may differ",
    }
    fast = Objectives(latency_ms=3.0)
    found = accounts(OWN, rank(OWN, candidates, fast), fast, choose(OWN, candidates, fast), [])
    assert found[0].reason == "inactive, policy tessera; the closest, misses latency_ms by 7"
    assert {one.reason for one in found[1:]} >= {"misses latency_ms by 37"}


@pytest.mark.parametrize(
    ("priced", "reason"),
    [
        (False, "not looked at: 6 core-ms per item more than ort-fp32"),
        (True, "not looked at: 0.03 USD per 1,000 requests more than ort-fp32"),
    ],
)
def test_an_account_names_the_work_that_decided_in_its_unit(priced: bool, reason: str) -> None:
    """Both are in time, and the one that loses is the faster one."""
    pair = [
        a_candidate("ort-fp32", 15.0, work_ms=3.0, usd=0.01, priced=priced, busy=[0]),
        a_candidate("aten-fp32", 2.0, work_ms=9.0, usd=0.04, priced=priced, busy=[0]),
    ]
    asked = Objectives(latency_ms=20.0)
    found = accounts(OWN, rank(OWN, pair, asked), asked, choose(OWN, pair, asked), [])
    assert [(one.candidate.key.variant, one.reason) for one in found[1:]] == [("aten-fp32", reason)]
    plain = registry.make("plain")
    found = accounts(plain, rank(plain, pair, asked), asked, choose(plain, pair, asked), [])
    assert found[1].reason == "not looked at: 13 ms slower than aten-fp32 at best", "it ranks by latency, whatever the work"


figures = st.one_of(st.none(), st.floats(0.1, 1000))
rows = st.tuples(
    figures, figures, st.floats(0, 1), st.none() | st.lists(st.integers(0, 40), min_size=1, max_size=3), st.booleans(),
    st.sampled_from(["fp32", "int8"]), st.sampled_from(list(VariantState)), st.sampled_from(["", "slower than fp32"]), st.booleans(),
)  # fmt: skip
asked_for = st.builds(
    Objectives,
    latency_ms=st.none() | st.floats(0.1, 2000),
    min_accuracy=st.none() | st.floats(0, 1),
    max_cost=st.none() | st.floats(0, 10),
    dataset=st.sampled_from(["", "mnist"]),
)


@given(st.sampled_from(sorted(registry.POLICIES)), st.lists(rows, max_size=7), asked_for, st.integers(1, 12))
def test_properties_of_every_choice(name: str, made: list[Any], objectives: Objectives, items: int) -> None:
    """Never one that may not answer; one that meets the objectives where somebody does (by what the request takes there alone); no start of
    what is nowhere; everyone has an account with a reason."""
    candidates = [
        a_candidate(
            f"{'ort' if at % 2 else 'aten'}-{at}", latency_ms, load_ms, model=f"m{at % 3}", accuracy=accuracy, busy=busy, troubled=troubled,
            precision=precision, agreement=LOSSY if precision == "int8" else None, state=state, withheld=withheld,
            nowhere="no node is there" if nowhere else "", usd=latency_ms, dataset="mnist" if at % 2 else "",
        )
        for at, (latency_ms, load_ms, accuracy, busy, troubled, precision, state, withheld, nowhere) in enumerate(made)
    ]  # fmt: skip
    policy = registry.make(name)
    ranking = rank(policy, candidates, objectives)
    choice = choose(policy, candidates, objectives, items=items)
    able = [one for one in ranking.slate if one.activity.instances or not one.nowhere]
    assert (choice is None) == (not able)
    found = accounts(policy, ranking, objectives, choice, [(one, "no") for one in candidates if one not in ranking.slate])
    assert sorted(one.candidate.key for one in found) == sorted(one.key for one in candidates)
    assert all(one.reason for one in found)
    if choice is None:
        return
    record = choice.candidate.record
    assert record.state is VariantState.READY
    assert not record.withheld
    assert not is_lossy(record) or objectives.min_accuracy is not None
    assert choice.instance is None or choice.instance in choice.candidate.activity.instances
    assert choice.instance is not None or not choice.candidate.nowhere
    met = [one for one in able if not misses(objectives, one, one.expected_ms(items))]
    if met:
        assert not misses(objectives, choice.candidate, choice.candidate.expected_ms(items))
    if name == "tessera" and choice.instance is not None:
        assert choice.expected_ms == completion_ms(choice.instance, items)
