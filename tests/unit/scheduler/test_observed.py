"""Folding status reports, and the snapshot that is made of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduler_builders import DOMAIN, instance, key, node, node_record, report

from tessera.api.node.v1 import node_pb2
from tessera.domain.errors import FailedPrecondition
from tessera.domain.ids import BuildClass, Digest, InstanceId, NodeId, TrustDomain
from tessera.domain.instance import InstanceState
from tessera.policy.view import NodeCondition
from tessera.scheduler.core import observed
from tessera.scheduler.core.observed import ANSWER_AHEAD_S, fold
from tessera.scheduler.core.snapshot import node_views, with_coming
from tessera.scheduler.wire import instance_of
from tessera.wire import encode_variant_key

digest_sets = st.frozensets(st.integers(0, 9).map(lambda number: Digest(f"{number:064x}")), max_size=6)


@given(digest_sets, st.lists(st.tuples(digest_sets, digest_sets), max_size=6))
def test_digests_are_the_sum_of_a_full_report_and_its_changes(
    first: frozenset[Digest], changes: list[tuple[frozenset[Digest], ...]]
) -> None:
    found, expected = fold(None, report(added=first), 1, 0.0), set(first)
    for added, removed in changes:
        found = fold(found, report(full=False, added=added, removed=removed), 1, 1.0)
        expected = (expected | added) - removed
    assert found.stores[DOMAIN].digests == expected
    assert fold(found, report(added=frozenset()), 1, 2.0).stores[DOMAIN].digests == frozenset(), "a full report forgets what was there"


def test_a_message_says_whether_stages_are_the_last_ones_and_how_much_was_fetched() -> None:
    wanted = encode_variant_key(key())
    message = node_pb2.Instance(
        instance_id="i-1", generation=7, variant=wanted, state="ready", start_path="bind", opening=True, fetched_bytes=5
    )
    found = instance_of(message, NodeId("n1"))
    assert (found.opening, found.fetched_bytes) == (True, 5)


def test_a_stream_begins_with_a_full_report() -> None:
    with pytest.raises(FailedPrecondition, match="status of node n1: the first message of a stream must be full"):
        fold(None, report(full=False), 1, 0.0)
    with pytest.raises(FailedPrecondition):
        fold(node(stream=1), report(full=False), 2, 0.0)


def test_the_end_of_an_old_stream_does_not_silence_the_new_one() -> None:
    again = fold(node(stream=1), report(), 2, 1.0)
    assert observed.ended(again, 1).live
    assert not observed.ended(again, 2).live


def test_an_answer_counts_until_the_reports_say_so_too() -> None:
    """Between the answer 'ready' and the next report nobody may start a second instance."""
    answered = observed.answered(node(), instance("i-1"), 10.0)
    assert [item.instance_id for item in answered.instances] == ["i-1"]
    loading = fold(answered, report(instances=[instance("i-1", state=InstanceState.LOADING)]), 1, 10.1)
    assert [item.state for item in loading.instances] == [InstanceState.READY], "that report was sent before"
    ready = fold(loading, report(instances=[instance("i-1", idle_s=4.0)]), 1, 10.2)
    assert [item.idle_s for item in ready.instances] == [4.0]
    assert not ready.answered
    gone = fold(loading, report(instances=[instance("i-1", state=InstanceState.GONE)]), 1, 10.2)
    assert [item.state for item in gone.instances] == [InstanceState.GONE]
    never = fold(answered, report(), 1, 10.0 + ANSWER_AHEAD_S)
    assert not never.instances, "an answer that no report confirms is not believed for ever"


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(InstanceState), st.booleans()), max_size=10))
def test_views_and_index_always_agree_with_the_instances(steps: list[tuple[int, InstanceState, bool]]) -> None:
    found = node()
    for at_s, (number, state, is_answer) in enumerate(steps):
        item = instance(f"i-{number}", state=InstanceState.READY if is_answer else state, variant=key(f"v{1 + number % 2}"))
        found = observed.answered(found, item, float(at_s)) if is_answer else fold(found, report(instances=[item]), 1, float(at_s))
        ids = [shown.instance_id for shown in found.instances]
        assert len(ids) == len(set(ids))
        ended = (InstanceState.GONE, InstanceState.FAILED)
        assert sorted(view.instance_id for view in found.views) == sorted(
            shown.instance_id for shown in found.instances if shown.state not in ended
        )
        for variant in (key("v1"), key("v2")):
            ready = [shown.instance_id for shown in found.instances if shown.variant == variant and shown.state is InstanceState.READY]
            index = found.ready.get(variant)
            assert (None if index is None else index.instance_id) == min(ready, default=None)


def test_an_instance_that_an_agent_is_starting_already_is_found() -> None:
    nodes = [node("n1", [instance("i-1", state=InstanceState.LOADING)]), node("n2", build_class=BuildClass("b"))]
    found = observed.begun(nodes, key(), BuildClass("a"))
    assert found is not None
    assert found.instance_id == "i-1"
    assert observed.begun(nodes, key(), BuildClass("b")) is None
    assert observed.begun(nodes, key("aten-fp32"), BuildClass("a")) is None
    assert observed.begun([observed.ended(nodes[0], 1)], key(), BuildClass("a")) is None


def test_conditions_of_nodes() -> None:
    """Lease and stream: usable; stream only: suspect; lease only: silent; neither: not there."""
    n1, n2, n3, n4 = NodeId("n1"), NodeId("n2"), NodeId("n3"), NodeId("n4")
    seen = {n1: node("n1"), n2: node("n2"), n3: observed.ended(node("n3"), 1), n4: observed.ended(node("n4"), 1)}
    of_other = node_record("n3", trust_domain=TrustDomain("other"), store_budget_bytes=7)
    records = {n1: (node_record("n1"),), n3: (node_record("n3"), of_other)}
    views = node_views(records, seen, {n1: 2})
    assert [(view.node_id, view.condition) for view in views] == [
        ("n1", NodeCondition.USABLE),
        ("n2", NodeCondition.SUSPECT),
        ("n3", NodeCondition.SILENT),
    ]
    assert views[0].load == 2
    assert views[2].instances == ()
    assert {domain: store.room_bytes for domain, store in views[2].stores.items()} == {"default": 1 << 30, "other": 7}


def test_what_is_ended_or_stopping_is_not_in_the_snapshot() -> None:
    instances = [instance("i-1"), instance("i-2"), instance("i-3", state=InstanceState.GONE), instance("i-4", state=InstanceState.FAILED)]
    views = node_views({NodeId("n1"): (node_record(),)}, {NodeId("n1"): node("n1", instances)}, {}, {InstanceId("i-2")})
    assert [item.instance_id for item in views[0].instances] == ["i-1"]


def test_what_is_being_fetched_into_a_store_is_coming_until_it_is_there() -> None:
    there, wanted = Digest("1" * 64), Digest("2" * 64)
    n1, n2 = NodeId("n1"), NodeId("n2")
    seen = {n1: fold(None, report("n1", added=frozenset({there})), 1, 0.0), n2: node("n2")}
    views = node_views({n1: (node_record("n1"),), n2: (node_record("n2"),)}, seen, {})
    first, second = with_coming(views, {(n1, DOMAIN): {there, wanted}, (n2, TrustDomain("stranger")): {wanted}})
    assert (first.store(DOMAIN).digests, first.store(DOMAIN).coming) == (frozenset({there}), frozenset({wanted}))
    assert second == views[1]
