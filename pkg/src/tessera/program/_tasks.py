"""Background tasks with an owner (house rule 9): none outlives the block, none fails unseen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog

from tessera.domain.errors import TesseraError
from tessera.program._stop import Stop

T = TypeVar("T")

_log = structlog.get_logger(_logger="tessera.program")


class Tasks:
    """`async with Tasks(stop) as tasks: tasks.start("watch models", watch())`.

    A task that raises is logged with its name and stops the program (`stop.request`); leaving the block cancels the others, waits for
    them, and raises the first failure unless an exception is on its way already. A task may also end by itself.
    """

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._closed = False

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs `work` in the background. The task is returned so that it can be cancelled or awaited early; it stays owned."""
        if self._closed:
            work.close()
            raise RuntimeError(f"task {name!r} was started after its owner had ended")
        task = asyncio.create_task(self._guard(name, work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def __len__(self) -> int:
        return len(self._tasks)

    async def _guard(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            log_failure("task failed", name, error)
            if self._failure is None:
                self._failure = error
            self._stop.request(f"task {name!r} failed", error)

    async def aclose(self) -> None:
        """Cancels what runs and waits for it. A task that starts others while it ends is waited for as well."""
        self._closed = True
        while self._tasks:
            waiting = list(self._tasks)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            self._tasks.difference_update(task for task in waiting if task.done())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        await self.aclose()
        if error is None and self._failure is not None:
            raise self._failure


async def to_the_end(work: Iterable[Awaitable[T]]) -> list[T]:
    """Side by side, and all of it to its end, whatever comes of one. Returns the results in order; raises the first failure instead, the
    error itself and no group of one."""
    found = await asyncio.gather(*work, return_exceptions=True)
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return [each for each in found if not isinstance(each, BaseException)]


def log_failure(event: str, name: str, error: BaseException) -> None:
    """One line; with the traceback unless the error's words are meant for people."""
    if isinstance(error, TesseraError) and error.kind != "internal":
        _log.error(event, name=name, kind=error.kind, error=str(error))
    else:
        _log.error(event, name=name, error=str(error) or type(error).__name__, exc_info=error)
