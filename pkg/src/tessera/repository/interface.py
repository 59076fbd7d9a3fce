"""The contract of a repository: durable blobs by digest. The conformance suite is `tessera.testing.conformance_repository`.

Bytes are found through `locate` alone, so that where they lie may change (packed pages) without a reader noticing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from tessera.domain.ids import Digest
from tessera.domain.source import Source
from tessera.tensorstore.interface import BytesLike, Writer


@dataclass(frozen=True, slots=True)
class Piece:
    """`length` bytes at `offset` of the object at the path `object` below the repository's root."""

    object: str
    offset: int
    length: int


class RepositoryReader(Protocol):
    @property
    def range_bytes(self) -> int:
        """How much is well read at a time here: enough that asking costs little beside it."""
        ...

    def locate(self, digest: Digest) -> list[Piece]:
        """Where a blob's bytes lie, in order.

        Raises:
            NotFound: it is not in the repository.
            Unavailable: the storage does not answer; the other calls alike.
        """
        ...

    def open_reader(self, digest: Digest, *, verify: bool = True) -> Generator[bytes, None, None]:
        """The blob in chunks of at most 1 MiB. With `verify` it ends in `DataCorrupted` when what was read has another digest;
        a caller that hashes anyway switches it off. Who stops early closes it.

        Raises:
            NotFound: it is not in the repository (raised by the call, not by the first chunk).
        """
        ...

    def read_range(self, digest: Digest, pieces: Sequence[Piece], offset: int, length: int) -> bytes:
        """So many bytes of a blob that `locate` found in `pieces`; not verified. Several threads may read ranges of one.

        Raises:
            NotFound: it is not in the repository any more.
            DataCorrupted: it ends before.
            Unavailable: the storage does not answer.
        """
        ...

    def read(self, digest: Digest) -> bytes:
        """The whole of a small blob, verified.

        Raises:
            NotFound: it is not in the repository.
            DataCorrupted: its bytes have another digest.
        """
        ...

    def has(self, digest: Digest) -> bool: ...

    def verify(self, digest: Digest) -> bool:
        """Whether the stored bytes still have this digest (reads all of them).

        Raises:
            NotFound: it is not in the repository.
        """
        ...

    def digests(self) -> Iterator[tuple[Digest, int]]:
        """Every blob and its size in bytes."""
        ...


class RepositoryWriter(Protocol):
    def put(self, digest: Digest, chunks: Iterable[BytesLike]) -> bool:
        """Stores a blob; when this returns it is durable. False: it was there already (`chunks` may then not have been read).

        Raises:
            InvalidInput: `digest` is none.
            DataCorrupted: the chunks have another digest; nothing is kept.
            ResourceExhausted: the storage is full; nothing is kept.
            Unavailable: the storage does not answer.
        """
        ...

    def put_bytes(self, data: BytesLike) -> Digest: ...

    def delete(self, digest: Digest) -> int:
        """Removes a blob; returns the bytes freed, 0 when it was not there. Only the registry calls it, after its reference check."""
        ...

    def sweep(self) -> int:
        """Removes what writers that died left unfinished; returns how many files. To be called before the first `put`."""
        ...


class BlobRepository(RepositoryReader, RepositoryWriter, Protocol):
    """What `tessera.repository.Repository` implements."""


class SourceSession(Protocol):
    """What one fetch takes from other nodes. For several threads at a time; a context manager that hangs up at its end."""

    def find(self, digest: Digest, neighbours: Iterable[Source]) -> None:
        """Asks each of `neighbours` at most once whether it has the blob; those that do are sources of this fetch too. Before the other
        calls, by one thread."""
        ...

    def size_of(self, digest: Digest) -> tuple[int, Source] | None:
        """As the first source says that has it, and which one that is; None where none has it or answers."""
        ...

    def bring(self, writer: Writer, moved: Callable[[int], None]) -> tuple[Source, ...]:
        """Appends as much of the writer's blob as the sources give, which may be nothing; `moved` hears of each part. Returns who gave.

        Raises:
            ResourceExhausted: the store's file system is full.
        """
        ...

    def blame(self, sources: Iterable[Source], reason: str) -> None:
        """What these gave was wrong: they are not asked again for a while."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class BlobSources(Protocol):
    """Other nodes. `tessera.peer.Peers` implements it."""

    def session(self, sources: Iterable[Source], check: Callable[[], None]) -> SourceSession:
        """`sources` in the order in which they are to be asked. `check` is called between parts; what it raises ends the call."""
        ...
