"""A session of ONNX Runtime becomes a sibling's in its runtime: bit for bit, or not at all, or it is gone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tessera import failpoint
from tessera.api.open_inference.inference_pb2 import ModelInferRequest, ModelInferResponse
from tessera.clock import SystemClock
from tessera.domain.artifact import PREPACKED, Artifact, Blob, TensorRef
from tessera.domain.errors import FailedPrecondition, Internal, WrongGeneration
from tessera.domain.ids import Digest, Generation, InstanceId
from tessera.domain.signature import Signature, TensorSpec
from tessera.frames.codec import RequestHeader
from tessera.runtime import overlay
from tessera.runtime.backends.ort.graph import readers, warm_graph
from tessera.runtime.loads import Becoming, LoadRequest
from tessera.runtime.manager import InstanceManager, RuntimeConfig
from tessera.runtime.overlay import counterparts
from tessera.tensorstore import artifact as artifacts
from tessera.tensorstore.seal import seal

SIGNATURE = Signature((TensorSpec("x", "FP32", (1, 16, 24, 24)),), (TensorSpec("y", "FP32", (1, 16, -1, -1)),), False)
GRAPH, _, WEIGHTS = warm_graph()


class World:
    """A runtime of flavour `ort`, and siblings of one small graph in its store: a convolution and a matrix."""

    def __init__(self, running: InstanceManager) -> None:
        self.running = running
        self.released: list[list[Digest]] = []
        running.on_released = self.released.append

    def put(self, seed: int, matrix_seed: int | None = None, options: tuple[str, ...] = ()) -> Digest:
        seeds = {"conv_weight": seed, "matrix": seed if matrix_seed is None else matrix_seed}
        drawn = {name: np.random.default_rng(seeds[name]).standard_normal(array.shape, np.float32) for name, (array, _) in WEIGHTS.items()}
        return self.store(GRAPH, drawn, options)

    def store(self, graph: bytes, weights: dict[str, Any], options: tuple[str, ...] = ()) -> Digest:
        refs = []
        for name, array in weights.items():
            data = array.tobytes()
            refs.append(TensorRef(name, "FP32", array.shape, self._blob(data), len(data)))
        blob = Blob(self._blob(graph), len(graph))
        return self._blob(artifacts.encode(Artifact("ort", "fp32", "onnx", blob, None, tuple(refs), SIGNATURE, None, 1, options)))

    def _blob(self, data: bytes) -> Digest:
        folder: Path = self.running.config.store / "blobs"
        digest = artifacts.digest_of(data)
        if not (folder / digest).exists():
            (folder / digest).write_bytes(data)
            seal(folder / digest, digest)
        return digest

    async def load(self, name: str, generation: int, artifact: Digest, donor: str = "") -> Any:
        becoming = Becoming(InstanceId(donor), b"") if donor else None
        return await self.running.load(LoadRequest(InstanceId(name), Generation(generation), "m@1/ort-fp32", artifact, donor=becoming))

    def ask(self, generation: int) -> asyncio.Future[Any]:
        message = ModelInferRequest(model_name="m", id="q")
        message.inputs.add(name="x", datatype="FP32", shape=[1, 16, 24, 24])
        message.raw_input_contents.append(np.random.default_rng(9).standard_normal((1, 16, 24, 24), np.float32).tobytes())
        return asyncio.ensure_future(self.running.infer(RequestHeader(generation, 5_000_000), message.SerializeToString()))

    async def answer(self, generation: int) -> bytes:
        response = ModelInferResponse.FromString((await self.ask(generation)).body)
        return b"".join(response.raw_output_contents)

    async def fresh(self, artifact: Digest) -> bytes:
        await self.load("fresh", 99, artifact)
        found = await self.answer(99)
        await self.running.unload(InstanceId("fresh"), 0)
        await self.running.trim()
        return found

    @property
    def names(self) -> list[str]:
        return [instance.identity.instance_id for instance in self.running.instances]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    config = RuntimeConfig("r", "ort", "default", tmp_path / "store", tmp_path, idle_after_s=30)
    config.folder.mkdir()
    (tmp_path / "store" / "blobs").mkdir(parents=True)
    made = InstanceManager(config, SystemClock())
    await made.start()
    yield World(made)
    await made.close(0)


async def test_a_chain_of_siblings_answers_as_fresh_loads_do(world: World) -> None:
    """With all weights others, with one of them the same, and back again."""
    models = [world.put(1), world.put(2), world.put(2, matrix_seed=3)]
    fresh = {each: await world.fresh(each) for each in models}
    assert len(set(fresh.values())) == 3
    await world.load("i0", 1, models[0])
    for at, model in enumerate([models[1], models[2], models[0], models[2], models[1]], start=1):
        await world.load(f"i{at}", at + 1, model, donor=f"i{at - 1}")
        assert await world.answer(at + 1) == fresh[model]
        assert world.names == [f"i{at}"]
        with pytest.raises(WrongGeneration):
            await world.ask(at)
    held = {blob.digest for blob in artifacts.decode((world.running.config.store / "blobs" / models[1]).read_bytes()).blobs()}
    assert world.running.holds.held() == held
    for model in models:
        assert await world.fresh(model) == fresh[model]


async def test_what_stays_must_be_the_mapping_that_the_session_reads(world: World) -> None:
    """A file that was touched and sealed again is mapped anew for the target, while the session goes on reading the mapping before."""
    one, other = world.put(1), world.put(1, matrix_seed=2)
    fresh = {each: await world.fresh(each) for each in (one, other)}
    await world.load("donor", 1, one)
    blobs = world.running.config.store / "blobs"
    (conv,) = [ref.digest for ref in artifacts.decode((blobs / one).read_bytes()).tensors if ref.slot == "conv_weight"]
    touched = os.stat(blobs / conv)
    os.utime(blobs / conv, ns=(touched.st_atime_ns, touched.st_mtime_ns + 1_000_000_000))
    with pytest.raises(FailedPrecondition, match=f"blob {conv} was mapped anew"):
        await world.load("other", 2, other, donor="donor")
    assert await world.answer(1) == fresh[one]
    await world.load("bound", 3, other)
    assert await world.answer(3) == fresh[other]


async def test_a_parked_sibling_opens_over_its_own_bytes_again(world: World) -> None:
    one, other = world.put(1), world.put(2)
    fresh = await world.fresh(other)
    await world.load("donor", 1, one)
    await world.load("other", 2, other, donor="donor")
    (instance,) = world.running.instances
    loaded = instance.park()
    assert loaded is not None
    loaded.close()
    assert await world.answer(2) == fresh


async def test_one_that_fails_half_way_is_gone_and_who_waits_is_sent_on(world: World) -> None:
    one, other = world.put(1), world.put(2)
    fresh = {each: await world.fresh(each) for each in (one, other)}
    await world.load("donor", 1, one)
    with failpoint.active("runtime.open=delay(1);runtime.replace=1*off->1*error(no more mappings)"):
        becoming = asyncio.ensure_future(world.load("other", 2, other, donor="donor"))
        async with asyncio.timeout(10):
            while not failpoint.count("runtime.open"):  # noqa: ASYNC110 - the loader's thread counts
                await asyncio.sleep(0.005)
        to_donor, to_other = world.ask(1), world.ask(2)
        with pytest.raises(Internal, match="no more mappings"):
            await becoming
    with pytest.raises(WrongGeneration):
        await to_donor
    with pytest.raises(Internal, match="no more mappings"):
        await to_other
    assert world.names == []
    assert world.running.holds.held() == set()
    assert world.running.mapped() == []
    for model, answer in fresh.items():
        assert await world.fresh(model) == answer


async def test_who_cannot_become_it_goes_on(world: World) -> None:
    one, other = world.put(1), world.put(2)
    packed, busy = world.put(2, options=(PREPACKED,)), world.put(1, matrix_seed=3)
    before = await world.fresh(one)
    await world.load("donor", 1, one)
    with pytest.raises(FailedPrecondition, match="prepacked weights are copies"):
        await world.load("other", 2, packed, donor="donor")
    await world.load("neighbour", 3, busy)
    with pytest.raises(FailedPrecondition, match="is mapped for others too"):
        await world.load("other", 2, other, donor="donor")
    assert await world.answer(1) == before
    assert world.names == ["donor", "neighbour"]
    await world.running.unload(InstanceId("neighbour"), 0)
    await world.running.trim()
    await world.load("other", 2, other, donor="donor")
    assert world.names == ["other"]


async def test_what_may_have_been_read_when_it_was_opened_is_not_swapped(world: World) -> None:
    """Nothing is known of the kernel of `Max`; where its weights stay the same that does not matter."""
    models = []
    for seed in (1, 2, 3):
        names = {"most": min(seed, 2), "scale": 10 + seed}
        weights = {name: np.random.default_rng(at).standard_normal((24, 24), np.float32) for name, at in names.items()}
        nodes = [helper.make_node("Max", ["x", "most"], ["m"]), helper.make_node("Mul", ["m", "scale"], ["y"])]
        models.append(world.store(model(nodes, weights), weights))
    fresh = await world.fresh(models[2])
    await world.load("donor", 1, models[0])
    with pytest.raises(FailedPrecondition, match="tensor most is read by Max"):
        await world.load("other", 2, models[1], donor="donor")
    await world.load("donor of the same", 2, models[1])
    await world.load("same", 3, models[2], donor="donor of the same")
    assert await world.answer(3) == fresh


def model(nodes: list[Any], weights: dict[str, np.ndarray]) -> bytes:
    initializers = []
    for name, array in weights.items():
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="tessera")
        initializers.append(tensor)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 16, f"{name}h", f"{name}w"]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initializers)
    data: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    return data


def test_readers_are_known_by_what_they_read_and_subgraphs_by_who_has_them() -> None:
    assert readers(GRAPH) == {"x": {"Conv"}, "conv_weight": {"Conv"}, "c": {"Relu"}, "r": {"MatMul"}, "matrix": {"MatMul"}}
    branch = helper.make_graph([helper.make_node("Add", ["a", "b"], ["z"])], "branch", [], [])
    nodes = [helper.make_node("Mul", ["x", "a"], ["m"]), helper.make_node("If", ["m"], ["y"], then_branch=branch, else_branch=branch)]
    found = readers(model(nodes, {"a": np.ones(1, np.float32)}))
    assert (found["a"], found["m"]) == ({"Mul", "If"}, {"If"})


def refs(**large: str) -> Artifact:
    """Tensors by slot, each a digest and where it lies: alone, or at an offset of the pack."""
    found = []
    for slot, where in large.items():
        digest, _, offset = where.partition("@")
        found.append(TensorRef(slot, "FP32", (16,), Digest(digest), 64, int(offset) if offset else None))
    packed = [ref.digest for ref in found if ref.pack_offset is not None]
    pack = Blob(Digest(f"pack-{''.join(packed)}"), 256) if packed else None
    return Artifact("ort", "fp32", "onnx", None, pack, tuple(found), SIGNATURE, None, 1)


def test_each_blob_has_one_that_takes_its_place() -> None:
    assert counterparts(refs(a="1", b="2", c="1"), refs(a="3", b="2", c="3")) == {"1": Blob(Digest("3"), 64), "2": Blob(Digest("2"), 64)}
    assert counterparts(refs(a="1@0", b="2@64"), refs(a="3@0", b="4@64")) == {"pack-12": Blob(Digest("pack-34"), 256)}


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (refs(a="1", b="1"), refs(a="2", b="3"), "tensor b shares its bytes with another one"),
        (refs(a="1", b="2"), refs(a="3", b="3"), "share their bytes in the other artifact"),
        (refs(a="1@0", b="2@64"), refs(a="1@64", b="2@0"), "tensor a lies elsewhere"),
        (refs(a="1"), refs(a="1@0"), "tensor a lies elsewhere"),
        (refs(a="1"), refs(b="1"), "tensor a lies elsewhere"),
        (refs(a="1"), replace(refs(a="2"), tensors=(TensorRef("a", "FP32", (8,), Digest("2"), 32),)), "another length"),
        (refs(a="1@0"), replace(refs(a="2@0"), pack=Blob(Digest("p"), 320)), "the packs are 256 and 320 bytes long"),
    ],
)
def test_tensors_that_are_tied_or_packed_otherwise_have_none(source: Artifact, target: Artifact, words: str) -> None:
    with pytest.raises(FailedPrecondition, match=words):
        counterparts(source, target)


async def test_a_file_that_came_in_its_place_is_another_mapping(world: World) -> None:
    """By its name alone the donor's would seem to be its own."""
    one, other = world.put(1), world.put(2)
    before = await world.fresh(one)
    await world.load("donor", 1, one)
    folder = world.running.config.store / "blobs"
    for blob in artifacts.decode((folder / one).read_bytes()).blobs():
        data = (folder / blob.digest).read_bytes()
        (folder / blob.digest).unlink()
        world._blob(data)
    assert await world.fresh(one) == before
    with pytest.raises(FailedPrecondition, match="is mapped for others too"):
        await world.load("other", 2, other, donor="donor")
    assert await world.answer(1) == before


async def test_what_is_no_mapping_of_its_file_is_not_mapped_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = world.put(1), world.put(2)
    before = await world.fresh(one)
    await world.load("donor", 1, one)
    found = overlay._file_mappings
    monkeypatch.setattr(overlay, "_file_mappings", lambda: {at: (*rest, inode + 1) for at, (*rest, inode) in found().items()})
    with pytest.raises(FailedPrecondition, match="are no mapping of its file"):
        await world.load("other", 2, other, donor="donor")
    assert await world.answer(1) == before
