"""Recipes beside the base ones: made behind the user's back, giving way, resumed, stopped, kept with their reason."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from registry_world import CLASS_A, CLASS_B, DOMAIN, LOSSY, Registry, stored, tensor

from tessera.domain.accuracy import Agreement
from tessera.domain.artifact import Blob
from tessera.domain.errors import Internal, VariantNotFound
from tessera.domain.ids import ModelName, VersionNumber
from tessera.domain.records import Evaluation, VariantRecord, VariantState
from tessera.registry.core.recipes import DEFAULT_RECIPES
from tessera.registry.core.source import Demands
from tessera.registry.loops.variants import STOPPED

FILES = {"trunk": tensor(1), "head": tensor(2)}
M = ModelName("m")


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    """One that makes int8 of convolutions."""
    async with Registry(tmp_path, recipes=DEFAULT_RECIPES) as registry:
        registry.importer.operators = ("Conv", "Conv", "Gemm")
        yield registry


async def found(registry: Registry, model: str = "m") -> dict[str, VariantRecord]:
    return {v.key.variant: v for v in await registry.catalogue.variants(DOMAIN) if v.key.model == model}


def in_state(registry: Registry, name: str, state: VariantState, model: str = "m") -> object:
    async def check() -> bool:
        variants = await found(registry, model)
        return name in variants and variants[name].state is state

    return check


async def test_waiting_for_variants_is_waiting_for_the_base_ones(registry: Registry) -> None:
    await registry.node("n1", CLASS_A)
    registry.baker.gate.clear()
    events = await registry.register("m", FILES, wait=True)
    assert events[-1].message == "aten-fp32 ready, ort-fp32 ready"
    await registry.settled(in_state(registry, "ort-int8", VariantState.BUILDING))
    await registry.settled(lambda: _says(registry, "optimising"))
    assert await registry.catalogue.jobs(DOMAIN) == []
    registry.baker.gate.set()
    await registry.settled(in_state(registry, "ort-int8", VariantState.READY))
    made = (await found(registry))["ort-int8"]
    assert (made.precision, made.recipe, made.build_class, made.agreement, made.withheld) == ("int8", "ort-int8", CLASS_A, LOSSY, "")
    assert (made.lossy, made.notes) == (True, "notes")
    assert [order.recipe for order in registry.baker.orders] == ["ort-fp32", "ort-int8"]
    await registry.settled(lambda: _says(registry, ""))


async def _says(registry: Registry, words: str) -> bool:
    said = registry.variants.progress((await found(registry))["ort-int8"].key)
    return words in said if words else not said


async def test_what_somebody_waits_for_takes_the_turn_of_what_nobody_waits_for(registry: Registry) -> None:
    await registry.node("n1", CLASS_A)
    registry.baker.gate.clear()
    await registry.register("m", FILES, wait=True)
    await registry.settled(lambda: _says(registry, "optimising"))
    await registry.register("other", {"x": tensor(3)}, wait=True)
    assert registry.baker.ended_early == ["ort-int8"]
    assert (await found(registry))["ort-int8"].state is VariantState.BUILDING
    registry.baker.gate.set()
    for model in ("m", "other"):
        await registry.settled(in_state(registry, "ort-int8", VariantState.READY, model))


async def test_a_build_goes_on_after_a_restart_of_the_registry(registry: Registry) -> None:
    await registry.node("n1", CLASS_A)
    registry.baker.gate.clear()
    await registry.register("m", FILES, wait=True)
    await registry.settled(lambda: _says(registry, "optimising"))
    await registry.crash()
    await registry.imports.resume()
    registry.baker.gate.set()
    await registry.settled(in_state(registry, "ort-int8", VariantState.READY))
    assert [order.recipe for order in registry.baker.orders].count("ort-fp32") == 1


async def test_a_build_that_fails_keeps_its_reason_and_touches_nothing_else(registry: Registry) -> None:
    await registry.node("n1", CLASS_A)
    registry.baker.refused["ort-int8"] = Internal("the graph cannot be quantised: no opset 13")
    await registry.register("m", FILES, wait=True)
    await registry.settled(in_state(registry, "ort-int8", VariantState.FAILED))
    variants = await found(registry)
    assert variants["ort-int8"].reason == "the graph cannot be quantised: no opset 13"
    assert variants["ort-fp32"].state is VariantState.READY


async def test_what_loses_too_much_is_ready_and_withheld(registry: Registry) -> None:
    await registry.node("n1", CLASS_A)
    registry.baker.agreement = Agreement(0.4, 0.9, 32)
    await registry.register("m", FILES, wait=True)
    await registry.settled(in_state(registry, "ort-int8", VariantState.READY))
    assert "mean cosine of 0.9000" in (await found(registry))["ort-int8"].withheld


async def test_fp32_that_does_not_agree_is_a_failure_whatever_the_node_says(registry: Registry) -> None:
    registry.importer.operators = ("MatMul", "MatMul")
    registry.variants.recipes = ("ort-fp32-prepacked",)
    await registry.node("n1", CLASS_A)
    registry.baker.gate.clear()
    await registry.register("m", FILES, wait=True)
    registry.baker.exact_agreement = Agreement(0.002, 1.0, 3)
    registry.baker.gate.set()
    await registry.settled(in_state(registry, "ort-fp32-prepacked", VariantState.FAILED))
    assert "differs from the registered model by 0.002" in (await found(registry))["ort-fp32-prepacked"].reason


async def test_stopped_is_recorded_and_tried_again_when_asked(registry: Registry) -> None:
    await registry.node("n1", CLASS_A)
    registry.baker.gate.clear()
    await registry.register("m", FILES, wait=True)
    await registry.settled(lambda: _says(registry, "optimising"))
    stopped = await registry.variants.stop(DOMAIN, M, None, "")
    assert [key.variant for key in stopped] == ["ort-int8"]
    record = (await found(registry))["ort-int8"]
    assert (record.state, record.reason) == (VariantState.FAILED, STOPPED)

    async def ended() -> bool:
        return registry.baker.ended_early == ["ort-int8"]

    await registry.settled(ended)
    assert await registry.variants.stop(DOMAIN, M, VersionNumber(1), "ort-int8") == []
    with pytest.raises(VariantNotFound, match="there are aten-fp32, ort-fp32, ort-int8"):
        await registry.variants.stop(DOMAIN, M, None, "ort-int4")
    registry.baker.gate.set()
    await registry.register("m", FILES)
    await registry.settled(in_state(registry, "ort-int8", VariantState.READY))


async def test_base_variants_are_not_stopped(registry: Registry) -> None:
    waiting = asyncio.create_task(registry.register("m", FILES, wait=True))

    async def there() -> bool:
        return "ort-int8" in await found(registry)

    await registry.settled(there)
    assert [key.variant for key in await registry.variants.stop(DOMAIN, M, None, "")] == ["ort-int8"]
    assert (await found(registry))["ort-fp32"].state is VariantState.PENDING
    await registry.node("n1", CLASS_A)
    await waiting
    assert [order.recipe for order in registry.baker.orders] == ["ort-fp32"]


async def test_another_class_gets_builds_of_its_own(registry: Registry) -> None:
    await registry.node("n1", CLASS_A)
    await registry.register("m", FILES, wait=True)
    await registry.settled(in_state(registry, "ort-int8", VariantState.READY))
    await registry.node("n2", CLASS_B)

    async def all_ready() -> bool:
        variants = await found(registry)
        return len(variants) == 5 and all(v.state is VariantState.READY for v in variants.values())

    await registry.settled(all_ready)
    int8 = {v.build_class: v.key.variant for v in (await found(registry)).values() if v.recipe == "ort-int8"}
    assert int8[CLASS_A] == "ort-int8"
    assert int8[CLASS_B].startswith("ort-int8.")


async def test_version_that_is_deleted_takes_its_builds_along(registry: Registry) -> None:
    await registry.node("n1", CLASS_A)
    registry.baker.gate.clear()
    await registry.register("m", FILES, wait=True)
    await registry.settled(lambda: _says(registry, "optimising"))
    await registry.shelf.discard(await registry.catalogue.delete(DOMAIN, M, None))
    registry.baker.gate.set()
    registry.importer.operators = ()
    await registry.register("n", FILES, wait=True)
    assert await found(registry) == {}


async def test_without_gain_there_is_nothing_to_make(registry: Registry) -> None:
    registry.importer.operators = ("Relu",)
    await registry.node("n1", CLASS_A)
    await registry.register("m", FILES, wait=True)
    assert set(await found(registry)) == {"aten-fp32", "ort-fp32"}
    version = (await registry.catalogue.versions(DOMAIN))[0]
    assert replace(version, convolutions=0, matrix_products=0) == version


async def test_sets_are_stored_named_given_to_the_node_and_go_with_their_version(registry: Registry) -> None:
    await registry.node("n1", CLASS_A)
    plain = registry.registration("m", FILES)
    sets = registry.upload({"evaluation set": b"eval", "calibration set": b"cal"})
    by_path = {file.path: file for file in sets}
    demands = Demands(by_path["evaluation set"], "top1", by_path["calibration set"], 0.02, ("ort-int8",))
    registration = replace(plain, demands=demands, lossy=True)
    registry.importer.agreement = Agreement(0.0, 1.0, 10, "top1", 0.97, 0.97)
    assert [e.step async for e in registry.imports.register(registration, wait=True)][-1] == "done"
    await registry.settled(in_state(registry, "ort-int8", VariantState.READY))
    assert registry.importer.sets == [{file.digest: data for file, data in zip(sets, (b"cal", b"eval"), strict=True)}]
    (version,) = await registry.catalogue.versions(DOMAIN)
    assert version.evaluation == Evaluation(by_path["evaluation set"].digest, 4, "top1")
    assert version.calibration == Blob(by_path["calibration set"].digest, 3)
    assert (version.allowance, version.recipes) == (0.02, ("ort-int8",))
    for order in registry.baker.orders:
        assert (order.evaluation, order.calibration) == (version.evaluation, version.calibration)
    assert (await found(registry))["aten-fp32"].agreement == registry.importer.agreement
    assert (await registry.catalogue.model(DOMAIN, M)).model.lossy
    await registry.shelf.sweep()
    held = stored(registry.repository)
    assert {file.digest for file in sets} <= held
    await registry.shelf.discard(await registry.catalogue.delete(DOMAIN, M, None))
    assert not {file.digest for file in sets} & stored(registry.repository)


async def test_lossy_is_taken_over_without_a_new_version_and_kept_when_nothing_is_said(registry: Registry) -> None:
    plain = registry.registration("m", FILES)
    for said, expected in ((None, False), (True, True), (None, True), (False, False)):
        async for _ in registry.imports.register(replace(plain, lossy=said), wait=False):
            pass
        known = await registry.catalogue.model(DOMAIN, M)
        assert (known.model.lossy, len(known.versions)) == (expected, 1)


async def test_another_evaluation_set_is_another_version_and_a_killed_job_remembers_it(registry: Registry) -> None:
    (file,) = registry.upload({"evaluation set": b"eval"})
    await registry.register("m", FILES)
    registry.importer.gate = asyncio.Event()
    registration = replace(registry.registration("m", FILES), demands=Demands(file, "top1"))
    events = registry.imports.register(registration, wait=False)
    assert (await anext(events)).step == "importing"
    await events.aclose()
    await registry.crash()
    registry.importer.gate.set()
    await registry.imports.resume()

    async def two() -> bool:
        return len(await registry.catalogue.versions(DOMAIN)) == 2

    await registry.settled(two)
    newest = max(await registry.catalogue.versions(DOMAIN), key=lambda v: v.version)
    assert newest.evaluation == Evaluation(file.digest, 4, "top1")
