"""What the conformance suite of coordinators stands on: a world that may be cut apart, and a follower of a watch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from tessera.coord.interface import (
    Changed,
    Coordinator,
    KeyValue,
    ModRevisionIs,
    Put,
    Removed,
    Reset,
    WatchEvent,
)
from tessera.domain.errors import Unavailable

WAIT_S = 30.0
"""How long a test waits for what must come; far more than it takes."""

TTL_S = 2.0


class CoordinationWorld(Protocol):
    """One server and its clients, and what may befall them."""

    async def client(self) -> Coordinator:
        """A new client; closed by the world at the end."""
        ...

    async def cut(self, client: Coordinator) -> None:
        """Parts one client from the server; everything else goes on."""
        ...

    async def heal(self, client: Coordinator) -> None: ...

    async def compact(self) -> None:
        """Forgets all history before the current revision."""
        ...

    async def revoke(self, lease_id: int) -> None: ...

    async def let_pass(self, seconds: float) -> None:
        """Time goes by, on the server and at the clients."""
        ...


class Follower:
    """A watch's events, and the state that they add up to."""

    def __init__(self, coordinator: Coordinator, prefix: str) -> None:
        self.events: list[WatchEvent] = []
        self.state: dict[str, bytes] = {}
        self._coordinator = coordinator
        self._prefix = prefix

    @property
    def resets(self) -> int:
        return sum(isinstance(event, Reset) for event in self.events)

    async def run(self) -> None:
        async for event in self._coordinator.watch(self._prefix):
            self.events.append(event)
            match event:
                case Reset(listing):
                    self.state = {item.key: item.value for item in listing.items}
                case Changed(item):
                    self.state[item.key] = item.value
                case Removed(key):
                    self.state.pop(key, None)


@asynccontextmanager
async def following(coordinator: Coordinator, prefix: str) -> AsyncIterator[Follower]:
    follower = Follower(coordinator, prefix)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(follower.run())
        try:
            yield follower
        finally:
            task.cancel()


async def until(condition: Callable[[], bool | Awaitable[bool]], world: CoordinationWorld, step_s: float = 0.05) -> None:
    """Lets time pass in small steps until a condition holds. Raises: AssertionError when it does not come."""
    for _ in range(round(WAIT_S / step_s)):
        answer = condition()
        if answer if isinstance(answer, bool) else await answer:
            return
        await world.let_pass(step_s)
    raise AssertionError(f"not reached within {WAIT_S:g} s: {condition}")


async def put(coordinator: Coordinator, key: str, value: bytes, lease_id: int = 0) -> int:
    """Writes over whatever is there."""
    found = await coordinator.get(key)
    return await coordinator.transact([ModRevisionIs(key, found.mod_revision if found else 0)], [Put(key, value, lease_id)])


async def present(coordinator: Coordinator, key: str) -> KeyValue:
    found = await coordinator.get(key)
    assert found is not None, f"{key} is absent"
    return found


async def outcome_of(work: Awaitable[object]) -> object:
    """The result, or the Unavailable it ended with, as a value."""
    try:
        return await work
    except Unavailable as error:
        return error
