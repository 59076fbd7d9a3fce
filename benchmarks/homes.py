"""Calls in virtual time on nodes where models have their homes: what a start finds there, and what it takes.

A node keeps blobs until it needs their room (the oldest first, never what an instance has mapped), and instances until they have been idle
for `KEEP_ALIVE_S`, or their room or they themselves (as donors) are needed. A call takes no time, and only its home answers it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.replay import BIND_MS, refetch_ms
from tessera.domain.ids import Digest, NodeId
from tessera.domain.transformation import MetaOperator, TransformationPlan
from tessera.policy.balance.base import Homes, Model, Node
from tessera.policy.transform.costs import CostLine, MetaCosts
from tessera.policy.transform.plans import PlanCache

IN_RUNTIME_MS = 2.4
"""Of a bind, what the runtime takes and a transformation does not have (docs/performance.md, idle models that become others)."""
COSTS = MetaCosts(
    {
        (MetaOperator.REPLACE, ""): CostLine(0.015),
        (MetaOperator.RESHAPE, ""): CostLine(0.022),
        (MetaOperator.ADD, ""): CostLine(0.020),
        (MetaOperator.REDUCE, ""): CostLine(0.0),
        (MetaOperator.EDGE, ""): CostLine(0.010),
    },
    base_ms=1.16,
)
"""As fitted there: bytes cost nothing, since weights are mapped."""
KEEP_ALIVE_S = 600.0
IDLE_AFTER_S = 60.0
"""Who has been idle for so long is a donor: the example in Optimus."""
PATHS = ("warm", "transform", "bind", "fetch")


@dataclass
class Outcome:
    """Milliseconds of each call that was not refused, and calls by start path. Where bytes were missing the path is `fetch`, however it
    went on."""

    took_ms: list[float] = field(default_factory=list)
    paths: Counter[str] = field(default_factory=Counter)
    by_node: Counter[NodeId] = field(default_factory=Counter)
    refused: int = 0
    fetched_bytes: int = 0


class HomeNode:
    def __init__(self, room_bytes: int, plans: PlanCache, outcome: Outcome) -> None:
        self._room_bytes, self._plans, self._outcome = room_bytes, plans, outcome
        self._bytes = 0
        self._mapped: Counter[Digest] = Counter()
        self._free: OrderedDict[Digest, int] = OrderedDict()
        """Blobs that are there and that no instance has mapped, the oldest first."""
        self._idle: OrderedDict[str, tuple[Model, float]] = OrderedDict()
        """Instances with the time of their last call, the oldest first."""

    def call(self, model: Model, now_s: float) -> None:
        while self._idle and now_s - next(iter(self._idle.values()))[1] > KEEP_ALIVE_S:
            self._end(next(iter(self._idle)))
        took_ms = 0.0
        if model.name in self._idle:
            self._outcome.paths["warm"] += 1
        elif sum(blob.size_bytes for blob in model.blobs) > self._room_bytes:
            self._outcome.refused += 1
            return
        else:
            took_ms = self._start(model, now_s)
        self._idle[model.name] = (model, now_s)
        self._idle.move_to_end(model.name)
        self._outcome.took_ms.append(took_ms)

    def _start(self, model: Model, now_s: float) -> float:
        took_ms, path = BIND_MS, "bind"
        donor = self._donor(model, now_s)
        if donor is not None:
            transformed_ms = transform_ms(self._plans.plan(donor.graph, model.graph))
            if transformed_ms < took_ms:
                took_ms, path = transformed_ms, "transform"
                self._end(donor.name)
        missing = [blob for blob in model.blobs if blob.digest not in self._free and not self._mapped[blob.digest]]
        for blob in model.blobs:
            self._mapped[blob.digest] += 1
            self._free.pop(blob.digest, None)
        for blob in missing:
            path = "fetch"
            took_ms += refetch_ms(blob.size_bytes)
            self._make_room(blob.size_bytes)
            self._bytes += blob.size_bytes
            self._outcome.fetched_bytes += blob.size_bytes
        self._outcome.paths[path] += 1
        return took_ms

    def _donor(self, model: Model, now_s: float) -> Model | None:
        idle = [other for other, last_s in self._idle.values() if now_s - last_s >= IDLE_AFTER_S]
        if not idle:
            return None
        estimates = self._plans.estimates_ms([other.graph for other in idle], [model.graph])[:, 0]
        return idle[int(estimates.argmin())]

    def _make_room(self, size_bytes: int) -> None:
        while self._bytes + size_bytes > self._room_bytes:
            if self._free:
                self._bytes -= self._free.popitem(last=False)[1]
            else:
                self._end(next(iter(self._idle)))

    def _end(self, name: str) -> None:
        model, _ = self._idle.pop(name)
        for blob in model.blobs:
            self._mapped[blob.digest] -= 1
            if not self._mapped[blob.digest]:
                self._free[blob.digest] = blob.size_bytes


def transform_ms(plan: TransformationPlan) -> float:
    return BIND_MS - IN_RUNTIME_MS + COSTS.base_ms + plan.expected_ms


def replayed(calls: Sequence[tuple[float, Model]], homes: Homes, nodes: Sequence[Node], plans: PlanCache, outcome: Outcome) -> None:
    """On empty nodes; adds to the outcome."""
    living = {node.node_id: HomeNode(node.room_bytes, plans, outcome) for node in nodes}
    for at_s, model in calls:
        home = homes.node_of[model.name]
        outcome.by_node[home] += 1
        living[home].call(model, at_s)
