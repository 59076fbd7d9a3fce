"""Reconciling: tables for what each pass says to do, and the promises of the module's head as properties."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scheduler_builders import TERM, assignment, instance, key, node

from tessera.domain.ids import BuildClass, Generation, InstanceId, NodeId, Term
from tessera.domain.instance import InstanceState
from tessera.domain.records import AssignmentRecord
from tessera.scheduler.core import observed
from tessera.scheduler.core.assignments import (
    Adopted,
    Assignment,
    DeleteRecord,
    Desired,
    Instruction,
    Limits,
    Phase,
    RenewProvisional,
    StopInstance,
    World,
    WriteRecord,
    plan,
    reconcile,
    vet_stop,
)
from tessera.scheduler.core.observed import ObservedNode

LIMITS = Limits(provisional_s=30, absent_grace_s=5, node_lost_s=30, remember_gone_s=600)
I1, I2, N1, N2 = InstanceId("i-1"), InstanceId("i-2"), NodeId("n1"), NodeId("n2")


def world(*nodes: ObservedNode, recorded: tuple[AssignmentRecord, ...] = (), leased: tuple[str, ...] = ("n1", "n2")) -> World:
    return World(
        {item.instance_id: item for item in recorded}, {item.report.node_id: item for item in nodes}, [NodeId(n) for n in leased], TERM, 0.0
    )


def wanted(*assignments: Assignment) -> Desired:
    return Desired({item.record.instance_id: item for item in assignments})


def active(record: AssignmentRecord | None = None, since_s: float = 0.0, seen: bool = True) -> Assignment:
    return Assignment(record or assignment(), Phase.ACTIVE, since_s, since_s, seen)


def kinds(instructions: tuple[Instruction, ...]) -> list[tuple[str, str]]:
    def name(item: Instruction) -> str:
        return item.record.instance_id if isinstance(item, WriteRecord | Adopted | RenewProvisional) else item.instance_id

    return [(type(item).__name__, name(item)) for item in instructions]


def test_a_started_instance_is_written_until_it_is_recorded() -> None:
    reported = node("n1", [instance()])
    desired, instructions = reconcile(wanted(active()), world(reported), 1.0, LIMITS)
    assert kinds(instructions) == [("WriteRecord", "i-1")]
    again, instructions = reconcile(desired, world(reported), 2.0, LIMITS)
    assert kinds(instructions) == [("WriteRecord", "i-1")], "etcd was away: it is written again"
    _, instructions = reconcile(again, world(reported, recorded=(assignment(),)), 3.0, LIMITS)
    assert instructions == ()


def test_while_the_record_cannot_be_written_the_agent_is_told_again_in_time() -> None:
    """When etcd is back, the agent may see it first; it must not find that its time is over."""
    reported, desired = node("n1", [instance()]), wanted(active())
    told = []
    for now_s in range(1, 61):
        desired, instructions = reconcile(desired, world(reported), float(now_s), LIMITS)
        told += [now_s for item in instructions if isinstance(item, RenewProvisional)]
    assert told == [15, 30, 45, 60]


def test_a_planned_start_is_left_alone() -> None:
    desired, instructions = reconcile(wanted(plan(assignment(), 0.0)), world(node("n1")), 1000.0, LIMITS)
    assert instructions == ()
    assert desired.assignments[I1].phase is Phase.PLANNED


def test_a_new_leader_adopts_records_and_reports() -> None:
    """A record: adopted. A report without one (its leader died before it wrote): adopted and written, under the new term."""
    nodes = [node("n1", [instance("i-1")]), node("n2", [instance("i-2", "n2", variant=key("aten-fp32"))])]
    desired, instructions = reconcile(Desired(), world(*nodes, recorded=(assignment("i-1", term=Term(7, 1)),)), 1.0, LIMITS)
    assert kinds(instructions) == [("Adopted", "i-1"), ("Adopted", "i-2"), ("WriteRecord", "i-2")]
    written = instructions[-1]
    assert isinstance(written, WriteRecord)
    assert (written.record.term, written.record.generation, written.record.node_id) == (TERM, Generation(42), "n2")
    assert {item.phase for item in desired.assignments.values()} == {Phase.ACTIVE}


@pytest.mark.parametrize("state", [InstanceState.DRAINING, InstanceState.GONE, InstanceState.FAILED])
def test_what_is_ending_is_not_adopted(state: InstanceState) -> None:
    desired, instructions = reconcile(Desired(), world(node("n1", [instance(state=state)])), 1.0, LIMITS)
    assert (dict(desired.assignments), instructions) == ({}, ())


def test_never_two_of_one_variant_and_class() -> None:
    """Two leaders started one each: the ready one is adopted, the other is surplus and ends, once it is idle and old enough."""
    two = node("n1", [instance("i-1", state=InstanceState.LOADING), instance("i-2", generation=Generation(43))])
    desired, instructions = reconcile(Desired(), world(two), 0.0, LIMITS)
    assert kinds(instructions) == [("Adopted", "i-2"), ("WriteRecord", "i-2")]
    assert desired.unowned == {I1: 0.0}
    record = desired.assignments[I2].record
    both_ready = node("n1", [instance("i-1"), instance("i-2", generation=Generation(43))])
    desired, instructions = reconcile(desired, world(both_ready, recorded=(record,)), 30.0, LIMITS)
    assert instructions == ()
    executing = node("n1", [instance("i-1", idle_s=0.0), instance("i-2", generation=Generation(43))])
    desired, instructions = reconcile(desired, world(executing, recorded=(record,)), 30.1, LIMITS)
    assert instructions == (), "what executes is not stopped"
    _, instructions = reconcile(desired, world(both_ready, recorded=(record,)), 30.2, LIMITS)
    assert kinds(instructions) == [("StopInstance", "i-1")]


def test_the_same_variant_on_another_class_is_not_surplus() -> None:
    nodes = [node("n1", [instance("i-1")]), node("n2", [instance("i-2", "n2")], build_class=BuildClass("b"))]
    _, instructions = reconcile(Desired(), world(*nodes), 0.0, LIMITS)
    assert [kind for kind, _ in kinds(instructions)] == ["Adopted", "Adopted", "WriteRecord", "WriteRecord"]


def test_a_crashed_instance_loses_its_record_after_a_grace() -> None:
    record = assignment()
    desired, _ = reconcile(wanted(active()), world(node("n1", [instance()]), recorded=(record,)), 0.0, LIMITS)
    for now_s, expected in [(10.0, []), (15.0, []), (15.1, [("DeleteRecord", "i-1")])]:
        desired, instructions = reconcile(desired, world(node("n1"), recorded=(record,)), now_s, LIMITS)
        assert kinds(instructions) == expected
    desired, instructions = reconcile(desired, world(node("n1")), 16.0, LIMITS)
    assert (dict(desired.assignments), instructions) == ({}, ())


def test_an_agent_that_restarts_gets_time_to_report_what_it_adopted() -> None:
    record = assignment()
    desired, _ = reconcile(wanted(active()), world(node("n1"), recorded=(record,)), 0.0, LIMITS)
    desired, instructions = reconcile(desired, world(node("n1", [instance()]), recorded=(record,)), 4.9, LIMITS)
    assert instructions == ()
    _, instructions = reconcile(desired, world(node("n1"), recorded=(record,)), 9.0, LIMITS)
    assert instructions == (), "the time without it begins anew"


def test_a_record_that_no_report_ever_showed_gets_the_provisional_time() -> None:
    record = assignment()
    desired, _ = reconcile(Desired(), world(node("n1"), recorded=(record,)), 0.0, LIMITS)
    desired, instructions = reconcile(desired, world(node("n1"), recorded=(record,)), 30.0, LIMITS)
    assert instructions == ()
    _, instructions = reconcile(desired, world(node("n1"), recorded=(record,)), 30.1, LIMITS)
    assert kinds(instructions) == [("DeleteRecord", "i-1")]


def test_a_suspect_node_keeps_its_assignments_while_its_stream_answers() -> None:
    record = assignment()
    suspect = world(node("n1", [instance()]), recorded=(record,), leased=())
    desired = wanted(active())
    for now_s in (0.0, 100.0, 10_000.0):
        desired, instructions = reconcile(desired, suspect, now_s, LIMITS)
        assert instructions == ()


def test_a_silent_node_keeps_its_assignments_while_its_lease_lasts() -> None:
    record = assignment()
    silent = world(observed.ended(node("n1", [instance()]), 1), recorded=(record,))
    desired = wanted(active())
    for now_s in (0.0, 100.0):
        desired, instructions = reconcile(desired, silent, now_s, LIMITS)
        assert instructions == ()


def test_a_node_without_lease_and_stream_loses_its_assignments_in_time() -> None:
    record = assignment()
    lost = world(observed.ended(node("n1", [instance()]), 1), recorded=(record,), leased=())
    desired, instructions = reconcile(wanted(active()), lost, 0.0, LIMITS)
    assert instructions == ()
    back, _ = reconcile(desired, world(node("n1", [instance()]), recorded=(record,), leased=()), 20.0, LIMITS)
    again, instructions = reconcile(back, lost, 31.0, LIMITS)
    assert instructions == (), "it answered in between"
    _, instructions = reconcile(again, lost, 62.0, LIMITS)
    assert kinds(instructions) == [("DeleteRecord", "i-1")]


def test_stopping_deletes_the_record_first_then_stops_then_remembers() -> None:
    """The agent must not find a record for what it was told to stop; and what is gone is not adopted from an old report."""
    record, here = assignment(), node("n1", [instance()])
    desired = wanted(active().step(Phase.STOPPING, 0.0, "idle"))
    desired, instructions = reconcile(desired, world(here, recorded=(record,)), 1.0, LIMITS)
    assert kinds(instructions) == [("DeleteRecord", "i-1")]
    desired, instructions = reconcile(desired, world(here), 2.0, LIMITS)
    assert kinds(instructions) == [("StopInstance", "i-1")]
    desired, instructions = reconcile(desired, world(node("n1")), 3.0, LIMITS)
    assert (desired.assignments[I1].phase, instructions) == (Phase.GONE, ())
    desired, instructions = reconcile(desired, world(here), 4.0, LIMITS)
    assert kinds(instructions) == [("StopInstance", "i-1")]
    desired, instructions = reconcile(desired, world(node("n1")), 604.0, LIMITS)
    assert dict(desired.assignments) == {}


def test_phases_only_go_forward() -> None:
    stopping = active().step(Phase.STOPPING, 1.0)
    with pytest.raises(ValueError, match="does not go from stopping to active"):
        stopping.step(Phase.ACTIVE, 2.0)
    with pytest.raises(ValueError, match="does not go from gone to planned"):
        stopping.step(Phase.GONE, 2.0).step(Phase.PLANNED, 3.0)


@pytest.mark.parametrize(
    ("shown", "assigned", "waited", "live", "words"),
    [
        (None, active(), (), True, "does not report"),
        (instance(), active(), (), False, "does not report"),
        (instance(), None, (), True, "not an active assignment"),
        (instance(), plan(assignment(), 0.0), (), True, "not an active assignment"),
        (instance(), active().step(Phase.STOPPING, 0.0), (), True, "not an active assignment"),
        (instance(state=InstanceState.LOADING), active(), (), True, "it is loading"),
        (instance(idle_s=0.0), active(), (), True, "it is executing"),
        (instance(), active(), (key(),), True, "requests wait for its model"),
    ],
)
def test_a_proposed_stop_is_vetted(shown, assigned, waited, live, words) -> None:  # type: ignore[no-untyped-def]
    found = vet_stop(shown, assigned, waited, live)
    assert found is not None
    assert words in found


def test_an_idle_active_instance_may_stop() -> None:
    assert vet_stop(instance(), active(), (key("aten-fp32"),), True) is None


instances = st.builds(
    lambda number, variant, state, idle_s: instance(
        f"i-{number}", state=state, variant=key(variant), idle_s=idle_s, generation=Generation(number)
    ),
    st.integers(0, 5),
    st.sampled_from(["ort-fp32", "aten-fp32"]),
    st.sampled_from(InstanceState),
    st.sampled_from([0.0, 5.0]),
)
worlds = st.lists(
    st.tuples(
        st.lists(instances, max_size=4, unique_by=lambda item: item.instance_id),
        st.booleans(),
        st.booleans(),
        st.sets(st.sampled_from([0, 1, 2, 3, 4, 5])),
        st.sampled_from([0.5, 4.0, 40.0]),
    ),
    max_size=8,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(worlds)
def test_safety_over_any_history(history) -> None:  # type: ignore[no-untyped-def]
    """Any sequence of reports, losses and stops, with an etcd that does at once what it is told.

    Never two records of one instance; never a delete or a stop of what is active and reported alive (but surplus); what was asked to
    stop is never adopted or written again.
    """
    desired, recorded, now_s = Desired(), dict[InstanceId, AssignmentRecord](), 0.0
    stopped: set[InstanceId] = set()
    for shown, live, leased, stops, pass_s in history:
        now_s += pass_s
        state = node("n1", shown)
        if not live:
            state = observed.ended(state, 1)
        for number in stops:
            found = desired.assignments.get(InstanceId(f"i-{number}"))
            if found is not None and found.phase is Phase.ACTIVE:
                desired = replace(
                    desired, assignments={**desired.assignments, found.record.instance_id: found.step(Phase.STOPPING, now_s, "asked")}
                )
                stopped.add(found.record.instance_id)
        before = desired
        desired, instructions = reconcile(
            desired, World(dict(recorded), {N1: state}, [N1] if leased else [], TERM, 0.0), now_s, replace(LIMITS, remember_gone_s=1e9)
        )
        alive = {item.instance_id for item in state.instances if live and item.state in observed.LIVE}
        for instruction in instructions:
            if isinstance(instruction, WriteRecord):
                name = instruction.record.instance_id
                assert name not in recorded
                assert name not in stopped
                recorded[name] = instruction.record
            elif isinstance(instruction, DeleteRecord):
                assert instruction.instance_id in recorded
                assert instruction.instance_id in stopped or instruction.instance_id not in alive
                del recorded[instruction.instance_id]
            elif isinstance(instruction, RenewProvisional):
                assert instruction.record.instance_id not in stopped
            elif isinstance(instruction, StopInstance):
                assert instruction.instance_id in stopped or instruction.instance_id not in before.assignments
            else:
                assert instruction.record.instance_id not in stopped
        assert all(item.record.instance_id == name for name, item in desired.assignments.items())
