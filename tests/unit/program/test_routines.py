"""The order of stopping: siblings together, dependencies after all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from tessera.domain.errors import Unavailable
from tessera.program import Routine, Routines, Stop


class Story:
    """What happened, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def routine(self, name: str, clean_up_s: float = 0.0) -> Routine:
        async def run(stop: Stop) -> None:
            self.events.append(f"{name} up")
            await stop.wait()
            self.events.append(f"{name} stopping")
            await asyncio.sleep(clean_up_s)
            self.events.append(f"{name} down")

        return run


async def run(stop: Stop, compose: Callable[[Routines], None], grace_s: float = 5.0) -> None:
    async with asyncio.timeout(20), Routines(stop, grace_s) as routines:
        compose(routines)


async def test_siblings_stop_together_and_dependencies_after_them() -> None:
    story = Story()
    stop = Stop()

    def compose(routines: Routines) -> None:
        routines.dependencies.dependencies.start("lease", story.routine("lease"))
        routines.dependencies.start("store", story.routine("store", 0.01))
        routines.start("server", story.routine("server", 0.03))
        routines.start("loop", story.routine("loop", 0.01))
        asyncio.get_running_loop().call_later(0.05, stop.request, "enough")

    await run(stop, compose)
    assert sorted(story.events[:4]) == ["lease up", "loop up", "server up", "store up"]
    assert sorted(story.events[4:6]) == ["loop stopping", "server stopping"]
    assert story.events[6:] == [
        "loop down",
        "server down",
        "store stopping",
        "store down",
        "lease stopping",
        "lease down",
    ]


async def test_when_all_siblings_have_ended_so_do_the_dependencies() -> None:
    story = Story()
    stop = Stop()

    async def short(_stop: Stop) -> None:
        story.events.append("short done")

    def compose(routines: Routines) -> None:
        routines.dependencies.start("store", story.routine("store"))
        routines.start("short", short)

    await run(stop, compose)
    assert story.events[-2:] == ["store stopping", "store down"]
    assert not stop.is_set()


@pytest.mark.parametrize("below", [False, True])
async def test_a_failure_anywhere_stops_everything_in_order(below: bool) -> None:
    story = Story()
    stop = Stop()

    async def failing(_stop: Stop) -> None:
        await asyncio.sleep(0.01)
        raise Unavailable("gone")

    def compose(routines: Routines) -> None:
        level = routines.dependencies if below else routines
        level.start("failing", failing)
        routines.dependencies.start("store", story.routine("store"))
        routines.start("server", story.routine("server", 0.01))

    with pytest.raises(Unavailable, match="gone"):
        await run(stop, compose)
    assert stop.reason == "routine 'failing' failed"
    assert story.events[-4:] == ["server stopping", "server down", "store stopping", "store down"]


async def test_an_error_of_the_block_stops_everything() -> None:
    story = Story()
    stop = Stop()

    async def body() -> None:
        async with Routines(stop) as routines:
            routines.start("server", story.routine("server"))
            await asyncio.sleep(0.01)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await asyncio.wait_for(body(), 20)
    assert story.events == ["server up", "server stopping", "server down"]
    assert isinstance(stop.error, KeyError)


async def test_who_does_not_stop_in_time_is_cancelled() -> None:
    story = Story()
    stop = Stop()

    async def deaf(_stop: Stop) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            story.events.append("deaf cancelled")

    def compose(routines: Routines) -> None:
        routines.dependencies.start("store", story.routine("store"))
        routines.start("deaf", deaf)
        asyncio.get_running_loop().call_later(0.01, stop.request, "enough")

    with capture_logs() as lines:
        await run(stop, compose, grace_s=0.05)
    assert story.events == ["store up", "deaf cancelled", "store stopping", "store down"]
    assert [(line["log_level"], line["name"], line["grace_s"]) for line in lines] == [("warning", "deaf", 0.05)]


async def test_a_routine_may_start_siblings() -> None:
    story = Story()
    stop = Stop()

    async with asyncio.timeout(20), Routines(stop) as routines:

        async def parent(_stop: Stop) -> None:
            routines.start("child", story.routine("child"))
            asyncio.get_running_loop().call_later(0.01, stop.request, "enough")

        routines.start("parent", parent)
    assert story.events == ["child up", "child stopping", "child down"]
