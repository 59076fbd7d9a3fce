"""A plan that turns an instance's program into another one, and its meta-operators (Optimus, EuroSys'24).

In the order in which they are carried out: every Reduce; then, from the target's first operation to its last, Replace, Reshape and Add;
then every Edge. An operation that needs none of them stays as it is, at another place perhaps.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

ATEN = "aten"
"""The dialect of graphs whose instances become others by meta-operators."""
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
    `new_bytes`: of weights that the target has there and the source had not. `changed_bytes`: by how much the shapes of its weights differ,
    in elements times 4, whatever their types."""

    operator: MetaOperator
    kind: str
    source: int | None
    target: int | None
    new_bytes: int
    cost_ms: float
    changed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class StepSum:
    """All steps of a plan by one meta-operator on one kind of operation: all that costs need to know of them."""

    operator: MetaOperator
    kind: str
    steps: int
    new_bytes: int = 0
    changed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Observation:
    """A plan that was carried out, and the milliseconds that it took, more than 0."""

    steps: tuple[StepSum, ...]
    ms: float


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

    def sums(self) -> tuple[StepSum, ...]:
        """By operator and kind, in the order in which they come first."""
        found: dict[tuple[MetaOperator, str], list[int]] = {}
        for step in self.steps:
            known = found.setdefault((step.operator, step.kind), [0, 0, 0])
            for at, number in enumerate((1, step.new_bytes, step.changed_bytes)):
                known[at] += number
        return tuple(StepSum(operator, kind, *numbers) for (operator, kind), numbers in found.items())
