"""A plan that turns an instance's program into another one, and its meta-operators (Optimus, EuroSys'24, papers section 2).

In the order in which they are carried out: every Reduce; then, from the target's first operation to its last, Replace, Reshape and Add;
then every Edge. An operation that needs none of them stays as it is, at another place perhaps.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

DELTA_FORMAT = 1
"""Of a plan as runtimes get it (docs/adr/0012)."""


class MetaOperator(StrEnum):
    """Replace: other weights. Reshape: other attributes or other shapes, and weights. Reduce: an operation goes. Add: one comes.
    Edge: an operation that stays reads from elsewhere."""

    REDUCE = "reduce"
    REPLACE = "replace"
    RESHAPE = "reshape"
    ADD = "add"
    EDGE = "edge"


@dataclass(frozen=True, slots=True)
class MetaStep:
    """`source` and `target`: places among the operations of the two programs, None where it has none. `kind`: the operation's operator.
    `new_bytes`: of weights that the target has there and the source had not."""

    operator: MetaOperator
    kind: str
    source: int | None
    target: int | None
    new_bytes: int
    cost_ms: float


@dataclass(frozen=True, slots=True)
class TransformationPlan:
    """`kept`: which operation of the source becomes which one of the target, by the target's places; all others of the source go.

    `cost_ms` is what planners compare, without edges; `edges_ms` is those (Optimus calls them negligible).
    """

    planner: str
    kept: tuple[tuple[int, int], ...]
    steps: tuple[MetaStep, ...]
    cost_ms: float
    edges_ms: float

    @property
    def expected_ms(self) -> float:
        return self.cost_ms + self.edges_ms

    def count(self, operator: MetaOperator) -> int:
        return sum(step.operator is operator for step in self.steps)
