"""Any Open Inference client works unmodified: tritonclient in its three forms, raw protobuf stubs, reflection, and our own SDK."""

from __future__ import annotations

import queue
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any

import e2e_models
import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from e2e_models import agrees
from e2e_platform import Platform, environment
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as pb_grpc

from tessera.sdk import AsyncClient, Client, DeadlineExceeded, NotFound

PARAMETERS = {"variant", "node", "start_path", "request_id"}
TRACE = "4bf92f3577b34da6a3ce929d0e0e47%02x"


@pytest.fixture
def sync(platform: Platform) -> Iterator[Any]:
    with triton.InferenceServerClient(platform.endpoint) as found:
        yield found


@pytest.fixture
async def aio(platform: Platform) -> AsyncIterator[Any]:
    async with triton_aio.InferenceServerClient(platform.endpoint) as found:
        yield found


@pytest.fixture
def stub(platform: Platform) -> Iterator[Any]:
    with grpc.insecure_channel(platform.endpoint) as channel:
        yield pb_grpc.GRPCInferenceServiceStub(channel)


def image_input(images: np.ndarray, kind: Any = triton) -> list[Any]:
    found = kind.InferInput("image", list(images.shape), "FP32")
    found.set_data_from_numpy(images)
    return [found]


def parameters(answer: Any) -> dict[str, str]:
    return {name: value.string_param for name, value in answer.get_response().parameters.items()}


def typed_request(images: np.ndarray, model: str = "net") -> Any:
    request = pb.ModelInferRequest(model_name=model)
    given = request.inputs.add(name="image", datatype="FP32", shape=images.shape)
    given.contents.fp32_contents.extend(images.ravel().tolist())
    return request


# tritonclient


def test_tritonclient_asks_for_health_metadata_and_configuration(sync: Any) -> None:
    assert sync.is_server_live()
    assert sync.is_server_ready()
    assert sync.is_model_ready("net")
    assert sync.is_model_ready("net", "1")
    assert not sync.is_model_ready("no-such-model")
    assert sync.get_server_metadata().name == "tessera"
    metadata = sync.get_model_metadata("net")
    assert [(each.name, each.datatype, list(each.shape)) for each in metadata.inputs] == [("image", "FP32", [-1, 1, 8, 8])]
    assert [(each.datatype, list(each.shape)) for each in metadata.outputs] == [("FP32", [-1, 10])]
    assert list(metadata.versions) == ["1"]
    config = sync.get_model_config("net").config
    assert (config.name, list(config.input[0].dims), list(config.output[0].dims)) == ("net", [1, 8, 8], [10])
    assert config.max_batch_size >= 2


def test_tritonclient_infers_by_raw_contents(sync: Any, net: e2e_models.Net) -> None:
    images = e2e_models.images(3)
    answer = sync.infer("net", image_input(images), request_id="mine")
    output = sync.get_model_metadata("net").outputs[0].name
    assert agrees(answer.as_numpy(output), net.eager(images))
    response = answer.get_response()
    assert (response.model_name, response.model_version, response.id) == ("net", "1", "mine")


def test_tritonclient_infers_only_the_outputs_it_asks_for(sync: Any) -> None:
    tokens = np.ones((2, 5), np.int64)
    given = []
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        one = triton.InferInput(name, list(tokens.shape), "INT64")
        one.set_data_from_numpy(tokens if name != "token_type_ids" else np.zeros_like(tokens))
        given.append(one)
    answer = sync.infer("bert", given, outputs=[triton.InferRequestedOutput("last_hidden_state")])
    assert answer.as_numpy("last_hidden_state").shape == (2, 5, 32)


def test_tritonclient_infers_with_a_callback(sync: Any, net: e2e_models.Net) -> None:
    answers: queue.Queue[tuple[int, Any, Any]] = queue.Queue()
    for index in range(8):
        images = e2e_models.images(1 + index % 3, seed=index)
        sync.async_infer("net", image_input(images), callback=lambda result, error, index=index: answers.put((index, result, error)))
    output = sync.get_model_metadata("net").outputs[0].name
    seen = set()
    for _ in range(8):
        index, result, error = answers.get(timeout=60)
        assert error is None
        assert agrees(result.as_numpy(output), net.eager(e2e_models.images(1 + index % 3, seed=index)))
        seen.add(index)
    assert seen == set(range(8))


async def test_tritonclient_aio(aio: Any, net: e2e_models.Net) -> None:
    assert await aio.is_server_live()
    assert await aio.is_server_ready()
    assert await aio.is_model_ready("net")
    metadata = await aio.get_model_metadata("net", as_json=True)
    assert metadata["inputs"][0]["shape"] == ["-1", "1", "8", "8"]
    assert (await aio.get_model_config("net", as_json=True))["config"]["name"] == "net"
    images = e2e_models.images(4)
    answer = await aio.infer("net", image_input(images, triton_aio))
    assert agrees(answer.as_numpy(metadata["outputs"][0]["name"]), net.eager(images))


def test_bytes_go_through_identity(sync: Any) -> None:
    words = np.array([[b"", b"\x00\xff"], ["grüß".encode(), b"x" * 1000]], dtype=object)
    given = triton.InferInput("INPUT0", [2, 2], "BYTES")
    given.set_data_from_numpy(words)
    answer = sync.infer("identity", [given])
    assert answer.as_numpy("OUTPUT0").tolist() == words.tolist()
    assert answer.get_output("OUTPUT0").datatype == "BYTES"


@pytest.mark.parametrize("datatype", ["bool", "uint8", "int16", "float16", "int64", "float64"])
def test_every_datatype_goes_through_identity(sync: Any, datatype: str) -> None:
    values = np.arange(-3, 3).reshape(1, 2, 3).astype(datatype)
    given = triton.InferInput("INPUT0", list(values.shape), triton._utils.np_to_triton_dtype(values.dtype))
    given.set_data_from_numpy(values)
    found = sync.infer("identity", [given]).as_numpy("OUTPUT0")
    assert found.dtype == values.dtype
    assert np.array_equal(found, values)


@pytest.mark.parametrize(
    ("model", "version", "words"),
    [
        ("no-such-model", "", "no-such-model"),
        ("net", "7", "7"),
        ("net@7", "", "7"),
        ("net@1/int8", "", "int8"),
        ("Bad Name", "", "Bad Name"),
    ],
)
def test_unknown_model_version_and_variant_are_not_found(sync: Any, model: str, version: str, words: str) -> None:
    for ask in (
        lambda: sync.infer(model, image_input(e2e_models.images(1)), model_version=version),
        lambda: sync.get_model_metadata(model, version),
        lambda: sync.get_model_config(model, version),
    ):
        with pytest.raises(triton.InferenceServerException, match=words) as refused:
            ask()
        assert refused.value.status() == "StatusCode.NOT_FOUND"


def test_repository_index_lists_every_version(sync: Any) -> None:
    rows = {(row.name, row.version): row.state for row in sync.get_model_repository_index().models}
    assert {("net", "1"): "READY", ("bert", "1"): "READY", ("identity", "1"): "READY"}.items() <= rows.items()


def test_reply_says_who_answered_and_how(sync: Any) -> None:
    first = parameters(sync.infer("net@1/ort-fp32", image_input(e2e_models.images(1))))
    assert set(first) == PARAMETERS
    assert (first["variant"], first["node"]) == ("ort-fp32", "node-0")
    assert first["start_path"] in {"warm", "bind", "fork"}
    second = parameters(sync.infer("net@1/ort-fp32", image_input(e2e_models.images(1))))
    assert second["start_path"] == "warm"
    assert len(second["request_id"]) == 32
    assert second["request_id"] != first["request_id"]


def test_the_clients_trace_id_becomes_the_request_id(sync: Any, client: Client) -> None:
    trace = TRACE % 1
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    assert parameters(sync.infer("net", image_input(e2e_models.images(1)), headers=headers))["request_id"] == trace
    explained = client.explain(trace)
    assert (explained.request_id, explained.outcome) == (trace, "ok")
    spans = client.trace(trace).spans
    assert {span.trace_id for span in spans} == {trace}
    (root,) = [span for span in spans if span.parent_span_id == "00f067aa0ba902b7"]
    assert root.service == "gateway"


def test_what_is_no_trace_context_is_passed_over(sync: Any) -> None:
    answer = sync.infer("net", image_input(e2e_models.images(1)), headers={"traceparent": "00-zz-1-01"})
    assert len(parameters(answer)["request_id"]) == 32


def test_client_timeout_is_a_deadline(platform: Platform, sync: Any) -> None:
    given = image_input(e2e_models.images(1))
    assert parameters(sync.infer("net@1/ort-fp32", given, client_timeout=60.0))["variant"] == "ort-fp32"
    with platform.frozen("net", "ort-fp32"), pytest.raises(triton.InferenceServerException) as late:
        sync.infer("net@1/ort-fp32", given, client_timeout=0.3)
    assert late.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert parameters(sync.infer("net@1/ort-fp32", given, client_timeout=60.0))["variant"] == "ort-fp32"


# Raw protobuf stubs


def test_typed_contents_are_answered_typed(stub: Any, net: e2e_models.Net) -> None:
    images = e2e_models.images(2)
    answer = stub.ModelInfer(typed_request(images), timeout=60)
    assert not answer.raw_output_contents
    (output,) = answer.outputs
    found = np.array(output.contents.fp32_contents, np.float32).reshape(list(output.shape))
    assert agrees(found, net.eager(images))


def test_typed_contents_of_several_datatypes(stub: Any) -> None:
    for datatype, field, values in (
        ("BYTES", "bytes_contents", [b"a", b"", b"\xff"]),
        ("INT64", "int64_contents", [-(2**62), 0, 2**62]),
        ("UINT8", "uint_contents", [0, 7, 255]),
        ("BOOL", "bool_contents", [True, False, True]),
        ("FP64", "fp64_contents", [0.5, -1e300, 0.0]),
    ):
        request = pb.ModelInferRequest(model_name="identity")
        given = request.inputs.add(name="INPUT0", datatype=datatype, shape=[1, 3])
        getattr(given.contents, field).extend(values)
        (output,) = stub.ModelInfer(request, timeout=60).outputs
        assert list(getattr(output.contents, field)) == values, datatype
        assert (output.datatype, list(output.shape)) == (datatype, [1, 3])


def test_typed_and_raw_agree_bit_for_bit(stub: Any) -> None:
    images = e2e_models.images(1)
    typed = stub.ModelInfer(typed_request(images, "net@1/ort-fp32"), timeout=60)
    request = pb.ModelInferRequest(model_name="net@1/ort-fp32", raw_input_contents=[images.tobytes()])
    request.inputs.add(name="image", datatype="FP32", shape=images.shape)
    raw = stub.ModelInfer(request, timeout=60)
    assert np.array(typed.outputs[0].contents.fp32_contents, np.float32).tobytes() == raw.raw_output_contents[0]


def test_what_is_not_offered_is_unimplemented(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest(), timeout=30)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


# Reflection and health


def test_the_standard_health_service_answers(platform: Platform) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(platform.endpoint) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "inference.GRPCInferenceService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=30)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_reflection_client_lists_and_calls_the_service(platform: Platform, net: e2e_models.Net) -> None:
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    images = e2e_models.images(2)
    with grpc.insecure_channel(platform.endpoint) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "inference.GRPCInferenceService" in database.get_services()
        service = DescriptorPool(database).FindServiceByName("inference.GRPCInferenceService")
        assert {"ServerLive", "ModelInfer", "ModelConfig", "RepositoryIndex"} <= {method.name for method in service.methods}
        method = service.FindMethodByName("ModelInfer")
        request = GetMessageClass(method.input_type)(model_name="net", raw_input_contents=[images.tobytes()])
        request.inputs.add(name="image", datatype="FP32", shape=images.shape)
        call = channel.unary_unary(
            f"/{service.full_name}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        answer = call(request, timeout=60)
    assert agrees(np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(2, -1), net.eager(images))


# The SDK


@pytest.mark.parametrize("variant", ["aten-fp32", "ort-fp32"])
def test_both_variants_agree_with_eager_torch(client: Client, net: e2e_models.Net, variant: str) -> None:
    for rows in (1, 2, 5):
        images = e2e_models.images(rows, seed=rows)
        answer = client.infer(f"net@1/{variant}", {"image": images})
        assert (answer.model_version, answer.variant) == ("1", variant)
        (output,) = answer.outputs.values()
        assert agrees(output, net.eager(images))


@pytest.mark.parametrize("variant", ["aten-fp32", "ort-fp32"])
def test_both_variants_of_a_transformer_agree_with_eager_torch(client: Client, bert: Any, variant: str) -> None:
    import torch

    random = np.random.default_rng(5)
    for rows, length in ((1, 3), (2, 11), (3, 40)):
        tokens = {
            "input_ids": random.integers(3, 100, (rows, length)),
            "attention_mask": np.ones((rows, length), np.int64),
            "token_type_ids": random.integers(0, 2, (rows, length)),
        }
        tokens["attention_mask"][0, length // 2 :] = 0
        (output,) = client.infer(f"bert@1/{variant}", tokens).outputs.values()
        eager = bert(**{name: torch.from_numpy(value) for name, value in tokens.items()}).last_hidden_state.numpy()
        assert agrees(output, eager), (rows, length)


@pytest.fixture(scope="module")
def bert(bert_recipe: tuple[int, dict[str, Any]]) -> Any:
    seed, arguments = bert_recipe
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own
        from tessera.registry.builders import bert

        return e2e_models.bert(bert, seed, arguments)


def test_the_sdk_asks_for_everything(client: Client) -> None:
    assert client.is_live()
    assert client.is_ready()
    assert client.is_ready("net")
    assert not client.is_ready("no-such-model")
    assert {"net", "bert", "identity"} <= {model.name for model in client.models()}
    assert [model.name for model in client.models(task="shapes")] == ["net"]
    found = client.model("net")
    assert {variant.key.variant: variant.state for variant in found.versions[0].variants} == {"aten-fp32": "ready", "ort-fp32": "ready"}
    assert [node.node_id for node in client.nodes()] == ["node-0"]
    with pytest.raises(NotFound, match="no-such-model"):
        client.infer("no-such-model", {"image": e2e_models.images(1)})


def test_the_sdks_timeout_is_a_deadline(platform: Platform, client: Client) -> None:
    given = {"image": e2e_models.images(1)}
    client.infer("net@1/ort-fp32", given)
    with platform.frozen("net", "ort-fp32"), pytest.raises(DeadlineExceeded):
        client.infer("net@1/ort-fp32", given, timeout_s=0.3)
    assert client.infer("net@1/ort-fp32", given, timeout_s=60).outputs


async def test_the_asynchronous_sdk(platform: Platform, net: e2e_models.Net) -> None:
    async with AsyncClient(state=platform.state) as client:
        assert await client.is_ready("net")
        assert {"net", "bert", "identity"} <= {model.name for model in await client.models()}
        images = e2e_models.images(2)
        answer = await client.infer("net", {"image": images})
        (output,) = answer.outputs.values()
        assert agrees(output, net.eager(images))
        explained = await client.explain(answer.request_id)
        assert (explained.model, explained.outcome) == ("net@1", "ok")
        with pytest.raises(NotFound, match="no-such-model"):
            await client.infer("no-such-model", {"image": images})


@pytest.mark.parametrize("package", ["tessera.sdk", "tessera.cli.__main__", "tessera.gateway.app", "tessera.scheduler.app"])
def test_importing_it_loads_no_torch(package: str) -> None:
    words = f"import sys, {package}; print(sorted({{'torch', 'onnxruntime', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, timeout=60, env=environment(), check=True)
    assert done.stdout.strip() == "[]"
