from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tessera.domain.accuracy import EXACT_ERROR
from tessera.domain.errors import DataCorrupted, InvalidInput, Unsupported
from tessera.domain.ids import BuildClass
from tessera.domain.signature import ROWS_MIX
from tessera.plugins import plugins
from tessera.runtime import backends
from tessera.runtime.classes import build_class
from tessera.runtime.recipes import GROUP
from tessera.tensorstore import artifact as artifacts


def export(store, kit, seed: int = 0, depth: int = 2):
    """An export (backend `onnx`) of a small linear model, and the model."""
    model = kit.linear(store, "ort", seed=seed, depth=depth)
    artifact = replace(store.artifact(model.artifact), backend="onnx", build_class=None)
    return store.put_artifact(artifact), model


BAKER = ("-m", "tessera.runtime.bake")
UNAWARE = """
import sys
from dataclasses import replace
from tessera.runtime import bake
from tessera.runtime.recipes import int8_dynamic
make = int8_dynamic.make
int8_dynamic.make = lambda work: replace(make(work), joins=True)
sys.exit(bake.main(sys.argv[1:]))
"""
"""A recipe as it would be that does not say that its rows mix."""
AS_CLASS = """
import sys
from tessera.runtime import bake, classes
classes.build_class = lambda: sys.argv[1]
sys.exit(bake.main(sys.argv[2:]))
"""
BFLOAT16 = BuildClass("x86_64-avx512_bf16-ort1")
"""Torch multiplies bfloat16 on any CPU, if slowly: this machine plays one that has it."""


def bake(
    store,
    source: str,
    out: Path,
    max_batch: int = 4,
    recipe: str = "ort-fp32",
    options: Sequence[str] = (),
    played: BuildClass | None = None,
    program: Sequence[str] = BAKER,
) -> tuple[int, dict]:
    """`played`: the class that this machine is taken for."""
    program = program if played is None else ["-c", AS_CLASS, played]
    command = [sys.executable, *program, "--source", str(store.path(source)), "--store", str(store.root)]
    command += ["--out", str(out), "--max-batch", str(max_batch), "--recipe", recipe, *options]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
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


@pytest.mark.parametrize(("recipe", "options"), [("ort-int8", ("prepacked",)), ("ort-int8-dynamic", ("prepacked", "alone"))])
async def test_int8_is_made_measured_and_served(zygotes, store, kit, tmp_path, recipe, options):
    source, model = export(store, kit, depth=1)
    code, answer = bake(store, source, tmp_path / "out", recipe=recipe)
    assert code == 0
    for blob in answer["blobs"]:
        store.put(Path(blob["path"]).read_bytes())
    baked = store.artifact(answer["artifact"])
    assert (baked.precision, baked.options) == ("int8", options)
    weights = [ref for ref in baked.tensors if ref.dtype == "INT8" and ref.pack_offset is None]
    assert {ref.size_bytes for ref in weights} == {kit.width**2}  # a byte each, by digest
    agreement = answer["agreement"]
    assert 0.99 < agreement["cosine"] < 1.0
    assert agreement["max_error"] > EXACT_ERROR
    assert agreement["samples"] >= 32
    runtime = await zygotes("ort").fork()
    generation = await runtime.load(answer["artifact"])
    client = await runtime.data()
    x = np.random.default_rng(1).standard_normal((3, kit.width)).astype(np.float32)
    wanted = model.expected(x)
    got = kit.output(await client.request(kit.header(generation), kit.request(x)))
    assert 0 < np.abs(got - wanted).max() < 0.1 * np.abs(wanted).max()


async def test_what_is_quantised_as_it_comes_has_one_answer_whoever_asks_beside_it(zygotes, store, kit, tmp_path):
    source, _ = export(store, kit, depth=1)
    answer = bake(store, source, tmp_path / "out", recipe="ort-int8-dynamic")[1]
    assert answer["notes"] == ROWS_MIX
    for blob in answer["blobs"]:
        store.put(Path(blob["path"]).read_bytes())
    runtime = await zygotes("ort").fork()
    generation = await runtime.load(answer["artifact"], max_delay_us=200_000)
    client = await runtime.data()
    quiet = np.random.default_rng(1).standard_normal((1, kit.width)).astype(np.float32)
    loud = 1000 * np.random.default_rng(2).standard_normal((1, kit.width)).astype(np.float32)

    async def ask(x: np.ndarray):
        return await client.request(kit.header(generation), kit.request(x))

    alone = kit.output(await ask(quiet))
    beside, other = await asyncio.gather(ask(quiet), ask(loud))
    np.testing.assert_array_equal(kit.output(beside), alone)
    assert (beside.batch_size, other.batch_size) == (1, 1)
    assert (await ask(np.concatenate([quiet, loud]))).batch_size == 2


def test_a_recipe_that_does_not_know_that_rows_mix_is_found_out(store, kit, tmp_path):
    source, _ = export(store, kit)
    known = bake(store, source, tmp_path / "a", recipe="ort-int8-dynamic")[1]
    found = bake(store, source, tmp_path / "b", recipe="ort-int8-dynamic", program=["-c", UNAWARE])[1]
    assert found["artifact"] == known["artifact"]
    assert found["notes"] == ROWS_MIX


@pytest.mark.parametrize("recipe", ["ort-int8", "ort-int8-dynamic"])
def test_quantised_siblings_share_graph_and_weights(store, kit, tmp_path, recipe):
    """Trunk and calibration alike, another head: what is shared is shared in int8 too."""
    found = []
    for number in (1, 2):
        source = store.put_artifact(with_other_last_bias(store, export(store, kit, depth=1)[0], number))
        answer = bake(store, source, tmp_path / str(number), recipe=recipe)[1]
        found.append(artifacts.decode((tmp_path / str(number) / answer["artifact"]).read_bytes()))
    first, second = found
    assert first.graph == second.graph
    assert {ref.digest for ref in first.large_tensors()} == {ref.digest for ref in second.large_tensors()}
    assert first.pack != second.pack


def with_other_last_bias(store, export_digest: str, number: int):
    """The export with other small tensors and the same large ones."""
    artifact = store.artifact(export_digest)
    assert artifact.pack is not None
    pack = np.frombuffer(store.path(artifact.pack.digest).read_bytes(), np.float32) + np.float32(number)
    blob = store.put(pack.tobytes())
    tensors = tuple(
        ref
        if ref.pack_offset is None
        else replace(ref, digest=artifacts.digest_of(pack.tobytes()[ref.pack_offset : ref.pack_offset + ref.size_bytes]))
        for ref in artifact.tensors
    )
    return replace(artifact, pack=blob, tensors=tensors)


def test_prepacked_has_the_bytes_of_fp32(store, kit, tmp_path):
    source, _ = export(store, kit)
    plain = bake(store, source, tmp_path / "a")[1]
    prepacked = bake(store, source, tmp_path / "b", recipe="ort-fp32-prepacked")[1]
    first, second = (artifacts.decode((tmp_path / name / "artifact.json").read_bytes()) for name in "ab")
    assert second == replace(first, options=("prepacked",))
    assert prepacked["artifact"] != plain["artifact"]
    assert prepacked["agreement"]["max_error"] <= EXACT_ERROR
    assert "not shared" in prepacked["notes"]


def test_calibration_and_evaluation_sets_are_used_and_named(store, kit, tmp_path):
    source, model = export(store, kit, depth=1)
    x = np.random.default_rng(2).standard_normal((40, kit.width)).astype(np.float32)
    labels = model.expected(x).argmax(axis=1)
    np.savez(tmp_path / "eval.npz", x=x, labels=labels)
    np.savez(tmp_path / "some.npz", x=x[:12])
    np.savez(tmp_path / "one.npz", x=x[:1])
    options = ["--evaluation", str(tmp_path / "eval.npz"), "--metric", "top1"]
    found = bake(store, source, tmp_path / "a", recipe="ort-int8", options=options)[1]
    assert found["notes"] == "calibrated on 40 samples of the evaluation set"
    assert found["agreement"]["samples"] == 40
    assert (found["agreement"]["metric"], found["agreement"]["reference_score"]) == ("top1", 1.0)
    assert 0.5 < found["agreement"]["score"] <= 1.0
    found = bake(store, source, tmp_path / "b", recipe="ort-int8", options=["--calibration", str(tmp_path / "some.npz")])[1]
    assert found["notes"] == "calibrated on 12 samples of the calibration set"
    code, found = bake(store, source, tmp_path / "c", recipe="ort-int8", options=["--calibration", str(tmp_path / "one.npz")])
    assert (code, found["kind"]) == (1, InvalidInput.kind)
    assert found["message"] == "calibration set samples 1: at least 8"
    code, found = bake(store, source, tmp_path / "d", recipe="ort-int4")
    assert (code, found["kind"]) == (1, InvalidInput.kind)
    assert "ort-int8-dynamic" in found["message"]


async def test_an_option_that_no_backend_knows_is_refused_at_load(zygotes, store, kit):
    runtime = await zygotes("ort").fork()
    artifact = store.artifact(kit.linear(store, "ort").artifact)
    with pytest.raises(Unsupported, match="option 'upside-down'"):
        await runtime.load(store.put_artifact(replace(artifact, options=("upside-down",))))


async def test_bfloat16_is_made_of_the_flat_program_measured_and_served(zygotes, store, kit, tmp_path):
    flat = kit.linear(store, "aten", depth=2)
    code, answer = bake(store, flat.artifact, tmp_path / "out", recipe="aten-bf16", played=BFLOAT16)
    assert code == 0, answer
    for blob in answer["blobs"]:
        store.put(Path(blob["path"]).read_bytes())
    made = store.artifact(answer["artifact"])
    assert (made.backend, made.dialect, made.precision, made.build_class) == ("aten", "aten", "bf16", BFLOAT16)
    assert (made.options, answer["notes"]) == (("autocast",), "")
    (weight,) = made.large_tensors()
    assert (weight.dtype, weight.size_bytes) == ("BF16", 2 * kit.width**2)
    agreement = answer["agreement"]
    assert 0.999 < agreement["cosine"] < 1.0
    assert agreement["max_error"] > EXACT_ERROR
    assert agreement["samples"] >= 32
    runtime = await zygotes("aten").fork()
    generation = await runtime.load(store.put_artifact(replace(made, build_class=build_class())))  # else it says whose it is
    client = await runtime.data()
    x = np.random.default_rng(1).standard_normal((3, kit.width)).astype(np.float32)
    wanted = flat.expected(x)
    got = kit.output(await client.request(kit.header(generation), kit.request(x)))
    assert got.dtype == np.float32
    assert 0 < np.abs(got - wanted).max() < 0.02 * np.abs(wanted).max()


def test_siblings_share_their_weights_in_bfloat16(store, kit, tmp_path):
    found = []
    for number in (1, 2):
        flat = kit.linear(store, "aten", bias=np.full(kit.width, number, np.float32))
        answer = bake(store, flat.artifact, tmp_path / str(number), recipe="aten-bf16", played=BFLOAT16)[1]
        found.append(artifacts.decode((tmp_path / str(number) / answer["artifact"]).read_bytes()))
    first, second = found
    assert first.graph == second.graph
    assert {ref.digest for ref in first.large_tensors()} == {ref.digest for ref in second.large_tensors()}
    assert first.pack != second.pack


def test_bfloat16_is_not_made_where_the_cpu_has_none_nor_of_an_export(store, kit, tmp_path):
    flat = kit.linear(store, "aten").artifact
    code, answer = bake(store, flat, tmp_path / "a", recipe="aten-bf16", played=BuildClass("x86_64-avx2-ort1"))
    assert (code, answer["kind"]) == (1, Unsupported.kind)
    assert answer["message"] == "aten-bf16 needs a CPU that multiplies bfloat16: class x86_64-avx2-ort1 does not"
    code, answer = bake(store, export(store, kit)[0], tmp_path / "b", recipe="aten-bf16", played=BFLOAT16)
    assert (code, answer["kind"]) == (1, InvalidInput.kind)
    assert "must be an artifact of backend aten for aten-bf16" in answer["message"]
    assert not list(tmp_path.glob("*/artifact.json"))


async def test_a_compiled_program_is_made_of_the_flat_one_and_served_by_a_forked_runtime(zygotes, store, kit, tmp_path):
    model = kit.linear(store, "aten")
    code, answer = bake(store, model.artifact, tmp_path / "out", recipe="aoti-fp32")
    assert code == 0, answer
    for blob in answer["blobs"]:
        store.put(Path(blob["path"]).read_bytes())
    flat, compiled = store.artifact(model.artifact), store.artifact(answer["artifact"])
    assert (compiled.backend, compiled.dialect, compiled.precision, compiled.build_class) == ("aoti", "aoti", "fp32", build_class())
    assert {ref.digest for ref in compiled.tensors} == {ref.digest for ref in flat.tensors}
    runtime = await zygotes("aten").fork()
    generations = [await runtime.load(artifact, name) for artifact, name in ((answer["artifact"], "compiled"), (model.artifact, "flat"))]
    large = compiled.large_tensors()[0].digest
    assert runtime.maps().count(large) == 1  # one mapping for both
    client = await runtime.data()
    for rows in (1, 4):
        x = np.random.default_rng(rows).standard_normal((rows, kit.width)).astype(np.float32)
        for generation in generations:
            got = kit.output(await client.request(kit.header(generation), kit.request(x)))
            np.testing.assert_allclose(got, model.expected(x), atol=1e-4)


def test_where_there_is_no_compiler_the_build_says_so(store, kit, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    code, answer = bake(store, kit.linear(store, "aten").artifact, tmp_path / "out", recipe="aoti-fp32")
    assert (code, answer["kind"]) == (1, Unsupported.kind)
    assert "aoti-fp32 needs a C++ compiler on the node: no-such-compiler is not on PATH" in answer["message"]


@pytest.mark.parametrize("recipe", plugins(GROUP))
async def test_a_runtime_serves_what_a_recipe_of_another_package_makes(recipe, zygotes, store, kit, tmp_path):
    source, model = export(store, kit)
    code, answer = bake(store, source, tmp_path / "out", recipe=recipe)
    assert code == 0, answer
    for blob in answer["blobs"]:
        store.put(Path(blob["path"]).read_bytes())
    baked = store.artifact(answer["artifact"])
    assert answer["agreement"]["max_error"] <= EXACT_ERROR
    zygote = zygotes(backends.others()[baked.backend])
    x = np.random.default_rng(1).standard_normal((3, kit.width)).astype(np.float32)
    for _ in range(2):  # both forked of one zygote
        runtime = await zygote.fork()
        generation = await runtime.load(answer["artifact"])
        client = await runtime.data()
        got = kit.output(await client.request(kit.header(generation), kit.request(x)))
        assert np.abs(got - model.expected(x)).max() < 1e-4
