"""Brings the blobs of an artifact into a tensor store, from other nodes or the repository: verified on arrival, each once, a few at a time.

Called from worker threads (`asyncio.to_thread`); calls that want the same blob at the same time share one copying.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from tessera.domain.artifact import Artifact, Blob
from tessera.domain.errors import Cancelled, DataCorrupted, NotFound, ResourceExhausted
from tessera.domain.ids import Digest
from tessera.domain.source import Source
from tessera.repository.interface import BlobSources, RepositoryReader, SourceSession
from tessera.repository.ranges import RangeReader
from tessera.tensorstore.artifact import decode
from tessera.tensorstore.interface import TensorStore, Writer

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), from several threads, one call at a time. Done goes back when bytes turn out to be wrong."""

MAX_ARTIFACT_BYTES = 64 << 20
"""What a source says about an artifact's size is believed up to here when the store has no room for it."""

_CANCEL_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Fetched:
    """`digests` were copied by this call, `bytes_fetched` in all, `bytes_from_peers` of them from other nodes; what was there or came by
    another call is not among them. `waited`: for another call's copying, too."""

    bytes_fetched: int
    digests: tuple[Digest, ...]
    bytes_from_peers: int = 0
    waited: bool = False

    def __add__(self, other: Fetched) -> Fetched:
        return Fetched(
            self.bytes_fetched + other.bytes_fetched,
            self.digests + other.digests,
            self.bytes_from_peers + other.bytes_from_peers,
            self.waited or other.waited,
        )


class Fetcher:
    """One per store. At most `concurrency` blobs of a call are copied at a time, and so many ranges of all calls read from the repository.

    `before_reclaim` is called, in the worker thread, before the store is asked for room that it does not have free: whoever maps blobs
    without holding them can let go first, because an unlinked file that is mapped frees nothing.
    """

    def __init__(
        self,
        repository: RepositoryReader,
        store: TensorStore,
        concurrency: int = 4,
        before_reclaim: Callable[[], None] = lambda: None,
        peers: BlobSources | None = None,
    ) -> None:
        self._before_reclaim = before_reclaim
        self._peers = peers
        self._ranges = RangeReader(repository, concurrency)
        self._repository = repository
        self._store = store
        self._concurrency = concurrency
        self._lock = threading.Lock()
        self._in_flight: dict[Digest, Future[None]] = {}

    def fetch_artifact(
        self,
        artifact: Digest,
        holder: str,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
        sources: Iterable[Source] = (),
        neighbours: Iterable[Source] = (),
    ) -> tuple[Artifact, Fetched]:
        """Brings in the artifact's own blob and then everything that it names; see `fetch`. Returns what it says, too. A neighbour that has
        the artifact is taken to have what it names.

        Raises:
            NotFound: neither a source nor the repository has the artifact or one of its blobs.
            DataCorrupted: bytes differ from their digest, or it is no artifact.
            ResourceExhausted: the store cannot make the room.
            Unavailable: the repository does not answer.
            Cancelled: `cancel` was set.
        """
        with _Pins(self._store, holder) as pins, self._call(holder, cancel, sources, neighbours, artifact) as call:
            first = Fetched(0, ()) if pins.try_pin(artifact) else self._fetch_own(artifact, call)
            pins.add(first.digests)
            found = decode(self._store.path(artifact).read_bytes())
            second = self._fetch(found.blobs(), call, progress)
            pins.keep()
            return found, first + second

    def fetch(
        self,
        blobs: Iterable[Blob],
        holder: str,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
        sources: Iterable[Source] = (),
        neighbours: Iterable[Source] = (),
    ) -> Fetched:
        """Brings in those of `blobs` that the store lacks, from `sources` in their order, the rest from the repository. All of them are
        held by `holder` when this returns; on an error the holds that this call added are dropped again. `cancel` is looked at between
        parts of a blob. Blocks; room is made for all before the first byte. `neighbours` are other nodes of which nobody said what they
        have: when something is missing each is asked once, for the largest blob that is.

        Raises:
            NotFound: neither a source nor the repository has one.
            DataCorrupted: bytes in the repository differ from their digest or length; that blob is not in the store.
            ResourceExhausted: the store cannot make the room.
            Unavailable: the repository does not answer.
            Cancelled: `cancel` was set.
        """
        with self._call(holder, cancel, sources, neighbours) as call:
            return self._fetch(blobs, call, progress)

    @contextmanager
    def _call(
        self,
        holder: str,
        cancel: threading.Event | None,
        sources: Iterable[Source],
        neighbours: Iterable[Source],
        artifact: Digest | None = None,
    ) -> Iterator[_Call]:
        call = _Call(holder, cancel or threading.Event(), tuple(neighbours), artifact)
        with ExitStack() as stack:
            if self._peers is not None:
                call.sources = stack.enter_context(self._peers.session(sources, call.raise_if_cancelled))
            yield call

    def _fetch_own(self, artifact: Digest, call: _Call) -> Fetched:
        """The artifact's own blob, whose size nobody has told yet. A source that states a wrong one is blamed for what comes of it."""
        call.find(artifact)
        while True:
            stated = call.sources.size_of(artifact) if call.sources is not None else None
            if call.sources is None or stated is None:
                return self._fetch((Blob(artifact, sum(piece.length for piece in self._repository.locate(artifact))),), call, None)
            size_bytes, source = stated
            try:
                return self._fetch((Blob(artifact, size_bytes),), call, None)
            except (DataCorrupted, ResourceExhausted) as error:
                if size_bytes <= MAX_ARTIFACT_BYTES and isinstance(error, ResourceExhausted):
                    raise
                call.sources.blame((source,), error.message)
                call.stop.clear()

    def _fetch(self, blobs: Iterable[Blob], call: _Call, progress: Progress | None) -> Fetched:
        wanted = {blob.digest: blob for blob in blobs}
        with _Pins(self._store, call.holder) as pins:
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
            call.find(max(missing, key=lambda blob: blob.size_bytes).digest)
            call.count = _Count(sum(blob.size_bytes for blob in missing), progress)
            copied = self._run(missing, call)
            pins.keep()
        digests = tuple(blob.digest for blob, _ in copied)
        waited = len(copied) < len(missing)
        return Fetched(sum(blob.size_bytes for blob, _ in copied), digests, sum(from_peers for _, from_peers in copied), waited)

    def _run(self, missing: list[Blob], call: _Call) -> list[tuple[Blob, int]]:
        """Copies in threads; the first error stops the others between two parts and is raised. Returns what was copied, and how many
        bytes of each came from other nodes."""
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
        return [(blob, from_peers) for task, blob in tasks.items() if (from_peers := task.result()) is not None]

    def _bring(self, blob: Blob, call: _Call) -> int | None:
        """How many bytes of it came from other nodes, or None when another call copied it. Whoever finds another call copying waits, and
        takes over if that one does not finish."""
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
                return None
            return self._copy(blob, call)
        finally:
            with self._lock:
                del self._in_flight[blob.digest]
            mine.set_result(None)

    def _copy(self, blob: Blob, call: _Call) -> int:
        """From the sources and then the repository. Wrong bytes are tried again without those who gave some of them: there is always one
        less, and what is wrong in the repository is wrong for good."""
        while True:
            with self._store.ingest(blob.digest, blob.size_bytes, call.holder) as writer:
                given = call.sources.bring(writer, call.count.add) if call.sources is not None else ()
                from_peers = writer.written_bytes
                self._read_rest(blob, writer, call)
                try:
                    writer.commit()
                    return from_peers
                except DataCorrupted as error:
                    if call.sources is None or not given:
                        raise DataCorrupted(f"{error.message} (from the repository)") from error
                    call.sources.blame(given, error.message)
                    call.count.add(-blob.size_bytes)

    def _read_rest(self, blob: Blob, writer: Writer, call: _Call) -> None:
        if writer.written_bytes < blob.size_bytes:
            self._ranges.fill(blob, writer, call.count.add, call.raise_if_cancelled)

    def _pin(self, holder: str, digest: Digest) -> bool:
        try:
            self._store.pin(holder, (digest,))
        except NotFound:
            return False
        return True


def _as_done(tasks: Iterable[Future[int | None]]) -> Iterable[Future[int | None]]:
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
    """One call of `fetch`: whom it holds for, how far it is, and whether it shall end (asked for, or one of its threads failed).
    `neighbours`: who is still to be asked what it has; about the `artifact`, where it fetches one."""

    holder: str
    cancel: threading.Event
    neighbours: tuple[Source, ...] = ()
    artifact: Digest | None = None
    count: _Count = field(default_factory=lambda: _Count(0, None))
    stop: threading.Event = field(default_factory=threading.Event)
    sources: SourceSession | None = None

    def find(self, digest: Digest) -> None:
        """Asks the neighbours, once a call."""
        neighbours, self.neighbours = self.neighbours, ()
        if self.sources is not None and neighbours:
            self.sources.find(self.artifact or digest, neighbours)

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
