"""All that a request needs to know, in plain dicts, kept up to date from etcd's records and from the scheduler's answers.

Level-triggered: `put` and `remove` say what a key holds now, in any order and as often as it likes. Each record changes the candidates
that are made of it, in the groups that hold them (`groups`); instances change no candidate (`fleet`). Names that were read are kept, and
so are rankings, so that a warm request costs a dict lookup or two and one look at the instances.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, cast

from tessera.domain.errors import NotFound, VariantNotFound
from tessera.domain.ids import (
    ModelName,
    NodeId,
    ProfileClass,
    RuntimeId,
    TrustDomain,
    VariantKey,
    VersionKey,
    VersionNumber,
)
from tessera.domain.objectives import NO_OBJECTIVES, Objectives
from tessera.domain.records import (
    AliasRecord,
    InstanceRecord,
    LoadRecord,
    ModelRecord,
    NodeRecord,
    ProfileRecord,
    VariantRecord,
    VersionRecord,
)
from tessera.domain.signature import Signature
from tessera.domain.tasks import common_signature
from tessera.gateway.core.candidates import Row, node_class
from tessera.gateway.core.fleet import Fleet
from tessera.gateway.core.groups import Group
from tessera.gateway.core.references import resolve, task_of
from tessera.gateway.core.routes import Name, Route, criteria_of
from tessera.gateway.core.slots import InstanceSlot
from tessera.policy.instance.base import InstancePolicy
from tessera.policy.instance.least_in_flight import LeastInFlight
from tessera.policy.variant.answering import answering_version
from tessera.policy.variant.base import NO_CRITERIA, Candidate, Choice, Criteria, NodeClass, Ranking, VariantPolicy
from tessera.policy.variant.ranking import fastest_ms

Record = ModelRecord | VersionRecord | VariantRecord | AliasRecord | ProfileRecord | NodeRecord | InstanceRecord | LoadRecord

MAX_NAMES = 16384


class Catalogue:
    """The gateway's memory of one trust domain."""

    def __init__(self, trust_domain: TrustDomain, policy: VariantPolicy, instances: InstancePolicy | None = None) -> None:
        self.trust_domain = trust_domain
        self.policy = policy
        self.instances = instances or LeastInFlight()
        self.models: dict[ModelName, ModelRecord] = {}
        self.aliases: dict[ModelName, AliasRecord] = {}
        self.versions: dict[ModelName, dict[VersionNumber, VersionRecord]] = {}
        self.nodes: dict[NodeId, NodeRecord] = {}
        self.classes: dict[NodeClass, int] = {}
        self.fleet = Fleet(self.nodes.keys(), self._measure)
        self.snapshot = 0
        """Counts the changes: says of a decision what was known."""
        self._records: dict[str, Record] = {}
        self._class_by_node: dict[NodeId, NodeClass] = {}
        self._rows: dict[ModelName, dict[VariantKey, Row]] = {}
        self._profiles: dict[VariantKey, dict[ProfileClass, ProfileRecord]] = {}
        self._versions: dict[VersionKey, Group] = {}
        self._tasks: dict[str, Group] = {}
        self._answering: dict[ModelName, VersionNumber] = {}
        self._members: dict[str, dict[ModelName, VersionKey]] = {}
        """Of each task: the versions that answer for it."""
        self._names: dict[tuple[str, str], Name] = {}

    # --- what changes it

    def put(self, key: str, record: Record) -> None:
        """The etcd key holds this record now."""
        before = self._records.get(key)
        if before == record:
            if isinstance(record, InstanceRecord):
                self.fleet.put(record)  # reported again: no longer suspect
            return
        self.snapshot += 1
        self._records[key] = record
        match record:
            case InstanceRecord():
                self.fleet.put(record)
            case LoadRecord():
                self.fleet.put_load(record)
            case ModelRecord():
                self.models[record.name] = record
                self._model_changed(record.name)
            case AliasRecord():
                self.aliases[record.alias] = record
                self._forget_names()
            case VersionRecord():
                self.versions.setdefault(record.model, {})[record.version] = record
                self._forget_names()
                self._settle(record.model)
            case VariantRecord():
                self._put_variant(record)
            case ProfileRecord():
                self._profiles_of(record.variant)[record.profile_class] = record
                self._profile_changed(record.variant)
            case NodeRecord():
                self._put_node(record)

    def remove(self, key: str) -> None:
        """The etcd key is gone."""
        record = self._records.pop(key, None)
        self.snapshot += record is not None
        match record:
            case InstanceRecord():
                self.fleet.remove(record)
            case LoadRecord():
                self.fleet.remove_load(record)
            case ModelRecord():
                self.models.pop(record.name, None)
                self._model_changed(record.name)
            case AliasRecord():
                self.aliases.pop(record.alias, None)
                self._forget_names()
            case VersionRecord():
                _drop(self.versions, record.model, record.version)
                self._forget_names()
                self._settle(record.model)
            case VariantRecord():
                self._remove_variant(record.key)
            case ProfileRecord():
                self._profiles_of(record.variant).pop(record.profile_class, None)
                self._profile_changed(record.variant)
            case NodeRecord():
                self._remove_node(record)

    # --- what a request asks

    def route(self, model_name: str, model_version: str, objectives: Objectives = NO_OBJECTIVES) -> Route:
        """Where a request may go.

        Raises:
            InvalidInput, ModelNotFound, VersionNotFound, VariantNotFound, NotFound: from the name.
        """
        name = self._names.get((model_name, model_version)) or self._named(model_name, model_version)
        if objectives is not NO_OBJECTIVES:
            return Route(name, objectives, self._ranking(name, criteria_of(objectives)), self.snapshot)
        route = name.plain
        if route is None or route.stamp != name.group.stamp:
            route = name.plain = Route(name, objectives, self._ranking(name, NO_CRITERIA), self.snapshot)
        return route

    def choose(self, route: Route, items: int = 1) -> Choice | None:
        """The policy's choice for a request of so many items as things are now; None: nothing can answer.

        Policies go by profiles: what answers take beyond them is taken off the latency that they have to keep. Never so much that who is
        fastest by its profile and meets the rest is late by itself: on a busy machine an answer that is late is better than one that is
        late and not what was asked. Where answers come sooner than by their profiles, that is predicted, and nobody is given more time."""
        surcharge_ms = route.name.group.surcharge.ms(items)
        latency_ms = asked_ms = route.objectives.latency_ms
        if asked_ms is not None and surcharge_ms > 0:
            latency_ms = max(asked_ms - surcharge_ms, min(asked_ms, fastest_ms(route.ranking, items) or asked_ms))
        choice = self.policy.choose(route.ranking, latency_ms, self.instances, items)
        if choice is None or (items == 1 and not surcharge_ms):
            return choice
        return Choice(choice.candidate, choice.instance, choice.expected_ms, choice.looked, items, surcharge_ms)

    def ready(self, variants: Iterable[VariantKey]) -> InstanceSlot | None:
        """An instance of the first of them that has one."""
        for key in variants:
            if instances := self.fleet.activity(key).instances:
                return cast("InstanceSlot", self.instances.pick(instances))
        return None

    def signature(self, route: Route) -> Signature:
        """What the models that may answer have in common. Raises: NotFound when none is there any more."""
        keys = (route.name.version,) if route.name.version is not None else self._members.get(route.name.task, {}).values()
        found = [self.versions[key.model][key.version].signature for key in keys if key.version in self.versions.get(key.model, ())]
        if not found:
            raise NotFound(f"{route.name.shown} has no version")
        return common_signature(found)

    def refusal(self, route: Route) -> str:
        """Why no variant can answer: each one with its reason."""
        return route.refusal(self.classes)

    def runtimes(self) -> set[RuntimeId]:
        """Runtimes that hold a slot, suspect or not: those that are worth a connection."""
        return {slot.runtime_id for slot in self.fleet.slots()}

    # --- inside

    def _named(self, model_name: str, model_version: str) -> Name:
        if len(self._names) >= MAX_NAMES:
            self._names.clear()
        name = self._names[model_name, model_version] = self._resolve(model_name, model_version)
        return name

    def _ranking(self, name: Name, criteria: Criteria) -> Ranking:
        group = name.group
        if group.outdated:
            group.fill([self._judged(self._rows[one.key.model][one.key]) for one in group.candidates])
        return group.ranking(self.policy, criteria, name.named)

    def _resolve(self, model_name: str, model_version: str) -> Name:
        task = task_of(model_name, model_version, self._tasks)
        if task is not None:
            return Name(model_name, model_version, self._tasks[task], task=task)
        resolved = resolve(
            model_name,
            model_version,
            trust_domain=self.trust_domain,
            answering=self._answering,
            aliases=self.aliases,
            versions=self.versions,
        )
        version, named = resolved.version, resolved.variant
        group = self._group(version)
        if named is not None and VariantKey(version.trust_domain, version.model, version.version, named) not in group:
            raise VariantNotFound(f"{version}/{named}", ", ".join(sorted(one.key.variant for one in group.candidates)))
        return Name(model_name, model_version, group, version=version, named=named, follows=resolved.follows)

    def _forget_names(self) -> None:
        self._names.clear()

    def _group(self, version: VersionKey) -> Group:
        group = self._versions.get(version)
        if group is None:
            group = self._versions[version] = Group(one_model=True)
        return group

    def _judged(self, row: Row) -> Candidate:
        return row.judge(self.models.get(row.record.key.model), self.classes)

    def _place(self, row: Row) -> None:
        """The candidate as it is now, into the groups that it belongs to."""
        key = row.record.key
        candidate = self._judged(row)
        version = key.version_key
        groups = [self._group(version)]
        model = self.models.get(key.model)
        if model is not None and model.task and self._answering[key.model] == key.version:
            groups.append(self._tasks[model.task])
        for group in groups:
            group.put(candidate)
            group.renew(self.policy)

    def _model_changed(self, name: ModelName) -> None:
        """Its candidates anew: which version answers for its name and its task, accuracy and consent are the model's."""
        model = self.models.get(name)
        for task in [task for task, members in self._members.items() if name in members]:
            self._leave(task, name)
        self._answering.pop(name, None)
        if model is not None:
            number = self._answering[name] = self._answering_version(model)
            if model.task:
                self._members.setdefault(model.task, {})[name] = VersionKey(self.trust_domain, name, number)
                self._tasks.setdefault(model.task, Group(one_model=False))
        for row in self._rows.get(name, {}).values():
            self._place(row)
        self._forget_names()

    def _settle(self, name: ModelName) -> None:
        """Has another version answer for the model's name where its versions, their variants or the nodes say so now."""
        model = self.models.get(name)
        if model is not None and self._answering_version(model) != self._answering[name]:
            self._model_changed(name)

    def _answering_version(self, model: ModelRecord) -> VersionNumber:
        newest_first = reversed(self._rows.get(model.name, {}).values())
        return answering_version(model, self.versions.get(model.name, ()), (row.record for row in newest_first), self.classes)

    def _leave(self, task: str, name: ModelName) -> None:
        members = self._members[task]
        del members[name]
        for key in self._rows.get(name, ()):
            self._tasks[task].remove(key)
        if not members:
            del self._members[task], self._tasks[task]

    def _put_variant(self, record: VariantRecord) -> None:
        key = record.key
        rows = self._rows.setdefault(key.model, {})
        row = rows.get(key)
        if row is None:
            row = rows[key] = Row(record, self.fleet.activity(key), self._profiles_of(key))
        row.record = record
        self._place(row)
        self._settle(key.model)
        self._measure_all(key)

    def _remove_variant(self, key: VariantKey) -> None:
        _drop(self._rows, key.model, key)
        group = self._group(key.version_key)
        group.remove(key)
        model = self.models.get(key.model)
        if model is not None and model.task:
            self._tasks[model.task].remove(key)
        if not len(group):
            del self._versions[key.version_key]
        # Names keep the group and the variant that they stand for.
        self._forget_names()
        self._settle(key.model)

    def _profiles_of(self, key: VariantKey) -> dict[ProfileClass, ProfileRecord]:
        return self._profiles.setdefault(key, {})

    def _profile_changed(self, key: VariantKey) -> None:
        row = self._rows.get(key.model, {}).get(key)
        if row is not None:
            row.profiles_changed()
            self._place(row)
            self._measure_all(key)

    def _put_node(self, record: NodeRecord) -> None:
        node_id = record.node_id
        returned = node_id not in self.nodes
        before, now = self._class_by_node.get(node_id), node_class(record)
        self.nodes[node_id] = record
        self._class_by_node[node_id] = now
        if returned:
            self.fleet.node_returned(node_id)
        self._count_classes()
        if before != now:
            for slot in self.fleet.slots():
                if slot.node_id == node_id:
                    self._measure(slot)

    def _remove_node(self, record: NodeRecord) -> None:
        self.nodes.pop(record.node_id, None)
        if not self.fleet.holds(record.node_id):
            self._class_by_node.pop(record.node_id, None)
        self.fleet.node_gone(record.node_id)
        self._count_classes()

    def _count_classes(self) -> None:
        """Candidates are made of the classes, not of how many nodes there are of each."""
        counts = Counter(self._class_by_node[node_id] for node_id in self.nodes)
        changed = counts.keys() != self.classes.keys()
        self.classes = dict(counts)
        if changed:
            for group in (*self._versions.values(), *self._tasks.values()):
                group.outdate()
            for name in self.models:
                self._settle(name)

    def _measure_all(self, key: VariantKey) -> None:
        for slot in self.fleet.slots_of(key):
            self._measure(slot)

    def _measure(self, slot: InstanceSlot) -> None:
        """What is known of an instance: the class of a node outlives its record as long as it has instances."""
        row = self._rows.get(slot.variant.model, {}).get(slot.variant)
        cls = self._class_by_node.get(slot.node_id)
        slot.latency = row.latency(cls) if row is not None and cls is not None else None
        if row is not None:
            slot.joins = row.record.joins
            if slot.max_batch == 1:
                slot.max_batch = row.record.max_batch  # the scheduler's word says nothing about batches


def _drop(table: dict[Any, dict[Any, Any]], outer: object, inner: object) -> None:
    """Removes one entry of a table of tables, and the inner table with its last entry."""
    entries = table.get(outer)
    if entries is not None:
        entries.pop(inner, None)
        if not entries:
            del table[outer]
