"""Order of stopping: siblings stop together, and what they depend on stops after all of them have ended.

A gateway's servers are siblings; the session with etcd that they use is a dependency: it keeps its lease until the last request has
been answered. Dependencies may have dependencies of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import structlog

from tessera.program._stop import Stop
from tessera.program._tasks import log_failure

_log = structlog.get_logger(_logger="tessera.program")

Routine = Callable[[Stop], Awaitable[None]]
"""Runs until its work is done or the given stop is set, then cleans up and returns."""


class Routines:
    """One level of routines and, through `dependencies`, the level below it.

    `async with Routines(stop) as routines:` - the block starts routines and ends; leaving it waits until all of them have ended. A
    routine that fails stops the program, and so does an exception in the block; both come out at the end. A routine that has not
    ended `grace_s` seconds after its stop was set is cancelled, with its name in the log.
    """

    def __init__(self, stop: Stop, grace_s: float = 30.0) -> None:
        self._program = stop
        self._stop = stop
        self._grace_s = grace_s
        self._running: dict[asyncio.Task[None], str] = {}
        self._below: Routines | None = None
        self._failure: BaseException | None = None

    @property
    def stop(self) -> Stop:
        """What the routines of this level wait for: the program's stop at the top, the end of the level above below it."""
        return self._stop

    @property
    def dependencies(self) -> Routines:
        """The level that stops once every routine of this one has ended."""
        if self._below is None:
            self._below = Routines(self._program, self._grace_s)
            self._below._stop = Stop()
        return self._below

    def start(self, name: str, routine: Routine) -> None:
        task = asyncio.create_task(self._guard(name, routine), name=name)
        self._running[task] = name
        task.add_done_callback(lambda done: self._running.pop(done, None))

    async def _guard(self, name: str, routine: Routine) -> None:
        try:
            await routine(self._stop)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            log_failure("routine failed", name, error)
            if self._failure is None:
                self._failure = error
            self._program.request(f"routine {name!r} failed", error)

    async def wait(self) -> None:
        """Waits until this level has ended, then stops the level below and waits for that.

        Raises: the first failure, that of the upper level first.
        """
        failure = await self._wait_all()
        if failure is not None:
            raise failure

    async def _wait_all(self) -> BaseException | None:
        while self._running and not self._stop.is_set():
            waker = asyncio.create_task(self._stop.wait())
            try:
                await asyncio.wait({waker, *self._running}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waker.cancel()
        if self._running:
            await asyncio.wait(set(self._running), timeout=self._grace_s)
        await self._cancel_late()
        below = None
        if self._below is not None:
            self._below._stop.request("everything that depends on it has ended")
            below = await self._below._wait_all()
        return self._failure or below

    async def _cancel_late(self) -> None:
        late = dict(self._running)
        for task, name in late.items():
            _log.warning("routine did not stop in time", name=name, grace_s=self._grace_s)
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        if error is not None:
            self._program.request("the program's main failed", error)
        failure = await self._wait_all()
        if error is None and failure is not None:
            raise failure
