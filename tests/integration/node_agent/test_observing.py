"""What transformations take on a real node: specimens become each other in a real runtime, the profiler stores the costs fitted to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tessera.api.node.v1 import node_pb2
from tessera.clock import SystemClock
from tessera.coord import keys
from tessera.coord.interface import ModRevisionIs, Put
from tessera.coord.records import decode, encode
from tessera.domain.errors import InvalidInput
from tessera.domain.ids import DEFAULT_TRUST_DOMAIN, ModelName
from tessera.domain.records import MetaCostRecord, NodeRecord
from tessera.domain.transformation import MetaOperator
from tessera.node_agent.core.specimens import specimens
from tessera.policy.transform.costs import costs_of
from tessera.policy.transform.fitting import fit
from tessera.profiler import loops
from tessera.profiler.adapters.agents import GrpcAgents
from tessera.profiler.adapters.records import EtcdRecords
from tessera.profiler.core.planning import Limits
from tessera.profiler.loops import LEAST_OBSERVED, Profiler, RunLimits, RunRequest
from tessera.program import Stop, Tasks
from tessera.testing.builders import a_model, a_variant, a_variant_key, a_version, a_version_key
from tessera.wire import decode_observation

ATEN = {"flavours": ["aten"], "warm_runtimes": 0}
SHORT = RunLimits(Limits(budget_s=0.1, seconds_per_row=0.1))


def observing(agent: Any, seconds: float) -> Any:
    request = node_pb2.MeasureTransformationsRequest(trust_domain="default", seconds=seconds)
    return agent.stub.MeasureTransformations(request, timeout=120)


def measuring(agent: Any) -> list[int]:
    """Processes of runtimes that serve nobody."""
    return [json.loads(path.read_text())["pid"] for path in agent.runtimes.glob("measure-*/info.json")]


async def test_specimens_become_each_other_and_costs_are_fitted_to_what_it_takes(agent: Any) -> None:
    await agent.start(**ATEN)
    seen = [decode_observation(event.transformation) async for event in observing(agent, 60.0) if event.HasField("transformation")]
    count = len(specimens())
    assert len(seen) == count * (count - 1)
    assert {step.operator for one in seen for step in one.steps} == set(MetaOperator)
    costs = fit(seen)
    assert costs.error is not None
    assert min(costs.ms(one.steps) for one in seen) > 0
    assert measuring(agent) == []
    assert (await agent.status()).stores[0].pinned_bytes == 0
    assert await agent.check() == []


async def test_specimens_can_be_run(agent: Any) -> None:
    """They are real programs: each one is loaded as an instance and run."""
    await agent.start(**ATEN)
    for at, each in enumerate(specimens()):
        for data in each.blobs.values():
            agent.repository.put_bytes(data)
        await agent.start_instance(f"s{at}", each.artifact)
    for at, _ in enumerate(specimens()):
        request = node_pb2.MeasureRequest(
            variant=(await agent.instance(f"s{at}")).variant, artifact_digest=specimens()[at].artifact, batch=1, threads=1, seconds=0.05
        )
        rows = [event.row async for event in agent.stub.Measure(request, timeout=60) if event.HasField("row")]
        assert rows[0].repeats > 0


async def test_who_goes_away_ends_it_and_bad_numbers_are_refused(agent: Any) -> None:
    await agent.start(**ATEN)
    with pytest.raises(InvalidInput, match="seconds"):
        [event async for event in observing(agent, 61.0)]
    call = observing(agent, 60.0)
    async for event in call:
        if event.HasField("transformation"):
            break
    assert len(measuring(agent)) == 1
    call.cancel()

    async def gone() -> bool:
        return not measuring(agent) and not (await agent.status()).stores[0].pinned_bytes

    await agent.until(gone)


@asynccontextmanager
async def profiling(agent: Any, kit: Any, coord: Any) -> AsyncIterator[Profiler]:
    """A profiler, and a model of the node's."""
    model = kit.make_linear(agent.repository, "aten")
    for key, record in (
        (keys.model(DEFAULT_TRUST_DOMAIN, ModelName("digits")), a_model()),
        (keys.version(a_version_key()), a_version()),
        (keys.variant(a_variant_key()), a_variant(artifact=model.artifact)),
    ):
        await coord.coordinator.transact([ModRevisionIs(key, 0)], [Put(key, encode(record))])
    agents, stop = GrpcAgents(), Stop()
    try:
        async with Tasks(stop) as tasks:
            yield Profiler(clock=SystemClock(), tasks=tasks, records=EtcdRecords(coord.coordinator), agents=agents, limits=SHORT)
    finally:
        await agents.close()
    assert stop.error is None


async def costs_in_etcd(coord: Any) -> list[MetaCostRecord]:
    found = await coord.coordinator.list(keys.meta_costs(DEFAULT_TRUST_DOMAIN))
    return [decode(MetaCostRecord, item.value) for item in found.items]


async def test_a_profile_run_stores_the_costs_of_the_nodes_class_and_one_that_is_killed_half_way_stores_nothing(
    agent: Any, kit: Any, coord: Any, sigkill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "MOST_ERROR", 1.0)  # how steady this machine is now is not what is tested
    await agent.start(**ATEN)

    async def registered() -> Any:
        return await coord.node()

    node = decode(NodeRecord, (await agent.until(registered)).value)
    async with profiling(agent, kit, coord) as profiler:
        words: list[str] = []
        run = asyncio.ensure_future(told(profiler, words))

        async def under_way() -> int:
            """The process in which specimens become each other."""
            found = measuring(agent) if any("observing" in each for each in words) else []
            return found[0] if found else 0

        sigkill(await agent.until(under_way, 60.0))
        await run
        assert any(f"transformations on {node.profile_class}: " in each for each in words), words
        assert await costs_in_etcd(coord) == [], "nothing of a part"
        await told(profiler, words)
        (record,) = await costs_in_etcd(coord)
        assert record.profile_class == node.profile_class
        assert record.observations >= LEAST_OBSERVED
        assert len(encode(record)) < 64 << 10
        assert costs_of(record).error == record.error
        assert f"transformations on {node.profile_class}: {record.observations} observed, error {record.error:.0%}" in words
        words.clear()
        await told(profiler, words)
        assert not any("transformations" in each for each in words), "once per class"


async def told(profiler: Profiler, into: list[str]) -> None:
    """`into` grows as it goes on."""
    async for progress in profiler.run(RunRequest(DEFAULT_TRUST_DOMAIN, "digits")):
        into += [progress.message]
