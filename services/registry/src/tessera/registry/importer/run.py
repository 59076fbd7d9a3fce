"""One import from start to end: look, load, export, compare, store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tessera.domain.artifact import Artifact
from tessera.domain.errors import InvalidInput
from tessera.registry.importer import layout
from tessera.registry.importer.blobs import BlobFolder, store_tensors
from tessera.registry.importer.task import Made, Task
from tessera.repository.artifacts import encode

if TYPE_CHECKING:
    from tessera.registry.importer.export import Exported
    from tessera.registry.importer.loaded import Loaded

Say = Callable[[str, float], None]


def run(task: Task, say: Say) -> Made:
    """Imports the source of `task`. `say(message, fraction)` reports progress.

    Raises:
        TesseraError: names what is wrong with the source, or what is not supported and what would work.
    """
    source, out = Path(task.source), Path(task.out)
    layout.refuse_links(source)
    kind = "builder" if task.builder is not None else layout.source_kind(source)
    config = layout.check_hugging_face(source) if kind == "directory" else {}
    if task.builder is not None and task.builder.reference not in task.allowed_builders:
        raise InvalidInput("builder", task.builder.reference, f"must be one of {', '.join(task.allowed_builders)}")
    say("loading", 0.05)
    folder = BlobFolder(out / "blobs")
    scratch = out / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    if kind == "onnx":
        return _import_onnx(task, source, folder, scratch, say)
    loaded = _load(task, kind, source, config)
    say("exporting", 0.2)

    from tessera.registry.importer import sets
    from tessera.registry.importer.agreement import cases, check, flat_runner
    from tessera.registry.importer.export import export

    def agree(made: Exported) -> None:
        names = [spec.name for spec in made.signature.outputs]
        check("the flat program", flat_runner(made, scratch), cases(made.loaded), names)

    made = export(loaded, agree)
    agreement = sets.judged(task, made, lambda: flat_runner(made, scratch), say)
    say("storing tensors", 0.5)
    aten = _store_flat(made, folder, task.max_batch)
    onnx, reason = "", "not asked for"
    if task.make_onnx:
        say("exporting ONNX", 0.6)
        onnx, reason = _store_onnx(made, folder, scratch, task.max_batch)
    say("made", 1.0)
    return Made(kind, aten, onnx, reason, folder.listing(), tuple(made.loaded.notes), agreement)


def _load(task: Task, kind: str, source: Path, config: dict[str, object]) -> Loaded:
    if task.builder is not None:
        from tessera.registry.importer import builder

        return builder.load(task.builder, task.allowed_builders, sorted(p for p in source.rglob("*") if p.is_file()))
    if kind == "pt2":
        from tessera.registry.importer import pt2

        path = next(source.rglob("*.pt2"))
        return pt2.load(path, path.relative_to(source).as_posix())
    from tessera.registry.importer import hugging_face

    return hugging_face.load(source, config)


def _store_flat(made: Exported, folder: BlobFolder, max_batch: int) -> str:
    from tessera.registry.importer.dtypes import datatype_of, raw_bytes

    tensors, pack = store_tensors(
        folder, ((name, datatype_of(t.dtype, name), tuple(t.shape), raw_bytes(t)) for name, t in made.flat.tensors)
    )
    graph = folder.put(made.flat.graph)
    batch = max_batch if made.signature.batched else 1
    return folder.put(encode(Artifact("aten", "fp32", "aten", graph, pack, tensors, made.signature, None, batch))).digest


def _store_onnx(made: Exported, folder: BlobFolder, scratch: Path, max_batch: int) -> tuple[str, str]:
    """The digest of the export, or "" and why there is none: the version is served by `aten` alone then."""
    try:
        from tessera.registry.importer.agreement import cases, check
        from tessera.registry.importer.onnx_export import export_onnx, onnx_runner
        from tessera.registry.importer.onnx_graph import store_export

        graph = export_onnx(made.program, made.signature, made.loaded)
        names = [spec.name for spec in made.signature.outputs]
        check("the ONNX export", onnx_runner(graph, made.signature, scratch), cases(made.loaded), names)
    except MemoryError:
        raise
    except Exception as error:  # torch.onnx, onnxscript and ONNX Runtime raise classes of their own; each costs only this variant
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return "", f"ONNX export failed: {type(error).__name__}: {lines[0][:400] if lines else ''}"
    return store_export(graph, made.signature, folder, max_batch), ""


def _import_onnx(task: Task, source: Path, folder: BlobFolder, scratch: Path, say: Say) -> Made:
    """An ONNX file is its own export; there is no flat program of it."""
    from tessera.registry.importer import onnx_file, sets
    from tessera.registry.importer.onnx_graph import store_export

    path = next(source.rglob("*.onnx"))
    loaded = onnx_file.load(path, path.relative_to(source).as_posix(), scratch)
    sets.checked(task, loaded.signature)
    say("storing tensors", 0.5)
    onnx = store_export(loaded.graph, loaded.signature, folder, task.max_batch)
    say("made", 1.0)
    return Made("onnx", "", onnx, "", folder.listing(), loaded.notes)


def read_task(path: Path) -> Task:
    from tessera.registry.importer.task import decode_task

    try:
        return decode_task(path.read_bytes())
    except (ValueError, json.JSONDecodeError) as error:
        raise InvalidInput("task", str(path), str(error)) from None
