"""Starts that are answered while their runtime still opens what it has opened before."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import psutil
import pytest

from tessera.api.common.v1 import common_pb2
from tessera.domain.errors import TesseraError, Unavailable, WrongGeneration

RANDOM = np.random.default_rng(5)


def variant(name: str) -> common_pb2.VariantKey:
    return common_pb2.VariantKey(trust_domain="default", model="linear", version=1, variant=name)


async def in_state(agent: Any, name: str, state: str) -> Any:
    async def seen() -> Any:
        found = await agent.instance(name)
        return found if found is not None and found.state == state else None

    return await agent.until(seen)


async def test_the_answer_travels_while_a_known_graph_is_opened_and_every_stage_is_shown(agent: Any, kit: Any, coord: Any) -> None:
    agent.environment["TESSERA_FAILPOINTS"] = "runtime.open=1*off->delay(2)"
    model, sibling = kit.make_linear(agent.repository, "ort"), kit.make_linear(agent.repository, "ort", bias_seed=1)
    await agent.start()
    first = await agent.start_instance("a", model.artifact)
    client = await kit.direct(first)
    x = RANDOM.standard_normal((2, kit.width)).astype(np.float32)
    warm = await kit.exchange(client, first.generation, x)
    again = await agent.start_instance("b", model.artifact)
    late = await kit.exchange(client, again.generation, x)
    other = await agent.start_instance("c", sibling.artifact)
    later = await kit.exchange(client, other.generation, x)
    assert {each.runtime_id for each in (again, other)} == {first.runtime_id}
    assert {(each.state, each.start_path) for each in (again, other)} == {("ready", "bind")}
    assert kit.output(late.body).tobytes() == kit.output(warm.body).tobytes()
    np.testing.assert_allclose(kit.output(later.body), sibling.expected(x), atol=1e-4)
    assert (warm.opening_us, late.opening_us > late.queue_us, later.opening_us > later.queue_us) == (0, True, True)
    client.close()
    assert (first.opening, again.opening, first.fetched_bytes > 0, again.fetched_bytes) == (False, True, True, 0)
    told = {time.stage: time.ms for time in again.stages}
    record = await agent.until(lambda: _record(coord, "b"))
    for stages in (record.stages, (await agent.instance("b")).stages):
        shown = {str(time.stage): time.ms for time in stages}
        assert shown.keys() == told.keys() == {"map", "load"}
        assert shown["load"] > 2000 > told["load"]
    assert not (await agent.instance("b")).opening


async def _record(coord: Any, name: str) -> Any:
    return (await coord.instances()).get(name)


async def _recorded(coord: Any, names: set[str]) -> bool:
    return set(await coord.instances()) == names


async def _waited_for(agent: Any, name: str) -> bool:
    return bool((await agent.instance(name)).queue)


async def _unpinned(agent: Any) -> bool:
    return bool((await agent.status()).stores[0].pinned_bytes == 0)


async def test_what_cannot_be_opened_fails_behind_its_answer_and_the_next_start_waits_for_its_own(agent: Any, kit: Any, coord: Any) -> None:
    agent.environment["TESSERA_FAILPOINTS"] = "runtime.open=1*off->1*error(internal: no such operator)->off"
    model = kit.make_linear(agent.repository, "ort")
    await agent.start()
    first = await agent.start_instance("a", model.artifact)
    failing = await agent.start_instance("b", model.artifact)
    failed = await in_state(agent, "b", "failed")
    assert "no such operator" in failed.error
    client = await kit.direct(first)
    x = RANDOM.standard_normal((1, kit.width)).astype(np.float32)
    with pytest.raises(WrongGeneration):
        await kit.ask(client, failing.generation, x)
    healed = await agent.start_instance("c", model.artifact)
    await agent.until(lambda: _recorded(coord, {"a", "c"}))
    np.testing.assert_allclose(await kit.ask(client, healed.generation, x), model.expected(x), atol=1e-4)
    client.close()
    for name in "abc":
        await agent.stop_instance(name)
    await agent.until(lambda: _unpinned(agent))  # counted every few seconds


async def test_a_runtime_that_dies_while_it_opens_is_the_fault_of_what_it_opened(agent: Any, kit: Any, coord: Any, sigkill: Any) -> None:
    agent.environment["TESSERA_FAILPOINTS"] = "runtime.open=1*off->delay(30)"
    model = kit.make_linear(agent.repository, "ort")
    await agent.start(poison_first_back_off_s=60.0)  # not over before "c" is asked for, however long it takes to see that "b" failed
    await agent.start_instance("a", model.artifact, variant=variant("good"))
    opening = await agent.start_instance("b", model.artifact, variant=variant("bad"))
    client = await kit.direct(opening)
    waiting = asyncio.ensure_future(kit.exchange(client, opening.generation, np.ones((1, kit.width), np.float32)))
    await agent.until(lambda: _waited_for(agent, "b"))
    sigkill(opening.pid)
    with pytest.raises(TesseraError):
        await waiting
    failed = await in_state(agent, "b", "failed")
    assert "ended while it loaded variant linear@1/bad" in failed.error
    assert "that held variant linear@1/good" in (await in_state(agent, "a", "failed")).error
    with pytest.raises(Unavailable, match="crashed its runtime 1 times"):
        await agent.start_instance("c", model.artifact, variant=variant("bad"))
    again = await agent.start_instance("d", model.artifact, variant=variant("good"))
    assert (again.state, again.runtime_id.startswith("rt-")) == ("ready", True)
    await agent.until(lambda: _recorded(coord, {"d"}))


async def test_an_agent_that_waits_for_a_load_to_adopt_can_be_stopped_and_leaves_it_to_the_next(agent: Any, kit: Any) -> None:
    agent.environment["TESSERA_FAILPOINTS"] = "runtime.open=1*off->delay(12)"
    model = kit.make_linear(agent.repository, "ort")
    await agent.start()
    await agent.start_instance("a", model.artifact)
    opening = await agent.start_instance("b", model.artifact)
    await agent.hang_up()
    agent.kill()
    agent.process = agent.spawn()

    async def waits() -> bool:
        return "has to end its load first" in agent.log.read_text()

    await agent.until(waits)
    assert await agent.terminate() == 0
    assert psutil.pid_exists(opening.pid)
    await agent.start()
    found = (await agent.status()).instances
    assert {(each.instance_id, each.state, each.pid) for each in found} == {(name, "ready", opening.pid) for name in "ab"}
