"""A node at work: starts, requests both ways, fetching, corruption, baking and measuring."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tessera.api.common.v1 import common_pb2
from tessera.api.node.v1 import node_pb2
from tessera.domain.errors import FailedPrecondition, InvalidInput, NotFound, StaleTerm, Unavailable, Unsupported
from tessera.domain.ids import Digest
from tessera.tensorstore.seal import is_sealed

RANDOM = np.random.default_rng(3)


def inputs(kit: Any, rows: int = 2) -> np.ndarray:
    return RANDOM.standard_normal((rows, kit.width)).astype(np.float32)


async def test_identity_from_nothing_to_nothing(agent: Any, kit: Any, coord: Any) -> None:
    await agent.start()
    instance = await agent.start_instance("a")
    assert (instance.state, instance.fetched, instance.max_batch) == ("ready", False, 1)
    x = inputs(kit)
    for connect in (kit.direct, kit.relayed):
        client = await connect(instance)
        assert np.array_equal(await kit.ask(client, instance.generation, x, "INPUT0"), x)
        client.close()
    record = await agent.until(lambda: _record(coord, "a"))
    assert (record.generation, record.unix_path) == (instance.generation, instance.endpoint.unix_path)
    assert record.relay_address == instance.endpoint.relay_address
    await agent.stop_instance("a")
    await agent.until(lambda: _gone(coord, "a"))
    assert await agent.instance("a") is None
    assert await agent.terminate() == 0
    assert kit.processes_of(agent.run) == []
    assert not agent.run.exists()
    assert str(agent.run) not in Path("/proc/self/mounts").read_text()
    assert await coord.node() is None
    assert await coord.instances() == {}


async def _record(coord: Any, name: str) -> Any:
    return (await coord.instances()).get(name)


async def _gone(coord: Any, name: str) -> bool:
    return name not in await coord.instances()


async def test_the_first_of_a_batch_waits_for_company_where_it_is_told_to(agent: Any, kit: Any) -> None:
    await agent.start(batch_delay_us=1_000_000)
    instance = await agent.start_instance("a", kit.make_linear(agent.repository, "ort").artifact)
    client = await kit.direct(instance)
    answers = await asyncio.gather(*(kit.exchange(client, instance.generation, inputs(kit, 4)) for _ in range(2)))
    assert [answer.batch_size for answer in answers] == [8, 8]
    client.close()


async def test_a_variant_is_fetched_once_and_siblings_share(agent: Any, kit: Any) -> None:
    first, sibling = kit.make_linear(agent.repository, "ort"), kit.make_linear(agent.repository, "ort", bias_seed=1)
    await agent.start()
    one = await agent.start_instance("a", first.artifact)
    assert one.fetched
    assert [time.stage for time in one.stages if time.stage == "fetch"] == ["fetch"]
    fetched = (await agent.status()).stores[0].fetched_bytes
    two = await agent.start_instance("b", sibling.artifact)
    again = await agent.start_instance("c", first.artifact)
    assert (two.fetched, again.fetched, again.start_path) == (True, False, "bind")
    assert one.runtime_id == two.runtime_id == again.runtime_id
    assert (await agent.status()).stores[0].fetched_bytes - fetched < first.weight.nbytes  # the weight is one blob for both
    x = inputs(kit)
    client = await kit.direct(one)
    for instance, model in ((one, first), (two, sibling), (again, first)):
        np.testing.assert_allclose(await kit.ask(client, instance.generation, x), model.expected(x), atol=1e-4)
    client.close()


async def test_an_aten_variant(agent: Any, kit: Any) -> None:
    model = kit.make_linear(agent.repository, "aten")
    await agent.start(flavours=["aten"])
    instance = await agent.start_instance("a", model.artifact)
    client = await kit.relayed(instance)
    x = inputs(kit, 5)
    np.testing.assert_allclose(await kit.ask(client, instance.generation, x), model.expected(x), atol=1e-4)
    client.close()
    await agent.stop_instance("a")
    assert (await agent.status()).stores[0].pinned_bytes == 0


async def test_without_sharing_nothing_of_the_store_is_mapped(agent: Any, kit: Any) -> None:
    model = kit.make_linear(agent.repository, "ort")
    await agent.start(sharing=False)
    instance = await agent.start_instance("a", model.artifact)
    maps = Path(f"/proc/{instance.pid}/maps").read_text()
    assert model.tensor not in maps
    client = await kit.direct(instance)
    x = inputs(kit)
    np.testing.assert_allclose(await kit.ask(client, instance.generation, x), model.expected(x), atol=1e-4)
    client.close()


@pytest.mark.parametrize("verify", [False, True])
async def test_a_corrupted_tensor_is_quarantined_fetched_again_and_never_served(agent: Any, kit: Any, verify: bool) -> None:
    model = kit.make_linear(agent.repository, "ort")
    await agent.start(verify_on_bind=verify)
    first = await agent.start_instance("a", model.artifact)
    assert model.tensor in Path(f"/proc/{first.pid}/maps").read_text()
    file = agent.store / "blobs" / model.tensor
    file.chmod(0o644)
    with file.open("r+b") as opened:
        opened.seek(100)
        opened.write(b"\xff" * 400)
    file.chmod(0o444)
    second = await agent.start_instance("b", model.artifact)
    assert (second.state, second.fetched, second.runtime_id != first.runtime_id) == ("ready", True, True)
    client = await kit.direct(second)
    x = inputs(kit)
    np.testing.assert_allclose(await kit.ask(client, second.generation, x), model.expected(x), atol=1e-4)
    client.close()
    status = await agent.status()
    assert status.stores[0].quarantined == 1
    (failed,) = [item for item in status.instances if item.instance_id == "a"]
    assert failed.state == "failed"
    assert model.tensor in failed.error


async def test_a_file_that_was_touched_but_has_its_bytes_is_trusted_again(agent: Any, kit: Any) -> None:
    model = kit.make_linear(agent.repository, "ort")
    await agent.start()
    await agent.start_instance("a", model.artifact)
    await agent.stop_instance("a")
    file = agent.store / "blobs" / model.tensor
    os.utime(file)
    second = await agent.start_instance("b", model.artifact)
    assert (second.state, second.fetched) == ("ready", False)
    assert is_sealed(file.stat().st_mtime_ns, Digest(model.tensor))
    assert (await agent.status()).stores[0].quarantined == 0


async def test_what_cannot_be_started_says_why(agent: Any, kit: Any) -> None:
    export = kit.make_linear(agent.repository, "onnx")
    await agent.start()
    with pytest.raises(NotFound, match="9" * 64):
        await agent.start_instance("a", "9" * 64)
    with pytest.raises(Unsupported, match="no runtime serves backend 'onnx'"):
        await agent.start_instance("b", export.artifact)
    aten = kit.make_linear(agent.repository, "aten")
    with pytest.raises(FailedPrecondition, match="no runtimes of flavour 'aten'"):
        await agent.start_instance("c", aten.artifact)
    with pytest.raises(InvalidInput, match="start_path"):
        await agent.start_instance("d", start_path="magic")
    elsewhere = common_pb2.VariantKey(trust_domain="other", model="identity", version=1, variant="any")
    with pytest.raises(FailedPrecondition, match="trust domain"):
        await agent.start_instance("e", variant=elsewhere)
    with pytest.raises(StaleTerm):
        await agent.start_instance("f", term=common_pb2.Term(cluster_id=1, revision=4))
    status = await agent.status()
    assert {item.state for item in status.instances} == {"failed"}
    assert status.stores[0].pinned_bytes == 0


async def test_an_export_is_baked_and_the_result_serves(agent: Any, kit: Any) -> None:
    export = kit.make_linear(agent.repository, "onnx")
    await agent.start()
    progress, baked = [], None
    blobs: dict[str, bytearray] = {}
    sizes: dict[str, int] = {}
    async for event in agent.stub.Bake(
        node_pb2.BakeRequest(trust_domain="default", job_id="j", artifact_digest=export.artifact, max_batch=4), timeout=120
    ):
        kind = event.WhichOneof("event")
        if kind == "progress":
            progress.append(event.progress)
        elif kind == "blob":
            assert event.blob.offset == len(blobs.setdefault(event.blob.digest, bytearray()))
            blobs[event.blob.digest] += event.blob.data
            sizes[event.blob.digest] = event.blob.size_bytes
        else:
            baked = event.baked
    assert baked is not None
    assert baked.artifact_digest in blobs
    assert any("optimising" in words for words in progress)
    for digest, data in blobs.items():
        assert len(data) == sizes[digest]
        assert agent.repository.put(Digest(digest), [bytes(data)])  # it lacked each of them, and each is what it is named
    status = await agent.status()
    assert baked.build_class == status.build_class
    assert status.stores[0].pinned_bytes == 0
    assert [path for folder in (agent.folder / "state", agent.run) for path in folder.glob("bake/default/*")] == []
    instance = await agent.start_instance("a", baked.artifact_digest)
    assert instance.max_batch == 4
    x = inputs(kit)
    client = await kit.direct(instance)
    np.testing.assert_allclose(await kit.ask(client, instance.generation, x), export.expected(x), atol=1e-4)
    client.close()
    assert (baked.agreement.samples, baked.agreement.metric) == (3, "")
    assert baked.agreement.max_error <= 1e-4
    # Baking it again sends nothing: the repository has it all.
    kinds = [
        event.WhichOneof("event")
        async for event in agent.stub.Bake(node_pb2.BakeRequest(trust_domain="default", artifact_digest=export.artifact, max_batch=4))
    ]
    assert "blob" not in kinds


async def test_int8_is_baked_with_the_sets_that_the_registry_names(agent: Any, kit: Any) -> None:
    export = kit.make_linear(agent.repository, "onnx")
    await agent.start()
    x = np.random.default_rng(3).standard_normal((24, inputs(kit).shape[1])).astype(np.float32)
    buffer = io.BytesIO()
    np.savez(buffer, x=x, labels=export.expected(x).argmax(axis=1))
    data = buffer.getvalue()
    digest = agent.repository.put_bytes(data)
    request = node_pb2.BakeRequest(trust_domain="default", artifact_digest=export.artifact, max_batch=4, recipe="ort-int8", metric="top1")
    request.evaluation.digest, request.evaluation.size_bytes = digest, len(data)
    events = [event async for event in agent.stub.Bake(request, timeout=120)]
    baked = events[-1].baked
    assert baked.notes == "calibrated on 24 samples of the evaluation set"
    assert (baked.agreement.metric, baked.agreement.samples, baked.agreement.reference_score) == ("top1", 24, 1.0)
    assert 0.5 < baked.agreement.score <= 1.0
    assert (await agent.status()).stores[0].pinned_bytes == 0


async def test_a_baker_that_is_killed_costs_another_try_not_the_variant(agent: Any, kit: Any) -> None:
    export = kit.make_linear(agent.repository, "onnx")
    await agent.start()
    request = node_pb2.BakeRequest(trust_domain="default", artifact_digest=export.artifact, max_batch=4, recipe="ort-int8")

    async def bake_and_kill() -> None:
        async for _ in agent.stub.Bake(request, timeout=120):
            for child in psutil.Process(agent.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):  # it may have ended
                    if "tessera.runtime.bake" in child.cmdline():
                        child.kill()

    with pytest.raises(Unavailable, match="baking ort-int8 was ended by signal 9"):
        await bake_and_kill()
    assert (await agent.status()).stores[0].pinned_bytes == 0
    assert [event async for event in agent.stub.Bake(request, timeout=120)][-1].HasField("baked")


async def test_measuring_leaves_nothing_behind(agent: Any, kit: Any) -> None:
    model = kit.make_linear(agent.repository, "ort")
    await agent.start()
    before = {item.runtime_id for item in (await agent.status()).runtimes}
    variant = common_pb2.VariantKey(trust_domain="default", model="linear", version=1, variant="any")
    order = node_pb2.MeasureRequest(
        variant=variant, artifact_digest=model.artifact, batch=4, threads=1, concurrency=2, seconds=0.5, min_repeats=5, spread=0.5
    )
    loads, rows = [], []
    async for event in agent.stub.Measure(order, timeout=120):
        loads += [event.load] if event.HasField("load") else []
        rows += [event.row] if event.HasField("row") else []
    assert [load.start_path for load in loads] == ["fork", "bind"]
    assert all(time.ms >= 0 for load in loads for time in load.stages)
    (row,) = rows
    assert (row.batch, row.threads, row.concurrency) == (4, 1, 2)
    assert row.repeats >= 5
    assert 0 < row.p50_ms <= row.p99_ms
    assert 0 <= row.spread <= 1
    status = await agent.status()
    assert {item.runtime_id for item in status.runtimes} >= before
    assert [path for path in agent.runtimes.iterdir() if path.name.startswith("measure")] == []
    assert status.stores[0].pinned_bytes == 0


async def test_measuring_yields_to_requests_and_begins_anew(agent: Any, kit: Any) -> None:
    """Real requests to a real instance while a row of seconds runs: its process is gone at once, and comes back when they end."""
    model = kit.make_linear(agent.repository, "ort")
    await agent.start()
    serving = await agent.start_instance("a", model.artifact)
    client = await kit.direct(serving)
    await asyncio.sleep(1.1)  # the start itself was a request
    variant = common_pb2.VariantKey(trust_domain="default", model="linear", version=1, variant="any")
    order = node_pb2.MeasureRequest(variant=variant, artifact_digest=model.artifact, batch=1, threads=1, seconds=3.0, min_repeats=1)
    words, rows = [], []

    async def measure() -> None:
        async for event in agent.stub.Measure(order, timeout=120):
            words.extend([event.progress] if event.progress else [])
            rows.extend([event.row] if event.HasField("row") else [])

    def under_way() -> list[Path]:
        return [path for path in agent.runtimes.iterdir() if path.name.startswith("measure")]

    async def until(condition: Callable[[], bool]) -> None:
        for _ in range(1000):
            if condition():
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"it did not come true in 20 s; heard {words}")

    async def ask() -> None:
        x = inputs(kit)
        np.testing.assert_allclose(await kit.ask(client, serving.generation, x), model.expected(x), atol=1e-4)
        await asyncio.sleep(0.06)

    async with asyncio.TaskGroup() as group:
        group.create_task(measure())
        await until(lambda: bool(under_way()))
        (first,) = under_way()
        async with asyncio.timeout(20):
            while first.exists():
                await ask()
        assert rows == []
        for _ in range(20):  # a second and more of requests
            await ask()
    client.close()
    assert "waiting while the node answers requests" in words
    assert len([each for each in words if each.startswith("measuring batch 1")]) >= 2, "it has begun anew"
    assert [row.batch for row in rows] == [1]
    assert under_way() == []
