"""A watched prefix as a plain dict of decoded records: read without awaiting, kept while etcd is away.

Level, not edge: a callback says that a key differs from what was known; after an outage only the difference is reported.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, ItemsView, ValuesView
from typing import Generic, TypeVar

import structlog

from tessera.coord import records
from tessera.coord.interface import Changed, Coordinator, KeyValue, Removed, Reset
from tessera.domain.errors import DataCorrupted

T = TypeVar("T")

_log = structlog.get_logger(__name__)

Callback = Callable[[str, T | None, T | None], None]
"""(key, old, new): old is None for a new key, new is None for one that is gone."""


class View(Generic[T]):
    """The records below `prefix`. One task of the caller runs `run`; everything else is synchronous, on the same event loop.

    Args:
        prefix: ends with a slash (or is one key, which then is all there is to see).
        record_type: what `records.decode` makes of a value.
        decoder: instead of `records.decode`, for values that are no records; raises DataCorrupted.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        prefix: str,
        record_type: type[T],
        *,
        decoder: Callable[[bytes], T] | None = None,
    ) -> None:
        self._coordinator = coordinator
        self._prefix = prefix
        self._decode = decoder or (lambda data: records.decode(record_type, data))
        self._records: dict[str, T] = {}
        self._seen: dict[str, int] = {}
        self._callbacks: list[Callback[T]] = []
        self._revision = 0
        self.synced = asyncio.Event()
        """Set at the first listing, and from then on."""

    async def run(self) -> None:
        """Follows the prefix until it is cancelled, or until the coordinator is closed (Unavailable).

        A callback that raises ends it: the program would go on with half of a change.
        """
        async for event in self._coordinator.watch(self._prefix):
            match event:
                case Reset(listing):
                    self._reset(listing.items, listing.revision)
                    self.synced.set()
                case Changed(item):
                    self._revision = item.mod_revision
                    self._tell(item.key, *self._take(item))
                case Removed(key, mod_revision):
                    self._revision = mod_revision
                    self._tell(key, self._drop(key), None)

    def get(self, key: str) -> T | None:
        """The record, or None when it is absent or does not decode."""
        return self._records.get(key)

    def items(self) -> ItemsView[str, T]:
        """Keys and records, live: copy it before awaiting in a loop over it."""
        return self._records.items()

    def values(self) -> ValuesView[T]:
        return self._records.values()

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def mod_revision(self, key: str) -> int:
        """For the compare of the next write: 0 when the key is absent. Known for a record that does not decode, too."""
        return self._seen.get(key, 0)

    @property
    def revision(self) -> int:
        """The revision that this view has followed the prefix to."""
        return self._revision

    def on_change(self, callback: Callback[T]) -> Callable[[], None]:
        """Calls `callback(key, old, new)` for each later difference; the view is up to date when it is called. Returns its removal."""
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback) if callback in self._callbacks else None

    def _reset(self, items: tuple[KeyValue, ...], revision: int) -> None:
        self._revision = revision
        present = {item.key for item in items}
        differences: list[tuple[str, T | None, T | None]] = [(key, self._drop(key), None) for key in self._seen.keys() - present]
        differences += [(item.key, *self._take(item)) for item in items if self._seen.get(item.key) != item.mod_revision]
        for difference in differences:
            self._tell(*difference)

    def _take(self, item: KeyValue) -> tuple[T | None, T | None]:
        old = self._records.get(item.key)
        self._seen[item.key] = item.mod_revision
        try:
            new = self._records[item.key] = self._decode(item.value)
        except DataCorrupted as error:
            # Once per write, because a revision is taken in once. Left out, not fatal: one bad record must not stop a service.
            _log.error("record left out", key=item.key, mod_revision=item.mod_revision, reason=str(error))
            self._records.pop(item.key, None)
            return old, None
        return old, new

    def _drop(self, key: str) -> T | None:
        self._seen.pop(key, None)
        return self._records.pop(key, None)

    def _tell(self, key: str, old: T | None, new: T | None) -> None:
        if old is None and new is None:
            return
        for callback in tuple(self._callbacks):
            callback(key, old, new)
