"""What batch jobs need from outside, as Protocols. What is not `async` blocks and runs in worker threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from tessera.domain.ids import JobId, TrustDomain
from tessera.domain.objectives import Objectives
from tessera.domain.records import BatchRecord
from tessera.domain.signature import Signature
from tessera.profiler.batch.core.answers import Answers
from tessera.profiler.batch.core.checkpoint import InputVersion, PartNote
from tessera.profiler.batch.core.locations import Location
from tessera.profiler.batch.core.rows import Array, Portion


class Source(Protocol):
    """An input, opened. Read from front to back; going back opens it again."""

    @property
    def rows(self) -> int: ...

    def read(self, first: int, most: int) -> Portion:
        """Rows from `first` on, `most` of them at most and one at least. Raises: DataCorrupted, Unavailable."""
        ...

    def close(self) -> None: ...


OpenFile = Callable[[], BinaryIO]
ReadPart = Callable[[PartNote], bytes]


class FileFormat(Protocol):
    def open_source(self, open_file: OpenFile, signature: Signature, count: bool) -> Source:
        """Reads as little as tells whether the file suits the signature. `count`: `rows` is needed, even if that means to read it all.

        Raises: InvalidInput: names the array, column or line, and what it must be. DataCorrupted: it is no file of this format.
        """
        ...

    def encode(self, answers: Answers) -> bytes:
        """A part. Raises: InvalidInput: the format cannot hold these outputs."""
        ...

    def join(self, target: BinaryIO, parts: Sequence[PartNote], read: ReadPart) -> Iterator[None]:
        """Writes all parts into one file; yields between pieces of work."""
        ...


class Storage(Protocol):
    """What lies below a trust domain's roots. Every method checks that, and raises Unavailable when the storage fails."""

    def check(self, field: str, place: Location) -> None:
        """Raises: PermissionDenied: it is not below a root, links followed."""
        ...

    def version(self, place: Location) -> InputVersion | None:
        """None: there is no such file."""
        ...

    def names(self, folder: Location) -> dict[str, int]:
        """Names and sizes of the files in a folder, those aside that are not written to the end; none where it is not there."""
        ...

    def open(self, place: Location) -> BinaryIO:
        """Raises: NotFound."""
        ...

    def read(self, place: Location) -> bytes: ...

    def put(self, place: Location, data: bytes) -> None:
        """The file appears whole and replaces what was there, or does not appear; durable on a local disk."""
        ...

    def write(self, place: Location, pieces: Callable[[BinaryIO], Iterator[None]]) -> Iterator[tuple[int, str] | None]:
        """As `put`, for what `pieces` writes bit by bit. Yields between pieces; at last the size and BLAKE3 digest. Closed early, it leaves
        nothing."""
        ...

    def remove(self, folder: Location, names: Sequence[str]) -> None:
        """Removes files, and the folder where it is empty then."""
        ...

    def sweep(self, beside: Location, own: Callable[[str], bool]) -> None:
        """Removes what writes that were killed have left in the folder of `beside`, of files whose names are `own`."""
        ...


@dataclass(frozen=True, slots=True)
class Described:
    """`resolved`: what a model reference stands for now, its version said; "" for a task. `max_batch`: what every ready variant takes."""

    resolved: str
    signature: Signature
    max_batch: int


class Models(Protocol):
    async def describe(self, trust_domain: TrustDomain, model: str) -> Described:
        """Looks a model reference or `task:NAME` up.

        Raises: ModelNotFound, VersionNotFound, VariantNotFound; FailedPrecondition: nothing of it can serve.
        """
        ...


class Inferences(Protocol):
    async def infer(
        self, trust_domain: TrustDomain, model: str, inputs: Mapping[str, Array], objectives: Objectives, budget_s: float
    ) -> Mapping[str, Array]:
        """One request through a gateway. Raises: TesseraError, the gateway's; Unavailable when no gateway has announced itself."""
        ...

    async def close(self) -> None: ...


Change = Callable[[BatchRecord], BatchRecord | None]
"""From the record as it is to the record as it shall be; None where nothing is to be written."""


class Batches(Protocol):
    """The jobs' records. Every method raises Unavailable when etcd does not answer."""

    async def get(self, trust_domain: TrustDomain, job_id: JobId) -> BatchRecord:
        """Raises: NotFound."""
        ...

    async def all_of(self, trust_domain: TrustDomain) -> list[BatchRecord]: ...

    async def create(self, job: BatchRecord) -> None:
        """Raises: Conflict."""
        ...

    async def change(self, trust_domain: TrustDomain, job_id: JobId, change: Change) -> BatchRecord:
        """Reads, changes and writes, and begins again where somebody wrote meanwhile. Raises: NotFound; Conflict after many tries."""
        ...

    async def delete(self, job: BatchRecord) -> None: ...
