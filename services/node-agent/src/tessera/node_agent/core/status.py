"""What a node says about itself, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tessera.domain.ids import BuildClass, NodeId, ProfileClass, RuntimeId, TrustDomain
from tessera.domain.records import InstanceRecord
from tessera.node_agent.core.runtimes import domain_folder_of
from tessera.node_agent.core.table import Instance
from tessera.tensorstore.interface import StoreStatus


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """What does not change while an agent runs. Addresses are HOST:PORT; `host_id` is the machine's."""

    node_id: NodeId
    host_id: str
    address: str
    start_address: str
    relay_address: str
    build_class: BuildClass
    profile_class: ProfileClass
    flavours: tuple[str, ...]
    cpu_count: int
    run_folder: str
    peer_address: str = ""
    new_runtimes: str = "process"
    """What a runtime is that this node makes: process or container."""
    usd_per_hour: float = 0.0
    """0: nobody said."""

    def unix_path(self, runtime_id: RuntimeId) -> str:
        """The data socket of a runtime of this node."""
        return f"{self.run_folder}/{domain_folder_of(runtime_id)}/{runtime_id}/data.sock"


def record_of(identity: NodeIdentity, instance: Instance) -> InstanceRecord:
    """An instance that has a runtime, as etcd shall see it."""
    assert instance.runtime_id is not None
    return InstanceRecord(
        instance.instance_id,
        identity.node_id,
        instance.runtime_id,
        instance.variant,
        instance.generation,
        instance.state,
        instance.start_path,
        instance.fetched,
        identity.host_id,
        identity.unix_path(instance.runtime_id),
        identity.relay_address,
        instance.max_batch,
        instance.stages,
    )


@dataclass(frozen=True, slots=True)
class RuntimeSummary:
    """One runtime; sizes in bytes. `shared_bytes`: resident pages of store files; `cpu_cores`: used on average over the last report
    interval."""

    runtime_id: RuntimeId
    pid: int
    flavour: str
    trust_domain: TrustDomain
    threads: int
    instances: int
    private_bytes: int
    shared_bytes: int
    proportional_bytes: int
    cpu_cores: float
    container_id: str = ""

    @property
    def kind(self) -> str:
        return "container" if self.container_id else "process"


@dataclass(frozen=True, slots=True)
class InstanceSummary:
    instance: Instance
    pid: int


@dataclass(frozen=True, slots=True)
class MachineSummary:
    """The whole machine. `cpu_cores`: used on average over the last report interval; `memory_pressure`: share (0..1) of the last 10 s in
    which somebody waited for memory."""

    cpu_cores: float
    memory_bytes: int
    memory_available_bytes: int
    memory_pressure: float


@dataclass(frozen=True, slots=True)
class NodeSummary:
    identity: NodeIdentity
    instances: tuple[InstanceSummary, ...]
    runtimes: tuple[RuntimeSummary, ...]
    stores: Mapping[TrustDomain, StoreStatus]
    evictable_bytes: Mapping[TrustDomain, int]
    """Of each store's held bytes, those that only idle instances hold."""
    machine: MachineSummary

    def of(self, trust_domain: TrustDomain) -> NodeSummary:
        """What one trust domain may see of it."""
        return NodeSummary(
            self.identity,
            tuple(item for item in self.instances if item.instance.variant.trust_domain == trust_domain),
            tuple(item for item in self.runtimes if item.trust_domain == trust_domain),
            {domain: status for domain, status in self.stores.items() if domain == trust_domain},
            {domain: size for domain, size in self.evictable_bytes.items() if domain == trust_domain},
            self.machine,
        )
