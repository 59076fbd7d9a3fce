"""Says in etcd where a service answers, under a lease; again whenever the lease was lost."""

from __future__ import annotations

from tessera.clock import Clock
from tessera.coord import keys
from tessera.coord.interface import Coordinator, ModRevisionIs, Put, Session
from tessera.coord.records import encode
from tessera.domain.errors import TesseraError
from tessera.domain.records import ServiceRecord
from tessera.telemetry import get_logger

RETRY_S = 1.0

_log = get_logger("tessera.coord")


async def announce(coordinator: Coordinator, clock: Clock, record: ServiceRecord, ttl_s: float) -> None:
    """Runs until it is cancelled; then the record vanishes at once. Serving never waits for it."""
    while True:
        try:
            session = await coordinator.session(ttl_s)
            try:
                await _write(coordinator, session, record)
                await session.lost.wait()
            finally:
                await session.close()
        except TesseraError as error:
            _log.info("service record not written; tried again", reason=str(error))
        await clock.sleep(RETRY_S)


async def _write(coordinator: Coordinator, session: Session, record: ServiceRecord) -> None:
    """A record of the same id that a killed predecessor left behind is replaced. Raises: Conflict when somebody writes it now."""
    key = keys.service(record.kind, record.service_id)
    found = await coordinator.get(key)
    await coordinator.transact([ModRevisionIs(key, found.mod_revision if found else 0)], [Put(key, encode(record), session.lease_id)])
