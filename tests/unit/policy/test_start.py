"""The start policy: the soonest ready, the gateway's order, the reasons of the losers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from start_questions import DOMAIN, at_home, candidate, decide, instance, key, node, profile, runtime

from tessera.domain.artifact import Blob
from tessera.domain.errors import InvalidInput
from tessera.domain.ids import (
    BuildClass,
    Digest,
    InstanceId,
    NodeId,
    ProfileClass,
    TrustDomain,
)
from tessera.domain.instance import InstanceState, StartPath
from tessera.policy.placement.bytes_present import BytesPresentPlacement
from tessera.policy.start import registry
from tessera.policy.start.base import Donor, StartQuestion
from tessera.policy.start.costs import CostModel, StartsSeen
from tessera.policy.view import NodeCondition, StoreView


def test_a_ready_instance_is_the_answer() -> None:
    decision = decide([candidate()], [node("n1"), node("n2", instances=(instance(),))])
    assert decision.chosen is not None
    assert (decision.chosen.start_path, decision.chosen.node_id, decision.chosen.expected_ms) == (StartPath.WARM, "n2", 0.0)
    assert decision.chosen.instance is not None
    assert decision.chosen.instance.instance_id == "i-1"


@pytest.mark.parametrize("state", [state for state in InstanceState if state is not InstanceState.READY])
def test_an_instance_that_is_not_ready_is_not_warm(state: InstanceState) -> None:
    decision = decide([candidate()], [node(instances=(instance(state=state),))])
    assert decision.chosen is not None
    assert decision.chosen.start_path is StartPath.BIND


def test_a_silent_nodes_instance_is_history() -> None:
    decision = decide([candidate()], [node(instances=(instance(),), condition=NodeCondition.SILENT)])
    assert decision.chosen is None
    assert decision.may_pass
    assert decision.explanation == "m@1/ort-fp32: 0 of 1 nodes: 1 does not report"


def test_a_suspect_nodes_instance_serves_but_nothing_new_starts_there() -> None:
    warm = decide([candidate()], [node(instances=(instance(),), condition=NodeCondition.SUSPECT)])
    assert warm.chosen is not None
    assert warm.chosen.start_path is StartPath.WARM
    cold = decide([candidate()], [node(condition=NodeCondition.SUSPECT)])
    assert cold.chosen is None
    assert cold.may_pass


def test_bind_where_a_runtime_is_warm_else_fork() -> None:
    bind = decide([candidate()], [node()])
    assert bind.chosen is not None
    assert bind.chosen.start_path is StartPath.BIND
    assert [loser.start_path for loser in bind.losers] == [StartPath.FORK]
    for runtimes in [(), (runtime("aten"),), (runtime("ort", "somebody-else"),)]:
        fork = decide([candidate()], [node(runtimes=runtimes)])
        assert fork.chosen is not None
        assert fork.chosen.start_path is StartPath.FORK
        assert not fork.losers


def test_a_container_is_made_only_where_nothing_warm_fits() -> None:
    warm = node("n1", new_runtime=StartPath.CONTAINER)
    bind = decide([candidate()], [warm])
    assert bind.chosen is not None
    assert bind.chosen.start_path is StartPath.BIND
    assert [(loser.start_path, loser.expected_ms) for loser in bind.losers] == [(StartPath.CONTAINER, 900.0)]
    cold = decide([candidate()], [node("n1", new_runtime=StartPath.CONTAINER, runtimes=())])
    assert cold.chosen is not None
    assert cold.chosen.start_path is StartPath.CONTAINER
    tried = {(key(), NodeId("n1"), StartPath.BIND): "its runtime died"}
    assert decide([candidate()], [warm], failed=tried).chosen.start_path is StartPath.CONTAINER  # type: ignore[union-attr]


def test_measured_costs_beat_assumed_ones() -> None:
    """A profile that says that forking is faster here is believed."""
    measured = {(key(), ProfileClass("p")): profile(StartPath.FORK, 1.5)}
    decision = decide([candidate()], [node()], profiles=measured)
    assert decision.chosen is not None
    assert (decision.chosen.start_path, decision.chosen.expected_ms, decision.chosen.measured) == (StartPath.FORK, 1.5, True)
    assert decision.losers[0].reason == "4.0 ms assumed; 2.5 ms more than fork on n1"


def test_a_path_is_expected_to_take_what_it_took_lately() -> None:
    """Whatever was measured before; of another class's nodes it says nothing."""
    measured = {(key(), ProfileClass("p")): profile(StartPath.BIND, 1.5)}
    seen = StartsSeen({(key(), ProfileClass("p"), StartPath.BIND): 20.0, (key(), ProfileClass("q"), StartPath.FORK): 1.0})
    decision = decide([candidate()], [node()], profiles=measured, seen=seen)
    assert decision.chosen is not None
    assert (decision.chosen.start_path, decision.chosen.expected_ms, decision.chosen.reason) == (StartPath.FORK, 14.0, "14.0 ms assumed")
    (lost,) = decision.losers
    assert (lost.expected_ms, lost.measured, lost.reason) == (20.0, True, "20.0 ms as it took lately; 6.0 ms more than fork on n1")


def test_a_path_whose_estimates_were_off_for_others_loses_trust() -> None:
    here = (DOMAIN, "ort", ProfileClass("p"), StartPath.BIND, False)
    decision = decide([candidate()], [node()], seen=StartsSeen(off={here: 4.0}))
    assert decision.chosen is not None
    assert decision.chosen.start_path is StartPath.FORK
    assert decision.losers[0].reason == "16.0 ms assumed, times 4 as such starts were off; 2.0 ms more than fork on n1"
    others = [(TrustDomain("another"), *here[1:]), (DOMAIN, "aten", *here[2:]), (*here[:2], ProfileClass("q"), *here[3:])]
    for other in [*others, (*here[:4], True)]:
        there = decide([candidate()], [node()], seen=StartsSeen(off={other: 4.0}))
        assert there.chosen is not None
        assert (there.chosen.start_path, there.chosen.reason) == (StartPath.BIND, "4.0 ms assumed")


def test_what_was_measured_is_believed_though_assumptions_were_off() -> None:
    """And the other way round."""
    measured = {(key(), ProfileClass("p")): profile(StartPath.BIND, 3.0)}
    assumed_off = StartsSeen(off={(DOMAIN, "ort", ProfileClass("p"), StartPath.BIND, False): 8.0})
    decision = decide([candidate()], [node()], profiles=measured, seen=assumed_off)
    assert decision.chosen is not None
    assert (decision.chosen.start_path, decision.chosen.reason) == (StartPath.BIND, "3.0 ms measured")
    measured_off = StartsSeen(off={(DOMAIN, "ort", ProfileClass("p"), StartPath.BIND, True): 8.0})
    decision = decide([candidate()], [node()], profiles=measured, seen=measured_off)
    assert decision.chosen is not None
    assert decision.chosen.start_path is StartPath.FORK
    assert decision.losers[0].expected_ms == 24.0


def test_fetching_is_expected_to_take_what_it_took_that_node_lately() -> None:
    slow = StartsSeen(ms_per_byte={NodeId("n1"): 1e-4})
    decision = decide([candidate(size_bytes=1_000_000)], [node("n1"), node("n2")], seen=slow)
    assert decision.chosen is not None
    assert (decision.chosen.node_id, decision.chosen.expected_ms) == ("n2", 4.0 + 2.0)
    lost = next(loser for loser in decision.losers if loser.node_id == "n1" and loser.start_path is StartPath.BIND)
    assert lost.expected_ms == 4.0 + 100.0


def test_fetching_is_priced_by_what_is_missing_here_not_by_the_profiles_fetch() -> None:
    measured = {(key(), ProfileClass("p")): profile(StartPath.BIND, 3.0, fetch_ms=900.0)}
    far, near = node("n1"), node("n2", digests=frozenset({Digest("1" * 64)}))
    decision = decide([candidate(size_bytes=100_000_000)], [far, near], profiles=measured)
    assert decision.chosen is not None
    assert (decision.chosen.node_id, decision.chosen.expected_ms, decision.chosen.bytes_to_fetch) == ("n2", 3.0, 0)
    lost = next(loser for loser in decision.losers if loser.node_id == "n1" and loser.start_path is StartPath.BIND)
    assert (lost.expected_ms, lost.bytes_to_fetch) == (203.0, 100_000_000)
    assert lost.reason == "3.0 ms measured + 200.0 ms for 95.4 MiB to fetch; 200.0 ms more than bind on n2"


def test_the_gateways_order_holds_for_a_small_difference_and_yields_to_a_large_one() -> None:
    first, second = candidate("ort-fp32", 100_000_000), candidate("aten-fp32", backend="aten", build_class=None)
    nodes = [node(runtimes=(runtime(), runtime("aten")))]
    near = decide([first, second], nodes)
    assert near.chosen is not None
    assert near.chosen.variant == key("ort-fp32")
    assert (
        "sooner, but the gateway prefers m@1/ort-fp32" in next(item for item in near.losers if item.variant.variant == "aten-fp32").reason
    )
    far = decide([candidate("ort-fp32", 10_000_000_000), second], nodes)
    assert far.chosen is not None
    assert far.chosen.variant == key("aten-fp32")


def test_the_second_candidate_starts_where_every_node_refuses_the_first() -> None:
    decision = decide([candidate(build_class="zen"), candidate("aten-fp32", backend="aten", build_class=None)], [node()])
    assert decision.chosen is not None
    assert decision.chosen.variant == key("aten-fp32")
    assert decision.explanation.startswith("m@1/ort-fp32: 0 of 1 nodes: 1 is of another build class; ")
    assert any(loser.refused and "is of build class a; the variant was built for zen" in loser.reason for loser in decision.losers)


def test_it_starts_where_it_lives_unless_elsewhere_is_much_sooner_or_ready() -> None:
    nodes = [node("n1"), node("n2", runtimes=())]
    decision = at_home("n2").decide(StartQuestion((candidate(),), tuple(nodes)))
    assert decision.chosen is not None
    assert (decision.chosen.node_id, decision.chosen.start_path, decision.chosen.price_ms) == ("n2", StartPath.FORK, 0.0)
    assert [loser.reason for loser in decision.losers] == [
        "4.0 ms assumed, and 1000 ms because it lives elsewhere; 990.0 ms more than fork on n2",
        "14.0 ms assumed, and 1000 ms because it lives elsewhere; 1000.0 ms more than fork on n2",
    ]
    far = [node("n1"), node("n2", runtimes=(), new_runtime=StartPath.CONTAINER)]
    slow = {(key(), ProfileClass("p")): profile(StartPath.CONTAINER, 2000.0)}
    for home, others in (("n2", {"profiles": slow}), ("n9", {})):
        found = at_home(home).decide(StartQuestion((candidate(),), tuple(far), **others))
        assert found.chosen is not None
        assert found.chosen.node_id == "n1", f"{home}: too slow, or no node"
    ready = at_home("n2").decide(StartQuestion((candidate(),), (node("n1", instances=(instance(),)), node("n2"))))
    assert ready.chosen is not None
    assert (ready.chosen.node_id, ready.chosen.start_path) == ("n1", StartPath.WARM)


def test_a_home_that_refuses_is_none() -> None:
    decision = at_home("n2").decide(StartQuestion((candidate(),), (node("n1"), node("n2", build_class=BuildClass("b")))))
    assert decision.chosen is not None
    assert decision.chosen.node_id == "n1"


def test_what_failed_is_not_tried_again() -> None:
    failed = {(key(), NodeId("n1"), StartPath.BIND): "it crashed"}
    decision = decide([candidate()], [node()], failed=failed)
    assert decision.chosen is not None
    assert decision.chosen.start_path is StartPath.FORK
    failed[(key(), NodeId("n1"), StartPath.FORK)] = "it crashed again"
    over = decide([candidate()], [node()], failed=failed)
    assert over.chosen is None
    assert not over.may_pass
    assert over.explanation == "m@1/ort-fp32: 0 of 1 nodes: 1 failed at this start"


@pytest.mark.parametrize(("budget", "passes"), [(2 << 30, True), (1 << 20, False)])
def test_a_full_store_may_come_free_unless_the_variant_never_fits(budget: int, passes: bool) -> None:
    full = replace(node(), stores={DOMAIN: StoreView(budget, budget)})
    decision = decide([candidate(size_bytes=1 << 30)], [full])
    assert decision.chosen is None
    assert decision.may_pass is passes


def test_no_nodes_may_pass() -> None:
    decision = decide([candidate()], [])
    assert decision.chosen is None
    assert decision.may_pass
    assert decision.explanation == "m@1/ort-fp32: 0 of 0 nodes: no node is registered"


def test_a_backend_without_a_default_is_priced_pessimistically() -> None:
    assert CostModel().path(StartPath.BIND, "openvino", None) == (20.0, False)
    assert CostModel().path(StartPath.FORK, "openvino", None) == (200.0, False)
    assert CostModel().path(StartPath.WARM, "openvino", None) == (0.0, True)


nodes_strategy = st.lists(
    st.builds(
        lambda number, condition, build_class, runtimes, ready, budget, load: node(
            f"n{number}",
            condition=condition,
            build_class=build_class,
            runtimes=runtimes,
            instances=(replace(instance(), instance_id=InstanceId(f"i-{number}")),) if ready else (),
            store_budget_bytes=budget,
            starting=load,
        ),
        st.integers(0, 20),
        st.sampled_from(NodeCondition),
        st.sampled_from(["a", "b"]),
        st.sampled_from([(), (runtime(),), (runtime("aten"),), (runtime("ort", TrustDomain("x")),)]),
        st.booleans(),
        st.sampled_from([0, 50, 1 << 40]),
        st.integers(0, 3),
    ),
    max_size=6,
    unique_by=lambda item: item.node_id,
)


def test_who_waits_is_answered_in_time_whatever_the_gateway_likes_better() -> None:
    wanted = [candidate("aten-fp32", 1000, backend="aten"), candidate(size_bytes=1000)]
    nodes = [node(runtimes=(runtime(), runtime("aten")), digests=frozenset({Digest("1" * 64)}))]
    profiles = {
        (key("aten-fp32"), ProfileClass("p")): profile(StartPath.BIND, 30.0, variant="aten-fp32"),
        (key(), ProfileClass("p")): profile(StartPath.BIND, 10.0),
    }
    relaxed = decide(wanted, nodes, profiles=profiles, ready_within_ms=30.0)
    assert relaxed.chosen is not None
    assert relaxed.chosen.variant == key("aten-fp32")
    pressed = decide(wanted, nodes, profiles=profiles, ready_within_ms=20.0)
    assert pressed.chosen is not None
    assert pressed.chosen.variant == key()
    (late,) = [option for option in pressed.losers if option.variant == key("aten-fp32") and option.start_path is StartPath.BIND]
    assert late.reason == "30.0 ms measured; 10.0 ms too late for who waits"


def test_where_all_are_late_the_deadline_decides_nothing() -> None:
    wanted = [candidate("aten-fp32", backend="aten"), candidate()]
    nodes = [node(runtimes=(runtime(), runtime("aten")))]
    assert decide(wanted, nodes, ready_within_ms=0.5).chosen == decide(wanted, nodes).chosen


def test_bytes_that_another_start_is_fetching_count_half() -> None:
    blob = Blob(Digest("1" * 64), 10_000_000)
    store = StoreView(1 << 40, 0, frozenset(), frozenset({blob.digest}))
    busy = replace(node("n2"), stores={DOMAIN: store})
    chosen = decide([candidate(size_bytes=blob.size_bytes)], [node("n1"), busy]).chosen
    assert chosen is not None
    assert (chosen.node_id, chosen.bytes_to_fetch) == ("n2", blob.size_bytes)
    assert chosen.expected_ms == pytest.approx(4.0 + 10.0)
    assert "of which 9.5 MiB are on their way" in chosen.reason


@given(nodes_strategy, st.integers(0, 100), st.randoms(), st.data())
def test_safety_of_every_decision(nodes, size, random, data) -> None:  # type: ignore[no-untyped-def]
    """Never a refused or failed option, never a worse one than stands among the losers, and no dependence on the nodes' order."""
    candidates = [candidate(size_bytes=size), candidate("aten-fp32", backend="aten", build_class=None)]
    every = [(c.key, n.node_id, path) for c in candidates for n in nodes for path in (StartPath.BIND, StartPath.FORK)]
    failed = dict.fromkeys(data.draw(st.sets(st.sampled_from(every)) if every else st.just(set())), "broken")
    decision = decide(candidates, nodes, failed=failed)
    chosen = decision.chosen
    if chosen is not None:
        by_id = {item.node_id: item for item in nodes}
        target = by_id[chosen.node_id]
        assert chosen.key not in failed
        assert not chosen.refused
        assert target.condition is not NodeCondition.SILENT
        if chosen.start_path is not StartPath.WARM:
            assert target.condition is NodeCondition.USABLE
            assert chosen.bytes_to_fetch <= target.store(DOMAIN).room_bytes
            assert chosen.variant.variant == "aten-fp32" or target.build_class == "a"
        for loser in decision.losers:
            if not loser.refused and loser.rank >= chosen.rank:
                assert chosen.expected_ms + 1000 * chosen.rank <= loser.expected_ms + 1000 * loser.rank
    else:
        assert all(loser.refused for loser in decision.losers)
        assert len({(item.variant, item.node_id) for item in decision.losers}) == 2 * len(nodes)
    assert all(loser.reason for loser in decision.losers)
    shuffled = list(nodes)
    random.shuffle(shuffled)
    assert decide(candidates, shuffled, failed=failed) == decision


@given(nodes_strategy, st.data())
def test_the_safeguard_holds_whatever_was_seen(nodes, data) -> None:  # type: ignore[no-untyped-def]
    """A transformation is never expected to take longer than the best other path of its model there: Optimus allows 5 % or 1 ms."""
    wanted, times = candidate("aten-fp32", 1000, backend="aten", build_class=None), st.floats(0.1, 100.0)
    kinds = [(wanted.key, ProfileClass("p"), path) for path in (StartPath.BIND, StartPath.FORK)]
    paths = [(DOMAIN, "aten", ProfileClass("p"), path, False) for _, _, path in kinds]
    seen = StartsSeen(
        data.draw(st.dictionaries(st.sampled_from(kinds), times)),
        data.draw(st.dictionaries(st.sampled_from(paths), st.floats(0.125, 8.0))),
        {item.node_id: 1e-3 for item in nodes if data.draw(st.booleans())},
    )
    a_donor = st.builds(Donor, st.just(InstanceId("i-old")), st.just(key("aten-old")), times, times, st.floats(0.0, 1.0))
    donors = {(wanted.key, item.node_id): (data.draw(a_donor),) for item in nodes if data.draw(st.booleans())}
    within_ms = data.draw(st.none() | times)
    decision = decide([wanted], nodes, donors=donors, seen=seen, ready_within_ms=within_ms)
    chosen = decision.chosen
    if chosen is not None and chosen.start_path is StartPath.TRANSFORM:
        others = [loser for loser in decision.losers if not loser.refused and loser.start_path is not StartPath.TRANSFORM]
        assert all(chosen.expected_ms <= loser.expected_ms for loser in others)
        assert any(loser.node_id == chosen.node_id for loser in others)


def test_an_unknown_policy_is_refused_by_name() -> None:
    assert registry.make("cheapest", BytesPresentPlacement(), CostModel()).name == "cheapest(bytes-present)"
    with pytest.raises(InvalidInput, match="start policy 'fastest': one of cheapest"):
        registry.make("fastest", BytesPresentPlacement(), CostModel())
