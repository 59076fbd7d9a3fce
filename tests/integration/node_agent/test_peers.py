"""Two nodes: the second starts from the first's store. Real agents, real streams; the repository is a folder that goes away, or S3.

Without a scheduler: who tells an agent to start names the sources. What is assigned in etcd, and what is baked, comes without any.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.api.node.v1 import node_pb2
from tessera.coord import keys, records
from tessera.coord.binary import EtcdProcess
from tessera.coord.interface import ModRevisionIs, Put
from tessera.domain.errors import InvalidInput, NotFound, TesseraError
from tessera.domain.ids import Generation, InstanceId, ModelName, NodeId, Term, TrustDomain, VariantKey, VariantName, VersionNumber
from tessera.domain.instance import StartPath
from tessera.domain.records import AssignmentRecord
from tessera.repository import Repository
from tessera.testing.s3 import BUCKET, running_s3

RANDOM = np.random.default_rng(4)
DOMAIN = TrustDomain("default")


@pytest.fixture
async def second(agent: Any, tmp_path: Path, etcd: EtcdProcess) -> AsyncIterator[Any]:
    """Another node over the same repository, not started yet."""
    folder = tmp_path / "second"
    folder.mkdir()
    found = type(agent)(folder, Path(tempfile.mkdtemp(prefix="tsnb-", dir="/tmp")), etcd.endpoint)
    found.settings |= {"node_id": "n2", "repository_url": agent.settings["repository_url"]}
    try:
        yield found
    finally:
        await found.end()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with running_s3() as endpoint:
        yield endpoint


async def source(agent: Any) -> node_pb2.Source:
    status = await agent.status()
    return node_pb2.Source(node_id=status.node_id, peer_address=status.peer_address)


async def answers(kit: Any, instance: Any, model: Any) -> None:
    x = RANDOM.standard_normal((2, kit.width)).astype(np.float32)
    client = await kit.direct(instance)
    np.testing.assert_allclose(await kit.ask(client, instance.generation, x), model.expected(x), rtol=1e-4, atol=1e-5)
    client.close()


async def test_without_the_repository_the_second_node_starts_from_the_first(agent: Any, second: Any, kit: Any) -> None:
    model = kit.make_linear(agent.repository, "ort")
    await agent.start()
    await answers(kit, await agent.start_instance("a", model.artifact), model)
    (agent.folder / "repository").rename(agent.folder / "away")
    await second.start()
    with pytest.raises(TesseraError) as caught:
        await second.start_instance("none", model.artifact)
    assert caught.value.kind == "not_found"
    instance = await second.start_instance("b", model.artifact, sources=[await source(agent)])
    await answers(kit, instance, model)
    (stored,) = (await second.status()).stores
    assert instance.fetched
    assert instance.fetched_from_peers_bytes == stored.peer_bytes == stored.fetched_bytes > model.weight.nbytes
    assert [time.stage for time in instance.stages if time.stage == "fetch"] == ["fetch"]
    first, other = await agent.status(), await second.status()
    assert set(other.stores[0].digests_added) == set(first.stores[0].digests_added)


async def test_without_the_repository_an_assignment_is_started_from_the_other_node(agent: Any, second: Any, coord: Any, kit: Any) -> None:
    model = kit.make_linear(agent.repository, "ort")
    await agent.start()
    await agent.start_instance("a", model.artifact)
    (agent.folder / "repository").rename(agent.folder / "away")
    variant = VariantKey(DOMAIN, ModelName("linear"), VersionNumber(1), VariantName("any"))
    await agent.until(coord.node)
    await second.start()
    record = AssignmentRecord(InstanceId("b"), NodeId("n2"), variant, model.artifact, Generation(77), StartPath.BIND, Term(1, 1))
    key = keys.assignment(DOMAIN, NodeId("n2"), InstanceId("b"))
    await coord.coordinator.transact([ModRevisionIs(key, 0)], [Put(key, records.encode(record))])

    async def over() -> Any:
        found = await second.instance("b")
        return found if found is not None and found.state in ("ready", "failed") else None

    instance = await second.until(over)
    assert (instance.state, instance.error) == ("ready", "")
    await answers(kit, instance, model)
    (stored,) = (await second.status()).stores
    assert instance.fetched_from_peers_bytes == stored.peer_bytes == stored.fetched_bytes > model.weight.nbytes


async def test_without_the_repository_an_export_is_baked_from_the_other_node(agent: Any, second: Any, kit: Any) -> None:
    export = kit.make_linear(agent.repository, "onnx")
    request = node_pb2.BakeRequest(trust_domain="default", artifact_digest=export.artifact, max_batch=4)
    await agent.start()
    await second.start()
    first = [event async for event in agent.stub.Bake(request, timeout=120)]
    (agent.folder / "repository").rename(agent.folder / "away")

    async def baked() -> Any:
        """Not before the second has seen the first one's record."""
        try:
            return [event async for event in second.stub.Bake(request, timeout=120)]
        except NotFound:
            return None

    events = await second.until(baked, 120.0)
    assert events[-1].baked.artifact_digest == first[-1].baked.artifact_digest
    (stored,) = (await second.status()).stores
    assert stored.peer_bytes == stored.fetched_bytes > export.weight.nbytes


async def test_eight_starts_of_a_family_at_once_take_each_byte_once(agent: Any, second: Any, kit: Any) -> None:
    models = [kit.make_linear(agent.repository, "ort", bias_seed=seed) for seed in range(8)]
    await agent.start()
    for number, model in enumerate(models):
        await agent.start_instance(f"a{number}", model.artifact)
    (agent.folder / "repository").rename(agent.folder / "away")
    await second.start()
    sources = [await source(agent)]
    found = await asyncio.gather(*(second.start_instance(f"b{n}", model.artifact, sources=sources) for n, model in enumerate(models)))
    for instance, model in zip(found, models, strict=True):
        await answers(kit, instance, model)
    first, other = (await agent.status()).stores[0], (await second.status()).stores[0]
    assert other.peer_bytes == other.fetched_bytes == first.fetched_bytes == other.used_bytes


async def test_a_source_that_is_not_there_costs_the_start_nothing(agent: Any, kit: Any) -> None:
    model = kit.make_linear(agent.repository, "ort")
    await agent.start()
    gone = node_pb2.Source(node_id="n9", peer_address="127.0.0.1:1")
    instance = await agent.start_instance("a", model.artifact, sources=[gone])
    await answers(kit, instance, model)
    assert (instance.fetched, instance.fetched_from_peers_bytes) == (True, 0)


async def test_sources_that_are_none_are_refused_by_name(agent: Any) -> None:
    await agent.start()
    with pytest.raises(InvalidInput, match=r"sources\[0\].peer_address 'nowhere': must be HOST:PORT"):
        await agent.start_instance("a", sources=[node_pb2.Source(node_id="n9", peer_address="nowhere")])
    with pytest.raises(InvalidInput, match="sources 17: at most 16"):
        await agent.start_instance("a", sources=[node_pb2.Source(node_id="n9", peer_address="h:1")] * 17)


async def test_two_agents_on_one_peer_address_are_not_possible(agent: Any, second: Any) -> None:
    await agent.start()
    address = (await agent.status()).peer_address
    process = second.spawn(peer_address=address)
    assert await asyncio.to_thread(process.wait, 60) != 0
    assert f"peer_address {address}: Address already in use" in second.log.read_text()


async def test_a_model_comes_from_s3(agent: Any, kit: Any, s3: str) -> None:
    url, options = f"s3://{BUCKET}/lab", {"endpoint_url": s3}
    model = kit.make_linear(Repository(url, options), "ort")
    await agent.start(repository_url=url, repository_options=options)
    instance = await agent.start_instance("a", model.artifact)
    await answers(kit, instance, model)
    assert (instance.fetched, instance.fetched_from_peers_bytes) == (True, 0)
    with pytest.raises(TesseraError) as caught:
        await agent.start_instance("b", "0" * 64)
    assert caught.value.kind == "not_found"
