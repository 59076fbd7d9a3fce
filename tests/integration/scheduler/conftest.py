"""A real etcd, schedulers as processes, an agent behind real gRPC that obeys terms."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from tessera.api.common.v1 import common_pb2
from tessera.api.node.v1 import node_pb2, node_pb2_grpc
from tessera.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from tessera.coord import keys
from tessera.coord.binary import EtcdProcess
from tessera.coord.etcd import EtcdCoordinator
from tessera.coord.interface import KeyValue, ModRevisionIs, Put
from tessera.coord.records import decode, encode
from tessera.domain.errors import StaleTerm, TesseraError
from tessera.domain.ids import NodeId, Term, TrustDomain
from tessera.domain.records import AssignmentRecord
from tessera.rpc import FramedServer, RpcServer, connect
from tessera.scheduler.adapters.agents import START
from tessera.testing.builders import BUILD_CLASS, PROFILE_CLASS, a_node, a_variant, a_variant_key
from tessera.testing.etcd import free_port, running_etcd
from tessera.wire import encode_variant_key

DOMAIN = TrustDomain("default")
WAIT_S = 30.0


class AgentDouble(node_pb2_grpc.NodeAgentServicer):
    """One node: keeps instances, refuses older terms, streams its status to whoever leads."""

    def __init__(self) -> None:
        self.address = ""
        self.start_address = ""
        self.newest = Term(0, 0)
        self.terms: list[Term] = []
        self.instances: dict[str, node_pb2.Instance] = {}
        self.requests: list[node_pb2.StartInstanceRequest] = []
        self.load_s = 0.0

    async def StartInstance(self, request: node_pb2.StartInstanceRequest, context: Any) -> node_pb2.StartInstanceResponse:
        term = Term(request.term.cluster_id, request.term.revision)
        if term.is_older_than(self.newest):
            raise StaleTerm(f"term {term.revision} is older than {self.newest.revision}")
        self.newest = term
        self.terms.append(term)
        self.requests.append(request)
        if self.load_s:
            await asyncio.sleep(self.load_s)
        endpoint = common_pb2.InstanceEndpoint(host_id="h", unix_path="/run/r", relay_address="127.0.0.1:9", runtime_id="r-1")
        instance = node_pb2.Instance(
            instance_id=request.instance_id, generation=request.generation, variant=request.variant, runtime_id="r-1", state="ready",
            start_path=request.start_path, endpoint=endpoint, idle_s=1.0, artifact_digest=request.artifact_digest,
        )  # fmt: skip
        self.instances[request.instance_id] = instance
        return node_pb2.StartInstanceResponse(instance=instance)

    async def StopInstance(self, request: node_pb2.StopInstanceRequest, context: Any) -> node_pb2.StopInstanceResponse:
        self.instances.pop(request.instance_id, None)
        return node_pb2.StopInstanceResponse()

    def status(self) -> node_pb2.NodeStatus:
        return node_pb2.NodeStatus(
            node_id="n1", build_class=BUILD_CLASS, profile_class=PROFILE_CLASS, flavours=["ort", "aten"],
            instances=list(self.instances.values()), runtimes=[node_pb2.Runtime(runtime_id="r-1", flavour="aten", trust_domain="default")],
            stores=[node_pb2.StoreStatus(trust_domain="default", budget_bytes=1 << 30)], full=True, agent_address=self.address,
            start_address=self.start_address,
        )  # fmt: skip

    async def report_for_ever(self, addresses: list[str]) -> None:
        """Tries every scheduler until one takes the stream; a standby refuses."""
        while True:
            for address in addresses:
                channel = connect(address)
                try:
                    async for _ in scheduler_pb2_grpc.SchedulerStub(channel).ReportStatus(self._statuses()):
                        pass
                except TesseraError:
                    pass
                finally:
                    await channel.close()
            await asyncio.sleep(0.1)

    async def _statuses(self) -> AsyncIterator[node_pb2.NodeStatus]:
        while True:
            yield self.status()
            await asyncio.sleep(0.1)


class Cluster:
    """An etcd, an agent, and two schedulers as processes."""

    def __init__(self, etcd: EtcdProcess, folder: Path) -> None:
        self.etcd = etcd
        self.folder = folder
        self.agent = AgentDouble()
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.coordinator = EtcdCoordinator([etcd.endpoint])
        self.channels = {address: connect(address) for address in self.addresses}

    def start(self, address: str) -> None:
        config = self.folder / f"{address.rpartition(':')[2]}.yaml"
        where = f"address: {address}\nstart_address: 127.0.0.1:{free_port()}\netcd_endpoints: ['{self.etcd.endpoint}']\n"
        config.write_text(f"{where}lease_ttl_s: 2.0\ninstance_keep_alive_s: 3600\n")
        with config.with_suffix(".log").open("ab") as log:
            self.processes[address] = subprocess.Popen(
                [sys.executable, "-m", "tessera.scheduler", "--config", str(config)], stdout=log, stderr=log, env={**os.environ}
            )

    def kill(self, address: str, how: signal.Signals = signal.SIGKILL) -> int:
        process = self.processes.pop(address)
        process.send_signal(how)
        return process.wait(timeout=WAIT_S)

    async def put(self, key: str, record: object, lease_id: int = 0) -> None:
        found = await self.coordinator.get(key)
        await self.coordinator.transact([ModRevisionIs(key, found.mod_revision if found else 0)], [Put(key, encode(record), lease_id)])

    async def leader(self, other_than: str = "") -> str:
        """Waits until a scheduler says that it leads."""
        async with asyncio.timeout(WAIT_S):
            while True:
                for address in self.processes:
                    try:
                        answer = await self.stub(address).GetLeader(scheduler_pb2.GetLeaderRequest(), timeout=2)
                    except TesseraError:
                        continue
                    if answer.is_self and address != other_than:
                        return address
                await asyncio.sleep(0.05)

    async def answering(self, address: str) -> None:
        """Waits until a scheduler answers and knows the leader."""
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    if (await self.stub(address).GetLeader(scheduler_pb2.GetLeaderRequest(), timeout=2)).address:
                        return
                except TesseraError:
                    pass
                await asyncio.sleep(0.05)

    def stub(self, address: str) -> Any:
        return scheduler_pb2_grpc.SchedulerStub(self.channels[address])

    async def ask(self, address: str, variant: str = "aten-fp32", budget_s: float = 20.0) -> scheduler_pb2.StartInstanceResponse:
        request = scheduler_pb2.StartInstanceRequest(
            request_id=os.urandom(16).hex(),
            trust_domain="default",
            candidates=[encode_variant_key(a_variant_key(variant=variant))],
            budget_us=int(budget_s * 1e6),
        )
        answer: scheduler_pb2.StartInstanceResponse = await self.stub(address).StartInstance(request, timeout=budget_s + 1)
        return answer

    async def recorded(self, count: int) -> list[AssignmentRecord]:
        """Waits until etcd holds this many assignments."""
        async with asyncio.timeout(WAIT_S):
            while True:
                items: tuple[KeyValue, ...] = (await self.coordinator.list(keys.assignments(DOMAIN))).items
                if len(items) == count:
                    return [decode(AssignmentRecord, item.value) for item in items]
                await asyncio.sleep(0.05)


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    with running_etcd(tmp_path) as process:
        yield process


@asynccontextmanager
async def _running(etcd: EtcdProcess, folder: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(etcd, folder)

    def add(server: grpc.aio.Server) -> None:
        node_pb2_grpc.add_NodeAgentServicer_to_server(cluster.agent, server)

    server = RpcServer("127.0.0.1:0", handlers=[add], service_names=["tessera.api.node.v1.NodeAgent"])
    await server.start()
    starts = FramedServer("127.0.0.1:0", {START: (node_pb2.StartInstanceRequest, cluster.agent.StartInstance)})
    await starts.start()
    cluster.agent.address, cluster.agent.start_address = server.address, starts.address
    await cluster.put(keys.variant(a_variant_key()), a_variant())
    await cluster.put(keys.variant(a_variant_key(variant="aten-other")), a_variant(variant="aten-other"))
    await cluster.put(keys.node(DOMAIN, NodeId("n1")), a_node("n1", agent_address=server.address, start_address=starts.address))
    reporting = asyncio.get_running_loop().create_task(cluster.agent.report_for_ever(cluster.addresses))
    try:
        yield cluster
    finally:
        reporting.cancel()
        await asyncio.gather(reporting, return_exceptions=True)
        for address in list(cluster.processes):
            cluster.kill(address)
        for channel in cluster.channels.values():
            await channel.close()
        await cluster.coordinator.close()
        await starts.stop(0)
        await server.stop(0)


@pytest.fixture
async def cluster(etcd: EtcdProcess, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with _running(etcd, tmp_path) as running:
        for address in running.addresses:
            running.start(address)
            await running.answering(address)
        yield running
