"""Real instances that become other ones, over a real agent and a real runtime with torch."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.api.common.v1 import common_pb2
from tessera.domain.errors import Conflict, FailedPrecondition, InvalidInput, NotFound, TesseraError, Unavailable, WrongGeneration

RANDOM = np.random.default_rng(8)
ATEN = {"flavours": ["aten"], "warm_runtimes": 0}


async def in_state(agent: Any, name: str, state: str) -> None:
    async def seen() -> bool:
        found = await agent.instance(name)
        return found is not None and found.state == state

    await agent.until(seen)


async def become(agent: Any, name: str, artifact: str, donor: str) -> Any:
    return await agent.start_instance(name, artifact, start_path="transform", donor_instance_id=donor)


def inputs(width: int) -> Any:
    return RANDOM.standard_normal((2, width)).astype(np.float32)


async def test_an_idle_model_becomes_another_one_and_answers_as_a_bound_one(agent: Any, kit: Any, coord: Any) -> None:
    """Other weights; other shapes; and back: every answer is that of a fresh load, bit for bit."""
    narrow, sibling, wide = (
        kit.make_linear(agent.repository, "aten"),
        kit.make_linear(agent.repository, "aten", seed=1),
        kit.make_linear(agent.repository, "aten", seed=2, width=kit.width * 2),
    )
    await agent.start(**ATEN)
    first = await agent.start_instance("i0", narrow.artifact)
    x, y = inputs(kit.width), inputs(kit.width * 2)
    client = await kit.direct(first)
    answers = {}
    for name, model, given in (("fresh", sibling, x), ("wider", wide, y)):
        bound = await agent.start_instance(name, model.artifact)
        answers[model.artifact] = (await kit.ask(client, bound.generation, given)).tobytes()
    answers[narrow.artifact] = (await kit.ask(client, first.generation, x)).tobytes()
    chain = [(sibling, x), (wide, y), (narrow, x), (wide, y)]
    for at, (model, given) in enumerate(chain, start=1):
        found = await become(agent, f"i{at}", model.artifact, f"i{at - 1}")
        assert (found.state, found.start_path, found.runtime_id, found.pid) == ("ready", "transform", first.runtime_id, first.pid)
        assert {time.stage for time in found.stages} <= {"fetch", "map", "transform"}
        assert (await kit.ask(client, found.generation, given)).tobytes() == answers[model.artifact]
    with pytest.raises(WrongGeneration):
        await kit.ask(client, first.generation, x)
    client.close()
    donor = await agent.instance("i0")
    assert donor is None or donor.state == "gone"

    async def recorded() -> bool:
        return (await coord.instances()).keys() == {"fresh", "wider", "i4"}

    await agent.until(recorded)
    assert await agent.check() == []


async def test_a_request_for_the_donor_waits_and_is_sent_on(agent: Any, kit: Any) -> None:
    agent.environment["TESSERA_FAILPOINTS"] = "runtime.open=1*off->delay(3)"
    donor, other = kit.make_linear(agent.repository, "aten"), kit.make_linear(agent.repository, "aten", seed=1)
    await agent.start(**ATEN)
    first = await agent.start_instance("donor", donor.artifact)
    client = await kit.direct(first)
    x = inputs(kit.width)
    becoming = asyncio.ensure_future(become(agent, "other", other.artifact, "donor"))
    await in_state(agent, "other", "loading")
    await agent.status()  # what its runtime answers after it has taken in the order that was sent by then
    asked = asyncio.ensure_future(kit.ask(client, first.generation, x))
    with pytest.raises(Conflict, match="not idle"):
        await become(agent, "rival", other.artifact, "donor")
    assert not asked.done()
    found = await becoming
    with pytest.raises(WrongGeneration):
        await asked
    np.testing.assert_allclose(await kit.ask(client, found.generation, x), other.expected(x), atol=1e-4)
    client.close()


async def test_a_runtime_that_is_killed_takes_both_along_and_each_can_start_again(agent: Any, kit: Any, sigkill: Any) -> None:
    agent.environment["TESSERA_FAILPOINTS"] = "runtime.open=1*off->1*delay(30)"
    donor, other = kit.make_linear(agent.repository, "aten"), kit.make_linear(agent.repository, "aten", seed=1)
    await agent.start(**ATEN)
    first = await agent.start_instance("donor", donor.artifact)
    becoming = asyncio.ensure_future(become(agent, "other", other.artifact, "donor"))
    await in_state(agent, "other", "loading")
    sigkill(first.pid)
    with pytest.raises(TesseraError):
        await becoming

    async def failed() -> bool:
        found = {each.instance_id: each.state for each in (await agent.status()).instances}
        return found == {"donor": "failed", "other": "failed"}

    await agent.until(failed)
    again = await agent.start_instance("again", donor.artifact, variant=_variant("again"))
    client = await kit.direct(again)
    x = inputs(kit.width)
    np.testing.assert_allclose(await kit.ask(client, again.generation, x), donor.expected(x), atol=1e-4)
    client.close()


def _variant(name: str) -> Any:
    return common_pb2.VariantKey(trust_domain="default", model="linear", version=1, variant=name)


async def test_a_missing_tensor_leaves_the_donor_serving(agent: Any, kit: Any) -> None:
    donor, other = kit.make_linear(agent.repository, "aten"), kit.make_linear(agent.repository, "aten", seed=1)
    await agent.start(**ATEN)
    first = await agent.start_instance("donor", donor.artifact)
    _remove(agent.repository, other.tensor)
    with pytest.raises(NotFound):
        await become(agent, "other", other.artifact, "donor")
    client = await kit.direct(first)
    x = inputs(kit.width)
    np.testing.assert_allclose(await kit.ask(client, first.generation, x), donor.expected(x), atol=1e-4)
    client.close()


def _remove(repository: Any, digest: str) -> None:
    (found,) = Path(repository.url.removeprefix("file://")).rglob(digest)
    found.unlink()


async def test_only_a_transformation_names_a_donor(agent: Any, kit: Any) -> None:
    model = kit.make_linear(agent.repository, "aten")
    await agent.start(**ATEN)
    with pytest.raises(InvalidInput, match=r"donor_instance_id.*transform needs one"):
        await agent.start_instance("a", model.artifact, start_path="transform")
    with pytest.raises(InvalidInput, match="no other path has one"):
        await agent.start_instance("a", model.artifact, donor_instance_id="b")
    with pytest.raises((NotFound, Unavailable)):
        await become(agent, "a", model.artifact, "b")


ORT = {"flavours": ["ort"], "warm_runtimes": 0}


async def test_a_live_session_becomes_a_siblings_and_answers_as_a_bound_one(agent: Any, kit: Any, coord: Any) -> None:
    """With other weights, with another bias alone, and back: the process stays, its answers are those of fresh loads, bit for bit."""
    models = [kit.make_linear(agent.repository, "ort", **seeds) for seeds in ({}, {"seed": 1}, {"seed": 1, "bias_seed": 2})]
    await agent.start(**ORT)
    x = inputs(kit.width)
    first = await agent.start_instance("i0", models[0].artifact)
    client = await kit.direct(first)
    answers = [(await kit.ask(client, first.generation, x)).tobytes()]
    for at in (1, 2):
        bound = await agent.start_instance(f"bound{at}", models[at].artifact)
        answers.append((await kit.ask(client, bound.generation, x)).tobytes())
        await agent.stop_instance(f"bound{at}")
    for at, which in enumerate([1, 2, 0, 2], start=1):
        found = await become(agent, f"i{at}", models[which].artifact, f"i{at - 1}")
        assert (found.state, found.start_path, found.runtime_id, found.pid) == ("ready", "transform", first.runtime_id, first.pid)
        assert (await kit.ask(client, found.generation, x)).tobytes() == answers[which]
    with pytest.raises(WrongGeneration):
        await kit.ask(client, first.generation, x)
    client.close()
    other = kit.make_linear(agent.repository, "ort", width=kit.width * 2)
    with pytest.raises(FailedPrecondition, match="no plan from graph"):
        await become(agent, "wide", other.artifact, "i4")

    async def recorded() -> bool:
        return (await coord.instances()).keys() == {"i4"}

    await agent.until(recorded)
    assert await agent.check() == []


async def test_a_session_that_is_lost_half_way_fails_with_the_start_and_nobody_gets_its_bytes(agent: Any, kit: Any) -> None:
    agent.environment["TESSERA_FAILPOINTS"] = "runtime.replace=1*off->1*error(no more mappings)"
    donor, other = kit.make_linear(agent.repository, "ort"), kit.make_linear(agent.repository, "ort", seed=1)
    await agent.start(**ORT)
    first = await agent.start_instance("donor", donor.artifact)
    with pytest.raises(TesseraError, match="no more mappings"):
        await become(agent, "other", other.artifact, "donor")
    lost = await agent.instance("donor")
    assert (lost.state, lost.error) == ("failed", "instance donor was lost on its way to become other")
    client = await kit.direct(first)
    x = inputs(kit.width)
    with pytest.raises(WrongGeneration):
        await kit.ask(client, first.generation, x)
    for name, model in (("again", donor), ("another", other)):
        found = await agent.start_instance(name, model.artifact, variant=_variant(name))
        assert found.runtime_id == first.runtime_id
        np.testing.assert_allclose(await kit.ask(client, found.generation, x), model.expected(x), atol=1e-4)
    client.close()
    assert await agent.check() == []
