"""Candidates that answer for the same name, and what was ranked of them.

A version is a group (requests for a model, an alias or one of its variants), and so are the newest versions of a task's models (requests
for `task:NAME`). The rankings of a task, which has many candidates, are brought up to date by the few that changed since they were last
asked for; those of a version are made anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tessera.domain.ids import VariantKey, VariantName
from tessera.gateway.core.surcharge import Surcharge
from tessera.policy.variant.base import Candidate, Criteria, Ranking, VariantPolicy
from tessera.policy.variant.ranking import Sorted, rank, slate

MAX_RANKINGS = 256
"""Of one group: clients may ask for any accuracy and any cost, and each other one is a ranking of its own."""
KEEP_CHANGES = 8
"""An assumption: between these limits the updates' share of the loop and the share of requests that wait for a ranking are both small."""
MAX_CHANGES = 32
"""So many changes are made to a ranking one by one; more are as dear as making it anew."""


@dataclass(slots=True)
class _Slate:
    order: Sorted
    stamp: int


@dataclass(slots=True)
class _Ranked:
    ranking: Ranking
    order: Sorted
    stamp: int
    unasked: int = 0
    """Changes since it was last asked for."""


class Group:
    """`stamp` counts the changes: what was made of an older one is out of date. `outdated`: all candidates must be made anew before it is
    asked, because classes of nodes came or went."""

    def __init__(self, *, one_model: bool) -> None:
        self.stamp = 0
        self.outdated = False
        self.surcharge = Surcharge()
        self._one_model = one_model
        self._by_key: dict[VariantKey, Candidate] = {}
        self._changes: list[tuple[Candidate | None, Candidate | None]] = []
        self._slates: dict[tuple[VariantName | None, bool], _Slate] = {}
        self._rankings: dict[tuple[VariantName | None, Criteria], _Ranked] = {}

    @property
    def candidates(self) -> list[Candidate]:
        """In the default order."""
        return sorted(self._by_key.values(), key=lambda one: one.order)

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, key: VariantKey) -> bool:
        return key in self._by_key

    def put(self, candidate: Candidate) -> None:
        """Adds it, or replaces the one of the same variant."""
        before = self._by_key.get(candidate.key)
        self._by_key[candidate.key] = candidate
        self._changed(before, candidate)

    def remove(self, key: VariantKey) -> None:
        before = self._by_key.pop(key, None)
        if before is not None:
            self._changed(before, None)

    def fill(self, candidates: Iterable[Candidate]) -> None:
        """Holds these and no others."""
        self._by_key = {one.key: one for one in candidates}
        self.outdated = False
        self._forget()

    def outdate(self) -> None:
        self.outdated = True
        self._forget()

    def ranking(self, policy: VariantPolicy, criteria: Criteria, named: VariantName | None) -> Ranking:
        """The policy's order of those that may answer and meet the criteria."""
        key = (named, criteria)
        known = self._rankings.get(key)
        if known is None:
            if len(self._rankings) >= MAX_RANKINGS:
                self._rankings.clear()
            permitted = self._slate(criteria.min_accuracy is not None, named)
            known = self._rankings[key] = _Ranked(*rank(policy, permitted, criteria, one_model=self._one_model), self.stamp)
        elif known.stamp != self.stamp:
            self._renew(policy, known, named)
        known.unasked = 0
        return known.ranking

    def renew(self, policy: VariantPolicy) -> None:
        """After a change: brings up to date what is asked for, so that the next request finds it so. What was not asked for during the
        last `KEEP_CHANGES` waits until it is."""
        for (named, _), known in self._rankings.items():
            if known.unasked < KEEP_CHANGES:
                self._renew(policy, known, named)
                known.unasked += 1

    def _renew(self, policy: VariantPolicy, known: _Ranked, named: VariantName | None) -> None:
        criteria = known.ranking.criteria
        permitted = self._slate(criteria.min_accuracy is not None, named)
        if self._can_patch(known.stamp):
            known.order = self._patched(known.order, known.stamp)
            known.ranking = Ranking(criteria, permitted.items, known.order.items, one_model=False)
        else:
            known.ranking, known.order = rank(policy, permitted, criteria, one_model=self._one_model)
        known.stamp = self.stamp

    def _slate(self, lossy_too: bool, named: VariantName | None) -> Sorted:
        key = (named, lossy_too)
        known = self._slates.get(key)
        if known is None or not self._can_patch(known.stamp):
            if len(self._slates) >= MAX_RANKINGS:
                self._slates.clear()
            own = [one for one in self._by_key.values() if named is None or one.key.variant == named]
            known = self._slates[key] = _Slate(slate(own, lossy_too=lossy_too, named=named is not None), self.stamp)
        elif known.stamp != self.stamp:
            known.order = self._patched(known.order, known.stamp)
            known.stamp = self.stamp
        return known.order

    def _can_patch(self, stamp: int) -> bool:
        """Of one model all numbers or none decide, which one change may turn over."""
        return stamp == self.stamp or (not self._one_model and self.stamp - stamp <= len(self._changes))

    def _patched(self, order: Sorted, stamp: int) -> Sorted:
        for before, after in self._changes[len(self._changes) - (self.stamp - stamp) :]:
            order = order.changed(before, after)
        return order

    def _changed(self, before: Candidate | None, after: Candidate | None) -> None:
        self.stamp += 1
        self._changes.append((before, after))
        if len(self._changes) > 2 * MAX_CHANGES:
            del self._changes[:MAX_CHANGES]

    def _forget(self) -> None:
        self.stamp += 1
        self._changes.clear()
        self._slates.clear()
        self._rankings.clear()
