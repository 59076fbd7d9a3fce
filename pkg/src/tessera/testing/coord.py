"""`FakeCoordinator`: the semantics of etcd in memory, with faults on demand. Passes the suite of tessera.testing.conformance_coord.

`FakeEtcd` is the server (revisions, history, leases on a `Clock`); a `FakeCoordinator` is one client of it, so that several services
of a simulation share one server. Sessions and elections are the real code over fake leases.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Generator, Sequence
from dataclasses import dataclass, field

from tessera.clock import Clock, SystemClock
from tessera.coord import _election
from tessera.coord._rules import check_key, check_transaction, granted_ttl_s
from tessera.coord._session import KeptSession
from tessera.coord.interface import (
    Changed,
    Compare,
    Delete,
    KeyValue,
    Leadership,
    LeaseLost,
    Listing,
    ModRevisionIs,
    Put,
    Removed,
    Reset,
    Session,
    WatchEvent,
    Write,
)
from tessera.domain.errors import Conflict, Unavailable

_cluster_ids = itertools.count(0xF0000000)


@dataclass(slots=True)
class _Lease:
    ttl_s: float
    deadline_s: float
    keys: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Entry:
    revision: int
    key: str
    event: WatchEvent


class FakeEtcd:
    """The server's side. `stop` and `start` are its outage: as in etcd, leases have their whole time again afterwards."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.cluster_id = next(_cluster_ids)
        self.revision = 1
        self.compacted_revision = 0
        self.running = True
        self.outages = 0
        self.clients = 0
        self._items: dict[str, KeyValue] = {}
        self._history: list[_Entry] = []
        self._leases: dict[int, _Lease] = {}
        self._lease_ids = itertools.count(0x1000)
        self._moved = asyncio.Event()
        self._reaper: asyncio.Task[None] | None = None

    def stop(self) -> None:
        self.running = False
        self.outages += 1
        self.pulse()

    def start(self) -> None:
        self.running = True
        for lease in self._leases.values():
            lease.deadline_s = self.clock.monotonic_s() + lease.ttl_s
        self.pulse()

    def compact(self, revision: int | None = None) -> None:
        """Forgets the history up to `revision` (the current one when None); a watch that still needs it starts over."""
        self.compacted_revision = max(self.compacted_revision, self.revision if revision is None else revision)
        self._history = [entry for entry in self._history if entry.revision > self.compacted_revision]
        self.pulse()

    def revoke(self, lease_id: int) -> bool:
        """Ends a lease and deletes its keys in one revision, as its running out does. False: there is no such lease."""
        lease = self._leases.pop(lease_id, None)
        if lease is None:
            return False
        self._apply([Delete(key) for key in sorted(lease.keys)])
        return True

    async def moved(self) -> None:
        """Waits until anything happens: a write, a compaction, an outage, its end."""
        await self._moved.wait()

    def pulse(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    def items(self, prefix: str) -> tuple[KeyValue, ...]:
        self._expire()
        return tuple(self._items[key] for key in sorted(self._items) if key.startswith(prefix))

    def get(self, key: str) -> KeyValue | None:
        self._expire()
        return self._items.get(key)

    def transact(self, compares: Sequence[Compare], writes: Sequence[Write]) -> int:
        """Raises: Conflict; LeaseLost."""
        self._expire()
        for compare in compares:
            item = self._items.get(compare.key)
            if item is None:
                found = 0
            else:
                found = item.mod_revision if isinstance(compare, ModRevisionIs) else item.create_revision
            if found != compare.revision:
                raise Conflict(f"{compare.key}: at revision {found}, not {compare.revision}")
        for write in writes:
            if isinstance(write, Put) and write.lease_id and write.lease_id not in self._leases:
                raise LeaseLost(f"lease {write.lease_id:x} of {write.key} is gone")
        return self._apply(writes)

    def after(self, prefix: str, revision: int) -> tuple[_Entry, ...]:
        """What happened below a prefix after a revision, in order."""
        self._expire()
        return tuple(entry for entry in self._history if entry.revision > revision and entry.key.startswith(prefix))

    def grant(self, ttl_s: float) -> int:
        lease_id = next(self._lease_ids)
        self._leases[lease_id] = _Lease(ttl_s, self.clock.monotonic_s() + ttl_s)
        if self._reaper is None or self._reaper.done():
            self._reaper = asyncio.create_task(  # noqa: TID251 - owned by this server, ended by the last close()
                self._reap(), name="fake etcd leases"
            )
        return lease_id

    def renew(self, lease_id: int) -> float:
        """The remaining seconds, 0 when the lease is gone."""
        self._expire()
        lease = self._leases.get(lease_id)
        if lease is None:
            return 0.0
        lease.deadline_s = self.clock.monotonic_s() + lease.ttl_s
        return lease.ttl_s

    async def close(self) -> None:
        """Ends the watch over leases. Called by the last client that closes."""
        if self._reaper is not None:
            self._reaper.cancel()
            await asyncio.wait({self._reaper})

    def _apply(self, writes: Sequence[Write]) -> int:
        revision = self.revision + 1
        changed = False
        for write in writes:
            old = self._items.get(write.key)
            if isinstance(write, Delete) and old is None:
                continue
            changed = True
            if old is not None and old.lease_id in self._leases:
                self._leases[old.lease_id].keys.discard(write.key)
            if isinstance(write, Delete):
                del self._items[write.key]
                event: WatchEvent = Removed(write.key, revision)
            else:
                item = KeyValue(write.key, write.value, old.create_revision if old else revision, revision, write.lease_id)
                self._items[write.key] = item
                if write.lease_id:
                    self._leases[write.lease_id].keys.add(write.key)
                event = Changed(item)
            self._history.append(_Entry(revision, write.key, event))
        if changed:
            self.revision = revision
            self.pulse()
        return self.revision

    def _expire(self) -> None:
        if self.running:
            now_s = self.clock.monotonic_s()
            for lease_id in [lease_id for lease_id, lease in self._leases.items() if lease.deadline_s <= now_s]:
                self.revoke(lease_id)

    async def _reap(self) -> None:
        while True:
            self._expire()
            if not self._leases:
                return
            now_s = self.clock.monotonic_s()
            next_s = min(lease.deadline_s for lease in self._leases.values()) - now_s
            if next_s > 0:
                await self.clock.sleep(next_s)
            else:  # the server is stopped: nothing runs out before it starts again
                await self.moved()


class FakeCoordinator:
    """A client of a `FakeEtcd` (its own where none is given). Faults: `go_away`, `come_back`, `lose_answer`; more at `server`."""

    def __init__(self, server: FakeEtcd | None = None, *, clock: Clock | None = None) -> None:
        self.server = server or FakeEtcd(clock)
        self.server.clients += 1
        self._clock = self.server.clock
        self._away = False
        self._closed = False
        self._lose_answers = 0
        self._connection = 0
        self._sessions: set[KeptSession] = set()

    def go_away(self) -> None:
        """Cuts this client off; the server and its other clients go on, and the leases of this one run out there."""
        self._away = True
        self.drop_watches()

    def come_back(self) -> None:
        self._away = False
        self.server.pulse()

    def drop_watches(self) -> None:
        """Breaks the connection once: each watch starts over."""
        self._connection += 1
        self.server.pulse()

    def lose_answer(self, count: int = 1) -> None:
        """The next transactions are applied, and raise Unavailable all the same."""
        self._lose_answers += count

    async def get(self, key: str) -> KeyValue | None:
        check_key("key", key)
        await self._reach()
        return self.server.get(key)

    async def list(self, prefix: str) -> Listing:
        check_key("prefix", prefix)
        await self._reach()
        return Listing(self.server.revision, self.server.items(prefix))

    async def list_keys(self, prefix: str) -> tuple[str, ...]:
        check_key("prefix", prefix)
        await self._reach()
        return tuple(item.key for item in self.server.items(prefix))

    async def transact(self, compares: Sequence[Compare], writes: Sequence[Write]) -> int:
        check_transaction(compares, writes)
        await self._reach()
        revision = self.server.transact(compares, writes)
        if self._lose_answers:
            self._lose_answers -= 1
            raise Unavailable("the connection to the fake etcd was lost; the write may have been applied")
        return revision

    def watch(self, prefix: str) -> AsyncIterator[WatchEvent]:
        check_key("prefix", prefix)
        return self._watch(prefix)

    async def session(self, ttl_s: float) -> Session:
        granted_s = float(granted_ttl_s(ttl_s))
        asked_s = self._clock.monotonic_s()
        await self._reach()
        lease_id = self.server.grant(granted_s)
        session = KeptSession(
            lease_id,
            granted_s,
            clock=self._clock,
            asked_s=asked_s,
            renew=lambda _: self._renew(lease_id),
            revoke=lambda: self._revoke(lease_id),
            forget=self._sessions.discard,
        )
        self._sessions.add(session)
        return session

    async def campaign(self, election: str, session: Session, value: bytes) -> Leadership:
        check_key("election", election)
        return await _election.campaign(self, self._clock, election, session, value)

    async def leader(self, election: str) -> KeyValue | None:
        return _election.oldest(await self.list(election))

    async def cluster_id(self) -> int:
        await self._reach()
        return self.server.cluster_id

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.drop_watches()
        for session in tuple(self._sessions):
            await session.stop()
        self.server.clients -= 1
        if not self.server.clients:
            await self.server.close()

    @property
    def _reachable(self) -> bool:
        return self.server.running and not self._away

    @property
    def _link(self) -> tuple[int, int]:
        """Changes whenever the connection was broken, however shortly."""
        return self._connection, self.server.outages

    async def _reach(self) -> None:
        """Every call gives the others a turn, before it reads or writes: races show. Raises: Unavailable."""
        await _Turn()
        if self._closed:
            raise Unavailable("this coordinator is closed")
        if not self._reachable:
            raise Unavailable("no etcd endpoint answers (fake)")

    async def _renew(self, lease_id: int) -> float:
        await self._reach()
        return self.server.renew(lease_id)

    async def _revoke(self, lease_id: int) -> None:
        await self._reach()
        self.server.revoke(lease_id)

    async def _watch(self, prefix: str) -> AsyncIterator[WatchEvent]:
        while True:
            while not self._reachable and not self._closed:
                await self.server.moved()
            try:
                listing = await self.list(prefix)
            except Unavailable:
                if self._closed:
                    raise
                continue
            link, seen = self._link, listing.revision
            yield Reset(listing)
            while link == self._link and self._reachable and seen >= self.server.compacted_revision:
                entries = self.server.after(prefix, seen)
                seen = self.server.revision
                for entry in entries:
                    yield entry.event
                    if link != self._link:
                        break  # what was on its way is lost with the connection
                if seen == self.server.revision and link == self._link and self._reachable:
                    await self.server.moved()


class _Turn:
    """One turn of the event loop, without a clock."""

    def __await__(self) -> Generator[None, None, None]:
        yield
