"""Made-up blobs for tests of stores, and a clock that steps."""

from __future__ import annotations

from collections.abc import Iterator

from tessera.domain.ids import Digest
from tessera.tensorstore.artifact import digest_of
from tessera.tensorstore.interface import TensorStore

BUDGET = 1000
ABSENT = Digest("0" * 64)


class StepClock:
    """A clock on which every reading is a second later, so that no two uses have the same age."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic_s(self) -> float:
        self.now_s += 1.0
        return self.now_s

    def wall_s(self) -> float:
        return self.monotonic_s()

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def blob_of(seed: int, size_bytes: int) -> bytes:
    """Bytes that differ from those of every other seed (from 4 bytes up)."""
    return ((seed + 1).to_bytes(4, "little") * (size_bytes // 4 + 1))[:size_bytes]


def bring(store: TensorStore, digest: Digest, size_bytes: int, data: bytes | Iterator[bytes], holder: str | None = None) -> bool:
    with store.ingest(digest, size_bytes, holder) as writer:
        for chunk in (data,) if isinstance(data, bytes) else data:
            writer.write(chunk)
        return writer.commit()


def put(store: TensorStore, data: bytes, holder: str | None = None) -> Digest:
    digest = digest_of(data)
    bring(store, digest, len(data), data, holder)
    return digest
