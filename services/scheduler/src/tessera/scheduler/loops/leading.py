"""Who leads: this scheduler's own term, and the leader it knows of.

Invariants: a term is acted under from the moment the election is won until a newer leader is known of. A lost session does not end
it while etcd is away, because nobody can have won since; agents refuse the older term the moment a newer one has reached them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tessera.clock import Clock
from tessera.coord import keys
from tessera.coord.interface import Changed, Coordinator, KeyValue, Leadership, Removed, Reset, Session
from tessera.domain.errors import TesseraError, Unavailable
from tessera.domain.ids import Term
from tessera.scheduler.loops.pulse import Pulse
from tessera.telemetry import get_logger

log = get_logger("tessera.scheduler")

LOOK_AGAIN_S = 60.0


@dataclass(frozen=True, slots=True)
class KnownLeader:
    term: Term
    address: str


class Standing(StrEnum):
    OURS = "ours"
    NOBODY = "nobody"
    OTHER = "other"


class Leading:
    """The answer to 'may I act?'. Changed by the elector alone."""

    def __init__(self, own_address: str) -> None:
        self.own_address = own_address
        self.leadership: Leadership | None = None
        self.since_s = 0.0
        self.known: KnownLeader | None = None
        self.changed = Pulse()
        self.doubt = asyncio.Event()
        """Set by whoever has a reason to believe that another leads; the elector then looks."""

    def require(self) -> Leadership:
        """Raises: Unavailable when another leads, and names it."""
        if self.leadership is None:
            who = f"the leader is {self.known.address}" if self.known is not None else "no leader is known"
            raise Unavailable(f"scheduler {self.own_address} is a standby; {who}")
        return self.leadership

    async def until_ours(self) -> None:
        while self.leadership is None:
            await self.changed.wait(LOOK_AGAIN_S)


class Elector:
    """Campaigns, leads, looks whether it still does, and campaigns again; for as long as the process lives."""

    def __init__(
        self,
        coordinator: Coordinator,
        leading: Leading,
        clock: Clock,
        *,
        lease_ttl_s: float,
        retry_s: float = 1.0,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._coordinator = coordinator
        self._leading = leading
        self._clock = clock
        self._lease_ttl_s = lease_ttl_s
        self._retry_s = retry_s
        self._on_end = on_end

    async def run(self) -> None:
        while True:
            try:
                await self._one_term()
            except TesseraError as error:
                log.info("election tried again", reason=str(error), leading=self._leading.leadership is not None)
                await self._clock.sleep(self._retry_s)

    async def _one_term(self) -> None:
        session = await self._coordinator.session(self._lease_ttl_s)
        try:
            leadership = await self._campaign(session)
            if leadership is None:
                return
            self._begin(leadership)
            await self._reign(session, leadership)
        finally:
            await self._close(session)

    async def _campaign(self, session: Session) -> Leadership | None:
        """Waits to win; None when the session was lost meanwhile. A leader without a session looks, while it waits, whether another leads.

        Raises: Unavailable and the like, from the campaign.
        """
        async with asyncio.TaskGroup() as group:
            campaign = group.create_task(self._try(session))
            lost = group.create_task(session.lost.wait())
            watch = group.create_task(self._look_while_waiting(session))
            try:
                await asyncio.wait({campaign, lost}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (campaign, lost, watch):
                    task.cancel()
        outcome = None if campaign.cancelled() else campaign.result()
        if isinstance(outcome, TesseraError):
            raise outcome
        return outcome

    async def _try(self, session: Session) -> Leadership | TesseraError:
        """An error is a value here, so that it does not leave the task group as a group of errors."""
        try:
            return await self._coordinator.campaign(keys.SCHEDULER_ELECTION, session, self._leading.own_address.encode())
        except TesseraError as error:
            return error

    async def _look_while_waiting(self, session: Session) -> None:
        while self._leading.leadership is not None:
            try:
                await self._look(self._leading.leadership, session)
            except TesseraError as error:
                log.info("going on under the last term", reason=str(error))
            await self._clock.sleep(self._retry_s)

    def _begin(self, leadership: Leadership) -> None:
        log.info("leading", term=leadership.term.revision, cluster=leadership.term.cluster_id)
        if self._leading.leadership is None:
            self._leading.since_s = self._clock.monotonic_s()
        self._leading.leadership = leadership
        self._leading.known = KnownLeader(leadership.term, self._leading.own_address)
        self._leading.doubt.clear()
        self._leading.changed.fire()

    async def _reign(self, session: Session, leadership: Leadership) -> None:
        """Returns when another leads, or when etcd answers and this leader's own key or session is gone."""
        while True:
            if not session.lost.is_set():
                await _first(session.lost.wait(), self._leading.doubt.wait())
            self._leading.doubt.clear()
            try:
                if await self._look(leadership, session) is not Standing.OURS or session.lost.is_set():
                    return
            except TesseraError as error:
                log.info("etcd is away; going on under the last term", term=leadership.term.revision, reason=str(error))
            await self._clock.sleep(self._retry_s)

    async def _look(self, leadership: Leadership, session: Session) -> Standing:
        """Asks etcd who leads, and steps down when it is another. Raises: Unavailable."""
        found = await self._coordinator.leader(keys.SCHEDULER_ELECTION)
        if found is None:
            return Standing.NOBODY
        if found.create_revision == leadership.term.revision or found.lease_id == session.lease_id:
            return Standing.OURS
        if self._leading.leadership is not None:
            log.warning("stepping down", term=leadership.term.revision, newer=found.create_revision, leader=found.value.decode())
            self._leading.leadership = None
            self._leading.known = KnownLeader(Term(leadership.term.cluster_id, found.create_revision), found.value.decode())
            self._on_end()
            self._leading.changed.fire()
        return Standing.OTHER

    async def _close(self, session: Session) -> None:
        """Gives the lease back, so that a standby need not wait for it to run out."""
        try:
            async with asyncio.timeout(2.0):
                await session.close()
        except (TesseraError, TimeoutError) as error:
            log.info("the election's lease runs out by itself", reason=str(error))


class LeaderFollower:
    """Keeps `Leading.known` from a watch of the election's keys: the oldest create-revision leads."""

    def __init__(self, coordinator: Coordinator, leading: Leading, clock: Clock, retry_s: float = 1.0) -> None:
        self._coordinator = coordinator
        self._leading = leading
        self._clock = clock
        self._retry_s = retry_s
        self._campaigners: dict[str, KeyValue] = {}

    async def run(self) -> None:
        while True:
            try:
                async for event in self._coordinator.watch(keys.SCHEDULER_ELECTION):
                    match event:
                        case Reset(listing):
                            self._campaigners = {item.key: item for item in listing.items}
                        case Changed(item):
                            self._campaigners[item.key] = item
                        case Removed(key, _):
                            self._campaigners.pop(key, None)
                    await self._note()
            except TesseraError as error:
                log.info("election not visible", reason=str(error))
            await self._clock.sleep(self._retry_s)

    async def _note(self) -> None:
        first = min(self._campaigners.values(), key=lambda item: item.create_revision, default=None)
        if first is None:
            return
        term = Term(await self._coordinator.cluster_id(), first.create_revision)
        own = self._leading.leadership
        if own is None:
            self._leading.known = KnownLeader(term, first.value.decode())
            self._leading.changed.fire()
        elif own.term != term:
            self._leading.doubt.set()


async def _first(*waits: Coroutine[Any, Any, object]) -> None:
    """Waits for the first of several coroutines; the others are cancelled."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(wait) for wait in waits]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
