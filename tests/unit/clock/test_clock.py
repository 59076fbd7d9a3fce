"""The system's clock, and the ones tests use in its place."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.clock import Clock, SystemClock
from tessera.testing import LoopClock, VirtualClock, run_virtual


async def test_the_system_clock_reads_and_waits() -> None:
    clock: Clock = SystemClock()
    before = clock.monotonic_s()
    await clock.sleep(0.01)
    assert clock.monotonic_s() - before >= 0.009
    assert abs(clock.wall_s() - time.time()) < 60


async def test_a_virtual_clock_stands_still() -> None:
    clock: Clock = VirtualClock(monotonic_s=5, wall_s=50)
    await asyncio.sleep(0.01)
    assert (clock.monotonic_s(), clock.wall_s()) == (5, 50)


async def test_sleepers_wake_in_order_at_their_own_time() -> None:
    clock = VirtualClock(monotonic_s=0)
    seen: list[tuple[str, float]] = []

    async def sleeper(name: str, *naps: float) -> None:
        for nap in naps:
            await clock.sleep(nap)
            seen.append((name, clock.monotonic_s()))

    async with asyncio.TaskGroup() as group:
        group.create_task(sleeper("late", 3))
        group.create_task(sleeper("twice", 1, 1.5))
        group.create_task(sleeper("tie", 1))
        await clock.advance(0.999)
        assert seen == []
        assert clock.sleepers == 3
        await clock.advance(0.001)
        assert seen == [("twice", 1), ("tie", 1)]
        await clock.advance(10)
        assert seen[2:] == [("twice", 2.5), ("late", 3)]
    assert clock.monotonic_s() == 11
    assert clock.sleepers == 0


async def test_one_nanosecond_before_the_deadline_nobody_wakes() -> None:
    clock = VirtualClock(monotonic_s=0)
    sleeping = asyncio.ensure_future(clock.sleep(1))
    await clock.advance(1 - 1e-9)
    assert not sleeping.done()
    await clock.advance(2e-9)
    assert sleeping.done()


async def test_a_cancelled_sleeper_is_gone() -> None:
    clock = VirtualClock()
    sleeping = asyncio.ensure_future(clock.sleep(1))
    await clock.advance(0)
    sleeping.cancel()
    await clock.advance(2)
    assert sleeping.cancelled()
    assert clock.sleepers == 0


async def test_no_time_is_one_turn() -> None:
    clock = VirtualClock()
    await asyncio.wait_for(clock.sleep(0), 1)
    await asyncio.wait_for(clock.sleep(-1), 1)


def test_moving_and_jumping() -> None:
    clock = VirtualClock(monotonic_s=1, wall_s=100)
    clock.move(2)
    assert (clock.monotonic_s(), clock.wall_s()) == (3, 102)
    clock.jump_wall(-50)
    assert (clock.monotonic_s(), clock.wall_s()) == (3, 52)
    with pytest.raises(ValueError, match="back"):
        clock.move(-1)


async def test_moving_wakes_who_is_due() -> None:
    clock = VirtualClock()
    sleeping = asyncio.ensure_future(clock.sleep(1))
    await asyncio.sleep(0)
    clock.move(1)
    await asyncio.wait_for(sleeping, 1)


def test_a_loop_in_virtual_time_does_not_wait() -> None:
    clock = LoopClock(wall_s=0)
    seen: list[tuple[str, float]] = []

    async def tick(name: str, period: float, times: int) -> None:
        for _ in range(times):
            await clock.sleep(period)
            seen.append((name, round(clock.monotonic_s(), 6)))

    async def main() -> float:
        async with asyncio.TaskGroup() as group:
            group.create_task(tick("a", 100, 3))
            group.create_task(tick("b", 150, 2))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1000):
                await asyncio.Event().wait()
        assert clock.wall_s() == clock.monotonic_s()
        return clock.monotonic_s()

    began = time.monotonic()
    assert run_virtual(main) == pytest.approx(1300)
    assert time.monotonic() - began < 60
    assert seen == [("a", 100), ("b", 150), ("a", 200), ("b", 300), ("a", 300)] or seen[3:] == [("a", 300), ("b", 300)]


def test_a_deadlock_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessera.testing._loop.STALL_S", 0.05)

    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="deadlock"):
        run_virtual(main)


def test_time_stands_still_while_a_thread_works() -> None:
    async def main() -> float:
        async with asyncio.timeout(1):
            await asyncio.to_thread(time.sleep, 0.2)
        return asyncio.get_running_loop().time()

    assert run_virtual(main) == 0


def test_a_thread_that_waits_for_time_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessera.testing._loop.STALL_S", 0.05)

    async def main() -> bool:
        later = threading.Event()
        asyncio.get_running_loop().call_later(100, later.set)
        return await asyncio.to_thread(later.wait, 60)

    assert run_virtual(main)


def test_threads_and_sockets_are_served_in_real_time() -> None:
    async def main() -> bytes:
        got = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            got.set_result(await reader.readexactly(5))
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        assert await asyncio.to_thread(sum, [1, 2, 3]) == 6
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"hello")
        try:
            data: bytes = await got
            return data
        finally:
            writer.close()
            await writer.wait_closed()
            server.close()
            await server.wait_closed()

    assert run_virtual(main) == b"hello"


@given(st.lists(st.floats(0.001, 1e5), min_size=1, max_size=20))
def test_virtual_time_never_goes_back_and_never_wakes_early(naps: list[float]) -> None:
    clock = LoopClock()

    async def nap(seconds: float) -> None:
        before = clock.monotonic_s()
        await clock.sleep(seconds)
        assert clock.monotonic_s() - before >= seconds - 1e-6

    async def main() -> float:
        async with asyncio.TaskGroup() as group:
            for seconds in naps:
                group.create_task(nap(seconds))
        return clock.monotonic_s()

    assert run_virtual(main) == pytest.approx(max(naps), rel=1e-6)
