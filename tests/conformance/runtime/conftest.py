"""Real architectures, imported and baked once for the suite: a seeded ResNet-18 and a small seeded BERT."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.domain.artifact import Artifact
from tessera.domain.ids import Digest
from tessera.registry.core.recipes import names, recipe_named
from tessera.runtime import backends
from tessera.runtime.backends.interface import Backend, BackendConfig, Loaded, Tensor
from tessera.runtime.blobs import ArtifactBlobs
from tessera.tensorstore import artifact as artifacts
from tessera.tensorstore.mapping import BlobMap
from tessera.tensorstore.seal import seal

MAX_BATCH = 4


@dataclass(frozen=True)
class Model:
    """`artifacts`: backend -> digest. `eager`: inputs by name -> outputs by name. `inputs(batch, seed)` draws inputs."""

    name: str
    artifacts: dict[str, str]
    eager: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
    inputs: Callable[[int, int], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Open:
    """A loaded artifact with what it stands on."""

    artifact: Artifact
    blobs: ArtifactBlobs
    loaded: Loaded

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        datatypes = {spec.name: spec.datatype for spec in self.artifact.signature.inputs}
        answers = self.loaded.run({name: Tensor(datatypes[name], array) for name, array in inputs.items()})
        return {name: tensor.array for name, tensor in answers.items()}

    def close(self) -> None:
        self.loaded.close()
        self.blobs.close()


class Digests(dict[str, str]):
    """Artifacts by backend. What is compiled, in a process of its own, is made when it is first wanted."""

    def __init__(self, store: Path, work: Path, ready: dict[str, str]) -> None:
        super().__init__(ready)
        self._store, self._work = store, work

    def __missing__(self, backend: str) -> str:
        assert backend == "aoti"
        self[backend] = bake(self["aten"], "aoti-fp32", self._store, self._work / backend)
        return self[backend]


def import_and_bake(reference: str, arguments: dict[str, Any], seed: int, store: Path, work: Path) -> dict[str, str]:
    from tessera.registry.importer.run import run
    from tessera.registry.importer.task import Builder, Task

    source, out = work / "source", work / "out"
    source.mkdir(parents=True)
    made = run(Task(str(source), str(out), Builder(reference, arguments, seed), (reference,), MAX_BATCH), lambda message, share: None)
    for digest, _ in made.blobs:
        shutil.move(out / "blobs" / digest, store / "blobs" / digest)
    assert made.onnx, made.onnx_reason
    for path in (store / "blobs").iterdir():
        seal(path, Digest(path.name))
    baked = {name: bake(made.onnx, _recipe_of_package(name), store, work / name) for name in backends.others()}
    ort = bake(made.onnx, "ort-fp32", store, work / "ort")
    return Digests(store, work, {"aten": made.aten, "onnx": made.onnx, "ort": ort, **baked})


def _recipe_of_package(backend: str) -> str:
    """The recipe by which another package makes what its backend opens and what agrees with the registered model."""
    return next(name for name in names() if recipe_named(name).backend == backend and recipe_named(name).exact)


def bake(source: str, recipe: str, store: Path, out: Path) -> str:
    """The digest of the artifact that the recipe makes of another one; its blobs are in the store."""
    command = [sys.executable, "-m", "tessera.runtime.bake", "--recipe", recipe, "--source", str(store / "blobs" / source)]
    more = ["--store", str(store), "--out", str(out), "--max-batch", str(MAX_BATCH)]
    found = subprocess.run([*command, *more], capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert all(line["event"] == "bake" for line in lines[:-1])
    for blob in lines[-1]["blobs"]:
        assert artifacts.digest_of(Path(blob["path"]).read_bytes()) == blob["digest"]
        seal(Path(shutil.move(blob["path"], store / "blobs" / blob["digest"])), Digest(blob["digest"]))
    return str(lines[-1]["artifact"])


def make_resnet18(store: Path, work: Path, seed: int = 7) -> Model:
    import torch
    from pytorchcv.model_provider import get_model

    digests = import_and_bake("pytorchcv.model_provider:get_model", {"name": "resnet18"}, seed, store, work)
    torch.manual_seed(seed)
    module = get_model("resnet18").eval()

    def eager(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return {"output": module(torch.from_numpy(inputs["image"])).numpy()}

    def inputs(batch: int, seed: int) -> dict[str, np.ndarray]:
        return {"image": np.random.default_rng(seed).standard_normal((batch, 3, 224, 224)).astype(np.float32)}

    return Model("resnet18", digests, eager, inputs)


def make_bert(store: Path, work: Path, seed: int = 3) -> Model:
    import torch

    from tessera.registry import builders

    sizes = {"hidden": 64, "layers": 2, "heads": 2, "vocabulary": 500}
    digests = import_and_bake("tessera.registry.builders:bert", sizes, seed, store, work)
    torch.manual_seed(seed)
    module = builders.bert(**sizes).eval()

    def eager(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            found = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
            return {"last_hidden_state": found.last_hidden_state.numpy()}

    def inputs(batch: int, seed: int) -> dict[str, np.ndarray]:
        random = np.random.default_rng(seed)
        length = int(random.integers(3, 40))
        mask = np.ones((batch, length), np.int64)
        mask[-1, length - length // 3 :] = 0
        ids = random.integers(0, 500, (batch, length))
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": random.integers(0, 2, (batch, length))}

    return Model("bert", digests, eager, inputs)


@pytest.fixture(scope="session")
def store() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="tsra-conformance-"))
    (folder / "blobs").mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def models(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    work = tmp_path_factory.mktemp("models")
    return {"resnet18": make_resnet18(store, work / "resnet18"), "bert": make_bert(store, work / "bert")}


@pytest.fixture(scope="session")
def sibling(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same architecture with other weights: digests by backend."""
    return make_bert(store, tmp_path_factory.mktemp("sibling") / "bert", seed=4).artifacts


@pytest.fixture(scope="session")
def backend_of(models: dict[str, Model], sibling: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Backend]:
    """Backends of this process. After the imports: a process-wide thread pool, once set, forbids the sessions that those make."""
    made: dict[str, Backend] = {}

    def get(name: str) -> Backend:
        if name not in made:
            made[name] = backends.create(name, BackendConfig(1, tmp_path_factory.mktemp("run")))
            made[name].warm()
        return made[name]

    return get


@pytest.fixture
def open_artifact(store: Path, backend_of: Callable[[str], Backend]) -> Iterator[Callable[[str], Open]]:
    opened: list[Open] = []
    mapped = BlobMap()

    def get(digest: str, private: bool = False) -> Open:
        artifact = artifacts.decode((store / "blobs" / digest).read_bytes())
        blobs = ArtifactBlobs(store, artifact, mapped, private, verify=True)
        opened.append(Open(artifact, blobs, backend_of(artifact.backend).load(artifact, Digest(digest), blobs)))
        return opened[-1]

    yield get
    for item in opened:
        item.close()
    assert mapped.digests() == {}
