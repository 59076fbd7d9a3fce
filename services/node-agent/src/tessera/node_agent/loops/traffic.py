"""How long a node has been answering no requests: what runs at low priority looks at it before it begins, meanwhile and afterwards."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable

from tessera.domain.errors import Unavailable
from tessera.domain.instance import InstanceState
from tessera.node_agent.core.runtimes import Purpose
from tessera.node_agent.core.table import InstanceTable
from tessera.node_agent.loops.fleet import Fleet, Member

ANSWER_S = 2.0
MEMORY_AGE_S = 3600.0
"""Nothing here is about memory, at which a look is dear."""

_STARTING = frozenset({InstanceState.ACCEPTED, InstanceState.FETCHING, InstanceState.MAPPED, InstanceState.LOADING})


class Traffic:
    """Of the whole node: trust domains have stores and runtimes of their own, and the same cores."""

    def __init__(self, fleets: Callable[[], Iterable[Fleet]], table: InstanceTable) -> None:
        self._fleets = fleets
        self._table = table

    async def quiet_s(self) -> float:
        """Seconds since an instance of this node had anything to do; 0 while one has, or is on its way. Infinite where there are none."""
        if any(instance.state in _STARTING for instance in self._table):
            return 0.0
        members = [member for fleet in self._fleets() for member in fleet.members if member.purpose is not Purpose.MEASURE]
        return min(await asyncio.gather(*(_idle_s(member) for member in members)), default=math.inf)


async def _idle_s(member: Member) -> float:
    """One that does not answer in time is taken for busy; one that is gone does nothing."""
    try:
        async with asyncio.timeout(ANSWER_S):
            activity = await member.runtime.activity(ANSWER_S, MEMORY_AGE_S)
    except TimeoutError:
        return 0.0
    except Unavailable:
        return math.inf
    return min((instance.idle_s for instance in activity.instances), default=math.inf)
