"""What answers take beyond the profile is learnt from them, and what is promised holds it."""

from __future__ import annotations

import pytest

from tessera.domain.accuracy import Agreement
from tessera.domain.objectives import Objectives
from tessera.gateway.core.catalogue import Catalogue
from tessera.gateway.core.decisions import Decision
from tessera.gateway.core.surcharge import Surcharge
from tessera.policy.variant.completion import CompletionVariantPolicy
from tessera.testing.builders import a_latency_row, a_model, a_node, a_profile, a_variant, a_version, an_instance


def learnt(*beyond_ms: float, items: int = 1, profiled_ms: float = 10.0) -> Surcharge:
    found = Surcharge()
    for ms in beyond_ms:
        found.note(items, ms, profiled_ms)
    return found


def test_it_is_the_mean_of_a_few_answers_and_follows_after_that() -> None:
    assert Surcharge().ms(1) == 0.0
    assert learnt(2.0, 4.0, 6.0).ms(1) == pytest.approx(4.0)
    settled = learnt(*[4.0] * 100)
    assert settled.ms(1) == pytest.approx(4.0)
    for _ in range(40):
        settled.note(1, 8.0, 10.0)
    assert settled.ms(1) == pytest.approx(8.0, rel=0.01)


def test_one_late_answer_says_little() -> None:
    found = learnt(*[2.0] * 20)
    found.note(1, 5000.0, 10.0)
    assert found.ms(1) == pytest.approx(2.0 + 10.0 / 8)


def test_answers_sooner_than_the_profile_count_and_are_soon_forgotten() -> None:
    found = learnt(*[-8.0] * 20)
    assert found.ms(1) == pytest.approx(-8.0)
    for _ in range(40):
        found.note(1, 3.0, 10.0)
    assert found.ms(1) == pytest.approx(3.0, rel=0.05)


def test_what_a_slow_sibling_taught_is_taken_back_by_quick_answers() -> None:
    found = learnt(*[60.0] * 40, profiled_ms=200.0)
    for _ in range(32):
        found.note(1, 0.0, 2.0)
    assert found.ms(1) < 1.0


def test_it_wears_off_where_requests_are_refused_for_it() -> None:
    found = learnt(8.0)
    found.doubt(6)
    assert (found.ms(1), found.ms(6)) == (7.0, 7.0)
    sooner = learnt(-2.0)
    sooner.doubt(1)
    assert sooner.ms(1) == -2.0
    Surcharge().doubt(1)


def test_a_request_of_many_items_has_its_own_and_takes_the_next_smaller_until_then() -> None:
    found = learnt(2.0)
    found.note(8, 9.0, 50.0)
    assert [found.ms(items) for items in (1, 4, 7, 8, 15, 64)] == [2.0, 2.0, 2.0, 9.0, 9.0, 9.0]


@pytest.fixture
def catalogue() -> Catalogue:
    """Active: a quick variant that takes much work, and a slow one that takes little."""
    found = Catalogue(a_model().trust_domain, CompletionVariantPolicy())
    quick, lean = a_variant(variant="ort-fp32"), a_variant(variant="aten-fp32")
    profiles = [
        a_profile(one.key, rows=(a_latency_row(1, threads, ms, mean_ms=ms),), profile_class=a_node().profile_class)
        for one, threads, ms in ((quick, 4, 4.0), (lean, 1, 8.0))
    ]
    instances = [an_instance(variant=one.key, instance_id=f"i-{one.key.variant}") for one in (quick, lean)]
    for at, record in enumerate((a_model(), a_version(), a_node(), quick, lean, *profiles, *instances)):
        found.put(str(at), record)
    return found


def decided(catalogue: Catalogue, latency_ms: float) -> Decision:
    decision = Decision(bytes(16), bytes(8), "", False, 0.0)
    decision.route = catalogue.route("digits", "", Objectives(latency_ms=latency_ms))
    decision.choice = catalogue.choose(decision.route)
    assert decision.choice is not None
    decision.slot = decision.choice.instance  # type: ignore[assignment]
    decision.missed = decision.route.missed(decision.choice)
    decision.attempts = decision.batch_size = 1
    return decision


def test_what_was_learnt_is_predicted_and_taken_off_the_latency_asked_for(catalogue: Catalogue) -> None:
    first = decided(catalogue, 9.0)
    assert (first.labels[2], first.predicted_ms, first.missed) == ("aten-fp32", 8.0, "")
    first.actual_ms, first.queue_us = 11.5, 500
    first.teach()
    second = decided(catalogue, 9.0)
    assert (second.labels[2], second.predicted_ms, second.missed) == ("ort-fp32", 7.0, ""), "8 and 3 ms are too late"
    assert decided(catalogue, 11.5).labels[2] == "aten-fp32"
    late = decided(catalogue, 2.0)
    assert (late.labels[2], late.missed) == ("ort-fp32", "latency_ms by 5")


def test_answers_sooner_than_the_profile_are_predicted_and_give_nobody_more_time(catalogue: Catalogue) -> None:
    first = decided(catalogue, 9.0)
    first.actual_ms = 6.0
    first.teach()
    assert [(one.labels[2], one.predicted_ms) for one in (decided(catalogue, 9.0), decided(catalogue, 7.0))] == [
        ("aten-fp32", 6.0),
        ("ort-fp32", 2.0),
    ]
    first.route.name.group.surcharge.note(1, -100.0, 100.0)  # type: ignore[union-attr]
    assert decided(catalogue, 9.0).predicted_ms == 0.0


def test_however_much_was_learnt_the_rest_of_what_was_asked_is_kept(catalogue: Catalogue) -> None:
    """A lossy variant is faster than any that is accurate enough: it is not taken because the machine is busy."""
    lossy = a_variant(variant="ort-int8", precision="int8", agreement=Agreement(max_error=0.2, cosine=0.995, samples=64))
    profile = a_profile(lossy.key, rows=(a_latency_row(1, 4, 1.0, mean_ms=1.0),), profile_class=a_node().profile_class)
    for at, record in enumerate((lossy, profile, an_instance(variant=lossy.key, instance_id="i-int8"))):
        catalogue.put(f"more-{at}", record)
    exact = Objectives(latency_ms=6.0, min_accuracy=1.0)
    route = catalogue.route("digits", "", exact)
    for _ in range(3):
        route.name.group.surcharge.note(1, 50.0, 50.0)
    choice = catalogue.choose(route)
    assert choice is not None
    assert (choice.candidate.key.variant, choice.predicted_ms, route.missed(choice)) == ("ort-fp32", 54.0, "latency_ms by 48")
    either = catalogue.choose(catalogue.route("digits", "", Objectives(latency_ms=6.0, min_accuracy=0.9)))
    assert either is not None
    assert either.candidate.key.variant == "ort-int8"


@pytest.mark.parametrize("how", [{"queued_ms": 1.0}, {"attempts": 2}, {"opening_us": 5}, {"slot": None}])
def test_an_answer_that_waited_for_something_else_teaches_nothing(catalogue: Catalogue, how: dict[str, object]) -> None:
    decision = decided(catalogue, 9.0)
    decision.actual_ms = 100.0
    for name, value in how.items():
        setattr(decision, name, value)
    decision.teach()
    assert decided(catalogue, 9.0).predicted_ms == 8.0
