"""Objectives on the wire: three networks of one task, and whose answer comes for what was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from tessera.api.common.v1 import common_pb2
from tessera.api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from tessera.api.open_inference import inference_pb2 as pb
from tessera.coord import keys
from tessera.domain.errors import FailedPrecondition, InvalidInput, NotFound
from tessera.domain.ids import InstanceId, NodeId
from tessera.domain.records import LoadRecord, LoadState
from tessera.frames.openinference import parse_request
from tessera.rpc import connect
from tessera.sdk import AsyncClient, Objectives
from tessera.testing.coord import FakeCoordinator

from .conftest import DOMAIN, TOKEN, EchoRuntime, World, infer_request, variant_key

Call = Callable[..., Awaitable[pb.ModelInferResponse]]
NETWORKS = {"small": (2.0, 0.90), "middle": (8.0, 0.96), "large": (30.0, 0.99)}


def asking(name: str, **objectives: Any) -> pb.ModelInferRequest:
    request = infer_request(name)
    for key, value in objectives.items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(request.parameters[key], kind, value)
    return request


def parameters(answer: pb.ModelInferResponse) -> dict[str, str]:
    return {name: value.string_param for name, value in answer.parameters.items()}


@pytest.fixture
async def networks(served: World) -> EchoRuntime:
    """All three of them, measured and active."""
    runtime = await served.add_runtime("r9")
    for name, (latency_ms, accuracy) in NETWORKS.items():
        await served.add_model(name, task="digits", accuracy=accuracy)
        await served.add_profile(name, latency_ms)
        await served.load(name, runtime)
    await asyncio.sleep(0.1)
    return runtime


async def test_each_objective_has_its_network(call: Call, networks: EchoRuntime) -> None:
    asked: dict[str, dict[str, Any]] = {
        "small": {"latency_ms": 5},
        "middle": {"min_accuracy": 0.95, "latency_ms": 20.0},
        "large": {"min_accuracy": 0.98, "strict": True},
    }
    for network, objectives in asked.items():
        answer = await call(asking("task:digits", **objectives))
        said = parameters(answer)
        assert (said["model"], said["variant"]) == (f"{network}@1", "ort-fp32")
        assert "objective_missed" not in said
        assert answer.model_name == "task:digits"
    body = parse_request(networks.bodies[-1])
    assert (body.parameters["min_accuracy"], body.parameters["strict"]) == (0.98, True), "the bytes pass untouched"
    assert "model" not in parameters(await call(infer_request("middle")))


async def test_what_nothing_meets_is_answered_by_the_closest_or_refused(call: Call, networks: EchoRuntime) -> None:
    answer = await call(asking("task:digits", min_accuracy=0.995))
    assert (parameters(answer)["model"], parameters(answer)["objective_missed"]) == ("large@1", "min_accuracy by 0.005")
    sent = len(networks.bodies)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(asking("task:digits", min_accuracy=0.98, latency_ms=10.0, strict=True))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "the closest is middle@1/ort-fp32, which misses min_accuracy by 0.02" in str(caught.value.details())
    assert len(networks.bodies) == sent


@pytest.mark.parametrize(
    ("objectives", "words"),
    [
        ({"latency_ms": -1.0}, "parameter latency_ms -1.0: must be a number above 0"),
        ({"min_accuracy": 1.5}, "parameter min_accuracy 1.5"),
        ({"max_cost": "cheap"}, "parameter max_cost 'cheap'"),
        ({"strict": True}, "needs an objective beside it"),
        ({"tessera_latency": 3}, "tessera_latency"),
        ({"latency_ms": True}, "parameter latency_ms True"),
    ],
)
async def test_bad_objectives_name_what_is_wrong(call: Call, networks: EchoRuntime, objectives: dict[str, Any], words: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(asking("task:digits", **objectives))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in str(caught.value.details())


async def test_a_variant_that_was_named_still_says_what_it_misses(call: Call, networks: EchoRuntime) -> None:
    answer = await call(asking("small@1/ort-fp32", min_accuracy=0.95))
    assert parameters(answer)["objective_missed"] == "min_accuracy by 0.05"


async def test_an_instance_with_trouble_loses_its_requests_to_another_network(served: World, call: Call, networks: EchoRuntime) -> None:
    first = parameters(await call(asking("task:digits", latency_ms=50.0)))
    assert first["model"] == "small@1"
    listing = await FakeCoordinator(served.etcd).list(keys.instances(DOMAIN))
    instance_id = next(item.key.rpartition("/")[2] for item in listing.items if b"small" in item.value)
    record = LoadRecord(InstanceId(instance_id), NodeId("node-0"), variant_key("small"), LoadState.OVERLOADED, 0.0, "at its peak")
    await served.put(keys.load(DOMAIN, record.node_id, record.instance_id), record)
    await asyncio.sleep(0.1)
    assert parameters(await call(asking("task:digits", latency_ms=50.0)))["model"] == "middle@1"
    assert parameters(await call(infer_request("small")))["variant"] == "ort-fp32", "it is still better than nothing"


async def test_a_task_is_described_by_what_its_models_have_in_common(served: World, networks: EchoRuntime) -> None:
    async with AsyncClient(served.doors.address) as client:
        assert await client.is_ready("task:digits")
        assert not await client.is_ready("task:letters")
        described = await client.metadata("task:digits")
        assert [(one.name, one.datatype, list(one.shape)) for one in described.inputs] == [("INPUT0", "FP32", [-1, 4])]
        assert list(described.versions) == []
        assert (await client.config("task:digits")).max_batch_size == 8
        with pytest.raises(NotFound, match="no model is registered for task 'letters'; there are digits"):
            await client.metadata("task:letters")
        with pytest.raises(InvalidInput, match="stands for several models"):
            await client.infer("task:digits", {"INPUT0": np.zeros((1, 4), np.float32)}, version=1)


async def test_the_sdk_says_objectives_in_types(served: World, networks: EchoRuntime) -> None:
    inputs = {"INPUT0": np.zeros((1, 4), np.float32)}
    async with AsyncClient(served.doors.address) as client:
        answer = await client.infer("task:digits", inputs, objectives=Objectives(min_accuracy=0.98))
        assert (answer.answered_by, answer.model, answer.objective_missed) == ("large@1", "task:digits", "")
        answer = await client.infer("small", inputs, objectives=Objectives(min_accuracy=0.98))
        assert (answer.answered_by, answer.objective_missed) == ("small@1", "min_accuracy by 0.08")
        with pytest.raises(FailedPrecondition, match="the closest is small@1/ort-fp32"):
            await client.infer("small", inputs, objectives=Objectives(min_accuracy=0.98, strict=True))
        with pytest.raises(InvalidInput, match="among the objectives, too"):
            await client.infer("small", inputs, objectives=Objectives(latency_ms=9.0), parameters={"latency_ms": 3})


async def test_tritonclient_asks_by_parameters(served: World, networks: EchoRuntime) -> None:
    import tritonclient.grpc.aio as triton

    client = triton.InferenceServerClient(served.doors.address)
    try:
        given = triton.InferInput("INPUT0", [1, 4], "FP32")
        given.set_data_from_numpy(np.ones((1, 4), np.float32))
        answer = await client.infer("task:digits", [given], parameters={"latency_ms": 20, "min_accuracy": 0.95})
        assert answer.as_numpy("OUTPUT0").tolist() == [[1.0] * 4]
        assert answer.get_response().parameters["model"].string_param == "middle@1"
    finally:
        await client.close()


async def test_explain_gives_everyone_their_figures(served: World, call: Call, networks: EchoRuntime) -> None:
    async with connect(served.doors.admin_address, token=TOKEN) as channel:
        stub = gateway_pb2_grpc.GatewayStub(channel)
        # Before the answer, from which predictions learn unless it had to open the way to its runtime.
        would = await stub.Explain(gateway_pb2.ExplainRequest(model="task:digits", objectives=common_pb2.Objectives(min_accuracy=0.95)))
        answer = parameters(await call(asking("task:digits", min_accuracy=0.95)))
        told = await stub.Explain(gateway_pb2.ExplainRequest(request_id=answer["request_id"]))
        with pytest.raises(InvalidInput, match="latency_ms"):
            await stub.Explain(gateway_pb2.ExplainRequest(model="task:digits", objectives=common_pb2.Objectives(latency_ms=-2)))
        with pytest.raises(NotFound):
            await stub.Explain(gateway_pb2.ExplainRequest(model="nothing"))
        nobody = await stub.Explain(gateway_pb2.ExplainRequest(model="task:digits", objectives=common_pb2.Objectives(min_accuracy=1)))
    for one in (told, would):
        assert (one.model, one.objectives, one.objective_missed) == ("task:digits", "min_accuracy=0.95", "")
        assert [option.variant.model for option in one.variants] == ["middle", "large", "small"]
        best, large, small = one.variants
        assert best.chosen
        assert (best.latency_ms, best.load_ms, best.accuracy, best.accuracy_source, best.load_state) == (8.0, 4.0, 0.96, "stated", "active")
        assert large.reason.endswith("22 ms slower than middle@1/ort-fp32 at best")
        assert small.reason == "misses min_accuracy by 0.05"
        (instance,) = best.instances
        assert (instance.node_id, instance.in_flight, instance.expected_ms, instance.chosen) == ("node-0", 0, 8.0, True)
        assert one.predicted_ms == 8.0
    assert told.instance_id == would.instance_id
    assert told.actual_ms > 0
    assert (told.variants[0].instances[0].then, told.snapshot > 0) == (True, True)
    assert nobody.objective_missed == "min_accuracy by 0.01"
    assert nobody.variants[0].reason.endswith("the closest, misses min_accuracy by 0.01")
