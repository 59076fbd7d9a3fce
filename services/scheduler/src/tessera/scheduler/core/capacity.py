"""What the autoscaler decides about: groups of variants that may serve for each other, their load, what they have and have room for.

Variants that a plain request may get are one group of their version; one that is asked for by name or with an accuracy is a group by
itself, because nobody knows here what else would do. A variant is only taken for others where its profile says that no answer gets
slower by it. Without a profile of everything that runs a group's capacity is unknown, and it is left alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from tessera.domain.fit import of_singles, predict_ms, saturation_items_per_s
from tessera.domain.ids import InstanceId, NodeId, ProfileClass, VariantKey, VersionKey
from tessera.domain.instance import InstanceState, StartPath
from tessera.domain.records import LoadState, NodeRecord, ProfileRecord, VariantRecord, VariantState
from tessera.policy.autoscaling.base import Kind, ModelLoad, Running
from tessera.policy.load.base import Load
from tessera.policy.start.costs import CostModel
from tessera.scheduler.core.observed import ObservedInstance, ObservedNode

FULL_SHARE = 0.8
"""Of a node's cores in use: it takes no more beyond that (the published share, by which nodes are added)."""
MOST_REPLICAS = 2
"""Of a variant on one node (published for CPUs); a runtime runs two batches at a time."""


@dataclass(frozen=True, slots=True)
class Group:
    """`key` is what it is called from tick to tick. `nodes`: where a kind may start, by profile class."""

    key: tuple[VersionKey, str]
    load: ModelLoad
    variants: frozenset[VariantKey]
    nodes: Mapping[Kind, tuple[NodeId, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Capacities:
    """The world of one tick. `closed`: nodes that take nothing more. `stopping`: instances that count no more. `priced`: every node has a
    price, so that costs are in USD; else they are in cores, for all kinds."""

    observed: Mapping[NodeId, ObservedNode]
    records: Mapping[NodeId, tuple[NodeRecord, ...]]
    profiles: Mapping[tuple[VariantKey, ProfileClass], ProfileRecord]
    loads: Mapping[InstanceId, Load]
    closed: Collection[NodeId] = ()
    stopping: Collection[InstanceId] = ()
    priced: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "priced", all(node[0].usd_per_hour for node in self.records.values()))

    def groups(self, variants: Mapping[VersionKey, Sequence[VariantRecord]], lossy: Collection[VersionKey]) -> list[Group]:
        """`variants` of each version; `lossy`: versions whose plain requests may get lossy ones."""
        by_version: dict[VersionKey, list[ObservedInstance]] = defaultdict(list)
        for node_id, node in sorted(self.observed.items()):
            if node.live and node_id in self.records:
                for item in node.instances:
                    if item.state is InstanceState.READY and item.instance_id not in self.stopping:
                        by_version[item.variant.version_key].append(item)
        found = []
        free = self._free_cores()
        for version, instances in sorted(by_version.items()):
            records = {record.key: record for record in variants.get(version, ()) if record.state is VariantState.READY}
            plain = {key: item for key, item in records.items() if not item.withheld and (version in lossy or not item.lossy)}
            parts: dict[str, tuple[list[ObservedInstance], dict[VariantKey, VariantRecord]]] = {}
            for item in instances:
                if item.variant in plain:
                    parts.setdefault("", ([], plain))[0].append(item)
                elif item.variant in records:
                    own = {item.variant: records[item.variant]}
                    parts.setdefault(item.variant.variant, ([], own))[0].append(item)
            for name, (part, serving) in parts.items():
                group = self._group((version, name), part, serving, free)
                if group is not None:
                    found.append(group)
        return found

    def _group(
        self,
        key: tuple[VersionKey, str],
        instances: Sequence[ObservedInstance],
        serving: Mapping[VariantKey, VariantRecord],
        free: Mapping[NodeId, float],
    ) -> Group | None:
        running: list[Running] = []
        slowest_ms = 0.0
        avoided = {item.instance_id for item in instances if self._state(item) is LoadState.INTERFERED}
        if len(avoided) == len(instances):
            avoided = set()
        for item in instances:
            kind = self._kind(serving[item.variant], self.records[item.node_id][0])
            if kind is None:
                return None
            gives = 0.0 if item.instance_id in avoided else self._gives(item, kind)
            running.append(Running(item.instance_id, item.node_id, kind, gives, item.idle_s))
            slowest_ms = max(slowest_ms, self._latency_ms(item.variant, self.records[item.node_id][0]))
        replicas = Counter((item.node_id, item.variant) for item in instances)
        nodes: dict[Kind, list[NodeId]] = defaultdict(list)
        limits: Counter[Kind] = Counter()
        room: dict[ProfileClass, float] = defaultdict(float)
        for node_id, cores in sorted(free.items()):
            record = self.records[node_id][0]
            most_here = max((one.kind.items_per_s for one in running if one.node_id == node_id), default=inf)
            taken = cores
            for variant in serving.values():
                more = MOST_REPLICAS - replicas[(node_id, variant.key)]
                kind = self._kind(variant, record) if more > 0 and _may_run(variant, self.records[node_id]) else None
                if kind is None or self._latency_ms(variant.key, record) > slowest_ms:
                    continue
                fits = int(cores / kind.cores)
                if not fits and kind.items_per_s <= most_here:
                    continue
                nodes[kind].append(node_id)
                limits[kind] += min(more, fits or 1)
                taken = max(taken, kind.cores)
            room[record.profile_class] += taken
        kinds = tuple(sorted({*nodes, *(one.kind for one in running)}))
        offered = sum(self._offered(item) for item in instances)
        load = ModelLoad(offered, tuple(running), kinds, dict(room), {kind: limits[kind] for kind in kinds})
        return Group(key, load, frozenset(serving), {kind: tuple(ids) for kind, ids in nodes.items()})

    def _free_cores(self) -> dict[NodeId, float]:
        """Cores that nobody uses, of nodes that take starts; nodes of one machine share its. Below `FULL_SHARE` a node takes one instance
        more, however many threads it has: they are no reservation."""
        open_nodes = [name for name, node in self.observed.items() if node.live and name in self.records and name not in self.closed]
        on_host = Counter(self.records[node_id][0].host_id for node_id in open_nodes)
        free = {}
        for node_id in open_nodes:
            record, report = self.records[node_id][0], self.observed[node_id].report
            one_more = min(record.runtime_threads, report.cpu_count) if report.cpu_cores < FULL_SHARE * report.cpu_count else 0.0
            free[node_id] = max(one_more, (report.cpu_count - report.cpu_cores) / on_host[record.host_id])
        return free

    def _kind(self, variant: VariantRecord, node: NodeRecord) -> Kind | None:
        profile = self.profiles.get((variant.key, node.profile_class))
        singles = of_singles(profile, variant.joins) if profile is not None else None
        items_per_s = saturation_items_per_s(singles, node.runtime_threads) if singles is not None else None
        if profile is None or items_per_s is None:
            return None
        threads = min(node.runtime_threads, node.cpu_count)
        observed = self.observed.get(node.node_id)
        memory_bytes = observed.report.memory_bytes if observed is not None else 0
        needed_bytes = variant.tensor_bytes + max((cost.peak_private_bytes for cost in profile.load), default=0)
        share = max(threads / max(1, node.cpu_count), needed_bytes / memory_bytes if memory_bytes else 0.0)
        cost = (node.usd_per_hour if self.priced else node.cpu_count) * share
        return Kind(variant.key, node.profile_class, items_per_s, threads, cost, _load_s(variant, profile))

    def _latency_ms(self, variant: VariantKey, node: NodeRecord) -> float:
        profile = self.profiles.get((variant, node.profile_class))
        found = predict_ms(profile, 1, node.runtime_threads) if profile is not None else None
        return found if found is not None else float("inf")

    def _offered(self, item: ObservedInstance) -> float:
        load = self.loads.get(item.instance_id)
        return max(item.items_per_s, load.offered_items_per_s) if load is not None else item.items_per_s

    def _state(self, item: ObservedInstance) -> LoadState:
        load = self.loads.get(item.instance_id)
        return load.state if load is not None else LoadState.ACTIVE

    def _gives(self, item: ObservedInstance, kind: Kind) -> float:
        """An overloaded instance shows what it can. One that is interfered with gets no requests while there is another; where there is
        none it counts in full: it moves, and nothing is added for it."""
        return min(kind.items_per_s, item.items_per_s) if self._state(item) is LoadState.OVERLOADED else kind.items_per_s


def _load_s(variant: VariantRecord, profile: ProfileRecord) -> float:
    """Of the cheapest way to start one."""
    measured = min((cost.total_ms for cost in profile.load), default=None)
    return (measured if measured is not None else CostModel().path(StartPath.BIND, variant.backend, None)[0]) / 1e3


def _may_run(variant: VariantRecord, node: Sequence[NodeRecord]) -> bool:
    served = any(record.trust_domain == variant.key.trust_domain for record in node)
    return served and variant.build_class in (None, node[0].build_class) and variant.flavour in node[0].flavours


@dataclass(frozen=True, slots=True)
class Votes:
    """Since when a group's plan would take capacity away, in a row."""

    since_s: Mapping[tuple[VersionKey, str], float] = field(default_factory=dict)

    def count(self, shrinking: Iterable[tuple[VersionKey, str]], now_s: float) -> Votes:
        return Votes({key: self.since_s.get(key, now_s) for key in shrinking})

    def patient_for_s(self, key: tuple[VersionKey, str], now_s: float) -> float:
        return now_s - self.since_s.get(key, now_s)


def why_not_removed(group: Group, gone: Sequence[InstanceId], added: int, waited_for: Collection[VariantKey]) -> str | None:
    """What never happens, whatever a policy proposes: the end of the last instance, or of any while requests wait for a start."""
    if group.variants.intersection(waited_for):
        return "requests wait for its model"
    left = {one.instance_id for one in group.load.running} - set(gone)
    return None if left or added else "it is the last instance"
