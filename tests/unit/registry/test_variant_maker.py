"""Baking: nodes come and go, builds fail, another class appears, a version is deleted."""

from __future__ import annotations

import asyncio

import pytest
from registry_world import CLASS_A, CLASS_B, DOMAIN, SIGNATURE, Registry, stored, tensor

from tessera import failpoint
from tessera.domain.artifact import ALONE, PREPACKED, Artifact
from tessera.domain.errors import Conflict, Internal, NotFound, ResourceExhausted, TesseraError, Unavailable
from tessera.domain.ids import Digest, ModelName, VariantName, VersionNumber
from tessera.domain.records import VariantRecord, VariantState
from tessera.registry.loops.accounting import placeholder, ready

FILES = {"trunk": tensor(1), "head": tensor(2)}
M = ModelName("m")


async def ort(registry: Registry) -> dict[str, VariantRecord]:
    return {v.key.variant: v for v in await registry.catalogue.variants(DOMAIN) if v.key.model == M and v.backend == "ort"}


def in_state(registry: Registry, state: VariantState, count: int = 1) -> object:
    async def check() -> bool:
        found = await ort(registry)
        return len(found) == count and all(v.state is state for v in found.values())

    return check


async def test_waits_for_a_node_and_bakes_there(registry: Registry) -> None:
    waiting = asyncio.create_task(registry.register("m", FILES, wait=True))
    await registry.settled(lambda: _registered(registry))
    assert not waiting.done()
    await registry.node("n1", CLASS_A)
    events = await waiting
    assert [e.step for e in events][-2:] == ["variant ready", "done"]
    assert any("no node with flavour ort" in e.message for e in events)
    made = (await ort(registry))["ort-fp32"]
    assert (made.state, made.build_class, made.tensor_bytes, made.tensor_count) == (VariantState.READY, CLASS_A, 8192, 1)
    assert made.artifact is not None
    assert all(registry.repository.verify(blob.digest) for blob in (await registry.blobs.artifact(made.artifact)).blobs())
    assert await registry.catalogue.jobs(DOMAIN) == []
    assert not list((registry.folder / "work").iterdir())


async def _registered(registry: Registry) -> bool:
    return bool(await registry.catalogue.models(DOMAIN))


async def test_second_class_gets_its_own_build(registry: Registry) -> None:
    await registry.node("n1", CLASS_A)
    await registry.register("m", FILES, wait=True)
    await registry.node("n2", CLASS_B)
    await registry.settled(in_state(registry, VariantState.READY, 2))
    found = await ort(registry)
    assert {v.build_class for v in found.values()} == {CLASS_A, CLASS_B}
    assert found["ort-fp32"].build_class == CLASS_A
    assert registry.baker.bakes == [("n1", CLASS_A), ("n2", CLASS_B)]


@pytest.mark.parametrize("error", [Unavailable("connection reset"), ResourceExhausted("the store is full")])
async def test_lost_node_and_no_room_cost_another_try(registry: Registry, error: Exception) -> None:
    registry.baker.errors = [error]
    await registry.node("n1", CLASS_A)
    events = await registry.register("m", FILES, wait=True)
    assert any(f"{error}; again in 1 s" in e.message for e in events)
    assert len(registry.baker.bakes) == 2
    assert (await ort(registry))["ort-fp32"].state is VariantState.READY


async def test_failed_build_is_recorded_with_its_reason_and_tried_again_when_asked(registry: Registry) -> None:
    registry.baker.errors = [Internal("ONNX Runtime cannot open it")]
    await registry.node("n1", CLASS_A)
    events = await registry.register("m", FILES, wait=True)
    failed = (await ort(registry))["ort-fp32"]
    assert (failed.state, failed.reason) == (VariantState.FAILED, "ONNX Runtime cannot open it")
    assert events[-1].step == "done"
    assert "ort-fp32 failed" in events[-1].message
    await registry.register("m", FILES)
    await registry.settled(in_state(registry, VariantState.READY))
    assert len(registry.importer.runs) == 1


async def test_who_waits_for_known_content_waits_for_what_is_tried_again(registry: Registry) -> None:
    registry.baker.errors = [Internal("ONNX Runtime cannot open it")]
    await registry.node("n1", CLASS_A)
    await registry.register("m", FILES, wait=True)
    both = await asyncio.gather(*[registry.register("m", FILES, wait=True) for _ in range(2)])
    assert (await ort(registry))["ort-fp32"].state is VariantState.READY
    for events in both:
        assert (events[-1].message, events[-1].unchanged) == ("aten-fp32 ready, ort-fp32 ready", True)
    assert both[0][-1].job_id == both[1][-1].job_id
    assert (await registry.register("m", FILES, wait=True))[-1].message == "nothing to do"


async def test_who_waits_for_known_content_hears_what_it_waits_for(registry: Registry) -> None:
    registry.baker.errors = [Internal("ONNX Runtime cannot open it")]
    await registry.node("n1", CLASS_A)
    await registry.register("m", FILES, wait=True)
    await registry.leave("n1")
    await registry.register("m", FILES)
    await registry.settled(lambda: _waits(registry))
    waiting = asyncio.create_task(registry.register("m", FILES, wait=True))
    await registry.settled(lambda: _followed(registry))
    await registry.node("n1", CLASS_A)
    events = await waiting
    assert any("no node with flavour ort" in e.message for e in events)
    assert events[-1].message == "aten-fp32 ready, ort-fp32 ready"


async def _waits(registry: Registry) -> bool:
    return "no node with flavour ort" in registry.variants.progress((await ort(registry))["ort-fp32"].key)


async def test_node_that_is_lost_each_time_fails_the_variant(registry: Registry) -> None:
    registry.baker.errors = [Unavailable("gone"), Unavailable("gone again")]
    await registry.node("n1", CLASS_A)
    await registry.register("m", FILES, wait=True)
    failed = (await ort(registry))["ort-fp32"]
    assert failed.state is VariantState.FAILED
    assert failed.reason == "tried 2 times, at last on n1: gone again"


@pytest.mark.parametrize("kind", [NotFound, Conflict])
async def test_node_that_lacks_what_it_bakes_from_fails_the_variant(registry: Registry, kind: type[TesseraError]) -> None:
    registry.baker.refused["ort-fp32"] = kind("blob 1234 is not in repository file:///elsewhere")
    await registry.node("n1", CLASS_A)
    await registry.register("m", FILES, wait=True)
    failed = (await ort(registry))["ort-fp32"]
    assert failed.state is VariantState.FAILED
    assert failed.reason == "tried 2 times, at last on n1: node n1: blob 1234 is not in repository file:///elsewhere"
    assert len(registry.baker.bakes) == 2


async def test_build_that_is_tried_again_leaves_the_turn_to_others(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessera.registry.loops.building._BACK_OFF_S", (600.0,))
    registry.baker.errors = [NotFound("blob 1234 is not in repository file:///elsewhere")]
    await registry.node("n1", CLASS_A)
    await registry.register("m", FILES)
    await registry.settled(in_state(registry, VariantState.BUILDING))
    events = await registry.register("n", {"trunk": tensor(3)}, wait=True)
    assert events[-1].message == "aten-fp32 ready, ort-fp32 ready"
    assert (await ort(registry))["ort-fp32"].state is VariantState.BUILDING


async def test_disk_that_stays_full_fails_the_variant_and_ends_nothing_else(registry: Registry) -> None:
    await registry.node("n1", CLASS_A)
    with failpoint.active("registry.receive_blob=oserror(ENOSPC)"):
        await registry.register("m", FILES, wait=True)
    failed = (await ort(registry))["ort-fp32"]
    assert failed.state is VariantState.FAILED
    assert failed.reason.startswith("tried 2 times, at last on n1: what the node made cannot be written: No space left on device")
    await registry.register("m", FILES)
    await registry.settled(in_state(registry, VariantState.READY))


async def test_node_that_sends_less_than_it_says_is_not_believed(registry: Registry) -> None:
    registry.baker.withhold = True
    await registry.node("n1", CLASS_A)
    await registry.register("m", FILES, wait=True)
    failed = (await ort(registry))["ort-fp32"]
    assert failed.state is VariantState.FAILED
    assert "did not send blob" in failed.reason


async def test_interrupted_build_goes_on_after_a_restart(registry: Registry) -> None:
    registry.baker.errors = [Unavailable("the registry dies while this is waited for")]
    await registry.node("n1", CLASS_A)
    task = asyncio.create_task(registry.register("m", FILES, wait=True))
    await registry.settled(in_state(registry, VariantState.BUILDING))
    await registry.crash()
    task.cancel()
    await registry.imports.resume()
    await registry.settled(in_state(registry, VariantState.READY))

    async def ended() -> bool:
        return not await registry.catalogue.jobs(DOMAIN)

    await registry.settled(ended)


async def test_deleting_takes_its_blobs_and_leaves_the_siblings(registry: Registry) -> None:
    await registry.node("n1", CLASS_A)
    before = stored(registry.repository)
    await registry.register("m", {"trunk": tensor(1), "head": tensor(2)}, wait=True)
    with_one = stored(registry.repository)
    await registry.register("n", {"trunk": tensor(1), "head": tensor(3)}, wait=True)
    with_both = stored(registry.repository)
    freed = await registry.shelf.discard(await registry.catalogue.delete(DOMAIN, ModelName("n"), None))
    assert freed > 8192
    assert stored(registry.repository) == with_one
    assert with_both > with_one
    await registry.shelf.discard(await registry.catalogue.delete(DOMAIN, M, VersionNumber(1)))
    assert stored(registry.repository) == before


async def test_sweep_keeps_what_records_refer_to(registry: Registry) -> None:
    await registry.node("n1", CLASS_A)
    await registry.register("m", FILES, wait=True)
    kept = stored(registry.repository)
    stray = registry.repository.put_bytes(b"left by an import that died")
    assert await registry.shelf.sweep() == len(b"left by an import that died")
    assert stored(registry.repository) == kept
    assert stray not in kept


async def test_sweep_of_a_repository_without_any_record_touches_nothing(registry: Registry) -> None:
    stray = registry.repository.put_bytes(b"the records may be what is lost")
    assert await registry.shelf.sweep() == 0
    assert stored(registry.repository) == {stray}


async def test_version_deleted_while_it_waits_ends_its_job(registry: Registry) -> None:
    task = asyncio.create_task(registry.register("m", FILES, wait=True))
    await registry.settled(lambda: _registered(registry))
    await registry.settled(lambda: _followed(registry))
    await registry.catalogue.delete(DOMAIN, M, None)
    registry.variants.wake()
    with pytest.raises(Internal, match="m@1 was deleted"):
        await task
    assert await registry.catalogue.jobs(DOMAIN) == []


async def _followed(registry: Registry) -> bool:
    return bool(registry.variants._jobs)


@pytest.mark.parametrize(("options", "joins"), [((PREPACKED,), True), ((PREPACKED, ALONE), False)])
def test_the_record_says_whether_requests_may_be_joined(options: tuple[str, ...], joins: bool) -> None:
    artifact = Artifact("ort", "int8", "onnx", None, None, (), SIGNATURE, CLASS_A, 8, options)
    found = ready(placeholder(DOMAIN, M, VariantName("ort-int8-dynamic"), "ort", 8), Digest("0" * 64), artifact, frozenset())
    assert found.joins is joins
