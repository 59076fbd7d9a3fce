"""A node's runtimes without a node: a store with real models, a run folder, and whatever makes runtimes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.api.open_inference.inference_pb2 import ModelInferRequest, ModelInferResponse
from tessera.clock import SystemClock
from tessera.domain.artifact import Artifact, Blob, TensorRef
from tessera.domain.errors import TesseraError
from tessera.domain.ids import (
    Digest,
    Generation,
    InstanceId,
    ModelName,
    RuntimeId,
    TrustDomain,
    VariantKey,
    VariantName,
    VersionNumber,
)
from tessera.domain.signature import Signature, TensorSpec
from tessera.frames import FrameClient, FrameResponse, RequestHeader
from tessera.node_agent.adapters.runtimes import make_runtimes
from tessera.node_agent.config import NodeAgentConfig
from tessera.node_agent.ports import LoadReport, Runtime, Runtimes
from tessera.program import Stop, Tasks
from tessera.runtime.classes import build_class
from tessera.tensorstore.artifact import digest_of, encode
from tessera.tensorstore.local import LocalTensorStore

DOMAIN = TrustDomain("default")
VARIANT = VariantKey(DOMAIN, ModelName("linear"), VersionNumber(1), VariantName("ort-fp32"))
WIDTH = 64


@dataclass(frozen=True)
class Linear:
    """y = x @ weight.T, `width` wide, in the store. `blobs`: what its runtime maps of it."""

    artifact: Digest
    blobs: frozenset[Digest]
    weight: np.ndarray


@dataclass
class World:
    """`runtimes()` makes a `Runtimes` over the same folders: the next agent, where there was one before."""

    folder: Path
    run: Path
    config: NodeAgentConfig
    tasks: Tasks
    store: LocalTensorStore
    made: list[Runtimes] = field(default_factory=list)
    lost: list[RuntimeId] = field(default_factory=list)

    async def runtimes(self, **settings: Any) -> Runtimes:
        config = self.config.model_copy(update=settings)
        found = make_runtimes(config, self.run, self.store.root, self.folder / "logs", DOMAIN, [DOMAIN], None, SystemClock(), self.tasks)
        found.on_lost(self.lost.append)
        self.made.append(found)
        return found

    def put(self, data: bytes) -> Blob:
        digest = digest_of(data)
        if not self.store.has(digest):
            with self.store.ingest(digest, len(data)) as writer:
                writer.write(data)
                writer.commit()
        return Blob(digest, len(data))

    def linear(self, seed: int = 0, width: int = WIDTH, graph: bytes | None = None) -> Linear:
        weight = (np.random.default_rng(seed).standard_normal((width, width)) / width).astype(np.float32)
        tensor, program = self.put(weight.tobytes()), self.put(onnx_linear(width) if graph is None else graph)
        signature = Signature((TensorSpec("x", "FP32", (-1, width)),), (TensorSpec("y", "FP32", (-1, width)),))
        refs = (TensorRef("weight", "FP32", weight.shape, tensor.digest, tensor.size_bytes),)
        artifact = self.put(encode(Artifact("ort", "fp32", "onnx", program, None, refs, signature, build_class(), 8)))
        return Linear(artifact.digest, frozenset({tensor.digest, program.digest}), weight)

    async def load(
        self, runtime: Runtime, model: Linear, name: str = "i1", generation: int = 7, mapped: Callable[[LoadReport], None] | None = None
    ) -> LoadReport:
        return await runtime.load(InstanceId(name), Generation(generation), VARIANT, model.artifact, mapped is None, 60.0, mapped)

    async def ask(self, runtime: Runtime, model: Linear, generation: int = 7) -> FrameResponse:
        """One request, its answer compared."""
        x = np.random.default_rng(3).standard_normal((2, model.weight.shape[0])).astype(np.float32)
        message = ModelInferRequest(model_name="linear")
        message.inputs.add(name="x", datatype="FP32", shape=x.shape)
        message.raw_input_contents.append(x.tobytes())
        runtime_id = runtime.hello.runtime_id
        client = await FrameClient.connect_unix(str(self.run / runtime_id / "data.sock"), target=runtime_id)
        try:
            response = await client.request(RequestHeader(generation, 20_000_000), message.SerializeToString())
        finally:
            client.close()
        error = response.error()
        if error is not None:
            raise error
        answer = np.frombuffer(ModelInferResponse.FromString(bytes(response.body)).raw_output_contents[0], np.float32)
        np.testing.assert_allclose(answer.reshape(x.shape), x @ model.weight.T, atol=1e-3)
        return response


def onnx_linear(width: int) -> bytes:
    from onnx import TensorProto, helper

    weight = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[width, width], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="tessera")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Gemm", ["x", "weight"], ["y"], transB=1)], "linear", [x], [y], [weight])
    data: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    return data


@pytest.fixture(params=["process", pytest.param("container", marks=pytest.mark.docker)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def world(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """Nothing that was made in it is left afterwards, and no task has failed."""
    images = {"ort": request.getfixturevalue("ort_image")} if kind == "container" else {"ort": "none"}
    run = Path(tempfile.mkdtemp(prefix="tsrc-"))
    memory = Path(tempfile.mkdtemp(prefix="tessera-", dir="/dev/shm"))
    stop = Stop()
    config = NodeAgentConfig(
        node_id=f"test-{os.urandom(4).hex()}",
        repository_url="file:///nowhere",
        state_folder=tmp_path,
        run_folder=run,
        runtimes=kind,  # type: ignore[arg-type]
        runtime_images=images,  # type: ignore[arg-type]
        flavours=["ort"],
        orphan_s=60.0,
    )
    async with Tasks(stop) as tasks:
        with LocalTensorStore(memory / "store", 1 << 30, SystemClock()) as store:
            found = World(tmp_path, run, config, tasks, store)
            try:
                yield found
            finally:
                await clear(found)
                shutil.rmtree(run, ignore_errors=True)
                shutil.rmtree(memory, ignore_errors=True)
    assert stop.error is None


async def clear(world: World) -> None:
    """The next agent adopts whatever is left and ends it."""
    for runtimes in world.made:
        await runtimes.leave()
    last = await world.runtimes()
    for runtime in await last.adopt():
        await runtime.end(0)
    if world.config.runtimes == "process":
        await last.prepare(["ort"])  # a zygote that lives is adopted, so that it can be ended
    try:
        await last.end()
    except TesseraError:
        pass
