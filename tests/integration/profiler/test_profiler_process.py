"""The profiler as a process over a real etcd: streams, cancels, kill -9 in the middle of a run."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from tessera.api.profiler.v1 import profiler_pb2
from tessera.coord import keys
from tessera.domain.errors import ModelNotFound, NotFound, TesseraError

pytestmark = pytest.mark.slow


def request(**fields: Any) -> profiler_pb2.RunProfileRequest:
    return profiler_pb2.RunProfileRequest(**{"trust_domain": "default", "model": "digits", **fields})


async def events(bench: Any, **fields: Any) -> list[profiler_pb2.ProfileEvent]:
    return [event async for event in bench.stub.RunProfile(request(**fields), timeout=60)]


async def rows(bench: Any, count: int) -> None:
    """Waits until that many rows are stored."""
    async with asyncio.timeout(20):
        while True:
            found = await bench.profiles()
            if found and len(found[0].rows) >= count:
                return
            await asyncio.sleep(0.02)


async def test_a_run_streams_progress_and_stores_the_profile(bench: Any) -> None:
    quick = await events(bench, quick=True)
    assert quick[-1].fraction == 1.0
    assert [(row.batch, row.threads) for row in quick[-1].profile.rows] == [(1, 1)]
    assert quick[-1].profile.quick
    await events(bench)
    (stored,) = await bench.profiles()
    sweeps = [(1, 1), (1, 2), (2, 1)]
    assert [(row.batch, row.threads, row.concurrency) for row in stored.rows] == [(b, t, c) for t, c in sweeps for b in (1, 2, 4, 8)]
    assert {row.spread for row in stored.rows} == {0.01}
    assert not stored.quick
    assert [(load.start_path, sum(stage.ms for stage in load.stages)) for load in stored.load] == [("bind", 3.0)]
    assert len(bench.agent.rows) == 12, "the quick row was not measured twice"
    with pytest.raises(NotFound) as raised:
        await events(bench, model="unknown")
    assert raised.value.kind == ModelNotFound.kind


async def test_a_client_that_cancels_ends_the_measuring_on_the_node(bench: Any) -> None:
    bench.agent.row_s = 0.3
    call = bench.stub.RunProfile(request())
    async for event in call:
        if "batch 1, 1 thread:" in event.message:
            break
    async with asyncio.timeout(10):
        while bench.agent.begun < 2:  # noqa: ASYNC110 - another process tells, by a call
            await asyncio.sleep(0.01)
    call.cancel()
    async with asyncio.timeout(10):
        await bench.agent.cancelled.wait()
    done = len(bench.agent.rows)
    assert done < 12
    (stored,) = await bench.profiles()
    assert len(stored.rows) >= 1
    bench.agent.row_s = 0.0
    await events(bench)
    assert len((await bench.profiles())[0].rows) == 12


async def test_a_killed_profiler_loses_one_row_at_most(bench: Any) -> None:
    bench.agent.row_s = 0.2
    run = asyncio.get_running_loop().create_task(events(bench))
    await rows(bench, 3)
    bench.end(signal.SIGKILL)
    with pytest.raises(TesseraError):
        await run
    measured = len(bench.agent.rows)
    bench.agent.row_s = 0.0
    await bench.start()
    assert len((await bench.profiles())[0].rows) >= 3
    await events(bench)
    assert len((await bench.profiles())[0].rows) == 12
    assert len(bench.agent.rows) <= measured + 1 + 9


async def test_a_graceful_end_leaves_nothing_behind(bench: Any) -> None:
    for _ in range(400):
        if (await bench.coordinator.list(keys.SERVICES)).items:
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError("the profiler did not say where it answers")
    assert bench.end(signal.SIGTERM) == 0
    assert (await bench.coordinator.list(keys.SERVICES)).items == ()
