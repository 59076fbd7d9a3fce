from __future__ import annotations

import asyncio
import os

import numpy as np
import pytest

from tessera.api.open_inference.inference_pb2 import ModelInferRequest, ModelInferResponse
from tessera.domain.errors import (
    AlreadyExists,
    DataCorrupted,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidInput,
    NotFound,
    Unsupported,
    WrongGeneration,
)
from tessera.tensorstore.seal import seal


async def test_identity_gives_any_datatype_back(zygotes, store, kit):
    runtime = await zygotes("ort").fork()
    generation = await runtime.load(store.put_artifact(kit.identity), variant="identity@1/identity-any")
    client = await runtime.data()
    message = ModelInferRequest(model_name="identity", id="q7", raw_input_contents=[b"\x03\x00\x00\x00abc\x00\x00\x00\x00"])
    message.inputs.add(name="INPUT0", datatype="BYTES", shape=[2])
    answer = ModelInferResponse.FromString(bytes((await client.request(kit.header(generation), message.SerializeToString())).body))
    assert (answer.model_name, answer.model_version, answer.id) == ("identity", "1", "q7")
    assert answer.outputs[0].name == "OUTPUT0"
    assert list(answer.raw_output_contents) == list(message.raw_input_contents)
    message = ModelInferRequest(model_name="identity")
    tensor = message.inputs.add(name="INPUT0", datatype="BYTES", shape=[1, 2])
    tensor.contents.bytes_contents.extend([b"x", b""])
    answer = ModelInferResponse.FromString(bytes((await client.request(kit.header(generation), message.SerializeToString())).body))
    assert list(answer.outputs[0].contents.bytes_contents) == [b"x", b""]
    assert list(answer.outputs[0].shape) == [1, 2]


@pytest.mark.parametrize("backend", ["ort", "aten"])
async def test_models_answer_side_by_side_and_unload_gives_the_maps_back(zygotes, store, kit, backend):
    runtime = await zygotes(backend).fork()
    first, second = kit.linear(store, backend, seed=1), kit.linear(store, backend, seed=2, depth=3)
    one = await runtime.load(first.artifact, "one")
    two = await runtime.load(second.artifact, "two", variant="other@9/any")
    client = await runtime.data()
    x = np.random.default_rng(0).standard_normal((3, kit.width)).astype(np.float32)
    for generation, model, version in ((one, first, "3"), (two, second, "9")):
        for raw in (True, False):
            response = await client.request(kit.header(generation), kit.request(x, raw=raw))
            assert np.abs(kit.output(response) - model.expected(x)).max() < 1e-4
            assert ModelInferResponse.FromString(bytes(response.body)).model_version == version
            assert bool(ModelInferResponse.FromString(bytes(response.body)).raw_output_contents) is raw
    hello = await runtime.control.call("hello")
    assert {item["instance_id"] for item in hello["instances"]} == {"one", "two"}
    wanted = {blob.digest for model in (first, second) for blob in store.artifact(model.artifact).blobs()}
    assert set(hello["holds"]) == wanted
    weights = [store.artifact(model.artifact).tensors[0].digest for model in (first, second)]
    assert all(digest in runtime.maps() for digest in weights)
    released = (await runtime.control.call("unload", instance_id="one", drain_ms=100))["released"]
    assert weights[0] in released
    assert weights[1] not in released
    assert weights[0] in runtime.maps()  # kept for the next load of it, until somebody wants the room
    assert weights[0] in (await runtime.control.call("hello"))["mapped"]
    assert (await runtime.control.call("trim", digests=[weights[1]]))["artifacts"] == 0  # an instance uses it, nothing is kept of it
    assert weights[0] in runtime.maps()
    assert (await runtime.control.call("trim", digests=[weights[0], "0" * 64]))["artifacts"] == 1
    assert weights[0] not in runtime.maps()
    assert (await runtime.control.call("trim"))["artifacts"] == 0
    hello = await runtime.control.call("hello")
    assert weights[0] not in hello["mapped"]
    assert set(hello["mapped"]) <= set(hello["holds"])
    for wrong in ("all", ["../x"]):
        with pytest.raises(InvalidInput, match="digests"):
            await runtime.control.call("trim", digests=wrong)
    assert weights[1] in runtime.maps()
    gone = await client.request(kit.header(one), kit.request(x))
    assert isinstance(gone.error(), WrongGeneration)
    assert np.abs(kit.output(await client.request(kit.header(two), kit.request(x))) - second.expected(x)).max() < 1e-4


async def test_what_was_kept_is_used_again_only_where_the_store_has_the_same_file(zygotes, store, kit):
    runtime = await zygotes("ort").fork()
    model = kit.linear(store, "ort", seed=1)
    digest = store.artifact(model.artifact).tensors[0].digest
    x = np.ones((2, kit.width), np.float32)
    client = await runtime.data()

    async def answer() -> np.ndarray:
        generation = await runtime.load(model.artifact, "one")
        found = kit.output(await client.request(kit.header(generation), kit.request(x)))
        await runtime.control.call("unload", instance_id="one", drain_ms=0)
        return found

    first = await answer()
    (before,) = [line for line in runtime.maps().splitlines() if digest in line]
    assert (await answer() == first).all()
    assert [line for line in runtime.maps().splitlines() if digest in line] == [before]
    path = store.root / "blobs" / digest
    again = path.with_suffix(".new")
    again.write_bytes(path.read_bytes())
    seal(again, digest)
    again.replace(path)  # as after quarantine and a second fetch
    assert (await answer() == first).all()
    (after,) = [line for line in runtime.maps().splitlines() if digest in line]
    assert after.split()[4] != before.split()[4], "another inode"


async def test_siblings_share_a_tensor_until_the_last_is_gone(zygotes, store, kit):
    runtime = await zygotes("ort").fork()
    first = kit.linear(store, "ort", seed=1)
    sibling = kit.linear(store, "ort", seed=1, bias=np.ones(kit.width, np.float32))
    await runtime.load(first.artifact, "one")
    await runtime.load(sibling.artifact, "two")
    shared = store.artifact(first.artifact).tensors[0].digest
    assert runtime.maps().count(shared) == 1
    assert shared not in (await runtime.control.call("unload", instance_id="one", drain_ms=0))["released"]
    assert shared in (await runtime.control.call("unload", instance_id="two", drain_ms=0))["released"]
    assert (await runtime.control.call("hello"))["holds"] == []


async def test_sharing_off_copies_every_tensor(zygotes, store, kit):
    runtime = await zygotes("ort").fork(private=True)
    model = kit.linear(store, "ort")
    generation = await runtime.load(model.artifact)
    assert store.artifact(model.artifact).tensors[0].digest not in runtime.maps()
    client = await runtime.data()
    x = np.ones((1, kit.width), np.float32)
    assert np.abs(kit.output(await client.request(kit.header(generation), kit.request(x))) - model.expected(x)).max() < 1e-4


async def test_requests_are_joined_and_answers_do_not_change(zygotes, store, kit):
    """A deep model keeps the worker busy, so that what comes meanwhile forms batches."""
    runtime = await zygotes("ort").fork()
    model = kit.linear(store, "ort", depth=2000)
    generation = await runtime.load(model.artifact)
    client = await runtime.data()
    random = np.random.default_rng(3)
    inputs = [random.standard_normal((1 + n % 3, kit.width)).astype(np.float32) / 100 for n in range(40)]
    alone = [kit.output(await client.request(kit.header(generation), kit.request(x))) for x in inputs]
    responses = await asyncio.gather(*(client.request(kit.header(generation), kit.request(x)) for x in inputs))
    for response, want in zip(responses, alone, strict=True):
        got = kit.output(response)
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= 1e-4 * max(1, np.abs(want).max())
    sizes = {response.batch_size for response in responses}
    assert max(sizes) > 3
    assert max(sizes) <= 8


async def test_expired_and_cancelled_work_is_dropped_before_it_runs(zygotes, store, kit):
    runtime = await zygotes("ort").fork()
    model = kit.linear(store, "ort", depth=5000, max_batch=1)
    generation = await runtime.load(model.artifact)
    client = await runtime.data()
    x = np.ones((1, kit.width), np.float32)
    running = asyncio.ensure_future(client.request(kit.header(generation), kit.request(x)))
    await asyncio.sleep(0)
    expired = asyncio.ensure_future(client.request(kit.header(generation, budget_us=1), kit.request(x)))
    cancelled = asyncio.ensure_future(client.request(kit.header(generation), kit.request(x)))
    await asyncio.sleep(0)
    cancelled.cancel()
    last = asyncio.ensure_future(client.request(kit.header(generation), kit.request(x)))
    assert (await running).status == 0
    assert isinstance((await expired).error(), DeadlineExceeded)
    assert (await last).status == 0
    assert cancelled.cancelled()
    (status,) = (await runtime.control.call("status"))["instances"]
    assert (status["served"], status["queue"], status["executing"]) == (2, 0, 0)


@pytest.mark.parametrize("backend", ["ort", "aten"])
async def test_bad_inputs_name_field_value_and_limit(zygotes, store, kit, backend):
    runtime = await zygotes(backend).fork()
    generation = await runtime.load(kit.linear(store, backend, max_batch=4).artifact)
    client = await runtime.data()
    for x, name, words in (
        (np.ones((5, kit.width)), "x", "1 to 4"),
        (np.ones((1, 3)), "x", f"[-1, {kit.width}]"),
        (np.ones((1, kit.width)), "z", "the model has x"),
        (np.ones(()), "x", "shape"),
    ):
        error = (await client.request(kit.header(generation), kit.request(x, name=name))).error()
        assert isinstance(error, InvalidInput)
        assert words in str(error)
    error = (await client.request(kit.header(generation), b"\xff\xff not protobuf")).error()
    assert isinstance(error, InvalidInput)


async def test_measure_and_status(zygotes, store, kit):
    runtime = await zygotes("ort").fork(threads=2)
    await runtime.load(kit.linear(store, "ort", depth=50).artifact)
    found = await runtime.control.call("measure", instances=["i-1"], batch=4, seconds=0.05, min_repeats=7)
    assert found["repeats"] >= 7
    assert len(found["quantiles_ms"]) == 201
    assert 0 < found["quantiles_ms"][0] <= found["quantiles_ms"][-1]
    assert found["peak_private_bytes"] >= 0
    with pytest.raises(InvalidInput, match="1 to 8"):
        await runtime.control.call("measure", instances=["i-1"], batch=9, seconds=0, min_repeats=1)
    status = await runtime.control.call("status")
    assert status["private_bytes"] > 0
    assert status["proportional_bytes"] > 0
    assert (await runtime.control.call("hello"))["threads"] == 2


async def test_instances_are_measured_at_the_same_time(zygotes, store, kit):
    runtime = await zygotes("ort").fork()
    model, other = kit.linear(store, "ort", depth=50), kit.linear(store, "ort", seed=9)
    for number, artifact in enumerate([model.artifact, model.artifact, other.artifact]):
        await runtime.control.call("load", instance_id=f"i-{number}", generation=f"{number + 1:016x}", variant="m@1/v", artifact=artifact)
    found = await runtime.control.call("measure", instances=["i-0", "i-1"], batch=2, seconds=0.5, min_repeats=20, spread=0.5)
    assert found["repeats"] >= 20
    assert 0 < found["spread"] <= 0.5
    assert 0 < found["quantiles_ms"][0] <= found["quantiles_ms"][-1]
    for names, words in ((["i-0", "i-2"], "of one artifact"), (["i-0", "i-0"], "each once"), ([], "a list of texts"), ("i-0", "a list")):
        with pytest.raises(InvalidInput, match=words):
            await runtime.control.call("measure", instances=names, batch=1, seconds=0, min_repeats=1)
    with pytest.raises(NotFound, match="i-9"):
        await runtime.control.call("measure", instances=["i-0", "i-9"], batch=1, seconds=0, min_repeats=1)
    measured = await runtime.control.call("measure", instances=["i-1"], batch=1, seconds=0, min_repeats=1)
    assert measured["repeats"] == 1, "a refusal keeps nobody from being measured"


async def test_loads_that_cannot_be_say_why_and_leave_nothing_held(zygotes, store, kit):
    runtime = await zygotes("ort").fork()
    model = kit.linear(store, "ort")
    load = {"instance_id": "i", "generation": "00000000000000aa", "variant": "m@1/v", "artifact": model.artifact}
    with pytest.raises(InvalidInput, match="16 lowercase hex"):
        await runtime.control.call("load", **{**load, "generation": "aa"})
    await runtime.control.call("load", **load)
    with pytest.raises(AlreadyExists):
        await runtime.control.call("load", **load)
    with pytest.raises(NotFound):
        await runtime.control.call("unload", instance_id="other", drain_ms=0)
    with pytest.raises(Unsupported, match="flavour ort"):
        await runtime.load(kit.linear(store, "aten").artifact, "aten")
    assert (await runtime.control.event("released"))["digests"], "a refused load holds nothing"
    with pytest.raises(Unsupported, match="a runtime knows"):
        await runtime.control.call("dance")
    before = set((await runtime.control.call("hello"))["holds"])
    other = kit.linear(store, "ort", seed=9)
    weight = store.artifact(other.artifact).tensors[0]
    path = store.path(weight.digest)
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataCorrupted, match=weight.digest):
        await runtime.load(other.artifact, "corrupt", verify=True)
    event = await runtime.control.event("released")
    assert weight.digest in event["digests"]
    path.unlink()
    with pytest.raises(NotFound, match=weight.digest):
        await runtime.load(other.artifact, "corrupt")
    assert weight.digest not in runtime.maps()
    assert set((await runtime.control.call("hello"))["holds"]) == before


async def test_artifact_of_another_build_class_is_refused(zygotes, store, kit):
    from dataclasses import replace

    runtime = await zygotes("ort").fork()
    artifact = replace(store.artifact(kit.linear(store, "ort").artifact), build_class="x86_64-other-ort0.0")
    with pytest.raises(FailedPrecondition, match="x86_64-other"):
        await runtime.load(store.put_artifact(artifact))


async def test_ort_runtime_never_has_torch(zygotes, store, kit):
    runtime = await zygotes("ort").fork()
    await runtime.load(kit.linear(store, "ort").artifact)
    assert "libtorch" not in runtime.maps()
    assert "onnxruntime" in runtime.maps()
    other = await zygotes("aten").fork()
    assert "libtorch" in other.maps()
    assert "onnxruntime" not in other.maps()
    assert len(os.listdir(f"/proc/{zygotes('ort').process.pid}/task")) == 1
    assert len(os.listdir(f"/proc/{zygotes('aten').process.pid}/task")) == 1
