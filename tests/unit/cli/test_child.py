"""When the supervisor starts again what ended, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tessera.cli.embedded.child import BACK_OFF_S, STEADY_S, BackOff, Child, keep
from tessera.testing import VirtualClock


class ScriptedChild(Child):
    """Ends when the test says so. `failing` starts raise OSError."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__("etcd", [], Path("/dev/null"))
        self.clock = clock
        self.starts: list[float] = []
        self.failing = 0
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def start(self) -> None:
        if self.failing:
            self.failing -= 1
            raise OSError(11, "Resource temporarily unavailable")
        self.starts.append(self.clock.monotonic_s())
        self._ended = asyncio.get_running_loop().create_future()

    def end(self, code: int = -9) -> None:
        self._ended.set_result(code)

    async def wait(self) -> int:
        return await self._ended


class Kept:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.child = ScriptedChild(self.clock)
        self.recorded: list[int] = []
        self.said: list[str] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Kept]:
        self.child.start()
        async with asyncio.TaskGroup() as group:
            keeper = group.create_task(keep(self.child, self.clock, lambda: self.recorded.append(self.child.restarts), self.said.append))
            await self.clock.advance(0)
            yield self
            keeper.cancel()

    async def pause_after(self, ran_s: float) -> float:
        """Ends the child after a run of `ran_s`; returns how long it was down."""
        await self.clock.advance(ran_s)
        ended_s, starts = self.clock.monotonic_s(), len(self.child.starts)
        self.child.end()
        await self.clock.advance(2 * BACK_OFF_S[-1])
        assert len(self.child.starts) == starts + 1
        # What passes until the next end counts as its run.
        return round(self.child.starts[-1] - ended_s, 3)


async def test_pauses_grow_while_it_ends_at_once() -> None:
    async with Kept().running() as kept:
        assert [await kept.pause_after(0.1) for _ in range(7)] == [0.2, 0.5, 1.0, 2.0, 5.0, 5.0, 5.0]
        assert kept.child.restarts == 7
        assert kept.recorded == [1, 2, 3, 4, 5, 6, 7]


async def test_a_steady_run_makes_the_next_pauses_short_again() -> None:
    async with Kept().running() as kept:
        for _ in range(6):
            await kept.pause_after(0.1)
        assert [await kept.pause_after(ran_s) for ran_s in (STEADY_S + 1, 0.1, 0.1)] == [0.2, 0.5, 1.0]
        assert kept.child.restarts == 9, "the count is of its whole life"


async def test_a_start_that_fails_is_tried_again_with_growing_pauses() -> None:
    async with Kept().running() as kept:
        kept.child.failing = 3
        ended_s = kept.clock.monotonic_s()
        kept.child.end()
        await kept.clock.advance(0.2 + 0.5 + 1.0 + 1.9)
        assert (len(kept.child.starts), kept.recorded) == (1, [])
        await kept.clock.advance(0.1)
        assert kept.child.starts[1] - ended_s == pytest.approx(0.2 + 0.5 + 1.0 + 2.0)
        assert kept.recorded == [1]
        assert kept.said[1] == "etcd could not be started: [Errno 11] Resource temporarily unavailable; starting it again in 0.5 s"


@pytest.mark.parametrize(("ran_s", "pause_s"), [(STEADY_S, BACK_OFF_S[-1]), (STEADY_S + 0.1, BACK_OFF_S[0])])
def test_steady_begins_after_its_limit(ran_s: float, pause_s: float) -> None:
    assert BackOff(quick_ends=9).after(ran_s) == pause_s


def test_a_program_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Child("etcd", [str(tmp_path / "no-such-program")], tmp_path / "log").start()
