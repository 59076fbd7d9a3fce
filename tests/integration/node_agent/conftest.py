"""Real node agents as processes: real zygotes, runtimes, relay, store, repository and etcd. Nothing of them is left after a test."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tessera import rpc
from tessera.api.common.v1 import common_pb2
from tessera.api.node.v1 import node_pb2, node_pb2_grpc
from tessera.api.open_inference.inference_pb2 import ModelInferRequest, ModelInferResponse
from tessera.coord import keys, records
from tessera.coord.binary import EtcdProcess
from tessera.coord.etcd import EtcdCoordinator
from tessera.domain.artifact import Artifact, Blob, TensorRef
from tessera.domain.errors import TesseraError, Unavailable
from tessera.domain.ids import DEFAULT_TRUST_DOMAIN, Digest, NodeId, TrustDomain, domain_tag
from tessera.domain.records import InstanceRecord
from tessera.domain.signature import Signature, TensorSpec
from tessera.frames import FrameClient, FrameResponse, RequestHeader
from tessera.repository import Repository
from tessera.runtime.classes import build_class
from tessera.tensorstore.artifact import digest_of, encode
from tessera.testing.etcd import free_port, running_etcd

WIDTH = 64
DOMAIN = TrustDomain("default")
END_S = 30.0


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    with running_etcd(tmp_path_factory.mktemp("etcd")) as process:
        yield process


@dataclass(frozen=True)
class Linear:
    """y = x @ weight.T + bias as an artifact in the repository. `tensor` is the digest of the weight, a blob of its own."""

    artifact: Digest
    tensor: Digest
    weight: np.ndarray
    bias: np.ndarray

    def expected(self, x: np.ndarray) -> np.ndarray:
        return x @ self.weight.T + self.bias


def make_linear(repository: Repository, backend: str, seed: int = 0, bias_seed: int | None = None, width: int = WIDTH) -> Linear:
    """Backend "ort", "aten", or "onnx" (an export to be baked). The same seed and another bias seed: a sibling."""
    random, other = np.random.default_rng(seed), np.random.default_rng(seed if bias_seed is None else 1000 + bias_seed)
    weight = (random.standard_normal((width, width), np.float32) / np.float32(width**0.5)).astype(np.float32)
    bias = other.standard_normal(width).astype(np.float32)
    signature = Signature((TensorSpec("x", "FP32", (-1, width)),), (TensorSpec("y", "FP32", (-1, width)),))
    tensor, pack = repository.put_bytes(weight.tobytes()), repository.put_bytes(bias.tobytes())
    refs = (
        TensorRef("weight", "FP32", weight.shape, tensor, weight.nbytes),
        TensorRef("bias", "FP32", bias.shape, digest_of(bias.tobytes()), bias.nbytes, 0),
    )
    program = _aten_program(width) if backend == "aten" else _onnx_model(width)
    graph = Blob(repository.put_bytes(program), len(program))
    artifact = Artifact(
        backend,
        "fp32",
        "aten" if backend == "aten" else "onnx",
        graph,
        Blob(pack, bias.nbytes),
        refs,
        signature,
        build_class() if backend == "ort" else None,
        8,
    )
    return Linear(repository.put_bytes(encode(artifact)), tensor, weight, bias)


def _aten_program(width: int) -> bytes:
    program = {
        "format": 1,
        "dialect": "aten",
        "slots": 4,
        "inputs": [{"name": "x", "slot": 0}],
        "tensors": [
            {"name": "weight", "slot": 1, "dtype": "FP32", "shape": [width, width]},
            {"name": "bias", "slot": 2, "dtype": "FP32", "shape": [width]},
        ],
        "nodes": [["aten.linear.default", [{"slot": 0}, {"slot": 1}, {"slot": 2}], {}, 3]],
        "outputs": [{"name": "y", "slot": 3}],
    }
    return json.dumps(program, sort_keys=True, separators=(",", ":")).encode()


def _onnx_model(width: int) -> bytes:
    from onnx import TensorProto, helper

    def external(name: str, shape: list[int]) -> Any:
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="tessera")
        return tensor

    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "weight", "bias"], ["y"], transB=1)],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
        [external("weight", [width, width]), external("bias", [width])],
    )
    data: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    return data


def processes_of(run: Path) -> list[psutil.Process]:
    """Everything whose command line names the run folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(str(run) in word for word in words):
            found.append(process)
    return found


class AgentProcess:
    """One node: its folders, its configuration, and whichever agent process serves it now."""

    def __init__(self, folder: Path, run: Path, etcd: str, **settings: Any) -> None:
        self.folder, self.run = folder, run
        self.repository = Repository(f"file://{folder / 'repository'}")
        self.address = f"127.0.0.1:{free_port()}"
        self.settings = {
            "node_id": "n1",
            "address": self.address,
            "start_address": f"127.0.0.1:{free_port()}",
            "relay_address": "127.0.0.1:0",
            "peer_address": "127.0.0.1:0",
            "etcd_endpoints": [etcd],
            "lease_ttl_s": 2.0,
            "repository_url": f"file://{folder / 'repository'}",
            "state_folder": str(folder / "state"),
            "run_folder": str(run),
            "stores": [{"trust_domain": "default", "budget_bytes": 64 << 20}],
            "flavours": ["ort"],
            "tombstone_s": 2.0,
            **settings,
        }
        self.environment: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "agent.log"
        self._channel: Any = None

    @property
    def store(self) -> Path:
        """Where the store of trust domain `default` is mounted."""
        return self.run / f"store-{domain_tag(DEFAULT_TRUST_DOMAIN)}"

    @property
    def runtimes(self) -> Path:
        """Where the runtimes of trust domain `default` have their folders."""
        return self.run / f"d-{domain_tag(DEFAULT_TRUST_DOMAIN)}"

    def spawn(self, **settings: Any) -> subprocess.Popen[bytes]:
        """Another agent process on the same node."""
        config = self.folder / f"config-{os.urandom(3).hex()}.yaml"
        config.write_text(json.dumps({**self.settings, **settings}))
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "tessera.node_agent", "--config", str(config)]
            return subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env={**os.environ, **self.environment}
            )

    async def start(self, **settings: Any) -> None:
        self.process = self.spawn(**settings)
        async with asyncio.timeout(60):
            while True:
                assert self.process.poll() is None, self.log.read_text()
                try:
                    await self.status()
                    return
                except TesseraError:
                    await asyncio.sleep(0.05)

    @property
    def stub(self) -> Any:
        if self._channel is None:
            self._channel = rpc.connect(self.address)
        return node_pb2_grpc.NodeAgentStub(self._channel)

    async def status(self) -> node_pb2.NodeStatus:
        answer: node_pb2.NodeStatus = (await self.stub.GetStatus(node_pb2.GetStatusRequest(), timeout=5)).status
        return answer

    async def instance(self, name: str) -> node_pb2.Instance | None:
        return next((item for item in (await self.status()).instances if item.instance_id == name), None)

    async def start_instance(self, name: str, artifact: str = "", **changes: Any) -> node_pb2.Instance:
        model = "linear" if artifact else "identity"
        fields: dict[str, Any] = {
            "term": common_pb2.Term(cluster_id=1, revision=5),
            "instance_id": name,
            "generation": int.from_bytes(name.encode()[-8:], "little"),
            "variant": common_pb2.VariantKey(trust_domain="default", model=model, version=1, variant="any"),
            "artifact_digest": artifact,
            "start_path": "bind",
            "expires_after_ms": 60_000,
            "budget_us": 30_000_000,
        }
        answer: node_pb2.Instance = (await self.stub.StartInstance(node_pb2.StartInstanceRequest(**(fields | changes)))).instance
        return answer

    async def stop_instance(self, name: str, revision: int = 5) -> None:
        term = common_pb2.Term(cluster_id=1, revision=revision)
        await self.stub.StopInstance(node_pb2.StopInstanceRequest(term=term, instance_id=name))

    async def until(self, condition: Callable[[], Any], within_s: float = 20.0) -> Any:
        """Waits until `condition()` (awaited) is true, and returns it."""
        async with asyncio.timeout(within_s):
            while not (found := await condition()):  # noqa: ASYNC110 - it is another process that changes
                await asyncio.sleep(0.05)
        return found

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=10)

    async def terminate(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        await self.hang_up()
        self.process.terminate()
        return await asyncio.to_thread(self.process.wait, END_S)

    async def hang_up(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def check(self, deep: bool = True) -> list[str]:
        """What `tessera node fsck` finds."""
        answer = await self.stub.CheckStores(node_pb2.CheckStoresRequest(deep=deep), timeout=30)
        return [finding.words for finding in answer.findings]

    async def end(self) -> None:
        """Whatever state it is in: everything of this node is gone afterwards. An agent that lives still is checked before."""
        findings = await self._last_check()
        await self.hang_up()
        await self._take_down()
        assert findings == []

    async def _last_check(self) -> list[str]:
        if self.process is None or self.process.poll() is not None:
            return []
        try:
            return await self.check()
        except Unavailable:
            return []  # it never came up, or is on its way out

    async def _take_down(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                await asyncio.to_thread(self.process.wait, END_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(timeout=10)
        for process in processes_of(self.run):
            process.kill()
            process.wait(timeout=10)
        subprocess.run(  # noqa: ASYNC221 - after the test, nothing else runs
            ["umount", "-l", *map(str, self.run.glob("store-*"))], capture_output=True, check=False
        )
        shutil.rmtree(self.run, ignore_errors=True)


class Kit:
    """What tests build with (a conftest cannot be imported)."""

    make_linear = staticmethod(make_linear)
    processes_of = staticmethod(processes_of)
    width = WIDTH

    @staticmethod
    def infer_request(x: np.ndarray, name: str = "x") -> bytes:
        message = ModelInferRequest(model_name="m")
        message.inputs.add(name=name, datatype="FP32", shape=x.shape)
        message.raw_input_contents.append(x.astype(np.float32).tobytes())
        return message.SerializeToString()

    @staticmethod
    def output(body: Any) -> np.ndarray:
        message = ModelInferResponse.FromString(bytes(body))
        return np.frombuffer(message.raw_output_contents[0], np.float32).reshape(message.outputs[0].shape)

    @staticmethod
    async def direct(instance: node_pb2.Instance) -> FrameClient:
        return await FrameClient.connect_unix(instance.endpoint.unix_path, target=instance.runtime_id)

    @staticmethod
    async def relayed(instance: node_pb2.Instance) -> FrameClient:
        host, _, port = instance.endpoint.relay_address.rpartition(":")
        return await FrameClient.connect_tcp(host, int(port), target=instance.runtime_id)

    @classmethod
    async def ask(cls, client: FrameClient, generation: int, x: np.ndarray, name: str = "x") -> np.ndarray:
        return cls.output((await cls.exchange(client, generation, x, name)).body)

    @classmethod
    async def exchange(cls, client: FrameClient, generation: int, x: np.ndarray, name: str = "x") -> FrameResponse:
        response = await client.request(RequestHeader(generation, 20_000_000), cls.infer_request(x, name))
        error = response.error()
        if error is not None:
            raise error
        return response


class Etcd:
    """What stands in etcd about the node."""

    def __init__(self, coordinator: EtcdCoordinator) -> None:
        self.coordinator = coordinator

    async def instances(self) -> dict[str, InstanceRecord]:
        listing = await self.coordinator.list(keys.instances(DOMAIN))
        found = [records.decode(InstanceRecord, item.value) for item in listing.items]
        return {record.instance_id: record for record in found}

    async def node(self) -> Any:
        return await self.coordinator.get(keys.node(DOMAIN, NodeId("n1")))

    async def wipe(self) -> None:
        from tessera.coord.interface import Delete, ModRevisionIs

        for item in (await self.coordinator.list(keys.ROOT)).items:
            try:
                await self.coordinator.transact([ModRevisionIs(item.key, item.mod_revision)], [Delete(item.key)])
            except TesseraError:
                pass  # its lease ran out meanwhile


@pytest.fixture
async def coord(etcd: EtcdProcess) -> AsyncIterator[Etcd]:
    coordinator = EtcdCoordinator([etcd.endpoint])
    found = Etcd(coordinator)
    await found.wipe()
    yield found
    await found.wipe()
    await coordinator.close()


@pytest.fixture
async def agent(tmp_path: Path, etcd: EtcdProcess, coord: Etcd) -> AsyncIterator[AgentProcess]:
    """A node whose agent is not started yet."""
    run = Path(tempfile.mkdtemp(prefix="tsna-", dir="/tmp"))
    found = AgentProcess(tmp_path, run, etcd.endpoint)
    try:
        yield found
    finally:
        await found.end()


@pytest.fixture
def kit() -> Kit:
    return Kit()


@pytest.fixture
def sigkill() -> Callable[[int], None]:
    return lambda pid: os.kill(pid, signal.SIGKILL)
