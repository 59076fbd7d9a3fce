"""One real etcd per test: these tests stop, freeze and kill it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tessera.coord.binary import EtcdProcess
from tessera.coord.etcd import EtcdCoordinator
from tessera.testing.etcd import running_etcd

Connect = Callable[..., EtcdCoordinator]
Until = Callable[[Callable[[], bool | Awaitable[bool]]], Awaitable[None]]


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    with running_etcd(tmp_path) as process:
        yield process


@pytest.fixture
async def connect(etcd: EtcdProcess) -> AsyncIterator[Connect]:
    """Makes coordinators: `connect(*endpoints, **options)`; without endpoints, to the test's etcd."""
    made: list[EtcdCoordinator] = []

    def make(*endpoints: str, **options: Any) -> EtcdCoordinator:
        made.append(EtcdCoordinator(endpoints or [etcd.endpoint], **({"timeout_s": 2.0} | options)))
        return made[-1]

    yield make
    for coordinator in made:
        await coordinator.close()


@pytest.fixture
def until() -> Until:
    """Waits for a condition. Raises: TimeoutError after 30 s, far more than it takes."""

    async def wait(condition: Callable[[], bool | Awaitable[bool]]) -> None:
        async with asyncio.timeout(30.0):
            while True:
                answer = condition()
                if answer if isinstance(answer, bool) else await answer:
                    return
                await asyncio.sleep(0.02)

    return wait
