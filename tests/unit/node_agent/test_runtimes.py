"""Which runtime gets an instance, and how many wait."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.ids import RuntimeId, TrustDomain
from tessera.domain.instance import StartPath
from tessera.node_agent.core.demand import Demand
from tessera.node_agent.core.runtimes import Purpose, RuntimeLimits, RuntimeView, choose_runtime, plan_pool, purpose_of
from tessera.policy.pool.poisson import PoissonPool


def test_instances_are_packed_into_the_fullest_runtime(make: Any, limits: RuntimeLimits) -> None:
    views = [make.runtime("rt-1"), make.runtime("rt-2", instances=2), make.runtime("rt-3", instances=1)]
    choice = choose_runtime(make.wanted(), views, limits)
    assert choice.runtime_id == "rt-2"


def test_bytes_mapped_already_outweigh_fullness(make: Any, limits: RuntimeLimits) -> None:
    big, small = make.digest(1), make.digest(2)
    views = [make.runtime("rt-1", holds=frozenset({big})), make.runtime("rt-2", instances=3, holds=frozenset({small}))]
    assert choose_runtime(make.wanted(blobs={big: 1000, small: 10}), views, limits).runtime_id == "rt-1"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"flavour": "aten"}, "of flavour aten"),
        ({"trust_domain": "other"}, "of another trust domain"),
        ({"threads": 2}, "with 2 threads"),
        ({"instances": 4}, r"full \(4 instances\)"),
        ({"mappings": 999}, "near its limit of 1000 mappings"),
        ({"tainted": True}, "mapped corrupted bytes"),
        ({"purpose": Purpose.ISOLATED}, "kept for isolated use"),
        ({"purpose": Purpose.MEASURE}, "kept for measure use"),
    ],
)
def test_what_does_not_fit_gets_a_new_one_and_says_why(make: Any, limits: RuntimeLimits, change: dict[str, Any], reason: str) -> None:
    wanted = make.wanted(blobs={make.digest(1): 1, make.digest(2): 1})
    choice = choose_runtime(wanted, [make.runtime(**change)], limits)
    assert (choice.runtime_id, choice.purpose) == (None, Purpose.SHARED)
    assert re.search(reason, choice.reason)


domains = st.sampled_from([TrustDomain("default"), TrustDomain("other"), TrustDomain("third")])


@given(
    domains,
    st.lists(st.tuples(domains, st.integers(0, 5), st.sampled_from(Purpose), st.booleans(), st.booleans()), max_size=8),
    st.sampled_from([StartPath.BIND, StartPath.FORK]),
    st.booleans(),
)
def test_no_instance_ever_goes_into_a_runtime_of_another_domain(
    make: Any, domain: TrustDomain, there: list[tuple[TrustDomain, int, Purpose, bool, bool]], path: StartPath, isolated: bool
) -> None:
    """However many of its bytes another domain's runtime maps already."""
    digest = make.digest(1)
    views = [
        make.runtime(
            f"rt-{number}", trust_domain=of, instances=instances, purpose=purpose, tainted=tainted, holds=frozenset({digest} if has else ())
        )
        for number, (of, instances, purpose, tainted, has) in enumerate(there)
    ]
    limits = RuntimeLimits(max_instances=4, max_mappings=1000, warm=1, surplus_idle_s=60.0)
    wanted = make.wanted(trust_domain=domain, blobs={digest: 1 << 30}, start_path=path, isolated=isolated)
    chosen = choose_runtime(wanted, views, limits).runtime_id
    assert chosen is None or {view.trust_domain for view in views if view.runtime_id == chosen} == {domain}


def test_a_runtime_is_split_before_half_of_the_mappings(make: Any, limits: RuntimeLimits) -> None:
    """What it maps already costs no further mapping."""
    blobs = {make.digest(number): 1 for number in range(600)}
    assert choose_runtime(make.wanted(blobs=blobs), [make.runtime(mappings=500)], limits).runtime_id is None
    sibling = make.runtime(mappings=500, holds=frozenset(list(blobs)[:200]))
    assert choose_runtime(make.wanted(blobs=blobs), [sibling], limits).runtime_id == sibling.runtime_id


@pytest.mark.parametrize("path", [StartPath.FORK, StartPath.CONTAINER])
def test_the_plan_may_ask_for_a_new_runtime(make: Any, limits: RuntimeLimits, path: StartPath) -> None:
    assert choose_runtime(make.wanted(start_path=path), [make.runtime()], limits).runtime_id is None


def test_a_poisonous_variant_gets_a_runtime_of_its_own(make: Any, limits: RuntimeLimits) -> None:
    choice = choose_runtime(make.wanted(isolated=True), [make.runtime()], limits)
    assert (choice.runtime_id, choice.purpose) == (None, Purpose.ISOLATED)


def test_a_runtimes_purpose_stands_in_its_id() -> None:
    assert purpose_of(RuntimeId("own-12ab")) is Purpose.ISOLATED
    assert purpose_of(RuntimeId("measure-12ab")) is Purpose.MEASURE
    assert purpose_of(RuntimeId("rt-ort-12ab")) is Purpose.SHARED
    assert purpose_of(RuntimeId("anything")) is Purpose.SHARED


def test_the_pool_is_refilled_per_flavour(make: Any, limits: RuntimeLimits) -> None:
    views = [make.runtime("rt-1", instances=1), make.runtime("rt-2", flavour="aten")]
    assert plan_pool(views, {}, ["ort", "aten"], limits, 0.0).fork == ("ort",)
    assert plan_pool(views, {"ort": 1}, ["ort", "aten"], limits, 0.0).fork == ()
    assert plan_pool([], {}, ["ort"], RuntimeLimits(4, 1000, 3, 60.0), 0.0).fork == ("ort", "ort", "ort")


def test_demand_makes_the_pool_larger_and_what_is_too_many_goes_later(make: Any) -> None:
    limits = RuntimeLimits(4, 1000, 1, 60.0, PoissonPool())
    busy = Demand()
    for at in range(120):
        busy = busy.taken("ort", at / 2)
    busy = busy.created("ort", 3.0, 60.0)
    flavours = ["ort", "aten"]
    views = [make.runtime("rt-1"), make.runtime("rt-2", flavour="aten")]
    (asked, idle) = busy.asked(flavours, {"ort": 1 << 20}, 60.0)
    assert (asked.create_s, asked.runtime_bytes, idle.takes_per_s) == (3.0, 1 << 20, 0.0)
    assert plan_pool(views, {}, flavours, limits, 60.0, (asked, idle)).fork == ("ort", "ort")
    later = busy.asked(flavours, {}, 7200.0)
    views += [make.runtime("rt-3", idle_since_s=7100.0), make.runtime("rt-4", idle_since_s=7190.0)]
    plan = plan_pool(views, {}, flavours, limits, 7200.0, later)
    assert (plan.fork, plan.retire) == ((), ("rt-1", "rt-3"))


def test_creation_times_are_averaged_over_the_latest() -> None:
    demand = Demand().created("ort", 1.0, 0.0).created("ort", 2.0, 1.0)
    assert demand.asked(["ort"], {}, 1.0)[0].create_s == pytest.approx(1.2)
    assert Demand().asked(["ort"], {}, 0.0)[0].create_s == 0.05


def test_surplus_runtimes_go_after_a_while_the_longest_idle_first(make: Any, limits: RuntimeLimits) -> None:
    views = [make.runtime("rt-1", idle_since_s=5.0), make.runtime("rt-2", idle_since_s=1.0)]
    assert plan_pool(views, {}, ["ort"], limits, 60.0).retire == ()
    assert plan_pool(views, {}, ["ort"], limits, 61.0).retire == ("rt-2",)


def test_tainted_and_isolated_runtimes_go_once_empty_and_are_no_pool(make: Any, limits: RuntimeLimits) -> None:
    views = [make.runtime("rt-1", tainted=True), make.runtime("own-2", purpose=Purpose.ISOLATED), make.runtime("own-3", instances=1)]
    plan = plan_pool(views, {}, ["ort"], limits, 0.0)
    assert (plan.fork, plan.retire) == (("ort",), ("own-2", "rt-1"))


def test_a_measuring_runtime_is_left_alone(make: Any, limits: RuntimeLimits) -> None:
    plan = plan_pool([make.runtime("measure-1", purpose=Purpose.MEASURE)], {}, ["ort"], limits, 1e9)
    assert (plan.fork, plan.retire) == (("ort",), ())


VIEWS = st.lists(
    st.builds(
        RuntimeView,
        runtime_id=st.integers(0, 10**6).map(lambda number: RuntimeId(f"rt-{number}")),
        flavour=st.sampled_from(["ort", "aten"]),
        trust_domain=st.sampled_from(["default", "other"]),
        threads=st.integers(1, 2),
        instances=st.integers(0, 5),
        mappings=st.integers(0, 1200),
        purpose=st.sampled_from(Purpose),
        tainted=st.booleans(),
        idle_since_s=st.floats(0, 100),
    ),
    unique_by=lambda view: view.runtime_id,
    max_size=8,
)


@given(VIEWS)
def test_a_chosen_runtime_is_always_allowed_to_take_it(make: Any, limits: RuntimeLimits, views: list[RuntimeView]) -> None:
    choice = choose_runtime(make.wanted(), views, limits)
    if choice.runtime_id is not None:
        view = next(view for view in views if view.runtime_id == choice.runtime_id)
        assert (view.flavour, view.trust_domain, view.threads, view.purpose) == ("ort", "default", 1, Purpose.SHARED)
        assert view.instances < limits.max_instances
        assert view.mappings <= limits.max_mappings
        assert not view.tainted


@given(VIEWS, st.integers(0, 3))
def test_carrying_out_a_pool_plan_leaves_the_wanted_pool(make: Any, views: list[RuntimeView], warm: int) -> None:
    limits = RuntimeLimits(4, 1000, warm, 60.0)
    plan = plan_pool(views, {}, ["ort"], limits, 1000.0)
    left = [view for view in views if view.runtime_id not in plan.retire]
    pool = [view for view in left if view.flavour == "ort" and view.instances == 0 and view.purpose is Purpose.SHARED and not view.tainted]
    assert len(pool) + len(plan.fork) == warm
    assert all(view.instances == 0 for view in views if view.runtime_id in plan.retire)
