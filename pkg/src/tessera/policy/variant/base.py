"""What a variant policy sees and what it answers.

Safety (a variant must be ready, valid on a node, not stopped meanwhile) is checked again by whoever carries the plan out; a policy
only ranks. Nodes come grouped by class, so that a plan costs the same with a hundred nodes as with one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from tessera.domain.ids import BuildClass, ProfileClass, VariantKey, VariantName, VersionKey
from tessera.domain.records import ProfileRecord, VariantRecord


@dataclass(frozen=True, slots=True)
class NodeClass:
    """Nodes that are alike for a variant policy. `threads` is what their runtimes run with."""

    build_class: BuildClass
    profile_class: ProfileClass
    flavours: tuple[str, ...]
    threads: int


@dataclass(frozen=True, slots=True)
class VariantSnapshot:
    """All that is known about one model version at one moment.

    `active` counts ready instances per variant and class of their node (variants without any are left out). `named` is set when the
    user wrote MODEL@VERSION/VARIANT. Records and the mappings of `classes` and of each variant's profiles are never changed in place:
    a policy may remember what it made of one as long as it is the same object.
    """

    version: VersionKey
    variants: tuple[VariantRecord, ...]
    classes: Mapping[NodeClass, int]
    active: Mapping[VariantName, Mapping[NodeClass, int]]
    profiles: Mapping[VariantName, Mapping[ProfileClass, ProfileRecord]]
    named: VariantName | None = None


@dataclass(frozen=True, slots=True)
class VariantOption:
    """One variant as the policy judged it. `expected_ms` is the time to an answer at batch 1, or None where nobody measured it.

    `reason` says why a variant is refused; why a usable one won or lost is said by `VariantPolicy.explain`.
    """

    variant: VariantKey
    usable: bool
    active_instances: int
    reason: str = ""
    latency_ms: float | None = None
    load_ms: float | None = None

    @property
    def expected_ms(self) -> float | None:
        """Latency for an active variant, load plus latency for an inactive one, in ms."""
        if self.latency_ms is None or self.active_instances:
            return self.latency_ms
        return None if self.load_ms is None else self.load_ms + self.latency_ms


@dataclass(frozen=True, slots=True)
class VariantPlan:
    """Options in the order in which they should be tried, usable ones first; the first usable one is the choice."""

    policy: str
    options: tuple[VariantOption, ...]

    @property
    def chosen(self) -> VariantOption | None:
        return self.options[0] if self.options and self.options[0].usable else None

    @property
    def usable(self) -> tuple[VariantOption, ...]:
        return tuple(option for option in self.options if option.usable)

    def refusal(self) -> str:
        """Why no variant is usable: each one with its reason."""
        if not self.options:
            return "it has no variants yet"
        return "; ".join(f"{option.variant.variant}: {option.reason}" for option in self.options)


class VariantPolicy(Protocol):
    @property
    def name(self) -> str: ...

    def choose(self, snapshot: VariantSnapshot) -> VariantPlan: ...

    def explain(self, plan: VariantPlan) -> tuple[VariantOption, ...]:
        """The options of a plan of this policy, each with its reason: asked when people ask, not for every request."""
        ...
