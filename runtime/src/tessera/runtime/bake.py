"""Makes a variant of an exported ONNX graph (or of a flat program) for this machine's build class, by a recipe.

    python -m tessera.runtime.bake --source ARTIFACT_FILE --store STORE --out FOLDER --max-batch N [--recipe NAME]
                                   [--evaluation NPZ --metric NAME] [--calibration NPZ]

The recipe (`tessera.runtime.recipes`) makes a graph whose weights are all external; every one becomes a tensor of its own (small ones in
the pack). What was built is opened as a runtime opens it and compared with the export. Blobs are written into FOLDER under their digests,
the artifact also as `artifact.json`. On stdout: one JSON object a line, progress as `{"event": "bake", ...}`, the last without `event`: the
answer or `{"kind", "message"}`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.domain.accuracy import EXACT_ERROR, MIN_CALIBRATION_SAMPLES, Agreement
from tessera.domain.artifact import ALONE, Artifact, Blob, TensorRef
from tessera.domain.errors import Internal, InvalidInput, TesseraError
from tessera.domain.ids import BuildClass, Digest
from tessera.domain.signature import ROWS_MIX
from tessera.runtime.users import become

if TYPE_CHECKING:  # what imports numpy and ONNX Runtime waits until `main` has set the environment
    from tessera.evaluation import EvaluationSet
    from tessera.runtime.backends.interface import BlobSource, Loaded
    from tessera.runtime.blobs import ArtifactBlobs
    from tessera.runtime.evaluating import Run
    from tessera.runtime.recipes.base import Built, Work
    from tessera.runtime.recipes.calibration import Calibration

Progress = Callable[[str, float], None]
"""Step in words and the share that is done, 0 to 1."""

_LOSSY_SAMPLES = 32
"""Generated inputs on which a build that may differ from the export is compared with it, beside those of every build."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to bake: the artifact in the file `source`, whose blobs are in `store`, into the folder `out`. Sets are `.npz` files."""

    source: Path
    store: Path
    out: Path
    max_batch: int
    recipe: str = "ort-fp32"
    evaluation: Path | None = None
    metric: str = ""
    calibration: Path | None = None


@dataclass(frozen=True, slots=True)
class Baked:
    artifact: Digest
    build_class: BuildClass
    blobs: tuple[Blob, ...]
    """Everything that was written, the artifact's own blob included."""
    agreement: Agreement
    notes: str


def bake(order: Order, progress: Progress) -> Baked:
    """Builds, compares, writes.

    Raises:
        InvalidInput: the artifact is no export (backend `onnx`), `max_batch` is below 1, there is no such recipe or metric, or a set does
            not fit the signature.
        Unsupported: the recipe needs what is not here, or cannot do the program.
        NotFound, DataCorrupted: a blob is not in the store or is not what it should be.
        Internal: ONNX Runtime failed, or a build that has to agree with the export within 1e-4 does not.
    """
    from tessera.runtime import agreement, classes, recipes
    from tessera.runtime.blobs import ArtifactBlobs
    from tessera.runtime.recipes.base import Work
    from tessera.tensorstore import artifact as artifacts
    from tessera.tensorstore.mapping import BlobMap

    if order.max_batch < 1:
        raise InvalidInput("max_batch", order.max_batch, "must be at least 1")
    recipes.check(order.recipe)
    artifact = artifacts.decode(order.source.read_bytes())
    wanted_source = recipes.source_of(order.recipe)
    if artifact.backend != wanted_source:
        raise InvalidInput("source", artifact.backend, f"must be an artifact of backend {wanted_source} for {order.recipe}")
    recipes.check_here(order.recipe, classes.build_class())
    progress("mapping", 0.0)
    evaluation = _evaluation(order, artifact)
    blobs = ArtifactBlobs(order.store, artifact, BlobMap(), private=False, verify=True)
    order.out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="bake-", dir=order.out))
    tempfile.tempdir = str(scratch)  # the quantiser's own files
    try:
        progress("running the source", 0.05)
        reference = _reference(artifact, blobs, scratch)
        cases = agreement.cases(artifact.signature, min(order.max_batch, 2), reference)
        work = Work(
            artifact=artifact, graph=blobs.graph(), tensors=blobs.tensors(), cases=cases, build_class=classes.build_class(),
            calibrate=lambda: _calibration(order, artifact, evaluation), scratch=scratch, progress=progress,
        )  # fmt: skip
        built = recipes.make(order.recipe, work)
        progress("writing", 0.7)
        writer = _BlobWriter(order.out)
        refs, pack = _write_tensors(writer, built.tensors)
        baked = replace(
            artifact,
            backend=built.backend,
            dialect=built.dialect,
            precision=built.precision,
            options=built.options,
            graph=writer.put(built.graph),
            pack=pack,
            tensors=refs,
            build_class=work.build_class,
            max_batch=order.max_batch if artifact.signature.batched else 1,
        )
        progress("comparing", 0.8)
        loaded, run = _opened(built.backend, baked, _Baking(built), scratch)
        found = _compared(order, work, run, built, evaluation, reference)
        joins = baked.max_batch == 1 or (built.joins and (built.exact or not agreement.rows_mix(artifact.signature, run)))
        loaded.close()
    finally:
        tempfile.tempdir = None
        shutil.rmtree(scratch, ignore_errors=True)
    notes = built.notes
    if not joins:
        baked = replace(baked, options=(*baked.options, ALONE))
        notes = "; ".join(filter(None, (notes, ROWS_MIX)))
    data = artifacts.encode(baked)
    digest = writer.put(data).digest
    (order.out / "artifact.json").write_bytes(data)
    progress("done", 1.0)
    return Baked(digest, work.build_class, tuple(writer.written.values()), found, notes)


def _reference(artifact: Artifact, blobs: ArtifactBlobs, scratch: Path) -> Run:
    """What the source itself answers, not optimised."""
    if artifact.backend == "onnx":
        from tessera.runtime.baked_graph import runner

        return runner(blobs.graph(), blobs.tensors(), scratch)
    return _opened(artifact.backend, artifact, blobs, scratch)[1]


def _opened(backend: str, artifact: Artifact, blobs: BlobSource, scratch: Path) -> tuple[Loaded, Run]:
    """An artifact as a runtime opens it, and answers by output name."""
    from tessera.runtime import backends
    from tessera.runtime.backends.interface import BackendConfig

    loaded = backends.create(backend, BackendConfig(1, scratch)).load(artifact, Digest(""), blobs)
    return loaded, lambda inputs: {name: tensor.array for name, tensor in loaded.run(inputs).items()}


def _evaluation(order: Order, artifact: Artifact) -> EvaluationSet | None:
    if order.evaluation is None:
        return None
    from tessera.evaluation import read_set

    return read_set(order.evaluation.read_bytes(), artifact.signature)


def _calibration(order: Order, artifact: Artifact, evaluation: EvaluationSet | None) -> Calibration:
    """The calibration set; else the evaluation set's inputs, where they are enough; else generated ones."""
    from tessera.evaluation import read_inputs
    from tessera.runtime.recipes import calibration

    if order.calibration is not None:
        given = read_inputs(order.calibration.read_bytes(), artifact.signature)
        return calibration.of_set(given.inputs, given.samples, artifact.signature.batched, "the calibration set")
    if evaluation is not None and evaluation.samples >= MIN_CALIBRATION_SAMPLES:
        return calibration.of_set(evaluation.inputs, evaluation.samples, artifact.signature.batched, "the evaluation set")
    return calibration.generated(artifact.signature)


def _compared(order: Order, work: Work, run: Run, built: Built, evaluation: EvaluationSet | None, reference: Run) -> Agreement:
    """Compares the build, opened as a runtime would, with the export, on the evaluation set where there is one.

    Raises:
        Internal: it has to agree within 1e-4 and does not; names the output where that is known.
    """
    from tessera.runtime.agreement import compared, disagreement, generated

    signature = work.artifact.signature
    cases = list(work.cases)
    if built.exact:
        for case in cases:
            name = disagreement(run(case.inputs), case.wanted)
            if name is not None:
                raise Internal(f"output {name} of the baked graph differs from the export's by more than {EXACT_ERROR}")
    elif evaluation is None:
        cases += generated(signature, _LOSSY_SAMPLES, min(order.max_batch, 8), reference)
    if evaluation is None:
        found = compared(run, cases, signature.batched)
    else:
        from tessera.runtime.evaluating import evaluate

        work.progress(f"scoring by {order.metric}", 0.85)
        found = evaluate(evaluation, order.metric, signature, order.max_batch, reference, run)
    if built.exact and not found.exact:
        raise Internal(f"an output of the baked graph differs from the export's by {found.max_error:.3g}, allowed is {EXACT_ERROR}")
    return found


class _Baking:
    """The blobs of a build that is still in memory."""

    def __init__(self, built: Built) -> None:
        self._built = built

    def graph(self) -> bytes:
        return self._built.graph

    def tensors(self) -> Mapping[str, Any]:
        return {name: array for name, (array, _) in self._built.tensors.items()}

    def derived(self, make: Any) -> Any:
        return make()


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when it was baked, 1 when not (the last line says why)."""
    parser = argparse.ArgumentParser(prog="tessera.runtime.bake", description="Makes a variant of an exported ONNX graph.")
    parser.add_argument("--source", required=True, type=Path)
    parser.add_argument("--store", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--max-batch", required=True, type=int)
    parser.add_argument("--recipe", default="ort-fp32")
    parser.add_argument("--evaluation", type=Path, default=None, help="an evaluation set (.npz); --metric says how it is scored")
    parser.add_argument("--metric", default="")
    parser.add_argument("--calibration", type=Path, default=None, help="inputs (.npz) to take ranges of activations from")
    parser.add_argument("--user", type=int, default=None, help="the user id to run as (this process starts as root)")
    found = parser.parse_args(arguments)
    if found.user is not None:
        become(found.user)
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"

    def progress(step: str, share: float) -> None:
        _say({"event": "bake", "step": step, "share": share})

    try:
        order = Order(
            found.source, found.store, found.out, found.max_batch, found.recipe, found.evaluation, found.metric, found.calibration
        )
        baked = bake(order, progress)
    except TesseraError as error:
        _say({"kind": error.kind, "message": str(error)})
        return 1
    except Exception as error:
        _say({"kind": "internal", "message": f"{type(error).__name__}: {error}"[:2000]})
        return 1
    blobs = [{"digest": blob.digest, "size": blob.size_bytes, "path": str(found.out / blob.digest)} for blob in baked.blobs]
    answer = {"artifact": baked.artifact, "build_class": baked.build_class, "blobs": blobs}
    _say({**answer, "agreement": asdict(baked.agreement), "notes": baked.notes})
    return 0


def _say(line: Mapping[str, object]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
