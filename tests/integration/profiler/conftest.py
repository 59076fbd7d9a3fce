"""A real etcd, the profiler as a process, an agent behind real gRPC that measures slowly."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from tessera.api.common.v1 import common_pb2
from tessera.api.node.v1 import node_pb2, node_pb2_grpc
from tessera.api.profiler.v1 import profiler_pb2, profiler_pb2_grpc
from tessera.coord import keys
from tessera.coord.binary import EtcdProcess
from tessera.coord.etcd import EtcdCoordinator
from tessera.coord.interface import ModRevisionIs, Put
from tessera.coord.records import encode
from tessera.domain.errors import TesseraError
from tessera.domain.ids import ModelName, NodeId, TrustDomain
from tessera.rpc import RpcServer, connect
from tessera.testing.builders import a_model, a_node, a_variant, a_variant_key, a_version, a_version_key
from tessera.testing.etcd import free_port, running_etcd

DOMAIN = TrustDomain("default")
WAIT_S = 30.0


class MeasuringAgent(node_pb2_grpc.NodeAgentServicer):
    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int]] = []
        self.row_s = 0.0
        self.begun = 0
        self.cancelled = asyncio.Event()

    async def Measure(self, request: node_pb2.MeasureRequest, context: Any) -> AsyncIterator[node_pb2.MeasureEvent]:
        self.begun += 1
        try:
            stages = [common_pb2.StageTime(stage="map", ms=1.0), common_pb2.StageTime(stage="load", ms=2.0)]
            yield node_pb2.MeasureEvent(load=node_pb2.LoadCost(start_path="bind", stages=stages, peak_private_bytes=1000))
            await asyncio.sleep(self.row_s)
            cell = {"batch": request.batch, "threads": request.threads, "concurrency": request.concurrency}
            self.rows.append((request.batch, request.threads, request.concurrency))
            figures = {"p50_ms": 2.0 * request.batch, "p99_ms": 9.0, "mean_ms": 2.0 * request.batch, "spread": 0.01}
            yield node_pb2.MeasureEvent(row=node_pb2.LatencyRow(repeats=5, **cell, **figures))
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


class Bench:
    def __init__(self, etcd: EtcdProcess, folder: Path) -> None:
        self.etcd = etcd
        self.folder = folder
        self.agent = MeasuringAgent()
        self.address = f"127.0.0.1:{free_port()}"
        self.coordinator = EtcdCoordinator([etcd.endpoint])
        self.channel = connect(self.address)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def stub(self) -> Any:
        return profiler_pb2_grpc.ProfilerStub(self.channel)

    def launch(self) -> None:
        config = self.folder / "profiler.yaml"
        config.write_text(f"address: {self.address}\netcd_endpoints: ['{self.etcd.endpoint}']\nquick_seconds_per_row: 0.1\n")
        with (self.folder / "profiler.log").open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "tessera.profiler", "--config", str(config)], stdout=log, stderr=log)

    async def start(self) -> None:
        """Starts the process; returns when it answers."""
        self.launch()
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    await self.stub.GetProfiles(profiler_pb2.GetProfilesRequest(trust_domain="default", model="digits"), timeout=2)
                    return
                except TesseraError:
                    await asyncio.sleep(0.05)

    def end(self, how: signal.Signals) -> int:
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(how)
        return process.wait(timeout=WAIT_S)

    async def put(self, key: str, record: object) -> None:
        await self.coordinator.transact([ModRevisionIs(key, 0)], [Put(key, encode(record))])

    async def profiles(self) -> Any:
        request = profiler_pb2.GetProfilesRequest(trust_domain="default", model="digits")
        return (await self.stub.GetProfiles(request, timeout=10)).profiles


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    with running_etcd(tmp_path) as process:
        yield process


@pytest.fixture
async def bench(etcd: EtcdProcess, tmp_path: Path) -> AsyncIterator[Bench]:
    found = Bench(etcd, tmp_path)

    def add(server: grpc.aio.Server) -> None:
        node_pb2_grpc.add_NodeAgentServicer_to_server(found.agent, server)

    server = RpcServer("127.0.0.1:0", handlers=[add], service_names=["tessera.api.node.v1.NodeAgent"])
    await server.start()
    await found.put(keys.model(DOMAIN, ModelName("digits")), a_model())
    await found.put(keys.version(a_version_key()), a_version())
    await found.put(keys.variant(a_variant_key()), a_variant())
    await found.put(keys.node(DOMAIN, NodeId("n1")), a_node("n1", agent_address=server.address))
    try:
        await found.start()
        yield found
    finally:
        if found.process is not None:
            found.end(signal.SIGKILL)
        await found.channel.close()
        await found.coordinator.close()
        await server.stop(0)
