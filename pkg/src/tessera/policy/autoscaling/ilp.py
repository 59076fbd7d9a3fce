"""The published integer program (INFaaS, Case II), solved: the yardstick of what heuristics lose. Needs the extra `ilp` (PuLP and HiGHS).

Minimise the sum of C * (delta + lambda * T_load * max(delta, 0)) so that what then runs answers the load with its headroom and what is
added fits into the cores that are free. Latency is the caller's: it gives no kinds that are too slow.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tessera.domain.errors import FailedPrecondition
from tessera.policy.autoscaling.base import LOAD_WEIGHT, NOTHING, PATIENT_TICKS, TICK_S, Kind, ModelLoad, ScalePlan
from tessera.policy.autoscaling.cheapest import cheapest_counts, plan_of

LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class IlpAutoscaling:
    """Raises from `plan`: FailedPrecondition where they are not installed."""

    @property
    def name(self) -> str:
        return "ilp"

    @property
    def slow(self) -> bool:
        return True

    def plan(self, load: ModelLoad) -> ScalePlan:
        if not load.running:
            return NOTHING
        counts = optimal_counts(load)
        if counts is None:
            counts = cheapest_counts(load)
        return plan_of(load, counts, self.name, PATIENT_TICKS * TICK_S)


def optimal_counts(load: ModelLoad) -> dict[Kind, int] | None:
    """How many of each kind; None where no set answers the load. Instances of a kind count as what they give on average.

    Raises: FailedPrecondition: they are not installed.
    """
    try:
        import pulp
    except ImportError as error:
        raise FailedPrecondition(f"autoscaling policy 'ilp' needs tessera-pkg[ilp]: {error}") from error
    has = Counter(one.kind for one in load.running)
    kinds = sorted(kind for kind in {*load.kinds, *has} if kind.items_per_s > 0)
    program = pulp.LpProblem("scaling", pulp.LpMinimize)
    keep = {kind: program.add_variable(f"keep_{at}", 0, has[kind], pulp.LpInteger) for at, kind in enumerate(kinds)}
    more = {kind: program.add_variable(f"more_{at}", 0, load.fits(kind), pulp.LpInteger) for at, kind in enumerate(kinds)}
    program += pulp.lpSum(kind.cost * (keep[kind] + more[kind] * (1 + LOAD_WEIGHT * kind.load_s)) for kind in kinds)
    gives = {kind: sum(one.items_per_s for one in load.running if one.kind == kind) / has[kind] for kind in kinds if has[kind]}
    program += pulp.lpSum(gives.get(kind, 0.0) * keep[kind] + kind.items_per_s * more[kind] for kind in kinds) >= load.needed_items_per_s
    program += pulp.lpSum(keep[kind] + more[kind] for kind in kinds) >= 1
    for profile_class in sorted({kind.profile_class for kind in kinds}):
        there = [kind for kind in kinds if kind.profile_class == profile_class]
        program += pulp.lpSum(kind.cores * more[kind] for kind in there) <= load.room.get(profile_class, 0.0)
    program.solve(pulp.HiGHS(msg=False, timeLimit=LIMIT_S))
    if pulp.LpStatus[program.status] != "Optimal":
        return None
    counts = {kind: round(keep[kind].value() + more[kind].value()) for kind in kinds}
    return {kind: count for kind, count in counts.items() if count}
