"""What a node does for the registry beside serving: baking. One job of a node at a time, at low priority, and none of it in a runtime that
serves. Measuring for the profiler is `measuring`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tessera.domain.accuracy import Agreement
from tessera.domain.artifact import Blob
from tessera.domain.errors import Unavailable
from tessera.domain.ids import BuildClass, Digest, InstanceId
from tessera.node_agent.loops.larder import Larder, holder_of
from tessera.node_agent.ports import RandomBytes

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class BakeOrder:
    """What the registry wants: a variant of `export` by `recipe`. Sets are `.npz` blobs of the repository."""

    export: Digest
    max_batch: int
    recipe: str
    evaluation: Blob | None = None
    metric: str = ""
    calibration: Blob | None = None

    @property
    def sets(self) -> tuple[Blob, ...]:
        return tuple(blob for blob in (self.evaluation, self.calibration) if blob is not None)


@dataclass(frozen=True, slots=True)
class BakeFiles:
    """The order with everything that it names lying in the store: the export's artifact, the sets, and where to write."""

    source: Path
    out: Path
    max_batch: int
    recipe: str
    evaluation: Path | None = None
    metric: str = ""
    calibration: Path | None = None


@dataclass(frozen=True, slots=True)
class BakedBlob:
    digest: Digest
    size_bytes: int
    path: Path


@dataclass(frozen=True, slots=True)
class Baked:
    artifact: Digest
    build_class: BuildClass
    blobs: tuple[BakedBlob, ...]
    agreement: Agreement
    notes: str = ""


@dataclass(frozen=True, slots=True)
class BlobChunk:
    """At most 1 MiB of a blob of `size_bytes`, from `offset` on."""

    digest: Digest
    offset: int
    data: bytes
    size_bytes: int


class Baker(Protocol):
    def bake(self, files: BakeFiles) -> AsyncGenerator[str | Baked, None]:
        """Words of progress, then the result; closing it early ends the baking. Raises: TesseraError, why it could not be baked."""
        ...


class Jobs:
    """Baking for one trust domain on one node."""

    def __init__(
        self,
        larder: Larder,
        baker: Baker,
        repository_has: Callable[[Digest], bool],
        scratch: Callable[[], Path],
        remove: Callable[[Path], None],
        blob_path: Callable[[Digest], Path],
        random_bytes: RandomBytes,
        turn: asyncio.Lock,
    ) -> None:
        """`turn`: whose turn it is among all jobs of the node."""
        self._larder = larder
        self._baker = baker
        self._repository_has = repository_has
        self._scratch = scratch
        self._remove = remove
        self._blob_path = blob_path
        self._random_bytes = random_bytes
        self._turn = turn
        self._holder: InstanceId | None = None

    @property
    def holders(self) -> frozenset[str]:
        """Who holds blobs for the job under way."""
        return frozenset() if self._holder is None else frozenset({holder_of(self._holder)})

    async def bake(self, order: BakeOrder) -> AsyncGenerator[str | BlobChunk | Baked, None]:
        """Progress, then chunks of the blobs that the repository lacks or does not answer for, then the result.

        Raises:
            NotFound, DataCorrupted, ResourceExhausted: the export or a set cannot be brought in.
            TesseraError: why it could not be baked.
        """
        if self._turn.locked():
            yield "waiting for another job of this node"
        async with self._turn:
            holder = self._holder = InstanceId(f"bake-{self._random_bytes(6).hex()}")
            out = self._scratch()
            try:
                yield "fetching the export"
                await self._larder.bring(order.export, holder, order.sets)
                async with aclosing(self._baker.bake(self._files(order, out))) as steps:
                    reached = True
                    async for step in steps:
                        if isinstance(step, str):
                            yield step
                            continue
                        for blob in step.blobs:
                            # Asked once: each question to a repository that is away can take as long as its client has patience.
                            known = await self._known(blob) if reached else None
                            reached = known is not None
                            if not known:
                                async for chunk in _chunks(blob):
                                    yield chunk
                        yield step
            finally:
                self._larder.release(holder)
                self._holder = None
                self._remove(out)

    async def _known(self, blob: BakedBlob) -> bool | None:
        """Whether the repository has it; None: it does not answer here. Who asked for the blob may well reach it."""
        try:
            return await asyncio.to_thread(self._repository_has, blob.digest)
        except Unavailable:
            return None

    def _files(self, order: BakeOrder, out: Path) -> BakeFiles:
        evaluation, calibration = (None if blob is None else self._blob_path(blob.digest) for blob in (order.evaluation, order.calibration))
        return BakeFiles(self._blob_path(order.export), out, order.max_batch, order.recipe, evaluation, order.metric, calibration)


async def _chunks(blob: BakedBlob) -> AsyncIterator[BlobChunk]:
    """Read in a thread, a chunk at a time."""
    offset = 0
    while offset < blob.size_bytes or offset == 0:
        data = await asyncio.to_thread(_read, blob.path, offset)
        yield BlobChunk(blob.digest, offset, data, blob.size_bytes)
        if not data:
            return
        offset += len(data)


def _read(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(CHUNK_BYTES)
