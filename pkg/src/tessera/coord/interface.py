"""Coordination as the services see it. `etcd.py` is the real one, `tessera.testing` has a fake; both pass one conformance suite.

Guarantees: every write is a transaction that compares a revision (house rule 5); a watch is list-then-watch and survives a server
restart and a compaction by starting over with a new listing; a session's keys vanish with its lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tessera.domain.errors import Conflict
from tessera.domain.ids import Term


class LeaseLost(Conflict):
    """A write named a lease that is gone. Nothing was written; the caller needs a new session first."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """Everything below a prefix at one revision, in key order."""

    revision: int
    items: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True)
class ModRevisionIs:
    """The key was last written at `revision`; 0 = the key is absent."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class CreateRevisionIs:
    """The key was created at `revision`; 0 = the key is absent. An election key proves a leader this way."""

    key: str
    revision: int


Compare = ModRevisionIs | CreateRevisionIs


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    key: str


Write = Put | Delete


@dataclass(frozen=True, slots=True)
class Reset:
    """The state below the prefix is exactly this listing; forget everything else. First event of a watch, and again after a loss."""

    listing: Listing


@dataclass(frozen=True, slots=True)
class Changed:
    item: KeyValue


@dataclass(frozen=True, slots=True)
class Removed:
    key: str
    mod_revision: int


WatchEvent = Reset | Changed | Removed


class Session(Protocol):
    """A lease kept alive. When `lost` is set the lease may be gone and so may every key written under it."""

    @property
    def lease_id(self) -> int: ...

    @property
    def lost(self) -> asyncio.Event:
        """Set when etcd said that the lease is gone, or when it was not renewed for its whole time on this machine's clock.

        Not set by `close`. In the second case the keys may still be there; `close` takes them away.
        """
        ...

    async def close(self) -> None:
        """Revokes the lease: its keys vanish at once. Where etcd is away it gives up in bounded time; the lease then runs out."""
        ...


class Leadership(Protocol):
    """A won election. `guard` goes into every transaction of the leader, so that a later leader's state is never overwritten."""

    @property
    def term(self) -> Term: ...

    @property
    def guard(self) -> CreateRevisionIs: ...

    async def resign(self) -> None: ...


class Coordinator(Protocol):
    async def get(self, key: str) -> KeyValue | None:
        """Raises: Unavailable when no endpoint answers in time."""
        ...

    async def list(self, prefix: str) -> Listing: ...

    async def list_keys(self, prefix: str) -> tuple[str, ...]:
        """What a listing names, in its order, without reading the values. Raises: as `get`."""
        ...

    async def transact(self, compares: Sequence[Compare], writes: Sequence[Write]) -> int:
        """Writes all when every compare holds; returns the revision. At least one compare is required.

        A transaction is sent once: after Unavailable it may have been applied, so the caller reads before it decides anew.

        Raises: Conflict when a compare does not hold (LeaseLost when a lease it names is gone); Unavailable; InvalidInput without a
        compare, or when a key is written twice.
        """
        ...

    def watch(self, prefix: str) -> AsyncIterator[WatchEvent]:
        """Endless. Yields a Reset first; on loss of the server it waits, lists again and yields another Reset."""
        ...

    async def session(self, ttl_s: float) -> Session:
        """Grants a lease and keeps it alive until it is closed. `ttl_s` is rounded up to whole seconds, at least 2.

        Raises: Unavailable.
        """
        ...

    async def campaign(self, election: str, session: Session, value: bytes) -> Leadership:
        """Waits until the election below the prefix `election` is won; `value` is what observers read.

        Raises: Unavailable when the session is lost while waiting. Cancelled or failed, it takes the candidate's key back.
        """
        ...

    async def leader(self, election: str) -> KeyValue | None:
        """The current leader's key: the oldest create-revision below the prefix."""
        ...

    async def cluster_id(self) -> int: ...

    async def close(self) -> None: ...
