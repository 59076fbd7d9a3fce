"""Reads a blob from a repository into a writer: a large one in ranges that several threads read at once, a failed range once more.

A range is in memory while it is on its way, never the blob; at most as many are as there are threads. The writer hashes what is there
from the beginning on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from tessera.domain.artifact import Blob
from tessera.domain.errors import DataCorrupted, Unavailable
from tessera.repository.interface import Piece, RepositoryReader
from tessera.telemetry import get_logger
from tessera.tensorstore.interface import Writer

TRIES = 4
PAUSE_S = 0.1
"""Before a second try; three times as long before each one after that."""

_Result = TypeVar("_Result")

_log = get_logger(__name__)


class RangeReader:
    """One for all fetches of a store: its threads are all that reads ranges."""

    def __init__(self, repository: RepositoryReader, threads: int) -> None:
        self._repository = repository
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="range")

    def fill(self, blob: Blob, writer: Writer, moved: Callable[[int], None], check: Callable[[], None]) -> None:
        """Brings what `writer` lacks at its end. `moved` hears of each range; `check` is called between them, and what it raises ends
        the reading. No thread uses the writer any more when this returns or raises.

        Raises:
            NotFound, DataCorrupted: see `RepositoryReader.read_range`.
            Unavailable: a range failed again and again.
            ResourceExhausted: the store's file system is full.
        """
        pieces = self._retried(lambda: self._repository.locate(blob.digest), blob, check)
        stored_bytes = sum(piece.length for piece in pieces)
        if stored_bytes != blob.size_bytes:
            raise DataCorrupted(f"blob {blob.digest} has {stored_bytes} bytes in the repository, not {blob.size_bytes}")
        ranges = _cut(writer.written_bytes, blob.size_bytes, self._repository.range_bytes)
        if blob.size_bytes - writer.written_bytes <= self._repository.range_bytes:
            for part in ranges:
                self._bring(blob, pieces, writer, part, moved, check)
            return
        stop = threading.Event()

        def check_here() -> None:
            if stop.is_set():
                raise Unavailable("another range failed")
            check()

        under_way: set[Future[None]] = set()
        try:
            for part in ranges:
                if len(under_way) >= self._threads:
                    under_way = _some_done(under_way)
                under_way.add(self._pool.submit(self._bring, blob, pieces, writer, part, moved, check_here))
            while under_way:
                under_way = _some_done(under_way)
        finally:
            stop.set()
            wait(under_way)

    def _bring(
        self,
        blob: Blob,
        pieces: Sequence[Piece],
        writer: Writer,
        part: tuple[int, int],
        moved: Callable[[int], None],
        check: Callable[[], None],
    ) -> None:
        check()
        writer.write_at(part[0], self._retried(lambda: self._repository.read_range(blob.digest, pieces, *part), blob, check))
        moved(part[1])

    def _retried(self, call: Callable[[], _Result], blob: Blob, check: Callable[[], None]) -> _Result:
        for attempt in range(1, TRIES):
            try:
                return call()
            except Unavailable as error:
                _log.warning("the repository is asked again", digest=blob.digest, attempt=attempt, reason=str(error))
            for _ in range(3 ** (attempt - 1)):
                threading.Event().wait(PAUSE_S)
                check()
        return call()


def _cut(start: int, end: int, most: int) -> Iterator[tuple[int, int]]:
    for offset in range(start, end, most):
        yield offset, min(most, end - offset)


def _some_done(under_way: set[Future[None]]) -> set[Future[None]]:
    """Waits for at least one and raises what it raised."""
    done, rest = wait(under_way, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    return rest
