"""Brings the blobs of an artifact from a repository into a tensor store: verified on arrival, each once, a few at a time.

Called from worker threads (`asyncio.to_thread`); calls that want the same blob at the same time share one copying.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field

from tessera.domain.artifact import Artifact, Blob
from tessera.domain.errors import Cancelled, DataCorrupted, NotFound
from tessera.domain.ids import Digest
from tessera.repository.interface import RepositoryReader
from tessera.tensorstore.artifact import decode
from tessera.tensorstore.interface import TensorStore

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), from several threads, one call at a time."""

_CANCEL_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Fetched:
    """`digests` were copied by this call, `bytes_fetched` in all; what was there or came by another call is not among them."""

    bytes_fetched: int
    digests: tuple[Digest, ...]


class Fetcher:
    """One per store. At most `concurrency` blobs of a call are copied at a time.

    `before_reclaim` is called, in the worker thread, before the store is asked for room that it does not have free: whoever maps blobs
    without holding them can let go first, because an unlinked file that is mapped frees nothing.
    """

    def __init__(
        self,
        repository: RepositoryReader,
        store: TensorStore,
        concurrency: int = 4,
        before_reclaim: Callable[[], None] = lambda: None,
    ) -> None:
        self._before_reclaim = before_reclaim
        self._repository = repository
        self._store = store
        self._concurrency = concurrency
        self._lock = threading.Lock()
        self._in_flight: dict[Digest, Future[None]] = {}

    def fetch_artifact(
        self, artifact: Digest, holder: str, progress: Progress | None = None, cancel: threading.Event | None = None
    ) -> tuple[Artifact, Fetched]:
        """Brings in the artifact's own blob and then everything that it names; see `fetch`. Returns what it says, too.

        Raises:
            NotFound: the repository lacks the artifact or one of its blobs.
            DataCorrupted: bytes differ from their digest, or it is no artifact.
            ResourceExhausted: the store cannot make the room.
            Cancelled: `cancel` was set.
        """
        with _Pins(self._store, holder) as pins:
            own = () if pins.try_pin(artifact) else (Blob(artifact, self._size_of(artifact)),)
            first = self.fetch(own, holder, cancel=cancel)
            pins.add(first.digests)
            found = decode(self._store.path(artifact).read_bytes())
            second = self.fetch(found.blobs(), holder, progress, cancel)
            pins.keep()
            return found, Fetched(first.bytes_fetched + second.bytes_fetched, first.digests + second.digests)

    def fetch(self, blobs: Iterable[Blob], holder: str, progress: Progress | None = None, cancel: threading.Event | None = None) -> Fetched:
        """Brings in those of `blobs` that the store lacks. All of them are held by `holder` when this returns; on an error the holds
        that this call added are dropped again. `cancel` is looked at between chunks. Blocks; room is made for all before the first byte.

        Raises:
            NotFound: the repository lacks one.
            DataCorrupted: bytes differ from their digest or length; that blob is not in the store.
            ResourceExhausted: the store cannot make the room.
            Cancelled: `cancel` was set.
        """
        wanted = {blob.digest: blob for blob in blobs}
        with _Pins(self._store, holder) as pins:
            missing = [blob for blob in wanted.values() if not pins.try_pin(blob.digest)]
            if not missing:
                pins.keep()
                return Fetched(0, ())
            pins.add(blob.digest for blob in missing)
            with self._lock:  # what another call copies now has its room already
                needed = sum(blob.size_bytes for blob in missing if blob.digest not in self._in_flight)
            if not self._store.fits(needed):
                self._before_reclaim()
            self._store.make_room(needed)
            call = _Call(holder, _Count(sum(blob.size_bytes for blob in missing), progress), cancel or threading.Event())
            copied = self._run(missing, call)
            pins.keep()
        return Fetched(sum(blob.size_bytes for blob in copied), tuple(blob.digest for blob in copied))

    def _run(self, missing: list[Blob], call: _Call) -> list[Blob]:
        """Copies in threads; the first error stops the others between two chunks and is raised."""
        with ThreadPoolExecutor(min(self._concurrency, len(missing)), thread_name_prefix="fetch") as pool:
            # Large ones first, so that the last thread to end has a small one.
            largest_first = sorted(missing, key=lambda blob: -blob.size_bytes)
            tasks = {pool.submit(self._bring, blob, call): blob for blob in largest_first}
            try:
                for task in _as_done(tasks):
                    task.result()
            except BaseException:
                call.stop.set()
                for task in tasks:
                    task.cancel()
                raise
        return [blob for task, blob in tasks.items() if task.result()]

    def _bring(self, blob: Blob, call: _Call) -> bool:
        """True when this call copied it. Whoever finds another call copying waits, and takes over if that one does not finish."""
        while True:
            call.raise_if_cancelled()
            with self._lock:
                other = self._in_flight.get(blob.digest)
                if other is None:
                    mine: Future[None] = Future()
                    self._in_flight[blob.digest] = mine
            if other is None:
                break
            while not wait((other,), timeout=_CANCEL_POLL_S).done:
                call.raise_if_cancelled()
        try:
            if self._pin(call.holder, blob.digest):  # came while we waited
                call.count.add(blob.size_bytes)
                return False
            self._copy(blob, call)
            return True
        finally:
            with self._lock:
                del self._in_flight[blob.digest]
            mine.set_result(None)

    def _copy(self, blob: Blob, call: _Call) -> None:
        with (
            closing(self._repository.open_reader(blob.digest, verify=False)) as chunks,  # the writer hashes what arrives
            self._store.ingest(blob.digest, blob.size_bytes, call.holder) as writer,
        ):
            for chunk in chunks:
                call.raise_if_cancelled()
                writer.write(chunk)
                call.count.add(len(chunk))
            try:
                writer.commit()
            except DataCorrupted as error:
                raise DataCorrupted(f"{error.message} (from the repository)") from error

    def _pin(self, holder: str, digest: Digest) -> bool:
        try:
            self._store.pin(holder, (digest,))
        except NotFound:
            return False
        return True

    def _size_of(self, digest: Digest) -> int:
        return sum(piece.length for piece in self._repository.locate(digest))


def _as_done(tasks: Iterable[Future[bool]]) -> Iterable[Future[bool]]:
    pending = set(tasks)
    while pending:
        done = wait(pending, return_when="FIRST_COMPLETED").done
        pending -= done
        yield from done


@dataclass(slots=True)
class _Count:
    total: int
    report: Progress | None
    done: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, size_bytes: int) -> None:
        with self.lock:
            self.done += size_bytes
            if self.report is not None:
                self.report(self.done, self.total)


@dataclass(slots=True)
class _Call:
    """One call of `fetch`: whom it holds for, how far it is, and whether it shall end (asked for, or one of its threads failed)."""

    holder: str
    count: _Count
    cancel: threading.Event
    stop: threading.Event = field(default_factory=threading.Event)

    def raise_if_cancelled(self) -> None:
        if self.cancel.is_set() or self.stop.is_set():
            raise Cancelled(f"fetching for {self.holder} was cancelled after {self.count.done} of {self.count.total} bytes")


class _Pins:
    """The holds that a call adds; dropped at the end of the block unless `keep` was said. Holds from before stay in any case."""

    def __init__(self, store: TensorStore, holder: str) -> None:
        self._store = store
        self._holder = holder
        self._before = store.holders().get(holder, frozenset())
        self._added: set[Digest] = set()
        self._kept = False

    def try_pin(self, digest: Digest) -> bool:
        try:
            self._store.pin(self._holder, (digest,))
        except NotFound:
            return False
        self._added.add(digest)
        return True

    def add(self, digests: Iterable[Digest]) -> None:
        self._added.update(digests)

    def keep(self) -> None:
        self._kept = True

    def __enter__(self) -> _Pins:
        return self

    def __exit__(self, *error: object) -> None:
        if not self._kept:
            self._store.unpin(self._holder, self._added - self._before)
