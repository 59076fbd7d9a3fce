"""The admin door: token, explanations, traces, and calls that are passed on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from tessera.api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from tessera.api.node.v1 import node_pb2, node_pb2_grpc
from tessera.api.open_inference import inference_pb2 as pb
from tessera.api.registry.v1 import registry_pb2, registry_pb2_grpc
from tessera.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from tessera.coord import keys
from tessera.domain.errors import InvalidInput, NotFound, Unauthenticated, Unavailable, Unsupported
from tessera.rpc import RpcServer, connect

from .conftest import TOKEN, World, infer_request, service_record

Call = Callable[..., Awaitable[pb.ModelInferResponse]]


class FakeRegistry(registry_pb2_grpc.RegistryServicer):
    """One method of each kind."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.metadata: dict[str, Any] = {}

    async def GetModel(self, request: Any, context: Any) -> Any:
        self.metadata = dict(context.invocation_metadata())
        if request.name == "nobody":
            raise NotFound("model 'nobody' is not registered")
        return registry_pb2.GetModelResponse(model=registry_pb2.ModelInfo(name=request.name))

    async def UploadFiles(self, request_iterator: Any, context: Any) -> Any:
        received = 0
        async for message in request_iterator:
            received += len(message.data)
            if message.digest == "bad":
                raise InvalidInput("digest", "bad", "must be 64 lowercase hex digits")
        return registry_pb2.UploadFilesResponse(received_bytes=received)

    async def WatchJob(self, request: Any, context: Any) -> Any:
        for sequence in range(request.after_sequence, request.after_sequence + 3):
            yield registry_pb2.JobEvent(sequence=sequence)
        if request.job_id == "endless":
            try:
                await asyncio.sleep(60)
            finally:
                self.cancelled.set()
        if request.job_id == "fails":
            raise NotFound("job 'fails' is not there")


@pytest.fixture
async def registry(served: World) -> AsyncIterator[FakeRegistry]:
    servicer = FakeRegistry()  # type: ignore[abstract] # the rest answers UNIMPLEMENTED
    server = RpcServer(
        "127.0.0.1:0",
        handlers=[lambda server: registry_pb2_grpc.add_RegistryServicer_to_server(servicer, server)],
        service_names=["tessera.api.registry.v1.Registry"],
    )
    await server.start()
    await served.put(keys.service("registry", "registry-1"), service_record("registry", server.address))
    await asyncio.sleep(0.05)
    yield servicer
    await server.stop(0)


@pytest.fixture
async def admin(served: World) -> AsyncIterator[grpc.aio.Channel]:
    channel = connect(served.doors.admin_address, token=TOKEN)
    yield channel
    await channel.close()


async def test_no_token_no_answer(served: World, registry: FakeRegistry) -> None:
    for token in (None, "wrong"):
        channel = connect(served.doors.admin_address, token=token)
        with pytest.raises(Unauthenticated):
            await gateway_pb2_grpc.GatewayStub(channel).GetPlatform(gateway_pb2.GetPlatformRequest())
        with pytest.raises(Unauthenticated):
            await registry_pb2_grpc.RegistryStub(channel).GetModel(registry_pb2.GetModelRequest(name="x"))
        await channel.close()


async def test_the_admin_methods_are_not_on_the_public_port(served: World) -> None:
    channel = connect(served.doors.address, token=TOKEN)
    with pytest.raises(Unsupported):
        await gateway_pb2_grpc.GatewayStub(channel).GetPlatform(gateway_pb2.GetPlatformRequest())
    with pytest.raises(Unsupported):
        await registry_pb2_grpc.RegistryStub(channel).GetModel(registry_pb2.GetModelRequest(name="x"))
    await channel.close()


async def test_unary_calls_pass_with_their_errors(admin: grpc.aio.Channel, registry: FakeRegistry) -> None:
    stub = registry_pb2_grpc.RegistryStub(admin)
    answer = await stub.GetModel(registry_pb2.GetModelRequest(name="m"), metadata=(("x-mine", "1"),))
    assert answer.model.name == "m"
    assert registry.metadata["x-mine"] == "1"
    assert "authorization" not in registry.metadata
    with pytest.raises(NotFound, match="'nobody' is not registered"):
        await stub.GetModel(registry_pb2.GetModelRequest(name="nobody"))
    method: Any = admin.unary_unary("/tessera.api.registry.v1.Registry/NoSuchMethod")
    with pytest.raises(Unsupported):
        await method(b"")


async def test_streams_of_each_kind_pass(admin: grpc.aio.Channel, registry: FakeRegistry) -> None:
    stub = registry_pb2_grpc.RegistryStub(admin)

    async def upload(digest: str) -> AsyncIterator[registry_pb2.UploadFilesRequest]:
        for _ in range(5):
            yield registry_pb2.UploadFilesRequest(digest=digest, data=bytes(1 << 20))

    assert (await stub.UploadFiles(upload("good"))).received_bytes == 5 << 20
    for _ in range(10):
        # Writes race with the refusal; the reason must come through each time.
        with pytest.raises(InvalidInput, match="64 lowercase hex"):
            await stub.UploadFiles(upload("bad"))
    events = [event.sequence async for event in stub.WatchJob(registry_pb2.WatchJobRequest(job_id="j", after_sequence=4))]
    assert events == [4, 5, 6]
    failing: Any = stub.WatchJob(registry_pb2.WatchJobRequest(job_id="fails"))
    assert [(await failing.read()).sequence for _ in range(3)] == [0, 1, 2]
    with pytest.raises(NotFound, match="job 'fails'"):
        await failing.read()


async def test_both_ways_at_once(served: World, admin: grpc.aio.Channel) -> None:
    call: Any = scheduler_pb2_grpc.SchedulerStub(admin).ReportStatus()
    for count in (1, 2, 3):
        await call.write(node_pb2.NodeStatus(node_id="n"))
        assert (await call.read()).term.revision == count
    await call.write(node_pb2.NodeStatus(node_id="bad"))
    with pytest.raises(NotFound, match="'bad' is not there"):
        await call.read()


async def test_cancelling_passes(admin: grpc.aio.Channel, registry: FakeRegistry) -> None:
    call = registry_pb2_grpc.RegistryStub(admin).WatchJob(registry_pb2.WatchJobRequest(job_id="endless"))
    await call.read()
    call.cancel()
    await asyncio.wait_for(registry.cancelled.wait(), 5)


async def test_deadlines_pass(admin: grpc.aio.Channel, registry: FakeRegistry) -> None:
    from tessera.domain.errors import DeadlineExceeded

    call = registry_pb2_grpc.RegistryStub(admin).WatchJob(registry_pb2.WatchJobRequest(job_id="endless"), timeout=0.3)
    with pytest.raises(DeadlineExceeded):
        async for _ in call:
            pass
    await asyncio.wait_for(registry.cancelled.wait(), 5)


async def test_where_nobody_answers(admin: grpc.aio.Channel, served: World) -> None:
    with pytest.raises(Unavailable, match="no registry has announced itself"):
        await registry_pb2_grpc.RegistryStub(admin).ListModels(registry_pb2.ListModelsRequest())
    agent = node_pb2_grpc.NodeAgentStub(admin)
    with pytest.raises(NotFound, match="'node-9' is not there; there are node-0"):
        await agent.GetStatus(node_pb2.GetStatusRequest(), metadata=(("tessera-node", "node-9"),))
    await served.add_node("node-1")
    await asyncio.sleep(0.05)
    with pytest.raises(InvalidInput, match="must name one of node-0, node-1"):
        await agent.GetStatus(node_pb2.GetStatusRequest())
    await served.lead("127.0.0.1:1")
    await asyncio.sleep(0.05)
    with pytest.raises(Unavailable):
        await scheduler_pb2_grpc.SchedulerStub(admin).GetLeader(scheduler_pb2.GetLeaderRequest())


async def test_node_agents_are_reached_by_name(admin: grpc.aio.Channel, served: World) -> None:
    class Agent(node_pb2_grpc.NodeAgentServicer):
        async def GetStatus(self, request: Any, context: Any) -> Any:
            return node_pb2.GetStatusResponse(
                status=node_pb2.NodeStatus(node_id="node-1", stores=[node_pb2.StoreStatus(digests_added=[bytes(32)])])
            )

    agent = Agent()  # type: ignore[abstract] # the rest is not asked
    server = RpcServer(
        "127.0.0.1:0",
        handlers=[lambda server: node_pb2_grpc.add_NodeAgentServicer_to_server(agent, server)],
        service_names=["tessera.api.node.v1.NodeAgent"],
    )
    await server.start()
    await served.add_node("node-1", server.address)
    await asyncio.sleep(0.05)
    stub = node_pb2_grpc.NodeAgentStub(admin)
    assert (await stub.GetStatus(node_pb2.GetStatusRequest(), metadata=(("tessera-node", "node-1"),))).status.node_id == "node-1"
    platform = await gateway_pb2_grpc.GatewayStub(admin).GetPlatform(gateway_pb2.GetPlatformRequest())
    assert [(node.node_id, len(node.stores[0].digests_added)) for node in platform.nodes] == [("node-0", 0), ("node-1", 0)]
    await server.stop(0)


async def test_the_platform_at_a_glance(admin: grpc.aio.Channel, served: World, registry: FakeRegistry) -> None:
    await served.put(keys.service("scheduler", "s1"), service_record("scheduler", served.scheduler_address))
    await served.put(keys.service("profiler", "p1"), service_record("profiler", "127.0.0.1:1"))
    await asyncio.sleep(0.1)
    platform = await gateway_pb2_grpc.GatewayStub(admin).GetPlatform(gateway_pb2.GetPlatformRequest())
    found = {service.kind: service for service in platform.services}
    assert found["registry"].ready
    assert found["gateway"].ready
    assert found["etcd"].ready
    assert (found["scheduler"].ready, found["scheduler"].detail) == (True, "leader")
    assert not found["profiler"].ready
    assert "unavailable" in found["profiler"].detail
    assert not found["node-agent"].ready
    assert platform.models == 1
    assert [node.node_id for node in platform.nodes] == ["node-0"]


async def test_explain_names_the_losers_and_the_start(admin: grpc.aio.Channel, served: World, call: Call) -> None:
    await served.add_model("cold", "ort-fp32", "aten-fp32")
    served.starts_in(await served.add_runtime("r2"), after_s=0.05)
    await asyncio.sleep(0.05)
    first, other = await asyncio.gather(call(infer_request("cold")), call(infer_request("cold")))
    stub = gateway_pb2_grpc.GatewayStub(admin)
    for answer in (first, other):
        explained = await stub.Explain(gateway_pb2.ExplainRequest(request_id=answer.parameters["request_id"].string_param))
        assert explained.outcome == "ok"
        assert explained.model == "cold@1"
        assert [(option.variant.variant, option.chosen) for option in explained.variants] == [("ort-fp32", True), ("aten-fp32", False)]
        assert "default order" in explained.variants[1].reason
        assert explained.start_path == "bind"
        assert explained.node_id == "node-0"
        assert explained.start.policy == "cheapest"
        stages = {stage.stage: stage.ms for stage in explained.stages}
        assert stages.keys() == {"queue", "schedule", "load", "run"}
        assert stages["load"] == 2.0
        assert stages["run"] == 0.25
        assert sum(stages.values()) <= explained.actual_ms + 0.01
    served.scheduler.explained_domain = "other"  # as if that request id were one of another trust domain, too
    explained = await stub.Explain(gateway_pb2.ExplainRequest(request_id=first.parameters["request_id"].string_param))
    assert (explained.outcome, explained.HasField("start")) == ("ok", False)
    warm = await call(infer_request("cold"))
    explained = await stub.Explain(gateway_pb2.ExplainRequest(request_id=warm.parameters["request_id"].string_param))
    assert explained.start_path == "warm"
    assert not explained.HasField("start")
    assert explained.variants[0].active_instances == 1
    assert explained.variant_policy == "tessera"


async def test_explain_of_failures_and_of_strangers(admin: grpc.aio.Channel, call: Call) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    with pytest.raises(grpc.aio.AioRpcError):
        await call(infer_request("echo", "9"), metadata=(("traceparent", f"00-{trace}-00f067aa0ba902b7-01"),))
    stub = gateway_pb2_grpc.GatewayStub(admin)
    explained = await stub.Explain(gateway_pb2.ExplainRequest(request_id=trace))
    assert explained.outcome.startswith("not_found: model 'echo' has no version 9")
    assert explained.model == "echo@9"
    with pytest.raises(NotFound):
        await stub.Explain(gateway_pb2.ExplainRequest(request_id="0" * 32))
    with pytest.raises(InvalidInput, match="32 lowercase hex"):
        await stub.Explain(gateway_pb2.ExplainRequest(request_id="abc"))


async def test_the_trace_of_a_request_that_started_an_instance(admin: grpc.aio.Channel, served: World, call: Call) -> None:
    await served.add_model("cold")
    served.starts_in(await served.add_runtime("r2"))
    await asyncio.sleep(0.05)
    outer = "00f067aa0ba902b7"
    trace = "5bf92f3577b34da6a3ce929d0e0e4736"
    await call(infer_request("cold"), metadata=(("traceparent", f"00-{trace}-{outer}-01"),))
    answer = await gateway_pb2_grpc.GatewayStub(admin).GetTrace(gateway_pb2.GetTraceRequest(request_id=trace))
    spans = {span.name: span for span in answer.spans}
    assert {
        "tessera.gateway.infer",
        "tessera.gateway.queue",
        "tessera.gateway.start",
        "tessera.gateway.forward",
        "tessera.runtime.run",
    } <= set(spans)
    infer = spans["tessera.gateway.infer"]
    assert infer.parent_span_id == outer
    for child in ("tessera.gateway.queue", "tessera.gateway.start", "tessera.gateway.forward"):
        assert spans[child].parent_span_id == infer.span_id
    assert spans["tessera.runtime.run"].parent_span_id == spans["tessera.gateway.forward"].span_id
    for span in answer.spans:
        assert span.start_unix_ns <= span.end_unix_ns
    assert infer.attributes["start_path"] == "bind"


async def test_an_unsampled_request_leaves_no_spans(admin: grpc.aio.Channel, call: Call) -> None:
    trace = "6bf92f3577b34da6a3ce929d0e0e4736"
    await call(infer_request(), metadata=(("traceparent", f"00-{trace}-00f067aa0ba902b7-00"),))
    with pytest.raises(NotFound, match="not sampled"):
        await gateway_pb2_grpc.GatewayStub(admin).GetTrace(gateway_pb2.GetTraceRequest(request_id=trace))


async def test_reflection_on_the_admin_door_shows_our_services(admin: grpc.aio.Channel) -> None:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
    (listing,) = [answer async for answer in reflection_pb2_grpc.ServerReflectionStub(admin).ServerReflectionInfo(iter(asked))]
    names = {service.name for service in listing.list_services_response.service}
    assert {"tessera.api.gateway.v1.Gateway", "tessera.api.registry.v1.Registry", "tessera.api.node.v1.NodeAgent"} <= names
