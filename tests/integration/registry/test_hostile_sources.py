"""Sources that are broken or mean harm: refused by name, nothing left behind, the registry unharmed."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import torch
from registry_process import RegistryProcess

from tessera.api.registry.v1 import registry_pb2
from tessera.domain.errors import FailedPrecondition, InvalidInput, TesseraError, Unsupported

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch, of itself


@torch.library.custom_op("hostiletest::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@twice.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Foreign(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return twice(x) + 1


class Random(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


def saved(module: torch.nn.Module) -> bytes:
    program = torch.export.export(module, (torch.zeros(2, 3),), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def sources() -> list[tuple[str, Any, type[TesseraError], str]]:
    config = json.dumps({"architectures": ["BertModel"], "model_type": "bert"}).encode()
    remote = json.dumps({"architectures": ["Evil"], "auto_map": {"AutoModel": "modeling_evil.Evil"}}).encode()
    index = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}).encode()
    get_model = "pytorchcv.model_provider:get_model"

    def build(reference: str = get_model, **arguments: str) -> registry_pb2.BuilderSource:
        return registry_pb2.BuilderSource(reference=reference, arguments=arguments, seed=1)

    return [
        ("pickle", {"config.json": config, "pytorch_model.bin": b"x"}, InvalidInput, "pytorch_model.bin"),
        ("pickle alone", {"model.pkl": b"x"}, InvalidInput, "model.pkl"),
        ("missing weights", {"config.json": config}, InvalidInput, "model.safetensors"),
        ("missing shard", {"config.json": config, "model.safetensors.index.json": index}, InvalidInput, "model-00001-of-00002.safetensors"),
        ("broken safetensors", {"config.json": config, "model.safetensors": b"\xff" * 64}, InvalidInput, "BertModel"),
        ("remote code", {"config.json": remote, "model.safetensors": b"x"}, Unsupported, "auto_map"),
        ("no such class", {"config.json": b'{"architectures": ["Evil"]}', "model.safetensors": b"x"}, Unsupported, "'Evil'"),
        ("a function, no class", {"config.json": b'{"architectures": ["pipeline"]}', "model.safetensors": b"x"}, Unsupported, "'pipeline'"),
        ("no archive", {"m.pt2": b"x" * 100}, InvalidInput, "m.pt2"),
        ("foreign operator", {"m.pt2": saved(Foreign())}, TesseraError, "hostiletest"),
        ("random operator", {"m.pt2": saved(Random())}, Unsupported, "aten.rand_like: it draws random numbers"),
        ("unknown builder", build("os:system"), InvalidInput, "builder 'os:system': must be one of"),
        ("unknown model", build(name="no-such-net"), InvalidInput, "no-such-net"),
        ("wrong argument", build(name="resnet10", colour='"red"'), InvalidInput, "colour"),
        ("download", build(name="resnet10", pretrained="true"), InvalidInput, "pretrained"),
        ("wrong size", build("tessera.registry.builders:bert", hidden="65", heads="8"), InvalidInput, "must divide hidden (65)"),
    ]


async def test_hostile_sources_are_refused_by_name(registry: RegistryProcess) -> None:
    before = {digest for digest, _ in registry.repository.digests()}
    for what, source, kind, words in sources():
        with pytest.raises(kind) as refused:
            await registry.register("m", source)
        assert words in str(refused.value), what
    listed = await registry.stub.ListModels(registry_pb2.ListModelsRequest())
    assert [m.name for m in listed.models] == ["identity"]
    assert {digest for digest, _ in registry.repository.digests()} == before
    assert not list((registry.state / "work").iterdir())


@pytest.mark.parametrize("path", ["../escape", "/absolute", "a/../../b", "a\\b", "a//b"])
async def test_path_that_escapes_is_refused_before_a_byte_is_sent(registry: RegistryProcess, path: str) -> None:
    for call in (registry.upload, lambda files: registry.register("m", files)):
        with pytest.raises(InvalidInput, match="file path"):
            await call({path: b"x"})


async def test_bytes_that_are_not_what_they_said(registry: RegistryProcess) -> None:
    listed = registry_pb2.SourceFile(path="model.safetensors", size_bytes=3, digest="0" * 64)
    request = registry_pb2.RegisterModelRequest(name="m", directory=registry_pb2.DirectorySource(files=[listed]))
    await registry.stub.BeginUpload(registry_pb2.BeginUploadRequest(registration=request))

    async def pieces(*given: registry_pb2.UploadFilesRequest) -> Any:
        for piece in given:
            yield piece

    with pytest.raises(InvalidInput, match=r"file model\.safetensors: 3 bytes with digest"):
        await registry.stub.UploadFiles(pieces(registry_pb2.UploadFilesRequest(digest="0" * 64, data=b"abc")))
    with pytest.raises(InvalidInput, match=r"size of file model\.safetensors 4: at most 3 bytes"):
        await registry.stub.UploadFiles(pieces(registry_pb2.UploadFilesRequest(digest="0" * 64, data=b"abcd")))
    with pytest.raises(InvalidInput, match="digest 'x'"):
        await registry.stub.UploadFiles(pieces(registry_pb2.UploadFilesRequest(digest="x", data=b"abcd")))
    with pytest.raises(FailedPrecondition, match=r"model\.safetensors"):
        [event async for event in registry.stub.RegisterModel(request)]


@pytest.mark.parametrize(
    ("request_fields", "words"),
    [
        ({"name": "Bad Name"}, "model name"),
        ({"name": "identity"}, "built-in"),
        ({"name": "m", "task": "a b"}, "task"),
        ({"name": "m", "accuracy": 2.0}, "accuracy 2.0"),
        ({"name": "m", "trust_domain": "other"}, "trust_domain 'other': this registry serves default"),
    ],
)
async def test_bad_field_is_named(registry: RegistryProcess, request_fields: dict[str, Any], words: str) -> None:
    builder = registry_pb2.BuilderSource(reference="tessera.registry.builders:bert")
    request = registry_pb2.RegisterModelRequest(builder=builder, **request_fields)
    with pytest.raises(InvalidInput, match=words):
        await registry.stub.BeginUpload(registry_pb2.BeginUploadRequest(registration=request))
    with pytest.raises(InvalidInput, match=words):
        [e async for e in registry.stub.RegisterModel(request)]
