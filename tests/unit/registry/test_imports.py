"""Registrations as jobs: recognised, joined, failed, resumed."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from registry_world import CLASS_A, DOMAIN, Registry, stored, tensor

from tessera import failpoint
from tessera.coord import keys
from tessera.coord.interface import ModRevisionIs, Put
from tessera.coord.records import encode
from tessera.domain.errors import AlreadyExists, FailedPrecondition, Internal, InvalidInput, Unsupported
from tessera.domain.ids import ModelName
from tessera.domain.records import VariantState
from tessera.registry.core.manifest import SourceFile
from tessera.tensorstore.artifact import digest_of
from tessera.testing.builders import a_model, a_signature, a_version, a_version_key

FILES = {"a": tensor(1), "small": tensor(2, 64)}


async def variants(registry: Registry, name: str = "m") -> dict[str, VariantState]:
    return {v.key.variant: v.state for v in (await registry.catalogue.model(DOMAIN, ModelName(name))).variants}


async def test_registered_is_durable_and_says_what_was_made(registry: Registry) -> None:
    events = await registry.register("m", FILES, task="t", dataset="d")
    assert [e.step for e in events] == ["importing", "storing", "registered"]
    assert [e.sequence for e in events] == sorted({e.sequence for e in events})
    known = await registry.catalogue.model(DOMAIN, ModelName("m"))
    assert (known.model.task, known.model.dataset, known.versions[0].source_kind) == ("t", "d", "directory")
    assert await variants(registry) == {"aten-fp32": VariantState.READY, "ort-fp32": VariantState.PENDING}
    aten = next(v for v in known.variants if v.key.variant == "aten-fp32")
    assert aten.artifact is not None
    assert aten.tensor_bytes == 8192 + 64
    for blob in (await registry.blobs.artifact(aten.artifact)).blobs():
        assert registry.repository.verify(blob.digest)


async def test_same_content_again_starts_nothing(registry: Registry) -> None:
    await registry.register("m", FILES)
    events = await registry.register("m", FILES)
    assert len(registry.importer.runs) == 1
    assert all(e.unchanged for e in events)
    assert events[-1].version is not None
    assert events[-1].version.version == 1


async def test_unchanged_needs_no_upload(registry: Registry) -> None:
    await registry.register("m", FILES)
    registration = registry.registration("m", FILES)
    registry.uploads.sweep(1e12, [])
    events = [event async for event in registry.imports.register(registration, wait=False)]
    assert events[-1].unchanged


async def test_nothing_is_asked_for_that_was_registered_before(registry: Registry) -> None:
    registration = registry.registration("m", FILES)
    await registry.register("m", FILES)
    registry.uploads.sweep(1e12, [])
    assert await registry.imports.missing(replace(registration, accuracy=0.5)) == []
    assert await registry.imports.missing(replace(registration, task="other")) == [digest_of(data) for data in FILES.values()]
    await registry.catalogue.delete(DOMAIN, ModelName("m"), None)
    assert len(await registry.imports.missing(registration)) == len(FILES)


async def test_the_name_of_an_alias_is_refused_before_anything_is_sent(registry: Registry) -> None:
    registration = registry.registration("favourite", {"w": tensor(1)})
    await registry.register("m", FILES)
    await registry.aliases.set(DOMAIN, ModelName("favourite"), ModelName("m"), None)
    registry.uploads.sweep(1e12, [])
    with pytest.raises(AlreadyExists, match="favourite"):
        await registry.imports.missing(registration)


async def test_accuracy_is_corrected_without_a_new_version(registry: Registry) -> None:
    await registry.register("m", FILES)
    registration = replace(registry.registration("m", FILES), accuracy=0.9)
    assert [e.unchanged async for e in registry.imports.register(registration, wait=False)][-1]
    known = await registry.catalogue.model(DOMAIN, ModelName("m"))
    assert (known.model.accuracy, len(known.versions)) == (0.9, 1)


async def test_the_same_at_the_same_time_is_one_import(registry: Registry) -> None:
    registry.importer.gate = asyncio.Event()
    both = [asyncio.create_task(registry.register("m", FILES)) for _ in range(3)]
    await asyncio.sleep(0.05)
    registry.importer.gate.set()
    events = await asyncio.gather(*both)
    assert len(registry.importer.runs) == 1
    assert {e[-1].version.version for e in events if e[-1].version} == {1}


async def test_two_sources_of_one_name_at_the_same_time_are_two_versions(registry: Registry) -> None:
    await asyncio.gather(registry.register("m", {"w": tensor(1)}), registry.register("m", {"w": tensor(2)}))
    assert [v.version for v in (await registry.catalogue.model(DOMAIN, ModelName("m"))).versions] == [1, 2]


async def test_siblings_count_what_was_there_before(registry: Registry) -> None:
    await registry.register("m", {"trunk": tensor(1), "head": tensor(2)})
    await registry.register("n", {"trunk": tensor(1), "head": tensor(3)})
    found = {m.model.name: next(v for v in m.variants if v.backend == "aten") for m in await registry.catalogue.models(DOMAIN)}
    assert (found[ModelName("m")].tensor_bytes_shared, found[ModelName("n")].tensor_bytes_shared) == (0, 8192)
    assert found[ModelName("n")].tensor_bytes == 2 * 8192


async def test_missing_upload_is_named_before_a_job_exists(registry: Registry) -> None:
    lost = SourceFile("model.safetensors", 3, digest_of(b"abc"))
    registration = replace(registry.registration("m", FILES), files=(lost,))
    with pytest.raises(FailedPrecondition, match=r"1 of 1 files were not uploaded, the first is model\.safetensors"):
        [event async for event in registry.imports.register(registration, wait=False)]
    assert await registry.catalogue.jobs(DOMAIN) == []


async def test_failed_import_leaves_nothing_and_may_be_tried_again(registry: Registry) -> None:
    registry.importer.errors = [Unsupported("operator mylib::f")]
    before = stored(registry.repository)
    with pytest.raises(Unsupported, match="mylib::f"):
        await registry.register("m", FILES)
    assert await registry.catalogue.jobs(DOMAIN) == []
    assert stored(registry.repository) == before

    async def tidied() -> bool:
        return not list((registry.folder / "work").iterdir())

    await registry.settled(tidied)
    assert (await registry.register("m", FILES))[-1].step == "registered"


async def test_export_that_fails_costs_the_ort_variant_only(registry: Registry) -> None:
    registry.importer.onnx = False
    events = await registry.register("m", FILES, wait=True)
    assert [e.step for e in events][-2:] == ["registered", "done"]
    known = await registry.catalogue.model(DOMAIN, ModelName("m"))
    ort = next(v for v in known.variants if v.backend == "ort")
    assert (ort.state, ort.reason) == (VariantState.FAILED, "ONNX export failed: no such operator")
    assert await registry.catalogue.jobs(DOMAIN) == []


async def test_follower_that_goes_away_does_not_end_the_job(registry: Registry) -> None:
    registry.importer.gate = asyncio.Event()
    events = registry.imports.register(registry.registration("m", FILES), wait=True)
    first = await anext(events)
    await events.aclose()
    registry.importer.gate.set()
    seen = []
    async for event in registry.log.follow(first.job_id, first.sequence):
        seen.append(event)
        if event.step == "registered":
            break
    assert [e.step for e in seen] == ["storing", "registered"]


@pytest.mark.parametrize("point", ["registry.before_import", "registry.store_blob", "registry.before_commit"])
async def test_killed_before_the_commit_it_is_done_again(registry: Registry, point: str) -> None:
    with failpoint.active(f"{point}=delay(30)"):
        task = asyncio.create_task(registry.register("m", FILES))
        await registry.settled(lambda: _hit(point))
        await registry.crash()
        task.cancel()
    assert await registry.catalogue.models(DOMAIN) == []
    await registry.shelf.sweep()
    await registry.imports.resume()

    async def made() -> bool:
        return bool(await registry.catalogue.models(DOMAIN))

    await registry.settled(made)
    assert await variants(registry) == {"aten-fp32": VariantState.READY, "ort-fp32": VariantState.PENDING}
    assert (await registry.register("m", FILES))[-1].unchanged


async def _hit(point: str) -> bool:
    return failpoint.count(point) > 0


async def test_killed_after_the_commit_only_variants_go_on(registry: Registry) -> None:
    with failpoint.active("registry.after_commit=delay(30)"):
        task = asyncio.create_task(registry.register("m", FILES))
        await registry.settled(lambda: _hit("registry.after_commit"))
        await registry.crash()
        task.cancel()
    await registry.imports.resume()
    await registry.node("n1", CLASS_A)

    async def ended() -> bool:
        return not await registry.catalogue.jobs(DOMAIN)

    await registry.settled(ended)
    assert len(registry.importer.runs) == 1
    assert await variants(registry) == {"aten-fp32": VariantState.READY, "ort-fp32": VariantState.READY}


@pytest.mark.parametrize("onnx", [True, False])
async def test_commit_whose_answer_is_lost_is_a_registration(registry: Registry, monkeypatch: pytest.MonkeyPatch, onnx: bool) -> None:
    monkeypatch.setattr("tessera.registry.loops.imports._RETRY_S", 0.01)
    registry.importer.onnx = onnx
    with failpoint.active("registry.before_commit=delay(0.2)"):
        task = asyncio.create_task(registry.register("m", FILES))
        await registry.settled(lambda: _hit("registry.before_commit"))
        registry.coordinator.lose_answer()
        events = await task
    assert any(e.message.startswith("waiting: the connection to the fake etcd was lost") for e in events)
    assert (events[-1].step, events[-1].version) == ("registered", a_version_key("m"))
    assert [(job.step, job.version) for job in await registry.catalogue.jobs(DOMAIN)] == ([("variants", 1)] if onnx else [])


async def test_import_that_kills_the_registry_again_and_again_is_given_up(registry: Registry) -> None:
    for _ in range(2):
        registry.importer.gate = asyncio.Event()
        if not await registry.catalogue.jobs(DOMAIN):
            task = asyncio.create_task(registry.register("m", FILES))
        await registry.settled(lambda: _runs(registry))
        registry.importer.runs.clear()
        await registry.crash()
        task.cancel()
        await registry.imports.resume()

    async def ended() -> bool:
        return not await registry.catalogue.jobs(DOMAIN)

    await registry.settled(ended)
    (job,) = registry.log._jobs
    with pytest.raises(Internal, match="died 2 times"):
        raise next(e.error for e in [event async for event in registry.log.follow(job)] if e.error)
    assert await registry.catalogue.models(DOMAIN) == []


async def _runs(registry: Registry) -> bool:
    return bool(registry.importer.runs)


async def test_resumed_job_counts_its_events_on(registry: Registry) -> None:
    registry.importer.gate = asyncio.Event()
    events = registry.imports.register(registry.registration("m", FILES), wait=False)
    first = await anext(events)
    await registry.crash()
    await events.aclose()
    registry.importer.gate.set()
    await registry.imports.resume()
    async for event in registry.log.follow(first.job_id, first.sequence):
        assert event.sequence > first.sequence
        if event.step == "registered":
            break


async def test_name_taken_by_an_alias_while_it_was_imported(registry: Registry) -> None:
    await registry.register("base", {"w": tensor(7)})
    registry.importer.gate = asyncio.Event()
    task = asyncio.create_task(registry.register("m", FILES))
    await registry.settled(lambda: _runs(registry))
    await registry.aliases.set(DOMAIN, ModelName("m"), ModelName("base"), None)
    registry.importer.gate.set()
    with pytest.raises(Exception, match="'m' is an alias"):
        await task
    assert [m.model.name for m in await registry.catalogue.models(DOMAIN)] == ["base"]
    await registry.shelf.sweep()
    known = await registry.catalogue.model(DOMAIN, ModelName("base"))
    assert {v.artifact for v in known.variants if v.artifact} <= stored(registry.repository)


async def test_bad_job_record_is_said_not_guessed(registry: Registry) -> None:
    from tessera.coord.interface import ModRevisionIs, Put

    key = keys.jobs(DOMAIN) + "import-x"
    await registry.coordinator.transact([ModRevisionIs(key, 0)], [Put(key, b"{}")])
    with pytest.raises(Exception, match="JobRecord"):
        await registry.imports.resume()


def test_errors_keep_their_words() -> None:
    assert "a" in str(InvalidInput("a", 1, "b"))


async def test_a_model_that_does_not_fit_its_task_is_refused_and_leaves_nothing(registry: Registry) -> None:
    other = a_version("other", signature=a_signature(batched=False))
    for key, record in (
        (keys.model(DOMAIN, ModelName("other")), a_model("other", task="t")),
        (keys.version(a_version_key("other")), other),
    ):
        await registry.coordinator.transact([ModRevisionIs(key, 0)], [Put(key, encode(record))])
    with pytest.raises(InvalidInput, match=r"task 't': .* in model 'other'"):
        await registry.register("m", FILES, task="t")
    assert [known.model.name for known in await registry.catalogue.models(DOMAIN)] == ["other"]
    assert not await registry.catalogue.jobs(DOMAIN)
    await registry.register("m", FILES, task="another")
    # A model is not held to what it was before.
    await registry.register("other", FILES, task="t")
