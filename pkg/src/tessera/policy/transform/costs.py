"""What meta-operators take on a node class, in a dialect: a line each, by the operator's kind where that was measured.

Lines are fitted from measurements (`tessera.profiler`) and refreshed by what transformations took; Optimus profiles the same offline and
gives no form for it (papers section 2), so these forms are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tessera.domain.transformation import MetaOperator

MIB = float(1 << 20)


@dataclass(frozen=True, slots=True)
class CostLine:
    """`fixed_ms + per_mib_ms * MiB of the new weights + per_changed_mib_ms * MiB by which shapes differ`. `error`: root mean square of the
    relative error over what it was fitted to; None where it is assumed."""

    fixed_ms: float
    per_mib_ms: float = 0.0
    per_changed_mib_ms: float = 0.0
    error: float | None = None

    def ms(self, new_bytes: int = 0, changed_bytes: int = 0) -> float:
        return self.fixed_ms + (self.per_mib_ms * new_bytes + self.per_changed_mib_ms * changed_bytes) / MIB


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
    transformation takes, whatever its steps: the runtime is told, the artifact is read. Planners need not know it."""

    lines: Mapping[tuple[MetaOperator, str], CostLine] = field(default_factory=dict)
    base_ms: float = ASSUMED_BASE_MS

    def line(self, operator: MetaOperator, kind: str) -> CostLine:
        return self.lines.get((operator, kind)) or self.lines.get((operator, "")) or ASSUMED[operator]
