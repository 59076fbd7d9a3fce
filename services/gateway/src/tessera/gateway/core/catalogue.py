"""All that a request needs to know, in plain dicts, kept up to date from etcd's records and from the scheduler's answers.

Level-triggered: `put` and `remove` say what a key holds now, in any order and as often as it likes. Routes (name -> version, plan,
slots) are memoised and dropped when something they were made of changes, so that a warm request costs one dict lookup.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from tessera.domain.errors import VariantNotFound
from tessera.domain.ids import (
    BuildClass,
    Generation,
    InstanceId,
    ModelName,
    NodeId,
    ProfileClass,
    RuntimeId,
    TrustDomain,
    VariantKey,
    VariantName,
    VersionKey,
    VersionNumber,
)
from tessera.domain.instance import TERMINAL, InstanceState
from tessera.domain.records import (
    AliasRecord,
    InstanceRecord,
    LoadRecord,
    LoadState,
    ModelRecord,
    NodeRecord,
    ProfileRecord,
    VariantRecord,
    VersionRecord,
)
from tessera.gateway.core.references import Resolved, resolve
from tessera.gateway.core.slots import InstanceSlot
from tessera.policy.variant.base import NodeClass, VariantPlan, VariantPolicy, VariantSnapshot

Record = ModelRecord | VersionRecord | VariantRecord | AliasRecord | ProfileRecord | NodeRecord | InstanceRecord | LoadRecord

MAX_ROUTES = 65536
MAX_ORPHANS_PER_NODE = 1024
MAX_STALE = 65536

_NOTHING: dict[Any, Any] = {}
_UNKNOWN_CLASS = NodeClass(BuildClass("unknown"), ProfileClass("unknown"), (), 1)


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """Where requests for one name go now. `slots` are the usable instances of the plan's choice, `variant` is its name ("": none)."""

    resolved: Resolved
    plan: VariantPlan
    slots: tuple[InstanceSlot, ...]
    variant: str
    _labels: dict[str, tuple[str, str, str, str]] = field(default_factory=dict)

    def labels(self, node_id: str) -> tuple[str, str, str, str]:
        """Model, version, variant and node, for metrics."""
        found = self._labels.get(node_id)
        if found is None:
            version = self.resolved.version
            found = self._labels[node_id] = (version.model, str(version.version), self.variant, node_id)
        return found

    def pick(self) -> InstanceSlot | None:
        """The instance with the least requests in flight; None when none is usable."""
        slots = self.slots
        if len(slots) == 1:
            return slots[0]
        best = None
        for slot in slots:
            if best is None or slot.in_flight < best.in_flight:
                best = slot
        return best


class Catalogue:
    """The gateway's memory of one trust domain."""

    def __init__(self, trust_domain: TrustDomain, policy: VariantPolicy) -> None:
        self.trust_domain = trust_domain
        self.policy = policy
        self.models: dict[ModelName, ModelRecord] = {}
        self.aliases: dict[ModelName, AliasRecord] = {}
        self.versions: dict[ModelName, dict[VersionNumber, VersionRecord]] = {}
        self.variants: dict[VersionKey, dict[VariantName, VariantRecord]] = {}
        self.profiles: dict[VersionKey, dict[VariantName, dict[ProfileClass, ProfileRecord]]] = {}
        self.nodes: dict[NodeId, NodeRecord] = {}
        self.loads: dict[InstanceId, LoadRecord] = {}
        self._records: dict[str, Record] = {}
        self._classes: dict[NodeClass, int] = {}
        self._slots: dict[InstanceId, InstanceSlot] = {}
        self._orphans: dict[NodeId, dict[InstanceId, InstanceSlot]] = {}
        self._seen_orphans: set[InstanceSlot] = set()
        self._stale: OrderedDict[Generation, None] = OrderedDict()
        self._by_version: dict[VersionKey, dict[VariantName, dict[InstanceId, InstanceSlot]]] = {}
        self._class_by_node: dict[NodeId, NodeClass] = {}
        self._routes: dict[tuple[str, str], Route] = {}
        self._routes_of: dict[VersionKey, set[tuple[str, str]]] = {}

    # --- what changes it ---------------------------------------------------------------------------------------------------

    def put(self, key: str, record: Record) -> None:
        """The etcd key holds this record now."""
        before = self._records.get(key)
        if before == record:
            if isinstance(record, InstanceRecord):
                self._put_instance(record)  # reported again: no longer suspect
            return
        self._records[key] = record
        match record:
            case ModelRecord():
                self.models[record.name] = record
                self._forget_routes()
            case AliasRecord():
                self.aliases[record.alias] = record
                self._forget_routes()
            case VersionRecord():
                self.versions.setdefault(record.model, {})[record.version] = record
                self._forget_routes()
            case VariantRecord():
                self.variants.setdefault(record.key.version_key, {})[record.key.variant] = record
                self._forget_routes(record.key.version_key)
            case ProfileRecord():
                # A new dict, never the old one changed: the policy remembers what it made of it.
                of_version = self.profiles.setdefault(record.variant.version_key, {})
                name = record.variant.variant
                of_version[name] = {**of_version.get(name, {}), record.profile_class: record}
                self._forget_routes(record.variant.version_key)
            case NodeRecord():
                self._put_node(record)
            case InstanceRecord():
                self._put_instance(record)
            case LoadRecord():
                self.loads[record.instance_id] = record
                self._note_load(record.instance_id)

    def remove(self, key: str) -> None:
        """The etcd key is gone."""
        record = self._records.pop(key, None)
        match record:
            case ModelRecord():
                self.models.pop(record.name, None)
                self._forget_routes()
            case AliasRecord():
                self.aliases.pop(record.alias, None)
                self._forget_routes()
            case VersionRecord():
                _drop(self.versions, record.model, record.version)
                self._forget_routes()
            case VariantRecord():
                _drop(self.variants, record.key.version_key, record.key.variant)
                self._forget_routes(record.key.version_key)
            case ProfileRecord():
                of_version = self.profiles[record.variant.version_key]
                left = {cls: one for cls, one in of_version[record.variant.variant].items() if cls != record.profile_class}
                of_version[record.variant.variant] = left
                if not left:
                    _drop(self.profiles, record.variant.version_key, record.variant.variant)
                self._forget_routes(record.variant.version_key)
            case NodeRecord():
                self._remove_node(record)
            case InstanceRecord():
                self._remove_instance(record)
            case LoadRecord():
                self.loads.pop(record.instance_id, None)
                self._note_load(record.instance_id)

    def adopt(self, slot: InstanceSlot) -> InstanceSlot:
        """An instance that the scheduler has just named as ready; etcd will say so later. Returns the slot that stands for it."""
        known = self._slots.get(slot.instance_id)
        if known is not None and known.generation == slot.generation:
            known.suspect = False
            self._adopt_orphan(known)
            slot = known
        else:
            if known is not None:
                self._discard(known)
            self._insert(slot)
        self._forget_routes(slot.variant.version_key)
        return slot

    def mark_stale(self, slot: InstanceSlot) -> None:
        """It answered that its generation is gone, which is for ever: a record that still says ready is old news."""
        self._stale[slot.generation] = None
        if len(self._stale) > MAX_STALE:
            self._stale.popitem(last=False)
        self._discard(slot)

    def is_stale(self, generation: Generation) -> bool:
        return generation in self._stale

    def mark_runtime(self, runtime_id: RuntimeId, *, suspect: bool) -> None:
        """Its connection broke, or works again. Orphans have nobody who would report them again: a broken connection ends them."""
        for slot in [slot for slot in self._slots.values() if slot.runtime_id == runtime_id]:
            if suspect and slot.orphan:
                self._discard(slot)
            elif slot.suspect != suspect:
                slot.suspect = suspect
                self._forget_routes(slot.variant.version_key)

    def sweep(self) -> None:
        """Forgets orphans whose node is still there since the last sweep: they were stopped in order, no lease ran out."""
        lasting = [slot for node_id in self.nodes for slot in self._orphans.get(node_id, {}).values()]
        for slot in lasting:
            if slot in self._seen_orphans:
                self._discard(slot)
        self._seen_orphans = {slot for slot in lasting if slot.orphan}

    # --- what a request asks ------------------------------------------------------------------------------------------------

    def route(self, model_name: str, model_version: str) -> Route:
        """Where a request goes.

        Raises:
            InvalidInput, ModelNotFound, VersionNotFound, VariantNotFound: from the name.
        """
        route = self._routes.get((model_name, model_version))
        if route is not None:
            return route
        resolved = resolve(
            model_name,
            model_version,
            trust_domain=self.trust_domain,
            models=self.models,
            aliases=self.aliases,
            versions=self.versions,
        )
        return self._remember((model_name, model_version), self.plan(resolved))

    def plan(self, resolved: Resolved) -> Route:
        """The policy's plan for a version and the usable instances of its choice, made anew.

        Raises: VariantNotFound.
        """
        records = self.variants.get(resolved.version, {})
        if resolved.variant is not None and resolved.variant not in records:
            raise VariantNotFound(f"{resolved.version}/{resolved.variant}", ", ".join(sorted(records)))
        slots = {name: self._usable(held) for name, held in self._by_version.get(resolved.version, _NOTHING).items()}
        active = {name: self._classes_of(usable) for name, usable in slots.items() if usable}
        plan = self.policy.choose(
            VariantSnapshot(
                version=resolved.version,
                variants=tuple(records.values()),
                classes=self._classes,
                active=active,
                profiles=self.profiles.get(resolved.version, _NOTHING),
                named=resolved.variant,
            )
        )
        chosen = plan.chosen
        if chosen is None:
            return Route(resolved, plan, (), "")
        return Route(resolved, plan, slots.get(chosen.variant.variant, ()), chosen.variant.variant)

    def suspects(self, variant: VariantKey) -> tuple[InstanceSlot, ...]:
        """Instances that would be usable if only their connections worked."""
        held = self._by_version.get(variant.version_key, _NOTHING).get(variant.variant, _NOTHING)
        return tuple(slot for slot in held.values() if slot.suspect)

    def slot(self, instance_id: InstanceId) -> InstanceSlot | None:
        return self._slots.get(instance_id)

    def slots(self) -> tuple[InstanceSlot, ...]:
        return tuple(self._slots.values())

    def runtimes(self) -> set[RuntimeId]:
        """Runtimes that hold a slot, suspect or not: those that are worth a connection."""
        return {slot.runtime_id for slot in self._slots.values()}

    # --- inside -------------------------------------------------------------------------------------------------------------

    def _put_instance(self, record: InstanceRecord) -> None:
        known = self._slots.get(record.instance_id)
        if known is not None and known.generation != record.generation:
            self._discard(known)
            known = None
        if record.state is InstanceState.READY:
            if record.generation in self._stale:
                return
            if known is None:
                self._insert(slot_of(record))
            else:
                known.suspect = False
                self._adopt_orphan(known)
                self._forget_routes(record.variant.version_key)
        elif known is not None and (record.state is InstanceState.DRAINING or record.state in TERMINAL):
            # Earlier states are old news: the scheduler said ready before etcd did, and states only go forward.
            self._discard(known)

    def _remove_instance(self, record: InstanceRecord) -> None:
        slot = self._slots.get(record.instance_id)
        if slot is None or slot.generation != record.generation:
            return
        slot.orphan = True
        orphans = self._orphans.setdefault(slot.node_id, {})
        orphans[slot.instance_id] = slot
        if len(orphans) > MAX_ORPHANS_PER_NODE:
            self._discard(next(iter(orphans.values())))
        self._forget_routes(slot.variant.version_key)

    def _put_node(self, record: NodeRecord) -> None:
        returned = record.node_id not in self.nodes
        self.nodes[record.node_id] = record
        self._class_by_node[record.node_id] = node_class(record)
        if returned:
            for slot in list(self._orphans.get(record.node_id, {}).values()):
                self._discard(slot)
        self._count_classes()

    def _remove_node(self, record: NodeRecord) -> None:
        self.nodes.pop(record.node_id, None)
        if not any(slot.node_id == record.node_id for slot in self._slots.values()):
            self._class_by_node.pop(record.node_id, None)
        self._count_classes()

    def _count_classes(self) -> None:
        classes: dict[NodeClass, int] = {}
        for node_id in self.nodes:
            cls = self._class_by_node[node_id]
            classes[cls] = classes.get(cls, 0) + 1
        self._classes = classes
        self._forget_routes()

    def _usable(self, held: dict[InstanceId, InstanceSlot]) -> tuple[InstanceSlot, ...]:
        nodes = self.nodes
        usable = tuple([slot for slot in held.values() if not slot.suspect and not (slot.orphan and slot.node_id in nodes)])
        if not self.loads or len(usable) < 2:
            return usable
        return tuple([slot for slot in usable if not slot.slowed]) or usable

    def _note_load(self, instance_id: InstanceId) -> None:
        """An interfered instance gets requests only while there is no other: its load goes elsewhere before anything else is done."""
        slot, record = self._slots.get(instance_id), self.loads.get(instance_id)
        slowed = record is not None and record.state is LoadState.INTERFERED
        if slot is not None and slot.slowed is not slowed:
            slot.slowed = slowed
            self._forget_routes(slot.variant.version_key)

    def _classes_of(self, slots: tuple[InstanceSlot, ...]) -> dict[NodeClass, int]:
        """How many of them each class of nodes holds; the class of a node outlives its record as long as it has instances."""
        if len(slots) == 1:
            return {self._class_by_node.get(slots[0].node_id, _UNKNOWN_CLASS): 1}
        counts: dict[NodeClass, int] = {}
        for slot in slots:
            cls = self._class_by_node.get(slot.node_id, _UNKNOWN_CLASS)
            counts[cls] = counts.get(cls, 0) + 1
        return counts

    def _insert(self, slot: InstanceSlot) -> None:
        self._slots[slot.instance_id] = slot
        self._note_load(slot.instance_id)
        of_version = self._by_version.setdefault(slot.variant.version_key, {})
        of_version.setdefault(slot.variant.variant, {})[slot.instance_id] = slot
        self._forget_routes(slot.variant.version_key)

    def _adopt_orphan(self, slot: InstanceSlot) -> None:
        slot.orphan = False
        _drop(self._orphans, slot.node_id, slot.instance_id)

    def _discard(self, slot: InstanceSlot) -> None:
        self._adopt_orphan(slot)
        if self._slots.get(slot.instance_id) is slot:
            del self._slots[slot.instance_id]
        of_version = self._by_version.get(slot.variant.version_key, {})
        _drop(of_version, slot.variant.variant, slot.instance_id)
        if not of_version:
            self._by_version.pop(slot.variant.version_key, None)
        self._forget_routes(slot.variant.version_key)

    def _remember(self, key: tuple[str, str], route: Route) -> Route:
        if len(self._routes) >= MAX_ROUTES:
            self._forget_routes()
        self._routes[key] = route
        self._routes_of.setdefault(route.resolved.version, set()).add(key)
        return route

    def _forget_routes(self, version: VersionKey | None = None) -> None:
        if version is None:
            self._routes.clear()
            self._routes_of.clear()
            return
        for key in self._routes_of.pop(version, ()):
            self._routes.pop(key, None)


def node_class(node: NodeRecord) -> NodeClass:
    return NodeClass(node.build_class, node.profile_class, node.flavours, node.runtime_threads)


def slot_of(record: InstanceRecord) -> InstanceSlot:
    return InstanceSlot(
        instance_id=record.instance_id,
        variant=record.variant,
        generation=record.generation,
        node_id=record.node_id,
        runtime_id=record.runtime_id,
        host_id=record.host_id,
        unix_path=record.unix_path,
        relay_address=record.relay_address,
        start_path=record.start_path,
    )


def _drop(table: dict[Any, dict[Any, Any]], outer: object, inner: object) -> None:
    """Removes one entry of a table of tables, and the inner table with its last entry."""
    entries = table.get(outer)
    if entries is not None:
        entries.pop(inner, None)
        if not entries:
            del table[outer]
