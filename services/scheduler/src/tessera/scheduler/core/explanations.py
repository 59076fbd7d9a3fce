"""Why a start took the node and path it took: the last decisions, bounded, by request id."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from tessera.domain.ids import RequestId
from tessera.policy.start.base import StartDecision


@dataclass(frozen=True, slots=True)
class Explanation:
    """The last decision for a request, how many came before it, and how long the start took (0 while it has not ended)."""

    decision: StartDecision
    attempts: int = 1
    actual_ms: float = 0.0


class Explanations:
    """A ring: the oldest request is forgotten when `capacity` is reached."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._ring: OrderedDict[RequestId, Explanation] = OrderedDict()

    def decided(self, request_id: RequestId, decision: StartDecision) -> None:
        earlier = self._ring.pop(request_id, None)
        self._ring[request_id] = Explanation(decision, 1 if earlier is None else earlier.attempts + 1)
        while len(self._ring) > self._capacity:
            self._ring.popitem(last=False)

    def ended(self, request_id: RequestId, actual_ms: float) -> None:
        found = self._ring.get(request_id)
        if found is not None:
            self._ring[request_id] = replace(found, actual_ms=actual_ms)

    def get(self, request_id: RequestId) -> Explanation | None:
        return self._ring.get(request_id)

    def __len__(self) -> int:
        return len(self._ring)
