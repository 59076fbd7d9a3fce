"""What the registry needs from outside, as interfaces. Adapters implement them; tests have fakes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tessera.domain.accuracy import Agreement
from tessera.domain.artifact import Artifact, Blob
from tessera.domain.ids import BuildClass, Digest, TrustDomain
from tessera.domain.records import Evaluation, NodeRecord
from tessera.registry.core.manifest import SourceFile
from tessera.registry.core.source import BuilderCall

OnProgress = Callable[[str, float], None]
"""(message, fraction 0..1 of the import)."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What the sandbox made, lying below `folder` under its digests. `aten` is None for what came as ONNX;
    `onnx` is None where that export failed, with `onnx_reason`. One of them is always there."""

    folder: Path
    source_kind: str
    aten: Digest | None
    onnx: Digest | None
    onnx_reason: str
    blobs: tuple[Blob, ...]
    notes: tuple[str, ...]
    agreement: Agreement | None = None
    """Of the model itself on its evaluation set; None without one."""


@dataclass(frozen=True, slots=True)
class Sets:
    """Where the evaluation set and the calibration set lie, and the metric."""

    evaluation: Path | None = None
    metric: str = ""
    calibration: Path | None = None


class Importer(Protocol):
    async def run(self, job_folder: Path, source: Path, builder: BuilderCall | None, sets: Sets, on_progress: OnProgress) -> Imported:
        """Imports in a subprocess that may do nothing but compute and write below `job_folder`; checks the sets, and scores on one.

        Raises:
            TesseraError: what is wrong with the source, or with the import.
        """
        ...


class IncomingFile(Protocol):
    """A file on its way: `write` in order, then `finish`; `discard` leaves nothing."""

    digest: Digest

    def write(self, offset: int, data: bytes) -> None:
        """Raises: InvalidInput when a piece is out of order or the file grows beyond its size; ResourceExhausted when the disk is full."""
        ...

    def finish(self) -> None:
        """Durable and visible when it returns. Raises: InvalidInput when the bytes have another digest; ResourceExhausted as `write`."""
        ...

    def discard(self) -> None: ...


class Uploads(Protocol):
    """Uploaded files by trust domain and digest."""

    def missing(self, domain: TrustDomain, files: Sequence[SourceFile]) -> list[Digest]:
        """Digests that were not uploaded yet, each once, in the order of the files."""
        ...

    def expect(self, domain: TrustDomain, files: Sequence[SourceFile]) -> None:
        """Remembers names and sizes for messages and limits until the files have arrived."""
        ...

    def receive(self, domain: TrustDomain, digest: Digest) -> IncomingFile:
        """Begins a file. Raises: ResourceExhausted when the disk is full."""
        ...

    def arrived(self, domain: TrustDomain, digest: Digest) -> None: ...

    def sweep(self, older_than_unix_s: float, keep: Iterable[tuple[TrustDomain, Digest]]) -> int:
        """Removes files not used since then, but `keep`; returns the bytes freed."""
        ...

    def lay_out(self, domain: TrustDomain, files: Sequence[SourceFile], folder: Path) -> None:
        """Makes `folder` with the files under their paths, read-only.

        Raises:
            FailedPrecondition: a file was not uploaded; names it.
            InvalidInput: a file has another size than the manifest says.
        """
        ...


class Blobs(Protocol):
    """The repository as the registry uses it. Its calls may take long and run in threads."""

    async def artifact(self, digest: Digest) -> Artifact:
        """Raises: NotFound; DataCorrupted; Unsupported: it was written in a later format."""
        ...

    async def read(self, digest: Digest) -> bytes:
        """A small blob (a graph). Raises: NotFound; DataCorrupted."""
        ...

    async def store(self, blobs: Sequence[Blob], folder: Path) -> None:
        """Moves blobs that lie in `folder` under their digests into the repository; durable when it returns."""
        ...

    async def put_bytes(self, data: bytes) -> Digest: ...

    async def has(self, digest: Digest) -> bool: ...

    async def delete(self, digests: Sequence[Digest]) -> int:
        """Bytes freed."""
        ...

    async def listing(self) -> list[Digest]: ...


@dataclass(frozen=True, slots=True)
class BakeOrder:
    """What a node is to build: a variant of `export` by `recipe`, scored on the evaluation set, its ranges from the calibration set."""

    job_id: str
    export: Digest
    max_batch: int
    recipe: str
    evaluation: Evaluation | None = None
    calibration: Blob | None = None


@dataclass(frozen=True, slots=True)
class BakeProgress:
    message: str


@dataclass(frozen=True, slots=True)
class BakeBlob:
    """A piece of a new blob; pieces of one blob follow one another."""

    digest: Digest
    offset: int
    data: bytes
    size_bytes: int


@dataclass(frozen=True, slots=True)
class BakeDone:
    """`agreement`: how it compares with the export; `notes`: what users should know about it."""

    artifact: Digest
    build_class: BuildClass
    agreement: Agreement
    notes: str = ""


BakeEvent = BakeProgress | BakeBlob | BakeDone


class Baker(Protocol):
    def bake(self, node: NodeRecord, order: BakeOrder, timeout_s: float) -> AsyncGenerator[BakeEvent, None]:
        """In the node's store of the record's trust domain. Closed early, it ends the baking.

        Raises:
        Unavailable: the node is gone or does not answer.
        TesseraError: the build failed.
        """
        ...
