"""The contract of a tensor store, cut by role: who reads, who brings blobs in, who holds them, who keeps it in order.

A blob is visible under its digest complete and read-only, or not at all. A blob that somebody holds is never reclaimed. Reclaiming
unlinks and never truncates, so whoever maps a file keeps valid bytes. The conformance suite is
`tessera.testing.conformance_tensorstore`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from tessera.domain.ids import Digest

BytesLike = bytes | bytearray | memoryview
"""Contiguous memory of any item type and shape."""


def flat(data: BytesLike) -> memoryview:
    """The memory of `data` as bytes in one dimension, without a copy (`cast` alone refuses views of no length)."""
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """What the store holds now.

    `used_bytes` = visible blobs + space reserved by writers + quarantined files + `unlinked_bytes`. `pinned_bytes` counts each held
    blob once; `unlinked_bytes` are files that were reclaimed but are still mapped by a process. `ingested_bytes` and what was reclaimed
    (because room was needed, because nobody used it for its keep-alive, because memory ran short) count since opening.
    `pulled_bytes` are those of `ingested_bytes` that came from sockets, which is from other nodes.
    """

    budget_bytes: int
    used_bytes: int
    pinned_bytes: int
    incoming_bytes: int
    unlinked_bytes: int
    quarantined_bytes: int
    files: int
    quarantined: int
    ingested_bytes: int
    huge_pages: bool
    sharing: bool
    reclaimed_room_bytes: int = 0
    reclaimed_expired_bytes: int = 0
    reclaimed_pressure_bytes: int = 0
    pulled_bytes: int = 0

    @property
    def reclaimed_bytes(self) -> int:
        return self.reclaimed_room_bytes + self.reclaimed_expired_bytes + self.reclaimed_pressure_bytes


@dataclass(frozen=True, slots=True)
class Worth:
    """What a blob is worth to its node: how many registered variants need it, and what bringing it in again takes (None: unknown)."""

    sharing_count: int
    refetch_ms: float | None


WorthOf = Callable[[Digest, int], Worth]
"""(digest, size in bytes) -> worth. Called under the store's lock, from any thread: it must neither wait nor call the store."""


@dataclass(frozen=True, slots=True)
class MappedFile:
    """One file of a store in the address space of one process, as the kernel shows it. `name` is a digest (or a writer's temporary file);
    `length_bytes` reaches from the file's start to the end of what is mapped, in whole pages. `deleted`: it has no name any more."""

    pid: int
    name: str
    inode: int
    length_bytes: int
    deleted: bool


class Writer(Protocol):
    """Brings one blob in. Used by one thread (but see `write_at`), as a context manager: leaving it without `commit` discards all."""

    @property
    def digest(self) -> Digest: ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def written_bytes(self) -> int:
        """Bytes that are there from the beginning on, without a gap."""
        ...

    def write(self, chunk: BytesLike) -> None:
        """Appends and hashes.

        Raises:
            DataCorrupted: more than `size_bytes` arrived; nothing is kept.
            ResourceExhausted: the file system under the store is full; nothing is kept.
        """
        ...

    def write_at(self, offset: int, chunk: BytesLike) -> None:
        """As `write`, anywhere: for several threads, each with a range of its own. Ranges do not overlap. After an error the writer
        is to be left, when all these threads have ended.

        Raises: as `write`.
        """
        ...

    def pull(self, source: int, most_bytes: int) -> int:
        """Moves at most so many bytes from a connected socket to where `write` would append, not through this process's memory.
        Returns how many; 0: the other end has closed, or the blob is complete.

        Raises:
            ResourceExhausted: as `write`.
            OSError: the socket's; EAGAIN when its timeout (SO_RCVTIMEO) has passed. The writer goes on from `written_bytes`.
        """
        ...

    def commit(self) -> bool:
        """Makes the blob visible. False: another writer was first, which is as good.

        Raises:
            DataCorrupted: size or digest differ; nothing is kept.
        """
        ...

    def abort(self) -> None:
        """Discards what was written; nothing after `commit`. May be called again."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class TensorReader(Protocol):
    def has(self, digest: Digest) -> bool: ...

    def path(self, digest: Digest) -> Path:
        """The blob's file: complete, mode 0444.

        Raises:
            NotFound: it is not in the store.
        """
        ...

    def digests(self) -> dict[Digest, int]:
        """Every visible blob and its size in bytes."""
        ...


class TensorIngester(Protocol):
    def ingest(self, digest: Digest, size_bytes: int, holder: str | None = None) -> Writer:
        """Reserves room and opens a writer. With `holder` the blob is held by it from the instant it is visible.

        Two writers of one digest are two files, and each takes its own room until one of them has won: to wait for the other one
        instead is the caller's business (`tessera.repository.fetch`), because only the caller knows whether it can.

        Raises:
            InvalidInput: `digest` is none, or `size_bytes` is negative.
            ResourceExhausted: see `make_room`.
        """
        ...

    def fits(self, size_bytes: int) -> bool:
        """Whether so much more fits into the budget with nothing reclaimed."""
        ...

    def make_room(self, size_bytes: int) -> list[Digest]:
        """Reclaims blobs that nobody holds, in the policy's order, until `size_bytes` fit. Returns what went.

        Raises:
            ResourceExhausted: says what was needed, the budget, what is used, and who holds how much. Nothing is reclaimed when it
                could not help.
        """
        ...


class TensorReclaimer(Protocol):
    """What goes though nobody needs its room. Held blobs never do, whatever the policy says."""

    def appraise(self, worth_of: WorthOf) -> None:
        """From now on policies see what `worth_of` says about a blob; before that every blob is worth the same."""
        ...

    def expired(self) -> list[Digest]:
        """What `expire` would reclaim now: whoever maps it without a hold can let go first."""
        ...

    def expire(self) -> list[Digest]:
        """Reclaims what the policy keeps no longer. Returns what went."""
        ...

    def shrink(self, target_used_bytes: int) -> list[Digest]:
        """Reclaims quarantined files, then blobs that nobody holds in the policy's order, until no more than `target_used_bytes` are used
        or nothing may go. Returns what went; never raises for want of more."""
        ...


class TensorHolder(Protocol):
    def pin(self, holder: str, digests: Iterable[Digest]) -> None:
        """Adds to what `holder` (a runtime id) holds; all of them or, on an error, none.

        Raises:
            NotFound: names those that are not in the store.
        """
        ...

    def unpin(self, holder: str, digests: Iterable[Digest] | None) -> None:
        """Drops these holds, or with None all of the holder's. What is not held is passed over."""
        ...

    def holders(self) -> Mapping[str, frozenset[Digest]]: ...


class TensorKeeper(Protocol):
    def verify(self, digest: Digest) -> bool:
        """Whether the file's bytes still have this digest (reads all of it).

        Raises:
            NotFound: it is not in the store.
        """
        ...

    def quarantine(self, digest: Digest) -> None:
        """Takes a corrupted blob out of sight and drops all holds on it; it can be ingested again at once.

        Raises:
            NotFound: it is not in the store.
        """
        ...

    def status(self) -> StoreStatus: ...

    def check(self, *, deep: bool = False) -> list[str]:
        """Compares memory with disk; with `deep` every blob is hashed, while the store goes on. Findings in words, [] when all is
        sound."""
        ...

    def mappings(self) -> Sequence[MappedFile]:
        """Every file of this store that a process maps, as the kernel says; processes that may not be looked into are left out."""
        ...

    def sweep(self) -> None:
        """Removes temporary files that no live writer owns."""
        ...


class TensorStore(TensorReader, TensorIngester, TensorHolder, TensorReclaimer, TensorKeeper, Protocol):
    def close(self) -> None:
        """Aborts open writers, whose threads must have ended, and gives up the lock. Blobs stay."""
        ...
