from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tessera.domain.errors import DataCorrupted, InvalidInput, Unsupported
from tessera.runtime.classes import build_class
from tessera.tensorstore import artifact as artifacts


def export(store, kit, seed: int = 0):
    """An export (backend `onnx`) of a small linear model, and the model."""
    model = kit.linear(store, "ort", seed=seed, depth=2)
    artifact = replace(store.artifact(model.artifact), backend="onnx", build_class=None)
    return store.put_artifact(artifact), model


def bake(store, source: str, out: Path, max_batch: int = 4) -> tuple[int, dict]:
    command = [sys.executable, "-m", "tessera.runtime.bake", "--source", str(store.path(source)), "--store", str(store.root)]
    found = subprocess.run([*command, "--out", str(out), "--max-batch", str(max_batch)], capture_output=True, text=True, timeout=120)
    return found.returncode, json.loads(found.stdout.splitlines()[-1])


async def test_a_runtime_serves_what_was_baked(zygotes, store, kit, tmp_path):
    source, model = export(store, kit)
    code, answer = bake(store, source, tmp_path / "out")
    assert (code, answer["build_class"]) == (0, build_class())
    for blob in answer["blobs"]:
        data = Path(blob["path"]).read_bytes()
        assert (artifacts.digest_of(data), len(data)) == (blob["digest"], blob["size"])
        store.put(data)
    assert answer["artifact"] in {blob["digest"] for blob in answer["blobs"]}
    assert (tmp_path / "out" / "artifact.json").read_bytes() == store.path(answer["artifact"]).read_bytes()
    baked = store.artifact(answer["artifact"])
    assert (baked.backend, baked.dialect, baked.max_batch, baked.build_class) == ("ort", "onnx", 4, build_class())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"artifact.json", *(blob["digest"] for blob in answer["blobs"])}
    runtime = await zygotes("ort").fork()
    generation = await runtime.load(answer["artifact"])
    client = await runtime.data()
    x = np.random.default_rng(1).standard_normal((3, kit.width)).astype(np.float32)
    assert np.abs(kit.output(await client.request(kit.header(generation), kit.request(x))) - model.expected(x)).max() < 1e-4


def test_baking_twice_gives_the_same_artifact_and_siblings_one_graph(store, kit, tmp_path):
    source, _ = export(store, kit, seed=1)
    other, _ = export(store, kit, seed=2)
    first, second = bake(store, source, tmp_path / "a")[1], bake(store, source, tmp_path / "b")[1]
    assert first["artifact"] == second["artifact"]
    sibling = bake(store, other, tmp_path / "c")[1]

    def graph(folder: str):
        return artifacts.decode((tmp_path / folder / "artifact.json").read_bytes()).graph

    assert sibling["artifact"] != first["artifact"]
    assert graph("a") == graph("c")


def test_what_cannot_be_baked_says_why_and_leaves_no_artifact(store, kit, tmp_path):
    source, _ = export(store, kit)
    served = kit.linear(store, "ort").artifact
    code, answer = bake(store, served, tmp_path / "a")
    assert (code, answer["kind"]) == (1, InvalidInput.kind)
    assert "backend onnx" in answer["message"]
    assert bake(store, source, tmp_path / "b", max_batch=0)[1]["kind"] == InvalidInput.kind
    weight = store.artifact(source).tensors[0].digest
    path = store.path(weight)
    path.chmod(0o644)
    path.write_bytes(bytes(path.stat().st_size))
    code, answer = bake(store, source, tmp_path / "c")
    assert (code, answer["kind"]) == (1, DataCorrupted.kind)
    assert weight in answer["message"]
    assert not list(tmp_path.glob("*/artifact.json"))


async def test_bfloat16_answers_are_refused_at_load_not_at_run(zygotes, store, kit):
    runtime = await zygotes("ort").fork()
    artifact = store.artifact(kit.linear(store, "ort").artifact)
    output = replace(artifact.signature.outputs[0], datatype="BF16")
    wrong = replace(artifact, signature=replace(artifact.signature, outputs=(output,)))
    with pytest.raises(Unsupported, match="BF16"):
        await runtime.load(store.put_artifact(wrong))
