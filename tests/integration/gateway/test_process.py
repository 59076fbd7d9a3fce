"""The gateway as a process of its own, with a real etcd."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from tessera.api.open_inference import inference_pb2 as pb
from tessera.coord.binary import EtcdProcess
from tessera.coord.etcd import EtcdCoordinator
from tessera.coord.interface import Delete, ModRevisionIs, Put
from tessera.coord.records import encode
from tessera.sdk import AsyncClient
from tessera.testing.etcd import free_port, running_etcd

from .conftest import HOST, TOKEN, World, infer_request


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    with running_etcd(tmp_path) as process:
        yield process


class RealWorld(World):
    """As `World`, with records in a real etcd."""

    def __init__(self, folder: Path, coordinator: EtcdCoordinator) -> None:
        super().__init__(folder)
        self.real = coordinator

    async def put(self, key: str, record: Any) -> None:
        await self._write(key, Put(key, encode(record)))

    async def delete(self, key: str) -> None:
        await self._write(key, Delete(key))

    async def _write(self, key: str, write: Put | Delete) -> None:
        found = await self.real.get(key)
        await self.real.transact([ModRevisionIs(key, found.mod_revision if found else 0)], [write])


@pytest.fixture
async def real(etcd: EtcdProcess, tmp_path: Path) -> AsyncIterator[RealWorld]:
    coordinator = EtcdCoordinator([etcd.endpoint])
    world = RealWorld(tmp_path, coordinator)
    await world.add_node()
    await world.add_model("echo")
    await world.load("echo", await world.add_runtime("r1"))
    yield world
    for runtime in world.runtimes.values():
        if runtime.server is not None:
            await runtime.server.close()
    await coordinator.close()


class GatewayProcess:
    def __init__(self, folder: Path, etcd: EtcdProcess, **settings: Any) -> None:
        self.endpoint = f"127.0.0.1:{free_port()}"
        token = folder / "gateway-token"
        token.write_text(TOKEN)
        token.chmod(0o600)
        self.config = folder / "gateway.yaml"
        self.config.write_text(
            yaml.safe_dump(
                {
                    "address": self.endpoint, "admin_address": f"127.0.0.1:{free_port()}", "metrics_address": f"127.0.0.1:{free_port()}",
                    "token_file": str(token), "etcd_endpoints": [etcd.endpoint], "host_id": HOST, "drain_grace_s": 5.0, **settings,
                }
            )
        )  # fmt: skip

    async def start(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tessera.gateway", "--config", str(self.config), stderr=asyncio.subprocess.PIPE, env=dict(os.environ)
        )

    async def ready(self) -> None:
        async with AsyncClient(self.endpoint) as client, asyncio.timeout(30):
            while True:
                try:
                    if await client.is_ready():
                        return
                except Exception:
                    pass
                await asyncio.sleep(0.05)


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str]:
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode is not None
    return process.returncode, errors.decode()


async def test_it_serves_drains_on_sigterm_and_ends_with_zero(real: RealWorld, etcd: EtcdProcess, tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path, etcd)
    process = await gateway.start()
    try:
        await gateway.ready()
        runtime = real.runtimes["r1"]
        runtime.delay_s = 1.0
        async with grpc.aio.insecure_channel(gateway.endpoint) as channel:
            method: Any = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer", response_deserializer=pb.ModelInferResponse.FromString
            )
            executing = asyncio.ensure_future(method(infer_request().SerializeToString()))
            await asyncio.wait_for(runtime.entered.wait(), 10)
            process.send_signal(signal.SIGTERM)
            assert (await executing).parameters["start_path"].string_param == "warm"
        code, errors = await ended(process)
        assert code == 0, errors
        assert '"event": "draining"' in errors
        assert (await real.real.list("/tessera/v1/services/gateway/")).items == ()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_taken_port_ends_it_with_words(real: RealWorld, etcd: EtcdProcess, tmp_path: Path) -> None:
    first = GatewayProcess(tmp_path, etcd)
    process = await first.start()
    try:
        await first.ready()
        second = GatewayProcess(tmp_path, etcd, address=first.endpoint)
        code, errors = await ended(await second.start())
        assert code == 1
        assert f"address {first.endpoint} is in use" in errors
        assert "Traceback" not in errors
    finally:
        process.kill()
        await process.wait()


async def test_a_wrong_setting_ends_it_with_words(tmp_path: Path, etcd: EtcdProcess) -> None:
    code, errors = await ended(await GatewayProcess(tmp_path, etcd, start_queue_limit=0, speed="fast").start())
    assert code == 2
    assert "start_queue_limit = 0" in errors
    assert "speed: unknown key" in errors


@pytest.mark.etcd
async def test_serving_goes_on_while_etcd_is_killed_and_restarted(real: RealWorld, etcd: EtcdProcess, tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path, etcd)
    process = await gateway.start()
    answered = 0
    stop = asyncio.Event()

    async def load() -> None:
        nonlocal answered
        async with grpc.aio.insecure_channel(gateway.endpoint) as channel:
            method: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            while not stop.is_set():
                await method(infer_request().SerializeToString())
                answered += 1

    try:
        await gateway.ready()
        loading = asyncio.ensure_future(load())
        await asyncio.sleep(0.5)
        await etcd.kill()
        before = answered
        await asyncio.sleep(2.0)
        assert answered > before
        await etcd.start()
        # What changes afterwards is seen: the watches came back.
        await real.add_model("later")
        async with AsyncClient(gateway.endpoint) as client, asyncio.timeout(20):
            while not await client.is_ready("later"):  # noqa: ASYNC110 # the other process tells nobody
                await asyncio.sleep(0.1)
        stop.set()
        await loading
    finally:
        process.kill()
        await process.wait()
