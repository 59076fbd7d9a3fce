"""The start policy where idle instances may become what is asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from start_questions import at_home, candidate, decide, instance, key, node, runtime

from tessera.domain.ids import (
    InstanceId,
    NodeId,
    VariantKey,
)
from tessera.domain.instance import StartPath
from tessera.policy.start.base import Donor, NoDonor, StartQuestion


def donor(name: str = "i-old", transform_ms: float = 1.0, return_ms: float = 4.0, again: float = 0.25) -> Donor:
    return Donor(InstanceId(name), key("aten-old"), transform_ms, return_ms, again)


def of(*found: Donor) -> dict[tuple[VariantKey, NodeId], tuple[Donor, ...]]:
    return {(key("aten-fp32"), NodeId("n1")): found}


ATEN = candidate("aten-fp32", backend="aten", build_class=None)


def test_an_idle_instance_becomes_it_where_that_is_cheapest_with_what_its_own_model_costs_later() -> None:
    """Binding takes 5 ms."""
    here = node(runtimes=(runtime("aten"),))
    decision = decide([ATEN], [here], donors=of(donor("i-often", 0.5, 10.0, 0.9), donor("i-seldom", 1.0, 10.0, 0.1)))
    assert decision.chosen is not None
    assert (decision.chosen.start_path, decision.chosen.donor, decision.chosen.expected_ms) == (StartPath.TRANSFORM, "i-seldom", 1.0)
    assert decision.chosen.reason == (
        "out of i-seldom (m@1/aten-old): 1.0 ms planned, and 1.0 ms for its model, which comes back with a chance of 10%"
    )
    assert decision.losers[0].start_path is StartPath.BIND
    assert decision.losers[0].reason == "5.0 ms assumed; 3.0 ms more than transform on n1"


@pytest.mark.parametrize("price", [donor(transform_ms=5.5, again=0.0), donor(transform_ms=1.0, return_ms=20.0, again=0.5)])
def test_what_costs_more_than_binding_is_not_made_of_anything(price: Donor) -> None:
    decision = decide([ATEN], [node(runtimes=(runtime("aten"),))], donors=of(price))
    assert decision.chosen is not None
    assert (decision.chosen.start_path, decision.chosen.donor) == (StartPath.BIND, None)
    (lost,) = [loser for loser in decision.losers if loser.start_path is StartPath.TRANSFORM]
    assert "more than bind on n1" in lost.reason


def test_a_ready_instance_comes_before_any_donor_and_a_donor_that_failed_is_not_asked_again() -> None:
    ready = replace(instance(), variant=ATEN.key)
    warm = decide([ATEN], [node(instances=(ready,), runtimes=(runtime("aten"),))], donors=of(donor(transform_ms=0.1, again=0.0)))
    assert warm.chosen is not None
    assert warm.chosen.start_path is StartPath.WARM
    failed = {(ATEN.key, NodeId("n1"), StartPath.TRANSFORM): "instance i-old is not idle"}
    tried = decide([ATEN], [node(runtimes=(runtime("aten"),))], donors=of(donor()), failed=failed)
    assert tried.chosen is not None
    assert tried.chosen.start_path is StartPath.BIND
    assert any("failed before: instance i-old is not idle" in loser.reason for loser in tried.losers)


def test_bytes_are_fetched_whoever_it_is_made_of() -> None:
    lacking = candidate("aten-fp32", 1_000_000, backend="aten", build_class=None)
    decision = decide([lacking], [node(runtimes=(runtime("aten"),))], donors=of(donor()))
    assert decision.chosen is not None
    assert decision.chosen.expected_ms == pytest.approx(1.0 + 2.0)
    assert "2.0 ms for 976.6 KiB to fetch" in decision.chosen.reason


def test_donors_elsewhere_pay_for_it_too() -> None:
    aten = (runtime("aten"),)
    decision = at_home("n2").decide(StartQuestion((ATEN,), (node("n1", runtimes=aten), node("n2", runtimes=aten)), donors=of(donor())))
    assert decision.chosen is not None
    assert (decision.chosen.node_id, decision.chosen.start_path) == ("n2", StartPath.BIND)
    (lost,) = [loser for loser in decision.losers if loser.start_path is StartPath.TRANSFORM]
    assert lost.price_ms == 1001.0


def test_a_donor_that_is_wanted_again_is_taken_where_nothing_else_is_in_time() -> None:
    source = key("other")
    donors = {(key("aten-fp32"), NodeId("n1")): (Donor(InstanceId("i-9"), source, 2.0, 100.0, 1.0),)}
    wanted, nodes = [candidate("aten-fp32", backend="aten")], [node(runtimes=(runtime("aten"),))]
    paths = {}
    for within_ms in (None, 3.0):
        chosen = decide(wanted, nodes, donors=donors, ready_within_ms=within_ms).chosen
        assert chosen is not None
        paths[within_ms] = chosen.start_path
    assert paths == {None: StartPath.BIND, 3.0: StartPath.TRANSFORM}


def test_of_donors_that_are_worth_the_same_the_one_that_frees_more_is_taken() -> None:
    least, most = donor("i-1"), replace(donor("i-2"), freed_bytes=3 << 20)
    chosen = decide([ATEN], [node(runtimes=(runtime("aten"),))], donors=of(least, most)).chosen
    assert chosen is not None
    assert chosen.donor == "i-2"
    assert chosen.reason.endswith("comes back with a chance of 25%, and its end frees 3.0 MiB")
    dearer = replace(most, transform_ms=1.1)
    chosen = decide([ATEN], [node(runtimes=(runtime("aten"),))], donors=of(least, dearer)).chosen
    assert chosen is not None
    assert chosen.donor == "i-1"


def test_an_idle_instance_that_nothing_can_be_made_of_is_said_once_for_the_best_node_that_could_take_it() -> None:
    nobody = {
        (ATEN.key, NodeId(name)): NoDonor(InstanceId(f"i-{name}"), key("aten-old"), "there is no plan yet") for name in ("n1", "n2", "n3")
    }
    aten = (runtime("aten"),)
    nodes = [node("n3", runtimes=aten), node("n2", runtimes=aten), node("n1", runtimes=aten, flavours=("ort",))]
    decision = decide([ATEN], nodes, no_donors=nobody)
    assert decision.chosen is not None
    assert (decision.chosen.node_id, decision.chosen.start_path) == ("n2", StartPath.BIND)
    (lost,) = [loser for loser in decision.losers if loser.start_path is StartPath.TRANSFORM]
    assert (lost.node_id, lost.refused, lost.donor) == ("n2", True, None)
    assert lost.reason == "no transformation: i-n2 (m@1/aten-old) is idle, but there is no plan yet"
    ready = node(instances=(replace(instance(), variant=ATEN.key),), runtimes=aten)
    assert not [one for one in decide([ATEN], [ready], no_donors=nobody).losers if one.start_path is StartPath.TRANSFORM]
