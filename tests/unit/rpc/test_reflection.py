"""Reflection lists and describes services of the default pool and of a private one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tessera.api.open_inference import inference_pb2
from tessera.rpc import RpcServer, connect

NAMES = ["inference.GRPCInferenceService", "tessera.api.scheduler.v1.Scheduler"]


@pytest.fixture
async def ask() -> AsyncIterator[Any]:
    import tessera.api.scheduler.v1.scheduler_pb2  # noqa: F401 - puts its file into the default pool

    server = RpcServer("127.0.0.1:0", handlers=[], service_names=NAMES, pools=[inference_pb2.DESCRIPTOR.pool])
    await server.start()
    async with connect(server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)

        async def ask(**fields: Any) -> Any:
            call = stub.ServerReflectionInfo()
            await call.write(reflection_pb2.ServerReflectionRequest(**fields))
            answer = await call.read()
            await call.done_writing()
            return answer

        yield ask
    await server.stop(0)


def files_of(answer: Any) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    found = {}
    for data in answer.file_descriptor_response.file_descriptor_proto:
        message = descriptor_pb2.FileDescriptorProto.FromString(data)
        found[message.name] = message
    return found


async def test_every_service_is_listed(ask: Any) -> None:
    answer = await ask(list_services="")
    names = {service.name for service in answer.list_services_response.service}
    assert names == {
        *NAMES,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "tessera.api.common.v1.Traces",
    }


async def test_a_service_of_the_private_pool_is_described(ask: Any) -> None:
    files = files_of(await ask(file_containing_symbol="inference.GRPCInferenceService"))
    (file,) = files.values()
    methods = {method.name for method in file.service[0].method}
    assert {"ModelInfer", "ModelMetadata", "ServerLive", "RepositoryIndex"} <= methods
    assert files_of(await ask(file_containing_symbol="inference.ModelInferRequest.InferInputTensor")).keys() == files.keys()
    assert files_of(await ask(file_by_filename=file.name)).keys() == files.keys()


async def test_a_service_of_the_default_pool_comes_with_what_it_imports(ask: Any) -> None:
    files = files_of(await ask(file_containing_symbol="tessera.api.scheduler.v1.Scheduler"))
    assert "tessera/api/scheduler/v1/scheduler.proto" in files
    assert "tessera/api/common/v1/common.proto" in files
    assert files_of(await ask(file_containing_symbol="grpc.health.v1.Health"))


async def test_extensions_are_looked_up_in_both_pools(ask: Any) -> None:
    answer = await ask(all_extension_numbers_of_type="inference.ModelInferRequest")
    assert answer.all_extension_numbers_response.base_type_name == "inference.ModelInferRequest"
    answer = await ask(all_extension_numbers_of_type="google.protobuf.MethodOptions")
    assert answer.all_extension_numbers_response.base_type_name == "google.protobuf.MethodOptions"
    request = reflection_pb2.ExtensionRequest(containing_type="inference.ModelInferRequest", extension_number=1000)
    assert (await ask(file_containing_extension=request)).error_response.error_code == 5


async def test_what_nobody_knows_is_not_found(ask: Any) -> None:
    assert (await ask(file_containing_symbol="no.such.Service")).error_response.error_code == 5
    assert (await ask(file_by_filename="no/such.proto")).error_response.error_code == 5
