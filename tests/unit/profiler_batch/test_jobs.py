"""Whole jobs: real files, a model of pretence, a fake etcd, virtual time."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
import pytest
from batch_world import World, logits, tens

from tessera.coord import keys
from tessera.domain.errors import (
    Internal,
    ModelNotFound,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from tessera.domain.ids import DEFAULT_TRUST_DOMAIN, InstanceId, JobId, NodeId
from tessera.domain.objectives import Objectives
from tessera.domain.records import BatchState, LoadRecord, LoadState
from tessera.profiler.batch.core.states import MAX_ATTEMPTS
from tessera.testing.builders import a_batch, a_variant_key


@pytest.fixture
def busy() -> LoadRecord:
    return LoadRecord(InstanceId("i1"), NodeId("n1"), a_variant_key(), LoadState.OVERLOADED, 0.0, "")


async def test_every_row_is_answered_in_its_place(world: World) -> None:
    world.save(11)
    async with world.running():
        submitted = await world.desk().submit(world.wanted(objectives=Objectives(latency_ms=50.0)))
        job = await world.done()
    assert submitted.state is BatchState.QUEUED
    assert logits(world) == tens(11)
    assert (job.rows, job.rows_done, job.rows_failed, job.parts) == (11, 11, 0, 3)
    assert job.started_unix_s <= job.ended_unix_s
    assert world.model.objectives == Objectives(latency_ms=50.0)
    assert sorted(path.name for path in world.root.iterdir()) == ["in.npz", "out.npz", "out.npz.manifest.json"]
    manifest = json.loads((world.root / "out.npz.manifest.json").read_text())
    assert (manifest["rows"], manifest["rows_failed"], manifest["done"]) == (11, 0, True)
    assert manifest["size_bytes"] == (world.root / "out.npz").stat().st_size


async def test_a_folder_keeps_its_parts_and_a_manifest_of_them(world: World) -> None:
    world.save(6)
    async with world.running():
        await world.desk().submit(world.wanted("out"))
        await world.done()
    assert sorted(path.name for path in (world.root / "out").iterdir()) == ["manifest.json", "part-00000.npz", "part-00001.npz"]
    assert logits(world, "out/part-00000.npz") + logits(world, "out/part-00001.npz") == tens(6)
    parts = json.loads((world.root / "out" / "manifest.json").read_text())["parts"]
    assert [(part["first"], part["rows"]) for part in parts] == [(0, 4), (4, 2)]


@pytest.mark.parametrize("in_flight", [1, 2])
async def test_requests_are_few_at_a_time(world: World, in_flight: int) -> None:
    world.limits = replace(world.limits, in_flight=in_flight, part_rows=12)
    world.save(12)
    world.model.hold, world.model.hold_after = asyncio.Event(), 1  # the first answers say how long a part is, and are waited for
    async with world.running():
        await world.desk().submit(world.wanted())
        await world.until(lambda job: len(world.model.asked) > 1 and world.model.most_at_once == in_flight, step_s=0.1)
        await asyncio.sleep(0.05)
        world.model.hold.set()
        await world.done()
    assert world.model.most_at_once == in_flight
    assert all(len(rows) == 2 for rows in world.model.asked)
    assert logits(world) == tens(12)


async def test_a_bad_row_is_an_error_of_its_own(world: World) -> None:
    world.save(8)
    world.model.bad = {3.0}
    async with world.running():
        await world.desk().submit(world.wanted())
        job = await world.done()
    assert (job.rows_done, job.rows_failed) == (8, 1)
    found = logits(world)
    assert np.isnan(found[3])
    assert found[:3] + found[4:] == tens(8)[:3] + tens(8)[4:]
    (error,) = json.loads((world.root / "out.npz.manifest.json").read_text())["parts"][0]["errors"]
    assert error == {"row": 3, "kind": "invalid_input", "message": "image: is bad"}


async def test_too_many_bad_rows_end_the_job_and_it_may_be_resumed_with_more(world: World) -> None:
    world.save(12)
    world.model.bad = {1.0, 6.0, 7.0}
    async with world.running():
        await world.desk().submit(world.wanted(max_errors=2))
        job = await world.ended()
        assert job.state is BatchState.FAILED
        assert "3 rows failed, at most max_errors = 2 may; row 6: invalid_input: image: is bad" in job.reason
        assert job.parts == 1
        world.model.asked.clear()
        await world.desk().submit(world.wanted(max_errors=3, if_exists="resume"))
        job = await world.done("b2")
    assert job.rows_failed == 3
    assert min(value for rows in world.model.asked for value in rows) == 4.0, "the first part was not asked again"
    assert [row for row, value in enumerate(logits(world)) if np.isnan(value)] == [1, 6, 7]


async def test_what_passes_is_tried_again(world: World) -> None:
    world.save(4)
    world.model.fail = [Unavailable("gone"), ResourceExhausted("full")]
    async with world.running():
        await world.desk().submit(world.wanted())
        await world.done()
    assert logits(world) == tens(4)


@pytest.mark.parametrize("kind", ["npz", "jsonl"])
async def test_an_input_that_cannot_be_read_for_a_while_is_read_again(world: World, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world.save(200)
    if kind == "jsonl":
        lines = [json.dumps({"image": [float(row)] * 64}) for row in range(200)]
        (world.root / "in.jsonl").write_text("\n".join(lines))
    failing = 0

    class Flaky(io.RawIOBase):
        """Reads small pieces; the first ones after a good while fail."""

        def __init__(self, file: BinaryIO) -> None:
            self.file, self.reads = file, 0

        def readinto(self, buffer: Any) -> int:
            nonlocal failing
            self.reads += 1
            if failing and self.reads > 20:
                failing -= 1
                raise Unavailable("the storage is away")
            return self.file.readinto(memoryview(buffer)[:1000])  # type: ignore[attr-defined, no-any-return] # a buffered file

        def seek(self, offset: int, whence: int = 0) -> int:
            return self.file.seek(offset, whence)

        def tell(self) -> int:
            return self.file.tell()

        def readable(self) -> bool:
            return True

        def seekable(self) -> bool:
            return True

        def close(self) -> None:
            self.file.close()
            super().close()

    opened = world.storage.open
    monkeypatch.setattr(world.storage, "open", lambda place: io.BufferedReader(Flaky(opened(place)), 1000))
    async with world.running():
        await world.desk().submit(world.wanted(source=f"in.{kind}"))
        failing = 3
        await world.done()
    assert failing == 0
    assert logits(world) == tens(200)


async def test_what_does_not_pass_in_time_ends_the_job_with_words(world: World) -> None:
    world.save(4)
    world.model.fail = [Unavailable("gone") for _ in range(1000)]
    async with world.running():
        await world.desk().submit(world.wanted())
        job = await world.ended(step_s=5.0)
    assert job.state is BatchState.FAILED
    assert job.reason.startswith("unavailable: the request for rows 0 to 1 failed for ")
    assert job.reason.endswith("at last: gone")


async def test_a_model_that_is_gone_ends_the_job(world: World) -> None:
    world.save(4)
    world.model.fail = [ModelNotFound("digits")]
    async with world.running():
        await world.desk().submit(world.wanted())
        job = await world.ended()
    assert (job.state, job.reason) == (BatchState.FAILED, "not_found: model 'digits' is not registered")


async def test_a_row_at_which_the_backend_fails_is_an_error_of_that_row(world: World) -> None:
    world.save(2)
    world.model.fail = [Internal("whole batch"), Internal("row 0")]
    async with world.running():
        await world.desk().submit(world.wanted())
        job = await world.done()
    assert job.rows_failed == 1
    assert np.isnan(logits(world)[0])


# Pausing


async def test_an_overloaded_instance_pauses_the_job_and_calm_lets_it_go_on(world: World, busy: LoadRecord) -> None:
    world.save(40)
    key = keys.load(DEFAULT_TRUST_DOMAIN, busy.node_id, busy.instance_id)
    await world.put(key, busy)
    async with world.running():
        await world.desk().submit(world.wanted())
        job = await world.until(lambda job: job.state is BatchState.PAUSED)
        assert job.reason == "instance i1 of digits@1/aten-fp32 on n1 is overloaded"
        await world.clock.advance(60.0)
        assert world.model.asked == []
        await world.remove(key)
        await asyncio.sleep(0.01)
        await world.clock.advance(world.limits.calm_s - 1.0)
        assert world.model.asked == []
        assert (await world.done()).rows_done == 40
    assert logits(world) == tens(40)


# Ends and new beginnings


@pytest.mark.parametrize("point", ["profiler.batch.part", "profiler.batch.note", "profiler.batch.joined"])
async def test_a_job_goes_on_where_its_last_complete_part_ends(world: World, point: str) -> None:
    """The work is cut off at the point, without a word to etcd, as a kill does; a new profiler takes it up."""
    world.save(10)
    await world.cut_off(point, world.wanted())
    asked = len(world.model.asked)
    async with world.running():
        await world.done()
    assert logits(world) == tens(10)
    again = [row for rows in world.model.asked[asked:] for row in rows]
    assert (
        again
        == {
            "profiler.batch.part": [float(row) for row in range(10)],
            "profiler.batch.note": [float(row) for row in range(4, 10)],
            "profiler.batch.joined": [],
        }[point]
    )


async def test_a_job_that_ends_the_profiler_each_time_is_given_up(world: World) -> None:
    world.save(4)
    job = a_batch(
        state=BatchState.RUNNING, attempts=MAX_ATTEMPTS, input_url=f"file://{world.root}/in.npz", output_url=f"file://{world.root}/o.npz"
    )
    await world.put(keys.batch(DEFAULT_TRUST_DOMAIN, job.job_id), job)
    async with world.running():
        job = await world.ended()
    assert (job.state, job.reason) == (BatchState.FAILED, "the profiler ended 5 times while it worked on the next part")


async def test_cancelling_ends_a_job_under_way_and_a_queued_one_at_once(world: World) -> None:
    world.save(40)
    world.model.hold = asyncio.Event()
    desk = world.desk()
    async with world.running():
        await desk.submit(world.wanted())
        await desk.submit(world.wanted("other.npz"))
        await world.until(lambda job: bool(world.model.asked), step_s=0.1)
        queued = await desk.cancel(DEFAULT_TRUST_DOMAIN, JobId("b2"))
        assert (queued.state, queued.reason) == (BatchState.CANCELLED, "cancelled before it began")
        assert (await desk.cancel(DEFAULT_TRUST_DOMAIN, JobId("b1"))).cancelling
        job = await world.ended()
    assert (job.state, job.reason) == (BatchState.CANCELLED, "cancelled; what is written stays")
    assert (await desk.cancel(DEFAULT_TRUST_DOMAIN, JobId("b1"))).state is BatchState.CANCELLED
    assert not (world.root / "out.npz").exists()
    world.model.hold = None
    async with world.running():
        await desk.submit(world.wanted(if_exists="resume"))
        await world.done("b3")
    assert logits(world) == tens(40)


async def test_jobs_run_one_after_another(world: World) -> None:
    world.save(4)
    async with world.running():
        for name in ("a.npz", "b.npz", "c.npz"):
            await world.desk().submit(world.wanted(name))
            await world.clock.advance(1.0)
        ended = [await world.done(f"b{number}") for number in (1, 2, 3)]
    assert [job.ended_unix_s for job in ended] == sorted(job.ended_unix_s for job in ended)


async def test_old_jobs_are_forgotten(world: World) -> None:
    world.limits = replace(world.limits, kept=1)
    world.save(2)
    async with world.running():
        for number in (1, 2):
            await world.desk().submit(world.wanted(f"{number}.npz"))
            await world.done(f"b{number}")
        async with asyncio.timeout(5):
            while len(await world.desk().all_of(DEFAULT_TRUST_DOMAIN)) > 1:
                await asyncio.sleep(0.01)
                await world.clock.advance(0.1)
    assert [job.job_id for job in await world.desk().all_of(DEFAULT_TRUST_DOMAIN)] == ["b2"]


async def test_who_watches_hears_of_progress_and_the_end(world: World) -> None:
    world.save(12)
    desk = world.desk()
    async with world.running():
        await desk.submit(world.wanted())

        async def watch() -> list[Any]:
            return [job async for job in desk.watch(DEFAULT_TRUST_DOMAIN, JobId("b1"))]

        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch())
            await world.done()
            async with asyncio.timeout(5):
                while not watching.done():
                    await asyncio.sleep(0.002)
                    await world.clock.advance(0.1)
    seen = watching.result()
    assert seen[-1].state is BatchState.DONE
    assert [job.rows_done for job in seen] == sorted(job.rows_done for job in seen)
    with pytest.raises(NotFound, match="batch job 'b9' is not known"):
        await desk.get(DEFAULT_TRUST_DOMAIN, JobId("b9"))


# Outputs that exist
