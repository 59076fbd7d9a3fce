"""What every policy does with requests that ask for nothing, and `plain` itself."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_world import FAILED, LOSSY, a_candidate, choose, chosen, rank

from tessera.domain.errors import InvalidInput
from tessera.domain.objectives import NO_OBJECTIVES, Objectives
from tessera.domain.records import VariantState
from tessera.policy.variant import registry
from tessera.policy.variant.base import Candidate
from tessera.policy.variant.permitted import is_permitted, refusal
from tessera.policy.variant.plain import PlainVariantPolicy
from tessera.policy.variant.ranking import slate

PLAIN = PlainVariantPolicy()
EVERY = pytest.mark.parametrize("name", sorted(registry.POLICIES))
NOT_STATIC = pytest.mark.parametrize("name", sorted(set(registry.POLICIES) - {"static"}))
NOT_RELEASED = pytest.mark.parametrize("name", sorted(set(registry.POLICIES) - {"infaas-released"}))


@NOT_RELEASED
def test_without_profiles_the_default_order_decides(name: str) -> None:
    policy = registry.make(name)
    assert chosen(policy, a_candidate("aten-fp32", None), a_candidate("ort-fp32", None)) == "ort-fp32"
    assert not rank(policy, [a_candidate("aten-fp32", None)]).by_number


@EVERY
def test_the_profile_beats_the_default_order(name: str) -> None:
    choice = choose(registry.make(name), [a_candidate("ort-fp32", 20.0), a_candidate("aten-fp32", 3.0)])
    assert choice is not None
    assert (choice.candidate.key.variant, choice.instance, choice.expected_ms) == ("aten-fp32", None, 8.0)


def test_load_counts_for_an_inactive_variant() -> None:
    assert chosen(PLAIN, a_candidate("ort-fp32", 10.0, 1.0), a_candidate("aten-fp32", 3.0, 100.0)) == "ort-fp32"


@NOT_STATIC
def test_an_active_variant_comes_before_a_faster_inactive_one(name: str) -> None:
    choice = choose(registry.make(name), [a_candidate("ort-fp32", 1.0), a_candidate("aten-fp32", 50.0, busy=[0, 0])])
    assert choice is not None
    assert (choice.candidate.key.variant, choice.expected_ms) == ("aten-fp32", 50.0)
    assert choice.instance is choice.candidate.activity.instances[0]


def test_static_stays_with_the_fastest_whoever_is_active() -> None:
    assert chosen(registry.make("static"), a_candidate("ort-fp32", 1.0), a_candidate("aten-fp32", 50.0, busy=[0])) == "ort-fp32"


@NOT_RELEASED
def test_among_active_ones_latency_decides_not_load(name: str) -> None:
    slow, fast = a_candidate("ort-fp32", 10.0, 1.0, busy=[0]), a_candidate("aten-fp32", 3.0, 100.0, busy=[0])
    assert chosen(registry.make(name), slow, fast) == "aten-fp32"


@NOT_RELEASED
def test_a_variant_that_was_not_measured_is_neither_preferred_nor_punished(name: str) -> None:
    policy = registry.make(name)
    assert chosen(policy, a_candidate("aten-fp32", 1.0), a_candidate("ort-fp32", None)) == "ort-fp32"
    assert chosen(policy, a_candidate("aten-fp32", None), a_candidate("ort-fp32", 1000.0)) == "ort-fp32"
    active = a_candidate("aten-fp32", 1.0, busy=[0]), a_candidate("ort-fp32", None, busy=[0])
    assert chosen(policy, *active) == "ort-fp32"


@NOT_RELEASED
def test_of_several_models_those_that_were_measured_come_first(name: str) -> None:
    """One new model of a task must not undo the order of the others."""
    measured, new = a_candidate("aten-fp32", 9.0), a_candidate("ort-fp32", None, model="new")
    assert chosen(registry.make(name), measured, new) == "aten-fp32"


@EVERY
def test_where_it_is_active_it_may_answer_though_no_node_can_start_it(name: str) -> None:
    policy = registry.make(name)
    assert chosen(policy, a_candidate("ort-fp32", busy=[0], nowhere="no node is there")) == "ort-fp32"
    assert chosen(policy, a_candidate("ort-fp32", nowhere="no node is there")) == ""
    assert chosen(policy) == ""


@NOT_STATIC
def test_those_with_trouble_come_after_the_other_active_ones(name: str) -> None:
    policy = registry.make(name)
    troubled, slow = a_candidate("ort-fp32", 2.0, busy=[0], troubled=True), a_candidate("aten-fp32", 30.0, busy=[0])
    assert chosen(policy, troubled, slow) == "aten-fp32"
    assert chosen(policy, troubled) == "ort-fp32", "better than nothing"


REFUSED = [
    (a_candidate("ort-fp32", state=VariantState.BUILDING), "building"),
    (a_candidate("ort-fp32", state=FAILED, reason="op foo is unknown"), "failed: op foo is unknown"),
    (a_candidate("ort-int8", precision="int8", agreement=LOSSY), "int8 may differ"),
    (a_candidate("ort-int8", precision="int8"), "int8 may differ"),
    (a_candidate("ort-fp32", withheld="loses 3 points"), "withheld: loses 3 points"),
]


@pytest.mark.parametrize(("candidate", "reason"), REFUSED)
def test_refusals_say_why(candidate: object, reason: str) -> None:
    assert reason in refusal(candidate, NO_OBJECTIVES, named=False)  # type: ignore[arg-type]
    assert not is_permitted(candidate, lossy_too=False, named=False)  # type: ignore[arg-type]


def test_what_opens_the_door_for_a_lossy_variant() -> None:
    lossy = a_candidate("ort-int8", precision="int8", agreement=LOSSY, accuracy=0.9)
    consenting = a_candidate("ort-int8", precision="int8", agreement=LOSSY, consent=True)
    withheld = a_candidate("ort-int8", precision="int8", agreement=LOSSY, withheld="loses 3 points")
    failed = a_candidate("ort-int8", precision="int8", agreement=LOSSY, state=FAILED)

    def may(lossy_too: bool, named: bool) -> list[bool]:
        return [is_permitted(one, lossy_too=lossy_too, named=named) for one in (lossy, consenting, withheld, failed)]

    assert may(False, False) == [False, True, False, False]
    assert may(True, False) == [True, True, False, False]
    assert may(False, True) == [True, True, True, False]
    assert refusal(lossy, Objectives(latency_ms=100.0), named=False), "a latency alone says nothing about accuracy"
    assert not refusal(lossy, Objectives(min_accuracy=0.5), named=False)


def test_registry_names_what_exists() -> None:
    assert [registry.make(name).name for name in sorted(registry.POLICIES)] == sorted(registry.POLICIES)
    with pytest.raises(InvalidInput, match="infaas, infaas-released, plain, static, tessera"):
        registry.make("fancy")


numbers = st.sampled_from([None, 1.0, 2.0, 3.0])


@given(
    st.lists(st.tuples(st.integers(0, 5), st.none() | st.tuples(numbers, st.sampled_from(["fp32", "int8"]))), max_size=30), st.booleans()
)
def test_an_order_that_is_changed_one_by_one_is_the_one_that_is_made_anew(story: list[Any], lossy_too: bool) -> None:
    held: dict[int, Candidate] = {}
    order = slate([], lossy_too=lossy_too, named=False)
    for at, figures in story:
        before, kept = held.pop(at, None), (order, list(order.items))
        after = None if figures is None else a_candidate(f"ort-{at}", figures[0], precision=figures[1])
        if after is not None:
            held[at] = after
        order = order.changed(before, after)
        assert order.items == slate(held.values(), lossy_too=lossy_too, named=False).items
        assert kept[0].items == kept[1], "who holds the old one sees no change"
