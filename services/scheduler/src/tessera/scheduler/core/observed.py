"""What the agents' status streams say, folded into one frozen value per node.

Level, not edge: only the digest lists are changes; everything else in a report replaces what was known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from tessera.domain.errors import FailedPrecondition
from tessera.domain.ids import BuildClass, Digest, Generation, InstanceId, NodeId, ProfileClass, RuntimeId, TrustDomain, VariantKey
from tessera.domain.instance import TERMINAL, InstanceState, StageTime, StartPath
from tessera.policy.view import NO_STORE, InstanceView, RuntimeView, StoreView, ready_index

STARTING = frozenset({InstanceState.ACCEPTED, InstanceState.FETCHING, InstanceState.MAPPED, InstanceState.LOADING})
LIVE = STARTING | {InstanceState.READY}
"""States of an instance that serves or will serve."""


@dataclass(frozen=True, slots=True)
class ObservedInstance:
    """An instance as its agent reports it, with all that a gateway needs to reach it.

    `in_flight`: requests that wait or execute. `run_ms` and `run_items`: median and mean batch of the runs that ended in the last report
    interval, 0 when none did; the rates are over that interval too. `opening`: its runtime opens it while it is ready already, and
    `stages` are not its last ones.
    """

    instance_id: InstanceId
    node_id: NodeId
    variant: VariantKey
    generation: Generation
    runtime_id: RuntimeId
    state: InstanceState
    start_path: StartPath
    fetched: bool
    stages: tuple[StageTime, ...]
    host_id: str
    unix_path: str
    relay_address: str
    idle_s: float = 0.0
    served: int = 0
    artifact: Digest | None = None
    in_flight: int = 0
    requests_per_s: float = 0.0
    items_per_s: float = 0.0
    run_ms: float = 0.0
    run_items: float = 0.0
    parked: bool = False
    opening: bool = False
    fetched_bytes: int = 0

    def view(self) -> InstanceView:
        return InstanceView(self.instance_id, self.variant, self.generation, self.state, self.idle_s, self.parked)


@dataclass(frozen=True, slots=True)
class StoreReport:
    """One trust domain's store in one message of a status stream. Where that is full, `added` is the whole store."""

    budget_bytes: int
    held_bytes: int
    added: frozenset[Digest] = frozenset()
    removed: frozenset[Digest] = frozenset()

    def after(self, before: frozenset[Digest]) -> frozenset[Digest]:
        """What lies in it, when `before` did so at the last message."""
        return (before | self.added) - self.removed if self.added or self.removed else before


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One message of a status stream."""

    node_id: NodeId
    build_class: BuildClass
    profile_class: ProfileClass
    agent_address: str
    start_address: str
    flavours: tuple[str, ...]
    cpu_count: int
    instances: tuple[ObservedInstance, ...]
    runtimes: tuple[RuntimeView, ...]
    stores: Mapping[TrustDomain, StoreReport]
    full: bool
    peer_address: str = ""
    new_runtime: StartPath = StartPath.FORK
    cpu_cores: float = 0.0
    """Used by everything on the machine, on average over the last report interval."""
    runtime_cores: float = 0.0
    """Of these, its own runtimes'."""
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ObservedNode:
    """The sum of a node's reports. `stream` is the token of the stream they came by, None once that stream has ended.

    `answered` are instances that the agent answered as ready, with the moment, until its reports say so too. `instances` are those
    and the reported ones; `views` is what policies see of those that have not ended, `ready` an index of them. All three are made
    once per report, not per decision. `stores` holds the digests of all reports together.
    """

    report: NodeReport
    stores: Mapping[TrustDomain, StoreView]
    stream: int | None
    reported_at_s: float
    answered: tuple[tuple[ObservedInstance, float], ...] = ()
    instances: tuple[ObservedInstance, ...] = ()
    views: tuple[InstanceView, ...] = ()
    ready: Mapping[VariantKey, InstanceView] = field(default_factory=dict)

    @property
    def live(self) -> bool:
        return self.stream is not None


ANSWER_AHEAD_S = 5.0
"""How long an agent's answer 'ready' counts before its status stream must have said so as well."""


def fold(previous: ObservedNode | None, report: NodeReport, stream: int, now_s: float) -> ObservedNode:
    """Adds a report.

    Raises:
        FailedPrecondition: when a stream does not begin with a full status.
    """
    if report.full:
        before: Mapping[TrustDomain, StoreView] = {}
    elif previous is None or previous.stream != stream:
        raise FailedPrecondition(f"status of node {report.node_id}: the first message of a stream must be full")
    else:
        before = previous.stores
    stores = {
        domain: StoreView(store.budget_bytes, store.held_bytes, store.after(before.get(domain, NO_STORE).digests))
        for domain, store in report.stores.items()
    }
    shown = {item.instance_id: item.state for item in report.instances}
    answered = tuple(
        (item, at_s)
        for item, at_s in (previous.answered if previous is not None else ())
        if now_s - at_s < ANSWER_AHEAD_S and (item.instance_id not in shown or shown[item.instance_id] in STARTING)
    )
    return _node(replace(report, stores={}), stores, stream, now_s, answered)


def _node(
    report: NodeReport,
    stores: Mapping[TrustDomain, StoreView],
    stream: int | None,
    now_s: float,
    answered: tuple[tuple[ObservedInstance, float], ...],
) -> ObservedNode:
    ahead = {item.instance_id: item for item, _ in answered}
    shown = tuple(item for item in report.instances if item.instance_id not in ahead) + tuple(ahead.values())
    views = tuple(item.view() for item in shown if item.state not in TERMINAL)
    return ObservedNode(report, stores, stream, now_s, answered, shown, views, ready_index(views))


def answered(node: ObservedNode, instance: ObservedInstance, now_s: float) -> ObservedNode:
    """Notes that the agent answered a start, ahead of its next report. Only adds: this is on the path of every start."""
    name, view = instance.instance_id, instance.view()
    kept = tuple(entry for entry in node.answered if entry[0].instance_id != name)
    rest = tuple(item for item in node.instances if item.instance_id != name)
    views = tuple(item for item in node.views if item.instance_id != name)
    ready = {**node.ready, instance.variant: min((view, node.ready.get(instance.variant, view)), key=lambda item: item.instance_id)}
    return replace(
        node, answered=(*kept, (instance, now_s)), instances=(*rest, instance), views=(*views, view), ready=ready,
    )  # fmt: skip


def refused(node: ObservedNode, instance_id: InstanceId) -> ObservedNode:
    """Notes that the agent said of a start that it failed, ahead of its next report: nobody must take up what is over."""
    instances = tuple(item for item in node.instances if item.instance_id != instance_id)
    views = tuple(item for item in node.views if item.instance_id != instance_id)
    return replace(node, instances=instances, views=views, ready=ready_index(views))


def ended(node: ObservedNode, stream: int) -> ObservedNode:
    """The stream is over; a newer one of the same node is not touched."""
    return _node(node.report, node.stores, None, node.reported_at_s, ()) if node.stream == stream else node


def begun(nodes: Iterable[ObservedNode], variant: VariantKey, build_class: BuildClass) -> ObservedInstance | None:
    """An instance of the variant that an agent is starting already (for a leader before this one), on a node of the class."""
    found = [
        item
        for node in nodes
        if node.live and node.report.build_class == build_class
        for item in node.instances
        if item.variant == variant and item.state in STARTING
    ]
    return min(found, key=lambda item: item.instance_id, default=None)
