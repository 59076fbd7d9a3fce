"""What is registered: a local folder (or one `.pt2` or `.onnx` file), or a builder reference. Hashing and sending, a piece at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tessera.api.registry.v1 import registry_pb2
from tessera.domain.errors import InvalidInput, NotFound

CHUNK_BYTES = 1 << 20

Progress = Callable[[int, int], None]
"""Called with (bytes sent, bytes to send)."""


@dataclass(frozen=True)
class DirectoryModel:
    """A Hugging Face directory, one `.pt2` or `.onnx` file, or the folder of an ONNX file with its external data."""

    path: Path


@dataclass(frozen=True)
class BuilderModel:
    """`package.module:callable` from the registry's allow-list, its arguments (JSON values), a seed for its weights or a file of them."""

    reference: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    weights: Path | None = None


Source = DirectoryModel | BuilderModel


def source_of(
    path_or_builder: str | os.PathLike[str],
    arguments: Mapping[str, Any] | None = None,
    seed: int | None = None,
    weights: Path | None = None,
) -> Source:
    """Tells a path from a builder reference: what exists is a path, what looks like `a.b:c` is a reference.

    Raises:
        NotFound: it is neither. InvalidInput: builder options were given with a path.
    """
    text = os.fspath(path_or_builder)
    path = Path(text).expanduser()
    if path.exists():
        if arguments or seed is not None or weights is not None:
            raise InvalidInput("builder options", text, "apply to a builder reference, this is a path")
        return DirectoryModel(path)
    module, colon, name = text.partition(":")
    if colon and name.replace(".", "").isidentifier() and all(part.isidentifier() for part in module.split(".")):
        return BuilderModel(text, dict(arguments or {}), seed, weights)
    raise NotFound(f"{text!r} is neither a path that exists nor a builder reference (package.module:callable)")


@dataclass(frozen=True)
class LocalFile:
    """A file to send: where it lies here, and how the registry will know it."""

    path: Path
    wire: registry_pb2.SourceFile


def _local_file(path: Path, name: str) -> LocalFile:
    import blake3

    hasher = blake3.blake3(max_threads=blake3.blake3.AUTO)
    hasher.update_mmap(path)
    return LocalFile(path, registry_pb2.SourceFile(path=name, size_bytes=path.stat().st_size, digest=hasher.hexdigest()))


def files_of(path: Path) -> list[LocalFile]:
    """Every regular file below a folder (or the one file), hashed, in path order. Hidden files and caches are left out.

    Raises:
        InvalidInput: a link points out of the folder, or there is nothing to send.
    """
    if path.is_file():
        return [_local_file(path, path.name)]
    root = path.resolve()
    found = []
    for file in sorted(path.rglob("*")):
        inner = file.relative_to(path)
        if any(part.startswith(".") or part == "__pycache__" for part in inner.parts) or file.is_dir():
            continue
        target = file.resolve()
        if not target.is_relative_to(root):
            raise InvalidInput("path", str(inner), f"is a link that leaves {path}")
        if target.is_file():
            found.append(_local_file(target, inner.as_posix()))
    if not found:
        raise InvalidInput("path", str(path), "has no files")
    return found


def local_files(source: Source) -> list[LocalFile]:
    if isinstance(source, DirectoryModel):
        return files_of(source.path)
    return files_of(source.weights) if source.weights is not None else []


@dataclass(frozen=True)
class Demands:
    """What the variants of a version are measured by and which are made; see `Client.register`."""

    evaluation: Path | None = None
    metric: str = ""
    allow_loss: float | None = None
    lossy: bool | None = None
    calibration: Path | None = None
    variants: Sequence[str] | None = None


@dataclass(frozen=True)
class Sets:
    """The files of `Demands`, hashed."""

    evaluation: LocalFile | None
    calibration: LocalFile | None

    @property
    def files(self) -> list[LocalFile]:
        return [file for file in (self.evaluation, self.calibration) if file is not None]


def sets_of(demands: Demands) -> Sets:
    """Raises: NotFound: a file does not exist."""
    evaluation, calibration = (
        None if path is None else _set_file(what, path)
        for what, path in (("evaluation set", demands.evaluation), ("calibration set", demands.calibration))
    )
    return Sets(evaluation, calibration)


def _set_file(what: str, path: Path) -> LocalFile:
    if not path.is_file():
        raise NotFound(f"{what} {str(path)!r} is no file")
    return _local_file(path, path.name)


def chunks(trust_domain: str, files: list[LocalFile], missing: set[str], progress: Progress) -> Iterator[registry_pb2.UploadFilesRequest]:
    """The upload stream: each missing file once, in chunks."""
    wanted = list({file.wire.digest: file for file in files if file.wire.digest in missing}.values())
    total = sum(file.wire.size_bytes for file in wanted)
    sent = 0
    for file in wanted:
        with file.path.open("rb") as stream:
            offset = 0
            while data := stream.read(CHUNK_BYTES):
                yield registry_pb2.UploadFilesRequest(trust_domain=trust_domain, digest=file.wire.digest, offset=offset, data=data)
                offset += len(data)
                sent += len(data)
                progress(sent, total)
        if offset == 0:
            yield registry_pb2.UploadFilesRequest(trust_domain=trust_domain, digest=file.wire.digest)


def register_request(
    trust_domain: str,
    name: str,
    source: Source,
    files: list[LocalFile],
    demands: Demands,
    sets: Sets,
    *,
    task: str,
    dataset: str,
    accuracy: float | None,
    wait: bool,
) -> registry_pb2.RegisterModelRequest:
    request = registry_pb2.RegisterModelRequest(trust_domain=trust_domain, name=name, task=task, dataset=dataset, wait_for_variants=wait)
    if accuracy is not None:
        request.accuracy = accuracy
    _demand(request, demands, sets)
    wire = [file.wire for file in files]
    if isinstance(source, DirectoryModel):
        request.directory.files.extend(wire)
        return request
    request.builder.reference = source.reference
    for key, value in source.arguments.items():
        request.builder.arguments[key] = json.dumps(value)
    if source.seed is not None:
        request.builder.seed = source.seed
    request.builder.weights.extend(wire)
    return request


def _demand(request: registry_pb2.RegisterModelRequest, demands: Demands, sets: Sets) -> None:
    if sets.evaluation is not None:
        request.evaluation.file.CopyFrom(sets.evaluation.wire)
    if demands.metric:
        request.evaluation.metric = demands.metric
    if sets.calibration is not None:
        request.calibration.CopyFrom(sets.calibration.wire)
    if demands.allow_loss is not None:
        request.allow_loss = demands.allow_loss
    if demands.lossy is not None:
        request.lossy = demands.lossy
    if demands.variants is not None:
        request.variants.SetInParent()
        request.variants.recipes.extend(demands.variants)
