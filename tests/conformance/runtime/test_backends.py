"""What every backend must do. One of another package is tried where the package is installed, and changes nothing here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tessera.domain.artifact import PREPACKED
from tessera.domain.errors import DataCorrupted, Internal, InvalidInput
from tessera.runtime import backends
from tessera.runtime.blobs import ArtifactBlobs
from tessera.runtime.measure import synthetic_inputs
from tessera.tensorstore import artifact as artifacts
from tessera.tensorstore.mapping import BlobMap

OTHERS = backends.others()
"""Of other packages."""
BACKENDS = ("aten", "ort", "aoti", *OTHERS)
FLAVOURS = {name: flavour for flavour, names in backends.FLAVOURS.items() for name in names} | OTHERS
MODELS = {name: ("bert",) if name == "aoti" else ("resnet18", "bert") for name in BACKENDS}
"""Backend -> what it is tried on. Compiling takes a minute of a core for each model."""

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_model = pytest.mark.parametrize(("backend", "model"), [(backend, model) for backend in BACKENDS for model in MODELS[backend]])
with_resnet18 = pytest.mark.parametrize("backend", [backend for backend in BACKENDS if "resnet18" in MODELS[backend]])
same_bytes = pytest.mark.parametrize("backend", ["aten", "ort"])
"""Builds whose bytes follow from the model alone; AOTInductor writes its own paths into them."""


def agrees(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert set(got) == set(want)
    for name, expected in want.items():
        assert got[name].shape == expected.shape
        assert got[name].dtype == expected.dtype
        assert np.abs(got[name] - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


@each_model
def test_agrees_with_eager_at_every_batch(backend, model, models, open_artifact):
    opened = open_artifact(models[model].artifacts[backend])
    for batch in (1, 2, 3, 4):
        inputs = models[model].inputs(batch, batch)
        agrees(opened.run(inputs), models[model].eager(inputs))


@each_model
def test_same_inputs_give_the_same_bits(backend, model, models, open_artifact):
    opened = open_artifact(models[model].artifacts[backend])
    inputs = models[model].inputs(2, 5)
    first, second = opened.run(inputs), opened.run(inputs)
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


@each_model
def test_joined_equals_apart(backend, model, models, open_artifact):
    opened = open_artifact(models[model].artifacts[backend])
    inputs = models[model].inputs(4, 6)
    joined = opened.run(inputs)
    apart = [opened.run({name: array[row : row + 1] for name, array in inputs.items()}) for row in range(4)]
    agrees(joined, {name: np.concatenate([part[name] for part in apart]) for name in joined})


@with_resnet18
def test_two_models_side_by_side(backend, models, open_artifact):
    opened = {name: open_artifact(models[name].artifacts[backend]) for name in MODELS[backend]}
    for seed in (1, 2):
        for name in MODELS[backend]:
            inputs = models[name].inputs(1, seed)
            agrees(opened[name].run(inputs), models[name].eager(inputs))


@each_model
def test_sharing_off_gives_the_same_bits(backend, model, models, open_artifact):
    inputs = models[model].inputs(1, 9)
    shared = open_artifact(models[model].artifacts[backend]).run(inputs)
    private = open_artifact(models[model].artifacts[backend], private=True)
    assert private.blobs.mapped_bytes == 0
    answers = private.run(inputs)
    assert all(shared[name].tobytes() == answers[name].tobytes() for name in shared)


@each_model
def test_opened_again_over_kept_bytes_gives_the_same_bits(backend, model, models, open_artifact, backend_of):
    """What parking an instance does: the session goes, the mappings stay."""
    opened = open_artifact(models[model].artifacts[backend])
    inputs = models[model].inputs(2, 5)
    first = opened.run(inputs)
    for _ in range(3):
        opened.loaded.close()
        opened.loaded.close()
        with pytest.raises(Internal, match="closed"):
            opened.run(inputs)
        opened.blobs.forget_derived()
        again = backend_of(backend).load(opened.artifact, models[model].artifacts[backend], opened.blobs)
        opened = replace(opened, loaded=again)
        answers = opened.run(inputs)
        assert all(first[name].tobytes() == answers[name].tobytes() for name in first)
    again.close()


@same_bytes
def test_siblings_have_one_graph(backend, models, sibling, store):
    def graph(digest):
        return artifacts.decode((store / "blobs" / digest).read_bytes()).graph

    assert graph(models["bert"].artifacts[backend]) == graph(sibling[backend])
    assert models["bert"].artifacts[backend] != sibling[backend]


@each_backend
def test_a_swapped_tensor_is_refused_by_name(backend, models, store, backend_of):
    """Same bytes, another shape: the graph's own word is what counts."""
    digest = models["bert"].artifacts[backend]
    artifact = artifacts.decode((store / "blobs" / digest).read_bytes())
    place, ref = next((place, ref) for place, ref in enumerate(artifact.tensors) if len(ref.shape) == 2 and ref.shape[0] != ref.shape[1])
    tensors = list(artifact.tensors)
    tensors[place] = replace(ref, shape=ref.shape[::-1])
    wrong = replace(artifact, tensors=tuple(tensors))
    blobs = ArtifactBlobs(store, wrong, BlobMap(), False, False)
    with pytest.raises(DataCorrupted, match=ref.slot.replace(".", r"\.")):
        backend_of(backend).load(wrong, digest, blobs)
    fewer = replace(artifact, tensors=artifact.tensors[:place] + artifact.tensors[place + 1 :])
    blobs = ArtifactBlobs(store, fewer, BlobMap(), False, False)
    with pytest.raises(DataCorrupted, match=ref.slot.replace(".", r"\.")):
        backend_of(backend).load(fewer, digest, blobs)


@each_backend
def test_inputs_that_do_not_fit_each_other_are_the_callers_fault(backend, models, open_artifact):
    opened = open_artifact(models["bert"].artifacts[backend])
    sound = models["bert"].inputs(1, 1)
    shorter = [{name: sound[name][:, :-1]} for name in ("token_type_ids", "attention_mask")]
    too_long = {name: np.ones((1, 600), np.int64) for name in sound}
    for wrong in (*shorter, too_long, {"input_ids": sound["input_ids"] + 100_000}):
        with pytest.raises(InvalidInput):
            opened.run(sound | wrong)
        agrees(opened.run(sound), models["bert"].eager(sound))  # nothing of it is left


@each_model
def test_synthetic_inputs_run(backend, model, models, open_artifact):
    opened = open_artifact(models[model].artifacts[backend])
    for batch in (1, 3):
        answers = opened.loaded.run(synthetic_inputs(opened.artifact.signature, batch))
        assert all(tensor.array.shape[0] == batch and np.isfinite(tensor.array).all() for tensor in answers.values())


MEMORY = """
import asyncio, json, sys
from pathlib import Path
from tessera.clock import SystemClock
from tessera.runtime import memory
from tessera.runtime.loads import LoadRequest
from tessera.runtime.manager import InstanceManager, RuntimeConfig
from tessera.runtime.measure import RowLimits, synthetic_inputs
from tessera.tensorstore import artifact as artifacts

async def main(flavour, store, run_folder, digest, private):
    store = Path(store)
    config = RuntimeConfig("r", flavour, "default", store, Path(run_folder), private=private)
    config.folder.mkdir()
    manager = InstanceManager(config, SystemClock())
    await manager.start()
    artifact = artifacts.decode((store / "blobs" / digest).read_bytes())
    digests = [blob.digest for blob in artifact.blobs()]
    figures = []
    for _ in range(5):
        before = memory.anonymous_bytes()
        answer = await manager.load(LoadRequest("i", 1, "m@1/v", digest))
        await manager.measure(["i"], 1, RowLimits(0.0, 2))
        loaded = memory.anonymous_bytes()
        maps = sum(name in Path("/proc/self/maps").read_text() for name in digests)
        released = await manager.unload("i", 0)
        await manager.trim()
        after = memory.anonymous_bytes()
        left = sum(name in Path("/proc/self/maps").read_text() for name in digests)
        figures.append([before, loaded, after, maps, left, sorted(released) == sorted(digests), answer.mapped_bytes])
    await manager.close(0)
    print(json.dumps(figures))

asyncio.run(main(*sys.argv[1:5], sys.argv[5] == "private"))
"""


@with_resnet18
@pytest.mark.parametrize("sharing", ["shared", "private"])
def test_unload_gives_the_memory_back(backend, sharing, models, store, tmp_path):
    """ResNet-18 has 47 MB of weights: private ones are there and gone again; shared ones never count, and their maps go. What lays its
    weights out anew, and says so, has them once more.

    Counted are anonymous bytes: pages of libraries turn private when another process that has them ends, which is nobody's doing here.
    """
    digest = models["resnet18"].artifacts[backend]
    artifact = artifacts.decode((store / "blobs" / digest).read_bytes())
    weights = artifact.tensor_bytes
    command = [sys.executable, "-c", MEMORY, FLAVOURS[backend], str(store), str(tmp_path), digest, sharing]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    figures = json.loads(found.stdout)
    assert len(figures) == 5
    # The allocator warms up over the first rounds and keeps what it has; whatever a load left behind would be there three times over.
    # OpenVINO may keep what it laid out anew of one model that is gone, from any of the rounds on (backends/openvino/README.md).
    laid_out = weights if PREPACKED in artifact.options else 0
    assert figures[4][2] - figures[1][2] < (4 << 20) + laid_out
    for before, loaded, _, maps, left, released, mapped_bytes in figures[1:]:  # the first load also warms the allocator
        assert released
        assert left == 0
        if sharing == "shared":
            assert maps > 15
            assert mapped_bytes == weights
            assert loaded - before < (24 << 20) + laid_out
        else:
            assert maps == 0
            assert mapped_bytes == 0
            assert loaded - before > weights - (8 << 20)  # the allocator fills what it kept of the round before first


def test_every_backend_has_a_flavour_and_a_name():
    assert set(FLAVOURS) == {"identity", *BACKENDS}


PRELOAD = """
import os
from tessera.runtime import backends
backends.preload("FLAVOUR")
print(len(os.listdir("/proc/self/task")))
"""


@pytest.mark.parametrize("flavour", backends.FLAVOURS)
def test_what_is_done_before_a_fork_starts_no_thread(flavour):
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ORT_DISABLE_TELEMETRY"), "1")
    command = [sys.executable, "-c", PRELOAD.replace("FLAVOUR", flavour)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | single)
    assert (found.returncode, found.stdout.strip()) == (0, "1"), found.stderr


def test_baked_attention_is_one_operator(models, store):
    import onnx

    artifact = artifacts.decode((store / "blobs" / models["bert"].artifacts["ort"]).read_bytes())
    graph = onnx.load_model_from_string((store / "blobs" / artifact.graph.digest).read_bytes()).graph
    found = [node.op_type for node in graph.node]
    assert found.count("Attention") == 2
    assert "Softmax" not in found


def test_a_compiled_program_shares_every_tensor_with_the_flat_one(models, store):
    def tensors(backend):
        artifact = artifacts.decode((store / "blobs" / models["bert"].artifacts[backend]).read_bytes())
        return {ref.digest for ref in artifact.large_tensors()}

    assert tensors("aoti")
    assert tensors("aoti") <= tensors("aten")


def test_a_compiled_program_is_never_asked_for_lengths_that_it_does_not_know(models, open_artifact):
    """Its code trusts the caller: what is too long for the position embedding would be read from beyond it."""
    opened = open_artifact(models["bert"].artifacts["aoti"])
    with pytest.raises(InvalidInput, match=r"dimension 1 must be from 1 to 512"):
        opened.run({name: np.ones((1, 600), np.int64) for name in models["bert"].inputs(1, 1)})
    with pytest.raises(InvalidInput, match=r"dimension 0 must be from 1"):
        opened.run({name: np.ones((0, 4), np.int64) for name in models["bert"].inputs(1, 1)})
