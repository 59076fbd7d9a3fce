"""Owned tasks: none outlives its owner, none fails unseen."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from tessera.domain.errors import Conflict
from tessera.program import Stop, Tasks, to_the_end


async def forever() -> None:
    await asyncio.Event().wait()


async def fail(error: BaseException) -> None:
    raise error


async def test_leaving_cancels_and_waits() -> None:
    ended = []

    async def work(name: str) -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0.01)
            ended.append(name)

    async with Tasks(Stop()) as tasks:
        tasks.start("a", work("a"))
        tasks.start("b", work("b"))
        await asyncio.sleep(0)
        assert len(tasks) == 2
    assert sorted(ended) == ["a", "b"]
    assert len(tasks) == 0


async def test_a_failure_stops_the_program_and_comes_out() -> None:
    stop = Stop()
    other: list[str] = []

    async def watcher() -> None:
        try:
            await forever()
        finally:
            other.append("cancelled")

    async def body() -> None:
        async with Tasks(stop) as tasks:
            tasks.start("watch", watcher())
            tasks.start("report", fail(Conflict("lost")))
            await stop.wait()

    with capture_logs() as lines, pytest.raises(Conflict, match="lost"):
        await asyncio.wait_for(body(), 5)
    assert stop.reason == "task 'report' failed"
    assert isinstance(stop.error, Conflict)
    assert other == ["cancelled"]
    (line,) = lines
    assert (line["log_level"], line["name"], line["kind"], line["error"]) == ("error", "report", "conflict", "lost")
    assert "exc_info" not in line


async def test_an_unexpected_failure_is_told_with_its_traceback() -> None:
    stop = Stop()
    tasks = Tasks(stop)
    error = ZeroDivisionError("by zero")
    with capture_logs() as lines:
        tasks.start("odd", fail(error))
        await asyncio.wait_for(stop.wait(), 5)
        await tasks.aclose()
    (line,) = lines
    assert (line["log_level"], line["name"], line["error"]) == ("error", "odd", "by zero")
    assert line["exc_info"] is error


async def test_the_error_of_the_block_wins() -> None:
    async def body() -> None:
        async with Tasks(Stop()) as tasks:
            tasks.start("report", fail(Conflict("lost")))
            await asyncio.sleep(0.01)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await body()


async def test_the_end_of_a_task_is_no_failure() -> None:
    stop = Stop()
    async with Tasks(stop) as tasks:
        done = tasks.start("short", asyncio.sleep(0))
        await done
        cancelled = tasks.start("long", forever())
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait({cancelled})
        assert len(tasks) == 0
    assert not stop.is_set()


async def test_a_failure_while_ending_comes_out_too() -> None:
    async def stubborn() -> None:
        try:
            await forever()
        finally:
            raise OSError("could not clean up")

    async def body() -> None:
        async with Tasks(Stop()) as tasks:
            tasks.start("stubborn", stubborn())
            await asyncio.sleep(0)

    with pytest.raises(OSError, match="clean up"):
        await body()


async def test_nothing_starts_after_the_end() -> None:
    async with Tasks(Stop()) as tasks:
        pass
    with pytest.raises(RuntimeError, match="'late'"):
        tasks.start("late", forever())


async def test_one_owner_may_start_from_its_tasks() -> None:
    stop = Stop()
    seen = []

    async with Tasks(stop) as tasks:

        async def parent() -> None:
            tasks.start("child", child())

        async def child() -> None:
            seen.append("child")
            stop.request("done")

        tasks.start("parent", parent())
        await asyncio.wait_for(stop.wait(), 5)
    assert seen == ["child"]


async def test_stop_keeps_the_first_reason_and_the_first_error() -> None:
    stop = Stop()
    assert not await stop.wait_for(0.001)
    stop.request("signal SIGTERM")
    error = KeyError("x")
    stop.request("later", error)
    stop.request("latest", ValueError())
    assert (stop.reason, stop.error) == ("signal SIGTERM", error)
    assert await stop.wait_for(10)


async def test_work_side_by_side_ends_wholly_before_the_first_failure_is_raised() -> None:
    ended: list[int] = []

    async def work(number: int) -> int:
        for _ in range(number):
            await asyncio.sleep(0)
        ended.append(number)
        if number in (1, 2):
            raise ValueError(f"work {number}")
        return number

    with pytest.raises(ValueError, match="work 2"):
        await to_the_end(map(work, (3, 2, 1)))
    assert ended == [1, 2, 3]
    assert await to_the_end(map(work, (4, 0))) == [4, 0]
