"""Tells the scheduler's leader what is here: everything first, then changes, at least every `report_s`, at once when an instance
changes. Finds the leader anew whenever the stream ends or another one is elected."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Protocol

from tessera.clock import Clock
from tessera.domain.errors import TesseraError
from tessera.domain.ids import Term, TrustDomain
from tessera.node_agent.core.changes import DigestChange, DigestLedger
from tessera.node_agent.core.status import NodeSummary
from tessera.node_agent.loops.agent import Agent
from tessera.node_agent.loops.pulse import Pulse
from tessera.program import Stop
from tessera.telemetry import get_logger

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
LEADER_CHECK_S = 2.0

_log = get_logger(__name__)

Report = tuple[NodeSummary, Mapping[TrustDomain, DigestChange]]


class Leader(Protocol):
    """The scheduler's leader, wherever it is."""

    async def address(self) -> str | None:
        """Its address, None while there is none. Raises: Unavailable."""
        ...

    async def report(self, address: str, reports: AsyncIterator[Report], heard: Callable[[Term], Awaitable[None]]) -> None:
        """Streams `reports` until one side ends it; `heard` gets each term that the leader answers.

        Raises:
            Unavailable: it is not there, or not the leader any more.
        """
        ...


class Reporter:
    """One stream at a time."""

    def __init__(self, agent: Agent, leader: Leader, report_s: float, clock: Clock, pulse: Pulse) -> None:
        self._agent = agent
        self._leader = leader
        self._report_s = report_s
        self._clock = clock
        self._pulse = pulse
        self._address: str | None = None

    async def run(self, stop: Stop) -> None:
        pause_s = FIRST_PAUSE_S
        while not stop.is_set():
            begun_s = self._clock.monotonic_s()
            try:
                self._address = await self._leads_now()
                if self._address is not None:
                    await self._leader.report(self._address, self._reports(stop), self._agent.observe_term)
            except TesseraError as error:
                _log.info("not reporting to the scheduler", leader=self._address, reason=str(error))
            if self._clock.monotonic_s() - begun_s > LONGEST_PAUSE_S:
                pause_s = FIRST_PAUSE_S
            if await stop.wait_for(pause_s):
                return
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)

    async def _reports(self, stop: Stop) -> AsyncIterator[Report]:
        """Ends when the program stops, or when somebody else leads."""
        ledgers: dict[TrustDomain, DigestLedger] = defaultdict(DigestLedger)
        leader, checked_s = self._address, self._clock.monotonic_s()
        fresh = True
        while not stop.is_set():
            summary = await self._agent.summary(refresh=fresh)
            yield summary, {domain: ledgers[domain].change_to(digests) for domain, digests in self._agent.digests().items()}
            fresh = not await self._pulse.wait(self._report_s)  # a change is told at once, with the activity of the last second
            now_s = self._clock.monotonic_s()
            if now_s - checked_s >= LEADER_CHECK_S:
                checked_s = now_s
                if await self._leads_now() != leader:
                    return

    async def _leads_now(self) -> str | None:
        """While nobody does, or etcd is away, the last leader goes on."""
        try:
            async with asyncio.timeout(LEADER_CHECK_S):
                return await self._leader.address() or self._address
        except (TesseraError, TimeoutError):
            return self._address
