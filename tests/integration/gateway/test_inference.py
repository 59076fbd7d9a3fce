"""Requests through the whole gateway, by unmodified clients."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from tessera.api.open_inference import inference_pb2 as pb
from tessera.domain.errors import InvalidInput

from .conftest import World, infer_request

Call = Callable[..., Awaitable[pb.ModelInferResponse]]


def triton_input(array: np.ndarray[Any, Any], datatype: str = "FP32") -> triton.InferInput:
    tensor = triton.InferInput("INPUT0", list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def raw_method(channel: grpc.aio.Channel, name: str) -> Any:
    return channel.unary_unary(f"/inference.GRPCInferenceService/{name}")


async def test_triton_sync_client(served: World) -> None:
    array = np.arange(8, dtype=np.float32).reshape(2, 4)

    def use() -> None:
        with triton.InferenceServerClient(served.doors.address) as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("echo")
            assert client.is_model_ready("echo", "1")
            assert not client.is_model_ready("nobody")
            result = client.infer("echo", [triton_input(array)], request_id="mine", parameters={"colour": "blue"})
            np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)
            response = result.get_response()
            assert response.id == "mine"
            assert response.parameters["variant"].string_param == "ort-fp32"
            assert response.parameters["node"].string_param == "node-0"
            assert response.parameters["start_path"].string_param == "warm"
            assert len(response.parameters["request_id"].string_param) == 32
            answers: queue.Queue[Any] = queue.Queue()
            client.async_infer("echo", [triton_input(array)], callback=lambda result, error: answers.put((result, error)))
            later, error = answers.get(timeout=10)
            assert error is None
            np.testing.assert_array_equal(later.as_numpy("OUTPUT0"), array)

    await asyncio.to_thread(use)


async def test_triton_aio_client_and_descriptions(served: World) -> None:
    array = np.array([[b"a", b"", "ü".encode(), b"\x00\xff"]], dtype=np.object_)
    async with triton_aio.InferenceServerClient(served.doors.address) as client:
        result = await client.infer("echo", [triton_input(array, "BYTES")])
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)
        metadata = await client.get_model_metadata("echo")
        assert [list(t.shape) for t in metadata.inputs] == [[-1, 4]]
        assert list(metadata.versions) == ["1"]
        config = (await client.get_model_config("echo")).config
        assert config.max_batch_size == 8
        assert list(config.input[0].dims) == [4]
        assert config.input[0].data_type == pb.TYPE_FP32
        index = await client.get_model_repository_index()
        assert [(model.name, model.version, model.state) for model in index.models] == [("echo", "1", "READY")]
        server = await client.get_server_metadata()
        assert server.name == "tessera"
        assert list(server.extensions) == ["model_configuration"]
        with pytest.raises(triton.InferenceServerException, match="UNIMPLEMENTED"):
            await client.get_inference_statistics()
        with pytest.raises(triton.InferenceServerException, match="no shared memory"):
            await client.get_system_shared_memory_status()


async def test_streaming_is_refused_with_words(served: World) -> None:
    async with grpc.aio.insecure_channel(served.doors.address) as channel:
        call: Any = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")()
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call.read()
    assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "ModelInfer" in (failure.value.details() or "")


async def test_the_bytes_are_forwarded_untouched_and_the_reply_is_only_appended_to(served: World, call: Call) -> None:
    request = infer_request(id="x", parameters={"priority": pb.InferParameter(uint64_param=3)})
    answer = await call(request)
    assert served.runtimes["r1"].bodies == [request.SerializeToString()]
    assert answer.raw_output_contents == [bytes(16)]
    assert set(answer.parameters) == {"variant", "node", "start_path", "request_id"}


async def test_typed_contents_pass(served: World, call: Call) -> None:
    request = infer_request()
    del request.raw_input_contents[:]
    request.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])
    answer = await call(request)
    assert list(answer.outputs[0].contents.fp32_contents) == [1, 2, 3, 4]


async def test_a_w3c_context_gives_the_request_its_id(served: World, call: Call) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    answer = await call(infer_request(), metadata=(("traceparent", f"00-{trace}-00f067aa0ba902b7-01"),))
    assert answer.parameters["request_id"].string_param == trace
    header = served.runtimes["r1"].headers[-1]
    assert header.trace_id.hex() == trace
    assert header.flags == 1
    assert 59e6 < header.budget_us <= 60e6


@pytest.mark.parametrize("name", ["echo", "echo@1", "echo@1/ort-fp32"])
async def test_ways_to_write_a_model(served: World, call: Call, name: str) -> None:
    assert (await call(infer_request(name))).raw_output_contents


def _parameters(**values: int | str) -> dict[str, pb.InferParameter]:
    return {k: pb.InferParameter(int64_param=v) if isinstance(v, int) else pb.InferParameter(string_param=v) for k, v in values.items()}


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (infer_request("nobody"), grpc.StatusCode.NOT_FOUND, "'nobody' is not registered"),
        (infer_request("No Body"), grpc.StatusCode.NOT_FOUND, "must match"),
        (infer_request(""), grpc.StatusCode.INVALID_ARGUMENT, "model_name '': must not be empty"),
        (infer_request("echo", "7"), grpc.StatusCode.NOT_FOUND, "has no version 7; it has 1"),
        (infer_request("echo", "one"), grpc.StatusCode.INVALID_ARGUMENT, "model version 'one'"),
        (infer_request("echo@1", "2"), grpc.StatusCode.INVALID_ARGUMENT, "model_name says version 1"),
        (infer_request("echo@1/aten-fp32"), grpc.StatusCode.NOT_FOUND, "there are ort-fp32"),
        (infer_request(parameters=_parameters(tessera_speed=1)), grpc.StatusCode.INVALID_ARGUMENT, "parameter tessera_speed: unknown"),
        (infer_request(parameters=_parameters(timeout=-1)), grpc.StatusCode.INVALID_ARGUMENT, "parameter timeout -1"),
        (infer_request(parameters=_parameters(timeout="5")), grpc.StatusCode.INVALID_ARGUMENT, "microseconds"),
    ],
)
async def test_bad_requests_are_told_what_is_wrong(call: Call, request_: pb.ModelInferRequest, code: grpc.StatusCode, words: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call(request_)
    assert failure.value.code() is code
    assert words in (failure.value.details() or "")
    kind = dict(failure.value.trailing_metadata() or ())["tessera-error-kind"]
    assert kind == ("not_found" if code is grpc.StatusCode.NOT_FOUND else "invalid_input")


async def test_bytes_that_are_no_request(served: World) -> None:
    async with grpc.aio.insecure_channel(served.doors.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await raw_method(channel, "ModelInfer")(b"\x0a\xff\xff")
        assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await raw_method(channel, "ModelConfig")(b"\x0a\xff\xff")
        assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_too_large_a_message(start: Any, world: World) -> None:
    await start(max_message_bytes=1024 * 1024)
    async with grpc.aio.insecure_channel(world.doors.address) as channel:
        method: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await method(bytes(2 * 1024 * 1024))
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in (failure.value.details() or "")


async def test_held_bytes_are_bounded(start: Any, world: World) -> None:
    await world.add_node()
    await world.add_model("echo")
    runtime = await world.add_runtime("r1")
    await world.load("echo", runtime)
    runtime.delay_s = 5
    await start(held_bytes_limit=3000)
    request = infer_request(id="x" * 2000).SerializeToString()
    async with grpc.aio.insecure_channel(world.doors.address) as channel:
        method: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        first = asyncio.ensure_future(method(request))
        await asyncio.wait_for(runtime.entered.wait(), 5)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await method(request)
        assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "held_bytes_limit = 3000" in (failure.value.details() or "")
        first.cancel()


async def test_a_runtime_error_reaches_the_client_by_its_kind(served: World, call: Call) -> None:
    served.runtimes["r1"].error = InvalidInput("INPUT0 shape", [1, 4], "must be [-1, 5]")
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call(infer_request())
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "must be [-1, 5]" in (failure.value.details() or "")


async def test_cancellation_reaches_the_runtime(served: World, call: Call) -> None:
    runtime = served.runtimes["r1"]
    runtime.delay_s = 30
    task = asyncio.ensure_future(call(infer_request()))
    await asyncio.wait_for(runtime.entered.wait(), 5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    for _ in range(200):
        if runtime.cancelled:
            break
        await asyncio.sleep(0.02)
    assert runtime.cancelled == 1


async def test_a_deadline_ends_the_request_in_the_runtime_too(served: World, call: Call) -> None:
    runtime = served.runtimes["r1"]
    runtime.delay_s = 30
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call(infer_request(), timeout=0.3)
    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert runtime.headers[0].budget_us <= 0.301e6, "gRPC rounds a deadline up to the millisecond"
    for _ in range(200):
        if runtime.cancelled:
            break
        await asyncio.sleep(0.02)
    assert runtime.cancelled == 1


async def test_the_timeout_parameter_bounds_the_queue_not_the_run(served: World, call: Call) -> None:
    runtime = served.runtimes["r1"]
    runtime.delay_s = 0.2
    answer = await call(infer_request(parameters=_parameters(timeout=50_000)))
    assert answer.raw_output_contents
    assert runtime.headers[0].budget_us <= 50_000


async def test_metrics_count_outcomes(served: World, call: Call) -> None:
    await call(infer_request())
    with pytest.raises(grpc.aio.AioRpcError):
        await call(infer_request("nobody"))
    text = (await asyncio.to_thread(served.metrics)).decode()
    assert 'requests_total{model="echo",node="node-0",outcome="ok",variant="ort-fp32",version="1"} 1.0' in text
    assert 'outcome="not_found"' in text
    assert "tessera_gateway_in_flight 0.0" in text
    assert "nobody" not in text


async def test_health_and_reflection_know_the_service(served: World) -> None:
    from google.protobuf import descriptor_pb2
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    async with grpc.aio.insecure_channel(served.doors.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "inference.GRPCInferenceService"):
            assert (await health.Check(health_pb2.HealthCheckRequest(service=name))).status == health_pb2.HealthCheckResponse.SERVING
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService"),
        ]
        listing, described = [
            answer async for answer in reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter(asked))
        ]
        assert "inference.GRPCInferenceService" in {service.name for service in listing.list_services_response.service}
        found = descriptor_pb2.FileDescriptorProto.FromString(described.file_descriptor_response.file_descriptor_proto[0])
        assert {method.name for method in found.service[0].method} >= {"ModelInfer", "ModelConfig", "RepositoryIndex"}
