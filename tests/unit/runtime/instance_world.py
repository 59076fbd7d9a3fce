"""An instance over a model that runs when the test lets it."""

from __future__ import annotations

import asyncio

import numpy as np

from tessera.api.open_inference.inference_pb2 import ModelInferRequest, ModelInferResponse
from tessera.domain.artifact import Artifact
from tessera.domain.signature import Signature, TensorSpec
from tessera.frames.codec import RequestHeader
from tessera.frames.openinference import parse_request
from tessera.runtime.backends.interface import Tensor
from tessera.runtime.identity import BatchLimits, InstanceIdentity
from tessera.runtime.instance import Instance

GENERATION = 77
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec("y", "FP32", (-1, -1)),))


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class Doubler:
    """y = 2x. Runs when the test lets it; remembers the batches it saw."""

    def __init__(self, inline: bool = False) -> None:
        self.inline = inline
        self.batches: list[int] = []
        self.pending: list[tuple[asyncio.Future, object]] = []
        self.poison = False
        self.output = None
        self.closed = False
        self.openings: list[asyncio.Future] = []

    def run(self, inputs):
        x = inputs["x"].array
        self.batches.append(len(x))
        if self.poison and (x == 13).any():
            raise ValueError("thirteen")
        return {"y": self.output or Tensor("FP32", x * 2)}

    def close(self) -> None:
        self.closed = True

    def reopen(self) -> asyncio.Future:
        self.openings.append(asyncio.get_running_loop().create_future())
        return self.openings[-1]

    def submit(self, call) -> asyncio.Future:
        future = asyncio.get_running_loop().create_future()
        self.pending.append((future, call))
        return future

    async def step(self) -> None:
        """Lets one batch run to its end."""
        future, call = self.pending.pop(0)
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)
        for _ in range(3):
            await asyncio.sleep(0)


def make(
    model: Doubler, clock: FakeClock | None = None, signature: Signature = SIGNATURE, options: tuple[str, ...] = (), **limits
) -> Instance:
    artifact = Artifact("aten", "fp32", "aten", None, None, (), signature, None, 64, options)
    identity = InstanceIdentity("i-1", GENERATION, "m@4/aten-fp32", "4", "0" * 64)
    return Instance(identity, artifact, model, BatchLimits(**{"max_batch": 4, **limits}), clock or FakeClock(), model.submit, model.reopen)


def request(*values: float, width: int = 1, **parameters: int):
    message = ModelInferRequest(model_name="m", id="q")
    x = np.repeat(np.array(values, np.float32)[:, None], width, axis=1)
    message.inputs.add(name="x", datatype="FP32", shape=x.shape)
    message.raw_input_contents.append(x.tobytes())
    for name, value in parameters.items():
        message.parameters[name].int64_param = value
    return parse_request(message.SerializeToString())


def ask(instance: Instance, *values: float, budget_us: int = 1_000_000, generation: int = GENERATION, **fields):
    return instance.submit(RequestHeader(generation, budget_us), request(*values, **fields))


def answer(future: asyncio.Future) -> list[float]:
    message = ModelInferResponse.FromString(bytes(future.result().body))
    assert (message.model_name, message.model_version, message.id) == ("m", "4", "q")
    return np.frombuffer(message.raw_output_contents[0], np.float32).tolist()
