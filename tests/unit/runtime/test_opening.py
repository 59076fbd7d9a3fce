"""An instance takes requests from the moment that its bytes are mapped; they wait until it is open, or hear why it never was."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from instance_world import Doubler, FakeClock, answer, ask, make

from tessera.api.open_inference.inference_pb2 import ModelInferRequest
from tessera.clock import SystemClock
from tessera.domain.artifact import Artifact, TensorRef
from tessera.domain.errors import AlreadyExists, Internal, NotFound, ResourceExhausted, WrongGeneration
from tessera.domain.signature import Signature, TensorSpec
from tessera.frames.codec import RequestHeader
from tessera.runtime import backends
from tessera.runtime.backends.identity.backend import IdentityBackend
from tessera.runtime.identity import InstancePhase
from tessera.runtime.instance import Instance
from tessera.runtime.loads import LoadAnswer, LoadRequest
from tessera.runtime.manager import InstanceManager, RuntimeConfig
from tessera.tensorstore import artifact as artifacts
from tessera.tensorstore.seal import seal


async def settle() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


def opening(clock: FakeClock) -> tuple[Doubler, Instance]:
    """A new instance that is being opened."""
    model = Doubler()
    instance = make(model, clock)
    instance.loaded = None
    instance.open(model.reopen())
    return model, instance


async def test_what_waits_for_the_opening_says_so_and_what_waits_for_a_batch_does_not():
    clock = FakeClock()
    model, instance = opening(clock)
    first = ask(instance, 1.0)
    clock.now_s += 0.003
    second = ask(instance, 2.0)
    clock.now_s += 0.002
    assert (instance.parked, instance.status().parked, instance.idle_s, model.pending) == (False, False, 0.0, [])
    model.openings[0].set_result(model)
    await settle()
    third = ask(instance, 3.0)
    clock.now_s += 0.004
    await model.step()
    clock.now_s += 0.001
    await model.step()
    assert [answer(future) for future in (first, second, third)] == [[2.0], [4.0], [6.0]]
    times = [(future.result().queue_us, future.result().opening_us, future.result().run_us) for future in (first, second, third)]
    assert times == [pytest.approx(each, abs=1) for each in ((0, 5000, 4000), (0, 2000, 4000), (4000, 0, 1000))]


async def test_one_that_could_not_be_opened_is_not_measured():
    model, instance = opening(FakeClock())
    waiting = asyncio.ensure_future(instance.exclusively())
    await settle()
    model.openings[0].set_exception(ResourceExhausted("no memory"))
    instance.phase = InstancePhase.GONE
    with pytest.raises(WrongGeneration):
        await waiting
    assert len(model.openings) == 1


ANY = TensorSpec("INPUT0", "ANY", (), True)
SIGNATURE = Signature((ANY,), (TensorSpec("OUTPUT0", "ANY", (), True),), False)


class World:
    """A runtime whose loader opens when the test lets it, or fails."""

    def __init__(self, running: InstanceManager) -> None:
        self.running = running
        self.open = threading.Event()
        self.error: BaseException | None = None
        self.mapped: list[LoadAnswer] = []
        self.released: list[list[str]] = []
        running.on_released = self.released.append
        blobs = running.config.store / "blobs"
        blobs.mkdir(parents=True)
        self.tensor = self._put(blobs, b"\x07" * 4096)
        refs = (TensorRef("t", "UINT8", (4096,), self.tensor, 4096),)
        self.artifact = self._put(blobs, artifacts.encode(Artifact("identity", "any", "", None, None, refs, SIGNATURE, None, 1)))

    @staticmethod
    def _put(blobs: Path, data: bytes) -> str:
        digest = artifacts.digest_of(data)
        (blobs / digest).write_bytes(data)
        seal(blobs / digest, digest)
        return digest

    def load(self, name: str = "i", generation: int = 1) -> asyncio.Task[LoadAnswer]:
        return asyncio.ensure_future(self.running.load(LoadRequest(name, generation, "m@4/v", self.artifact), self.mapped.append))

    async def until_mapped(self, count: int = 1) -> None:
        async with asyncio.timeout(5):
            while len(self.mapped) < count:  # noqa: ASYNC110 - the loader thread is awaited
                await asyncio.sleep(0.001)

    def ask(self, generation: int = 1) -> asyncio.Future:
        message = ModelInferRequest(model_name="m", id="q")
        message.inputs.add(name="INPUT0", datatype="UINT8", shape=[2])
        message.raw_input_contents.append(b"ab")
        return self.running.infer(RequestHeader(generation, 5_000_000), message.SerializeToString())


@pytest.fixture
async def world(tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "FLAVOURS", {"ort": ("identity",)})
    config = RuntimeConfig("r", "ort", "default", tmp_path / "store", tmp_path)
    config.folder.mkdir()
    made = InstanceManager(config, SystemClock())
    await made.start()
    found = World(made)
    load = IdentityBackend.load

    def wait_and_load(self, artifact, digest, blobs):
        assert found.open.wait(5)
        if found.error is not None:
            raise found.error
        return load(self, artifact, digest, blobs)

    monkeypatch.setattr(IdentityBackend, "load", wait_and_load)
    yield found
    found.open.set()
    await made.close(0)


async def test_it_is_announced_once_mapped_and_answers_once_open(world):
    loading = world.load()
    await world.until_mapped()
    (told,) = world.mapped
    assert (told.mapped_bytes, told.load_ms) == (4096, 0.0)
    assert [instance.identity.instance_id for instance in world.running.instances] == ["i"]
    asked = world.ask()
    await asyncio.sleep(0.02)
    assert not asked.done()
    assert not loading.done()
    world.open.set()
    answered, done = await asyncio.wait_for(asked, 5), await loading
    assert answered.opening_us > 10_000
    assert answered.queue_us < answered.opening_us
    assert done.load_ms > 10
    assert done.map_ms == told.map_ms
    assert world.running.holds.held() == {world.tensor}


@pytest.mark.parametrize(("error", "kind"), [(ResourceExhausted("no room"), ResourceExhausted), (ValueError("odd graph"), Internal)])
async def test_a_failed_opening_is_the_error_of_all_and_nothing_of_it_is_left(world, error, kind):
    loading = world.load()
    await world.until_mapped()
    asked = [world.ask(), world.ask()]
    for other in (("i", 2), ("j", 1)):
        with pytest.raises(AlreadyExists):
            await world.running.load(LoadRequest(*other, "m@4/v", world.artifact))
    world.error = error
    world.open.set()
    for each in (*asked, loading):
        with pytest.raises(kind, match=str(error)):
            await asyncio.wait_for(each, 5)
    assert (world.running.instances, world.running.mapped(), world.running.holds.held()) == ([], [], set())
    assert world.released == [[world.tensor]]
    with pytest.raises(WrongGeneration):
        world.ask()
    world.error = None
    await world.load()  # name and generation are free
    assert (await world.ask()).status == 0


async def test_unloading_waits_for_the_opening_and_keeps_the_mappings(world):
    loading = world.load()
    await world.until_mapped()
    unloading = asyncio.ensure_future(world.running.unload("i", 0))
    await asyncio.sleep(0.02)
    assert not unloading.done()
    world.open.set()
    await loading
    assert await unloading == [world.tensor]
    assert world.running.mapped() == [world.tensor], "kept for the next one"
    await world.running.trim()
    assert world.running.mapped() == []
    await world.load("j", 2)
    assert (await world.ask(2)).status == 0


async def test_unloading_one_that_cannot_be_opened_leaves_nothing(world):
    loading = world.load()
    await world.until_mapped()
    asked = world.ask()
    unloading = asyncio.ensure_future(world.running.unload("i", 5))
    await asyncio.sleep(0.02)
    world.error = ResourceExhausted("no room")
    world.open.set()
    for each in (asked, loading):
        with pytest.raises(ResourceExhausted):
            await each
    assert await unloading == [world.tensor]
    assert (world.running.instances, world.running.mapped(), world.released) == ([], [], [[world.tensor]])
    with pytest.raises(NotFound):
        await world.running.unload("i", 0)


async def test_who_asks_what_is_here_waits_for_what_may_fail_yet(world):
    await world.running.settled()
    loading = world.load()
    await world.until_mapped()
    settling = asyncio.ensure_future(world.running.settled())
    assert world.running.loading == ["i"]
    await asyncio.sleep(0.02)
    assert not settling.done()
    world.error = ResourceExhausted("no room")
    world.open.set()
    await settling
    assert (world.running.instances, world.running.loading) == ([], [])
    with pytest.raises(ResourceExhausted):
        await loading


async def test_ending_the_runtime_waits_for_what_is_being_opened(world):
    loading = world.load()
    await world.until_mapped()
    closing = asyncio.ensure_future(world.running.close(0))
    await asyncio.sleep(0.02)
    assert not closing.done()
    world.open.set()
    await asyncio.wait_for(closing, 5)
    assert (await loading).mapped_bytes == 4096
