"""An idle instance becomes another one in its runtime: it ends when the other one is open, or stays as it was."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from live_programs import a_graph, delta, hash_of

from tessera.api.open_inference.inference_pb2 import ModelInferRequest, ModelInferResponse
from tessera.clock import SystemClock
from tessera.domain.artifact import Artifact, Blob, TensorRef
from tessera.domain.errors import Conflict, FailedPrecondition, NotFound, TesseraError, Unsupported, WrongGeneration
from tessera.domain.ids import Digest, Generation, InstanceId
from tessera.domain.signature import Signature, TensorSpec
from tessera.frames.codec import RequestHeader
from tessera.runtime import backends
from tessera.runtime.backends.aten.backend import AtenBackend
from tessera.runtime.control import ControlDecoder, Message
from tessera.runtime.loads import Becoming, LoadRequest
from tessera.runtime.manager import InstanceManager, RuntimeConfig
from tessera.runtime.server import ControlServer, _Connection
from tessera.tensorstore import artifact as artifacts
from tessera.tensorstore.seal import seal

MUL, RELU = ("aten.mul.Tensor", 4, 0, 0), ("aten.relu.default", 4, 0, 0)
SHORT, LONG = [MUL, RELU], [MUL, RELU, ("aten.addcmul.default", 4, 1, 0), ("aten.add.Tensor", 4, 0, 2)]
SIGNATURE = Signature((TensorSpec("x", "FP32", (4,)),), (TensorSpec("y", "FP32", (4,)), TensorSpec("first", "FP32", (4,))), False)


class World:
    """A runtime with two small models in its store; transformations go on when the test lets them."""

    def __init__(self, running: InstanceManager) -> None:
        self.running = running
        self.go_on = threading.Event()
        self.go_on.set()
        self.released: list[list[Digest]] = []
        running.on_released = self.released.append
        self.graphs: dict[Digest, bytes] = {}
        self.short, self.long = self.put(SHORT), self.put(LONG)

    def put(self, rows: list[Any], backend: str = "aten") -> Digest:
        graph = a_graph(rows)
        refs = []
        for each in json.loads(graph)["tensors"]:
            data = torch.rand(each["shape"], generator=torch.Generator().manual_seed(hash_of(each["name"]))).numpy().tobytes()
            refs.append(TensorRef(each["name"], "FP32", tuple(each["shape"]), self._blob(data), len(data)))
        blob = Blob(self._blob(graph), len(graph))
        artifact = Artifact(backend, "fp32", "aten", blob, None, tuple(refs), SIGNATURE, None, 1)
        found = self._blob(artifacts.encode(artifact))
        self.graphs[found] = graph
        return found

    def _blob(self, data: bytes) -> Digest:
        folder: Path = self.running.config.store / "blobs"
        digest = artifacts.digest_of(data)
        (folder / digest).write_bytes(data)
        seal(folder / digest, digest)
        return digest

    def delta(self, source: Digest, target: Digest) -> bytes:
        ends = (artifacts.digest_of(self.graphs[source]), artifacts.digest_of(self.graphs[target]))
        return delta(self.graphs[source], self.graphs[target], ends=ends)

    async def load(self, name: str, generation: int, artifact: Digest, donor: str = "", given: bytes = b"", idle_s: float = 0.0) -> Any:
        becoming = Becoming(InstanceId(donor), given, idle_s) if donor else None
        return await self.running.load(LoadRequest(InstanceId(name), Generation(generation), "m@1/aten-fp32", artifact, donor=becoming))

    async def become(self, name: str, generation: int, artifact: Digest, donor: str, source: Digest) -> Any:
        return await self.load(name, generation, artifact, donor, self.delta(source, artifact))

    def ask(self, generation: int) -> asyncio.Future[Any]:
        message = ModelInferRequest(model_name="m", id="q")
        message.inputs.add(name="x", datatype="FP32", shape=[4])
        message.raw_input_contents.append(np.array([1.5, -2.0, 3.25, 0.5], np.float32).tobytes())
        return asyncio.ensure_future(self.running.infer(RequestHeader(generation, 5_000_000), message.SerializeToString()))

    async def answer(self, generation: int) -> bytes:
        response = ModelInferResponse.FromString((await self.ask(generation)).body)
        return b"".join(response.raw_output_contents)

    @property
    def names(self) -> list[str]:
        return [instance.identity.instance_id for instance in self.running.instances]


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(backends, "FLAVOURS", {"aten": ("aten", "identity")})
    config = RuntimeConfig("r", "aten", "default", tmp_path / "store", tmp_path, idle_after_s=0.3)
    config.folder.mkdir()
    (tmp_path / "store" / "blobs").mkdir(parents=True)
    made = InstanceManager(config, SystemClock())
    found = World(made)
    done = AtenBackend.transform

    def transform(*arguments: Any) -> Any:
        assert found.go_on.wait(5)
        return done(*arguments)

    monkeypatch.setattr(AtenBackend, "transform", transform)
    await made.start()
    yield found
    found.go_on.set()
    await made.close(0)


async def test_the_other_one_answers_as_a_fresh_load_does_and_the_donor_is_gone(world: World) -> None:
    await world.load("fresh", 1, world.long)
    await world.load("donor", 2, world.short)
    expected = {world.short: await world.answer(2), world.long: await world.answer(1)}
    assert expected[world.short] != expected[world.long]
    said = await world.become("other", 3, world.long, "donor", world.short)
    assert said.load_ms > 0
    assert await world.answer(3) == expected[world.long]
    assert world.names == ["fresh", "other"]
    with pytest.raises(WrongGeneration):
        await world.ask(2)
    await world.become("again", 4, world.short, "other", world.long)
    assert await world.answer(4) == expected[world.short]
    await world.running.unload(InstanceId("fresh"), 0)
    held = {blob.digest for blob in artifacts.decode((world.running.config.store / "blobs" / world.short).read_bytes()).blobs()}
    assert world.running.holds.held() == held
    assert held.isdisjoint(world.released[-1])


async def test_requests_to_the_donor_wait_meanwhile_and_are_sent_on(world: World) -> None:
    await world.load("donor", 1, world.short)
    world.go_on.clear()
    becoming = asyncio.ensure_future(world.become("other", 2, world.long, "donor", world.short))
    while len(world.names) < 2:  # noqa: ASYNC110 - the loader thread is awaited
        await asyncio.sleep(0.001)
    to_donor, to_other = world.ask(1), world.ask(2)
    await asyncio.sleep(0.02)
    assert (to_donor.done(), to_other.done()) == (False, False)
    world.go_on.set()
    await becoming
    with pytest.raises(WrongGeneration):
        await to_donor
    assert (await to_other).opening_us > 10_000


@pytest.mark.parametrize("broken", ["delta", "ends", "tensor"])
async def test_whatever_goes_wrong_leaves_the_donor_as_it_was(world: World, broken: str) -> None:
    await world.load("donor", 1, world.short)
    before = await world.answer(1)
    given = world.delta(world.short, world.long)
    if broken == "delta":
        given = given.replace(b'"kept":[[0,0,2]]', b'"kept":[[0,0,1]]')
    elif broken == "ends":
        given = world.delta(world.long, world.short)
    else:
        (blob,) = [
            ref for ref in artifacts.decode((world.running.config.store / "blobs" / world.long).read_bytes()).tensors if ref.slot[0] == "1"
        ][:1]
        (world.running.config.store / "blobs" / blob.digest).unlink()
    world.go_on.clear()
    becoming = asyncio.ensure_future(world.load("other", 2, world.long, "donor", given))
    await asyncio.sleep(0.02)
    waiting = world.ask(1)
    world.go_on.set()
    kinds: dict[str, type[TesseraError]] = {"delta": FailedPrecondition, "ends": FailedPrecondition, "tensor": NotFound}
    with pytest.raises(kinds[broken]):
        await becoming
    assert b"".join(ModelInferResponse.FromString((await waiting).body).raw_output_contents) == before
    assert world.names == ["donor"]
    assert await world.answer(1) == before
    with pytest.raises(WrongGeneration):
        await world.ask(2)
    (donor,) = world.running.instances
    idle_s = donor.idle_s
    with pytest.raises(kinds[broken]):
        await world.load("other", 3, world.long, "donor", given)
    assert donor.idle_s >= idle_s > 0.0, "nobody used it"


async def test_a_parked_donor_and_one_of_the_same_graph_do_as_well(world: World) -> None:
    await world.load("donor", 1, world.short)
    (donor,) = world.running.instances
    while not donor.parked:  # noqa: ASYNC110 - a timer of the runtime is awaited
        await asyncio.sleep(0.02)
    await world.become("other", 2, world.long, "donor", world.short)
    expected = await world.answer(2)
    await world.become("sibling", 3, world.long, "other", world.long)
    assert await world.answer(3) == expected


async def test_who_is_busy_ending_or_not_there_is_no_donor(world: World) -> None:
    with pytest.raises(NotFound):
        await world.become("other", 9, world.long, "donor", world.short)
    await world.load("donor", 1, world.short)
    world.go_on.clear()
    becoming = asyncio.ensure_future(world.become("other", 2, world.long, "donor", world.short))
    await asyncio.sleep(0.02)
    with pytest.raises(Conflict, match="not idle"):
        await world.become("another", 3, world.long, "donor", world.short)
    ending = asyncio.ensure_future(world.running.unload(InstanceId("donor"), 0))
    await asyncio.sleep(0.02)
    assert not ending.done()
    world.go_on.set()
    await becoming
    await ending
    assert world.names == ["other"]
    with pytest.raises(NotFound):
        await world.become("another", 3, world.long, "donor", world.short)


class Agent(_Connection):
    """Keeps what it is told."""

    def __init__(self, server: ControlServer) -> None:
        super().__init__(server)
        self.heard: list[Message] = []

    def write(self, data: bytes) -> None:
        self.heard += ControlDecoder().feed(data)


async def test_whoever_asks_what_is_here_hears_of_nobody_that_ends(world: World) -> None:
    await world.load("donor", 1, world.short)
    world.go_on.clear()
    becoming = asyncio.ensure_future(world.become("other", 2, world.long, "donor", world.short))
    await asyncio.sleep(0.02)
    server = ControlServer(world.running, lambda count: None, lambda drain_s: None, SystemClock())
    agent = Agent(server)
    asked = asyncio.ensure_future(server._hello({"id": 4}, agent))
    await asyncio.sleep(0.02)
    assert not asked.done()
    assert agent.heard == [{"id": 4, "event": "loading", "instances": ["other"]}], "told at once, not when it is over"
    world.go_on.set()
    assert [each["instance_id"] for each in (await asked)["instances"]] == ["other"]
    await becoming
    (other,) = world.running.instances
    other.reserve()
    ending = asyncio.ensure_future(world.running.unload(InstanceId("other"), 0))
    await asyncio.sleep(0.02)
    assert world.names == ["other"], "it is ending"
    assert (await server._hello({}, agent))["instances"] == []
    assert len(agent.heard) == 1, "nothing is being loaded"
    other.release()
    await ending


async def test_one_that_was_asked_since_it_was_chosen_is_no_donor(world: World) -> None:
    world.go_on.set()
    await world.load("donor", 1, world.short)
    right = await world.answer(1)
    delta = world.delta(world.short, world.long)
    with pytest.raises(Conflict, match=r"instance donor is idle for \d+\.\d s: donors are from 3600 s on"):
        await world.load("other", 2, world.long, "donor", delta, idle_s=3600.0)
    assert world.names == ["donor"]
    assert await world.answer(1) == right
    await asyncio.sleep(0.05)
    await world.load("other", 2, world.long, "donor", delta, idle_s=0.04)
    assert world.names == ["other"]


async def test_the_runtime_ends_while_a_donor_does(world: World) -> None:
    await world.load("donor", 1, world.short)
    await asyncio.gather(world.running.close(0), world.running.unload(InstanceId("donor"), 0))
    assert world.names == []


async def test_of_another_backend_nothing_can_be_made(world: World) -> None:
    refs = (TensorSpec("INPUT0", "ANY", (), True),), (TensorSpec("OUTPUT0", "ANY", (), True),)
    identity = world._blob(artifacts.encode(Artifact("identity", "any", "", None, None, (), Signature(*refs, False), None, 1)))
    await world.load("donor", 1, identity)
    with pytest.raises(Unsupported, match="backend identity cannot become one of backend aten"):
        await world.load("other", 2, world.long, "donor", world.delta(world.short, world.long))
    await world.load("flat", 3, world.short)
    with pytest.raises(Unsupported, match="backend aten cannot become one of backend identity"):
        await world.load("other", 2, identity, "flat", world.delta(world.short, world.long))
    assert world.names == ["donor", "flat"]
