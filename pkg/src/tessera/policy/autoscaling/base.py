"""The interface of autoscaling policies: a model's load and what it has in, a plan out. The scheduler's mechanism vets and carries out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tessera.domain.ids import InstanceId, NodeId, ProfileClass, VariantKey

HEADROOM = 1.05
"""Published: capacity over load, below which a model grows."""
TICK_S = 1.0
PATIENT_TICKS = 10
"""Published: what shrinks must have been proposed for so long in a row (the released code's for CPUs)."""
LOAD_WEIGHT = 1.0
"""Lambda of the published objective (tunable there): what the time of loading counts beside the time of serving."""


@dataclass(frozen=True, slots=True, order=True)
class Kind:
    """A variant on nodes of one profile class. `items_per_s`: what one instance answers at most. `cores`: what it keeps busy then.

    `cost`: of one instance for an hour: its share of its node's price, by cores or by memory, whichever is more; unless every node has a
    price, a core costs 1 on all. `load_s`: what its start takes.
    """

    variant: VariantKey
    profile_class: ProfileClass
    items_per_s: float
    cores: float
    cost: float
    load_s: float

    @property
    def start_cost(self) -> float:
        """Of one more: an hour of it, and its load."""
        return self.cost * (1.0 + LOAD_WEIGHT * self.load_s)


@dataclass(frozen=True, slots=True)
class Running:
    """A ready instance. `items_per_s`: its kind's, or what it answers where it is overloaded; 0 where requests avoid it."""

    instance_id: InstanceId
    node_id: NodeId
    kind: Kind
    items_per_s: float
    idle_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """Variants that may serve for each other, and their load together. `kinds`: what may be started, what runs among it.

    `room`: cores that nobody uses, by profile class; `limits`: how many more of a kind there may be, whatever the room. Items that wait in
    gateways for a start are not in the load: those starts are under way, whatever a policy says.
    """

    offered_items_per_s: float
    running: tuple[Running, ...]
    kinds: tuple[Kind, ...]
    room: Mapping[ProfileClass, float] = field(default_factory=dict)
    limits: Mapping[Kind, int] = field(default_factory=dict)

    @property
    def needed_items_per_s(self) -> float:
        return HEADROOM * self.offered_items_per_s

    @property
    def capacity_items_per_s(self) -> float:
        return sum(one.items_per_s for one in self.running)

    def fits(self, kind: Kind) -> int:
        """How many more of the kind there is room for."""
        return self.fits_into(kind, self.room.get(kind.profile_class, 0.0))

    def fits_into(self, kind: Kind, cores: float) -> int:
        count = int(cores / kind.cores + 1e-9) if kind.cores > 0 else 0
        return min(count, self.limits.get(kind, count))


@dataclass(frozen=True, slots=True)
class ScalePlan:
    """`add` first, then `remove` drains. `patience_s`: for how long a plan that takes capacity away must have been proposed; 0: at once."""

    add: tuple[tuple[Kind, int], ...] = ()
    remove: tuple[InstanceId, ...] = ()
    patience_s: float = 0.0
    reason: str = ""

    @property
    def empty(self) -> bool:
        return not self.add and not self.remove


NOTHING = ScalePlan()


class AutoscalingPolicy(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def slow(self) -> bool:
        """Whether a plan may take more than a few milliseconds: then it is asked for in a thread."""
        ...

    def plan(self, load: ModelLoad) -> ScalePlan:
        """Never removes the last instance without adding one, never adds beyond the room. Does not depend on the order of its input."""
        ...


def patience_s(removed: Sequence[Running]) -> float:
    """The larger of the load latency and ten ticks (published)."""
    return max([PATIENT_TICKS * TICK_S, *(one.kind.load_s for one in removed)])


def least_useful(running: Sequence[Running]) -> list[Running]:
    """The order in which instances of a kind go: those that answer least, then the longest idle."""
    return sorted(running, key=lambda one: (one.items_per_s, -one.idle_s, one.instance_id))


def instances_needed(items_per_s: float, each: float) -> int:
    return math.ceil(items_per_s / each - 1e-9) if each > 0 else 0
