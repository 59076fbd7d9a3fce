"""etcd's records into the catalogue. While etcd is away the last known state goes on serving."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tessera.coord import keys
from tessera.coord.interface import Coordinator
from tessera.coord.view import View
from tessera.domain.instance import InstanceState
from tessera.domain.records import (
    AliasRecord,
    InstanceRecord,
    LoadRecord,
    ModelRecord,
    NodeRecord,
    ProfileRecord,
    ServiceRecord,
    VariantRecord,
    VersionRecord,
)
from tessera.gateway.core.catalogue import Catalogue
from tessera.gateway.core.slots import InstanceSlot
from tessera.program import Tasks


class WatchedState:
    """One view per prefix.

    Args:
        on_ready: called with the slot of each instance that is reported ready, so that its connection is made before a request comes.
    """

    def __init__(self, coordinator: Coordinator, catalogue: Catalogue, on_ready: Callable[[InstanceSlot], None]) -> None:
        self._catalogue = catalogue
        self._on_ready = on_ready
        self.services: View[ServiceRecord] = View(coordinator, keys.SERVICES, ServiceRecord)
        domain = catalogue.trust_domain
        records: list[tuple[str, type[Any]]] = [
            (keys.models(domain), ModelRecord),
            (keys.versions(domain), VersionRecord),
            (keys.variants(domain), VariantRecord),
            (keys.aliases(domain), AliasRecord),
            (keys.profiles(domain), ProfileRecord),
            (keys.nodes(domain), NodeRecord),
            (keys.instances(domain), InstanceRecord),
            (keys.loads(domain), LoadRecord),
        ]
        self._views: list[View[Any]] = [View(coordinator, prefix, record) for prefix, record in records]
        for view in self._views:
            view.on_change(self._changed)

    def start(self, tasks: Tasks) -> None:
        for view in (*self._views, self.services):
            tasks.start("view", view.run())

    @property
    def synced(self) -> bool:
        """Whether every prefix was listed once: before that, "not registered" would be a guess."""
        return all(view.synced.is_set() for view in self._views)

    async def wait_synced(self) -> None:
        for view in self._views:
            await view.synced.wait()

    def services_of(self, kind: str) -> list[ServiceRecord]:
        return sorted((record for record in self.services.values() if record.kind == kind), key=lambda record: record.service_id)

    def _changed(self, key: str, _old: Any, new: Any) -> None:
        if new is None:
            self._catalogue.remove(key)
            return
        self._catalogue.put(key, new)
        if isinstance(new, InstanceRecord) and new.state is InstanceState.READY:
            slot = self._catalogue.fleet.slot(new.instance_id)
            if slot is not None:
                self._on_ready(slot)
