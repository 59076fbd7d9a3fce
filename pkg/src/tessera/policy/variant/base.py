"""What a variant policy sees and what it answers.

Two steps, so that a decision costs little. `key` says where a candidate stands by what holds whoever serves now (records and profiles):
rankings are kept sorted by it, and one changed record moves one candidate (`ranking`). `choose` looks at the instances and their queues
and is asked for every request.

Safety stands outside: only candidates that may answer at all are ranked (`permitted`), what `strict` forbids is checked once more, and an
instance is started by the scheduler's rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from tessera.domain.accuracy import Accuracy, AccuracySource
from tessera.domain.ids import BuildClass, ProfileClass, VariantKey
from tessera.domain.records import VariantRecord
from tessera.policy.instance.base import Instance, InstancePolicy, Latency

DEFAULT_ORDER = ("identity", "ort", "aten")
"""The order in which backends are tried where nothing was measured. An assumption: a profile of both overrules it."""


_ALIKE = Accuracy(1.0, AccuracySource.AGREEMENT)


@dataclass(frozen=True, slots=True)
class NodeClass:
    """Nodes that are alike for a variant policy. `threads` is what their runtimes run with, the price is of one of them."""

    build_class: BuildClass
    profile_class: ProfileClass
    flavours: tuple[str, ...]
    threads: int
    cpu_count: int = 1
    usd_per_hour: float = 0.0


class Activity:
    """Where a variant is ready now. The one thing here that changes in place, and only between decisions.

    `instances` may be sent to; none of them is interfered with, unless all are. `troubled`: none is merely active.
    """

    __slots__ = ("instances", "troubled")

    def __init__(self, instances: Sequence[Instance] = (), troubled: bool = False) -> None:
        self.instances = tuple(instances)
        self.troubled = troubled


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A variant with what is known about it, the best of the classes of nodes that are there.

    Milliseconds at batch 1; None where nobody measured. `latency` says what other batches take. `start_ms` is load and latency together.
    `work_ms` is the core-milliseconds that an
    item takes at the batch where it takes least: what a request costs, whatever a node's price. `usd_per_1000` is 0 where a node that can
    run it has none; `priced`: every node that is there has one, those that cannot run it too, so that work has one unit for all
    candidates. `nowhere` says why no node can run it ("": one can); what is active may answer even so. `refusal` says why it may not
    answer at all.
    """

    key: VariantKey
    record: VariantRecord
    activity: Activity = field(default_factory=Activity)
    accuracy: Accuracy = _ALIKE
    dataset: str = ""
    plain: bool = True
    refusal: str = ""
    nowhere: str = ""
    latency_ms: float | None = None
    load_ms: float | None = None
    start_ms: float | None = None
    work_ms: float | None = None
    usd_per_1000: float | None = None
    priced: bool = False
    latency: Latency | None = None
    order: tuple[int, VariantKey] = field(init=False)
    """The default order, and what breaks ties: it ends in the id."""

    def __post_init__(self) -> None:
        backend = self.record.backend
        place = DEFAULT_ORDER.index(backend) if backend in DEFAULT_ORDER else len(DEFAULT_ORDER)
        object.__setattr__(self, "order", (place, self.key))

    def expected_ms(self, items: int) -> float | None:
        """What a request of so many items takes, by itself."""
        if items == 1 or self.latency is None:
            return self.latency_ms
        return self.latency.at(min(items, self.record.max_batch))

    def started_ms(self, items: int) -> float | None:
        """The same with a start before it."""
        start_ms, latency_ms = self.start_ms, self.latency_ms
        if items == 1 or start_ms is None or latency_ms is None:
            return start_ms
        return start_ms + (self.expected_ms(items) or latency_ms) - latency_ms


class Criteria(NamedTuple):
    """What objectives ask for that holds whoever serves now. `timed`: a latency is asked for as well; how much it is, `choose` is told."""

    min_accuracy: float | None = None
    max_cost: float | None = None
    dataset: str = ""
    timed: bool = False


NO_CRITERIA = Criteria()


class Ranking(NamedTuple):
    """`slate`: those that may answer, with the least latency first, unmeasured ones last. `meeting`: those of them that meet the criteria,
    by the policy's key where `by_number`; else, where somebody of `one_model` was not measured, in the default order. Never changed in
    place."""

    criteria: Criteria
    slate: Sequence[Candidate]
    meeting: Sequence[Candidate]
    by_number: bool = True
    one_model: bool = True


class Looked(NamedTuple):
    """An active candidate as `choose` saw it: the instance, its requests in flight then, the answer expected from it."""

    candidate: Candidate
    instance: Instance
    in_flight: int
    expected_ms: float | None


class Choice(NamedTuple):
    """`instance` None: one has to be started. `looked`: the active candidates that were looked at, where it was more than the choice.
    `items`: what the request that it was made for has. `surcharge_ms`: what answers take beyond what a policy expects (below 0:
    less)."""

    candidate: Candidate
    instance: Instance | None
    expected_ms: float | None
    looked: Sequence[Looked] = ()
    items: int = 1
    surcharge_ms: float = 0.0

    @property
    def predicted_ms(self) -> float | None:
        return self.whole_ms(self.expected_ms)

    def whole_ms(self, expected_ms: float | None) -> float | None:
        """What an answer takes that a policy expects after `expected_ms`, here or of a loser."""
        return None if expected_ms is None else max(0.0, expected_ms + self.surcharge_ms)


class VariantPolicy(Protocol):
    @property
    def name(self) -> str: ...

    def key(self, candidate: Candidate, criteria: Criteria) -> float:
        """Where a candidate that meets the criteria stands: the least number comes first, among equals the default order decides. inf: it
        was not measured."""
        ...

    def unit(self, candidate: Candidate, criteria: Criteria) -> str:
        """What `key` counts, as accounts name it ("core-ms per item"); "": milliseconds at batch 1, where they tell expected answers."""
        ...

    def choose(self, ranking: Ranking, latency_ms: float | None, instances: InstancePolicy, items: int) -> Choice | None:
        """The candidate and, where it is active, the instance that `instances` picks. `latency_ms`: asked for, of a request of so many
        `items`. None: nothing can answer."""
        ...


Classes = Mapping[NodeClass, int]
"""How many nodes of each class are there."""
