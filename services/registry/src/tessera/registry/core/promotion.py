"""The guard of a promotion: whether a version is worse than the one that an alias names, by what was measured of both.

Only like is compared with like: scores on one evaluation set by one metric, rows of profiles that were measured of both on one node class.
What counts of a version is what a plain request may get of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace

from tessera.domain.cost import usd_per_1000
from tessera.domain.errors import FailedPrecondition, InvalidInput
from tessera.domain.ids import ModelName, ProfileClass, VersionKey
from tessera.domain.records import LatencyRow, ModelRecord, NodeRecord, ProfileRecord, VariantRecord, VariantState, VersionRecord
from tessera.domain.tasks import difference

_DIGITS = 9
"""Of a loss: 0.8 - 0.79 is 0.01 and no more."""
_MOST_SHARE = 1000.0
_WORDS = {
    "latency": ("ms", "slower", "allow_slower"),
    "throughput": ("items/s", "slower", "allow_slower"),
    "cost": ("USD per 1,000", "costlier", "allow_costlier"),
}
"""Of a measure: its unit, what its being worse is called, the guard's limit."""

_Row = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Guard:
    """What a version may be worse by. `allow_loss`: of its score (0 to 1). `allow_slower`: share of the time that an answer, or an item
    under load, takes. `allow_costlier`: share of the cost of a request. A tenth is above what two runs of the profiler differ by."""

    allow_loss: float = 0.0
    allow_slower: float = 0.1
    allow_costlier: float = 0.1


def checked_guard(guard: Guard) -> Guard:
    """Raises: InvalidInput names the field, the value and the limit."""
    for name, value, most in (
        ("allow_loss", guard.allow_loss, 1.0),
        ("allow_slower", guard.allow_slower, _MOST_SHARE),
        ("allow_costlier", guard.allow_costlier, _MOST_SHARE),
    ):
        if not math.isfinite(value) or not 0 <= value <= most:
            raise InvalidInput(name, value, f"must be a number from 0 to {most:g}")
    return guard


@dataclass(frozen=True, slots=True)
class Measured:
    """A version with what was measured of it."""

    model: ModelRecord
    version: VersionRecord
    variants: tuple[VariantRecord, ...]
    profiles: tuple[ProfileRecord, ...] = ()

    @property
    def key(self) -> VersionKey:
        return VersionKey(self.version.trust_domain, self.version.model, self.version.version)

    @property
    def name(self) -> str:
        return f"{self.version.model}@{self.version.version}"

    @property
    def served(self) -> frozenset[str]:
        """Names of the variants that a plain request may get."""
        return frozenset(
            variant.key.variant
            for variant in self.variants
            if variant.state is VariantState.READY and not variant.withheld and (self.model.lossy or not variant.lossy)
        )

    @property
    def score(self) -> float | None:
        """Of the registered model itself on the evaluation set; what a lossy variant loses against it the allowance bounds."""
        agreements = (variant.agreement for variant in sorted(self.variants, key=lambda variant: variant.key))
        return next((found.reference_score for found in agreements if found is not None and found.reference_score is not None), None)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of the version that the alias names, of the candidate, and what is said about them. None: there is none.

    `measure`: "signature", "variants", "accuracy", "latency" (ms), "throughput" (items/s), "cost" (USD per 1,000 requests). `on`: the
    metric, or the profile class.
    """

    measure: str
    on: str
    current: float | None
    candidate: float | None
    words: str
    refused: bool = False


def compare(candidate: Measured, current: Measured, nodes: Iterable[NodeRecord], guard: Guard) -> tuple[Comparison, ...]:
    """All that speaks for and against pointing an alias at `candidate` instead of `current`. `nodes` say what their classes cost."""
    found = [*_fits(candidate, current), _accuracy(candidate, current, guard.allow_loss)]
    return (*found, *_profiled(candidate, current, tuple(nodes), guard))


def check_promotable(alias: ModelName, candidate: Measured, current: Measured, comparisons: Sequence[Comparison]) -> None:
    """Raises: FailedPrecondition: names each figure that is worse, the limit, and the way round."""
    if refused := refusals(comparisons):
        raise FailedPrecondition(
            f"{candidate.name} does not replace {current.name} as {alias!r}: {refused}. Allow more (allow_loss, allow_slower, "
            "allow_costlier), or promote it by force"
        )


def refusals(comparisons: Iterable[Comparison]) -> str:
    """Those that speak against it, in words; "" where none does."""
    return "; ".join(f"{each.measure}{f' ({each.on})' if each.on else ''}: {each.words}" for each in comparisons if each.refused)


def _fits(candidate: Measured, current: Measured) -> Iterator[Comparison]:
    if differs := difference(candidate.version.signature, current.version.signature):
        yield Comparison("signature", "", None, None, f"{differs} in {current.name}", refused=True)
    if not candidate.served:
        yield Comparison("variants", "", None, None, f"none of {candidate.name} is ready that a plain request may get", refused=True)


def _accuracy(candidate: Measured, current: Measured, allowed: float) -> Comparison:
    ours, theirs = candidate.version.evaluation, current.version.evaluation
    after, before = candidate.score, current.score
    if ours is None or theirs is None:
        bare = candidate.name if ours is None else current.name
        words = f"{bare} has no evaluation set, so there is no common measure"
        return Comparison("accuracy", "", before, after, words, refused=True)
    if (ours.digest, ours.metric) != (theirs.digest, theirs.metric):
        words = "they were scored on different evaluation sets or by different metrics, so there is no common measure"
        sets = f"{theirs.metric} on {theirs.digest[:8]}, {ours.metric} on {ours.digest[:8]}"
        return Comparison("accuracy", sets, before, after, words, refused=True)
    if after is None or before is None:
        bare = candidate.name if after is None else current.name
        return Comparison("accuracy", ours.metric, before, after, f"{bare} has no score yet", refused=True)
    loss = round(before - after, _DIGITS)
    words = f"{after:.4f} after {before:.4f}"
    if loss > 0:
        words += f" loses {loss:.4g}, at most {allowed:g} (allow_loss)"
    return Comparison("accuracy", ours.metric, before, after, words, refused=loss > allowed)


def _profiled(candidate: Measured, current: Measured, nodes: tuple[NodeRecord, ...], guard: Guard) -> Iterator[Comparison]:
    """What was profiled of the version that the alias names must not be worse; where nothing was, nothing is asked."""
    after, before = _by_class(candidate), _by_class(current)
    if not before:
        yield Comparison("latency", "", None, None, f"{current.name} was not profiled: speed and cost are not compared")
        return
    common = False
    for profile_class in sorted(after.keys() & before.keys()):
        keys = frozenset(map(_key, _rows(after[profile_class]))) & frozenset(map(_key, _rows(before[profile_class])))
        if not keys:
            continue
        common = True
        ours, theirs = (_only(found[profile_class], keys) for found in (after, before))
        yield from _speed(profile_class, _rows(ours), _rows(theirs), guard.allow_slower)
        yield from _cost(profile_class, ours, theirs, nodes, guard.allow_costlier)
    if not common:
        classes = ", ".join(sorted(before))
        words = f"{current.name} was profiled there and {candidate.name} was not: profile it (tessera profile run {candidate.name})"
        yield Comparison("latency", classes, None, None, words, refused=True)


def _by_class(of: Measured) -> dict[ProfileClass, list[ProfileRecord]]:
    found: dict[ProfileClass, list[ProfileRecord]] = {}
    for profile in of.profiles:
        if profile.rows and profile.variant.variant in of.served:
            found.setdefault(profile.profile_class, []).append(profile)
    return found


def _key(row: LatencyRow) -> _Row:
    return row.batch, row.threads, row.concurrency


def _rows(profiles: Iterable[ProfileRecord]) -> list[LatencyRow]:
    return [row for profile in profiles for row in profile.rows]


def _only(profiles: Iterable[ProfileRecord], keys: Set[_Row]) -> list[ProfileRecord]:
    return [replace(profile, rows=tuple(row for row in profile.rows if _key(row) in keys)) for profile in profiles]


def _speed(profile_class: ProfileClass, ours: list[LatencyRow], theirs: list[LatencyRow], allowed: float) -> Iterator[Comparison]:
    """By each version's fastest variant: one request alone, and the most items a second."""
    alone = [[row.p50_ms for row in rows if row.batch == row.concurrency == 1] for rows in (ours, theirs)]
    if all(alone):
        after, before = map(min, alone)
        yield _share("latency", profile_class, before, after, allowed)
    after, before = (max(row.items_per_s for row in rows) for rows in (ours, theirs))
    yield _share("throughput", profile_class, before, after, allowed)


def _cost(
    profile_class: ProfileClass, ours: list[ProfileRecord], theirs: list[ProfileRecord], nodes: tuple[NodeRecord, ...], allowed: float
) -> Iterator[Comparison]:
    """At the dearest node's price, as profiles show it; their ratio does not depend on it."""
    priced = [node for node in nodes if node.profile_class == profile_class and node.usd_per_hour > 0]
    if not priced:
        return
    node = max(priced, key=lambda node: (node.usd_per_hour, node.node_id))
    costs = [[usd_per_1000(profile, node.usd_per_hour, node.cpu_count) for profile in found] for found in (ours, theirs)]
    after, before = (min((cost for cost in found if cost is not None), default=0.0) for found in costs)
    yield _share("cost", profile_class, before, after, allowed)


def _share(measure: str, on: str, before: float, after: float, allowed: float) -> Comparison:
    unit, word, limit = _WORDS[measure]
    worse, than = (before, after) if measure == "throughput" else (after, before)
    share = round(worse / than - 1, _DIGITS) if than > 0 else 0.0
    words = f"{after:.4g} {unit} after {before:.4g}"
    if share > 0:
        words += f" is {share:.1%} {word}, at most {allowed:.1%} ({limit})"
    return Comparison(measure, on, before, after, words, refused=share > allowed)
