"""What is wrong is refused with a status that names the field and the limit, and disturbs nobody."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import blake3
import e2e_models
import grpc
import numpy as np
import pytest
from e2e_models import agrees
from e2e_platform import Platform
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as pb_grpc

from tessera.api.registry.v1 import registry_pb2, registry_pb2_grpc
from tessera.sdk import Client, InvalidInput, NotFound, ResourceExhausted, TesseraError, Unsupported

LARGEST_TENSOR = 64 << 20
MESSAGE_LIMIT = LARGEST_TENSOR + (64 << 10)
"""Names and parameters come on top."""
HUGE = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
Request = Any


@pytest.fixture
def stub(platform: Platform) -> Iterator[Any]:
    with grpc.insecure_channel(platform.endpoint, options=HUGE) as channel:
        yield pb_grpc.GRPCInferenceServiceStub(channel)


def request(model: str = "net", datatype: str = "FP32", shape: tuple[int, ...] = (1, 1, 8, 8), raw: bytes | None = None) -> Request:
    """Right as it stands; tests spoil it."""
    found = pb.ModelInferRequest(model_name=model)
    found.inputs.add(name="image", datatype=datatype, shape=shape)
    found.raw_input_contents.append(bytes(256) if raw is None else raw)
    return found


def mixed() -> Request:
    found = request()
    found.inputs[0].contents.fp32_contents.extend([0.0] * 64)
    return found


def no_inputs() -> Request:
    return pb.ModelInferRequest(model_name="net")


def with_parameter(name: str, **value: Any) -> Request:
    found = request()
    found.parameters[name].CopyFrom(pb.InferParameter(**value))
    return found


def changed(change: Callable[[Request], Any]) -> Request:
    found = request()
    change(found)
    return found


BAD_REQUESTS: dict[str, tuple[Callable[[], Request], tuple[str, ...]]] = {
    "dtype": (lambda: request(datatype="INT32"), ("image", "INT32", "FP32")),
    "unknown dtype": (lambda: request(datatype="FP31"), ("image", "FP31")),
    "dtype of other size": (lambda: request(datatype="FP64", raw=bytes(512)), ("image", "FP64", "FP32")),
    "rank": (lambda: request(shape=(1, 64)), ("image", "[1, 64]", "[-1, 1, 8, 8]")),
    "no dimensions": (lambda: request(shape=(), raw=bytes(4)), ("image", "[-1, 1, 8, 8]")),
    "shape": (lambda: request(shape=(1, 1, 8, 9), raw=bytes(288)), ("image", "[1, 1, 8, 9]", "[-1, 1, 8, 8]")),
    "negative dimension": (lambda: request(shape=(-1, 1, 8, 8)), ("image", "-1")),
    "absurd dimension": (lambda: request(shape=(2**40, 1, 8, 8)), (str(2**40),)),
    "dimensions whose product overflows": (lambda: request(shape=(2**62, 1, 8, 8)), (str(2**62),)),
    "empty batch": (lambda: request(shape=(0, 1, 8, 8), raw=b""), ("batch", "0")),
    "byte length": (lambda: request(raw=bytes(255)), ("image", "255", "256")),
    "no bytes": (lambda: request(raw=b""), ("image", "256")),
    "raw and typed mixed": (mixed, ("raw_input_contents", "mixed")),
    "no inputs": (no_inputs, ("inputs", "image")),
    "two raw contents for one input": (lambda: changed(lambda r: r.raw_input_contents.append(b"")), ("raw_input_contents", "2")),
    "no raw contents for an input": (lambda: changed(lambda r: r.ClearField("raw_input_contents")), ("image",)),
    "wrong name": (lambda: changed(lambda r: setattr(r.inputs[0], "name", "picture")), ("picture", "image")),
    "input twice": (lambda: changed(lambda r: (r.inputs.append(r.inputs[0]), r.raw_input_contents.append(bytes(256)))), ("image", "twice")),
    "unknown output": (lambda: changed(lambda r: r.outputs.add(name="nothing")), ("nothing",)),
    "typed values in another field": (
        lambda: changed(lambda r: (r.ClearField("raw_input_contents"), r.inputs[0].contents.int_contents.extend([0] * 64))),
        ("image", "fp32_contents"),
    ),
    "too few typed values": (
        lambda: changed(lambda r: (r.ClearField("raw_input_contents"), r.inputs[0].contents.fp32_contents.extend([0.0] * 63))),
        ("image", "63", "64"),
    ),
    "no model": (lambda: request(model=""), ("model_name",)),
    "misspelt objective": (lambda: with_parameter("tessera_min_acuracy", double_param=0.9), ("tessera_min_acuracy",)),
    "timeout that is no number": (lambda: with_parameter("timeout", string_param="soon"), ("timeout", "soon")),
}


@pytest.mark.parametrize("what", BAD_REQUESTS)
def test_a_bad_request_names_the_field_and_the_limit(stub: Any, what: str) -> None:
    make, words = BAD_REQUESTS[what]
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(make(), timeout=60)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, refused.value.details()
    assert all(word in refused.value.details() for word in words), refused.value.details()
    assert dict(refused.value.trailing_metadata())["tessera-error-kind"] == "invalid_input"
    assert stub.ModelInfer(request(), timeout=60).raw_output_contents, "the next one is answered"


def test_what_is_no_message_is_refused(platform: Platform) -> None:
    with grpc.insecure_channel(platform.endpoint) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for body in (b"\xff" * 40, b"\x0a\x7f", request().SerializeToString()[:-10], os.urandom(300)):
            with pytest.raises(grpc.RpcError) as refused:
                call(body, timeout=60)
            assert refused.value.code() in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}, body


def test_bytes_elements_that_are_cut_off_are_refused(stub: Any) -> None:
    for raw, words in ((struct.pack("<I", 9) + b"short", "element 0"), (b"\x01\x00", "cut off")):
        bad = pb.ModelInferRequest(model_name="identity", raw_input_contents=[raw])
        bad.inputs.add(name="INPUT0", datatype="BYTES", shape=[1, 1])
        with pytest.raises(grpc.RpcError, match=words) as refused:
            stub.ModelInfer(bad, timeout=60)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_too_large_a_batch_names_the_limit(client: Client) -> None:
    (variant,) = {variant.max_batch for variant in client.model("net").versions[0].variants}
    with pytest.raises(InvalidInput, match=rf"batch.* {variant + 1}.*{variant}"):
        client.infer("net", {"image": e2e_models.images(variant + 1)})
    assert client.infer("net", {"image": e2e_models.images(variant)}).outputs


def test_too_large_a_message_is_refused_and_the_largest_is_not(stub: Any) -> None:
    def identity(payload: int) -> Request:
        found = pb.ModelInferRequest(model_name="identity", raw_input_contents=[bytes(payload)])
        found.inputs.add(name="INPUT0", datatype="UINT8", shape=[1, payload])
        return found

    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(identity(MESSAGE_LIMIT), timeout=60)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(MESSAGE_LIMIT) in refused.value.details()
    assert len(stub.ModelInfer(identity(LARGEST_TENSOR), timeout=60).raw_output_contents[0]) == LARGEST_TENSOR


def test_an_expired_budget_is_a_deadline_however_it_is_said(platform: Platform, stub: Any, client: Client) -> None:
    stub.ModelInfer(request("net@1/ort-fp32"), timeout=60)
    with platform.frozen("net", "ort-fp32"), pytest.raises(grpc.RpcError) as late:
        stub.ModelInfer(request("net@1/ort-fp32"), timeout=0.3)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # The queue's own bound, which is too short for a start: the answer comes from the gateway, not from the client's clock.
    for node, instance in client.instances():
        if (instance.variant.model, instance.state) == ("net", "ready"):
            client.stop_instance(node, instance.instance_id)
    with pytest.raises(grpc.RpcError) as late:
        stub.ModelInfer(with_parameter("timeout", int64_param=1), timeout=60)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert dict(late.value.trailing_metadata())["tessera-error-kind"] == "deadline_exceeded"
    assert stub.ModelInfer(request(), timeout=60).raw_output_contents


# Registration, as a user does it


def folder(root: Path, **files: bytes) -> Path:
    for name, data in files.items():
        path = root / name.replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


CONFIG = json.dumps({"architectures": ["BertModel"], "model_type": "bert"}).encode()


def test_a_path_that_does_not_exist(platform: Platform) -> None:
    done = platform.tessera("model", "register", "m", "/no/such/model")
    assert done.returncode == 1
    assert "'/no/such/model' is neither a path that exists nor a builder reference" in done.stderr


def test_a_folder_without_files(client: Client, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="has no files"):
        client.register("m", tmp_path)


class Evil:
    def __reduce__(self) -> Any:
        return (os.mkdir, (os.environ["E2E_EVIL"],))


def test_pickled_weights_are_refused_unread(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("E2E_EVIL", str(tmp_path / "executed"))
    source = folder(tmp_path / "model", config__json=CONFIG, pytorch_model__bin=pickle.dumps(Evil()))
    with pytest.raises(InvalidInput, match=r"pytorch_model\.bin.*safetensors"):
        client.register("m", source)
    assert not (tmp_path / "executed").exists()


def test_a_missing_shard_is_named(client: Client, tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}).encode()
    source = folder(tmp_path / "model", config__json=CONFIG)
    (source / "model.safetensors.index.json").write_bytes(index)
    (source / "model-00001-of-00002.safetensors").write_bytes(b"x" * 16)
    with pytest.raises(InvalidInput, match=r"model-00002-of-00002\.safetensors"):
        client.register("m", source)


def test_an_operator_that_the_flat_program_lacks_is_named(client: Client, tmp_path: Path) -> None:
    path = e2e_models.save(e2e_models.Dice(), (4,), tmp_path / "dice.pt2")
    with pytest.raises(Unsupported, match=r"aten\.rand_like"):
        client.register("m", path)
    e2e_models.define_operator()
    path = e2e_models.save(e2e_models.OnlyHere(), (4,), tmp_path / "foreign.pt2")
    with pytest.raises(TesseraError, match=r"tessera_e2e.*aten") as refused:
        client.register("m", path)
    assert isinstance(refused.value, Unsupported | InvalidInput)


def test_a_file_that_is_no_archive(client: Client, tmp_path: Path) -> None:
    (tmp_path / "noise.pt2").write_bytes(os.urandom(1000))
    with pytest.raises(InvalidInput, match=r"noise\.pt2"):
        client.register("m", tmp_path / "noise.pt2")


def test_an_unknown_builder_names_those_that_there_are(platform: Platform) -> None:
    done = platform.tessera("model", "register", "m", "os:system", "--builder-arg", "command=true")
    assert done.returncode == 2
    assert "builder 'os:system'" in done.stderr
    assert "pytorchcv.model_provider:get_model" in done.stderr


def test_builder_arguments_that_do_not_fit(client: Client) -> None:
    with pytest.raises(InvalidInput, match=r"heads.*must divide hidden \(33\)"):
        client.register("m", "tessera.registry.builders:bert", builder_args={"hidden": 33, "heads": 2})


def test_a_link_that_leaves_the_folder_is_refused_before_anything_is_sent(client: Client, tmp_path: Path) -> None:
    source = folder(tmp_path / "model", config__json=CONFIG)
    (tmp_path / "secret").write_text("private")
    (source / "vocab.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidInput, match=r"vocab\.txt.*leaves"):
        client.register("m", source)


# Registration, by the raw conversation: what the SDK would never send


@pytest.fixture
def registry(platform: Platform) -> Iterator[Any]:
    token = (platform.state / "token").read_text().strip()

    class WithToken(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamUnaryClientInterceptor):  # type: ignore[misc]
        def _call(self, go: Any, details: Any, given: Any) -> Any:
            return go(details._replace(metadata=[("authorization", f"Bearer {token}")]), given)

        intercept_unary_unary = intercept_unary_stream = intercept_stream_unary = _call

    with grpc.insecure_channel(platform.layout.admin_endpoint) as channel:
        yield registry_pb2_grpc.RegistryStub(grpc.intercept_channel(channel, WithToken()))


def source_file(path: str, data: bytes) -> registry_pb2.SourceFile:
    return registry_pb2.SourceFile(path=path, size_bytes=len(data), digest=blake3.blake3(data).hexdigest())


def directory(*files: registry_pb2.SourceFile) -> registry_pb2.RegisterModelRequest:
    return registry_pb2.RegisterModelRequest(
        trust_domain="default", name="m", directory=registry_pb2.DirectorySource(files=files), wait_for_variants=True
    )


@pytest.mark.parametrize("path", ["../escape", "a/../../escape", "/etc/tessera-escape", "a\\..\\b", "a//b", "./a", "", "a\x00b"])
def test_an_upload_cannot_leave_its_folder(registry: Any, platform: Platform, path: str) -> None:
    file = source_file(path, b"x")
    for call in (
        lambda: registry.BeginUpload(registry_pb2.BeginUploadRequest(registration=directory(file)), timeout=60),
        lambda: list(registry.RegisterModel(directory(file), timeout=60)),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "file path" in refused.value.details()
    assert not list(platform.state.rglob("*escape*"))


def test_an_upload_that_lies_about_its_bytes_leaves_nothing(registry: Any, platform: Platform) -> None:
    file = source_file("model.safetensors", b"what was promised")
    registry.BeginUpload(registry_pb2.BeginUploadRequest(registration=directory(file)), timeout=60)
    piece = registry_pb2.UploadFilesRequest(trust_domain="default", digest=file.digest, data=b"what has come 123")
    with pytest.raises(grpc.RpcError, match=r"model\.safetensors"):
        registry.UploadFiles(iter([piece]), timeout=60)
    with pytest.raises(grpc.RpcError) as refused:
        list(registry.RegisterModel(directory(file), timeout=60))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert not [path for path in platform.state.rglob("*") if path.is_file() and path.name == file.digest]


def test_an_upload_that_is_a_link_after_all_is_only_bytes(registry: Any, tmp_path: Path) -> None:
    """There is no way to send a link: a file with a link's target in it is that text."""
    data = b"/etc/passwd"
    file = source_file("model.pt2", data)
    registry.BeginUpload(registry_pb2.BeginUploadRequest(registration=directory(file)), timeout=60)
    registry.UploadFiles(iter([registry_pb2.UploadFilesRequest(trust_domain="default", digest=file.digest, data=data)]), timeout=60)
    with pytest.raises(grpc.RpcError, match=r"model\.pt2.* is no \.pt2 archive") as refused:
        list(registry.RegisterModel(directory(file), timeout=120))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_registering_under_a_name_that_is_taken_or_no_name(client: Client, sources: Path) -> None:
    for name, words in (("identity", "built-in"), ("Bad Name", "Bad Name"), ("task:shapes", "task:"), ("x" * 129, "128")):
        with pytest.raises(InvalidInput, match=words):
            client.register(name, sources / "net.pt2")


def test_nothing_of_what_was_refused_is_registered(client: Client) -> None:
    """Runs after the others of this file."""
    assert {model.name for model in client.models()} == {"bert", "identity", "net"}
    with pytest.raises(NotFound):
        client.model("m")


# The store's budget


def test_a_model_larger_than_the_store_says_what_it_needs_and_who_pins(fragile: Platform, net: e2e_models.Net, tmp_path: Path) -> None:
    path = e2e_models.save(e2e_models.Wide(72), (1024,), tmp_path / "wide.pt2")
    images = e2e_models.images(1)
    with fragile.client() as client:
        client.infer("net", {"image": images})
        client.register("wide", path)
        try:
            with pytest.raises(ResourceExhausted) as refused:
                client.infer("wide@1/aten-fp32", {"x": np.zeros((1, 1024), np.float32)}, timeout_s=60)
            words = str(refused.value)
            assert "wide@1/aten-fp32" in words
            assert "72.0 MiB needed, of a budget of 64.0 MiB" in words
            assert "are pinned" in words
            (output,) = client.infer("net", {"image": images}).outputs.values()
            assert agrees(output, net.eager(images)), "the others go on"
        finally:
            client.delete_model("wide")
