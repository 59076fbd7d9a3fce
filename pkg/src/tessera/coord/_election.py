"""Elections by create-revision, over any `Coordinator`: the oldest key below the prefix leads.

States: absent -> candidate -> leader -> resigned | deposed (docs/states/session-and-election.md). Knowing that one leads is always a
little out of date; what makes it safe is that `guard` stands in every transaction of the leader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from tessera.clock import Clock
from tessera.coord.interface import (
    Changed,
    Coordinator,
    CreateRevisionIs,
    Delete,
    KeyValue,
    Listing,
    Put,
    Removed,
    Reset,
    Session,
)
from tessera.domain.errors import Conflict, TesseraError, Unavailable
from tessera.domain.ids import Term

T = TypeVar("T")

_RETRY_S = 0.25
_WITHDRAW_S = 2.0


class WonElection:
    """`Leadership` of the interface."""

    def __init__(self, coordinator: Coordinator, term: Term, guard: CreateRevisionIs) -> None:
        self._coordinator = coordinator
        self._term = term
        self._guard = guard

    @property
    def term(self) -> Term:
        return self._term

    @property
    def guard(self) -> CreateRevisionIs:
        return self._guard

    async def resign(self) -> None:
        """Takes the key away; the next candidate leads. Resigning twice, or after the lease is gone, does nothing.

        Raises: Unavailable.
        """
        try:
            await self._coordinator.transact([self._guard], [Delete(self._guard.key)])
        except Conflict:
            pass  # gone already


async def campaign(coordinator: Coordinator, clock: Clock, election: str, session: Session, value: bytes) -> WonElection:
    """Waits until `session` leads `election` (a key prefix that ends with a slash).

    Raises:
        Unavailable: the session was lost, or its key was taken away, before the election was won.
    """
    key = f"{election}{session.lease_id:x}"
    won = False
    try:
        candidate = await _unless_lost(session, _stand(coordinator, clock, key, session.lease_id, value))
        own = CreateRevisionIs(key, candidate.create_revision)
        await _unless_lost(session, _until_oldest(coordinator, election, own))
        cluster_id = await coordinator.cluster_id()
        won = True
        return WonElection(coordinator, Term(cluster_id, own.revision), own)
    finally:
        if not won and not session.lost.is_set():
            await _withdraw(coordinator, key, session.lease_id)


def oldest(listing: Listing) -> KeyValue | None:
    """The leader among the candidates of a listing, or None."""
    return min(listing.items, key=lambda item: item.create_revision, default=None)


async def _stand(coordinator: Coordinator, clock: Clock, key: str, lease_id: int, value: bytes) -> KeyValue:
    """Puts the candidate's key, once, however often it must be tried: a lost answer is settled by reading."""
    while True:
        try:
            found = await coordinator.get(key)
            if found is not None and found.lease_id == lease_id and found.value == value:
                return found
            compare = CreateRevisionIs(key, found.create_revision if found else 0)
            await coordinator.transact([compare], [Put(key, value, lease_id)])
        except Unavailable:
            await clock.sleep(_RETRY_S)
        except Conflict as error:
            # Either somebody wrote our key (impossible while leases are unique) or the lease is gone; `lost` follows in the latter case.
            raise Unavailable(f"candidate {key} could not be put: {error}") from error


async def _until_oldest(coordinator: Coordinator, election: str, own: CreateRevisionIs) -> None:
    candidates: dict[str, int] = {}
    async with aclosing(_events(coordinator, election)) as events:
        async for event in events:
            match event:
                case Reset(listing):
                    candidates = {item.key: item.create_revision for item in listing.items}
                case Changed(item):
                    candidates[item.key] = item.create_revision
                case Removed(key):
                    candidates.pop(key, None)
            if candidates.get(own.key) != own.revision:
                raise Unavailable(f"candidate {own.key} was taken away while it waited")
            if min(candidates.values()) == own.revision:
                return
    raise Unavailable(f"the watch of {election} ended")


async def _events(coordinator: Coordinator, prefix: str) -> Any:
    """The watch as a generator, which `aclosing` can end at once."""
    async for event in coordinator.watch(prefix):
        yield event


async def _withdraw(coordinator: Coordinator, key: str, lease_id: int) -> None:
    """Nobody would act for a candidate whose campaign has ended, so its key must not win."""
    try:
        async with asyncio.timeout(_WITHDRAW_S):
            found = await coordinator.get(key)
            if found is not None and found.lease_id == lease_id:
                await coordinator.transact([CreateRevisionIs(key, found.create_revision)], [Delete(key)])
    except (TesseraError, TimeoutError):
        pass  # the lease's end takes it away


async def _unless_lost(session: Session, work: Coroutine[Any, Any, T]) -> T:
    """Runs `work`; ends it as soon as the session is lost.

    Raises:
        Unavailable: the session was lost.
        TesseraError: what `work` raised.
    """
    async with asyncio.TaskGroup() as group:
        running = group.create_task(_outcome(work))
        lost = group.create_task(session.lost.wait())
        try:
            await asyncio.wait({running, lost}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            running.cancel()
            lost.cancel()
    if running.cancelled() or (session.lost.is_set() and lost.done() and not lost.cancelled()):
        raise Unavailable(f"session {session.lease_id:x} was lost during the campaign")
    outcome = running.result()
    if isinstance(outcome, TesseraError):
        raise outcome
    return outcome


async def _outcome(work: Coroutine[Any, Any, T]) -> T | TesseraError:
    """An error as a value, so that it does not leave the task group as a group of errors."""
    try:
        return await work
    except TesseraError as error:
        return error
