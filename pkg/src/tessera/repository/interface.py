"""The contract of a repository: durable blobs by digest. The conformance suite is `tessera.testing.conformance_repository`.

Bytes are found through `locate` alone, so that where they lie may change (packed pages) without a reader noticing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from tessera.domain.ids import Digest
from tessera.tensorstore.interface import BytesLike


@dataclass(frozen=True, slots=True)
class Piece:
    """`length` bytes at `offset` of the object at the path `object` below the repository's root."""

    object: str
    offset: int
    length: int


class RepositoryReader(Protocol):
    def locate(self, digest: Digest) -> list[Piece]:
        """Where a blob's bytes lie, in order.

        Raises:
            NotFound: it is not in the repository.
        """
        ...

    def open_reader(self, digest: Digest, *, verify: bool = True) -> Generator[bytes, None, None]:
        """The blob in chunks of at most 1 MiB. With `verify` it ends in `DataCorrupted` when what was read has another digest;
        a caller that hashes anyway switches it off. Who stops early closes it.

        Raises:
            NotFound: it is not in the repository (raised by the call, not by the first chunk).
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
