"""Records in etcd: small, slow facts. Spec and status have different writers (named at each class)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from tessera.domain.accuracy import DEFAULT_ALLOWANCE, Agreement
from tessera.domain.artifact import Blob
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
from tessera.domain.objectives import NO_OBJECTIVES, Objectives
from tessera.domain.signature import Signature
from tessera.domain.transformation import MetaOperator


class LoadState(StrEnum):
    """Of a variant or an instance (INFaaS, ATC'21): loaded nowhere; below its peak; at its peak; slowed down by neighbours."""

    INACTIVE = "inactive"
    ACTIVE = "active"
    OVERLOADED = "overloaded"
    INTERFERED = "interfered"


class BatchState(StrEnum):
    """queued -> running <-> paused -> done | failed | cancelled (docs/states/batch.md)."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


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
    lossy: bool = False
    """Plain requests may get a lossy variant that is offered."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The user's evaluation set: a blob (npz) in the repository, and the metric by which answers are scored."""

    digest: Digest
    size_bytes: int
    metric: str


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
    evaluation: Evaluation | None = None
    allowance: float = DEFAULT_ALLOWANCE
    """What a lossy variant may lose (share of 1) and still be offered."""
    calibration: Blob | None = None
    """The user's inputs (npz) from which ranges of activations are taken."""
    recipes: tuple[str, ...] | None = None
    """Recipes beside the base ones that the user asked for; None: the registry's own list."""
    convolutions: int = 0
    matrix_products: int = 0
    """Operators of the export, by which it is decided what recipes it can gain from."""


@dataclass(frozen=True, slots=True)
class VariantRecord:
    """One servable build of a version. Writer: registry.

    `recipe`: how it is built (docs/nomenclature.md); two build classes have one recipe and two variants. `agreement` None: it is what was
    registered. `withheld`: why it is served by name alone; "" where it is offered. `notes`: what its builder wants users to know. `joins`:
    requests may be joined to batches, where its model is batched.
    """

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
    recipe: str = ""
    agreement: Agreement | None = None
    withheld: str = ""
    notes: str = ""
    joins: bool = True

    @property
    def lossy(self) -> bool:
        """Its answers may differ from the registered model's by more than 1e-4."""
        return self.agreement is not None and not self.agreement.exact


@dataclass(frozen=True, slots=True)
class AliasStep:
    """A version that an alias named, since when, and why it came to."""

    model: ModelName
    version: VersionNumber
    since_unix_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class AliasRecord:
    """Another name for a model. `version` None follows the model: its answering version. Writer: registry.

    `since_unix_s`, `reason`: when and why it came to name this. `before`: what it named until then, oldest first, bounded.
    """

    alias: ModelName
    trust_domain: TrustDomain
    model: ModelName
    version: VersionNumber | None
    since_unix_s: float = 0.0
    reason: str = ""
    before: tuple[AliasStep, ...] = ()


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
class BatchRecord:
    """A batch job: what was asked for, and how far it is. Writer: profiler (who was elected to work; to queue it or to ask for its end, who
    was asked).

    `model` as it was written; `resolved`: what it stood for when the job was submitted, MODEL@VERSION or MODEL@VERSION/VARIANT, "" for a
    task. `rows` of the input, 0 until they were counted; `rows_done` are answered or failed, in `parts` that are written or, between two of
    them, in memory. `attempts`: how often it was taken up since its last part was written. `cancelling`: its end was asked for.
    """

    job_id: JobId
    trust_domain: TrustDomain
    model: str
    input_url: str
    output_url: str
    input_format: str
    output_format: str
    batch_size: int
    max_errors: int
    submitted_unix_s: float
    objectives: Objectives = NO_OBJECTIVES
    if_exists: str = ""
    state: BatchState = BatchState.QUEUED
    reason: str = ""
    rows: int = 0
    rows_done: int = 0
    rows_failed: int = 0
    parts: int = 0
    attempts: int = 0
    started_unix_s: float = 0.0
    ended_unix_s: float = 0.0
    cancelling: bool = False
    resolved: str = ""

    @property
    def asked(self) -> str:
        """What each of its requests names: one version; a task, whose objectives decide for each."""
        return self.resolved or self.model


@dataclass(frozen=True, slots=True)
class LatencyRow:
    """`concurrency` runs at a time, of one instance each. `mean_ms`: of the middle half of the runs where it is one, so that what others on
    the machine took from it does not count. `spread`: standard error of the mean over the mean, of all repeats."""

    batch: int
    threads: int
    repeats: int
    p50_ms: float
    p99_ms: float
    mean_ms: float
    peak_private_bytes: int = 0
    concurrency: int = 1
    spread: float = 0.0

    @property
    def items_per_s(self) -> float:
        """Batch items answered in a second."""
        return 1000 * self.batch * self.concurrency / self.mean_ms if self.mean_ms > 0 else 0.0


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
        """Median latency of the measured row of one instance by itself, or None where it was not measured."""
        return next((row.p50_ms for row in self.rows if (row.batch, row.threads, row.concurrency) == (batch, threads, 1)), None)


@dataclass(frozen=True, slots=True)
class MetaCostLine:
    """`fixed_ms` a step, `per_mib_ms` a MiB of new weights, `per_changed_mib_ms` a MiB by which shapes differ."""

    operator: MetaOperator
    kind: str
    fixed_ms: float
    per_mib_ms: float = 0.0
    per_changed_mib_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class MetaCostRecord:
    """What meta-operators take on a profile class, in a dialect. Writer: profiler, whole.

    `lines`: those of kind "" hold for every kind that has none of its own. `error`: root of the mean square of (expected - taken) / taken,
    over the `observations` that they were fitted to.
    """

    trust_domain: TrustDomain
    profile_class: ProfileClass
    dialect: str
    base_ms: float
    lines: tuple[MetaCostLine, ...]
    error: float
    observations: int
    measured_unix_s: float


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node, under its agent's lease. `start_address` takes StartInstance in frames; `peer_address` gives other agents its stores' blobs,
    and what these are stands nowhere in etcd. Writer: node agent."""

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
    usd_per_hour: float = 0.0
    """From the price catalogue; 0: nobody said, and objectives of cost do not tell variants apart."""
    peer_address: str = ""


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
class LoadRecord:
    """An instance that is overloaded or interfered with; there is none while it is merely active. Writer: the scheduler's leader."""

    instance_id: InstanceId
    node_id: NodeId
    variant: VariantKey
    state: LoadState
    since_unix_s: float
    reason: str


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
