"""What was decided for each of the last requests, kept for `tessera explain` and `tessera trace`."""

from __future__ import annotations

from collections import deque

from tessera.domain.instance import Stage, StageTime
from tessera.gateway.core.routes import Route
from tessera.gateway.core.slots import InstanceSlot
from tessera.policy.variant.base import Choice

_UNKNOWN = ("", "", "", "")


class Decision:
    """One request: what was known when it was decided (the ranking of its `route`, and what the `choice` looked at), and what came of it.
    Times in ms. Why the others lost is made of these when somebody asks (`accounts`).

    `missed` says by how much the choice was expected to miss the objectives ("": not at all).
    `slot` is where it is or was answered, `left` the instance that turned out to be gone. `start_request_id` is the request that the
    scheduler knows the start of `slot` by: requests that wait for one start share it. `queued_ms` and `sent_ms` are offsets from its
    arrival: when it began to wait for a start (-1: it did not), when it was sent. `queue_us`, `opening_us` and `run_us` are what the
    runtime says.

    Defaults stand in the class, ids stay bytes, and what follows from the route and the slot is asked of them: a request pays for what
    is its own, and the rest is made when somebody looks.
    """

    model: str = ""
    route: Route | None = None
    choice: Choice | None = None
    missed: str = ""
    slot: InstanceSlot | None = None
    left: InstanceSlot | None = None
    start_path: str = ""
    start_request_id: str = ""
    stages: tuple[StageTime, ...] = ()
    queued_ms: float = -1.0
    waited_ms: float = 0.0
    sent_ms: float = 0.0
    batch_size: int = 0
    queue_us: int = 0
    opening_us: int = 0
    run_us: int = 0
    actual_ms: float = 0.0
    outcome: str = ""
    attempts: int = 0

    def __init__(self, trace_id: bytes, own_span: bytes, parent_span_id: str, sampled: bool, started_unix_s: float) -> None:
        self.trace_id = trace_id
        self.own_span = own_span
        self.parent_span_id = parent_span_id
        self.sampled = sampled
        self.started_unix_s = started_unix_s

    @property
    def request_id(self) -> str:
        return self.trace_id.hex()

    @property
    def span_id(self) -> str:
        return self.own_span.hex()

    @property
    def variant(self) -> str:
        """The one that answered, else the one that was chosen."""
        return self.labels[2]

    @property
    def predicted_ms(self) -> float:
        return self.choice.predicted_ms or 0.0 if self.choice is not None else 0.0

    def teach(self) -> None:
        """Its group learns what this answer took beyond its queue and the profile. One that waited for a start, or was sent twice, says
        nothing of that."""
        slot, route, choice = self.slot, self.route, self.choice
        if slot is None or route is None or choice is None or slot.latency is None:
            return
        if self.attempts == 1 and self.queued_ms < 0 and not self.opening_us:
            profiled_ms = slot.latency.at(max(1, self.batch_size))
            route.name.group.surcharge.note(choice.items, self.actual_ms - self.queue_us / 1000 - profiled_ms, profiled_ms)

    @property
    def labels(self) -> tuple[str, str, str, str]:
        """Model, version, variant and node as far as they are known, for metrics."""
        if self.slot is not None:
            return self.slot.labels
        if self.choice is not None:
            key = self.choice.candidate.key
            return (key.model, str(key.version), key.variant, self.node_id)
        version = self.route.name.version if self.route is not None else None
        return (version.model, str(version.version), "", "") if version is not None else _UNKNOWN

    @property
    def instance_id(self) -> str:
        return self.slot.instance_id if self.slot is not None else ""

    @property
    def node_id(self) -> str:
        seen = self.slot or self.left
        return seen.node_id if seen is not None else ""

    def leave(self) -> None:
        """Its instance turned out to be gone, and with it the start that it waited for: of that stays how long it waited."""
        self.left, self.slot = self.slot, None
        if self.stages:
            self.stages, self.start_request_id = (StageTime(Stage.QUEUE, self.waited_ms),), ""

    def all_stages(self) -> tuple[StageTime, ...]:
        """The stages of the start it waited for, with its time in the runtime: queue, opening (which is loading), run."""
        sums = {stage.stage: stage.ms for stage in self.stages}
        for stage, us in ((Stage.QUEUE, self.queue_us), (Stage.LOAD, self.opening_us), (Stage.RUN, self.run_us)):
            if us:
                sums[stage] = sums.get(stage, 0.0) + us / 1000
        return tuple(StageTime(stage, sums[stage]) for stage in Stage if stage in sums)


class DecisionLog:
    """The last `limit` decisions. Requests pay for nothing but their place in it; who asks for one looks through all of them."""

    def __init__(self, limit: int) -> None:
        self._last: deque[Decision] = deque(maxlen=limit)
        self.add = self._last.append

    def get(self, request_id: str) -> Decision | None:
        """The youngest request of that id (hex): a client may send several within one trace."""
        trace_id = bytes.fromhex(request_id)
        return next((decision for decision in reversed(self._last) if decision.trace_id == trace_id), None)

    def of_trace(self, request_id: str) -> list[Decision]:
        """Every request of that trace, the oldest first."""
        trace_id = bytes.fromhex(request_id)
        return [decision for decision in self._last if decision.trace_id == trace_id]

    def __len__(self) -> int:
        return len(self._last)
