"""The pool of nodes with real agents: one comes where everything is overloaded, and goes when it is not, leaving nothing."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tessera.api.open_inference.inference_pb2 import ModelInferRequest
from tessera.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from tessera.clock import SystemClock
from tessera.coord import keys
from tessera.coord.binary import EtcdProcess
from tessera.coord.etcd import EtcdCoordinator
from tessera.coord.interface import ModRevisionIs, Put
from tessera.coord.records import decode, encode
from tessera.domain.errors import InvalidInput, TesseraError, Unavailable
from tessera.domain.ids import TrustDomain
from tessera.domain.records import LoadRecord, LoadState, NodeRecord
from tessera.frames import FrameClient, RequestHeader
from tessera.rpc import connect
from tessera.scheduler.adapters.local_nodes import LocalNodes
from tessera.testing.agents import agent_settings, below
from tessera.testing.builders import a_latency_row, a_profile, a_variant, a_variant_key
from tessera.testing.etcd import free_port, running_etcd
from tessera.wire import encode_variant_key

DOMAIN = TrustDomain("default")
KEY = a_variant_key("identity", variant="identity-any")
PEAK_PER_S = 20.0
WAIT_S = 90.0


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    with running_etcd(tmp_path / "etcd") as process:
        yield process


@pytest.fixture
def run() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="tspn-", dir="/tmp"))
    yield folder
    for process in below(folder):
        process.kill()
        process.wait(10)
    subprocess.run(["umount", "-l", *map(str, folder.glob("*/store-*"))], capture_output=True, check=False)
    shutil.rmtree(folder, ignore_errors=True)


async def until(condition: Callable[[], Awaitable[Any]], what: str) -> Any:
    try:
        async with asyncio.timeout(WAIT_S):
            while not (found := await condition()):  # noqa: ASYNC110 - it is another process that changes
                await asyncio.sleep(0.1)
            return found
    except TimeoutError:
        raise AssertionError(f"not within {WAIT_S:.0f} s: {what}") from None


@asynccontextmanager
async def world(folder: Path, run: Path, etcd: EtcdProcess) -> AsyncIterator[tuple[EtcdCoordinator, str]]:
    """A scheduler that may add a node, and a node."""
    address = f"127.0.0.1:{free_port()}"
    config = folder / "scheduler.yaml"
    settings = {
        "address": address, "start_address": f"127.0.0.1:{free_port()}", "etcd_endpoints": [etcd.endpoint], "node_provider": "local",
        "node_template": str(agent_settings(folder, run, etcd.endpoint)), "node_folder": str(run / "added"), "node_period_s": 0.25,
    }  # fmt: skip
    config.write_text(json.dumps(settings))
    processes = []
    with (folder / "log").open("ab") as log:
        for module, path in (("tessera.scheduler", config), ("tessera.node_agent", folder / "agent.yaml")):
            command = [sys.executable, "-m", module, "--config", str(path)]
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ}))  # noqa: ASYNC220
    coordinator = EtcdCoordinator([etcd.endpoint])
    try:
        yield coordinator, address
    finally:
        await coordinator.close()
        for process in reversed(processes):
            process.terminate()
            await asyncio.to_thread(process.wait, 40)


async def nodes(coordinator: EtcdCoordinator) -> dict[str, NodeRecord]:
    items = (await coordinator.list(keys.nodes(DOMAIN))).items
    return {record.node_id: record for record in (decode(NodeRecord, item.value) for item in items)}


async def put(coordinator: EtcdCoordinator, key: str, record: object) -> None:
    await coordinator.transact([ModRevisionIs(key, 0)], [Put(key, encode(record))])


async def instance(address: str) -> scheduler_pb2.StartInstanceResponse:
    channel = connect(address)
    request = scheduler_pb2.StartInstanceRequest(
        request_id=os.urandom(16).hex(), trust_domain=DOMAIN, candidates=[encode_variant_key(KEY)], budget_us=60_000_000
    )
    try:
        return await scheduler_pb2_grpc.SchedulerStub(channel).StartInstance(request, timeout=61)
    finally:
        await channel.close()


async def load(started: scheduler_pb2.StartInstanceResponse, stop: asyncio.Event) -> int:
    """Three times the peak of its profile, one after another."""
    client = await FrameClient.connect_unix(started.endpoint.unix_path, target=started.endpoint.runtime_id)
    message = ModelInferRequest(model_name="identity")
    message.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 4])
    message.raw_input_contents.append(bytes(16))
    body, sent = message.SerializeToString(), 0
    try:
        while not stop.is_set():
            response = await client.request(RequestHeader(started.generation, 20_000_000), body)
            assert response.error() is None
            sent += 1
            await asyncio.sleep(1 / (3 * PEAK_PER_S))
    finally:
        client.close()
    return sent


async def test_a_node_comes_under_load_and_goes_without_it(tmp_path: Path, run: Path, own_etcd: EtcdProcess) -> None:
    async with world(tmp_path, run, own_etcd) as (coordinator, address):

        async def known() -> dict[str, NodeRecord]:
            return await nodes(coordinator)

        async def overloaded() -> bool:
            items = (await coordinator.list(keys.loads(DOMAIN))).items
            return any(decode(LoadRecord, item.value).state is LoadState.OVERLOADED for item in items)

        async def added() -> bool:
            return "extra-0" in await known()

        async def gone() -> bool:
            return "extra-0" not in await known() and not (run / "added" / "extra-0").exists()

        (first,) = (await until(known, "the first node is there")).values()
        row = a_latency_row(1, first.runtime_threads, 1000 / PEAK_PER_S, mean_ms=1000 / PEAK_PER_S)
        await put(coordinator, keys.variant(KEY), a_variant("identity", "identity-any", artifact=None, graph=None, build_class=None))
        await put(coordinator, keys.profile(KEY, first.profile_class), a_profile(KEY, profile_class=first.profile_class, rows=(row,)))
        started = await until(lambda: _started(address), "the scheduler starts an instance")
        stop = asyncio.Event()
        asking = asyncio.get_running_loop().create_task(load(started, stop))
        await until(overloaded, "its load is judged")
        await until(added, "another node is there")
        assert (await known())["extra-0"].profile_class == first.profile_class
        there = below(run / "extra-0")
        assert there, "its runtimes wait"
        stop.set()
        assert await asking > 0
        await until(gone, "the node is gone again")
        assert below(run / "extra-0") == below(run / "added") == []
        assert not (run / "extra-0").exists() or not any((run / "extra-0").iterdir())
        assert set(await known()) == {"n1"}


async def _started(address: str) -> scheduler_pb2.StartInstanceResponse | None:
    try:
        return await instance(address)
    except TesseraError:
        return None


async def test_what_cannot_be_a_template_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    for content, words in (
        ("[1]", "must be a node agent's settings"),
        ("run_folder: /r\nstores: [{folder: /s}]", "two nodes cannot share"),
    ):
        path.write_text(content)
        with pytest.raises(InvalidInput, match=words):
            LocalNodes(path, tmp_path / "added", "extra", SystemClock())


async def test_an_agent_that_ends_at_once_says_why(tmp_path: Path, run: Path) -> None:
    path = agent_settings(tmp_path, run, "127.0.0.1:1")
    path.write_text(json.dumps({**json.loads(path.read_text()), "stores": [{"budget_bytes": -1}]}))
    provider = LocalNodes(path, run / "added", "extra", SystemClock())
    with pytest.raises(Unavailable, match=r"node extra-0 ended at once: .*budget_bytes"):
        await provider.add()
    assert await provider.nodes() == frozenset()
    assert not (run / "added" / "extra-0").exists()
