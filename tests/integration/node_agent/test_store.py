"""What becomes of blobs: holds end with their holders, what nobody holds expires or yields to pressure, and nothing that is used goes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.api.node.v1 import node_pb2
from tessera.domain.errors import TesseraError
from tessera.node_agent.adapters.processes import Watched, kill_listener
from tessera.tensorstore.local import LocalTensorStore
from tessera.testing.blobs import StepClock, blob_of, put

NO_PRESSURE = {"pressure_reserve_bytes": 0, "pressure_stall_share": 0.0}


async def inspect(agent: Any) -> node_pb2.CheckStoresResponse:
    answer: node_pb2.CheckStoresResponse = await agent.stub.CheckStores(node_pb2.CheckStoresRequest(), timeout=30)
    return answer


def when_blobs(agent: Any, condition: Callable[[int], bool]) -> Any:
    async def look() -> bool:
        return condition((await inspect(agent)).blobs)

    return agent.until(look)


async def answers_right(kit: Any, instance: Any, model: Any) -> None:
    x = np.random.default_rng(3).standard_normal((2, kit.width)).astype(np.float32)
    client = await kit.direct(instance)
    got = await kit.ask(client, instance.generation, x)
    client.close()
    assert np.allclose(got, model.expected(x), atol=1e-4)


async def test_a_hold_ends_within_a_second_of_a_kill_whatever_the_clock_says(tmp_path: Path) -> None:
    with LocalTensorStore(tmp_path / "store", 1000, StepClock()) as store:
        digest = put(store, blob_of(1, 900), "rt-1")
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(60)")
        Watched(child.pid, lambda: store.unpin("rt-1", None))
        with pytest.raises(TesseraError, match="pinned 900 by rt-1"):
            store.make_room(200)
        os.kill(child.pid, signal.SIGKILL)
        async with asyncio.timeout(1):
            while store.holders():  # noqa: ASYNC110 - the kernel tells the loop; the store has no event for it
                await asyncio.sleep(0.005)
        assert store.make_room(200) == [digest]
        await child.wait()


async def test_a_killed_runtime_leaves_its_room_to_the_next(agent: Any, kit: Any, sigkill: Any) -> None:
    first, second, third = (kit.make_linear(agent.repository, "ort", seed) for seed in range(3))
    await agent.start(stores=[{"budget_bytes": 40_000}], evict_idle_s=1e6, **NO_PRESSURE)
    one = await agent.start_instance("a", first.artifact)
    await agent.start_instance("b", second.artifact)
    with pytest.raises(TesseraError, match=r"does not fit into the node's store: .* in use by linear@1/any \(instance a, ready\): \d+"):
        await agent.start_instance("c", third.artifact)
    sigkill(one.pid)

    async def starts() -> bool:
        try:
            await agent.start_instance(f"d{os.urandom(3).hex()}", third.artifact)
        except TesseraError:
            return False
        return True

    await agent.until(starts)
    assert await agent.check() == []


async def test_a_model_larger_than_the_store_says_so(agent: Any, kit: Any) -> None:
    model = kit.make_linear(agent.repository, "ort", 1)
    await agent.start(stores=[{"budget_bytes": 10_000}], **NO_PRESSURE)
    with pytest.raises(TesseraError, match=r"bytes needed, budget 10000, which is \d+ more than all of it") as caught:
        await agent.start_instance("a", model.artifact)
    assert caught.value.kind == "resource_exhausted"


async def test_what_nobody_uses_expires_and_is_fetched_again(agent: Any, kit: Any) -> None:
    model, other = (kit.make_linear(agent.repository, "ort", seed) for seed in (1, 2))
    await agent.start(tensor_keep_alive_s=0.5, reclaim_policy="keep-alive", **NO_PRESSURE)
    await agent.start_instance("a", model.artifact)
    kept = await agent.start_instance("b", other.artifact)
    await agent.stop_instance("a")  # its runtime keeps it mapped for the next load, until it is asked to let go
    await when_blobs(agent, lambda blobs: blobs == 4)
    found = await inspect(agent)
    assert (list(found.findings), found.unlinked_bytes) == ([], 0)
    await answers_right(kit, kept, other)
    again = await agent.start_instance("c", model.artifact)
    assert again.fetched
    await answers_right(kit, again, model)
    assert (await agent.status()).stores[0].reclaimed_bytes > 0


async def test_a_policy_without_a_window_keeps_what_fits(agent: Any, kit: Any) -> None:
    model = kit.make_linear(agent.repository, "ort", 1)
    await agent.start(tensor_keep_alive_s=0.0, reclaim_policy="shared-cost", **NO_PRESSURE)
    await agent.start_instance("a", model.artifact)
    await agent.stop_instance("a")
    await asyncio.sleep(2.5)  # two passes of the keeper
    assert not (await agent.start_instance("b", model.artifact)).fetched


async def test_under_pressure_what_nobody_holds_goes_below_the_budget(agent: Any, kit: Any) -> None:
    model, other = (kit.make_linear(agent.repository, "ort", seed) for seed in (1, 2))
    await agent.start(pressure_reserve_bytes=1 << 50)  # more than any machine has left
    kept = await agent.start_instance("a", model.artifact)
    await agent.start_instance("b", other.artifact)
    await agent.stop_instance("b")
    await when_blobs(agent, lambda blobs: blobs == 4)
    await answers_right(kit, kept, model)
    assert (await inspect(agent)).unlinked_bytes == 0


async def test_a_restarted_agent_reclaims_nothing_that_a_living_runtime_holds(agent: Any, kit: Any) -> None:
    model, other = (kit.make_linear(agent.repository, "ort", seed) for seed in (1, 2))
    settings = {"tensor_keep_alive_s": 0.0, "reclaim_policy": "lru", "pressure_reserve_bytes": 1 << 50}
    await agent.start(reclaim_policy="lru", **NO_PRESSURE)
    serving = await agent.start_instance("a", model.artifact)
    await agent.start_instance("b", other.artifact)
    await agent.stop_instance("b")
    assert (await inspect(agent)).blobs > 4
    agent.kill()
    await agent.hang_up()
    await agent.start(**settings)  # this one gives up whatever it may, from its first second on
    await when_blobs(agent, lambda blobs: blobs == 4)
    assert await agent.check() == []
    await answers_right(kit, serving, model)
    assert not (await agent.start_instance("c", model.artifact)).fetched


async def test_a_runtime_that_cannot_say_what_it_holds_ends_with_the_next_agent(agent: Any, kit: Any, sigkill: Any) -> None:
    model, other = (kit.make_linear(agent.repository, "ort", seed) for seed in (1, 2))
    await agent.start(**NO_PRESSURE)
    hanging = await agent.start_instance("a", model.artifact)
    healthy = await agent.start_instance("b", other.artifact, start_path="fork")
    agent.kill()
    await agent.hang_up()
    os.kill(hanging.pid, signal.SIGSTOP)
    await agent.start(**NO_PRESSURE)
    async with asyncio.timeout(10):
        while Path(f"/proc/{hanging.pid}").exists():  # noqa: ASYNC110 - its zygote reaps it
            await asyncio.sleep(0.02)
    assert await agent.check() == []
    await answers_right(kit, healthy, other)
    assert (await agent.instance("b")).pid == healthy.pid


async def test_nobody_listening_is_nobody_killed(tmp_path: Path) -> None:
    assert await kill_listener(tmp_path / "none.sock", os.geteuid(), 1.0) is None
    server = await asyncio.start_unix_server(lambda reader, writer: None, tmp_path / "left.sock")
    server.close()
    await server.wait_closed()
    assert await kill_listener(tmp_path / "left.sock", os.geteuid(), 1.0) is None


async def test_a_stranger_that_maps_a_blob_is_found_and_its_bytes_count_until_it_ends(agent: Any, kit: Any) -> None:
    model = kit.make_linear(agent.repository, "ort", 1)
    await agent.start(tensor_keep_alive_s=0.5, reclaim_policy="keep-alive", **NO_PRESSURE)
    await agent.start_instance("a", model.artifact)
    path = agent.store / "blobs" / model.tensor
    script = """
import sys, time
from tessera.tensorstore.mapping import BlobMap
view = BlobMap().open(sys.argv[1])
print("mapped", flush=True)
time.sleep(60)
"""
    stranger = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(path), stdout=subprocess.PIPE)
    try:
        assert stranger.stdout is not None
        assert await stranger.stdout.readline() == b"mapped\n"
        assert await agent.check() == [f"process {stranger.pid} maps {model.tensor} and is no runtime of this node"]
        await agent.stop_instance("a")
        await when_blobs(agent, lambda blobs: blobs == 0)
        assert (await inspect(agent)).unlinked_bytes == kit.width * kit.width * 4
    finally:
        stranger.kill()
        await stranger.wait()
    assert (await inspect(agent)).unlinked_bytes == 0


async def test_a_lost_hold_and_a_changed_byte_are_found(agent: Any, kit: Any) -> None:
    model = kit.make_linear(agent.repository, "ort", 1)
    await agent.start(**NO_PRESSURE)
    await agent.start_instance("a", model.artifact)
    path = agent.store / "blobs" / model.tensor
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(b"x" + data[1:])
    path.chmod(0o444)
    assert await agent.check(deep=False) == []
    (finding,) = await agent.check(deep=True)
    assert f"blobs/{model.tensor} has bytes of digest" in finding
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)
    assert await agent.check(deep=True) == []


@pytest.mark.root
async def test_a_tmpfs_that_fills_up_in_the_middle_of_a_fetch_refuses_the_start_and_nothing_else(agent: Any, kit: Any) -> None:
    model, other = (kit.make_linear(agent.repository, "ort", seed) for seed in (1, 2))
    await agent.start(**NO_PRESSURE)
    serving = await agent.start_instance("a", model.artifact)
    ballast = agent.store / "ballast"
    free = os.statvfs(agent.store)
    with ballast.open("wb") as file:  # somebody else's bytes; a page is left, so that the tensor begins and does not end
        os.posix_fallocate(file.fileno(), 0, (free.f_bavail - 4) * free.f_frsize)
    with pytest.raises(TesseraError, match="its file system is full") as caught:
        await agent.start_instance("b", other.artifact)
    assert caught.value.kind == "resource_exhausted"
    assert await agent.check() == []
    await answers_right(kit, serving, model)
    ballast.unlink()
    await answers_right(kit, await agent.start_instance("c", other.artifact), other)
