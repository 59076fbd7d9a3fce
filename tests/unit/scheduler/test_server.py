"""The gRPC face: real servers on loopback, a fake etcd, a fake agent behind real gRPC."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import pytest
from scheduler_builders import eventually, key, node_record, variant
from scheduler_world import World

from tessera.api.common.v1 import common_pb2
from tessera.api.node.v1 import node_pb2, node_pb2_grpc
from tessera.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from tessera.clock import SystemClock
from tessera.coord import keys
from tessera.coord.interface import ModRevisionIs, Put
from tessera.coord.records import encode
from tessera.domain.errors import FailedPrecondition, Internal, InvalidInput, NotFound, Unavailable
from tessera.domain.ids import NodeId, TrustDomain
from tessera.program import Stop, Tasks
from tessera.rpc import FramedCalls, FramedServer, RpcServer, connect
from tessera.scheduler.adapters.agents import START, RemoteAgents
from tessera.scheduler.adapters.metrics import PrometheusMeter
from tessera.scheduler.app import SERVICE, Scheduler
from tessera.scheduler.config import SchedulerConfig
from tessera.scheduler.server import SILENT_S
from tessera.testing import run_virtual
from tessera.testing.coord import FakeCoordinator, FakeEtcd
from tessera.wire import encode_variant_key

DOMAIN = TrustDomain("default")


class FakeAgent(node_pb2_grpc.NodeAgentServicer):
    """An agent behind real gRPC that answers at once."""

    def __init__(self) -> None:
        self.requests: list[node_pb2.StartInstanceRequest] = []
        self.stops: list[node_pb2.StopInstanceRequest] = []
        self.state = "ready"

    async def StartInstance(self, request: node_pb2.StartInstanceRequest, context: Any) -> node_pb2.StartInstanceResponse:
        self.requests.append(request)
        return node_pb2.StartInstanceResponse(instance=self.instance(request))

    async def StopInstance(self, request: node_pb2.StopInstanceRequest, context: Any) -> node_pb2.StopInstanceResponse:
        self.stops.append(request)
        return node_pb2.StopInstanceResponse()

    def instance(self, request: node_pb2.StartInstanceRequest) -> node_pb2.Instance:
        endpoint = common_pb2.InstanceEndpoint(host_id="h", unix_path="/run/r/data.sock", relay_address="127.0.0.1:9", runtime_id="r-1")
        return node_pb2.Instance(
            instance_id=request.instance_id,
            generation=request.generation,
            variant=request.variant,
            runtime_id="r-1",
            state=self.state,
            start_path=request.start_path,
            fetched=True,
            stages=[common_pb2.StageTime(stage="load", ms=2.5)],
            endpoint=endpoint,
            idle_s=1.0,
            artifact_digest=request.artifact_digest,
        )


@dataclass
class Setting:
    scheduler: Scheduler
    stub: Any
    agent: FakeAgent
    agent_address: str
    start_address: str
    metrics: PrometheusMeter
    etcd: FakeCoordinator
    streams: list[Any] = field(default_factory=list)

    @staticmethod
    def store(**fields: Any) -> node_pb2.StoreStatus:
        return node_pb2.StoreStatus(**{"trust_domain": "default", "budget_bytes": 1 << 30, **fields})

    def status(self, **fields: Any) -> node_pb2.NodeStatus:
        values: dict[str, Any] = {
            "node_id": "n1",
            "build_class": "a",
            "profile_class": "p",
            "flavours": ["ort"],
            "runtimes": [node_pb2.Runtime(runtime_id="r-1", flavour="ort", trust_domain="default")],
            "stores": [self.store()],
            "full": True,
            "agent_address": self.agent_address,
            "start_address": self.start_address,
        }
        return node_pb2.NodeStatus(**{**values, **fields})

    async def report(self, *messages: node_pb2.NodeStatus) -> Any:
        """Opens a status stream and sends messages; returns the call, with the answer to the first message read."""
        call = self.stub.ReportStatus()
        self.streams.append(call)
        for message in messages or (self.status(),):
            await call.write(message)
        return call

    async def start(self, *candidates: str, **fields: Any) -> scheduler_pb2.StartInstanceResponse:
        wanted = [encode_variant_key(key(name)) for name in candidates or ("ort-fp32",)]
        values: dict[str, Any] = {"request_id": "a" * 32, "trust_domain": "default", "candidates": wanted, "budget_us": 5_000_000}
        answer: scheduler_pb2.StartInstanceResponse = await self.stub.StartInstance(
            scheduler_pb2.StartInstanceRequest(**{**values, **fields}), timeout=10
        )
        return answer


@asynccontextmanager
async def set_up(**settings: Any) -> AsyncIterator[Setting]:
    etcd = FakeEtcd()
    coordinator, own = FakeCoordinator(etcd), FakeCoordinator(etcd)
    for where, record in ((keys.variant(key()), variant()), (keys.node(DOMAIN, NodeId("n1")), node_record())):
        await own.transact([ModRevisionIs(where, 0)], [Put(where, encode(record))])
    agent, meter = FakeAgent(), PrometheusMeter()

    def add_agent(server: grpc.aio.Server) -> None:
        node_pb2_grpc.add_NodeAgentServicer_to_server(agent, server)

    agent_server = RpcServer("127.0.0.1:0", handlers=[add_agent], service_names=["tessera.api.node.v1.NodeAgent"])
    await agent_server.start()
    starts = FramedServer("127.0.0.1:0", {START: (node_pb2.StartInstanceRequest, agent.StartInstance)})
    await starts.start()
    stop = Stop()
    async with Tasks(stop) as tasks:
        agents = RemoteAgents(FramedCalls(tasks))
        scheduler = Scheduler(
            SchedulerConfig(**{"address": "127.0.0.1:1", "patience_s": 0.3, **settings}),
            coordinator, agents=agents, clock=SystemClock(), tasks=tasks,
            random_bytes=os.urandom, meter=meter,
        )  # fmt: skip

        def add(server: grpc.aio.Server) -> None:
            scheduler_pb2_grpc.add_SchedulerServicer_to_server(scheduler.servicer, server)

        server = RpcServer("127.0.0.1:0", handlers=[add], service_names=[SERVICE])
        await server.start()
        channel = connect(server.address)
        setting = Setting(scheduler, scheduler_pb2_grpc.SchedulerStub(channel), agent, agent_server.address, starts.address, meter, own)
        try:
            # A busy machine may take more than one try to connect.
            await channel.channel_ready()
            scheduler.start()
            await eventually(lambda: scheduler.leading.leadership is not None)
            yield setting
        finally:
            for call in setting.streams:
                call.cancel()
            await channel.close()
            await server.stop(0)
            await agents.close()
    await starts.stop(0)
    await agent_server.stop(0)
    await coordinator.close()
    await own.close()
    assert stop.error is None


async def test_a_start_from_the_wire_to_the_agent_and_back() -> None:
    async with set_up() as setting:
        call = await setting.report()
        term = (await call.read()).term
        answer = await setting.start()
        request = setting.agent.requests[0]
        assert (request.instance_id, request.generation, request.term) == (answer.instance_id, answer.generation, term)
        assert (request.start_path, request.expires_after_ms, request.artifact_digest) == ("bind", 40_000, "f" * 64)
        assert (answer.node_id, answer.start_path, answer.fetched) == ("n1", "bind", True)
        assert answer.endpoint.unix_path == "/run/r/data.sock"
        assert [stage.stage for stage in answer.stages] == ["schedule", "load"]
        again = await setting.start()
        assert (again.start_path, again.instance_id) == ("warm", answer.instance_id)
        explained = await setting.stub.ExplainStart(scheduler_pb2.ExplainStartRequest(request_id="a" * 32))
        assert explained.options[0].chosen
        assert explained.options[0].start_path == "warm"
        assert explained.policy == "cheapest(bytes-present)"


async def test_an_agent_is_told_again_of_a_start_without_a_record_where_it_takes_starts() -> None:
    async with set_up(provisional_s=1.0, reconcile_s=0.1) as setting:
        await (await setting.report()).read()
        setting.etcd.server.stop()
        answer = await setting.start()
        instance = setting.agent.instance(setting.agent.requests[0])
        await setting.streams[0].write(setting.status(full=False, instances=[instance]))
        await eventually(lambda: len(setting.agent.requests) > 1)
        setting.etcd.server.start()
        assert {request.instance_id for request in setting.agent.requests} == {answer.instance_id}
        assert setting.agent.requests[1].expires_after_ms == 1000


async def test_a_node_of_containers_is_asked_for_one_where_nothing_is_warm() -> None:
    async with set_up() as setting:
        await (await setting.report(setting.status(new_runtimes="container", runtimes=[]))).read()
        assert (await setting.start()).start_path == "container"


async def test_the_leader_says_its_term() -> None:
    async with set_up() as setting:
        leader = await setting.stub.GetLeader(scheduler_pb2.GetLeaderRequest())
        assert (leader.is_self, leader.address) == (True, "127.0.0.1:1")
        assert leader.term.revision > 0


async def test_a_standby_refuses_starts_and_status_and_names_the_leader() -> None:
    async with set_up() as setting:
        setting.scheduler.leading.leadership = None
        with pytest.raises(Unavailable, match=r"scheduler 127.0.0.1:1 is a standby; the leader is 127.0.0.1:1"):
            await setting.start()
        call = await setting.report()
        with pytest.raises(Unavailable, match="is a standby"):
            await call.read()


async def test_stepping_down_ends_the_status_streams() -> None:
    async with set_up() as setting:
        call = await setting.report()
        await call.read()
        setting.scheduler.leading.leadership = None
        setting.scheduler.leading.changed.fire()
        with pytest.raises(Unavailable, match="is a standby"):
            await call.read()


async def test_a_status_stream_that_ends_makes_the_node_silent() -> None:
    async with set_up() as setting:
        call = await setting.report()
        await call.read()
        await eventually(lambda: NodeId("n1") in setting.scheduler.cluster.observed)
        node = setting.scheduler.cluster.observed[NodeId("n1")]
        assert node.live
        await call.done_writing()
        await eventually(lambda: not setting.scheduler.cluster.observed[NodeId("n1")].live)
        with pytest.raises(Unavailable, match="1 does not report"):
            await setting.start()


def test_an_agent_that_hangs_makes_the_node_silent() -> None:
    async def main() -> None:
        async with World() as world:
            scheduler = await world.add_scheduler()
            world.nodes["n1"].silence()
            setting = Setting(scheduler, None, FakeAgent(), "n1:1", "n1:3", PrometheusMeter(), world.own)

            async def hanging() -> AsyncIterator[node_pb2.NodeStatus]:
                """Late with its second report, and never there with the third."""
                yield setting.status()
                await asyncio.sleep(SILENT_S - 0.1)
                yield setting.status(full=False)
                await asyncio.sleep(1e6)

            call = scheduler.servicer.ReportStatus(hanging(), None)
            await anext(call)
            began_s = world.clock.monotonic_s()
            with pytest.raises(Unavailable, match="status of node n1: nothing came for 10 s"):
                async with asyncio.timeout(3 * SILENT_S):
                    await anext(call)
            assert world.clock.monotonic_s() - began_s == pytest.approx(2 * SILENT_S - 0.1)
            assert not scheduler.cluster.observed[NodeId("n1")].live
            with pytest.raises(Unavailable, match="1 does not report"):
                await world.start(scheduler)

    run_virtual(main)


async def test_digests_travel_as_changes() -> None:
    async with set_up() as setting:
        first, second = bytes(31) + b"\x01", bytes(31) + b"\x02"
        full = setting.status(stores=[setting.store(digests_added=[first]), setting.store(trust_domain="other", digests_added=[second])])
        change = setting.status(full=False, stores=[setting.store(digests_added=[second]), setting.store(trust_domain="other")])
        call = await setting.report(full, change)
        await call.read()

        def held(domain: str) -> frozenset[str]:
            node = setting.scheduler.cluster.observed.get(NodeId("n1"))  # the leader's term may be answered before the report is taken in
            return node.stores[TrustDomain(domain)].digests if node is not None else frozenset()

        await eventually(lambda: len(held("default")) == 2)
        assert held("default") == {first.hex(), second.hex()}
        assert held("other") == {second.hex()}


async def to_the_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"full": False}, FailedPrecondition, "the first message of a stream must be full"),
        ({"node_id": "N 1"}, InvalidInput, "node_id 'N 1'"),
        (
            {"stores": [node_pb2.StoreStatus(trust_domain="default", digests_added=[b"short"])]},
            InvalidInput,
            r"stores\[0\].digests_added '5 bytes': a digest has 32 bytes",
        ),
        ({"instances": [node_pb2.Instance(instance_id="i", state="lost")]}, InvalidInput, r"instances\[0\].state 'lost'"),
    ],
)
async def test_a_malformed_status_ends_its_stream_with_the_fields_name(fields: dict[str, Any], kind: type[Exception], words: str) -> None:
    async with set_up() as setting:
        call = await setting.report(setting.status(**fields))
        with pytest.raises(kind, match=words):
            await to_the_end(call)


async def test_an_instance_without_a_runtime_yet_is_taken_in() -> None:
    async with set_up() as setting:
        fresh = node_pb2.Instance(
            instance_id="i-1", generation=5, variant=encode_variant_key(key("other")), state="accepted", start_path="fork"
        )
        call = await setting.report(setting.status(instances=[fresh]))
        await call.read()
        await eventually(lambda: NodeId("n1") in setting.scheduler.cluster.observed)
        assert setting.scheduler.cluster.observed[NodeId("n1")].instances[0].runtime_id == ""


async def test_an_agent_that_answers_with_something_else_than_a_ready_instance() -> None:
    async with set_up() as setting:
        call = await setting.report()
        await call.read()
        setting.agent.state = "loading"
        with pytest.raises(Internal, match="node n1 answered a start with an instance that is loading"):
            await setting.start()


async def test_stopping_by_hand() -> None:
    async with set_up() as setting:
        call = await setting.report()
        await call.read()
        answer = await setting.start()
        await setting.stub.StopInstance(scheduler_pb2.StopInstanceRequest(node_id="n1", instance_id=answer.instance_id))
        assert [stop.instance_id for stop in setting.agent.stops] == [answer.instance_id]
        with pytest.raises(NotFound, match="instance nothing on node n1: neither assigned nor reported"):
            await setting.stub.StopInstance(scheduler_pb2.StopInstanceRequest(node_id="n1", instance_id="nothing"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"candidates": []}, "candidates"),
        ({"budget_us": 0}, "budget_us 0: must be more than 0"),
        ({"trust_domain": "other"}, "trust_domain 'other': must be that of every candidate"),
        ({"candidates": [common_pb2.VariantKey(trust_domain="default", model="M", version=1, variant="v")]}, r"candidates\[0\].model"),
        ({"candidates": [encode_variant_key(key())] * 65}, "candidates 65: at most 64"),
    ],
)
async def test_bad_requests_name_the_field(fields: dict[str, Any], words: str) -> None:
    async with set_up() as setting:
        with pytest.raises(InvalidInput, match=words):
            await setting.start(**fields)


async def test_an_unknown_request_cannot_be_explained() -> None:
    async with set_up() as setting:
        with pytest.raises(NotFound, match="started nothing here"):
            await setting.stub.ExplainStart(scheduler_pb2.ExplainStartRequest(request_id="b" * 32))


async def test_metrics_count_starts_and_refusals() -> None:
    async with set_up(settle_s=0.0) as setting:
        with pytest.raises(InvalidInput):
            await setting.start(budget_us=0)
        call = await setting.report()
        await call.read()
        await eventually(lambda: NodeId("n1") in setting.scheduler.cluster.observed)
        await setting.start()
        await setting.start()
        value = setting.metrics.registry.get_sample_value
        assert value("tessera_scheduler_starts_total", {"start_path": "bind", "outcome": "ok"}) == 1
        assert value("tessera_scheduler_starts_total", {"start_path": "warm", "outcome": "ok"}) == 1
        assert value("tessera_scheduler_start_seconds_count", {"start_path": "bind"}) == 1


async def test_the_service_says_where_it_answers() -> None:
    async with set_up() as setting:
        await eventually(lambda: bool(setting.etcd.server.items(keys.SERVICES)))
        item = (await setting.etcd.list(keys.SERVICES)).items[0]
        assert item.key == keys.service("scheduler", "127.0.0.1:1")
        assert item.lease_id != 0
