"""Own writes to etcd that the watch has not shown yet: what a loop wrote must not look missing to its next pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from tessera.domain.ids import InstanceId

RecordT = TypeVar("RecordT")

VIEW_LAG_S = 5.0
"""How long an own write counts although the watch has not shown it yet."""


class Ahead(Generic[RecordT]):
    """`same`: whether the watch shows what was written; None stands for no record, on either side."""

    def __init__(self, same: Callable[[RecordT | None, RecordT | None], bool]) -> None:
        self._same = same
        self._written: dict[InstanceId, tuple[RecordT | None, float]] = {}

    def wrote(self, name: InstanceId, record: RecordT | None, now_s: float) -> None:
        """None: deleted."""
        self._written[name] = (record, now_s)

    def over(self, shown: Mapping[InstanceId, RecordT], now_s: float) -> dict[InstanceId, RecordT]:
        """What etcd holds: what the watch shows, corrected by own writes that it has not shown yet."""
        held = dict(shown)
        for name, (record, at_s) in list(self._written.items()):
            if now_s - at_s > VIEW_LAG_S or self._same(held.get(name), record):
                del self._written[name]
            elif record is not None:
                held[name] = record
            else:
                held.pop(name, None)
        return held
