"""The kernel's own limits of memory: what kills a runtime, and what makes a store give way before that."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.domain.errors import TesseraError

pytestmark = pytest.mark.root

MIB = 1 << 20
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


class ControlGroup:
    """A memory control group of the test's own, either version."""

    def __init__(self, name: str, limit_bytes: int) -> None:
        self._v1 = (V1 / "memory.limit_in_bytes").exists()
        self.folder = (V1 if self._v1 else V2) / name
        self.folder.mkdir()
        self.limit(limit_bytes)

    def limit(self, limit_bytes: int) -> None:
        (self.folder / ("memory.limit_in_bytes" if self._v1 else "memory.max")).write_text(str(limit_bytes))

    @property
    def usage_bytes(self) -> int:
        return int((self.folder / ("memory.usage_in_bytes" if self._v1 else "memory.current")).read_text())

    def take(self, pid: int) -> None:
        (self.folder / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        home = self.folder.parent / "cgroup.procs"
        for pid in (self.folder / "cgroup.procs").read_text().split():
            home.write_text(pid)
        self.folder.rmdir()


@pytest.fixture
def control_group() -> Iterator[Callable[[int], ControlGroup]]:
    made: list[ControlGroup] = []

    def make(limit_bytes: int) -> ControlGroup:
        made.append(ControlGroup(f"tessera-test-{os.getpid()}-{len(made)}", limit_bytes))
        return made[-1]

    yield make
    for group in made:
        group.remove()


async def test_a_runtime_that_the_kernel_kills_for_memory_holds_nothing_and_harms_nobody(
    agent: Any, kit: Any, control_group: Callable[[int], ControlGroup]
) -> None:
    """The identity model gives back what it got: a request larger than the limit allows is what kills it."""
    model = kit.make_linear(agent.repository, "ort")
    await agent.start(max_instances_per_runtime=1)
    doomed, other = await agent.start_instance("a"), await agent.start_instance("b", model.artifact)
    assert doomed.runtime_id != other.runtime_id
    pid = next(runtime.pid for runtime in (await agent.status()).runtimes if runtime.runtime_id == doomed.runtime_id)
    control_group(64 * MIB).take(pid)
    client = await kit.direct(doomed)
    with pytest.raises(TesseraError):
        await kit.ask(client, doomed.generation, np.ones(60 * MIB // 4, np.float32), "INPUT0")
    client.close()

    async def lost() -> Any:
        shown = await agent.instance("a")
        return shown if shown is not None and shown.state == "failed" and "signal 9" in shown.error else None

    await agent.until(lost)
    assert await agent.check() == []
    x = np.ones((1, kit.width), np.float32)
    client = await kit.direct(other)
    np.testing.assert_allclose(await kit.ask(client, other.generation, x), model.expected(x), atol=1e-4)
    client.close()
    assert (await agent.start_instance("c")).state == "ready"


async def test_a_store_gives_way_when_its_control_group_runs_short(
    agent: Any, kit: Any, control_group: Callable[[int], ControlGroup]
) -> None:
    """The group's limit falls to little more than what is used; blobs that nobody holds go, what is held stays and answers."""
    models = [kit.make_linear(agent.repository, "ort", width=1024, seed=seed) for seed in range(6)]
    settings = {"pressure_reserve_bytes": 16 * MIB, "pressure_stall_share": 0.0, "tensor_keep_alive_s": 3600.0, "reclaim_policy": "lru"}
    group = control_group(1024 * MIB)
    await agent.start(**settings)
    group.take(agent.process.pid)
    for number, model in enumerate(models):
        await agent.start_instance(f"i{number}", model.artifact)
    for number in range(1, len(models)):
        await agent.stop_instance(f"i{number}")
    full = (await agent.status()).stores[0].used_bytes
    assert full > 6 * 4 * MIB
    group.limit(group.usage_bytes + 4 * MIB)

    async def given_way() -> bool:
        store = (await agent.status()).stores[0]
        return bool(store.used_bytes <= full - 8 * MIB)

    await agent.until(given_way)
    held = await agent.instance("i0")
    client = await kit.direct(held)
    x = np.ones((1, 1024), np.float32)
    np.testing.assert_allclose(await kit.ask(client, held.generation, x), models[0].expected(x), atol=1e-3)
    client.close()
    assert await agent.check() == []
