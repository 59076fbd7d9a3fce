"""Candidates and instances as a variant policy sees them, with the figures that a test is about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tessera.domain.accuracy import Accuracy, AccuracySource, Agreement
from tessera.domain.objectives import NO_OBJECTIVES, Objectives
from tessera.domain.records import VariantState
from tessera.policy.instance.base import InstancePolicy
from tessera.policy.instance.least_in_flight import LeastInFlight
from tessera.policy.variant import ranking
from tessera.policy.variant.base import Activity, Candidate, Choice, Criteria, Ranking, VariantPolicy
from tessera.policy.variant.permitted import is_lossy, never
from tessera.policy.variant.ranking import slate
from tessera.testing.builders import a_variant

LOSSY = Agreement(max_error=0.2, cosine=0.995, samples=64)


@dataclass
class Line:
    """A batch of n takes `one_ms * (1 + slope * (n - 1))`."""

    one_ms: float
    slope: float = 0.5

    def at(self, batch: int) -> float:
        return self.one_ms * (1 + self.slope * (batch - 1))


@dataclass(eq=False)
class FakeInstance:
    in_flight: int = 0
    max_batch: int = 8
    joins: bool = True
    latency: Line | None = None
    name: str = field(default="")


def a_candidate(
    name: str,
    latency_ms: float | None = 10.0,
    load_ms: float | None = 5.0,
    *,
    model: str = "digits",
    accuracy: float = 1.0,
    busy: Sequence[int] | None = None,
    troubled: bool = False,
    work_ms: float | None = None,
    usd: float | None = None,
    priced: bool = False,
    dataset: str = "",
    nowhere: str = "",
    slope: float = 0.5,
    consent: bool = False,
    **fields: Any,
) -> Candidate:
    """`busy`: an instance per number, with so many requests in flight; None: inactive."""
    record = a_variant(model, name, **fields)
    line = None if latency_ms is None else Line(latency_ms, slope)
    instances = [FakeInstance(count, record.max_batch, record.joins, line, f"{name}-{at}") for at, count in enumerate(busy or ())]
    return Candidate(
        key=record.key,
        record=record,
        activity=Activity(instances, troubled),
        accuracy=Accuracy(accuracy, AccuracySource.STATED),
        dataset=dataset,
        plain=consent or not is_lossy(record),
        refusal=never(record),
        nowhere=nowhere,
        latency_ms=latency_ms,
        load_ms=load_ms,
        start_ms=None if latency_ms is None or load_ms is None else latency_ms + load_ms,
        work_ms=latency_ms if work_ms is None else work_ms,
        usd_per_1000=usd,
        priced=priced,
        latency=line,
    )


def rank(policy: VariantPolicy, candidates: Iterable[Candidate], objectives: Objectives = NO_OBJECTIVES) -> Ranking:
    """As a group of them would."""
    found = list(candidates)
    asked = Criteria(objectives.min_accuracy, objectives.max_cost, objectives.dataset, objectives.latency_ms is not None)
    may_answer = slate(found, lossy_too=objectives.min_accuracy is not None, named=False)
    return ranking.rank(policy, may_answer, asked, one_model=len({one.key.version_key for one in found}) <= 1)[0]


def choose(
    policy: VariantPolicy,
    candidates: Iterable[Candidate],
    objectives: Objectives = NO_OBJECTIVES,
    *,
    instances: InstancePolicy | None = None,
    items: int = 1,
) -> Choice | None:
    return policy.choose(rank(policy, candidates, objectives), objectives.latency_ms, instances or LeastInFlight(), items)


def chosen(policy: VariantPolicy, *candidates: Candidate, items: int = 1, **asked: Any) -> str:
    """The variant's name; "" for none. Keywords are objectives."""
    choice = choose(policy, candidates, Objectives(**asked), items=items)
    return "" if choice is None else choice.candidate.key.variant


FAILED = VariantState.FAILED
