"""The merge table, the explanations, the words of a refusal, the leader's memory."""

from __future__ import annotations

import pytest
from scheduler_builders import TERM, assignment, instance, key, node_record, report

from tessera.domain.errors import FailedPrecondition, Internal, ResourceExhausted, Unavailable
from tessera.domain.ids import BuildClass, InstanceId, NodeId, RequestId
from tessera.domain.instance import StartPath
from tessera.policy.placement.filters import Refusal, RefusalKind
from tessera.policy.start.base import StartDecision
from tessera.scheduler.core.assignments import Phase
from tessera.scheduler.core.cluster import Cluster
from tessera.scheduler.core.explanations import Explanations
from tessera.scheduler.core.merging import MergeTable
from tessera.scheduler.core.refusing import refused

A, B = BuildClass("a"), BuildClass("b")
N1 = NodeId("n1")


def test_one_flight_per_variant_and_class() -> None:
    table: MergeTable[str] = MergeTable()
    table.open((key(), A), N1, "first")
    table.open((key(), B), N1, "other class")
    assert table.find((key(), A)) == "first"
    assert table.find((key("aten-fp32"), A)) is None
    with pytest.raises(ValueError, match=r"a start of m@1/ort-fp32 on a is in flight already"):
        table.open((key(), A), N1, "second")
    assert (table.variants(), table.starting()) == ({key()}, {N1: 2})
    table.close((key(), A))
    assert table.find((key(), A)) is None
    assert len(table) == 1


def decision(*refusals: Refusal, may_pass: bool = False) -> StartDecision:
    return StartDecision(None, (), refusals, "m@1/v: 0 of 1 nodes: ...", "cheapest", may_pass)


def test_explanations_are_bounded_and_count_attempts() -> None:
    ring = Explanations(2)
    for name in ("r1", "r2", "r1", "r3"):
        ring.decided(RequestId(name), decision())
    assert ring.get(RequestId("r2")) is None, "the oldest is forgotten"
    again = ring.get(RequestId("r1"))
    assert again is not None
    assert again.attempts == 2
    ring.ended(RequestId("r1"), 4.5)
    ring.ended(RequestId("r2"), 9.9)
    ended = ring.get(RequestId("r1"))
    assert ended is not None
    assert ended.actual_ms == 4.5
    assert len(ring) == 2


def test_a_refusal_is_the_error_that_its_reasons_make_it() -> None:
    store = Refusal(N1, RefusalKind.STORE, "is short of 1 B in its store", 1)
    other = Refusal(N1, RefusalKind.BUILD_CLASS, "is of another class")
    silent = Refusal(N1, RefusalKind.SILENT, "does not report")
    assert type(refused(decision(store, silent, may_pass=True), {})) is Unavailable
    assert type(refused(decision(store, may_pass=True), {})) is ResourceExhausted, "waited for room in vain"
    assert type(refused(decision(store, other), {})) is ResourceExhausted
    assert type(refused(decision(other), {})) is FailedPrecondition
    failed = refused(decision(other, may_pass=True), {(key(), N1, StartPath.BIND): Internal("it crashed")})
    assert type(failed) is Internal
    assert failed.message == "start of m@1/ort-fp32 on n1 by bind failed: it crashed (m@1/v: 0 of 1 nodes: ...)"


def test_the_memory_of_a_start() -> None:
    cluster = Cluster()
    cluster.report(report(), 1, 0.0)
    cluster.planned(assignment(), 1.0)
    assert cluster.desired.assignments[InstanceId("i-1")].phase is Phase.PLANNED
    assert cluster.find(InstanceId("i-1")) is None
    cluster.answered(instance(), 2.0)
    assert cluster.desired.assignments[InstanceId("i-1")].phase is Phase.ACTIVE
    assert cluster.find(InstanceId("i-1")) == instance()
    cluster.failed(InstanceId("i-1"))
    assert InstanceId("i-1") in cluster.desired.assignments, "only what is planned can fail"
    cluster.stop(assignment(), "asked", 3.0)
    cluster.stop(assignment(), "asked twice", 4.0)
    assert cluster.desired.assignments[InstanceId("i-1")].reason == "asked"
    assert cluster.views({N1: (node_record(),)}, {})[0].instances == (), "nobody is sent to what is stopping"
    cluster.reset()
    assert (cluster.observed, dict(cluster.desired.assignments)) == ({}, {})


def test_a_start_that_failed_is_forgotten_and_one_taken_up_again_stays() -> None:
    cluster = Cluster()
    cluster.planned(assignment("i-1"), 1.0)
    cluster.failed(InstanceId("i-1"))
    assert dict(cluster.desired.assignments) == {}
    cluster.planned(assignment("i-2"), 1.0)
    cluster.answered(instance("i-2"), 2.0)
    cluster.planned(assignment("i-2", term=TERM), 3.0)
    assert cluster.desired.assignments[InstanceId("i-2")].phase is Phase.ACTIVE


def test_an_agents_address_is_what_it_reports_else_what_its_record_says() -> None:
    cluster = Cluster()
    assert cluster.address(N1, {}) is None
    assert cluster.address(N1, {N1: (node_record(agent_address="record:1"),)}) == "record:1"
    assert cluster.start_address(N1, {N1: (node_record(start_address="record:3"),)}) == "record:3"
    cluster.report(report(agent_address="report:1"), 1, 0.0)
    assert cluster.address(N1, {N1: (node_record(agent_address="record:1"),)}) == "report:1"
    assert cluster.start_address(N1, {N1: (node_record(start_address="record:3"),)}) == f"{N1}:3"
