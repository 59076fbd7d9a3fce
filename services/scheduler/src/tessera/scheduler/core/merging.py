"""Starts in flight, one per variant and build class: whoever asks for the same shares the answer, from every gateway."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tessera.domain.ids import BuildClass, NodeId, VariantKey

FlightT = TypeVar("FlightT")

MergeKey = tuple[VariantKey, BuildClass]


@dataclass(slots=True)
class MergeTable(Generic[FlightT]):
    """`FlightT` is whatever the shell awaits. At most one flight per key; a key is free again when its flight closed."""

    _flights: dict[MergeKey, tuple[NodeId, FlightT]] = field(default_factory=dict)

    def find(self, key: MergeKey) -> FlightT | None:
        found = self._flights.get(key)
        return found[1] if found is not None else None

    def open(self, key: MergeKey, node_id: NodeId, flight: FlightT) -> None:
        """Raises: ValueError when a flight of the key is open (the caller must join it)."""
        if key in self._flights:
            raise ValueError(f"a start of {key[0]} on {key[1]} is in flight already")
        self._flights[key] = (node_id, flight)

    def close(self, key: MergeKey) -> None:
        del self._flights[key]

    def all(self) -> Iterator[tuple[VariantKey, NodeId, FlightT]]:
        for (variant, _), (node_id, flight) in self._flights.items():
            yield variant, node_id, flight

    def variants(self) -> frozenset[VariantKey]:
        """Variants that somebody waits for."""
        return frozenset(variant for variant, _ in self._flights)

    def starting(self) -> Counter[NodeId]:
        """Starts in flight per node."""
        return Counter(node_id for node_id, _ in self._flights.values())

    def __len__(self) -> int:
        return len(self._flights)
