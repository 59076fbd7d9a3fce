"""One worker thread for what blocks in a job: in order, so that a late write of one job never meets the next job's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_NOTHING = object()


class WorkThread:
    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batch")

    async def run(self, call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Cancelled, it leaves the call to end by itself; later ones wait for it."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: call(*arguments, **options))

    async def drain(self, pieces: Iterator[T]) -> T | None:
        """The last of what `pieces` yields; between two of them others come in, and it may be cancelled: it is closed then."""
        last: T | None = None
        try:
            while (found := await self.run(next, pieces, _NOTHING)) is not _NOTHING:
                last = found  # type: ignore[assignment] # one sentinel, told apart by identity
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                self._pool.submit(close)
        return last

    def close(self) -> None:
        """Waits for what runs."""
        self._pool.shutdown(wait=True, cancel_futures=True)
