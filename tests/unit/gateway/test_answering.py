"""Which version answers for a model's name, and for its task, while another one is registered, built or lost."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from catalogue_world import DOMAIN, a_catalogue, alias, instance, node, picked, put
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.errors import NotFound
from tessera.domain.ids import BuildClass, VersionNumber
from tessera.domain.records import NodeRecord, VariantRecord, VariantState
from tessera.gateway.core.catalogue import Catalogue
from tessera.gateway.core.decisions import Decision
from tessera.gateway.server import explaining
from tessera.policy.variant.plain import PlainVariantPolicy
from tessera.testing.builders import a_model, a_variant, a_variant_key, a_version
from tessera.wire import decode_variant_key

NAMES = ("digits", "edge", "task:digits")
SECOND = VersionNumber(2)


def built(version: int = 2, **fields: Any) -> VariantRecord:
    return a_variant(**{"key": a_variant_key("digits", version, "ort-fp32"), "build_class": None, **fields})


def answering(catalogue: Catalogue) -> list[list[int] | str]:
    """The versions of the candidates, of each name."""
    found: list[list[int] | str] = []
    for name in NAMES:
        try:
            found.append(sorted({one.key.version for one in catalogue.route(name, "").name.group.candidates}))
        except NotFound as error:
            found.append(error.kind)
    return found


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_version_before_goes_on_until_all_of_the_new_one_is_here(catalogue: Catalogue, order: tuple[int, ...]) -> None:
    """Three watches bring model, version and variant."""
    put(catalogue, alias("edge"))
    put(catalogue, instance())
    records = (a_model(latest=SECOND), a_version(version=SECOND), built())
    for at in order:
        assert [picked(catalogue, name) for name in NAMES] == ["i1"] * 3
        assert answering(catalogue) == [[1]] * 3
        put(catalogue, records[at])
    assert answering(catalogue) == [[2]] * 3


def test_a_version_that_is_still_built_or_failed_answers_for_its_own_name_alone(catalogue: Catalogue) -> None:
    put(catalogue, alias("edge"))
    put(catalogue, a_model(latest=SECOND))
    put(catalogue, a_version(version=SECOND))
    for state in (VariantState.PENDING, VariantState.BUILDING, VariantState.FAILED):
        put(catalogue, built(state=state))
        assert answering(catalogue) == [[1]] * 3
        named = catalogue.route("digits@2", "")
        assert catalogue.choose(named) is None
        assert catalogue.refusal(named) == f"ort-fp32: {state}"
    key = put(catalogue, built())
    assert answering(catalogue) == [[2]] * 3
    put(catalogue, built(withheld="loses 3 points"))
    assert answering(catalogue) == [[1]] * 3
    put(catalogue, built(precision="int8"))
    assert answering(catalogue) == [[1]] * 3, "needs the model's consent"
    put(catalogue, a_model(latest=SECOND, lossy=True))
    assert answering(catalogue) == [[2]] * 3
    catalogue.remove(key)
    assert answering(catalogue) == [[1]] * 3


def test_a_version_that_no_node_can_run_waits_for_one(catalogue: Catalogue) -> None:
    put(catalogue, alias("edge"))
    put(catalogue, a_model(latest=SECOND))
    put(catalogue, a_version(version=SECOND))
    put(catalogue, built(build_class=BuildClass("new")))
    assert answering(catalogue) == [[1]] * 3
    there = put(catalogue, node())
    able = put(catalogue, node("node-1", build_class=BuildClass("new")))
    assert answering(catalogue) == [[2]] * 3
    catalogue.remove(able)
    assert answering(catalogue) == [[1]] * 3
    catalogue.remove(there)
    assert answering(catalogue) == [[2]] * 3, "nobody is there: errors speak of the newest"


def test_where_no_version_can_answer_errors_name_the_latest(catalogue: Catalogue) -> None:
    put(catalogue, a_variant(build_class=None, state=VariantState.FAILED))
    put(catalogue, a_model(latest=SECOND))
    with pytest.raises(NotFound, match="has no version 2; it has 1"):
        catalogue.route("digits", "")
    put(catalogue, a_version(version=SECOND))
    put(catalogue, built(state=VariantState.PENDING))
    route = catalogue.route("digits", "")
    assert (route.name.shown, catalogue.refusal(route)) == ("digits@2", "ort-fp32: pending")


def test_explain_says_why_a_newer_version_does_not_answer(catalogue: Catalogue) -> None:
    put(catalogue, alias("edge"))
    put(catalogue, alias("pinned", 1))
    put(catalogue, a_model(latest=SECOND))
    put(catalogue, a_version(version=SECOND))
    put(catalogue, built(state=VariantState.PENDING))

    def told(name: str) -> dict[str, str]:
        answer = explaining.of_model(catalogue, catalogue.route(name, ""))
        assert answer.model == "digits@1"
        return {str(decode_variant_key(option.variant)): option.reason for option in answer.variants}

    for name in ("digits", "edge"):
        assert list(told(name)) == ["digits@1/aten-fp32", "digits@2/ort-fp32"]
        assert told(name)["digits@2/ort-fp32"] == "pending"
    for name in ("digits@1", "pinned"):
        assert list(told(name)) == ["digits@1/aten-fp32"]


def test_explain_names_each_variant_once_whatever_came_after_the_decision(catalogue: Catalogue) -> None:
    put(catalogue, built(1))
    put(catalogue, built(1, key=a_variant_key("digits", 1, "ort-bf16"), build_class=BuildClass("other")))
    there = next(key for key, record in catalogue._records.items() if isinstance(record, NodeRecord))
    decided = Decision(bytes(16), bytes(8), "", True, 0.0)
    decided.route = catalogue.route("digits", "")
    decided.choice = catalogue.choose(decided.route)

    def told() -> list[tuple[str, bool, str]]:
        answer = explaining.of_decision(catalogue, decided)
        return [(option.variant.variant, option.chosen, option.reason) for option in answer.variants]

    then = told()
    assert [one[:2] for one in then] == [("aten-fp32", True), ("ort-fp32", False), ("ort-bf16", False)]
    catalogue.remove(there)
    assert catalogue.choose(catalogue.route("digits", "")) is None
    assert told() == [*then[:2], ("ort-bf16", False, "no node is there")]


story = st.lists(
    st.tuples(st.sampled_from(("model", "version", "variant", "node")), st.integers(1, 3), st.none() | st.sampled_from(VariantState)),
    max_size=30,
)


@given(story)
def test_it_follows_from_the_records_whatever_came_before(story: list[tuple[str, int, VariantState | None]]) -> None:
    """A state of None takes the record away."""
    found = a_catalogue()
    put(found, alias("edge"))
    for kind, number, state in story:
        version = VersionNumber(number)
        record = {
            "model": a_model(latest=version, lossy=state is VariantState.FAILED),
            "version": a_version(version=version),
            "variant": built(number, state=state or VariantState.READY, build_class=BuildClass(f"class-{number % 2}")),
            "node": node(build_class=BuildClass(f"class-{number % 2}")),
        }[kind]
        key = put(found, record)
        if state is None:
            found.remove(key)
        answering(found)
    anew = Catalogue(DOMAIN, PlainVariantPolicy())
    for key, known in reversed(found._records.items()):
        anew.put(key, known)
    assert answering(found) == answering(anew)
