"""What a run of requests was worth: violations by their reason, what was reserved for it, the highest rate, the best of the others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.openloop import Answer
from benchmarks.report import percentile

MOST_VIOLATIONS = 0.02
"""Share of a run's requests up to which its rate counts as served (published)."""
LEAST_COMPARED = 20
"""Violations of the best other side below which a ratio of violations says nothing."""
STEP = 1.6
"""Between two rates while no bound is known."""


def violation(answer: Answer) -> str:
    """Why a request did not get what it asked for; "" where it did. Latency is judged by the clock, the rest by what the reply says."""
    if answer.error:
        return answer.error
    if answer.latency_ms > answer.form.latency_ms:
        return "late after a start" if answer.start_path != "warm" else "late"
    missed = [part.split(" ", 1)[0] for part in answer.missed.split(", ") if part]
    return next((name for name in missed if name != "latency_ms"), "")


@dataclass(frozen=True)
class Tally:
    requests: int
    violations: int
    reasons: Mapping[str, int]
    served_by: Mapping[str, int]
    starts: int
    p50_ms: float
    p99_ms: float
    lag_p99_ms: float

    @property
    def kept(self) -> bool:
        return self.violations <= MOST_VIOLATIONS * self.requests


def tally(answers: Sequence[Answer]) -> Tally:
    """Percentiles are of answered requests, 0 where there are none."""
    reasons = Counter(reason for reason in map(violation, answers) if reason)
    served_by = Counter(answer.served_by for answer in answers if not answer.error)
    took = [answer.latency_ms for answer in answers if not answer.error]
    return Tally(
        len(answers),
        reasons.total(),
        reasons,
        served_by,
        sum(answer.start_path not in ("", "warm") for answer in answers),
        percentile(took, 0.5) if took else 0.0,
        percentile(took, 0.99) if took else 0.0,
        percentile([answer.lag_ms for answer in answers], 0.99) if answers else 0.0,
    )


@dataclass(frozen=True)
class Held:
    """An instance at one look: its share (0..1, or more) of a node that costs `usd_per_hour`, its load state and what waits in it."""

    variant: str
    share: float
    usd_per_hour: float
    state: str = "active"
    waiting: int = 0


def share_of(threads: int, cores: int, instance_bytes: int, node_bytes: int) -> float:
    """Of a node, by threads or by memory, whichever is more: what the autoscaler counts, too."""
    return max(min(threads, cores) / max(1, cores), instance_bytes / node_bytes if node_bytes else 0.0)


@dataclass
class Bill:
    """What was reserved, look by look: every instance from its start until it is gone pays its share of its node's price, busy or not.
    `core_s` is what runtimes really used; `waiting` the most requests that were seen to wait in all instances together."""

    usd: float = 0.0
    instance_s: float = 0.0
    core_s: float = 0.0
    most: Counter[str] = field(default_factory=Counter)
    """Instances of each variant at once, at most."""
    troubled_s: dict[str, float] = field(default_factory=dict)
    """Instance-seconds by load state, `active` left out."""
    waiting: int = 0

    def add(self, seconds: float, held: Iterable[Held], cores: float) -> None:
        counts: Counter[str] = Counter()
        waiting = 0
        for each in held:
            self.usd += each.share * each.usd_per_hour * seconds / 3600.0
            self.instance_s += seconds
            counts[each.variant] += 1
            waiting += each.waiting
            if each.state != "active":
                self.troubled_s[each.state] = self.troubled_s.get(each.state, 0.0) + seconds
        self.waiting = max(self.waiting, waiting)
        self.core_s += cores * seconds
        self.most |= counts


def next_factor(tried: Mapping[float, bool], first: float) -> float:
    """The rate (as a factor) to try next: up or down by `STEP` until it is bounded on both sides, then between the bounds. The same
    sequence for everybody who keeps and breaks the same ones."""
    if not tried:
        return first
    broken = min((factor for factor, kept in tried.items() if not kept), default=math.inf)
    kept = max((factor for factor, good in tried.items() if good and factor < broken), default=0.0)
    if math.isinf(broken):
        return kept * STEP
    return math.sqrt(kept * broken) if kept else broken / STEP


def highest(tried: Mapping[float, bool]) -> float:
    """The highest factor that was kept below every one that was not; 0 where none was."""
    broken = min((factor for factor, kept in tried.items() if not kept), default=math.inf)
    return max((factor for factor, kept in tried.items() if kept and factor < broken), default=0.0)


def best_of(found: Mapping[str, float], *, largest: bool) -> tuple[str, float]:
    """Which baseline is the best, and its figure; the first by name of equals."""
    return min(found.items(), key=lambda each: (-each[1] if largest else each[1], each[0]))


def fewer_violations(theirs: int, ours: int) -> float | None:
    """How many times fewer; None where there is too little to compare. None of our own counts as one."""
    return theirs / max(1, ours) if theirs >= LEAST_COMPARED else None
