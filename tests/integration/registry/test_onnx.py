"""ONNX files through a real registry: what is made of them, that it agrees and is shared, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from registry_process import BakingNode, RegistryProcess, joined

from tessera.coord.etcd import EtcdCoordinator
from tessera.domain.artifact import Artifact
from tessera.domain.errors import InvalidInput, TesseraError, Unsupported
from tessera.domain.ids import Digest
from tessera.runtime.classes import build_class
from tessera.tensorstore.artifact import decode

sys.path.insert(0, str(Path(__file__).parents[2] / "e2e"))
import e2e_onnx
from e2e_models import IMAGE, Net, agrees, images

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch, of itself
IDS = np.array([[1, 5, 7, 199], [0, 0, 3, 4], [2, 2, 2, 2]])


@pytest.fixture
def node(registry: RegistryProcess, coordinator: EtcdCoordinator, tmp_path: Path) -> Any:
    return joined(BakingNode(registry.repository, tmp_path / "node", build_class()), "n1", coordinator)


def read(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def artifact_of(registry: RegistryProcess, digest: str) -> Artifact:
    return decode(registry.repository.read(Digest(digest)))


def run(registry: RegistryProcess, folder: Path, digest: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Runs an artifact of the repository with the runtime's backend, in a process of its own."""
    (folder / "blobs").mkdir(parents=True)
    for blob in (Digest(digest), *(blob.digest for blob in artifact_of(registry, digest).blobs())):
        (folder / "blobs" / blob).write_bytes(registry.repository.read(blob))
    np.savez(folder / "inputs.npz", **inputs)
    script = Path(__file__).with_name("serve_once.py")
    subprocess.run([sys.executable, script, folder, digest, folder / "inputs.npz", folder / "outputs.npz"], check=True, timeout=60)
    with np.load(folder / "outputs.npz") as outputs:
        return dict(outputs)


async def test_a_file_of_torch(registry: RegistryProcess, node: Any, tmp_path: Path) -> None:
    path = e2e_onnx.from_torch(Net(1), IMAGE, tmp_path / "net.onnx")
    async with node:
        result = (await registry.register("net", {"net.onnx": path.read_bytes()}, wait=True, task="shapes"))[-1].result
    (only,) = result.variants
    assert (only.key.variant, only.state, only.build_class) == ("ort-fp32", "ready", build_class())
    assert result.tensor_bytes == only.tensor_bytes > 0
    (version,) = (await registry.model("net")).versions
    assert (version.source_kind, version.signature.batched) == ("onnx", True)
    assert [(i.name, i.datatype, list(i.shape)) for i in version.signature.inputs] == [("image", "FP32", [-1, *IMAGE])]
    (output,) = version.signature.outputs
    assert list(output.shape) == [-1, 10]
    found = run(registry, tmp_path / "run", only.artifact_digest, image=images(3))
    assert agrees(found[output.name], e2e_onnx.answers(path, image=images(3))[output.name])
    assert agrees(found[output.name], Net(1).eager(images(3)))


async def test_a_file_made_by_hand(registry: RegistryProcess, node: Any, tmp_path: Path) -> None:
    paths = [e2e_onnx.by_hand(tmp_path / f"hand{seed}.onnx", seed) for seed in (1, 2)]
    async with node:
        results = [(await registry.register(f"hand{n}", {"m.onnx": p.read_bytes()}, wait=True))[-1].result for n, p in enumerate(paths)]
    first, second = (result.variants[0] for result in results)
    found = run(registry, tmp_path / "run", second.artifact_digest, ids=IDS)
    wanted = e2e_onnx.answers(paths[1], ids=IDS)
    assert agrees(found["vector"], wanted["vector"])
    np.testing.assert_array_equal(found["best"], wanted["best"])
    # siblings: one graph, one embedding; a matrix of each one's own, though it stood inside a node
    a, b = (artifact_of(registry, variant.artifact_digest) for variant in (first, second))
    assert a.graph == b.graph
    shared = {ref.digest for ref in a.large_tensors()} & {ref.digest for ref in b.large_tensors()}
    assert second.tensor_bytes_shared == e2e_onnx.WORDS * e2e_onnx.WIDTH * 4
    assert len(shared) == 1
    assert {ref.size_bytes for ref in b.large_tensors()} == {e2e_onnx.WORDS * e2e_onnx.WIDTH * 4, e2e_onnx.WIDTH**2 * 4}


async def test_a_folder_with_external_data_makes_the_same(registry: RegistryProcess, node: Any, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    e2e_onnx.from_torch(Net(1), IMAGE, tmp_path / "one/net.onnx")
    model = onnx.load(str(tmp_path / "one/net.onnx"))
    onnx.save(model, str(tmp_path / "two/net.onnx"), save_as_external_data=True, location="weights.bin", size_threshold=1024)
    assert (tmp_path / "two/weights.bin").stat().st_size > 10_000
    async with node:
        results = [(await registry.register(name, read(tmp_path / name), wait=True))[-1].result for name in ("one", "two")]
    assert results[0].variants[0].artifact_digest == results[1].variants[0].artifact_digest


async def test_rows_that_mix_and_batches_that_are_fixed(registry: RegistryProcess, tmp_path: Path) -> None:
    """Both are registered; requests to them are never joined. No node is there: the variant waits."""
    signatures = []
    for name, nodes, second in (
        ("mixed", [helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("MatMul", ["x", "t"], ["y"])], "batch"),
        ("alone", [helper.make_node("Reshape", ["x", "shape"], ["y"])], "other"),
    ):
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", second])],
            [helper.make_tensor("shape", TensorProto.INT64, [2], [1, 4])] if name == "alone" else [],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
        events = await registry.register(name, {"m.onnx": model.SerializeToString()})
        signatures.append((await registry.model(name)).versions[0].signature)
        assert any(event.step == "registered" for event in events)
    mixed, alone = signatures
    assert (mixed.batched, list(mixed.inputs[0].shape), list(mixed.outputs[0].shape)) == (False, [-1, 4], [-1, -1])
    assert (alone.batched, list(alone.inputs[0].shape)) == (False, [1, 4])


def hostile(folder: Path) -> list[tuple[str, dict[str, bytes], type[TesseraError], str]]:
    good = e2e_onnx.by_hand(folder / "good.onnx").read_bytes()

    def changed(**changes: Any) -> bytes:
        model = onnx.load_model_from_string(good)
        for name, change in changes.items():
            change(getattr(model, name))
        return bytes(model.SerializeToString())

    def outside(graph: Any) -> None:
        tensor = graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", "../../../../etc/passwd"

    def foreign(graph: Any) -> None:
        graph.node[3].domain = "evil.ops"

    def half(graph: Any) -> None:
        graph.initializer[0].data_type = TensorProto.FLOAT16

    def loop(graph: Any) -> None:
        graph.node[0].input[1] = "vector"

    def sequence(graph: Any) -> None:
        graph.output[0].type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT

    class Foreign(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return torch.bernoulli(x.sigmoid())

    random = e2e_onnx.from_torch(Foreign(), (3,), folder / "random.onnx").read_bytes()
    return [
        ("no file", {"m.onnx": b"\x00" * 100}, InvalidInput, "'m.onnx': is no ONNX file"),
        ("cut off", {"m.onnx": good[: len(good) // 2]}, InvalidInput, "m.onnx"),
        ("two", {"a.onnx": good, "b.onnx": good}, InvalidInput, "one .pt2 archive or ONNX file per version"),
        ("outside", {"m.onnx": changed(graph=outside)}, InvalidInput, "must be a file beside the model, by its relative path"),
        (
            "custom operator",
            {"m.onnx": changed(graph=foreign)},
            Unsupported,
            "operator evil.ops.Gelu: 'evil.ops' comes with a library of its own",
        ),
        ("half precision", {"m.onnx": changed(graph=half)}, Unsupported, "initializer 'table' is FLOAT16; convert the model to float32"),
        ("a circle", {"m.onnx": changed(graph=loop)}, InvalidInput, "breaks the rules of ONNX"),
        ("no tensor", {"m.onnx": changed(graph=sequence)}, Unsupported, "output 'vector' is a sequence"),
        ("random", {"m.onnx": random}, Unsupported, "draws random numbers"),
    ]


async def test_files_that_are_refused_leave_nothing(registry: RegistryProcess, tmp_path: Path) -> None:
    before = {digest for digest, _ in registry.repository.digests()}
    for what, source, kind, words in hostile(tmp_path):
        with pytest.raises(kind) as refused:
            await registry.register("m", source)
        assert words in str(refused.value), what
    assert {digest for digest, _ in registry.repository.digests()} == before
    assert not list((registry.state / "work").iterdir())


def test_broken_files_do_not_break_the_importer(tmp_path: Path) -> None:
    """200 files with a few bytes changed, each loaded whole: refused in Tessera's words or made, never a crash."""
    good = e2e_onnx.by_hand(tmp_path / "good.onnx")
    script = Path(__file__).with_name("break_onnx.py")
    done = subprocess.run(
        [sys.executable, script, good, tmp_path / "broken", "200"], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    refused = int(done.stdout.split()[-1])
    assert 20 < refused < 200
