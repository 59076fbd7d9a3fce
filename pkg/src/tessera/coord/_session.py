"""A lease kept alive, over whatever grants leases (etcd, or the fake).

States: alive -> lost | closed (docs/states/session-and-election.md). The deadline counts from the moment *before* the renewal was sent,
so this side never believes longer than the server does. A restart of etcd that is shorter than the lease costs nothing: renewals
are tried again until the deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from tessera.clock import Clock
from tessera.domain.errors import TesseraError

_log = structlog.get_logger(__name__)

_RETRY_S = 0.25
_RENEWALS_PER_TTL = 3


class KeptSession:
    """`Session` of the interface.

    Args:
        renew: renews within the given seconds and returns the remaining time in seconds, 0 when the lease is gone. Raises TesseraError.
        revoke: ends the lease, bounded in time. Raises TesseraError.
        asked_s: the clock's monotonic reading before the lease was asked for.
    """

    def __init__(
        self,
        lease_id: int,
        ttl_s: float,
        *,
        clock: Clock,
        asked_s: float,
        renew: Callable[[float], Awaitable[float]],
        revoke: Callable[[], Awaitable[None]],
        forget: Callable[[KeptSession], None],
    ) -> None:
        self._lease_id = lease_id
        self._ttl_s = ttl_s
        self._clock = clock
        self._renew = renew
        self._revoke = revoke
        self._forget = forget
        self._deadline_s = asked_s + ttl_s
        self._lost = asyncio.Event()
        self._closed = False
        self._task = asyncio.create_task(  # noqa: TID251 - owned by this session, ended and awaited by close() and stop()
            self._run(), name=f"session {lease_id:x}"
        )

    @property
    def lease_id(self) -> int:
        return self._lease_id

    @property
    def lost(self) -> asyncio.Event:
        return self._lost

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self.stop()
        try:
            await self._revoke()
        except TesseraError as error:
            _log.info("lease not revoked; it runs out by itself", lease=f"{self._lease_id:x}", ttl_s=self._ttl_s, reason=str(error))

    async def stop(self) -> None:
        """Ends the renewals without a word to the server: the lease runs out by itself."""
        self._forget(self)
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _run(self) -> None:
        try:
            await self._keep()
        except Exception:
            # A fault of ours. Nobody renews any more, so whoever relies on the lease has to know.
            _log.exception("renewals ended", lease=f"{self._lease_id:x}")
            self._lost.set()

    async def _keep(self) -> None:
        interval_s = self._ttl_s / _RENEWALS_PER_TTL
        pause_s = interval_s
        while True:
            await self._clock.sleep(min(pause_s, max(self._deadline_s - self._clock.monotonic_s(), 0.0)))
            asked_s = self._clock.monotonic_s()
            if asked_s >= self._deadline_s:
                self._lose("not renewed in time")
                return
            try:
                remaining_s = await self._renew(min(interval_s, self._deadline_s - asked_s))
            except TesseraError as error:
                _log.debug("lease not renewed", lease=f"{self._lease_id:x}", reason=str(error))
                pause_s = min(_RETRY_S, interval_s)
                continue
            if remaining_s <= 0:
                self._lose("gone on the server")
                return
            if self._clock.monotonic_s() >= self._deadline_s:
                # Renewed, but too late for whoever looked at this clock meanwhile (a process that was stopped, or a long outage).
                self._lose("renewed too late")
                return
            self._deadline_s = asked_s + min(remaining_s, self._ttl_s)
            pause_s = interval_s

    def _lose(self, reason: str) -> None:
        _log.warning("session lost", lease=f"{self._lease_id:x}", ttl_s=self._ttl_s, reason=reason)
        self._lost.set()
