"""etcd's records as indexes in memory: read without waiting, kept as they were while etcd is away."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from tessera.coord import keys
from tessera.coord.interface import Coordinator
from tessera.coord.view import View
from tessera.domain.ids import InstanceId, ModelName, NodeId, ProfileClass, TrustDomain, VariantKey, VersionKey
from tessera.domain.records import (
    AssignmentRecord,
    LoadRecord,
    MetaCostRecord,
    ModelRecord,
    NodeRecord,
    ProfileRecord,
    VariantRecord,
    VariantState,
)
from tessera.domain.transformation import ATEN

Nothing = Callable[[], None]


class EtcdRecords:
    """Views of every trust domain, joined. `on_change` is called after each difference, `on_ready` for each variant that is ready."""

    def __init__(
        self,
        coordinator: Coordinator,
        trust_domains: Sequence[TrustDomain],
        on_change: Callable[[], None],
        on_ready: Callable[[VariantRecord], None],
    ) -> None:
        self._variants: dict[VariantKey, VariantRecord] = {}
        self._models: dict[tuple[TrustDomain, ModelName], ModelRecord] = {}
        self._of_version: dict[VersionKey, dict[VariantKey, VariantRecord]] = {}
        self._profiles: dict[tuple[VariantKey, ProfileClass], ProfileRecord] = {}
        self._meta_costs: dict[tuple[TrustDomain, ProfileClass, str], MetaCostRecord] = {}
        self._nodes: dict[NodeId, tuple[NodeRecord, ...]] = {}
        self._assignments: dict[InstanceId, AssignmentRecord] = {}
        self._loads: dict[InstanceId, LoadRecord] = {}
        self._on_change = on_change
        self._on_ready = on_ready
        self.views: list[View[Any]] = []
        for domain in trust_domains:
            models = View(coordinator, keys.models(domain), ModelRecord)
            models.on_change(self._model)
            variants = View(coordinator, keys.variants(domain), VariantRecord)
            variants.on_change(self._variant)
            profiles = View(coordinator, keys.profiles(domain), ProfileRecord)
            profiles.on_change(self._profile)
            meta_costs = View(coordinator, keys.meta_costs(domain), MetaCostRecord)
            meta_costs.on_change(self._meta_cost)
            nodes = View(coordinator, keys.nodes(domain), NodeRecord)
            nodes.on_change(self._node)
            assignments = View(coordinator, keys.assignments(domain), AssignmentRecord)
            assignments.on_change(self._assignment)
            loads = View(coordinator, keys.loads(domain), LoadRecord)
            loads.on_change(self._load)
            self.views += [models, variants, profiles, meta_costs, nodes, assignments, loads]

    async def wait_synced(self) -> None:
        """Until every prefix was listed once."""
        for view in self.views:
            await view.synced.wait()

    def variant(self, key: VariantKey) -> VariantRecord | None:
        return self._variants.get(key)

    def variants(self) -> Collection[VariantRecord]:
        return self._variants.values()

    def variants_of(self, version: VersionKey) -> Collection[VariantRecord]:
        return self._of_version.get(version, {}).values()

    def model(self, trust_domain: TrustDomain, name: ModelName) -> ModelRecord | None:
        return self._models.get((trust_domain, name))

    def profiles(self) -> Mapping[tuple[VariantKey, ProfileClass], ProfileRecord]:
        return self._profiles

    def meta_costs(self, trust_domain: TrustDomain, profile_class: ProfileClass) -> MetaCostRecord | None:
        """See `Records`."""
        return self._meta_costs.get((trust_domain, profile_class, ATEN))

    def nodes(self) -> Mapping[NodeId, tuple[NodeRecord, ...]]:
        return self._nodes

    def assignments(self) -> Mapping[InstanceId, AssignmentRecord]:
        return self._assignments

    def loads(self) -> Mapping[InstanceId, LoadRecord]:
        return self._loads

    def _model(self, _key: str, old: ModelRecord | None, new: ModelRecord | None) -> None:
        if old is not None:
            self._models.pop((old.trust_domain, old.name), None)
        if new is not None:
            self._models[(new.trust_domain, new.name)] = new

    def _variant(self, _key: str, old: VariantRecord | None, new: VariantRecord | None) -> None:
        if old is not None:
            self._variants.pop(old.key, None)
            held = self._of_version.get(old.key.version_key, {})
            held.pop(old.key, None)
            if not held:
                self._of_version.pop(old.key.version_key, None)
        if new is not None:
            self._variants[new.key] = new
            self._of_version.setdefault(new.key.version_key, {})[new.key] = new
            if new.state is VariantState.READY:
                self._on_ready(new)
        self._on_change()

    def _profile(self, _key: str, old: ProfileRecord | None, new: ProfileRecord | None) -> None:
        if old is not None:
            self._profiles.pop((old.variant, old.profile_class), None)
        if new is not None:
            self._profiles[(new.variant, new.profile_class)] = new

    def _meta_cost(self, _key: str, old: MetaCostRecord | None, new: MetaCostRecord | None) -> None:
        if old is not None:
            self._meta_costs.pop((old.trust_domain, old.profile_class, old.dialect), None)
        if new is not None:
            self._meta_costs[(new.trust_domain, new.profile_class, new.dialect)] = new

    def _node(self, _key: str, old: NodeRecord | None, new: NodeRecord | None) -> None:
        changed = new or old
        assert changed is not None
        others = tuple(each for each in self._nodes.get(changed.node_id, ()) if each.trust_domain != changed.trust_domain)
        found = others if new is None else (*others, new)
        if found:
            self._nodes[changed.node_id] = found
        else:
            self._nodes.pop(changed.node_id, None)
        self._on_change()

    def _assignment(self, _key: str, old: AssignmentRecord | None, new: AssignmentRecord | None) -> None:
        if old is not None:
            self._assignments.pop(old.instance_id, None)
        if new is not None:
            self._assignments[new.instance_id] = new

    def _load(self, _key: str, old: LoadRecord | None, new: LoadRecord | None) -> None:
        if old is not None:
            self._loads.pop(old.instance_id, None)
        if new is not None:
            self._loads[new.instance_id] = new
