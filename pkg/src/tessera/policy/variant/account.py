"""Why one variant won and each other one lost, with their figures. Made when somebody asks, from what a decision left: the ranking with its
candidates as they were, and what the choice had looked at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from tessera.domain.objectives import Objectives
from tessera.policy.variant.base import Candidate, Choice, Looked, Ranking, VariantPolicy
from tessera.policy.variant.misses import misses, words


@dataclass(frozen=True, slots=True)
class Account:
    """`looked` is what was seen of its instances; None where that was not looked at."""

    candidate: Candidate
    chosen: bool
    usable: bool
    expected_ms: float | None
    reason: str
    looked: Looked | None = None


def accounts(
    policy: VariantPolicy, ranking: Ranking, objectives: Objectives, choice: Choice | None, refused: Iterable[tuple[Candidate, str]]
) -> list[Account]:
    """The choice first, then those that could have answered in the order of the ranking, then the others, the refused ones last; each
    variant once. `refused` is as things are now: who could answer when the choice was made has the account of then."""
    seen = {id(looked.candidate): looked for looked in choice.looked} if choice is not None else {}
    not_meeting = [one for one in ranking.slate if one not in set(ranking.meeting)]
    refusals = {one.key: (one, why) for one, why in refused}
    items = choice.items if choice is not None else 1
    found: list[Account] = []
    for one in (*ranking.meeting, *not_meeting):
        looked = seen.get(id(one))
        if one.nowhere and one.key in refusals and (choice is None or one is not choice.candidate):
            continue
        expected_ms = looked.expected_ms if looked is not None else one.started_ms(items)
        if choice is not None and one is choice.candidate:
            found.insert(0, Account(one, True, True, choice.expected_ms, _won(policy.name, ranking, objectives, choice), looked))
        else:
            found.append(Account(one, False, True, expected_ms, _lost(policy, ranking, objectives, one, looked, choice), looked))
    listed = {one.candidate.key for one in found}
    found += [Account(one, False, False, None, why) for key, (one, why) in refusals.items() if key not in listed]
    return found


def _won(policy: str, ranking: Ranking, objectives: Objectives, choice: Choice) -> str:
    how = "active" if choice.instance is not None else "inactive"
    if choice.candidate.activity.troubled and choice.instance is not None:
        how = "active with trouble, as all that are active"
    basis = f"policy {policy}" if ranking.by_number else "default order (not every candidate has a profile)"
    missed = misses(objectives, choice.candidate, choice.predicted_ms)
    return f"{how}, {basis}{f'; the closest, misses {words(missed)}' if missed else ''}"


def _lost(
    policy: VariantPolicy, ranking: Ranking, objectives: Objectives, one: Candidate, looked: Looked | None, choice: Choice | None
) -> str:
    if choice is None:
        missed = misses(objectives, one, one.latency_ms)
        return f"misses {words(missed)}" if missed else "could answer"
    items = choice.items
    missed = misses(objectives, one, choice.whole_ms(looked.expected_ms if looked is not None else one.expected_ms(items)))
    if missed:
        return f"misses {words(missed)}"
    best = choice.candidate
    name = best.key.variant if best.key.version_key == one.key.version_key else str(best.key)
    if not ranking.by_number:
        return f"after {name} in the default order"
    behind = _behind(policy, ranking, one, choice, name)
    if looked is not None:
        return f"{looked.in_flight} in flight: {behind or _against(looked.expected_ms, choice, name)}"
    if not one.activity.instances and choice.instance is not None:
        started_ms = one.started_ms(items)
        return f"inactive, and {name} is active{'' if started_ms is None else f'; {started_ms:.3g} ms with its load'}"
    if choice.instance is None:
        return behind or _against(one.started_ms(items), choice, name)
    return f"not looked at: {behind or _against(one.expected_ms(items), choice, name, ' at best')}"


def _behind(policy: VariantPolicy, ranking: Ranking, one: Candidate, choice: Choice, name: str) -> str:
    """By how much it comes after the choice in what the policy ranks by, where that is not when an answer is expected; "": it does not."""
    unit = policy.unit(one, ranking.criteria)
    if not unit:
        return ""
    more = policy.key(one, ranking.criteria) - policy.key(choice.candidate, ranking.criteria)
    return f"{more:.3g} {unit} more than {name}" if 0 < more < inf else ""


def _against(expected_ms: float | None, choice: Choice, name: str, seen: str = "") -> str:
    if expected_ms is None or choice.expected_ms is None:
        return f"after {name} in the order of policy and name"
    later_ms = expected_ms - choice.expected_ms
    return f"{later_ms:.3g} ms slower than {name}{seen}" if later_ms > 0 else f"as fast as {name}, after it in the order"
