"""Parked instances in real runtimes: nothing of a session is left, and the next request answers as if nothing had been."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from tessera.domain.errors import ResourceExhausted

IDLE_S = 1.5


def threads(pid: int) -> set[str]:
    return {each.name for each in Path(f"/proc/{pid}/task").iterdir()}


async def instances(runtime) -> dict[str, dict]:
    return {item["instance_id"]: item for item in (await runtime.control.call("status"))["instances"]}


async def until_parked(runtime, *names: str) -> None:
    async with asyncio.timeout(20):
        while True:
            found = await instances(runtime)
            if all(found[name]["parked"] for name in names):
                return
            await asyncio.sleep(0.02)


async def until_ended(runtime, before: set[str], at_least: int) -> None:
    """Waits until so many of the threads that there were have ended: those of pools stay, and become more now and then."""
    async with asyncio.timeout(20):
        while len(before - threads(runtime.pid)) < at_least:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("backend", ["ort", "aten"])
async def test_the_next_request_answers_in_the_same_generation_with_the_same_bits(zygotes, store, kit, backend):
    runtime = await zygotes(backend).fork(idle_after_s=IDLE_S, threads=3)
    model = kit.linear(store, backend, seed=1, depth=2)
    generation = await runtime.load(model.artifact, "one")
    client = await runtime.data()
    x = np.random.default_rng(0).standard_normal((3, kit.width)).astype(np.float32)
    first = kit.output(await client.request(kit.header(generation), kit.request(x)))
    assert not (await instances(runtime))["one"]["parked"]
    opened = threads(runtime.pid)
    for _ in range(3):
        await until_parked(runtime, "one")
        if backend == "ort":
            await until_ended(runtime, opened, 2)  # a session with three threads has two of its own
        assert store.artifact(model.artifact).tensors[0].digest in runtime.maps()
        assert set((await runtime.control.call("hello"))["holds"]) == {blob.digest for blob in store.artifact(model.artifact).blobs()}
        answers = await asyncio.gather(*(client.request(kit.header(generation), kit.request(x)) for _ in range(5)))
        assert all(kit.output(answer).tobytes() == first.tobytes() for answer in answers)
        status = (await instances(runtime))["one"]
        assert not status["parked"]
        opened = threads(runtime.pid)
    assert (status["served"], status["queue"], status["executing"]) == (16, 0, 0)


async def test_only_the_idle_one_of_two_is_parked(zygotes, store, kit):
    runtime = await zygotes("ort").fork(idle_after_s=2 * IDLE_S)
    busy, idle = kit.linear(store, "ort", seed=1), kit.linear(store, "ort", seed=2)
    generation = await runtime.load(busy.artifact, "busy")
    await runtime.load(idle.artifact, "idle")
    client = await runtime.data()
    x = np.ones((1, kit.width), np.float32)

    async def keep_busy() -> None:
        while True:
            answer = kit.output(await client.request(kit.header(generation), kit.request(x)))
            assert np.abs(answer - busy.expected(x)).max() < 1e-4
            await asyncio.sleep(0.01)

    work = asyncio.ensure_future(keep_busy())
    await until_parked(runtime, "idle")
    status = (await instances(runtime))["busy"]
    assert not status["parked"]
    assert 0 < status["run_p50_ms"] <= status["run_p99_ms"]
    assert not work.done()
    work.cancel()


async def test_unloading_and_measuring_parked_ones(zygotes, store, kit):
    runtime = await zygotes("ort").fork(idle_after_s=IDLE_S)
    models = [kit.linear(store, "ort", seed=seed) for seed in (1, 2)]
    for name, model in zip(("one", "two"), models, strict=True):
        await runtime.load(model.artifact, name)
    await until_parked(runtime, "one", "two")
    assert (await runtime.control.call("measure", instances=["one"], batch=2, seconds=0.0, min_repeats=2))["repeats"] >= 2
    released = (await runtime.control.call("unload", instance_id="two", drain_ms=1000))["released"]
    assert store.artifact(models[1].artifact).tensors[0].digest in released
    await until_parked(runtime, "one")
    await runtime.control.call("unload", instance_id="one", drain_ms=0)
    await runtime.control.call("trim")
    assert all(store.artifact(model.artifact).tensors[0].digest not in runtime.maps() for model in models)


async def test_zero_parks_nothing(zygotes, store, kit):
    runtime = await zygotes("ort").fork(idle_after_s=0)
    await runtime.load(kit.linear(store, "ort").artifact, "one")
    await asyncio.sleep(1.0)
    assert not (await instances(runtime))["one"]["parked"]


async def test_a_failed_reopening_is_an_error_with_its_kind_and_the_next_request_is_answered(zygotes, store, kit, monkeypatch):
    monkeypatch.setenv("TESSERA_FAILPOINTS", "runtime.reopen=1*error(resource_exhausted: no memory left)")
    runtime = await zygotes("ort").fork(idle_after_s=IDLE_S)
    model = kit.linear(store, "ort", seed=1)
    generation = await runtime.load(model.artifact, "one")
    client = await runtime.data()
    await until_parked(runtime, "one")
    x = np.ones((1, kit.width), np.float32)
    error = (await client.request(kit.header(generation), kit.request(x))).error()
    assert isinstance(error, ResourceExhausted)
    assert "no memory left" in str(error)
    answer = await client.request(kit.header(generation), kit.request(x))
    assert np.abs(kit.output(answer) - model.expected(x)).max() < 1e-4


async def test_memory_by_kind_agrees_with_smaps(zygotes, store, kit):
    runtime = await zygotes("ort").fork()
    generation = await runtime.load(kit.linear(store, "ort", seed=1).artifact, "one")
    client = await runtime.data()
    for _ in range(3):
        await client.request(kit.header(generation), kit.request(np.ones((1, kit.width), np.float32)))
    told = await runtime.control.call("status")
    private, shared, in_store = 0, 0, False
    for line in Path(f"/proc/{runtime.pid}/smaps").read_text().splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            in_store = len(fields) > 5 and fields[5].startswith(str(store.root))
        elif fields[0] in ("Private_Clean:", "Private_Dirty:") and not in_store:
            private += int(fields[1]) * 1024
        elif fields[0] == "Rss:" and in_store:
            shared += int(fields[1]) * 1024
    assert told["shared_bytes"] == shared > 0
    assert told["private_bytes"] == pytest.approx(private, rel=0.05)
    assert told["cpu_s"] > 0
