"""Says in etcd where this service answers, under a lease; again whenever the lease was lost."""

from __future__ import annotations

from tessera.clock import Clock
from tessera.coord import keys
from tessera.coord.interface import Coordinator, ModRevisionIs, Put, Session
from tessera.coord.records import encode
from tessera.domain.errors import TesseraError
from tessera.domain.records import ServiceRecord
from tessera.telemetry import get_logger

log = get_logger("tessera.registry")


class Presence:
    def __init__(self, coordinator: Coordinator, clock: Clock, record: ServiceRecord, ttl_s: float, retry_s: float = 1.0) -> None:
        self._coordinator = coordinator
        self._clock = clock
        self._record = record
        self._ttl_s = ttl_s
        self._retry_s = retry_s

    async def run(self) -> None:
        while True:
            try:
                session = await self._coordinator.session(self._ttl_s)
                try:
                    await self._announce(session)
                    await session.lost.wait()
                finally:
                    await session.close()
            except TesseraError as error:
                log.info("service record not written; tried again", reason=str(error))
            await self._clock.sleep(self._retry_s)

    async def _announce(self, session: Session) -> None:
        """A record of the same id that a killed predecessor left behind is replaced. Raises: Conflict when somebody writes it now."""
        key = keys.service(self._record.kind, self._record.service_id)
        found = await self._coordinator.get(key)
        revision = found.mod_revision if found is not None else 0
        await self._coordinator.transact([ModRevisionIs(key, revision)], [Put(key, encode(self._record), session.lease_id)])
