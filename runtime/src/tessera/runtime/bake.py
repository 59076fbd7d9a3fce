"""Makes the `ort` build of an exported ONNX graph for this machine's build class.

    python -m tessera.runtime.bake --source ARTIFACT_FILE --store STORE --out FOLDER --max-batch N

ONNX Runtime optimises the graph once with everything on; every float initializer of the result becomes a tensor of its own (small ones
in the pack), and the graph is slimmed to what serving needs. Blobs are written into FOLDER under their digests, the artifact also as
`artifact.json`. On stdout: one JSON object a line, progress as `{"event": "bake", ...}`, the last without `event`: the answer or
`{"kind", "message"}`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.domain.artifact import Artifact, Blob, TensorRef
from tessera.domain.errors import Internal, InvalidInput, TesseraError
from tessera.domain.ids import BuildClass, Digest
from tessera.runtime.users import become

if TYPE_CHECKING:  # what imports numpy and ONNX Runtime waits until `main` has set the environment
    from tessera.runtime.agreement import Case
    from tessera.runtime.baked_graph import Optimised
    from tessera.runtime.blobs import ArtifactBlobs

_log = logging.getLogger(__name__)

Progress = Callable[[str, float], None]
"""Step in words and the share that is done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Baked:
    artifact: Digest
    build_class: BuildClass
    blobs: tuple[Blob, ...]
    """Everything that was written, the artifact's own blob included."""


def bake(source: Path, store: Path, out: Path, max_batch: int, progress: Progress) -> Baked:
    """Bakes the artifact in the file `source`, whose blobs are in `store`, into the folder `out`.

    Raises:
        InvalidInput: the artifact is no export (backend `onnx`), or `max_batch` is below 1.
        NotFound, DataCorrupted: a blob is not in the store or is not what it should be.
        Internal: ONNX Runtime failed, or the baked graph does not agree with the export within 1e-4.
    """
    from tessera.runtime import classes
    from tessera.runtime.blobs import ArtifactBlobs
    from tessera.tensorstore import artifact as artifacts
    from tessera.tensorstore.mapping import BlobMap

    if max_batch < 1:
        raise InvalidInput("max_batch", max_batch, "must be at least 1")
    artifact = artifacts.decode(source.read_bytes())
    if artifact.backend != "onnx":
        raise InvalidInput("source", artifact.backend, "must be an artifact of backend onnx")
    progress("mapping", 0.0)
    blobs = ArtifactBlobs(store, artifact, BlobMap(), private=False, verify=True)
    out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="bake-", dir=out))
    try:
        progress("running the export", 0.05)
        wanted = _wanted(artifact, blobs, min(max_batch, 2), scratch)
        graph, tensors = _optimised(blobs, wanted, scratch, progress)
        progress("writing", 0.5)
        writer = _BlobWriter(out)
        refs, pack = _write_tensors(writer, tensors)
        baked = replace(
            artifact,
            backend="ort",
            graph=writer.put(graph),
            pack=pack,
            tensors=refs,
            build_class=classes.build_class(),
            max_batch=max_batch if artifact.signature.batched else 1,
        )
        progress("comparing", 0.8)
        _compare(baked, graph, tensors, wanted, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    data = artifacts.encode(baked)
    digest = writer.put(data).digest
    (out / "artifact.json").write_bytes(data)
    progress("done", 1.0)
    assert baked.build_class is not None
    return Baked(digest, baked.build_class, tuple(writer.written.values()))


class _BlobWriter:
    """Files named by their digest, each complete or not there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.written: dict[Digest, Blob] = {}

    def put(self, data: bytes, digest: Digest | None = None) -> Blob:
        """Writes `data` unless it is here; `digest` where it is known already."""
        from tessera.tensorstore.artifact import digest_of

        digest = digest or digest_of(data)
        if digest not in self.written:
            fd, name = tempfile.mkstemp(prefix="blob-", dir=self._folder)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
            os.replace(name, self._folder / digest)
            self.written[digest] = Blob(digest, len(data))
        return self.written[digest]


def _write_tensors(writer: _BlobWriter, tensors: Mapping[str, tuple[Any, str]]) -> tuple[tuple[TensorRef, ...], Blob | None]:
    """Writes (array, datatype) by name: large ones as blobs, small ones into one pack, in order of name."""
    from tessera.tensorstore.pack import PackWriter

    packer = PackWriter()
    for name, (array, datatype) in sorted(tensors.items()):
        raw = array.tobytes()
        ref = packer.add(name, datatype, tuple(array.shape), raw)
        if ref.pack_offset is None:
            writer.put(raw, ref.digest)
    refs, pack = packer.finish()
    return refs, writer.put(pack) if pack is not None else None


def _wanted(artifact: Artifact, blobs: ArtifactBlobs, max_batch: int, scratch: Path) -> list[Case]:
    """What the export itself answers, not optimised."""
    from tessera.runtime import agreement
    from tessera.runtime.baked_graph import runner

    return agreement.cases(artifact.signature, max_batch, runner(blobs.graph(), blobs.tensors(), scratch))


def _optimised(blobs: ArtifactBlobs, wanted: list[Case], scratch: Path, progress: Progress) -> Optimised:
    """With attention fused where that is possible and agrees with the export, else without."""
    from tessera.runtime.agreement import disagreement
    from tessera.runtime.baked_graph import fuse_attention, optimise, runner

    fused = fuse_attention(blobs.graph(), blobs.tensors())
    if fused is not None:
        progress("optimising with fused attention", 0.1)
        try:
            graph, tensors = optimise(*fused, scratch)
            run = runner(graph, {name: array for name, (array, _) in tensors.items()}, scratch)
            if all(disagreement(run(case.inputs), case.wanted) is None for case in wanted):
                return graph, tensors
        except Exception as error:  # whatever ONNX Runtime makes of it: there is another way
            _log.info("attention cannot be fused: %s", error)
    progress("optimising", 0.3)
    return optimise(blobs.graph(), blobs.tensors(), scratch)


def _compare(baked: Artifact, graph: bytes, tensors: Mapping[str, tuple[Any, str]], wanted: list[Case], scratch: Path) -> None:
    """Opens the baked graph as a runtime would and compares it with the export."""
    from tessera.runtime.agreement import TOLERANCE, disagreement
    from tessera.runtime.backends.interface import BackendConfig
    from tessera.runtime.backends.ort.backend import OrtBackend

    class Baking:
        def graph(self) -> bytes:
            return graph

        def tensors(self) -> Mapping[str, Any]:
            return {name: array for name, (array, _) in tensors.items()}

        def derived(self, make: Any) -> Any:
            return make()

    loaded = OrtBackend(BackendConfig(1, scratch)).load(baked, Digest(""), Baking())
    for case in wanted:
        found = loaded.run(case.inputs)
        name = disagreement({name: tensor.array for name, tensor in found.items()}, case.wanted)
        if name is not None:
            raise Internal(f"output {name} of the baked graph differs from the export's by more than {TOLERANCE}")
    loaded.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when it was baked, 1 when not (the last line says why)."""
    parser = argparse.ArgumentParser(prog="tessera.runtime.bake", description="Bakes an exported ONNX graph for this build class.")
    parser.add_argument("--source", required=True, type=Path)
    parser.add_argument("--store", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--max-batch", required=True, type=int)
    parser.add_argument("--user", type=int, default=None, help="the user id to run as (this process starts as root)")
    found = parser.parse_args(arguments)
    if found.user is not None:
        become(found.user)
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"

    def progress(step: str, share: float) -> None:
        _say({"event": "bake", "step": step, "share": share})

    try:
        baked = bake(found.source, found.store, found.out, found.max_batch, progress)
    except TesseraError as error:
        _say({"kind": error.kind, "message": str(error)})
        return 1
    except Exception as error:
        _say({"kind": "internal", "message": f"{type(error).__name__}: {error}"[:2000]})
        return 1
    blobs = [{"digest": blob.digest, "size": blob.size_bytes, "path": str(found.out / blob.digest)} for blob in baked.blobs]
    _say({"artifact": baked.artifact, "build_class": baked.build_class, "blobs": blobs})
    return 0


def _say(line: Mapping[str, object]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
