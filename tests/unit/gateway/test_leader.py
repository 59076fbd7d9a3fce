"""Starts are asked of who leads, in virtual time, without sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from tessera.api.common.v1 import common_pb2
from tessera.api.scheduler.v1 import scheduler_pb2
from tessera.coord import keys
from tessera.coord.interface import Changed, KeyValue, Listing, Removed, Reset, WatchEvent
from tessera.domain.errors import Unavailable
from tessera.domain.records import ServiceRecord
from tessera.gateway.adapters.scheduler import FOLLOWED_S, Leader, SchedulerClient
from tessera.gateway.ports import StartedInstance
from tessera.testing import run_virtual
from tessera.testing.builders import a_model, a_variant
from tessera.wire import encode_variant_key

ANSWER = scheduler_pb2.StartInstanceResponse(
    instance_id="i1", variant=encode_variant_key(a_variant().key), generation=7, node_id="n1", start_path="bind",
    endpoint=common_pb2.InstanceEndpoint(runtime_id="r1", relay_address="h:1"),
)  # fmt: skip


class Calls:
    """Answers after so many seconds, by address; keeps whom it was asked for."""

    def __init__(self) -> None:
        self.takes_s: dict[str, float] = {}
        self.asked: list[str] = []

    def expect(self, address: str) -> None: ...

    async def call(self, address: str, *_: object) -> scheduler_pb2.StartInstanceResponse:
        self.asked.append(address)
        await asyncio.sleep(self.takes_s.get(address, 0.0))
        return ANSWER


class World:
    """Schedulers `a` and `b`; `elect` makes one a candidate, `resign` takes it away."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[WatchEvent] = asyncio.Queue()
        self._revision = 0
        self.calls = Calls()
        channels: Any = SimpleNamespace(to=lambda address: SimpleNamespace(get_state=lambda try_to_connect: None))
        records = [ServiceRecord("scheduler", name, name, {"start_address": f"{name}-starts"}) for name in "ab"]
        self.leader = Leader(SimpleNamespace(watch=self._watch), channels)  # type: ignore[arg-type]
        self.client = SchedulerClient(self.leader, lambda: records, channels, self.calls, a_model().trust_domain)  # type: ignore[arg-type]

    async def _watch(self, prefix: str) -> AsyncIterator[WatchEvent]:
        yield Reset(Listing(0, ()))
        while True:
            yield await self._events.get()

    async def elect(self, name: str) -> None:
        self._revision += 1
        key = f"{keys.SCHEDULER_ELECTION}{name}"
        self._events.put_nowait(Changed(KeyValue(key, name.encode(), self._revision, self._revision)))
        await asyncio.sleep(0)

    async def vanish(self, name: str) -> None:
        self._events.put_nowait(Removed(f"{keys.SCHEDULER_ELECTION}{name}", self._revision))
        await asyncio.sleep(0)

    async def start(self) -> StartedInstance:
        return await self.client.start_instance([a_variant().key], "0" * 32, 60.0, 60.0)


@asynccontextmanager
async def electing() -> AsyncIterator[World]:
    world = World()
    async with asyncio.TaskGroup() as group:
        following = group.create_task(world.leader.run())
        await asyncio.sleep(0)
        await world.elect("a")
        await world.elect("b")
        yield world
        following.cancel()


def virtually(test: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with electing() as world:
            await test(world)

    run_virtual(main)


def test_a_leader_that_vanished_is_not_waited_for_once_another_leads() -> None:
    async def test(world: World) -> None:
        loop = asyncio.get_running_loop()
        world.calls.takes_s["a-starts"] = 1000.0
        asking = loop.create_task(world.start())
        await asyncio.sleep(3.0)
        await world.vanish("a")
        with pytest.raises(Unavailable, match="scheduler a was followed by another one"):
            await asking
        assert loop.time() == pytest.approx(3.0 + FOLLOWED_S)
        assert (await world.start()).slot.instance_id == "i1"
        assert world.calls.asked == ["a-starts", "b-starts"]

    virtually(test)


def test_a_leader_that_was_about_to_answer_is_heard() -> None:
    async def test(world: World) -> None:
        world.calls.takes_s["a-starts"] = 3.0 + FOLLOWED_S / 2
        asking = asyncio.get_running_loop().create_task(world.start())
        await asyncio.sleep(3.0)
        await world.vanish("a")
        await world.elect("a")
        assert (await asking).slot.instance_id == "i1"
        assert world.calls.asked == ["a-starts"]

    virtually(test)


def test_who_leads_on_is_waited_for_as_long_as_the_start_takes() -> None:
    async def test(world: World) -> None:
        world.calls.takes_s["a-starts"] = 30.0
        asking = asyncio.get_running_loop().create_task(world.start())
        await asyncio.sleep(3.0)
        await world.vanish("b")
        await world.elect("b")
        assert (await asking).slot.instance_id == "i1"
        await world.vanish("b")
        asking = asyncio.get_running_loop().create_task(world.start())
        await asyncio.sleep(3.0)
        await world.vanish("a")  # nobody else leads
        assert (await asking).slot.instance_id == "i1"
        assert asyncio.get_running_loop().time() == pytest.approx(60.0)

    virtually(test)
