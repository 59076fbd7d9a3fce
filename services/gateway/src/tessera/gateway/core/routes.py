"""Where requests for one name and its objectives may go, and the choice of one of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from tessera.domain.ids import VariantKey, VariantName, VersionKey
from tessera.domain.objectives import NO_OBJECTIVES, Objectives
from tessera.domain.tasks import TASK_PREFIX
from tessera.gateway.core.candidates import why_nowhere
from tessera.gateway.core.groups import Group
from tessera.gateway.core.slots import InstanceSlot
from tessera.policy.variant.base import NO_CRITERIA, Candidate, Choice, Criteria, NodeClass, Ranking
from tessera.policy.variant.misses import misses, words
from tessera.policy.variant.permitted import refusal
from tessera.policy.variant.plain import to_start


@dataclass(slots=True, eq=False)
class Name:
    """A name and the version beside it (`wanted`) read: the group that answers, which is a task's or a version's; `named`: its one variant
    that was named. `follows`: no version was named. `plain` is the last route of a request without objectives."""

    name: str
    wanted: str
    group: Group
    task: str = ""
    version: VersionKey | None = None
    named: VariantName | None = None
    follows: bool = False
    plain: Route | None = None

    @property
    def shown(self) -> str:
        """What it stands for: `task:NAME`, or `MODEL@VERSION`."""
        return f"{TASK_PREFIX}{self.task}" if self.version is None else str(self.version)


class Route:
    """A name with objectives, and the ranking of those that may answer; good as long as the group has the `stamp`. Requests keep it: it is
    what was known when they were decided."""

    __slots__ = ("name", "objectives", "ranking", "snapshot", "stamp")

    def __init__(self, name: Name, objectives: Objectives, ranking: Ranking, snapshot: int) -> None:
        self.name = name
        self.stamp = name.group.stamp
        self.objectives = objectives
        self.ranking = ranking
        self.snapshot = snapshot

    def missed(self, choice: Choice) -> str:
        """By how much the choice misses the objectives, in words; "" where it meets them, or none were given."""
        return words(misses(self.objectives, choice.candidate, choice.predicted_ms))

    def refused_for(self, choice: Choice) -> None:
        """A strict request was, since the choice misses something. Where that is by the surcharge alone, the surcharge wears off."""
        if not misses(self.objectives, choice.candidate, choice.expected_ms):
            self.name.group.surcharge.doubt(choice.items)

    def to_start(self, choice: Choice) -> list[VariantKey]:
        """What the scheduler may start instead of the choice, the choice first: others that meet what the choice meets."""
        chosen, items = choice.candidate, choice.items
        if misses(self.objectives, chosen, choice.predicted_ms):
            return [chosen.key]
        others = [one for one in to_start(self.ranking, self.ranking.meeting, items) if one is not chosen]
        return [chosen.key, *[one.key for one in others if not misses(self.objectives, one, choice.whole_ms(one.started_ms(items)))]]

    def refusal(self, classes: Mapping[NodeClass, int]) -> str:
        """Why no variant can answer: each one with its reason."""
        reasons = [f"{one.key if self.name.task else one.key.variant}: {why}" for one, why in self.refused(classes)]
        return "; ".join(reasons) or "it has no variants yet"

    def refused(self, classes: Mapping[NodeClass, int]) -> Iterator[tuple[Candidate, str]]:
        """Candidates that may not answer, or could not be started, as things are now."""
        for one in self.name.group.candidates:
            if self.name.named is not None and one.key.variant != self.name.named:
                yield one, "not the variant that was named"
                continue
            why = refusal(one, self.objectives, self.name.named is not None)
            if not why and one.nowhere and not one.activity.instances:
                why = why_nowhere(one.record, classes)
            if why:
                yield one, why


def slot_of_choice(choice: Choice) -> InstanceSlot | None:
    """The instance of a choice, as what it is here."""
    return cast("InstanceSlot | None", choice.instance)


def criteria_of(objectives: Objectives) -> Criteria:
    if objectives is NO_OBJECTIVES:
        return NO_CRITERIA
    return Criteria(objectives.min_accuracy, objectives.max_cost, objectives.dataset, objectives.latency_ms is not None)
