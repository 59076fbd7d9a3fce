"""What every maker of runtimes must do, over the real ones: processes and, where an engine answers, containers."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tessera.domain.errors import AlreadyExists, FailedPrecondition, NotFound, TesseraError, Unavailable
from tessera.domain.ids import Generation, InstanceId, RuntimeId
from tessera.domain.instance import Stage, StartPath
from tessera.node_agent.adapters import container_runtimes, controlled, process_runtimes
from tessera.node_agent.adapters.controlled import ENVIRONMENTS
from tessera.node_agent.ports import LoadReport, Runtime

LOST_WITHIN_S = 10.0


async def made(runtimes: Any, name: str = "rt-ort-1", threads: int = 1) -> Runtime:
    found: Runtime = await runtimes.create("ort", RuntimeId(name), threads)
    return found


async def lost(world: Any, runtime_id: str) -> None:
    async with asyncio.timeout(LOST_WITHIN_S):
        while runtime_id not in world.lost:  # noqa: ASYNC110 - a callback of the port; the test waits as an agent would be told
            await asyncio.sleep(0.005)


async def gone(pid: int) -> None:
    """A process that has ended is seen for a moment, until its parent has noticed."""
    async with asyncio.timeout(LOST_WITHIN_S):
        while psutil.pid_exists(pid):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.005)


async def test_a_new_runtime_says_who_it_is(world: Any, kind: str) -> None:
    runtimes = await world.runtimes()
    await runtimes.prepare(["ort"])
    runtime = await made(runtimes, threads=2)
    hello = runtime.hello
    assert (hello.runtime_id, hello.flavour, hello.threads, hello.holds, hello.instances) == ("rt-ort-1", "ort", 2, frozenset(), ())
    assert runtime.alive
    assert bool(runtime.container_id) == (kind == "container")
    assert runtimes.start_path is (StartPath.CONTAINER if kind == "container" else StartPath.FORK)
    assert runtime.mappings() > 50
    user = world.config.user_of(world.config.stores[0]) if kind == "container" and os.geteuid() == 0 else os.geteuid()
    assert psutil.Process(hello.pid).uids().real == user
    assert (world.run / "rt-ort-1" / "data.sock").exists()


async def test_an_instance_is_loaded_asked_measured_and_unloaded(world: Any) -> None:
    runtimes = await world.runtimes()
    runtime, model = await made(runtimes), world.linear()
    report = await world.load(runtime, model)
    assert report.mapped_bytes >= model.weight.nbytes
    assert any(digest in Path(f"/proc/{runtime.hello.pid}/maps").read_text() for digest in model.blobs)
    await world.ask(runtime, model)
    activity = await runtime.activity(1.0, 0.0)
    assert [(item.instance_id, item.served) for item in activity.instances] == [("i1", 1)]
    assert activity.proportional_bytes >= activity.private_bytes > 0
    measured = await runtime.measure([InstanceId("i1")], 2, 0.01, 3, 0.0)
    assert measured.repeats >= 3
    assert 0 < measured.quantiles_ms[0] <= measured.mean_ms <= measured.quantiles_ms[-1]
    assert await runtime.unload(InstanceId("i1"), 0) == model.blobs
    with pytest.raises(TesseraError):
        await world.ask(runtime, model)
    with pytest.raises(NotFound):
        await runtime.unload(InstanceId("i1"), 0)
    await runtime.trim()
    maps = Path(f"/proc/{runtime.hello.pid}/maps").read_text()
    assert not [digest for digest in model.blobs if digest in maps]


async def test_several_instances_share_a_runtime(world: Any) -> None:
    runtimes = await world.runtimes()
    runtime, models = await made(runtimes), [world.linear(seed) for seed in range(3)]
    for number, model in enumerate(models):
        await world.load(runtime, model, f"i{number}", 10 + number)
    for number, model in enumerate(models):
        await world.ask(runtime, model, 10 + number)


def opening_as(monkeypatch: pytest.MonkeyPatch, terms: str) -> None:
    """What openings of runtimes made from here on do; a runtime counts its own."""
    monkeypatch.setitem(ENVIRONMENTS, "ort", {**ENVIRONMENTS["ort"], "TESSERA_FAILPOINTS": f"runtime.open={terms}"})


async def early(world: Any, runtime: Runtime, model: Any, name: str, generation: int) -> tuple[LoadReport, asyncio.Task[LoadReport]]:
    """What is told once it is mapped, and its load, which goes on."""
    told: asyncio.Future[LoadReport] = asyncio.get_running_loop().create_future()
    loading = asyncio.get_running_loop().create_task(world.load(runtime, model, name, generation, told.set_result))
    async with asyncio.timeout(10):
        return await told, loading


async def test_an_early_answer_comes_before_the_opening_and_requests_wait_for_it(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opening_as(monkeypatch, "delay(2)")
    runtimes = await world.runtimes()
    runtime, model = await made(runtimes), world.linear()
    told, loading = await early(world, runtime, model, "i1", 7)
    assert [time.stage for time in told.stages] == [Stage.MAP]
    assert told.mapped_bytes >= model.weight.nbytes
    assert not loading.done()
    answers = await asyncio.gather(*(world.ask(runtime, model) for _ in range(3)))
    assert loading.done()
    assert all(answer.opening_us > answer.queue_us for answer in answers)
    report = loading.result()
    assert {time.stage for time in report.stages} == {Stage.MAP, Stage.LOAD}
    assert report.stages[1].ms > sum(time.ms for time in told.stages)
    assert (await world.ask(runtime, model)).opening_us == 0
    assert await runtime.unload(InstanceId("i1"), 0) == model.blobs


async def test_unloading_waits_for_what_is_being_opened(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opening_as(monkeypatch, "delay(2)")
    runtimes = await world.runtimes()
    runtime, model = await made(runtimes), world.linear()
    _, loading = await early(world, runtime, model, "i1", 7)
    assert not loading.done()
    assert await runtime.unload(InstanceId("i1"), 0) == model.blobs
    assert loading.done()
    await runtime.trim()
    maps = Path(f"/proc/{runtime.hello.pid}/maps").read_text()
    assert not [digest for digest in model.blobs if digest in maps]


async def test_unloading_has_the_patience_for_what_others_have_opened_before(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controlled, "CALL_S", 0.2)
    opening_as(monkeypatch, "1*off->1*delay(1)->off")
    runtimes = await world.runtimes()
    runtime, model, slow = await made(runtimes), world.linear(1), world.linear(2)
    await world.load(runtime, model, "i1", 7)
    _, loading = await early(world, runtime, slow, "i2", 8)
    assert await runtime.unload(InstanceId("i1"), 0) == model.blobs - slow.blobs
    assert loading.done()
    await world.ask(runtime, slow, 8)


async def test_a_failed_opening_is_the_error_of_who_waited_and_nothing_of_it_is_left(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opening_as(monkeypatch, "1*off->1*delay(2)->off")
    runtimes = await world.runtimes()
    runtime, model, broken = await made(runtimes), world.linear(1), world.linear(2, graph=b"no graph at all")
    await world.load(runtime, model, "i1", 7)
    _, loading = await early(world, runtime, broken, "i2", 8)
    with pytest.raises(TesseraError) as asked:
        await world.ask(runtime, broken, 8)
    with pytest.raises(TesseraError) as loaded:
        await loading
    assert type(asked.value) is type(loaded.value)
    declared = await runtime.declare()
    assert declared.holds == model.blobs
    assert declared.mapped.isdisjoint(broken.blobs - model.blobs)
    with pytest.raises(NotFound):
        await runtime.unload(InstanceId("i2"), 0)
    await world.ask(runtime, model)
    await world.load(runtime, world.linear(2), "i2", 8)
    await world.ask(runtime, world.linear(2), 8)


async def test_a_runtime_that_dies_while_it_opens_ends_its_load_and_what_waits(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opening_as(monkeypatch, "delay(20)")
    runtimes = await world.runtimes()
    runtime, model = await made(runtimes), world.linear()
    _, loading = await early(world, runtime, model, "i1", 7)
    asked = asyncio.get_running_loop().create_task(world.ask(runtime, model))
    async with asyncio.timeout(10):
        while not (await runtime.activity(1.0, 0.0)).instances[0].queue:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.005)
    runtime.kill()
    for each in (loading, asked):
        with pytest.raises(Unavailable):
            await each
    await lost(world, "rt-ort-1")


async def left_while_it_opens(world: Any, first: Any, runtime: Runtime, model: Any, name: str, generation: int) -> None:
    """Whoever asked for the load goes away in the middle of it."""
    _, loading = await early(world, runtime, model, name, generation)
    await first.leave()
    with pytest.raises(Unavailable):
        await loading


async def test_what_is_being_opened_is_adopted_with_the_rest(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opening_as(monkeypatch, "delay(1)")
    first = await world.runtimes()
    runtime, model = await made(first), world.linear()
    await left_while_it_opens(world, first, runtime, model, "i1", 7)
    second = await world.runtimes()
    (adopted,) = await second.adopt()
    assert [item.instance_id for item in adopted.hello.instances] == ["i1"]
    await world.ask(adopted, model)


async def test_a_load_that_takes_longer_than_a_first_word_costs_nobody_the_runtime(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opening_as(monkeypatch, "1*off->delay(8)")
    for maker in (process_runtimes, container_runtimes):
        monkeypatch.setattr(maker, "ADOPT_S", 3.0)
    first = await world.runtimes()
    runtime, serving, opening = await made(first), world.linear(1), world.linear(2)
    await world.load(runtime, serving, "i1", 7)
    await left_while_it_opens(world, first, runtime, opening, "i2", 8)
    second = await world.runtimes()
    waited_for: list[Any] = []
    monkeypatch.setattr(controlled, "_log", SimpleNamespace(info=lambda event, instances, **fields: waited_for.append(instances)))
    (adopted,) = await second.adopt()
    assert waited_for == [["i2"]]
    assert adopted.hello.pid == runtime.hello.pid
    assert sorted(item.instance_id for item in adopted.hello.instances) == ["i1", "i2"]
    assert adopted.hello.holds == serving.blobs | opening.blobs
    await world.ask(adopted, serving, 7)
    await world.ask(adopted, opening, 8)
    assert world.lost == []


async def test_a_load_that_never_ends_costs_the_runtime_after_its_own_time(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opening_as(monkeypatch, "delay(600)")
    first = await world.runtimes()
    runtime, model = await made(first), world.linear()
    await left_while_it_opens(world, first, runtime, model, "i1", 7)
    for maker in (process_runtimes, container_runtimes):
        monkeypatch.setattr(maker, "ADOPT_S", 2.0)
    second = await world.runtimes(load_timeout_s=0.5)
    assert await second.adopt() == ()
    await gone(runtime.hello.pid)
    assert not (world.run / "rt-ort-1").exists()


async def test_a_load_that_cannot_be_says_why_and_leaves_the_runtime_well(world: Any) -> None:
    runtimes = await world.runtimes()
    runtime, model = await made(runtimes), world.linear()
    absent = "0" * 64
    with pytest.raises(TesseraError, match=absent[:12]):
        await runtime.load(InstanceId("i1"), Generation(7), model_variant(), absent, True, 10.0)  # type: ignore[arg-type]
    await world.load(runtime, model)
    await world.ask(runtime, model)


def model_variant() -> Any:
    from tessera.domain.ids import ModelName, TrustDomain, VariantKey, VariantName, VersionNumber

    return VariantKey(TrustDomain("default"), ModelName("linear"), VersionNumber(1), VariantName("ort-fp32"))


@pytest.mark.parametrize("by", ["us", "somebody"])
async def test_a_killed_runtime_is_told_of_and_leaves_nothing(world: Any, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for maker in (process_runtimes, container_runtimes):
        monkeypatch.setattr(maker, "CAUSE_S", 10.0)  # whoever knows the cause may be slow to say it
    runtimes = await world.runtimes()
    runtime, model = await made(runtimes), world.linear()
    await world.load(runtime, model)
    if by == "us":
        runtime.kill()
    else:
        os.kill(runtime.hello.pid, signal.SIGKILL)
    await lost(world, "rt-ort-1")
    assert not runtime.alive
    assert "killed by signal 9" in await runtime.cause()
    assert not (world.run / "rt-ort-1").exists()
    with pytest.raises(Unavailable):
        await runtime.activity(1.0, 0.0)
    again = await made(runtimes)  # its name is free
    await world.load(again, model)
    await world.ask(again, model)


async def test_a_runtime_that_dies_in_the_middle_of_a_call_is_unavailable(world: Any) -> None:
    runtimes = await world.runtimes()
    runtime, model = await made(runtimes), world.linear()
    await world.load(runtime, model)
    measuring = asyncio.get_running_loop().create_task(runtime.measure([InstanceId("i1")], 1, 20.0, 1, 0.0))
    await asyncio.sleep(0.1)
    runtime.kill()
    with pytest.raises(Unavailable):
        await measuring


async def test_an_ended_runtime_is_gone_with_its_folder(world: Any) -> None:
    runtimes = await world.runtimes()
    runtime = await made(runtimes)
    pid = runtime.hello.pid
    await runtime.end(0)
    assert not runtime.alive
    await gone(pid)
    assert not (world.run / "rt-ort-1").exists()
    assert world.lost == ["rt-ort-1"]


async def test_what_lives_on_is_adopted_with_all_that_it_holds(world: Any) -> None:
    first = await world.runtimes()
    runtime, model = await made(first), world.linear()
    await world.load(runtime, model)
    before = runtime.hello
    await first.leave()
    await world.ask(runtime, model)  # nobody is at home, and it serves
    second = await world.runtimes()
    (adopted,) = await second.adopt()
    assert (adopted.hello.runtime_id, adopted.hello.pid, adopted.container_id) == (before.runtime_id, before.pid, runtime.container_id)
    assert adopted.hello.holds == model.blobs
    assert [(item.instance_id, item.generation, item.variant) for item in adopted.hello.instances] == [("i1", 7, "linear@1/ort-fp32")]
    await world.ask(adopted, model)
    adopted.kill()
    await lost(world, "rt-ort-1")


async def test_what_died_while_nobody_looked_is_swept(world: Any) -> None:
    first = await world.runtimes()
    dead, alive = await made(first, "rt-ort-1"), await made(first, "rt-ort-2")
    await first.leave()
    os.kill(dead.hello.pid, signal.SIGKILL)
    await gone(dead.hello.pid)
    second = await world.runtimes()
    assert [runtime.hello.runtime_id for runtime in await second.adopt()] == ["rt-ort-2"]
    assert not (world.run / "rt-ort-1").exists()
    assert alive.hello.pid > 0


async def test_names_and_flavours_that_cannot_be_are_refused(world: Any) -> None:
    runtimes = await world.runtimes()
    await made(runtimes)
    with pytest.raises(AlreadyExists):
        await made(runtimes)
    with pytest.raises(FailedPrecondition, match="aten"):
        await runtimes.create("aten", RuntimeId("rt-aten-1"), 1)
    assert not (world.run / "rt-aten-1").exists()
