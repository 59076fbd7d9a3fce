"""A whole gateway over a fake etcd, with runtimes that answer in frames and a scheduler that answers by gRPC, but starts in frames."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tessera import telemetry
from tessera.api.common.v1 import common_pb2
from tessera.api.open_inference import inference_pb2 as pb
from tessera.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from tessera.coord import keys
from tessera.coord.interface import Delete, ModRevisionIs, Put
from tessera.coord.records import encode
from tessera.domain.errors import NotFound, TesseraError, WrongGeneration
from tessera.domain.ids import (
    BuildClass,
    Digest,
    Generation,
    InstanceId,
    ModelName,
    NodeId,
    ProfileClass,
    RuntimeId,
    TrustDomain,
    VariantKey,
    VariantName,
    VersionNumber,
)
from tessera.domain.instance import InstanceState, StartPath
from tessera.domain.records import (
    InstanceRecord,
    ModelRecord,
    NodeRecord,
    ServiceRecord,
    VariantRecord,
    VariantState,
    VersionRecord,
)
from tessera.domain.signature import Signature, TensorSpec
from tessera.frames import FrameResponse, FrameServer, RequestHeader
from tessera.frames.openinference import OutputTensor, encode_response, parse_request
from tessera.frames.protowire import FieldLimit
from tessera.gateway.adapters.scheduler import START
from tessera.gateway.app import Doors, run
from tessera.gateway.config import GatewayConfig
from tessera.program import Stop
from tessera.rpc import FramedServer, RpcServer
from tessera.runtime.contents import gather
from tessera.testing.builders import a_latency_row, a_profile
from tessera.testing.coord import FakeCoordinator, FakeEtcd
from tessera.wire import encode_variant_key

DOMAIN = TrustDomain("default")
TOKEN = "secret-of-the-test"
HOST = "host-a"
BUILD = BuildClass("x86_64-test-ort1")


def variant_key(model: str, variant: str = "ort-fp32", version: int = 1) -> VariantKey:
    return VariantKey(DOMAIN, ModelName(model), VersionNumber(version), VariantName(variant))


@dataclass
class EchoRuntime:
    """A runtime that answers INPUT0 as OUTPUT0 for the generations that it holds."""

    runtime_id: RuntimeId
    path: str
    generations: set[int] = field(default_factory=set)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[RequestHeader] = field(default_factory=list)
    cancelled: int = 0
    delay_s: float = 0.0
    error: TesseraError | None = None
    server: FrameServer | None = None
    entered: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        self.server = await FrameServer.serve_unix(self.path, self.answer, target=self.runtime_id)

    async def answer(self, header: RequestHeader, body: Any) -> FrameResponse:
        self.headers.append(header)
        self.bodies.append(bytes(body))
        self.entered.set()
        if header.generation not in self.generations:
            return FrameResponse.of_error(WrongGeneration("not here"))
        try:
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        request = parse_request(body)
        raw = request.raw_input_contents
        outputs = [
            OutputTensor(
                "OUTPUT0",
                one.datatype,
                one.shape,
                bytes(raw[index]) if raw else next(iter(gather(one.contents or (), "contents", 100, FieldLimit(100)).items())),
            )
            for index, one in enumerate(request.inputs)
        ]
        return FrameResponse(0, 1, 150, 0, 250, encode_response(request.model_name, "1", request.id, outputs))

    async def kill(self) -> None:
        assert self.server is not None
        for connection in list(self.server.connections):
            connection.transport.abort()
        await self.server.close()
        self.server = None


@dataclass
class FakeScheduler(scheduler_pb2_grpc.SchedulerServicer):
    """Starts by calling `start`, which a test sets. What it explains is of `explained_domain`."""

    start: Callable[[scheduler_pb2.StartInstanceRequest], Awaitable[scheduler_pb2.StartInstanceResponse]] | None = None
    requests: list[scheduler_pb2.StartInstanceRequest] = field(default_factory=list)
    trace_ids: list[str] = field(default_factory=list)
    explained_domain: str = DOMAIN

    async def StartInstance(self, request: Any, _context: Any) -> Any:
        self.requests.append(request)
        context = telemetry.current_context()
        self.trace_ids.append(context.trace_id if context is not None else "")
        assert self.start is not None
        return await self.start(request)

    async def ExplainStart(self, request: Any, context: Any) -> Any:
        if request.request_id not in {item.request_id for item in self.requests}:
            raise NotFound(f"request {request.request_id}")
        variant = common_pb2.VariantKey(trust_domain=self.explained_domain, model="digits", version=1, variant="any")
        option = scheduler_pb2.StartOption(
            variant=variant, node_id="node-0", start_path="bind", expected_ms=4.0, chosen=True, reason="cheapest"
        )
        return scheduler_pb2.ExplainStartResponse(options=[option], actual_ms=5.0, policy="cheapest")

    async def StopInstance(self, request: Any, context: Any) -> Any:
        return scheduler_pb2.StopInstanceResponse()

    async def GetLeader(self, request: Any, context: Any) -> Any:
        return scheduler_pb2.GetLeaderResponse(address="me", is_self=True)

    async def ReportStatus(self, request_iterator: Any, context: Any) -> Any:
        """Answers each report with a term whose revision counts them; a node called "bad" breaks the stream."""
        count = 0
        async for status in request_iterator:
            if status.node_id == "bad":
                raise NotFound("node 'bad' is not there")
            count += 1
            yield scheduler_pb2.ReportStatusResponse(term=common_pb2.Term(cluster_id=1, revision=count))


class World:
    """Everything around one gateway."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.etcd = FakeEtcd()
        self.coordinator = FakeCoordinator(self.etcd)
        self.scheduler = FakeScheduler()
        self.runtimes: dict[str, EchoRuntime] = {}
        self.doors = Doors("", "", 0)
        self.stop = Stop()
        self.scheduler_address = ""
        self.start_address = ""
        self._generation = itertools.count(1001)
        self._revision = itertools.count(1)

    async def put(self, key: str, record: Any) -> None:
        found = self.etcd.get(key)
        await FakeCoordinator(self.etcd).transact([ModRevisionIs(key, found.mod_revision if found else 0)], [Put(key, encode(record))])

    async def put_raw(self, key: str, value: bytes) -> None:
        found = self.etcd.get(key)
        await FakeCoordinator(self.etcd).transact([ModRevisionIs(key, found.mod_revision if found else 0)], [Put(key, value)])

    async def delete(self, key: str) -> None:
        found = self.etcd.get(key)
        assert found is not None
        await FakeCoordinator(self.etcd).transact([ModRevisionIs(key, found.mod_revision)], [Delete(key)])

    async def add_model(self, name: str, *variants: str, version: int = 1, task: str = "", accuracy: float | None = None) -> None:
        spec = (TensorSpec("INPUT0", "FP32", (-1, 4)),)
        signature = Signature(spec, (TensorSpec("OUTPUT0", "FP32", (-1, 4)),))
        model, number = ModelName(name), VersionNumber(version)
        key = variant_key(name, version=version).version_key
        await self.put(keys.model(DOMAIN, model), ModelRecord(model, DOMAIN, task, "", accuracy, number, 0.0))
        await self.put(keys.version(key), VersionRecord(model, DOMAIN, number, signature, "directory", Digest("0" * 64), 0.0))
        for variant in variants or ("ort-fp32",):
            backend = variant.partition("-")[0]
            record = VariantRecord(
                variant_key(name, variant, version), backend, backend, "fp32", VariantState.READY, 8, BUILD if backend == "ort" else None
            )
            await self.put(keys.variant(record.key), record)

    async def add_profile(self, model: str, latency_ms: float, variant: str = "ort-fp32") -> None:
        key, cls = variant_key(model, variant), ProfileClass("test-2")
        await self.put(keys.profile(key, cls), a_profile(key, profile_class=cls, rows=(a_latency_row(p50_ms=latency_ms),)))

    async def add_node(self, node_id: str = "node-0", agent_address: str = "127.0.0.1:1") -> None:
        record = NodeRecord(
            NodeId(node_id), HOST, agent_address, "", "", BUILD, ProfileClass("test-2"), ("ort", "aten"), 2, 1 << 30, DOMAIN
        )
        await self.put(keys.node(DOMAIN, record.node_id), record)

    async def add_runtime(self, runtime_id: str) -> EchoRuntime:
        runtime = self.runtimes[runtime_id] = EchoRuntime(RuntimeId(runtime_id), str(self.folder / f"{runtime_id}.sock"))
        await runtime.start()
        return runtime

    async def load(
        self, model: str, runtime: EchoRuntime, *, variant: str = "ort-fp32", node: str = "node-0", record: bool = True
    ) -> InstanceRecord:
        """An instance in a runtime; with `record`, etcd says so too."""
        generation = next(self._generation)
        runtime.generations.add(generation)
        instance = InstanceRecord(
            InstanceId(f"i{generation}"),
            NodeId(node),
            runtime.runtime_id,
            variant_key(model, variant),
            Generation(generation),
            InstanceState.READY,
            StartPath.BIND,
            False,
            HOST,
            runtime.path,
            "",
        )
        if record:
            await self.put(self.instance_key(instance), instance)
        return instance

    def instance_key(self, instance: InstanceRecord) -> str:
        return keys.instance(DOMAIN, instance.node_id, instance.instance_id)

    async def set_state(self, instance: InstanceRecord, state: InstanceState) -> None:
        await self.put(self.instance_key(instance), replace(instance, state=state))

    async def lead(self, address: str | None = None) -> None:
        address = address or self.scheduler_address
        metadata = {"start_address": self.start_address}
        await self.put(keys.service("scheduler", "leader"), ServiceRecord("scheduler", "leader", address, metadata))
        await self.put_raw(keys.SCHEDULER_ELECTION + "1", address.encode())

    def starts_in(self, runtime: EchoRuntime, path: str = "bind", after_s: float = 0.0) -> None:
        """The scheduler makes an instance of the first candidate in this runtime."""

        async def start(request: scheduler_pb2.StartInstanceRequest) -> scheduler_pb2.StartInstanceResponse:
            await asyncio.sleep(after_s)
            chosen = request.candidates[0]
            instance = await self.load(chosen.model, runtime, variant=chosen.variant, record=False)
            return start_response(instance, path)

        self.scheduler.start = start

    def metrics(self) -> bytes:
        import urllib.request

        with urllib.request.urlopen(f"http://127.0.0.1:{self.doors.metrics_port}/metrics", timeout=5) as answer:
            return bytes(answer.read())


def start_response(instance: InstanceRecord, path: str = "bind") -> scheduler_pb2.StartInstanceResponse:
    return scheduler_pb2.StartInstanceResponse(
        instance_id=instance.instance_id,
        generation=instance.generation,
        variant=encode_variant_key(instance.variant),
        node_id=instance.node_id,
        endpoint=common_pb2.InstanceEndpoint(host_id=HOST, unix_path=instance.unix_path, runtime_id=instance.runtime_id),
        start_path=path,
        stages=[common_pb2.StageTime(stage="schedule", ms=0.5), common_pb2.StageTime(stage="load", ms=2.0)],
    )


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    scheduler = RpcServer(
        "127.0.0.1:0",
        handlers=[lambda server: scheduler_pb2_grpc.add_SchedulerServicer_to_server(world.scheduler, server)],
        service_names=["tessera.api.scheduler.v1.Scheduler"],
    )
    await scheduler.start()
    starts = FramedServer("127.0.0.1:0", {START: (scheduler_pb2.StartInstanceRequest, world.scheduler.StartInstance)})
    await starts.start()
    world.scheduler_address, world.start_address = scheduler.address, starts.address
    yield world
    world.stop.request("test is over")
    await starts.stop(0)
    await scheduler.stop(0)
    for runtime in world.runtimes.values():
        if runtime.server is not None:
            await runtime.server.close()
    await world.etcd.close()


Start = Callable[..., Awaitable[World]]


@pytest.fixture
async def start(world: World, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts the gateway with settings by keyword and returns the world; it is taken down at the end."""
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    token_file.chmod(0o600)
    running: list[asyncio.Task[None]] = []

    async def begin(etcd_away: bool = False, **settings: Any) -> World:
        config = GatewayConfig(
            **{
                "address": "127.0.0.1:0", "metrics_address": "", "admin_address": "127.0.0.1:0", "token_file": token_file,
                "host_id": HOST, "drain_grace_s": 2.0, **settings,
            }
        )  # fmt: skip
        started = asyncio.get_running_loop().create_future()
        running.append(asyncio.create_task(run(config, world.stop, world.coordinator, on_started=started.set_result)))
        done, _ = await asyncio.wait({started, running[0]}, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        if running[0] in done:
            running[0].result()
        world.doors = started.result()
        if not etcd_away:
            await until_ready(world)
        return world

    yield begin
    world.stop.request("test is over")
    for task in running:
        await asyncio.wait_for(task, 10)
    await world.coordinator.close()


async def until_ready(world: World) -> None:
    async with grpc.aio.insecure_channel(world.doors.address) as channel:
        ready: Any = channel.unary_unary(
            "/inference.GRPCInferenceService/ServerReady", response_deserializer=pb.ServerReadyResponse.FromString
        )
        for _ in range(200):
            if (await ready(b"")).ready:
                return
            await asyncio.sleep(0.02)
    raise AssertionError("the gateway did not become ready")


@pytest.fixture
async def served(start: Start, world: World, request: pytest.FixtureRequest) -> World:
    """A running gateway, one node, model `echo` loaded in runtime `r1`, and a leading scheduler."""
    await world.add_node()
    await world.add_model("echo")
    runtime = await world.add_runtime("r1")
    await world.load("echo", runtime)
    await world.lead()
    return await start(metrics_address="127.0.0.1:0" if "metrics" in request.node.name else "")


def infer_request(model: str = "echo", version: str = "", **fields: Any) -> pb.ModelInferRequest:
    tensor = pb.ModelInferRequest.InferInputTensor(name="INPUT0", datatype="FP32", shape=[1, 4])
    return pb.ModelInferRequest(model_name=model, model_version=version, inputs=[tensor], raw_input_contents=[bytes(16)], **fields)


@pytest.fixture
async def call(served: World) -> AsyncIterator[Callable[..., Awaitable[pb.ModelInferResponse]]]:
    """`await call(request, timeout=, metadata=)` over a plain channel; raises grpc.aio.AioRpcError."""
    async with grpc.aio.insecure_channel(served.doors.address) as channel:
        method = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )

        async def invoke(request: pb.ModelInferRequest, **options: Any) -> pb.ModelInferResponse:
            answer: pb.ModelInferResponse = await method(request, **options)
            return answer

        yield invoke


def service_record(kind: str, address: str) -> ServiceRecord:
    return ServiceRecord(kind, f"{kind}-1", address)
