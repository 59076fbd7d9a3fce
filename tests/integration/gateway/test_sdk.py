"""The SDK, both flavours, against a running gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import pytest

from tessera.api.node.v1 import node_pb2
from tessera.api.profiler.v1 import profiler_pb2, profiler_pb2_grpc
from tessera.api.registry.v1 import registry_pb2, registry_pb2_grpc
from tessera.coord import keys
from tessera.domain.errors import DeadlineExceeded, FailedPrecondition, InvalidInput, NotFound, Unauthenticated, Unavailable
from tessera.rpc import RpcServer
from tessera.sdk import AsyncClient, Client

from .conftest import TOKEN, World, service_record


class Registry(registry_pb2_grpc.RegistryServicer):
    """Takes uploads in and registers what is there in full."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.registered: list[registry_pb2.RegisterModelRequest] = []
        self.aliases: dict[str, tuple[str, int]] = {}
        self.uploads = 0

    async def BeginUpload(self, request: Any, context: Any) -> Any:
        if request.registration in self.registered:
            return registry_pb2.BeginUploadResponse()
        files = request.registration.directory.files
        return registry_pb2.BeginUploadResponse(missing_digests=[f.digest for f in files if f.digest not in self.files])

    async def UploadFiles(self, request_iterator: Any, context: Any) -> Any:
        self.uploads += 1
        parts: dict[str, bytes] = {}
        async for message in request_iterator:
            parts[message.digest] = parts.get(message.digest, b"") + message.data
        for digest, data in parts.items():
            if blake3.blake3(data).hexdigest() != digest:
                raise InvalidInput("digest", digest, "does not fit the bytes")
        self.files |= parts
        return registry_pb2.UploadFilesResponse(received_bytes=sum(map(len, parts.values())))

    async def RegisterModel(self, request: Any, context: Any) -> Any:
        yield registry_pb2.JobEvent(step="importing", fraction=0.5)
        if request.name == "poison":
            raise InvalidInput("weights.bin", None, "holds a pickle, which is refused; save it as safetensors")
        unchanged = request in self.registered
        self.registered.append(request)
        if not unchanged and any(file.digest not in self.files for file in request.directory.files):
            raise NotFound("a file is missing")
        result = registry_pb2.RegistrationResult(model=request.name, version=1, unchanged=unchanged)
        yield registry_pb2.JobEvent(step="done", fraction=1.0, result=result)

    async def ListModels(self, request: Any, context: Any) -> Any:
        names = sorted({one.name for one in self.registered if not request.task or one.task == request.task})
        return registry_pb2.ListModelsResponse(models=[registry_pb2.ModelInfo(name=name) for name in names])

    async def GetModel(self, request: Any, context: Any) -> Any:
        if request.name not in {one.name for one in self.registered}:
            raise NotFound(f"model {request.name!r} is not registered")
        return registry_pb2.GetModelResponse(model=registry_pb2.ModelInfo(name=request.name))

    async def DeleteModel(self, request: Any, context: Any) -> Any:
        self.registered = [one for one in self.registered if one.name != request.name]
        return registry_pb2.DeleteModelResponse(freed_bytes=123)

    async def SetAlias(self, request: Any, context: Any) -> Any:
        self.aliases[request.alias] = (request.model, request.version)
        return registry_pb2.SetAliasResponse()

    async def PromoteAlias(self, request: Any, context: Any) -> Any:
        if not request.force:
            raise FailedPrecondition(f"worse by more than {request.guard.allow_loss} (allow_loss)")
        previous = self.aliases[request.alias]
        self.aliases[request.alias] = (request.model, request.version)
        before = [registry_pb2.AliasStep(model=previous[0], version=previous[1])]
        alias = registry_pb2.AliasInfo(alias=request.alias, model=request.model, version=request.version, before=before)
        return registry_pb2.PromoteAliasResponse(alias=alias)

    async def RollBackAlias(self, request: Any, context: Any) -> Any:
        self.aliases[request.alias] = ("m", 1)
        return registry_pb2.RollBackAliasResponse(alias=registry_pb2.AliasInfo(alias=request.alias, model="m", version=1))

    async def DeleteAlias(self, request: Any, context: Any) -> Any:
        del self.aliases[request.alias]
        return registry_pb2.DeleteAliasResponse()

    async def WatchJob(self, request: Any, context: Any) -> Any:
        for number in range(request.after_sequence + 1, 4):
            yield registry_pb2.JobEvent(job_id=request.job_id, sequence=number)


class Profiler(profiler_pb2_grpc.ProfilerServicer):
    async def RunProfile(self, request: Any, context: Any) -> Any:
        yield profiler_pb2.ProfileEvent(message=f"{request.model} quick={request.quick}", fraction=0.5)
        profile = profiler_pb2.Profile(profile_class="c", rows=[node_pb2.LatencyRow(batch=1, p50_ms=2.0)])
        yield profiler_pb2.ProfileEvent(fraction=1.0, profile=profile)

    async def GetProfiles(self, request: Any, context: Any) -> Any:
        return profiler_pb2.GetProfilesResponse(profiles=[profiler_pb2.Profile(profile_class="c")])


@pytest.fixture
async def registry(served: World) -> AsyncIterator[Registry]:
    """A registry and a profiler behind the admin door."""
    registry, profiler = Registry(), Profiler()
    server = RpcServer(
        "127.0.0.1:0",
        handlers=[
            lambda server: registry_pb2_grpc.add_RegistryServicer_to_server(registry, server),
            lambda server: profiler_pb2_grpc.add_ProfilerServicer_to_server(profiler, server),
        ],
        service_names=["tessera.api.registry.v1.Registry", "tessera.api.profiler.v1.Profiler"],
    )
    await server.start()
    for kind in ("registry", "profiler"):
        await served.put(keys.service(kind, "1"), service_record(kind, server.address))
    await asyncio.sleep(0.05)
    yield registry
    await server.stop(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(bytes(3 << 20))
    return made


ARRAY = np.arange(8, dtype=np.float32).reshape(2, 4)


async def test_infer_sync(served: World) -> None:
    def use() -> None:
        with Client(served.doors.address) as client:
            answer = client.infer("echo", {"INPUT0": ARRAY}, id="mine", request_id="ab" * 16, timeout_s=10)
            np.testing.assert_array_equal(answer.outputs["OUTPUT0"], ARRAY)
            assert (answer.variant, answer.node, answer.start_path) == ("ort-fp32", "node-0", "warm")
            assert (answer.request_id, answer.id, answer.model, answer.model_version) == ("ab" * 16, "mine", "echo", "1")
            words = np.array([b"a", "ü"], dtype=object)
            assert list(client.infer("echo", {"INPUT0": words}).outputs["OUTPUT0"]) == [b"a", "ü".encode()]
            with pytest.raises(NotFound, match="'nobody' is not registered") as failure:
                client.infer("nobody", {"INPUT0": ARRAY}, request_id="cd" * 16)
            assert failure.value.__notes__ == ["request id " + "cd" * 16]
            with pytest.raises(InvalidInput):
                client.infer("echo", {"INPUT0": ARRAY}, parameters={"tessera_x": 1})
            assert client.is_live()
            assert client.is_ready()
            assert client.is_ready("echo", 1)
            assert not client.is_ready("nobody")
            assert client.metadata("echo").inputs[0].name == "INPUT0"
            assert client.config("echo").max_batch_size == 8
            assert [model.name for model in client.repository_index()] == ["echo"]

    await asyncio.to_thread(use)


async def test_infer_async(served: World) -> None:
    async with AsyncClient(served.doors.address) as client:
        answers = await asyncio.gather(*(client.infer("echo", {"INPUT0": ARRAY + n}) for n in range(20)))
        for number, answer in enumerate(answers):
            np.testing.assert_array_equal(answer.outputs["OUTPUT0"], ARRAY + number)
        assert len({answer.request_id for answer in answers}) == 20
        served.runtimes["r1"].delay_s = 10
        with pytest.raises(DeadlineExceeded):
            await client.infer("echo", {"INPUT0": ARRAY}, timeout_s=0.2)
        assert await client.is_live()
        assert await client.is_ready("echo")
        assert (await client.metadata("echo")).outputs[0].name == "OUTPUT0"
        assert (await client.config("echo")).backend == "tessera"
        assert [model.state for model in await client.repository_index(ready=True)] == ["READY"]


async def test_nobody_listens() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(Unavailable):
            await client.infer("echo", {"INPUT0": ARRAY}, timeout_s=2)


async def test_register_sends_only_what_is_missing(served: World, registry: Registry, folder: Path) -> None:
    steps: list[str] = []
    sent: list[tuple[int, int]] = []

    def use() -> None:
        with Client(served.doors.address, admin_endpoint=served.doors.admin_address, token=TOKEN) as client:
            options: Any = {"task": "t", "on_event": lambda event: steps.append(event.step), "on_upload": lambda *done: sent.append(done)}
            result = client.register("m", folder, **options)
            assert (result.model, result.version, result.unchanged) == ("m", 1, False)
            assert steps == ["importing", "done"]
            assert sent[-1] == (2 + (3 << 20), 2 + (3 << 20))
            assert registry.uploads == 1
            assert client.register("m", folder, task="t").unchanged
            registry.files.clear()
            assert client.register("m", folder, task="t").unchanged, "recognised by what it is, with none of its files left there"
            assert registry.uploads == 1
            client.register("other", folder)
            assert registry.uploads == 2
            (folder / "config.json").write_text("{ }")
            sent.clear()
            client.register("m", folder, **options)
            assert sent == [(3, 3)]
            with pytest.raises(InvalidInput, match="holds a pickle"):
                client.register("poison", folder)
            with pytest.raises(NotFound, match="neither a path"):
                client.register("m", folder / "nothing")
            client.register("b", "a.b:c", builder_args={"n": 1}, seed=3)
            assert registry.registered[-1].builder.seed == 3

    await asyncio.to_thread(use)


async def test_admin_sync(served: World, registry: Registry, folder: Path) -> None:
    def use() -> None:
        with Client(served.doors.address, admin_endpoint=served.doors.admin_address, token=TOKEN) as client:
            client.register("m", folder, task="t")
            assert [model.name for model in client.models()] == ["m"]
            assert client.models("other") == []
            assert client.model("m").name == "m"
            client.set_alias("prod", "m", 1)
            assert registry.aliases == {"prod": ("m", 1)}
            with pytest.raises(FailedPrecondition, match=r"worse by more than 0.25 \(allow_loss\)"):
                client.promote("prod", "m", 2, allow_loss=0.25)
            assert [step.version for step in client.promote("prod", "m", 2, force=True).alias.before] == [1]
            assert registry.aliases == {"prod": ("m", 2)}
            assert client.roll_back("prod").version == 1
            client.delete_alias("prod")
            assert registry.aliases == {}
            assert [event.sequence for event in client.watch_job("j", 1)] == [2, 3]
            events = list(client.run_profile("m", quick=True))
            assert events[0].message == "m quick=True"
            assert events[1].profile.rows[0].p50_ms == 2.0
            assert [profile.profile_class for profile in client.profiles("m")] == ["c"]
            assert client.delete_model("m") == 123
            with pytest.raises(NotFound):
                client.model("m")
            assert {service.kind for service in client.platform().services} >= {"registry", "gateway", "etcd"}
            assert [node.node_id for node in client.nodes()] == ["node-0"]
            assert client.instances() == []
            client.stop_instance("node-0", "i1")
            answer = client.infer("echo", {"INPUT0": ARRAY})
            assert client.explain(answer.request_id).start_path == "warm"
            assert "tessera.gateway.infer" in {span.name for span in client.trace(answer.request_id).spans}

    await asyncio.to_thread(use)


async def test_admin_async(served: World, registry: Registry, folder: Path) -> None:
    async with AsyncClient(served.doors.address, admin_endpoint=served.doors.admin_address, token=TOKEN) as client:
        assert (await client.register("m", folder)).version == 1
        registry.files.clear()
        assert (await client.register("m", folder)).unchanged
        assert registry.uploads == 1
        with pytest.raises(InvalidInput, match="holds a pickle"):
            await client.register("poison", folder)
        assert [model.name for model in await client.models()] == ["m"]
        assert (await client.model("m")).name == "m"
        await client.set_alias("prod", "m")
        assert (await client.promote("prod", "m", 2, force=True)).alias.version == 2
        assert (await client.roll_back("prod")).version == 1
        await client.delete_alias("prod")
        assert [event.sequence async for event in client.watch_job("j")] == [1, 2, 3]
        assert [event.fraction async for event in client.run_profile("m")] == [0.5, 1.0]
        assert len(await client.profiles("m")) == 1
        assert await client.delete_model("m") == 123
        assert [node.node_id for node in await client.nodes()] == ["node-0"]
        assert await client.instances() == []
        await client.stop_instance("node-0", "i1")
        answer = await client.infer("echo", {"INPUT0": ARRAY})
        assert (await client.explain(answer.request_id)).outcome == "ok"
        assert (await client.trace(answer.request_id)).spans


async def test_a_wrong_token(served: World) -> None:
    async with AsyncClient(served.doors.address, admin_endpoint=served.doors.admin_address, token="wrong") as client:
        with pytest.raises(Unauthenticated):
            await client.models()
