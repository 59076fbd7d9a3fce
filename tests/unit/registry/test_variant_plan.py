"""Which variants are to be made, where, and what they are called."""

from __future__ import annotations

from dataclasses import replace

from tessera.domain.ids import BuildClass, Digest, ModelName, NodeId, ProfileClass, TrustDomain, VariantKey, VariantName, VersionNumber
from tessera.domain.records import NodeRecord, VariantRecord, VariantState, VersionRecord
from tessera.domain.signature import Signature
from tessera.registry.core.variants import ORT, name_for, plan_variants
from tessera.tensorstore.artifact import digest_of

D = TrustDomain("default")
A, B = BuildClass("class-a"), BuildClass("class-b")
EXPORT = Digest("e" * 64)
VERSION = VersionRecord(ModelName("m"), D, VersionNumber(1), Signature((), ()), "pt2", Digest("0" * 64), 0.0, (EXPORT,))
KEY = VariantKey(D, ModelName("m"), VersionNumber(1), ORT)
PENDING = VariantRecord(KEY, "ort", "ort", "fp32", VariantState.PENDING, 32)
READY_A = replace(PENDING, state=VariantState.READY, build_class=A)


def node(name: str, build_class: BuildClass, flavours: tuple[str, ...] = ("aten", "ort")) -> NodeRecord:
    return NodeRecord(NodeId(name), "h", "a", "s", "r", build_class, ProfileClass("p"), flavours, 2, 1, D)


def test_first_class_to_come_builds_the_short_name() -> None:
    plan = plan_variants([VERSION], [PENDING], [node("n2", B), node("n1", A)], digest_of)
    assert [(b.node.node_id, b.export, b.variant.key) for b in plan.bake] == [("n1", EXPORT, KEY)]
    assert plan.create == ()  # the other class waits for the first


def test_without_a_node_it_waits_and_says_for_what() -> None:
    plan = plan_variants([VERSION], [PENDING], [node("n", A, ("aten",))], digest_of)
    assert plan.bake == ()
    assert plan.waiting == ((KEY, "no node with flavour ort (0 build classes are there)"),)


def test_another_class_gets_a_variant_of_its_own_once() -> None:
    nodes = [node("n1", A), node("n2", B), node("n3", B)]
    plan = plan_variants([VERSION], [READY_A], nodes, digest_of)
    (made,) = plan.create
    assert made.key.variant == name_for(B, digest_of) == f"ort-fp32.{digest_of(b'class-b')[:8]}"
    assert (made.build_class, made.state, made.max_batch) == (B, VariantState.PENDING, 32)
    again = plan_variants([VERSION], [READY_A, made], nodes, digest_of)
    assert again.create == ()
    assert [(b.variant.key, b.node.node_id) for b in again.bake] == [(made.key, "n2")]


def test_variant_of_another_class_is_baked_on_that_class_only() -> None:
    other = replace(PENDING, key=replace(KEY, variant=VariantName("ort-fp32.12345678")), build_class=B)
    plan = plan_variants([VERSION], [READY_A, other], [node("n1", A)], digest_of)
    assert plan.bake == ()
    assert plan.waiting == ((other.key, "no node of build class class-b (1 build classes are there)"),)


def test_a_build_that_was_interrupted_goes_on_there_or_elsewhere() -> None:
    building = replace(PENDING, state=VariantState.BUILDING, build_class=B)
    assert [b.node.node_id for b in plan_variants([VERSION], [building], [node("a", A), node("b", B)], digest_of).bake] == ["b"]
    assert [b.node.node_id for b in plan_variants([VERSION], [building], [node("a", A)], digest_of).bake] == ["a"]


def test_failed_is_left_alone_and_other_classes_try() -> None:
    failed = replace(PENDING, state=VariantState.FAILED, build_class=A, reason="no")
    plan = plan_variants([VERSION], [failed], [node("a", A), node("b", B)], digest_of)
    assert plan.bake == ()
    assert [v.build_class for v in plan.create] == [B]


def test_version_without_export_has_nothing_to_bake() -> None:
    plan = plan_variants([replace(VERSION, exports=())], [PENDING], [node("a", A)], digest_of)
    assert plan == plan_variants([], [], [], digest_of)
