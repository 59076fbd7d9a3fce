"""What taking an instance away that serves has in common, whoever decides it: another is ready before, gateways get to learn of it, and
etcd answers."""

from __future__ import annotations

import asyncio

from tessera.coord import keys
from tessera.coord.interface import Coordinator
from tessera.domain.errors import Unavailable

START_BUDGET_S = 30.0
HANDOVER_S = 0.5
"""How long gateways get to learn of the new instance. Who has not is sent on: a drained instance answers that its generation is gone."""
ETCD_TIMEOUT_S = 2.0


async def require_etcd(coordinator: Coordinator) -> None:
    """Asked before anything is taken away: gateways learn of what is new through etcd, and a record that cannot be deleted would bring the
    instance back.

    Raises: Unavailable: it does not answer within `ETCD_TIMEOUT_S`.
    """
    try:
        async with asyncio.timeout(ETCD_TIMEOUT_S):
            await coordinator.leader(keys.SCHEDULER_ELECTION)
    except TimeoutError:
        raise Unavailable("etcd does not answer") from None
