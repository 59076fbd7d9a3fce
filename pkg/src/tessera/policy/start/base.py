"""The interface of start policies, the question they get and the decision they return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tessera.domain.ids import InstanceId, NodeId, ProfileClass, VariantKey
from tessera.domain.instance import StartPath
from tessera.domain.records import ProfileRecord
from tessera.policy.placement.filters import Refusal
from tessera.policy.start.costs import NOTHING_SEEN, StartsSeen
from tessera.policy.view import Candidate, InstanceView, NodeView

OptionKey = tuple[VariantKey, NodeId, StartPath]
"""What can be tried and can fail: one candidate on one node by one path."""


@dataclass(frozen=True, slots=True)
class Donor:
    """An idle instance that a candidate could be made of, and what that takes in ms: the transformation itself, without bytes to fetch; and
    what the donor's model costs when it is asked again, `return_ms` with a chance of `again` (0 to 1). `freed_bytes`: what nothing holds
    any more when it ends, as far as that is known; 0 where no other donor is worth the same."""

    instance_id: InstanceId
    variant: VariantKey
    transform_ms: float
    return_ms: float
    again: float
    freed_bytes: int = 0

    @property
    def opportunity_ms(self) -> float:
        return self.again * self.return_ms

    @property
    def worth_ms(self) -> float:
        return self.transform_ms + self.opportunity_ms


Donors = Mapping[tuple[VariantKey, NodeId], tuple[Donor, ...]]
"""By candidate and node; who is not there has none."""


@dataclass(frozen=True, slots=True)
class NoDonor:
    """An idle instance of a candidate's backend that the candidate cannot be made of, and why not: words that follow on "is idle, but"."""

    instance_id: InstanceId
    variant: VariantKey
    why: str


NoDonors = Mapping[tuple[VariantKey, NodeId], NoDonor]
"""By candidate and node, where there are idle instances and no donor among them: the one that has been idle for the longest."""


@dataclass(frozen=True, slots=True)
class StartQuestion:
    """Candidates in the gateway's order, nodes at one moment, and what is known about costs.

    `failed` maps options that were tried for this request to the words of their failure; they are not chosen again. `ready_within_ms`: who
    waits is in time if the start takes no longer; None: nobody said. `seen`: what starts took lately.
    """

    candidates: tuple[Candidate, ...]
    nodes: tuple[NodeView, ...]
    profiles: Mapping[tuple[VariantKey, ProfileClass], ProfileRecord] = field(default_factory=dict)
    failed: Mapping[OptionKey, str] = field(default_factory=dict)
    donors: Donors = field(default_factory=dict)
    ready_within_ms: float | None = None
    no_donors: NoDonors = field(default_factory=dict)
    seen: StartsSeen = NOTHING_SEEN


@dataclass(frozen=True, slots=True)
class StartOption:
    """One way to answer. `measured`: its path cost comes from a profile or from earlier starts. Refused options have no expected time.

    `rank` is the candidate's place in the gateway's order (0 = its choice). `donor`: of a transformation; `price_ms` is what the option
    costs beyond its time, which counts in the choice alone.
    """

    variant: VariantKey
    rank: int
    node_id: NodeId
    start_path: StartPath
    expected_ms: float
    bytes_to_fetch: int
    measured: bool
    reason: str
    refused: bool = False
    instance: InstanceView | None = None
    donor: InstanceId | None = None
    price_ms: float = 0.0

    @property
    def key(self) -> OptionKey:
        return (self.variant, self.node_id, self.start_path)


@dataclass(frozen=True, slots=True)
class StartDecision:
    """The choice (None when every node refused), all others with their numbers and reasons, and the refusals in one sentence.

    `may_pass` says whether some refusal goes away by itself, so that asking again soon makes sense.
    """

    chosen: StartOption | None
    losers: tuple[StartOption, ...]
    refusals: tuple[Refusal, ...]
    explanation: str
    policy: str
    may_pass: bool = False


class StartPolicy(Protocol):
    @property
    def name(self) -> str: ...

    def decide(self, question: StartQuestion) -> StartDecision:
        """Never chooses a refused or a failed option; the decision does not depend on the order of the nodes."""
        ...
