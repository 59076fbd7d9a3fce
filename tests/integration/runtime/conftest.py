"""Real zygotes and runtimes on a store of handwritten models: small, exact, and no exporter needed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.api.open_inference.inference_pb2 import ModelInferRequest, ModelInferResponse
from tessera.domain.artifact import Artifact, Blob, TensorRef
from tessera.domain.ids import Digest
from tessera.domain.signature import Signature, TensorSpec
from tessera.frames import FrameClient, FrameResponse, RequestHeader
from tessera.runtime import control
from tessera.runtime.classes import build_class
from tessera.tensorstore import artifact as artifacts
from tessera.tensorstore.seal import seal

WIDTH = 64
IDENTITY = Artifact(
    "identity",
    "any",
    "",
    None,
    None,
    (),
    Signature((TensorSpec("INPUT0", "ANY", (), True),), (TensorSpec("OUTPUT0", "ANY", (), True),), False),
    None,
    1,
)
LINEAR = Signature((TensorSpec("x", "FP32", (-1, WIDTH)),), (TensorSpec("y", "FP32", (-1, WIDTH)),))


class Store:
    """A store folder as a node agent would have filled it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "blobs").mkdir(parents=True)

    def put(self, data: bytes) -> Blob:
        digest = artifacts.digest_of(data)
        path = self.path(digest)
        if not path.exists():
            path.write_bytes(data)
            path.chmod(0o444)
            seal(path, digest)
        return Blob(digest, len(data))

    def path(self, digest: str) -> Path:
        return self.root / "blobs" / digest

    def put_artifact(self, artifact: Artifact) -> Digest:
        return self.put(artifacts.encode(artifact)).digest

    def artifact(self, digest: str) -> Artifact:
        return artifacts.decode(self.path(digest).read_bytes())


@dataclass(frozen=True)
class Linear:
    """y = x @ weight.T + bias, repeated `depth` times, as an artifact of one backend."""

    artifact: Digest
    weight: np.ndarray
    bias: np.ndarray
    depth: int

    def expected(self, x: np.ndarray) -> np.ndarray:
        for _ in range(self.depth):
            x = x @ self.weight.T + self.bias
        return x


def linear(store: Store, backend: str, seed: int = 0, depth: int = 1, max_batch: int = 8, bias: np.ndarray | None = None) -> Linear:
    random = np.random.default_rng(seed)
    weight = (random.standard_normal((WIDTH, WIDTH)) / 8).astype(np.float32)
    bias = random.standard_normal(WIDTH).astype(np.float32) if bias is None else bias
    large, pack = store.put(weight.tobytes()), store.put(bias.tobytes())
    refs = (
        TensorRef("weight", "FP32", weight.shape, large.digest, large.size_bytes),
        TensorRef("bias", "FP32", bias.shape, artifacts.digest_of(bias.tobytes()), bias.nbytes, 0),
    )
    graph = store.put(aten_linear(depth) if backend == "aten" else onnx_linear(depth))
    classes = build_class() if backend == "ort" else None
    dialect = "aten" if backend == "aten" else "onnx"
    artifact = Artifact(backend, "fp32", dialect, graph, pack, refs, LINEAR, classes, max_batch)
    return Linear(store.put_artifact(artifact), weight, bias, depth)


def aten_linear(depth: int) -> bytes:
    nodes = [["aten.linear.default", [{"slot": 2 + n if n else 0}, {"slot": 1}, {"slot": 2}], {}, 3 + n] for n in range(depth)]
    program = {
        "format": 1,
        "dialect": "aten",
        "slots": 3 + depth,
        "inputs": [{"name": "x", "slot": 0}],
        "tensors": [
            {"name": "weight", "slot": 1, "dtype": "FP32", "shape": [WIDTH, WIDTH]},
            {"name": "bias", "slot": 2, "dtype": "FP32", "shape": [WIDTH]},
        ],
        "nodes": nodes,
        "outputs": [{"name": "y", "slot": 2 + depth}],
    }
    return json.dumps(program, sort_keys=True, separators=(",", ":")).encode()


def onnx_linear(depth: int) -> bytes:
    from onnx import TensorProto, helper

    def external(name: str, shape: list[int]) -> TensorProto:
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="tessera")
        return tensor

    names = ["x", *(f"h{n}" for n in range(depth - 1)), "y"]
    nodes = [helper.make_node("Gemm", [names[n], "weight", "bias"], [names[n + 1]], transB=1) for n in range(depth)]
    shape = ["batch", WIDTH]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [external("weight", [WIDTH, WIDTH]), external("bias", [WIDTH])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


class Control:
    """A small agent: one control connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = control.ControlDecoder()
        self._numbers = itertools.count(1)
        self._replies: dict[int, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []

    @classmethod
    async def connect(cls, path: Path) -> Control:
        return cls(*await asyncio.open_unix_connection(path))

    async def send(self, op: str, **fields: Any) -> int:
        number = next(self._numbers)
        self._writer.write(control.encode({"id": number, "op": op, **fields}))
        await self._writer.drain()
        return number

    async def _read(self) -> None:
        data = await self._reader.read(65536)
        if not data:
            raise ConnectionError("control connection ended")
        for message in self._decoder.feed(data):
            if "event" in message:
                self.events.append(message)
            else:
                self._replies[message["id"]] = message

    async def reply(self, number: int, within_s: float = 60) -> dict[str, Any]:
        async with asyncio.timeout(within_s):
            while number not in self._replies:
                await self._read()
        return control.answer_of(self._replies.pop(number))

    async def event(self, name: str, within_s: float = 20) -> dict[str, Any]:
        async with asyncio.timeout(within_s):
            while True:
                for index, event in enumerate(self.events):
                    if event["event"] == name:
                        return self.events.pop(index)
                await self._read()

    async def call(self, op: str, **fields: Any) -> dict[str, Any]:
        return await self.reply(await self.send(op, **fields))

    def close(self) -> None:
        self._writer.close()

    async def wait_closed(self) -> None:
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


@dataclass
class RunningRuntime:
    runtime_id: str
    pid: int
    folder: Path
    fork_ms: float
    control: Control
    store: Store
    opened: list[Control | FrameClient]
    generations: Iterator[int] = field(default_factory=lambda: itertools.count(1000))

    async def load(self, artifact: str, instance_id: str = "i-1", variant: str = "linear@3/any", **fields: Any) -> int:
        """Returns the generation."""
        generation = next(self.generations)
        await self.control.call(
            "load", instance_id=instance_id, generation=control.generation_text(generation), variant=variant, artifact=artifact, **fields
        )
        return generation

    async def data(self) -> FrameClient:
        client = await FrameClient.connect_unix(str(self.folder / "data.sock"), target=self.runtime_id)
        self.opened.append(client)
        return client

    def maps(self) -> str:
        return Path(f"/proc/{self.pid}/maps").read_text()


class Zygote:
    def __init__(self, flavour: str, run_folder: Path, store: Store, log: Path) -> None:
        self.flavour = flavour
        self.run_folder = run_folder
        self.store = store
        self.socket = run_folder / f"zygote-{flavour}.sock"
        self.log = log
        command = [sys.executable, "-m", "tessera.runtime.zygote", "--flavour", flavour, "--socket", str(self.socket)]
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [*command, "--run-folder", str(run_folder), "--store", str(store.root)], stderr=file, stdout=file
            )
        self.children: list[int] = []
        self.opened: list[Control | FrameClient] = []
        self._numbers = itertools.count(1)

    async def connect(self, within_s: float = 60) -> Control:
        async with asyncio.timeout(within_s):
            while True:
                assert self.process.poll() is None, self.log.read_text()
                with contextlib.suppress(OSError):
                    agent = await Control.connect(self.socket)
                    self.opened.append(agent)
                    return agent
                await asyncio.sleep(0.02)

    async def fork(self, agent: Control | None = None, **fields: Any) -> RunningRuntime:
        mine = agent or await self.connect()
        runtime_id = f"{self.flavour}{next(self._numbers)}"
        answer = await mine.call("fork", runtime_id=runtime_id, trust_domain="default", **fields)
        self.children.append(answer["pid"])
        folder = self.run_folder / runtime_id
        mine = await Control.connect(folder / "control.sock")
        self.opened.append(mine)
        return RunningRuntime(runtime_id, answer["pid"], folder, answer["fork_ms"], mine, self.store, self.opened)

    def end(self) -> None:
        for pid in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=10)


@pytest.fixture
def run_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="tsra-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
async def zygotes(run_folder: Path, store: Store, tmp_path: Path) -> AsyncIterator[Any]:
    """A function flavour -> zygote on this test's store; all are ended, with their children, when the test is over."""
    made: dict[str, Zygote] = {}

    def get(flavour: str) -> Zygote:
        if flavour not in made:
            made[flavour] = Zygote(flavour, run_folder, store, tmp_path / f"zygote-{flavour}.log")
        return made[flavour]

    yield get
    for zygote in made.values():
        for connection in zygote.opened:
            connection.close()
            await connection.wait_closed()
        zygote.end()


@dataclass(frozen=True)
class Kit:
    """What tests build with (a conftest cannot be imported)."""

    identity = IDENTITY
    width = WIDTH
    linear = staticmethod(linear)
    Control = Control

    @staticmethod
    def header(generation: int, budget_us: int = 30_000_000) -> RequestHeader:
        return RequestHeader(generation, budget_us)

    @staticmethod
    def request(x: np.ndarray, name: str = "x", raw: bool = True, **fields: Any) -> bytes:
        message = ModelInferRequest(model_name="linear", **fields)
        tensor = message.inputs.add(name=name, datatype="FP32", shape=x.shape)
        if raw:
            message.raw_input_contents.append(x.astype(np.float32).tobytes())
        else:
            tensor.contents.fp32_contents.extend(x.reshape(-1).tolist())
        return message.SerializeToString()

    @staticmethod
    def output(response: FrameResponse) -> np.ndarray:
        error = response.error()
        if error is not None:
            raise error
        message = ModelInferResponse.FromString(bytes(response.body))
        (tensor,) = message.outputs
        if message.raw_output_contents:
            return np.frombuffer(message.raw_output_contents[0], np.float32).reshape(tensor.shape)
        return np.array(tensor.contents.fp32_contents, np.float32).reshape(tensor.shape)


@pytest.fixture
def kit() -> Kit:
    return Kit()
