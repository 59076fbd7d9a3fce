"""What was decided for each of the last requests, kept for `tessera explain` and `tessera trace`."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from tessera.domain.ids import VersionKey
from tessera.domain.instance import Stage, StageTime
from tessera.policy.variant.base import VariantPlan


@dataclass(slots=True, eq=False)
class Decision:
    """One request: what was known when it was decided (`plan`, with the losers), and what came of it. Times in ms.

    `start_request_id` is the request that the scheduler knows the start by: requests that wait for one start share it. `queued_ms`
    and `sent_ms` are offsets from its arrival: when it began to wait for a start (-1: it did not), when it was sent.
    """

    request_id: str
    span_id: str
    parent_span_id: str
    sampled: bool
    started_unix_s: float
    model: str = ""
    version: VersionKey | None = None
    plan: VariantPlan | None = None
    variant: str = ""
    node_id: str = ""
    instance_id: str = ""
    start_path: str = ""
    start_request_id: str = ""
    stages: tuple[StageTime, ...] = ()
    queued_ms: float = -1.0
    waited_ms: float = 0.0
    sent_ms: float = 0.0
    batch_size: int = 0
    queue_us: int = 0
    run_us: int = 0
    predicted_ms: float = 0.0
    actual_ms: float = 0.0
    outcome: str = ""
    attempts: int = 0

    def all_stages(self) -> tuple[StageTime, ...]:
        """The stages of the start it waited for, its time in the runtime's queue, and its run."""
        queued_ms = self.queue_us / 1000 + sum(stage.ms for stage in self.stages if stage.stage is Stage.QUEUE)
        queue = (StageTime(Stage.QUEUE, queued_ms),) if self.stages or self.queue_us else ()
        run = (StageTime(Stage.RUN, self.run_us / 1000),) if self.run_us else ()
        return (*queue, *(stage for stage in self.stages if stage.stage is not Stage.QUEUE), *run)


class DecisionLog:
    """The last `limit` decisions by request id."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._order: deque[Decision] = deque()
        self._by_id: dict[str, Decision] = {}

    def add(self, decision: Decision) -> None:
        if len(self._order) >= self._limit:
            oldest = self._order.popleft()
            # The id may stand for a younger request: a client may send several within one trace.
            if self._by_id.get(oldest.request_id) is oldest:
                del self._by_id[oldest.request_id]
        self._order.append(decision)
        self._by_id[decision.request_id] = decision

    def get(self, request_id: str) -> Decision | None:
        """The youngest request of that id."""
        return self._by_id.get(request_id)

    def of_trace(self, request_id: str) -> list[Decision]:
        """Every request of that trace, the oldest first."""
        return [decision for decision in self._order if decision.request_id == request_id]

    def __len__(self) -> int:
        return len(self._order)
