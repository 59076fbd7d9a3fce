"""Desired against observed."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.ids import Generation, InstanceId
from tessera.domain.instance import TERMINAL, InstanceState
from tessera.domain.records import AssignmentRecord
from tessera.node_agent.core.reconciler import Observed, Plan, reconcile
from tessera.node_agent.core.runtimes import RuntimeLimits
from tessera.node_agent.core.table import Instance

LIMITS = RuntimeLimits(4, 1000, 0, 60.0)
TOMBSTONE_S = 60.0
READY, FAILED, DRAINING = InstanceState.READY, InstanceState.FAILED, InstanceState.DRAINING


def plan_of(desired: list[AssignmentRecord] | None, instances: list[Instance], now_s: float = 10.0) -> Plan:
    seen = Observed(tuple(instances), (), {})
    by_id = None if desired is None else {record.instance_id: record for record in desired}
    return reconcile(by_id, seen, ["ort"], LIMITS, TOMBSTONE_S, now_s)


def test_an_assignment_without_an_instance_is_started(make: Any) -> None:
    plan = plan_of([make.assignment("a")], [])
    assert [start.assignment.instance_id for start in plan.start] == ["a"]


def test_a_record_behind_a_provisional_instance_confirms_it(make: Any) -> None:
    plan = plan_of([make.assignment("a")], [make.instance("a")])
    assert plan == Plan(confirm=(InstanceId("a"),))


def test_a_provisional_instance_stays_until_its_expiry_and_goes_then(make: Any) -> None:
    found = make.instance("a", state=READY, expires_at_s=30.0)
    assert plan_of([], [found], now_s=29.999) == Plan()
    assert [(stop.instance_id, stop.reason) for stop in plan_of([], [found], now_s=30.0).stop] == [
        ("a", "its provisional assignment expired without a record")
    ]


def test_a_confirmed_instance_goes_with_its_record(make: Any) -> None:
    plan = plan_of([], [make.instance("a", state=READY, expires_at_s=None)])
    assert [stop.reason for stop in plan.stop] == ["its assignment was removed"]


def test_what_drains_already_is_not_stopped_again(make: Any) -> None:
    assert plan_of([], [make.instance("a", state=DRAINING, expires_at_s=None)]).stop == ()


def test_while_etcd_is_away_everything_is_kept(make: Any) -> None:
    kept = [make.instance("a", state=READY, expires_at_s=None), make.instance("b", expires_at_s=0.0), make.instance("c", state=FAILED)]
    assert plan_of(None, kept, now_s=1e6) == Plan()


def test_a_failed_instance_is_not_started_again_and_remembered_with_its_assignment(make: Any) -> None:
    failed = make.instance("a", state=FAILED, since_s=0.0)
    assert plan_of([make.assignment("a")], [failed], now_s=1e6) == Plan()
    assert plan_of([], [failed], now_s=TOMBSTONE_S - 0.1) == Plan()
    assert plan_of([], [failed], now_s=TOMBSTONE_S).forget == ("a",)


def test_a_record_of_another_generation_ends_the_instance(make: Any) -> None:
    plan = plan_of([make.assignment("a", generation=Generation(1))], [make.instance("a", state=READY, generation=Generation(2))])
    assert [stop.instance_id for stop in plan.stop] == ["a"]
    assert plan.start == ()


def test_a_generation_that_is_taken_is_refused_in_words(make: Any) -> None:
    running = make.instance("a", state=READY, generation=Generation(7), expires_at_s=None)
    plan = plan_of([make.assignment("a", generation=Generation(7)), make.assignment("b", generation=Generation(7))], [running])
    assert plan.start == ()
    assert plan.refused == ("assignment b: generation 0000000000000007 belongs to a",)


def test_the_pool_waits_while_something_starts(make: Any, limits: RuntimeLimits) -> None:
    assert reconcile({}, Observed((), (), {}, starting=1), ["ort"], limits, 60.0, 0.0).fork == ()
    assert reconcile({}, Observed((), (), {}, starting=0), ["ort"], limits, 60.0, 0.0).fork == ("ort",)


NAMES = st.sampled_from(["a", "b", "c", "d"])
DESIRED = st.dictionaries(NAMES, st.integers(0, 5), max_size=4)
PRESENT = st.dictionaries(NAMES, st.tuples(st.sampled_from(InstanceState), st.none() | st.floats(0, 100), st.integers(0, 5)), max_size=4)


@given(DESIRED, PRESENT, st.floats(0, 100), st.booleans())
def test_safety_whatever_is_desired_and_present(
    make: Any, desired: dict[str, int], present: dict[str, tuple[InstanceState, float | None, int]], now_s: float, away: bool
) -> None:
    taken: set[int] = set()
    instances = []
    for name, (state, expires, generation) in present.items():
        if generation not in taken:  # the table never holds two of one generation
            taken.add(generation)
            instances.append(make.instance(name, state=state, expires_at_s=expires, generation=Generation(generation)))
    records = {name: make.assignment(name, generation=Generation(generation)) for name, generation in desired.items()}
    plan = plan_of(None if away else list(records.values()), instances, now_s)
    by_id = {found.instance_id: found for found in instances}
    for stop in plan.stop:
        found = by_id[stop.instance_id]
        assert found.state not in TERMINAL
        record = records.get(stop.instance_id)
        if record is None:
            assert found.expires_at_s is None or now_s >= found.expires_at_s  # provisional: never before its expiry
    started = [start.assignment.generation for start in plan.start]
    assert len(set(started)) == len(started)
    assert not set(started) & {found.generation for found in instances}  # never two instances of one generation
    assert not {start.assignment.instance_id for start in plan.start} & by_id.keys()
    assert all(by_id[gone].state in TERMINAL and gone not in records for gone in plan.forget)
    if away:
        assert plan == Plan()
