"""Recipes beside the base ones through a real registry and real baking: made, measured, shared, refused, resumed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from registry_process import BakingNode, RegistryProcess, joined, source_file
from scored_nets import Net, evaluation, images, npz, pt2

from tessera.api.registry.v1 import registry_pb2
from tessera.clock import SystemClock
from tessera.coord.binary import EtcdProcess
from tessera.coord.etcd import EtcdCoordinator
from tessera.domain.errors import InvalidInput, TesseraError
from tessera.domain.ids import Digest
from tessera.runtime.classes import build_class, has_bfloat16
from tessera.tensorstore.artifact import decode

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch, of itself


@pytest.fixture
async def registry(tmp_path: Path, etcd: EtcdProcess) -> AsyncIterator[RegistryProcess]:
    """One that makes every recipe."""
    registry = RegistryProcess(tmp_path, etcd.endpoint, recipes=["ort-int8", "ort-int8-dynamic", "ort-fp32-prepacked"])
    await registry.start()
    yield registry
    await registry.stop()


async def made(registry: RegistryProcess, model: str, seconds: float = 90.0) -> dict[str, registry_pb2.VariantInfo]:
    """Its variants when none of them is still to be made."""
    async with asyncio.timeout(seconds):
        while True:
            variants = {v.key.variant: v for v in (await registry.model(model)).versions[-1].variants}
            if all(v.state in ("ready", "failed") for v in variants.values()):
                return variants
            await SystemClock().sleep(0.1)


async def test_int8_of_siblings_is_scored_and_shares_its_weights(
    registry: RegistryProcess, coordinator: EtcdCoordinator, tmp_path: Path
) -> None:
    first, second = Net(1), Net(2)
    async with joined(BakingNode(registry.repository, tmp_path / "node", build_class()), "n1", coordinator):
        for name, net in (("a", first), ("b", second)):
            data = evaluation(net)
            sets = registry_pb2.EvaluationSet(file=source_file("eval.npz", data), metric="top1")
            await registry.register(name, pt2(net), wait=True, sets=[data], evaluation=sets, allow_loss=0.5, lossy=True)
        found = {name: await made(registry, name) for name in "ab"}
    assert {name: v.state for name, v in found["a"].items()} == {"aten-fp32": "ready", "ort-fp32": "ready", "ort-int8": "ready"}
    int8 = found["a"]["ort-int8"]
    assert (int8.precision, int8.lossy, int8.withheld, int8.progress) == ("int8", True, "", "")
    assert int8.notes == "calibrated on 64 samples of the evaluation set"
    assert (int8.agreement.metric, int8.agreement.samples, int8.agreement.reference_score) == ("top1", 64, 1.0)
    assert int8.agreement.score >= 0.5
    assert found["a"]["aten-fp32"].agreement.score == found["a"]["ort-fp32"].agreement.score == 1.0
    assert not found["a"]["ort-fp32"].lossy
    artifacts = [decode(registry.repository.read(Digest(found[name]["ort-int8"].artifact_digest))) for name in "ab"]
    trunks = [{ref.digest for ref in artifact.large_tensors() if ref.dtype == "INT8"} for artifact in artifacts]
    assert trunks[0] == trunks[1] != set()
    assert artifacts[0].graph == artifacts[1].graph
    assert found["b"]["ort-int8"].tensor_bytes_shared >= 32 * 32 * 9
    model = await registry.model("a")
    assert (model.lossy, model.versions[0].metric, model.versions[0].allow_loss) == (True, "top1", 0.5)
    digest = Digest(model.versions[0].evaluation_digest)
    assert registry.repository.has(digest)
    await registry.stop()
    await registry.start()  # sweeps what no record refers to
    assert registry.repository.has(digest)
    await registry.stub.DeleteModel(registry_pb2.DeleteModelRequest(name="a"))
    assert not registry.repository.has(digest)


async def test_sets_that_do_not_fit_are_refused_and_nothing_is_registered(registry: RegistryProcess) -> None:
    files = pt2(Net(1))
    wrong = npz(image=images(16)[:, :, :4], labels=np.zeros(16, np.int64))
    single = npz(image=images(1))
    refused = (
        (wrong, {"evaluation": registry_pb2.EvaluationSet(file=source_file("e", wrong), metric="top1")}, r"image shape \[16, 1, 4, 8\]"),
        (single, {"calibration": source_file("c", single)}, "calibration set samples 1: at least 8"),
    )
    for data, fields, words in refused:
        with pytest.raises(InvalidInput, match=words):
            await registry.register("m", files, sets=[data], **fields)
    right = npz(image=images(16), labels=np.zeros(16, np.int64))
    for fields, words in (
        ({"evaluation": registry_pb2.EvaluationSet(file=source_file("e", right), metric="elo")}, "metric 'elo': one of"),
        ({"evaluation": registry_pb2.EvaluationSet(file=source_file("e", right))}, "metric ''"),
        ({"allow_loss": 1.5}, "allow_loss 1.5: must be from 0 to 1"),
        ({"variants": registry_pb2.RecipeChoice(recipes=["ort-int4"])}, "variants 'ort-int4': must be among"),
    ):
        with pytest.raises(InvalidInput, match=words):
            await registry.upload(files, **fields)
    assert [m.name for m in (await registry.stub.ListModels(registry_pb2.ListModelsRequest())).models] == ["identity"]


async def test_killed_while_int8_is_made_it_goes_on_after_the_restart(
    tmp_path: Path, etcd: EtcdProcess, coordinator: EtcdCoordinator
) -> None:
    registry = RegistryProcess(tmp_path, etcd.endpoint, recipes=["ort-int8"])
    await registry.start(failpoints="registry.before_bake=1*off->kill")
    async with joined(BakingNode(registry.repository, tmp_path / "node", build_class()), "n1", coordinator):
        try:
            await registry.register("m", pt2(Net(1)), wait=True)  # it may die before it has said so
        except TesseraError:
            pass
        assert await registry.dead() == 137
        await registry.start()
        try:
            variants = await made(registry, "m")
            assert {name: v.state for name, v in variants.items()} == {"aten-fp32": "ready", "ort-fp32": "ready", "ort-int8": "ready"}
            assert (await registry.register("m", pt2(Net(1))))[-1].result.unchanged
        finally:
            await registry.stop()


async def test_chosen_recipes_are_made_and_others_are_not(registry: RegistryProcess, coordinator: EtcdCoordinator, tmp_path: Path) -> None:
    async with joined(BakingNode(registry.repository, tmp_path / "node", build_class()), "n1", coordinator):
        await registry.register("m", pt2(Net(1)), wait=True, variants=registry_pb2.RecipeChoice(recipes=["ort-fp32-prepacked"]))
        variants = await made(registry, "m")
        assert set(variants) == {"aten-fp32", "ort-fp32", "ort-fp32-prepacked"}
        assert "not shared" in variants["ort-fp32-prepacked"].notes
        assert not variants["ort-fp32-prepacked"].lossy
        await registry.register("n", pt2(Net(3)), wait=True, variants=registry_pb2.RecipeChoice())
        assert set(await made(registry, "n")) == {"aten-fp32", "ort-fp32"}


async def test_recipes_of_the_flat_program_are_made_for_who_asks_or_say_what_the_node_lacks(
    registry: RegistryProcess, coordinator: EtcdCoordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    async with joined(BakingNode(registry.repository, tmp_path / "node", build_class()), "n1", coordinator):
        await registry.register("m", pt2(Net(1)), wait=True, variants=registry_pb2.RecipeChoice(recipes=["aten-bf16", "aoti-fp32"]))
        variants = await made(registry, "m")
    compiled, half = variants["aoti-fp32"], variants["aten-bf16"]
    assert (compiled.state, compiled.backend, compiled.flavour) == ("failed", "aoti", "aten")
    assert compiled.reason == "aoti-fp32 needs a C++ compiler on the node: no-such-compiler is not on PATH"
    assert (half.precision, half.flavour) == ("bf16", "aten")
    if has_bfloat16(build_class()):
        assert (half.state, half.lossy, half.withheld) == ("ready", True, "")
        assert half.agreement.samples >= 32
    else:
        assert half.state == "failed"
        assert half.reason == f"aten-bf16 needs a CPU that multiplies bfloat16: class {build_class()} does not"


async def test_stopped_variants_are_kept_with_the_reason(registry: RegistryProcess, coordinator: EtcdCoordinator, tmp_path: Path) -> None:
    await registry.register("m", pt2(Net(1)))
    stopped = (await registry.stub.StopVariants(registry_pb2.StopVariantsRequest(model="m"))).stopped
    assert [key.variant for key in stopped] == ["ort-int8"]
    async with joined(BakingNode(registry.repository, tmp_path / "node", build_class()), "n1", coordinator):
        variants = await made(registry, "m")
        assert (variants["ort-fp32"].state, variants["ort-int8"].state) == ("ready", "failed")
        assert "registering the same content again" in variants["ort-int8"].reason


async def test_a_file_of_onnx_has_its_sets_checked_and_its_builds_scored(
    registry: RegistryProcess, coordinator: EtcdCoordinator, tmp_path: Path
) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32) / 8
    x = np.random.default_rng(1).standard_normal((40, 64)).astype(np.float32)
    right = npz(x=x, labels=(x @ weight).argmax(axis=1))
    wrong = npz(x=x[:, :3], labels=np.zeros(40, np.int64))
    files = {"m.onnx": onnx_product(weight)}
    async with joined(BakingNode(registry.repository, tmp_path / "node", build_class()), "n1", coordinator):
        with pytest.raises(InvalidInput, match=r"x shape \[40, 3\]"):
            await registry.register(
                "m", files, sets=[wrong], evaluation=registry_pb2.EvaluationSet(file=source_file("e", wrong), metric="top1")
            )
        sets = registry_pb2.EvaluationSet(file=source_file("e", right), metric="top1")
        await registry.register("m", files, wait=True, sets=[right], evaluation=sets, allow_loss=0.5)
        found = await made(registry, "m")
    assert {name: v.state for name, v in found.items()} == {"ort-fp32": "ready", "ort-fp32-prepacked": "ready", "ort-int8-dynamic": "ready"}
    assert found["ort-fp32"].agreement.score == 1.0
    assert 0.5 <= found["ort-int8-dynamic"].agreement.score <= 1.0


def onnx_product(weight: np.ndarray) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
