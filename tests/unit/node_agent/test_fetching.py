"""How far a fetch is, told from other threads."""

from __future__ import annotations

import asyncio
from typing import Any

from tessera.domain.ids import InstanceId
from tessera.domain.instance import InstanceState
from tessera.node_agent.core.table import InstanceTable
from tessera.node_agent.loops.fetching import FetchProgress
from tessera.testing import VirtualClock


async def test_it_is_noted_some_times_a_second_and_said_once_a_second(make: Any) -> None:
    clock, table = VirtualClock(), InstanceTable()
    table.add(make.instance("a"), "test")
    table.move(InstanceId("a"), InstanceState.FETCHING, 0.0, "test")
    progress = FetchProgress(table, InstanceId("a"), clock)
    noted = []
    for step in range(30):
        await asyncio.to_thread(progress, step, 30)
        clock.move(0.0625)
        await asyncio.sleep(0)
        instance = table.get(InstanceId("a"))
        assert instance.fetch_total_bytes in (0, 30)
        noted.append(instance.fetch_done_bytes)
    assert sorted(set(noted)) == [0, 4, 8, 12, 16, 20, 24, 28]
    assert table.get(InstanceId("a")).whereabouts == "fetching (28 of 30 bytes)"
    assert [line.words for line in table.story(InstanceId("a"))][2:] == ["16 of 30 bytes fetched"]


async def test_what_comes_late_changes_nothing(make: Any) -> None:
    clock, table = VirtualClock(), InstanceTable()
    progress = FetchProgress(table, InstanceId("gone"), clock)
    clock.move(2.0)
    progress(1, 2)
    table.add(make.instance("gone"), "test")
    await asyncio.sleep(0)
    assert table.get(InstanceId("gone")).fetch_total_bytes == 0
