from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.errors import InvalidInput
from tessera.domain.ids import BuildClass, ModelName, ProfileClass, TrustDomain, VariantKey, VariantName, VersionKey, VersionNumber
from tessera.domain.instance import Stage, StageTime, StartPath
from tessera.domain.records import LatencyRow, LoadCost, ProfileRecord, VariantRecord, VariantState
from tessera.policy.variant import registry
from tessera.policy.variant.base import NodeClass, VariantPlan, VariantSnapshot
from tessera.policy.variant.plain import PlainVariantPolicy

VERSION = VersionKey(TrustDomain("default"), ModelName("m"), VersionNumber(1))
AVX = BuildClass("x86_64-avx2-ort1")
NODE = NodeClass(AVX, ProfileClass("avx2-cpu-2"), ("ort", "aten"), 1)


def variant(name: str, backend: str = "ort", **changes: object) -> VariantRecord:
    key = VariantKey(VERSION.trust_domain, VERSION.model, VERSION.version, VariantName(name))
    build = AVX if backend == "ort" else None
    base = VariantRecord(key, backend, backend, "fp32", VariantState.READY, 8, build)
    return replace(base, **changes)  # type: ignore[arg-type]


def profile(
    record: VariantRecord, latency_ms: float, load_ms: float | None = 5.0, threads: int = 1, cls: NodeClass = NODE
) -> ProfileRecord:
    load = () if load_ms is None else (LoadCost(StartPath.BIND, (StageTime(Stage.LOAD, load_ms),)),)
    rows = (LatencyRow(1, threads, 20, latency_ms, latency_ms, latency_ms),)
    return ProfileRecord(record.key, cls.profile_class, load, rows, 0.0)


def choose(*variants: VariantRecord, **known: object) -> VariantPlan:
    snapshot = VariantSnapshot(VERSION, variants, {NODE: 1}, {}, {})
    policy = PlainVariantPolicy()
    plan = policy.choose(replace(snapshot, **known))  # type: ignore[arg-type]
    return replace(plan, options=policy.explain(plan))


def profiles(*records: ProfileRecord) -> dict[VariantName, dict[ProfileClass, ProfileRecord]]:
    return {record.variant.variant: {record.profile_class: record} for record in records}


ORT, ATEN = variant("ort-fp32"), variant("aten-fp32", "aten")


def names(plan: VariantPlan) -> list[str]:
    return [option.variant.variant for option in plan.options]


def test_without_profiles_the_default_order_decides() -> None:
    plan = choose(ATEN, ORT)
    assert names(plan) == ["ort-fp32", "aten-fp32"]
    assert plan.chosen is not None
    assert "default order" in plan.chosen.reason
    assert plan.chosen.expected_ms is None


def test_the_profile_beats_the_default_order() -> None:
    plan = choose(ORT, ATEN, profiles=profiles(profile(ORT, 20.0), profile(ATEN, 3.0)))
    assert names(plan) == ["aten-fp32", "ort-fp32"]
    assert plan.options[0].expected_ms == 8.0
    assert plan.options[1].reason == "17 ms slower than aten-fp32"


def test_load_counts_for_an_inactive_variant() -> None:
    known = profiles(profile(ORT, 10.0, load_ms=1.0), profile(ATEN, 3.0, load_ms=100.0))
    assert names(choose(ATEN, ORT, profiles=known))[0] == "ort-fp32"


def test_an_active_variant_comes_before_a_faster_inactive_one() -> None:
    known = profiles(profile(ORT, 1.0), profile(ATEN, 50.0))
    plan = choose(ORT, ATEN, profiles=known, active={ATEN.key.variant: {NODE: 2}})
    assert names(plan) == ["aten-fp32", "ort-fp32"]
    assert plan.options[0].active_instances == 2
    assert plan.options[0].expected_ms == 50.0
    assert "aten-fp32 is active" in plan.options[1].reason


def test_among_active_ones_latency_decides_not_load() -> None:
    known = profiles(profile(ORT, 10.0, load_ms=1.0), profile(ATEN, 3.0, load_ms=100.0))
    assert names(choose(ORT, ATEN, profiles=known, active={ATEN.key.variant: {NODE: 1}, ORT.key.variant: {NODE: 1}}))[0] == "aten-fp32"


def test_a_variant_that_was_not_measured_is_neither_preferred_nor_punished() -> None:
    assert names(choose(ATEN, ORT, profiles=profiles(profile(ATEN, 1.0))))[0] == "ort-fp32"
    assert names(choose(ATEN, ORT, profiles=profiles(profile(ORT, 1000.0))))[0] == "ort-fp32"


def test_threads_of_the_node_choose_the_row() -> None:
    record = profile(ORT, 40.0)
    record = replace(record, rows=(*record.rows, LatencyRow(1, 2, 20, 20.0, 20.0, 20.0), LatencyRow(8, 2, 20, 1.0, 1.0, 1.0)))
    two = replace(NODE, threads=2)
    assert choose(ORT, profiles=profiles(record), classes={two: 1}).options[0].latency_ms == 20.0
    assert choose(ORT, profiles=profiles(record)).options[0].latency_ms == 40.0
    four = replace(NODE, threads=4)
    assert choose(ORT, profiles=profiles(record), classes={four: 1}).options[0].latency_ms == 20.0


def test_a_profile_of_another_class_is_not_trusted() -> None:
    other = replace(NODE, profile_class=ProfileClass("other"))
    assert choose(ORT, profiles=profiles(profile(ORT, 1.0, cls=other))).options[0].expected_ms is None


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (variant("a", state=VariantState.BUILDING), "building"),
        (variant("a", state=VariantState.FAILED, reason="op foo is unknown"), "failed: op foo is unknown"),
        (variant("a", precision="int8"), "int8 may differ"),
        (variant("a", build_class=BuildClass("other")), "0 of 1 nodes: 1 are not of build class other"),
        (variant("a", "openvino", flavour="openvino"), "0 of 1 nodes: 1 run no openvino runtimes"),
    ],
)
def test_refusals_say_why(record: VariantRecord, reason: str) -> None:
    plan = choose(record)
    assert plan.chosen is None
    assert reason in plan.refusal()


def test_no_nodes_and_no_variants() -> None:
    assert "no node is there" in choose(ORT, classes={}).refusal()
    assert choose().refusal() == "it has no variants yet"


def test_active_instances_outlive_the_record_of_their_node() -> None:
    plan = choose(ORT, classes={}, active={ORT.key.variant: {NODE: 1}})
    assert plan.chosen is not None


def test_a_named_variant_is_the_only_one_and_may_be_lossy() -> None:
    lossy = variant("ort-int8", precision="int8")
    plan = choose(ORT, lossy, named=VariantName("ort-int8"))
    assert plan.chosen is not None
    assert plan.chosen.variant == lossy.key
    assert [option.variant.variant for option in plan.usable] == ["ort-int8"]


def test_what_it_remembers_is_made_anew_when_its_objects_change() -> None:
    """One policy over a story gives the same plans as a new policy at each step."""
    lasting = PlainVariantPolicy()
    measured = profiles(profile(ORT, 20.0), profile(ATEN, 3.0))
    two = replace(NODE, threads=2)
    story = [
        VariantSnapshot(VERSION, (ORT, ATEN), {NODE: 1}, {}, {}),
        VariantSnapshot(VERSION, (ORT, ATEN), {NODE: 1}, {}, measured),
        VariantSnapshot(VERSION, (ORT, ATEN), {NODE: 1}, {ORT.key.variant: {NODE: 1}}, measured),
        VariantSnapshot(VERSION, (replace(ORT, state=VariantState.FAILED), ATEN), {NODE: 1}, {ORT.key.variant: {NODE: 1}}, measured),
        VariantSnapshot(VERSION, (ORT, ATEN), {two: 1}, {}, measured),
        VariantSnapshot(VERSION, (ORT, ATEN), {}, {}, measured),
        VariantSnapshot(VERSION, (ORT, ATEN), {NODE: 1}, {}, profiles(profile(ORT, 1.0), profile(ATEN, 3.0))),
        VariantSnapshot(VERSION, (variant("x", precision="int8"),), {NODE: 1}, {}, {}),
        VariantSnapshot(VERSION, (variant("x", precision="int8"),), {NODE: 1}, {}, {}, VariantName("x")),
        VariantSnapshot(VERSION, (variant("x", precision="int8"),), {NODE: 1}, {}, {}),
    ]
    for snapshot in story * 2:
        assert lasting.choose(snapshot) == PlainVariantPolicy().choose(snapshot)


def test_registry_names_what_exists() -> None:
    assert registry.make("plain").name == "plain"
    with pytest.raises(InvalidInput, match="plain"):
        registry.make("fancy")


_numbers = st.one_of(st.none(), st.floats(0.1, 1000))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ort", "aten"]),
            st.sampled_from(["fp32", "int8"]),
            st.sampled_from(list(VariantState)),
            _numbers,
            st.integers(0, 3),
        ),
        max_size=8,
    )
)
def test_properties_of_every_plan(rows: list[tuple[str, str, VariantState, float | None, int]]) -> None:
    """Every variant is in the plan once with a reason, refused ones last, and the choice is never a lossy or an unready one."""
    records = [variant(f"v{i}", backend, precision=precision, state=state) for i, (backend, precision, state, _, _) in enumerate(rows)]
    known = profiles(*(profile(record, row[3]) for record, row in zip(records, rows, strict=True) if row[3] is not None))
    active = {record.key.variant: {NODE: row[4]} for record, row in zip(records, rows, strict=True) if row[4]}
    plan = choose(*records, profiles=known, active=active)
    assert sorted(names(plan)) == sorted(record.key.variant for record in records)
    assert all(option.reason for option in plan.options)
    assert [option.usable for option in plan.options] == sorted((option.usable for option in plan.options), reverse=True)
    by_key = {record.key: record for record in records}
    assert all(by_key[o.variant].state is VariantState.READY and by_key[o.variant].precision == "fp32" for o in plan.usable)
    if plan.chosen is not None and any(option.active_instances for option in plan.usable):
        assert plan.chosen.active_instances
    if plan.usable and all(option.expected_ms is not None and not option.active_instances for option in plan.usable):
        assert plan.chosen is not None
        assert plan.chosen.expected_ms == min(option.expected_ms for option in plan.usable if option.expected_ms is not None)
