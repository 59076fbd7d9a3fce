"""Which variants are to be made, where, and what they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from registry_world import onnx_graph

from tessera.domain.accuracy import Agreement
from tessera.domain.errors import DataCorrupted, FailedPrecondition, InvalidInput
from tessera.domain.ids import BuildClass, Digest, ModelName, NodeId, ProfileClass, TrustDomain, VariantKey, VariantName, VersionNumber
from tessera.domain.recipe import Recipe
from tessera.domain.records import NodeRecord, VariantRecord, VariantState, VersionRecord
from tessera.domain.signature import Signature
from tessera.registry.core import recipes
from tessera.registry.core.operators import count
from tessera.registry.core.recipes import DEFAULT_RECIPES, ORT, checked_recipes, withheld
from tessera.registry.core.variants import name_for, plan_variants
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
    assert [(b.node.node_id, b.version.exports, b.variant.key) for b in plan.bake] == [("n1", (EXPORT,), KEY)]
    assert plan.create == ()  # the other class waits for the first


def test_without_a_node_it_waits_and_says_for_what() -> None:
    plan = plan_variants([VERSION], [PENDING], [node("n", A, ("aten",))], digest_of)
    assert plan.bake == ()
    assert plan.waiting == ((KEY, "no node with flavour ort (0 build classes are there)"),)


def test_another_class_gets_a_variant_of_its_own_once() -> None:
    nodes = [node("n1", A), node("n2", B), node("n3", B)]
    plan = plan_variants([VERSION], [READY_A], nodes, digest_of)
    (made,) = plan.create
    assert made.key.variant == name_for(ORT, B, digest_of) == f"ort-fp32.{digest_of(b'class-b')[:8]}"
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


CNN = replace(VERSION, convolutions=20, matrix_products=1)
TRANSFORMER = replace(VERSION, convolutions=1, matrix_products=48)
LISTED = ("ort-int8", "ort-int8-dynamic", "ort-fp32-prepacked")


def variant(name: str, state: VariantState, build_class: BuildClass | None = None, model: str = "m") -> VariantRecord:
    key = VariantKey(D, ModelName(model), VersionNumber(1), VariantName(name))
    return VariantRecord(key, "ort", "ort", "fp32", state, 32, build_class)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (CNN, ["ort-int8"]),
        (TRANSFORMER, ["ort-int8-dynamic", "ort-fp32-prepacked"]),
        (VERSION, []),
        (replace(CNN, recipes=("ort-fp32-prepacked",)), ["ort-fp32-prepacked"]),
        (replace(CNN, recipes=()), []),
    ],
)
def test_a_version_gets_the_recipes_that_it_gains_from_or_asked_for(version: VersionRecord, expected: list[str]) -> None:
    plan = plan_variants([version], [READY_A], [node("n", A)], digest_of, LISTED)
    assert [made.key.variant for made in plan.create] == expected
    assert {made.build_class for made in plan.create} <= {A}
    assert [made.precision for made in plan.create] == ["int8" if "int8" in name else "fp32" for name in expected]


def test_other_recipes_come_after_ort_fp32_of_every_model() -> None:
    other = replace(CNN, model=ModelName("a"))
    records = [
        variant("ort-int8", VariantState.PENDING, A, "a"),
        variant("ort-fp32", VariantState.READY, A, "a"),
        PENDING,
        variant("ort-fp32-prepacked", VariantState.PENDING, A, "a"),
    ]
    plan = plan_variants([other, CNN], records, [node("n", A)], digest_of, LISTED)
    assert [(b.variant.key.model, b.recipe, b.base) for b in plan.bake] == [
        ("m", "ort-fp32", True),
        ("a", "ort-int8", False),
        ("a", "ort-fp32-prepacked", False),
    ]


def test_other_recipes_wait_for_ort_fp32_of_their_class_and_fail_with_it() -> None:
    wanted = variant("ort-int8", VariantState.PENDING)
    plan = plan_variants([CNN], [PENDING, wanted], [node("n", A)], digest_of, LISTED)
    assert plan.waiting == ((wanted.key, "ort-fp32 comes first"),)
    failed = replace(PENDING, state=VariantState.FAILED, build_class=A, reason="no kernel")
    plan = plan_variants([CNN], [failed, wanted], [node("n", A)], digest_of, LISTED)
    assert plan.fail == ((wanted.key, "ort-fp32 failed: no kernel"),)
    assert plan.create == ()
    plan = plan_variants([CNN], [READY_A, wanted], [node("n", B)], digest_of, LISTED)
    assert plan.waiting == ((wanted.key, "no node of build class class-a with flavour ort (1 build classes are there)"),)


def test_each_class_has_recipes_of_its_own() -> None:
    nodes = [node("n1", A), node("n2", B)]
    base = variant(f"ort-fp32.{digest_of(b'class-b')[:8]}", VariantState.READY, B)
    plan = plan_variants([CNN], [READY_A, base], nodes, digest_of, LISTED)
    assert [(made.key.variant, made.build_class, made.recipe) for made in plan.create] == [
        ("ort-int8", A, "ort-int8"),
        (name_for("ort-int8", B, digest_of), B, "ort-int8"),
    ]
    again = plan_variants([CNN], [READY_A, base, *plan.create], nodes, digest_of, LISTED)
    assert again.create == ()
    assert [(b.recipe, b.node.node_id) for b in again.bake] == [("ort-int8", "n1"), ("ort-int8", "n2")]


def test_what_is_ready_or_has_failed_is_left_alone() -> None:
    for state in (VariantState.READY, VariantState.FAILED):
        plan = plan_variants([CNN], [READY_A, variant("ort-int8", state, A)], [node("n", A)], digest_of, LISTED)
        assert plan == plan_variants([], [], [], digest_of)


def test_operators_are_counted_in_the_main_graph() -> None:
    graph = onnx_graph(["w"], ["Conv", "Relu", "MatMul", "Gemm", "ConvTranspose", "Conv"])
    assert (count(graph).convolutions, count(graph).matrix_products) == (3, 2)
    with pytest.raises(DataCorrupted, match="graph: "):
        count(b"\xff" * 9)


@pytest.mark.parametrize(
    ("agreement", "words"),
    [
        (Agreement(1e-5, 1.0, 3), ""),
        (Agreement(0.3, 0.991, 32), ""),
        (
            Agreement(0.3, 0.973, 32),
            "its answers to 32 generated inputs have a mean cosine of 0.9730 with the registered model's: loses 0.0270, allowed is 0.01",
        ),
        (Agreement(0.3, 0.5, 100, "top1", 0.975, 0.97), ""),
        (
            Agreement(0.3, 0.99, 100, "top1", 0.95, 0.98),
            "scores 0.9500 by top1, the registered model 0.9800: loses 0.0300, allowed is 0.01",
        ),
    ],
)
def test_what_loses_more_than_is_allowed_is_withheld_with_the_numbers(agreement: Agreement, words: str) -> None:
    assert withheld(agreement, 0.01) == words


def test_recipes_are_checked_by_name() -> None:
    assert checked_recipes("variants", ["ort-int8", "ort-fp32", "ort-int8"]) == ("ort-int8",)
    with pytest.raises(InvalidInput, match="variants 'int4': must be among aten-fp32, ort-fp32, ort-int8"):
        checked_recipes("variants", ["int4"])


BF16 = BuildClass("x86_64-avx512_bf16-ort1")
FLAT = Digest("f" * 64)
ATEN_READY = replace(variant("aten-fp32", VariantState.READY), backend="aten", flavour="aten", artifact=FLAT)
READY_BF16 = replace(READY_A, build_class=BF16)


def test_bfloat16_is_made_of_the_flat_program_where_the_cpu_has_it_and_torch_is() -> None:
    nodes = [node("m", BF16, ("ort",)), node("n", BF16)]
    (made,) = plan_variants([CNN], [READY_BF16, ATEN_READY], nodes, digest_of, ["aten-bf16"]).create
    assert (made.key.variant, made.backend, made.flavour, made.precision, made.build_class) == ("aten-bf16", "aten", "aten", "bf16", BF16)
    other = replace(variant("aten-bf16.12345678", VariantState.READY, A), backend="aten", artifact=Digest("b" * 64))
    (bake,) = plan_variants([CNN], [READY_BF16, other, ATEN_READY, made], nodes, digest_of, ["aten-bf16"]).bake
    assert (bake.recipe, bake.source, bake.node.node_id, bake.base) == ("aten-bf16", FLAT, "n", False)


@pytest.mark.parametrize(
    ("version", "records", "nodes"),
    [
        (CNN, [READY_BF16, ATEN_READY], [node("n", BF16, ("ort",))]),
        (CNN, [READY_A, ATEN_READY], [node("n", A), node("o", BF16)]),
        (VERSION, [READY_BF16, ATEN_READY], [node("n", BF16)]),
        (replace(CNN, source_kind="onnx"), [READY_BF16], [node("n", BF16)]),
    ],
    ids=["no node with torch", "a class without", "no products", "no flat program"],
)
def test_where_nothing_is_gained_by_bfloat16_there_is_none(
    version: VersionRecord, records: list[VariantRecord], nodes: list[NodeRecord]
) -> None:
    plan = plan_variants([version], records, nodes, digest_of, ["aten-bf16"])
    assert [made.recipe for made in plan.create if made.recipe == "aten-bf16"] == []


def test_who_names_it_has_it_tried_on_any_class() -> None:
    version = replace(CNN, recipes=("aten-bf16",))
    assert [made.recipe for made in plan_variants([version], [READY_A, ATEN_READY], [node("n", A)], digest_of).create] == ["aten-bf16"]


def test_what_came_as_onnx_has_no_flat_program_and_says_so() -> None:
    asked = variant("aten-bf16", VariantState.PENDING, A)
    plan = plan_variants([replace(CNN, recipes=("aten-bf16",))], [READY_A, asked], [node("n", A)], digest_of)
    assert plan.fail == ((asked.key, "aten-bf16 is made of the flat program, and there is none of this version"),)


def test_compiling_is_for_who_asks_alone() -> None:
    assert "aoti-fp32" not in DEFAULT_RECIPES
    assert checked_recipes("recipes", ["aoti-fp32"]) == ("aoti-fp32",)
    (made,) = plan_variants([CNN], [READY_A, ATEN_READY], [node("n", A)], digest_of, ["aoti-fp32"]).create
    assert (made.key.variant, made.backend, made.flavour, made.precision) == ("aoti-fp32", "aoti", "aten", "fp32")


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Callable[[], object]]]:
    """What installed packages offer as recipes."""
    offered: dict[str, Callable[[], object]] = {}
    monkeypatch.setattr(recipes, "plugins", lambda group: offered)
    for cache in (recipes.names, recipes.recipe_named):
        cache.cache_clear()
    yield offered
    for cache in (recipes.names, recipes.recipe_named):
        cache.cache_clear()


OTHER = Recipe("other-fp32", "fp32", exact=True, gains=lambda version, build_class: version.convolutions > 0, backend="other")


def test_a_recipe_of_another_package_is_planned_like_one_of_ours(packages: dict[str, Callable[[], object]]) -> None:
    packages |= {"other-fp32": lambda: OTHER, "ort-int8": lambda: OTHER, "ort-fp32": lambda: OTHER}
    assert checked_recipes("recipes", ["other-fp32", "ort-int8"]) == ("other-fp32", "ort-int8")
    nodes = [node("n", A)]
    (made,) = plan_variants([CNN], [READY_A], nodes, digest_of, ["other-fp32"]).create
    assert (made.key.variant, made.backend, made.flavour, made.precision, made.recipe) == (
        "other-fp32",
        "other",
        "ort",
        "fp32",
        "other-fp32",
    )
    (bake,) = plan_variants([CNN], [READY_A, made], nodes, digest_of, ["other-fp32"]).bake
    assert (bake.recipe, bake.source, bake.base) == ("other-fp32", CNN.exports[0], False)
    assert plan_variants([VERSION], [READY_A], nodes, digest_of, ["other-fp32"]).create == ()
    assert recipes.recipe_named("ort-int8").backend == "ort"
    assert "differs from the registered model by 0.5" in recipes.check_exact("other-fp32", Agreement(0.5, 0.9, 1))


def test_a_package_that_makes_no_recipe_is_refused_before_anything_is_planned(packages: dict[str, Callable[[], object]]) -> None:
    packages |= {"other": lambda: OTHER, "nothing": lambda: None}
    for name in packages:
        with pytest.raises(FailedPrecondition, match=f"tessera.recipes: {name!r} makes .*, no recipe of that name"):
            checked_recipes("recipes", [name])


def test_what_a_package_offered_that_is_gone_fails_and_is_wanted_no_more(packages: dict[str, Callable[[], object]]) -> None:
    version = replace(CNN, recipes=("other-fp32",))
    assert plan_variants([version], [READY_A], [node("n", A)], digest_of).create == ()
    begun = replace(variant("other-fp32", VariantState.PENDING, A), backend="other")
    plan = plan_variants([version], [READY_A, begun], [node("n", A)], digest_of)
    assert plan.fail == ((begun.key, "no installed package offers recipe other-fp32"),)
    with pytest.raises(InvalidInput, match="recipes 'other-fp32': must be among"):
        checked_recipes("recipes", ["other-fp32"])
