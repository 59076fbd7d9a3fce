"""What writes of a killed profiler leave on a local disk: real files, a fake etcd, virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import pytest
from batch_world import World

from tessera.coord import keys
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
