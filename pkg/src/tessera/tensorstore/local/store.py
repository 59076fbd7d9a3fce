"""The tensor store of a node: one folder, one writer, many mapping readers.

Every change of the folder happens under one lock in this process; hashing and copying happen outside it. Memory is rebuilt from the
folder when it is opened, so a restarted agent finds what its predecessor had; holds come back as runtimes declare them again, and
nothing is reclaimed before the caller asks for room.
"""

from __future__ import annotations

import os
import secrets
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tessera.clock import Clock
from tessera.domain.errors import FailedPrecondition, InvalidInput, NotFound
from tessera.domain.ids import Digest, checked_digest
from tessera.policy.reclaim.base import ReclaimCandidate, ReclaimPolicy
from tessera.policy.reclaim.lru import LruReclaimPolicy
from tessera.tensorstore.interface import MappedFile, StoreStatus, Worth, WorthOf
from tessera.tensorstore.local.check import check_store, file_digest
from tessera.tensorstore.local.holds import Holds
from tessera.tensorstore.local.index import BlobIndex
from tessera.tensorstore.local.layout import BLOB_MODE, Layout, WriterLock, is_digest, listing
from tessera.tensorstore.local.mapped import store_mappings, unlinked_bytes
from tessera.tensorstore.local.reclaim import Usage, exhausted, first_of, vetted
from tessera.tensorstore.local.writer import LocalWriter
from tessera.tensorstore.mountinfo import has_huge_pages
from tessera.tensorstore.seal import seal

_SAME_WORTH = Worth(sharing_count=1, refetch_ms=None)


class LocalTensorStore:
    """Implements `TensorStore` in the folder `root`."""

    def __init__(
        self, root: Path | str, budget_bytes: int, clock: Clock, sharing: bool = True, policy: ReclaimPolicy | None = None
    ) -> None:
        """Opens or makes the store and takes its lock.

        Raises:
            FailedPrecondition: another process is its writer; names the process id.
            InvalidInput: the budget is not positive.
        """
        if budget_bytes <= 0:
            raise InvalidInput("budget_bytes", budget_bytes, "must be positive")
        self._layout = Layout(Path(os.path.realpath(root)))  # the form that /proc/*/maps shows
        self._budget = budget_bytes
        self._clock = clock
        self._sharing = sharing
        self._policy = policy or LruReclaimPolicy()
        self._lock = threading.Lock()
        self._index = BlobIndex()
        self._holds = Holds()
        self._quarantined: dict[Digest, int] = {}
        # Weak: room reserved by a writer that was dropped without commit or abort comes back by itself.
        self._writers: weakref.WeakValueDictionary[str, LocalWriter] = weakref.WeakValueDictionary()
        self._ingested_bytes = 0
        self._reclaimed: Counter[str] = Counter()
        """Bytes since opening, by reason: only told, nothing is decided by it."""
        self._worth_of: WorthOf = lambda digest, size_bytes: _SAME_WORTH
        self._pulled_bytes = 0
        # Whether unlinked files may still be mapped. Only our own unlinking sets it, so that a scan of /proc is spared most of the time.
        self._maybe_unlinked = True
        self._layout.make()
        self._writer_lock: WriterLock | None = WriterLock(self._layout.lock)
        try:
            self._load()
            self._huge_pages = has_huge_pages(self._layout.root)
        except BaseException:
            self._writer_lock.release()
            raise

    @property
    def root(self) -> Path:
        return self._layout.root

    # reading

    def has(self, digest: Digest) -> bool:
        with self._lock:
            return digest in self._index

    def path(self, digest: Digest) -> Path:
        with self._lock:
            self._require(digest)
        return self._layout.blob(digest)

    def digests(self) -> dict[Digest, int]:
        with self._lock:
            return {digest: entry.size_bytes for digest, entry in self._index.entries.items()}

    # bringing in

    def ingest(self, digest: Digest, size_bytes: int, holder: str | None = None) -> LocalWriter:
        checked_digest("digest", digest)
        if size_bytes < 0:
            raise InvalidInput("size_bytes", size_bytes, "must not be negative")
        name = secrets.token_hex(8)
        writer = LocalWriter(self._layout.incoming / name, digest, size_bytes, holder, self._publish, self._forget)
        with self._lock:
            self._require_open()
            self._make_room(size_bytes)
            writer.open()
            self._writers[name] = writer
        return writer

    def fits(self, size_bytes: int) -> bool:
        with self._lock:
            return self._usage(scan=False).total + size_bytes <= self._budget

    def make_room(self, size_bytes: int) -> list[Digest]:
        with self._lock:
            self._require_open()
            return self._make_room(size_bytes)

    # giving up unasked

    def appraise(self, worth_of: WorthOf) -> None:
        with self._lock:
            self._worth_of = worth_of

    def expired(self) -> list[Digest]:
        with self._lock:
            return self._expired()

    def expire(self) -> list[Digest]:
        with self._lock:
            self._require_open()
            return self._unlink(self._expired(), "expired")

    def shrink(self, target_used_bytes: int) -> list[Digest]:
        with self._lock:
            self._require_open()
            if self._quarantined and self._usage(scan=False).total > target_used_bytes:
                self._drop_quarantined()
            chosen, _ = first_of(self._order(), self._usage(scan=False).total - target_used_bytes)
            return self._unlink(chosen, "pressure")

    # holding

    def pin(self, holder: str, digests: Iterable[Digest]) -> None:
        wanted = list(digests)
        with self._lock:
            missing = [digest for digest in wanted if digest not in self._index]
            if missing:
                shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
                raise NotFound(f"tensor store {self.root} lacks {shown}, which {holder} wants to hold")
            self._holds.add(holder, wanted)
            self._index.touch(wanted, self._clock.monotonic_s(), used=True)

    def unpin(self, holder: str, digests: Iterable[Digest] | None) -> None:
        with self._lock:
            self._index.touch(self._holds.drop(holder, digests), self._clock.monotonic_s(), used=False)

    def holders(self) -> Mapping[str, frozenset[Digest]]:
        with self._lock:
            return self._holds.by_holder()

    # keeping in order

    def verify(self, digest: Digest) -> bool:
        with self._lock:
            self._require(digest)
        path = self._layout.blob(digest)
        try:
            sound = file_digest(path) == digest
            if sound:  # somebody may have touched it and changed nothing: readers shall trust it again
                seal(path, digest)
            return sound
        except FileNotFoundError as error:
            raise NotFound(f"blob {digest} left tensor store {self.root} while it was verified") from error

    def quarantine(self, digest: Digest) -> None:
        with self._lock:
            self._require_open()
            self._require(digest)
            os.rename(self._layout.blob(digest), self._layout.quarantine / digest)
            self._maybe_unlinked = self._maybe_unlinked or digest in self._quarantined  # the older one was replaced
            self._quarantined[digest] = self._index.remove(digest)
            self._holds.drop_everywhere(digest)

    def status(self) -> StoreStatus:
        with self._lock:
            usage = self._usage(scan=True)
            return StoreStatus(
                budget_bytes=self._budget,
                used_bytes=usage.total,
                pinned_bytes=self._index.size_of(self._holds.held()),
                incoming_bytes=usage.incoming,
                unlinked_bytes=usage.unlinked,
                quarantined_bytes=usage.quarantined,
                files=len(self._index.entries),
                quarantined=len(self._quarantined),
                ingested_bytes=self._ingested_bytes,
                huge_pages=self._huge_pages,
                sharing=self._sharing,
                reclaimed_room_bytes=self._reclaimed["room"],
                reclaimed_expired_bytes=self._reclaimed["expired"],
                reclaimed_pressure_bytes=self._reclaimed["pressure"],
                pulled_bytes=self._pulled_bytes,
            )

    def check(self, *, deep: bool = False) -> list[str]:
        with self._lock:
            findings, sound = check_store(self._layout, self._index, self._holds, self._quarantined, set(self._writers.keys()))
            if self._writer_lock is None or not self._writer_lock.is_whole():
                findings.append("the lock file is not the one this writer has locked")
        if deep:
            for digest in sound:
                findings += self._check_bytes(digest)
        return findings

    def mappings(self) -> list[MappedFile]:
        return store_mappings(self.root)

    def sweep(self) -> None:
        with self._lock:
            self._sweep()

    def close(self) -> None:
        for writer in list(self._writers.values()):
            writer.abort()
        with self._lock:
            if self._writer_lock is not None:
                self._writer_lock.release()
                self._writer_lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check_bytes(self, digest: Digest) -> list[str]:
        """What leaves while it is hashed, or comes anew under its name, is no finding."""
        path = self._layout.blob(digest)
        try:
            hashed = path.stat()
            actual = file_digest(path)
            with self._lock:
                if actual != digest and digest in self._index and os.path.samestat(hashed, path.stat()):
                    return [f"blobs/{digest} has bytes of digest {actual}"]
        except FileNotFoundError:
            pass
        return []

    # under the lock

    def _load(self) -> None:
        """Fills memory from the folder. The newest file counts as used now, older ones as much earlier as they are older."""
        self._sweep()
        self._quarantined = {Digest(file.name): file.size_bytes for file in listing(self._layout.quarantine) if is_digest(file.name)}
        found = [file for file in listing(self._layout.blobs) if file.regular and is_digest(file.name)]
        newest = max((file.modified_s for file in found), default=0.0)
        now = self._clock.monotonic_s()
        for file in found:
            digest = Digest(file.name)
            if file.mode == BLOB_MODE:
                self._index.add(digest, file.size_bytes, now - (newest - file.modified_s))
            else:  # nothing of ours becomes visible writable: somebody had his hands in it
                os.rename(self._layout.blob(digest), self._layout.quarantine / digest)
                self._quarantined[digest] = file.size_bytes

    def _sweep(self) -> None:
        live = set(self._writers.keys())
        for file in listing(self._layout.incoming):
            if file.regular and file.name not in live:
                os.unlink(self._layout.incoming / file.name)

    def _require(self, digest: Digest) -> None:
        if digest not in self._index:
            raise NotFound(f"tensor store {self.root} has no blob {digest}")

    def _require_open(self) -> None:
        if self._writer_lock is None:
            raise FailedPrecondition(f"tensor store {self.root} is closed")

    def _usage(self, *, scan: bool) -> Usage:
        unlinked = unlinked_bytes(store_mappings(self.root)) if scan or self._maybe_unlinked else 0
        self._maybe_unlinked = unlinked > 0
        incoming = sum(writer.size_bytes for writer in self._writers.values())
        return Usage(self._index.total_bytes, incoming, sum(self._quarantined.values()), unlinked)

    def _make_room(self, needed: int) -> list[Digest]:
        gone: list[Digest] = []
        while True:
            usage = self._usage(scan=False)
            excess = usage.total + needed - self._budget
            if excess <= 0:
                return gone
            chosen, missing = first_of(self._order(), excess - usage.quarantined)
            if missing:
                raise exhausted(self.root, needed, self._budget, usage, self._index, self._holds.by_holder())
            if self._quarantined:  # kept for people to look at, as long as nobody needs the room
                self._drop_quarantined()
                continue
            gone += self._unlink(chosen, "room")  # what somebody maps without a hold has freed nothing: look again

    def _candidates(self) -> list[ReclaimCandidate]:
        return self._index.candidates(self._holds.held(), self._worth_of, self._clock.monotonic_s())

    def _order(self) -> dict[Digest, int]:
        candidates = self._candidates()
        return vetted(self._policy.order(candidates, self._clock.monotonic_s()), candidates)

    def _expired(self) -> list[Digest]:
        if not self._policy.expires:  # asked every second, beside starts that wait for the lock
            return []
        candidates = self._candidates()
        return list(vetted(self._policy.expired(candidates, self._clock.monotonic_s()), candidates))

    def _unlink(self, digests: list[Digest], reason: str) -> list[Digest]:
        for digest in digests:
            self._layout.blob(digest).unlink(missing_ok=True)  # a file that somebody took away is no reason to keep its entry
            self._reclaimed[reason] += self._index.remove(digest)
        self._maybe_unlinked = self._maybe_unlinked or bool(digests)
        return digests

    def _drop_quarantined(self) -> None:
        for digest in list(self._quarantined):
            (self._layout.quarantine / digest).unlink(missing_ok=True)  # people who look at one may take it away
            del self._quarantined[digest]
        self._maybe_unlinked = True

    def _publish(self, writer: LocalWriter) -> bool:
        """Called by a writer whose bytes are verified. Up to the rename errors are raised; from then on the blob is visible."""
        with self._lock:
            self._require_open()
            now = self._clock.monotonic_s()
            won = writer.digest not in self._index
            if won:
                os.rename(writer.path, self._layout.blob(writer.digest))
                self._index.add(writer.digest, writer.size_bytes, now)
                self._ingested_bytes += writer.size_bytes
                self._pulled_bytes += writer.pulled_bytes
            else:
                os.unlink(writer.path)
                self._index.touch((writer.digest,), now, used=True)
            if writer.holder is not None:
                self._holds.add(writer.holder, (writer.digest,))
            self._writers.pop(writer.path.name, None)
            return won

    def _forget(self, writer: LocalWriter) -> None:
        with self._lock:
            self._writers.pop(writer.path.name, None)
