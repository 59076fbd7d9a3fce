"""Below which length tensors travel in the pack: make bench NAME=packing

The same artifacts with another threshold each: how many files a start opens and maps, how long that and the opening of the backend take in
a warm process (nothing kept from before), and what it costs: the pack is each sibling's own, so its bytes are shared with nobody; a small
file of its own fills whole pages.

    BENCH_MODELS=resnet50,bert-base BENCH_REPEATS=40 make bench NAME=packing
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.embedded import STATE, platform, register
from benchmarks.models import BY_NAME
from benchmarks.report import Report, median, percentile
from tessera.clock import SystemClock
from tessera.domain.artifact import PACK_THRESHOLD_BYTES, Artifact, Blob
from tessera.domain.ids import Digest
from tessera.repository import Repository
from tessera.runtime import backends
from tessera.runtime.backends.aten.program import read_plan
from tessera.runtime.backends.interface import Backend, BackendConfig
from tessera.runtime.blobs import ArtifactBlobs
from tessera.tensorstore.artifact import decode, encode
from tessera.tensorstore.local import LocalTensorStore
from tessera.tensorstore.mapping import BlobMap
from tessera.tensorstore.mount import prepare_store_folder, remove_store_folder
from tessera.tensorstore.pack import PackWriter
from tessera.testing.blobs import put

THRESHOLDS = (0, 256, 1024, 4096, 16384, 65536, 1 << 20)
VARIANTS = ("ort-fp32", "aten-fp32")
MIB = 1 << 20


def _put(store: LocalTensorStore, data: bytes) -> Blob:
    return Blob(put(store, data), len(data))


def repacked(found: Artifact, repository: Repository, store: LocalTensorStore, threshold: int) -> tuple[Digest, Artifact]:
    """The artifact with every tensor packed that is shorter than `threshold`; its blobs are in the store."""
    pack = repository.read(found.pack.digest) if found.pack else b""
    writer = PackWriter(threshold)
    for ref in found.tensors:
        at = ref.pack_offset
        data = repository.read(ref.digest) if at is None else pack[at : at + ref.size_bytes]
        if writer.add(ref.slot, ref.dtype, ref.shape, data).pack_offset is None:
            _put(store, data)
    tensors, packed = writer.finish()
    if found.graph:
        _put(store, repository.read(found.graph.digest))
    artifact = replace(found, tensors=tensors, pack=_put(store, packed) if packed else None)
    return _put(store, encode(artifact)).digest, artifact


def _open_ms(store: LocalTensorStore, digest: Digest, artifact: Artifact, backend: Backend, repeats: int) -> list[tuple[float, float]]:
    """(mapping, opening) in milliseconds, each time from nothing."""
    mapped = BlobMap()
    found = []
    for _ in range(repeats + 2):
        read_plan.cache_clear()
        begun = time.perf_counter()
        blobs = ArtifactBlobs(store.root, artifact, mapped, private=False, verify=False)
        there = time.perf_counter()
        loaded = backend.load(artifact, digest, blobs)
        ready = time.perf_counter()
        loaded.close()
        blobs.close()
        found.append(((there - begun) * 1e3, (ready - there) * 1e3))
    return found[2:]


def _wasted_bytes(store: LocalTensorStore, artifact: Artifact) -> int:
    """What the files take beyond their length."""
    seen = [(store.path(blob.digest).stat(), blob.size_bytes) for blob in artifact.blobs()]
    return sum(max(0, at.st_blocks * 512 - size) for at, size in seen)


def main() -> None:
    names = os.environ.get("BENCH_MODELS", "mobilenetv2_w1,resnet50,minilm,bert-base").split(",")
    repeats = int(os.environ.get("BENCH_REPEATS", "40"))
    artifacts: dict[tuple[str, str], Digest] = {}
    with platform() as client:
        for name in names:
            register(client, BY_NAME[name])
            for built in client.model(name).versions[0].variants:
                artifacts[name, built.key.variant] = Digest(built.artifact_digest)
    repository = Repository(str(STATE / "repository"))
    report = Report("packing")
    with tempfile.TemporaryDirectory() as scratch:
        point = Path(scratch) / "store"
        folder = prepare_store_folder(point, 4 << 30)
        store = LocalTensorStore(folder.path, 4 << 30, SystemClock())
        try:
            for variant in VARIANTS:
                backend = backends.create(variant.partition("-")[0], BackendConfig(1, Path(scratch)))
                backend.warm()
                for name in names:
                    found = decode(repository.read(artifacts[name, variant]))
                    for threshold in THRESHOLDS:
                        digest, artifact = repacked(found, repository, store, threshold)
                        times = _open_ms(store, digest, artifact, backend, repeats)
                        both = [sum(pair) for pair in times]
                        report.row(
                            model=name,
                            variant=variant,
                            threshold=threshold,
                            default="*" if threshold == PACK_THRESHOLD_BYTES else "",
                            files=len(artifact.blobs()),
                            map_ms=median([pair[0] for pair in times]),
                            open_ms=median([pair[1] for pair in times]),
                            both_p50_ms=median(both),
                            both_p90_ms=percentile(both, 0.9),
                            unshared_kib=(artifact.pack.size_bytes if artifact.pack else 0) / 1024,
                            pages_wasted_kib=_wasted_bytes(store, artifact) / 1024,
                        )
                    print(f"{name} {variant}: done", flush=True)
        finally:
            store.close()
            remove_store_folder(point)
    report.finish()


if __name__ == "__main__":
    main()
