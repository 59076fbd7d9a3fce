"""Candidates kept in a policy's order as single ones change.

A sorted list is never changed in place: decisions keep the one that they were made from. A change costs a copy of its pointers and two
binary searches, which is a hundredth of sorting anew.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from math import inf

from tessera.policy.variant.base import Candidate, Criteria, Ranking, VariantPolicy
from tessera.policy.variant.permitted import is_permitted

ROUNDING = 1e-9
"""An accuracy that was computed as the quotient that the user asks for counts as met."""

_Key = tuple[float, tuple[object, ...]]


class Sorted:
    """Those that `admits` lets in, by `number` and then by the default order."""

    __slots__ = ("_keys", "admits", "items", "number")

    def __init__(self, number: Callable[[Candidate], float], admits: Callable[[Candidate], bool], admitted: Iterable[Candidate]) -> None:
        """`admitted`: those that `admits` lets in, in any order."""
        self.number = number
        self.admits = admits
        rows = [(number(one), one.order, one) for one in admitted]
        rows.sort()
        self._keys: list[_Key] = [row[:2] for row in rows]
        self.items: list[Candidate] = [row[2] for row in rows]

    @property
    def measured(self) -> bool:
        """Everybody has a number."""
        return not self._keys or self._keys[-1][0] < inf

    def changed(self, before: Candidate | None, after: Candidate | None) -> Sorted:
        """The same with one candidate replaced (None: it was not there, it goes)."""
        keys, items = self._keys, self.items
        leaves = -1
        if before is not None:
            at = bisect_left(keys, (self.number(before), before.order))
            if at < len(items) and items[at] is before:
                leaves = at
        enters = after if after is not None and self.admits(after) else None
        if leaves < 0 and enters is None:
            return self
        made = Sorted.__new__(Sorted)
        made.number, made.admits = self.number, self.admits
        keys, items = made._keys, made.items = keys.copy(), items.copy()
        if leaves >= 0:
            del keys[leaves], items[leaves]
        if enters is not None:
            key = (self.number(enters), enters.order)
            at = bisect_left(keys, key)
            keys.insert(at, key)
            items.insert(at, enters)
        return made


def slate(candidates: Iterable[Candidate], *, lossy_too: bool, named: bool) -> Sorted:
    """Those that may answer, with the least latency first, unmeasured ones last."""

    def admits(candidate: Candidate) -> bool:
        return is_permitted(candidate, lossy_too=lossy_too, named=named)

    return Sorted(latency, admits, filter(admits, candidates))


def rank(policy: VariantPolicy, permitted: Sorted, criteria: Criteria, *, one_model: bool) -> tuple[Ranking, Sorted]:
    """The ranking of a slate, and its order to go on from."""
    met = [one for one in permitted.items if meets(one, criteria)] if is_bound(criteria) else permitted.items

    def admits(candidate: Candidate) -> bool:
        return permitted.admits(candidate) and meets(candidate, criteria)

    found = Sorted((lambda one: policy.key(one, criteria)), admits, met)
    by_number = criteria.timed or not one_model or found.measured
    if not by_number:
        found = Sorted(_alike, admits, met)
    return Ranking(criteria, permitted.items, found.items, by_number, one_model), found


def is_bound(criteria: Criteria) -> bool:
    """Whether somebody may fail to meet them."""
    return criteria.min_accuracy is not None or criteria.max_cost is not None or bool(criteria.dataset)


def _alike(_candidate: Candidate) -> float:
    return 0.0


def meets(candidate: Candidate, criteria: Criteria) -> bool:
    """As far as it holds whoever serves now: latency does not."""
    if criteria.min_accuracy is not None and candidate.accuracy.value < criteria.min_accuracy - ROUNDING:
        return False
    if criteria.max_cost is not None and (candidate.usd_per_1000 is None or candidate.usd_per_1000 > criteria.max_cost):
        return False
    return not criteria.dataset or candidate.dataset == criteria.dataset


def fastest_ms(ranking: Ranking, items: int) -> float | None:
    """What the fastest at batch 1 of those that meet the criteria, and that can answer at all, takes for so many items by itself."""
    criteria = ranking.criteria
    for one in ranking.slate:
        if (one.activity.instances or not one.nowhere) and meets(one, criteria):
            return one.expected_ms(items)
    return None


def latency(candidate: Candidate) -> float:
    return inf if candidate.latency_ms is None else candidate.latency_ms


def work(candidate: Candidate) -> float:
    """What an item takes: USD where every node has a price, else core-milliseconds."""
    found = candidate.usd_per_1000 if candidate.priced else candidate.work_ms
    return inf if found is None else found


def work_unit(candidate: Candidate) -> str:
    """What `work` counts."""
    return "USD per 1,000 requests" if candidate.priced else "core-ms per item"
