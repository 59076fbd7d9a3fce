"""What writes of a killed profiler leave on a local disk: real files, a fake etcd, virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pytest
from batch_world import World, logits, tens

from tessera.coord import keys
from tessera.domain.errors import Unavailable
from tessera.domain.ids import DEFAULT_TRUST_DOMAIN
from tessera.domain.records import BatchState
from tessera.profiler.batch.core.locations import location
from tessera.testing.builders import a_batch

FOLDER = ("out/manifest.json", "out/part-00000.npz", "out/part-00001.npz")


def half_written(world: World, name: str) -> Iterator[object]:
    """A write that got no further; what it has opened lies there as long as this is held."""

    def pieces(file: BinaryIO) -> Iterator[None]:
        file.write(b"half")
        yield

    before = set((world.root / name).parent.glob(".unfinished-*"))
    writing = world.storage.write(location("x", str(world.root / name)), pieces)
    next(writing)
    assert len(set((world.root / name).parent.glob(".unfinished-*")) - before) == 1
    return writing


@pytest.mark.parametrize(
    ("output", "killed_at"),
    [
        ("out.npz", ("out.npz.parts/manifest.json",)),
        ("out", ("out/manifest.json",)),
        ("out", ("out/part-00001.npz", "out/part-00000.json")),
        ("out.npz", ("out.npz.parts/part-00001.npz", "out.npz", "out.npz.manifest.json")),
    ],
)
async def test_what_a_killed_profiler_was_writing_neither_stays_nor_is_in_the_way(
    world: World, output: str, killed_at: tuple[str, ...]
) -> None:
    """The job is taken up by another; what others write in the same folder is left alone."""
    world.save(6)
    others = [world.root / ".unfinished-0123456789abcdef-other.npz", world.root / ".unfinished-mine-out.npz"]
    for path in others:
        path.write_text("of somebody else")
    left = [half_written(world, name) for name in killed_at]
    job = a_batch(
        state=BatchState.RUNNING,
        attempts=1,
        input_url=f"file://{world.root}/in.npz",
        output_url=f"file://{world.root}/{output}",
        batch_size=2,
    )
    await world.put(keys.batch(DEFAULT_TRUST_DOMAIN, job.job_id), job)
    async with world.running():
        await world.done()
    assert len(left) == len(killed_at)
    found = {str(path.relative_to(world.root)) for path in world.root.rglob("*")}
    written = {"out.npz", "out.npz.manifest.json"} if output == "out.npz" else {"out", *FOLDER}
    assert found == {"in.npz", *(path.name for path in others), *written}


async def test_what_a_killed_profiler_was_writing_is_no_output_that_exists(world: World) -> None:
    world.save(6)
    left = half_written(world, "out/manifest.json")
    async with world.running():
        await world.desk().submit(world.wanted("out"))
        await world.done()
    assert left is not None
    assert {str(path.relative_to(world.root)) for path in world.root.rglob("*")} == {"in.npz", "out", *FOLDER}


DONE_FILES = ["in.npz", "out.npz", "out.npz.manifest.json"]


def begin_tidying(world: World) -> None:
    """The first things that go."""
    for path in (world.root / "out.npz.parts").glob("part-00000.*"):
        path.unlink()


def age_of(world: World, name: str = "out.npz") -> int:
    return (world.root / name).stat().st_mtime_ns


async def test_a_job_killed_while_it_tidies_up_is_done(world: World) -> None:
    """Its working manifest still lies beside the one that says done, and its first part does not."""
    world.save(10)
    await world.cut_off("profiler.batch.finished", world.wanted())
    begin_tidying(world)
    written_ns = age_of(world)
    world.model.asked.clear()
    async with world.running():
        job = await world.done()
    assert (job.rows_done, job.parts, world.model.asked, age_of(world)) == (10, 3, [], written_ns)
    assert sorted(path.name for path in world.root.iterdir()) == DONE_FILES


async def test_a_folder_whose_notes_were_being_removed_is_done(world: World) -> None:
    world.save(10)
    await world.cut_off("profiler.batch.finished", world.wanted("out"))
    (world.root / "out" / "part-00000.json").unlink()
    world.model.asked.clear()
    async with world.running():
        await world.done()
    assert world.model.asked == []
    assert sorted(path.name for path in (world.root / "out").iterdir()) == ["manifest.json", *(f"part-0000{n}.npz" for n in range(3))]


@pytest.mark.parametrize("passes", [True, False])
async def test_what_cannot_be_removed_fails_no_job_and_a_later_one_removes_it(
    world: World, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.save(10)
    remove, tried = world.storage.remove, 0

    def failing(folder: Any, names: Sequence[str]) -> None:
        nonlocal tried
        if not names:
            return
        tried += 1
        begin_tidying(world)
        if not passes or tried == 1:
            raise Unavailable("the storage is away")
        remove(folder, names)

    monkeypatch.setattr(world.storage, "remove", failing)
    async with world.running():
        await world.desk().submit(world.wanted())
        job = await world.ended(step_s=5.0)
        assert job.state is BatchState.DONE
        assert logits(world) == tens(10)
        if passes:
            assert (job.reason, tried) == ("", 2)
            return
        assert job.reason.startswith("complete, but not tidied up: removing parts and notes failed for ")
        assert job.reason.endswith("at last: the storage is away")
        monkeypatch.setattr(world.storage, "remove", remove)
        written_ns = age_of(world)
        world.model.asked.clear()
        job = await world.done((await world.desk().submit(world.wanted(if_exists="resume"))).job_id)
    assert (job.rows_done, world.model.asked, age_of(world)) == (10, [], written_ns)
    assert sorted(path.name for path in world.root.iterdir()) == DONE_FILES


async def test_an_overwriting_goes_on_and_not_the_done_output_that_it_replaces(world: World) -> None:
    """What an earlier job has done, tidied up or not, is not what a job that began anew has to answer."""
    world.save(10)
    await world.cut_off("profiler.batch.finished", world.wanted())
    async with world.running():
        await world.done()
    world.model.asked.clear()
    left = await world.cut_off("profiler.batch.note", world.wanted(if_exists="overwrite"))
    assert (left.job_id, world.model.asked) == ("b2", [[0.0, 1.0], [2.0, 3.0]])
    async with world.running():
        await world.done("b2")
        assert [row for rows in world.model.asked for row in rows] == [float(row) for row in range(10)]
        world.model.hold, world.model.hold_after = asyncio.Event(), 0
        world.model.asked.clear()
        await world.desk().submit(world.wanted(if_exists="overwrite"))
        await world.until(lambda job: bool(world.model.asked), "b3", step_s=0.1)
        await world.desk().cancel(DEFAULT_TRUST_DOMAIN, (await world.job("b3")).job_id)
        assert (await world.ended("b3")).state is BatchState.CANCELLED
        world.model.hold = None
        world.model.asked.clear()
        await world.done((await world.desk().submit(world.wanted(if_exists="resume"))).job_id)
    assert [row for rows in world.model.asked for row in rows] == [float(row) for row in range(10)], "b3's, not what b2 had done"
