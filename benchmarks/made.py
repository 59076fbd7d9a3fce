"""Artifacts of benchmark models made without a registry: imported and baked as the registry does it, siblings of them by hundreds.

    python -m benchmarks.made MODEL...

A sibling has the artifact's graph and other weights: its trunk is the same bytes, what is private to it is drawn anew. It is made from the
baked tensors, so that a hundred of them take seconds and not hours.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.models import BY_NAME, SEED, BenchModel
from tessera.domain.artifact import Artifact, TensorRef
from tessera.domain.ids import Digest
from tessera.repository import Repository
from tessera.repository.artifacts import decode, store_artifact, store_tensors

FOLDER = Path(".demo/bench-made").resolve()
MAX_BATCH = 8
NOISE = 0.01
"""Of every number itself (a variance stays positive): a sibling answers like its trunk, and yet no byte of it is the same."""


def repository() -> Repository:
    return Repository(f"file://{FOLDER / 'repository'}")


def made(model: BenchModel) -> dict[str, Digest]:
    """Backend (`aten`, `ort`) -> the model's artifact in `repository()`; made in a process of its own when it is not there yet."""
    record = FOLDER / f"{model.name}.json"
    if not record.exists():
        print(f"making {model.name}", flush=True)
        subprocess.run([sys.executable, "-W", "ignore", "-m", "benchmarks.made", model.name], check=True)
    return {backend: Digest(digest) for backend, digest in json.loads(record.read_text()).items()}


@dataclass(frozen=True)
class Sibling:
    """`own_bytes`: what no other sibling and not the original has, its own artifact aside."""

    artifact: Digest
    own_bytes: int


def siblings(model: BenchModel, backend: str, count: int, private: float | Collection[str], first: int = 0) -> list[Sibling]:
    """`count` siblings of a made artifact, the same ones whenever `first` (the number of the first) and `private` are the same.

    Args:
        private: the share (0..1) of the bytes of its large tensors that each has for itself, taken from the output's end; its small tensors
            are its own in any case. Or the slots of the tensors that are its own, and no others.
    """
    store = repository()
    artifact = decode(store.read(made(model)[backend]))
    slots = set(_share(artifact, private) if isinstance(private, float) else private)
    with _Bytes(store, artifact) as source:
        return [_sibling(store, artifact, source, slots, index) for index in range(first, first + count)]


def _share(artifact: Artifact, share: float) -> list[str]:
    """Small tensors, and of the large ones the last that fit into the share."""
    left = share * sum(ref.size_bytes for ref in artifact.large_tensors())
    slots = [ref.slot for ref in artifact.tensors if ref.pack_offset is not None]
    for ref in reversed(artifact.large_tensors()):
        if ref.size_bytes <= left:
            slots.append(ref.slot)
            left -= ref.size_bytes
    return slots


class _Bytes:
    """The tensors of an artifact as arrays, read once."""

    def __init__(self, store: Repository, artifact: Artifact) -> None:
        self._store = store
        self._pack = store.read(artifact.pack.digest) if artifact.pack else b""
        self._read: dict[Digest, bytes] = {}

    def __enter__(self) -> _Bytes:
        return self

    def __exit__(self, *error: object) -> None:
        self._read.clear()

    def of(self, ref: TensorRef) -> bytes:
        if ref.pack_offset is not None:
            return self._pack[ref.pack_offset : ref.pack_offset + ref.size_bytes]
        if ref.digest not in self._read:
            self._read[ref.digest] = self._store.read(ref.digest)
        return self._read[ref.digest]


def _sibling(store: Repository, artifact: Artifact, source: _Bytes, own: set[str], index: int) -> Sibling:
    draw = np.random.default_rng((SEED, index + 1))

    def data(ref: TensorRef) -> bytes:
        return _drawn(source.of(ref), draw) if ref.slot in own and ref.dtype == "FP32" else source.of(ref)

    stored = store_tensors(
        store,
        ((ref.slot, ref.dtype, ref.shape, data(ref)) for ref in artifact.tensors if ref.slot in own or ref.pack_offset is not None),
    )
    drawn = {ref.slot: ref for ref in stored.tensors}
    sibling = replace(artifact, pack=stored.pack, tensors=tuple(drawn.get(ref.slot, ref) for ref in artifact.tensors))
    known = {ref.digest for ref in artifact.tensors}
    fresh = {ref.digest: ref.size_bytes for ref in sibling.large_tensors() if ref.digest not in known}
    packed = sibling.pack.size_bytes if sibling.pack and sibling.pack != artifact.pack else 0
    return Sibling(store_artifact(store, sibling), sum(fresh.values()) + packed)


def _drawn(data: bytes, draw: np.random.Generator) -> bytes:
    array = np.frombuffer(data, np.float32)
    return (array * (1 + NOISE * draw.standard_normal(array.shape, dtype=np.float32))).astype(np.float32).tobytes()


def make(model: BenchModel) -> None:
    """Imports and bakes a model into the repository; what the registry and a node's baker do, in this process and one child."""
    from tessera.registry.importer.run import run
    from tessera.registry.importer.task import Builder, Task

    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock, tempfile.TemporaryDirectory(dir=FOLDER) as name:
        fcntl.flock(lock, fcntl.LOCK_EX)
        work = Path(name)
        source, out, baked = work / "source", work / "out", work / "baked"
        if model.seed is None:
            shutil.copytree(model.source, source)
            builder = None
        else:
            source.mkdir()
            builder = Builder(model.source, model.arguments, model.seed)
        found = run(Task(str(source), str(out), builder, (model.source,), MAX_BATCH), lambda message, share: None)
        if not found.onnx:
            raise SystemExit(f"{model.name} cannot be exported: {found.onnx_reason}")
        command = [sys.executable, "-m", "tessera.runtime.bake", "--source", str(out / "blobs" / found.onnx), "--store", str(out)]
        done = subprocess.run([*command, "--out", str(baked), "--max-batch", str(MAX_BATCH)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{model.name} cannot be baked: {done.stdout}{done.stderr}")
        answer = json.loads(done.stdout.splitlines()[-1])
        store = repository()
        for path in (*(out / "blobs").iterdir(), *(Path(blob["path"]) for blob in answer["blobs"])):
            store.put(Digest(path.name), [path.read_bytes()])
        partial = FOLDER / f"{model.name}.new"
        partial.write_text(json.dumps({"aten": found.aten, "ort": answer["artifact"]}))
        os.replace(partial, FOLDER / f"{model.name}.json")


if __name__ == "__main__":
    for each in sys.argv[1:]:
        make(BY_NAME[each])
