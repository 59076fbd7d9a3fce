"""What a policy sees of the cluster: frozen values made from etcd's records and the agents' reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tessera.domain.artifact import Blob
from tessera.domain.ids import BuildClass, Digest, Generation, InstanceId, NodeId, ProfileClass, RuntimeId, TrustDomain, VariantKey
from tessera.domain.instance import InstanceState, StartPath
from tessera.domain.records import VariantRecord


class NodeCondition(StrEnum):
    """usable: lease held and status stream answering. suspect: its lease is lost. silent: its agent reports nothing (yet)."""

    USABLE = "usable"
    SUSPECT = "suspect"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class RuntimeView:
    """A warm runtime, of one trust domain from its beginning."""

    runtime_id: RuntimeId
    flavour: str
    trust_domain: TrustDomain
    instances: int


@dataclass(frozen=True, slots=True)
class InstanceView:
    """An instance as its agent reports it. `idle_s` is seconds since its last request ended, 0 while one executes. `parked`: only its
    mappings are there."""

    instance_id: InstanceId
    variant: VariantKey
    generation: Generation
    state: InstanceState
    idle_s: float
    parked: bool = False


@dataclass(frozen=True, slots=True)
class StoreView:
    """What one trust domain has in a node. `held_bytes` are those that nothing can reclaim now: pinned by
    instances that are in use, or unlinked and still mapped. `coming`: what starts that are in flight are fetching."""

    budget_bytes: int = 0
    held_bytes: int = 0
    digests: frozenset[Digest] = frozenset()
    coming: frozenset[Digest] = frozenset()

    @property
    def room_bytes(self) -> int:
        """Bytes that it can take at most, after it has reclaimed all that nobody holds."""
        return max(0, self.budget_bytes - self.held_bytes)


NO_STORE = StoreView()


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node at the moment of a snapshot, with a store for each trust domain that it serves.

    `starting` counts the starts that were sent to it and have not answered.
    """

    node_id: NodeId
    build_class: BuildClass
    profile_class: ProfileClass
    stores: Mapping[TrustDomain, StoreView] = field(default_factory=dict)
    flavours: tuple[str, ...] = ()
    runtimes: tuple[RuntimeView, ...] = ()
    instances: tuple[InstanceView, ...] = ()
    starting: int = 0
    condition: NodeCondition = NodeCondition.USABLE
    ready: Mapping[VariantKey, InstanceView] | None = None
    """An index of `instances`: per variant the ready one with the lowest id. None: not made, `ready_instance` looks through all."""
    new_runtime: StartPath = StartPath.FORK
    """How a runtime that is not there yet comes to be."""
    cpu_count: int = 1
    cpu_cores: float = 0.0
    """Used by everything on the machine, on average over the last report interval."""

    @property
    def cpu_share(self) -> float:
        """0 to 1: how busy its cores are."""
        return min(1.0, self.cpu_cores / max(1, self.cpu_count))

    def ready_instance(self, variant: VariantKey) -> InstanceView | None:
        if self.ready is not None:
            return self.ready.get(variant)
        return ready_index(self.instances).get(variant)

    def store(self, trust_domain: TrustDomain) -> StoreView:
        """The domain's store; an empty one without room where the node does not serve it."""
        return self.stores.get(trust_domain, NO_STORE)

    @property
    def load(self) -> int:
        """Instances that it holds or is starting: the measure that breaks ties."""
        return len(self.instances) + self.starting


def ready_index(instances: Iterable[InstanceView]) -> dict[VariantKey, InstanceView]:
    """Per variant the ready instance with the lowest id."""
    ready = (item for item in instances if item.state is InstanceState.READY)
    return {item.variant: item for item in sorted(ready, key=lambda item: item.instance_id, reverse=True)}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A variant that may answer. `blobs` is every blob it needs on a node, or None where the list is not known yet."""

    record: VariantRecord
    blobs: tuple[Blob, ...] | None = None

    @property
    def key(self) -> VariantKey:
        return self.record.key
