"""What meta-operators take on a node class, in a dialect: a line each, by the operator's kind where that was measured.

Lines are fitted to transformations that the profiler asked for, and follow what later ones took (`fitting`); Optimus profiles the same
offline and gives no form for it, so these forms are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tessera.domain.records import MetaCostLine, MetaCostRecord
from tessera.domain.transformation import MetaOperator, StepSum

MIB = float(1 << 20)


@dataclass(frozen=True, slots=True)
class CostLine:
    """`fixed_ms + per_mib_ms * MiB of the new weights + per_changed_mib_ms * MiB by which shapes differ`."""

    fixed_ms: float
    per_mib_ms: float = 0.0
    per_changed_mib_ms: float = 0.0

    def ms(self, new_bytes: int = 0, changed_bytes: int = 0, steps: int = 1) -> float:
        """Of one step, or of several together."""
        return self.fixed_ms * steps + (self.per_mib_ms * new_bytes + self.per_changed_mib_ms * changed_bytes) / MIB

    def times(self, factor: float) -> CostLine:
        return CostLine(self.fixed_ms * factor, self.per_mib_ms * factor, self.per_changed_mib_ms * factor)


ASSUMED: Mapping[MetaOperator, CostLine] = {
    MetaOperator.REPLACE: CostLine(0.014),
    MetaOperator.RESHAPE: CostLine(0.021),
    MetaOperator.ADD: CostLine(0.020),
    MetaOperator.REDUCE: CostLine(0.0005),
    MetaOperator.EDGE: CostLine(0.007),
}
"""Where a node class was not measured: as fitted to 906 transformations on one (docs/performance.md). Microseconds of bookkeeping, and
nothing a byte, since weights are mapped and not copied."""


REPLACED: Mapping[str, CostLine] = {"ort-fp32": CostLine(1.7, 0.07), "aoti-fp32": CostLine(1.0)}
"""By recipe: Replace on everything of what is open, where weights are read in place. Under `ort` each MiB counts: the kernel takes the
donor's pages out of the process one by one, which is more than opening a session takes, but for the smallest (docs/performance.md)."""


ASSUMED_BASE_MS = 1.1


@dataclass(frozen=True, slots=True)
class MetaCosts:
    """`lines` by meta-operator and kind of operation; "" is what holds for kinds that were not measured. `base_ms`: what every
    transformation takes, whatever its steps: the runtime is told, the artifact is read. Planners need not know it. `error`: as
    `MetaCostRecord` has it; None where they are assumed."""

    lines: Mapping[tuple[MetaOperator, str], CostLine] = field(default_factory=dict)
    base_ms: float = ASSUMED_BASE_MS
    error: float | None = None

    def line(self, operator: MetaOperator, kind: str) -> CostLine:
        return self.lines.get((operator, kind)) or self.lines.get((operator, "")) or ASSUMED[operator]

    def ms(self, steps: Iterable[StepSum]) -> float:
        """What a plan takes by these costs, whatever costs it was made with."""
        return self.base_ms + sum(self.line(each.operator, each.kind).ms(each.new_bytes, each.changed_bytes, each.steps) for each in steps)


def lines_of(costs: MetaCosts) -> tuple[MetaCostLine, ...]:
    """As a record has them."""
    return tuple(
        MetaCostLine(operator, kind, line.fixed_ms, line.per_mib_ms, line.per_changed_mib_ms)
        for (operator, kind), line in sorted(costs.lines.items())
    )


def costs_of(record: MetaCostRecord) -> MetaCosts:
    lines = {(each.operator, each.kind): CostLine(each.fixed_ms, each.per_mib_ms, each.per_changed_mib_ms) for each in record.lines}
    return MetaCosts(lines, record.base_ms, record.error)
