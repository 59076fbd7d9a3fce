"""An asyncio loop in which waiting takes no time: hundreds of virtual seconds run in a millisecond.

Where an ordinary loop's selector would sleep until the next timer, this one's moves a counter there. Everything that counts time by
the loop (`asyncio.timeout`, `call_later`, `LoopClock`) follows. Descriptors that are ready are served before time moves. Threads and
other processes live in real time: a loop that waits for them alone waits for real, at most `STALL_S`, and time does not move while a
thread works for the loop (`asyncio.to_thread`), so that nothing is late because the machine is busy.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Args = TypeVarTuple("Args")

STALL_S = 10.0
"""Real seconds after which a loop with neither a timer nor a ready descriptor counts as stuck."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._selector_of_time = _TimeSelector()
        super().__init__(self._selector_of_time)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._selector_of_time.now_s

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Args], T], *args: *Args) -> asyncio.Future[T]:
        future = super().run_in_executor(executor, func, *args)
        self._selector_of_time.in_threads += 1
        future.add_done_callback(self._selector_of_time.came_back)
        return future


class LoopClock:
    """A `tessera.clock.Clock` that follows the running loop; with `VirtualTimeLoop` nobody has to advance it."""

    def __init__(self, wall_s: float = 1_700_000_000.0) -> None:
        self._wall_s = wall_s

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()

    def wall_s(self) -> float:
        return self._wall_s + self.monotonic_s()

    async def sleep(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        woken = loop.create_future()
        handle = loop.call_later(max(0.0, seconds), _wake, woken)
        try:
            await woken
        finally:
            handle.cancel()


def run_virtual(main: Callable[[], Awaitable[T]]) -> T:
    """Runs `main()` to its end in virtual time.

    Raises: RuntimeError when everything waits and nothing can come (a deadlock), instead of hanging.
    """

    async def call() -> T:
        return await main()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(call())


class _TimeSelector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.in_threads = 0

    def came_back(self, _: asyncio.Future[Any]) -> None:
        self.in_threads -= 1

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, Any]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if timeout is None:
            ready = super().select(STALL_S)
            if not ready:
                raise RuntimeError("everything waits and nothing can come: a deadlock")
            return ready
        # A thread that itself waits for what only comes with time must not hold it for ever.
        if self.in_threads and (ready := super().select(STALL_S)):
            return ready
        self.now_s += timeout
        return []


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
