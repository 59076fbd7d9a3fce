"""Who could be a donor, what it costs, and how far plans are believed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from scheduler_builders import key, variant

from tessera.domain.artifact import Blob
from tessera.domain.ids import BuildClass, Digest, Generation, InstanceId, NodeId, ProfileClass, TrustDomain, VariantKey
from tessera.domain.instance import InstanceState, Stage, StageTime, StartPath
from tessera.domain.records import LoadCost, ProfileRecord, VariantRecord
from tessera.policy.scaling.gaps import GapHistogram
from tessera.policy.start.base import Donors, NoDonors
from tessera.policy.start.costs import NOTHING_SEEN, CostModel, StartsSeen
from tessera.policy.transform.costs import ASSUMED_BASE_MS
from tessera.policy.view import Candidate, InstanceView, NodeCondition, NodeView
from tessera.scheduler.core.donors import MOST_DONORS, UNKNOWN, DonorRules, donors, replaced
from tessera.scheduler.core.transform_costs import NOT_MEASURED

RULES = DonorRules(idle_s=60.0, keep_alive_s=600.0)
OLD, NEW, ORT = key("aten-fp32", "old"), key("aten-fp32", "new"), key("ort-fp32", "old")


def record(of: VariantKey) -> VariantRecord:
    return replace(variant(of.variant), key=of, backend=of.variant.split("-")[0], recipe=of.variant)


def idle(of: VariantKey, idle_s: float = 100.0, name: str = "i-1", state: InstanceState = InstanceState.READY) -> InstanceView:
    return InstanceView(InstanceId(name), of, Generation(1), state, idle_s)


def node(*instances: InstanceView, condition: NodeCondition = NodeCondition.USABLE) -> NodeView:
    return NodeView(NodeId("n1"), BuildClass("a"), ProfileClass("p"), instances=instances, condition=condition)


def looked(
    *instances: InstanceView,
    candidate: VariantKey = NEW,
    ms: float | None = 1.5,
    gaps: dict[VariantKey, GapHistogram] | None = None,
    condition: NodeCondition = NodeCondition.USABLE,
    profiles: dict[tuple[VariantKey, ProfileClass], ProfileRecord] | None = None,
    refused: dict[tuple[InstanceId, VariantKey], str] | None = None,
    blobs: dict[VariantKey, tuple[Blob, ...]] | None = None,
    seen: StartsSeen = NOTHING_SEEN,
) -> tuple[Donors, NoDonors]:
    nodes = [node(*instances, condition=condition)]
    candidates = [Candidate(record(candidate), (blobs or {}).get(candidate))]
    return donors(
        candidates, nodes, record, lambda one, other: ms, lambda one, other: f"{one.key} has no plan to {other.key}",
        gaps or {}, RULES, CostModel(), profiles or {}, refused or {}, (blobs or {}).get, seen,
    )  # fmt: skip


def found(*instances: InstanceView, **more: Any) -> Donors:
    return looked(*instances, **more)[0]


def test_an_instance_that_nobody_asks_is_a_donor() -> None:
    (donor,) = found(idle(OLD))[NEW, NodeId("n1")]
    assert (donor.instance_id, donor.variant, donor.transform_ms, donor.return_ms, donor.again) == ("i-1", OLD, 1.5, 5.0, UNKNOWN)
    assert donor.worth_ms == 1.5 + UNKNOWN * 5.0


def test_what_its_model_costs_later_is_what_binding_it_took_lately() -> None:
    seen = StartsSeen({(OLD, ProfileClass("p"), StartPath.BIND): 50.0})
    (donor,) = found(idle(OLD), seen=seen)[NEW, NodeId("n1")]
    assert (donor.return_ms, donor.opportunity_ms) == (50.0, UNKNOWN * 50.0)


@pytest.mark.parametrize(
    "nobody",
    [
        found(idle(OLD, 59.0)),
        found(idle(OLD, state=InstanceState.LOADING)),
        found(idle(ORT)),
        found(idle(OLD), candidate=ORT),
        found(idle(NEW)),
        found(idle(replace(OLD, trust_domain=TrustDomain("other")))),
        found(idle(OLD), ms=None),
        found(idle(OLD), condition=NodeCondition.SUSPECT),
    ],
)
def test_who_is_busy_or_of_another_kind_is_none(nobody: Donors) -> None:
    assert nobody == {}


SIBLING = replace(variant("v"), backend="ort", recipe="ort-fp32", graph=Digest("1" * 64), tensor_bytes=10 << 20)


def test_what_has_its_graph_inside_gets_other_weights_where_they_are_read_in_place() -> None:
    donor, packed = replace(SIBLING, tensor_bytes=1), replace(SIBLING, recipe="ort-fp32-prepacked")
    steps = replaced(donor, SIBLING)
    assert steps is not None
    assert NOT_MEASURED.ms(steps) == pytest.approx(ASSUMED_BASE_MS + 1.7 + 0.7)
    for source, target in (
        (SIBLING, replace(SIBLING, graph=Digest("2" * 64))),
        (replace(SIBLING, graph=None), replace(SIBLING, graph=None)),
        (packed, packed),
        (packed, SIBLING),
        (SIBLING, packed),
        (replace(SIBLING, recipe=""), replace(SIBLING, recipe="")),
    ):
        assert replaced(source, target) is None


def test_an_idle_session_is_a_donor_that_costs_a_session_when_it_is_asked_again() -> None:
    other = key("ort-fp32", "new")
    (donor,) = found(idle(ORT), candidate=other)[other, NodeId("n1")]
    assert (donor.variant, donor.return_ms) == (ORT, 4.0)
    assert found(idle(OLD), candidate=other) == {}, "nothing is made of another backend's"
    assert found(replace(idle(ORT), parked=True), candidate=other) == {}, "it has no session"
    assert NEW in {variant for variant, _ in found(replace(idle(OLD), parked=True))}, "its program can be read again"
    packed = key("ort-fp32-prepacked", "new")
    assert found(idle(ORT), candidate=packed) == {}


def test_of_many_those_that_have_been_idle_for_the_longest_are_looked_at() -> None:
    many = [idle(OLD, 100.0 + at, f"i-{at:02}") for at in range(MOST_DONORS + 8)]
    looked = found(*many)[NEW, NodeId("n1")]
    assert [donor.instance_id for donor in looked] == [f"i-{at:02}" for at in range(MOST_DONORS + 7, 7, -1)]
    others = [idle(ORT, 1000.0, f"o-{at:02}") for at in range(MOST_DONORS)]
    assert found(*others, *many)[NEW, NodeId("n1")] == looked, "those that cannot become it hide nobody"


def test_where_no_idle_instance_of_its_backend_can_become_it_the_one_that_nobody_asked_for_longest_says_why() -> None:
    session, other = idle(ORT, name="i-ort"), key("ort-fp32", "new")
    no_plan = f"{OLD} has no plan to {NEW}"
    for instances, more, why in (
        ((idle(OLD), idle(OLD, 90.0, "i-2"), session), {"ms": None}, ("i-1", OLD, no_plan)),
        ((idle(OLD),), {"refused": {(InstanceId("i-1"), NEW): "full"}}, ("i-1", OLD, "full")),
        ((replace(session, parked=True),), {"candidate": other}, ("i-ort", ORT, "it is parked")),
    ):
        made, nobody = looked(*instances, **more)
        assert made == {}
        ((where, said),) = nobody.items()
        assert (where, (said.instance_id, said.variant, said.why)) == ((more.get("candidate", NEW), "n1"), why)
    for nothing in (
        looked(idle(OLD)),
        looked(session),
        looked(idle(OLD, 59.0), ms=None),
        looked(session, candidate=key("ort-int8", "new")),
    ):
        assert nothing[1] == {}, "there are donors, or nobody is idle that it could be made of"
    some, nobody = looked(idle(OLD), idle(OLD, 90.0, "i-2"), refused={(InstanceId("i-1"), NEW): "full"})
    assert ([donor.instance_id for donor in some[NEW, NodeId("n1")]], nobody) == (["i-2"], {})


def test_the_chance_that_its_model_comes_back_is_that_of_the_gaps_that_lasted_as_long() -> None:
    """Idle for 100 s: gaps of the second minute and later lasted as long; those that end within the keep-alive come back in time."""
    gaps = GapHistogram()
    for gap_s in (10.0, 20.0, 90.0, 300.0, 7000.0, 20_000.0):
        gaps = gaps.add(gap_s)
    (donor,) = found(idle(OLD), gaps={OLD: gaps})[NEW, NodeId("n1")]
    assert donor.again == pytest.approx(2 / 4)
    (early,) = found(idle(OLD), gaps={OLD: GapHistogram().add(10.0)})[NEW, NodeId("n1")]
    assert early.again == UNKNOWN, "no gap lasted as long"


def test_donors_that_are_worth_the_same_differ_in_what_their_ends_free() -> None:
    """Each has 8 bytes of its own, which others may hold too, which the one that is wanted may need, or of which nobody knows."""

    def blob(name: str, size_bytes: int = 8) -> Blob:
        return Blob(Digest(name * 64), size_bytes)

    own, twice, needed, unknown = (key("aten-fp32", model) for model in ("own", "twice", "needed", "unknown"))
    blobs = {
        own: (blob("1"), blob("2"), blob("a", 100)),
        twice: (blob("3"),),
        needed: (blob("4"), blob("5", 1), blob("a", 100)),
        NEW: (blob("4"), blob("6")),
    }
    there = [idle(of, name=f"i-{at}") for at, of in enumerate((own, twice, needed, unknown))]
    busy = idle(twice, 0.0, "i-busy")
    freed = {donor.variant: donor.freed_bytes for donor in found(*there, busy, blobs=blobs)[NEW, NodeId("n1")]}
    assert freed == {own: 16, twice: 0, needed: 1, unknown: 0}
    often = {own: GapHistogram().add(120.0)}
    dearer = {donor.variant: donor.freed_bytes for donor in found(*there, busy, blobs=blobs, gaps=often)[NEW, NodeId("n1")]}
    assert dearer[own] == 0, "it comes back more often: what it frees decides nothing"


def test_what_its_own_start_takes_is_measured_where_it_was() -> None:
    profile = ProfileRecord(OLD, ProfileClass("p"), (LoadCost(StartPath.BIND, (StageTime(Stage.LOAD, 2.5),)),), (), 0.0)
    (donor,) = found(idle(OLD), profiles={(OLD, ProfileClass("p")): profile})[NEW, NodeId("n1")]
    assert donor.return_ms == 2.5
