"""Records in etcd: small, slow facts. Spec and status have different writers (named at each class)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from tessera.domain.ids import (
    BuildClass,
    Digest,
    Generation,
    InstanceId,
    JobId,
    ModelName,
    NodeId,
    ProfileClass,
    RuntimeId,
    Term,
    TrustDomain,
    VariantKey,
    VersionNumber,
)
from tessera.domain.instance import InstanceState, StageTime, StartPath
from tessera.domain.signature import Signature


class VariantState(StrEnum):
    """pending -> building -> ready | failed (a failed one may be built again: building)."""

    PENDING = "pending"
    BUILDING = "building"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A registered model. Writer: registry. Versions are records of their own; `latest` is what an empty version means."""

    name: ModelName
    trust_domain: TrustDomain
    task: str
    dataset: str
    accuracy: float | None
    latest: VersionNumber
    created_unix_s: float
    highest: VersionNumber = VersionNumber(0)
    """The largest number ever given; `latest` goes back when versions are deleted, numbers are never used again."""


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One immutable version. Writer: registry."""

    model: ModelName
    trust_domain: TrustDomain
    version: VersionNumber
    signature: Signature
    source_kind: str
    source_digest: Digest
    created_unix_s: float
    exports: tuple[Digest, ...] = ()
    """Artifacts that variants are made from (the "onnx" export); kept as long as the version."""


@dataclass(frozen=True, slots=True)
class VariantRecord:
    """One servable build of a version. Writer: registry."""

    key: VariantKey
    backend: str
    flavour: str
    precision: str
    state: VariantState
    max_batch: int
    build_class: BuildClass | None = None
    artifact: Digest | None = None
    graph: Digest | None = None
    tensor_bytes: int = 0
    tensor_bytes_shared: int = 0
    tensor_count: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AliasRecord:
    """Another name for a model. `version` None follows the newest. Writer: registry."""

    alias: ModelName
    trust_domain: TrustDomain
    model: ModelName
    version: VersionNumber | None


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A registry job that must survive the registry. Writer: registry."""

    job_id: JobId
    trust_domain: TrustDomain
    model: ModelName
    version: VersionNumber
    step: str
    payload: str = ""


@dataclass(frozen=True, slots=True)
class LatencyRow:
    batch: int
    threads: int
    repeats: int
    p50_ms: float
    p99_ms: float
    mean_ms: float
    peak_private_bytes: int = 0


@dataclass(frozen=True, slots=True)
class LoadCost:
    start_path: StartPath
    stages: tuple[StageTime, ...]
    peak_private_bytes: int = 0

    @property
    def total_ms(self) -> float:
        return sum(stage.ms for stage in self.stages)


@dataclass(frozen=True, slots=True)
class ProfileRecord:
    """What a variant costs on a profile class. Writer: profiler."""

    variant: VariantKey
    profile_class: ProfileClass
    load: tuple[LoadCost, ...]
    rows: tuple[LatencyRow, ...]
    measured_unix_s: float
    quick: bool = False

    def latency_ms(self, batch: int, threads: int) -> float | None:
        """Median latency of the measured row, or None where it was not measured."""
        return next((row.p50_ms for row in self.rows if row.batch == batch and row.threads == threads), None)


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node, under its agent's lease. `start_address` takes StartInstance in frames. Writer: node agent."""

    node_id: NodeId
    host_id: str
    agent_address: str
    start_address: str
    relay_address: str
    build_class: BuildClass
    profile_class: ProfileClass
    flavours: tuple[str, ...]
    cpu_count: int
    store_budget_bytes: int
    trust_domain: TrustDomain
    runtime_threads: int = 1


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """Observed state of an instance, under the agent's lease. Writer: node agent."""

    instance_id: InstanceId
    node_id: NodeId
    runtime_id: RuntimeId
    variant: VariantKey
    generation: Generation
    state: InstanceState
    start_path: StartPath
    fetched: bool
    host_id: str
    unix_path: str
    relay_address: str
    max_batch: int = 1
    stages: tuple[StageTime, ...] = ()


@dataclass(frozen=True, slots=True)
class AssignmentRecord:
    """Desired: this node shall hold this instance. Writer: the scheduler's leader."""

    instance_id: InstanceId
    node_id: NodeId
    variant: VariantKey
    artifact: Digest
    generation: Generation
    start_path: StartPath
    term: Term


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """Where a service answers, under its lease. `kind` is the service's folder name. Writer: that service."""

    kind: str
    service_id: str
    address: str
    metadata: dict[str, str] = field(default_factory=dict)
