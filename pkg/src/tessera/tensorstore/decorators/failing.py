"""A store that fails where failpoints say so (`TESSERA_FAILPOINTS="tensorstore.commit=1*error"`); else it is the store it wraps.

Points: `tensorstore.<method>` for each method, and `tensorstore.write`, `tensorstore.commit` in its writers. All are hit before the call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tessera.domain.ids import Digest
from tessera.failpoint import hit
from tessera.tensorstore.interface import BytesLike, MappedFile, StoreStatus, TensorStore, WorthOf, Writer


class FailingWriter:
    def __init__(self, inner: Writer) -> None:
        self._inner = inner

    @property
    def digest(self) -> Digest:
        return self._inner.digest

    @property
    def size_bytes(self) -> int:
        return self._inner.size_bytes

    @property
    def written_bytes(self) -> int:
        return self._inner.written_bytes

    def write(self, chunk: BytesLike) -> None:
        hit("tensorstore.write")
        self._inner.write(chunk)

    def write_at(self, offset: int, chunk: BytesLike) -> None:
        hit("tensorstore.write")
        self._inner.write_at(offset, chunk)

    def pull(self, source: int, most_bytes: int) -> int:
        hit("tensorstore.write")
        return self._inner.pull(source, most_bytes)

    def commit(self) -> bool:
        hit("tensorstore.commit")
        return self._inner.commit()

    def abort(self) -> None:
        self._inner.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._inner.abort()


class FailingTensorStore:
    """Implements `TensorStore`."""

    def __init__(self, inner: TensorStore) -> None:
        self._inner = inner

    def has(self, digest: Digest) -> bool:
        hit("tensorstore.has")
        return self._inner.has(digest)

    def path(self, digest: Digest) -> Path:
        hit("tensorstore.path")
        return self._inner.path(digest)

    def digests(self) -> dict[Digest, int]:
        hit("tensorstore.digests")
        return self._inner.digests()

    def ingest(self, digest: Digest, size_bytes: int, holder: str | None = None) -> Writer:
        hit("tensorstore.ingest")
        return FailingWriter(self._inner.ingest(digest, size_bytes, holder))

    def fits(self, size_bytes: int) -> bool:
        return self._inner.fits(size_bytes)

    def make_room(self, size_bytes: int) -> list[Digest]:
        hit("tensorstore.make_room")
        return self._inner.make_room(size_bytes)

    def appraise(self, worth_of: WorthOf) -> None:
        self._inner.appraise(worth_of)

    def expired(self) -> list[Digest]:
        return self._inner.expired()

    def expire(self) -> list[Digest]:
        hit("tensorstore.expire")
        return self._inner.expire()

    def shrink(self, target_used_bytes: int) -> list[Digest]:
        hit("tensorstore.shrink")
        return self._inner.shrink(target_used_bytes)

    def pin(self, holder: str, digests: Iterable[Digest]) -> None:
        hit("tensorstore.pin")
        self._inner.pin(holder, digests)

    def unpin(self, holder: str, digests: Iterable[Digest] | None) -> None:
        hit("tensorstore.unpin")
        self._inner.unpin(holder, digests)

    def holders(self) -> Mapping[str, frozenset[Digest]]:
        hit("tensorstore.holders")
        return self._inner.holders()

    def verify(self, digest: Digest) -> bool:
        hit("tensorstore.verify")
        return self._inner.verify(digest)

    def quarantine(self, digest: Digest) -> None:
        hit("tensorstore.quarantine")
        self._inner.quarantine(digest)

    def status(self) -> StoreStatus:
        hit("tensorstore.status")
        return self._inner.status()

    def check(self, *, deep: bool = False) -> list[str]:
        return self._inner.check(deep=deep)

    def mappings(self) -> Sequence[MappedFile]:
        return self._inner.mappings()

    def sweep(self) -> None:
        hit("tensorstore.sweep")
        self._inner.sweep()

    def close(self) -> None:
        self._inner.close()
