"""The node agent's settings: a YAML file, every field also by environment. Checked in full before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tessera.config import ServiceConfig
from tessera.domain.errors import TesseraError
from tessera.domain.ids import TrustDomain, domain_tag
from tessera.policy.reclaim.registry import make
from tessera.tensorstore.mount import HugePages

MAX_RUN_FOLDER_CHARS = 54
"""Unix socket paths end at 108 bytes; what comes below the run folder takes up to 53."""
RUNTIME_USERS = 512

Flavour = Literal["aten", "ort"]


class StoreConfig(BaseModel):
    """One trust domain's tensor store."""

    model_config = ConfigDict(extra="forbid")

    trust_domain: str = Field(default="default", pattern=r"^[a-z0-9][a-z0-9._-]{0,127}$")
    budget_bytes: int = Field(default=4 << 30, gt=0)
    folder: Path | None = None
    """A folder that lies on a tmpfs already; None: one is mounted below the run folder, or, for a node's only store, made in /dev/shm
    where that is not allowed."""
    huge_pages: HugePages = "within_size"
    """Of a tmpfs that is mounted here."""
    user: int | None = Field(default=None, gt=0)
    """The user id of the domain's runtimes; None: `runtime_user_base` and a number from the domain's name."""


class NodeAgentConfig(ServiceConfig):
    """Addresses are HOST:PORT. `_s` seconds, `_ms` milliseconds, `_bytes` bytes."""

    told_addresses: ClassVar[tuple[str, ...]] = ("address", "start_address", "relay_address", "peer_address")

    service_name: str = "node-agent"
    node_id: str = Field("node-0", pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    address: str = "127.0.0.1:8020"
    start_address: str = "127.0.0.1:8060"
    """Where StartInstance is taken in frames."""
    relay_address: str = "127.0.0.1:8021"
    peer_address: str = "127.0.0.1:8040"
    """Where other nodes' agents take blobs from."""
    peer_connections: int = Field(16, ge=1)
    """Connections of other agents at a time; one more is told that this node is busy."""
    peer_stall_s: float = Field(2.0, gt=0.0)
    """A peer that brings next to nothing for so long is left, and the next source asked."""
    etcd_endpoints: list[str] = Field(default_factory=lambda: ["127.0.0.1:8090"], min_length=1)
    lease_ttl_s: float = Field(10.0, ge=1.0)
    repository_url: str
    repository_options: dict[str, Any] = Field(default_factory=dict)
    """For fsspec, such as `endpoint_url` for s3://."""
    state_folder: Path
    run_folder: Path
    """Sockets, and the stores' mount points; short."""

    stores: list[StoreConfig] = Field(default_factory=lambda: [StoreConfig()], min_length=1)
    """One per trust domain. The first one's runtimes wait warm from the start, the others' from their first use on."""
    runtime_user: Literal["own", "domain", "auto"] = "auto"
    """As whom zygotes, runtimes and bakers run: the agent's own user, or one user for each trust domain (for which the agent must be root
    and everything that they read readable to all). auto: per domain where that is possible; several stores insist on it."""
    runtime_user_base: int = Field(60600, gt=0, le=2**31)
    """The first of 512 user ids that domains get; those from 60578 to 61183 are nobody's by systemd's table."""
    may_mount: bool = True
    sharing: bool = True
    """Off: every runtime copies its tensors into private memory (the baseline of benchmarks)."""
    verify_on_bind: bool = False
    """On: a runtime hashes every blob it maps, at each load."""
    fetch_concurrency: int = Field(4, ge=1)
    """Blobs of one start that come at a time, streams to one peer, and ranges read from the repository."""

    flavours: list[Flavour] = Field(default=["ort", "aten"])
    warm_runtimes: int = Field(1, ge=0)
    """Empty runtimes that wait at least, per flavour."""
    pool_policy: str = "poisson"
    """`poisson`: as many as starts ask for, while there is memory for them. `constant`: `warm_runtimes`."""
    pool_memory_bytes: int = Field(512 << 20, ge=0)
    """What the empty runtimes of a trust domain may take together, beyond the least number."""
    max_instances_per_runtime: int = Field(256, ge=1)
    """A crash takes all of them. An ort runtime costs 23 MiB by itself: 0.4 MiB for each of 64 parked siblings, which cost 1.0 otherwise,
    and 0.1 for each of 256."""
    runtime_threads: int = Field(1, ge=1)
    runtime_workers: int = Field(2, ge=1)
    """Batches of different instances that one runtime runs at a time."""
    batch_delay_us: int = Field(0, ge=0, le=1_000_000)
    """How long the first request of a batch waits for others, and nobody in it longer than half of what is left of its budget; 0: a batch
    is what came while the runtime was busy."""
    runtime_keep_alive_s: float = Field(60.0, ge=0.0)
    """How long an empty runtime beyond what the pool policy wants is kept."""
    idle_after_s: float = Field(60.0, ge=0.0)
    """An instance without requests for that long is parked: it keeps its mappings and gives its session, threads and memory away until its
    next request. 0: none is."""
    orphan_s: float = Field(600.0, gt=0.0)
    """How long runtimes, their zygotes and the relay live without an agent."""

    evict_idle_s: float = Field(1.0, ge=0.0)
    """An instance idle for so long may be stopped when another one's start needs the room of what it holds."""
    zygote_start_s: float = Field(120.0, gt=0.0)
    """How long a zygote, or a container, may take until it answers."""
    runtimes: Literal["process", "container"] = "process"
    engine_url: str = "unix:///var/run/docker.sock"
    runtime_images: dict[Flavour, str] = Field(default={"ort": "tessera-runtime-ort:dev", "aten": "tessera-runtime-aten:dev"})
    runtime_memory_bytes: int = Field(4 << 30, ge=64 << 20)
    """Of one container: what its instances allocate. Weights in the store are not among it, they are the agent's."""
    runtime_cpus: float | None = Field(None, gt=0.0)
    """Of one container; None: all that the agent may use."""
    runtime_pids: int = Field(256, ge=16)
    """Processes and threads of one container."""
    gpus: bool = False
    """Containers get the node's GPUs, which no backend of Tessera's uses: for those of other packages."""
    load_timeout_s: float = Field(120.0, gt=0.0)
    drain_ms: int = Field(5000, ge=0)
    adoption_grace_s: float = Field(60.0, ge=0.0)
    """An adopted instance counts as provisional this long."""
    tombstone_s: float = Field(60.0, ge=0.0)
    reconcile_s: float = Field(1.0, gt=0.0)
    report_s: float = Field(1.0, gt=0.0, le=5.0)
    """How often the scheduler's leader is told at least; it takes a node that says nothing for 10 s for silent."""
    poison_first_back_off_s: float = Field(0.5, gt=0.0)
    poison_longest_back_off_s: float = Field(60.0, gt=0.0)
    poison_forgive_s: float = Field(600.0, gt=0.0)
    on_stop: Literal["stop", "leave"] = "stop"
    """What a graceful stop does with runtimes, relay and store: take them down, or leave them to the next agent."""

    tensor_keep_alive_s: float = Field(60.0, ge=0.0)
    """How long a blob that nobody holds is kept where the reclaim policy has such a window (the published minute)."""
    reclaim_policy: str = "shared-cost"
    """Which blobs go first when room is needed, and which go unasked: one of `tessera.policy.reclaim.registry`. The published
    `keep-alive` fetched up to a quarter more than plain LRU on traces, `shared-cost` a tenth less (docs/performance.md)."""
    pressure_reserve_bytes: int = Field(256 << 20, ge=0)
    """Blobs that nobody holds go when less than this is available to the machine or to one of the agent's control groups; 0: never.
    Enough for a start's private memory, so that the kernel does not kill the runtime that grows next."""
    pressure_stall_share: float = Field(0.1, ge=0.0, le=1.0)
    """They go, too, when somebody waited for memory in this share of the last ten seconds (PSI); 0: never. Reading from a disk that is
    a little slow stays below a tenth; thrashing does not."""
    pressure_step_bytes: int = Field(256 << 20, gt=0)
    """How much goes at a time for such a wait."""
    pressure_pause_s: float = Field(5.0, ge=0.0)
    """How long the next such step waits: half of the kernel's average, so that the first has shown what it did."""

    usd_per_hour: float | None = Field(None, ge=0.0)
    """What an hour of this node costs; None: what the price catalogue says of its profile class. 0: nobody says."""
    price_catalogue: Path | None = None
    """A YAML file; None: the one that comes with the node agent (public list prices of cloud machines)."""

    metrics_address: str = ""
    """Prometheus metrics over HTTP; empty: none."""

    @field_validator("run_folder")
    @classmethod
    def _short(cls, folder: Path) -> Path:
        if len(str(folder)) > MAX_RUN_FOLDER_CHARS:
            raise ValueError(f"{folder} has {len(str(folder))} characters: at most {MAX_RUN_FOLDER_CHARS}, for the sockets below it")
        return folder

    @field_validator("stores")
    @classmethod
    def _told_apart(cls, stores: list[StoreConfig]) -> list[StoreConfig]:
        for index, store in enumerate(stores):
            for other in stores[:index]:
                if store.trust_domain == other.trust_domain:
                    raise ValueError(f"trust domain {store.trust_domain!r} has two stores: at most one")
                if domain_tag(TrustDomain(store.trust_domain)) == domain_tag(TrustDomain(other.trust_domain)):
                    raise ValueError(f"trust domains {other.trust_domain!r} and {store.trust_domain!r} have the same tag: rename one")
                if store.folder is not None and store.folder == other.folder:
                    raise ValueError(f"folder {store.folder} is of {other.trust_domain!r} and of {store.trust_domain!r}: one store each")
        return stores

    @model_validator(mode="after")
    def _users_apart(self) -> NodeAgentConfig:
        users: dict[int, str] = {}
        for store in self.stores:
            other = users.setdefault(self.user_of(store), store.trust_domain)
            if other != store.trust_domain:
                both = f"{other!r} and {store.trust_domain!r}"
                raise ValueError(f"stores: {both} would run as user {self.user_of(store)}: give one a `user` of its own")
        return self

    def user_of(self, store: StoreConfig) -> int:
        """The user id of a domain's runtimes, where each domain has one."""
        return store.user or self.runtime_user_base + int(domain_tag(TrustDomain(store.trust_domain)), 16) % RUNTIME_USERS

    @field_validator("reclaim_policy")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            make(name, 0.0)
        except TesseraError as error:
            raise ValueError(error.message) from error
        return name

    @model_validator(mode="after")
    def _images(self) -> Self:
        missing = [flavour for flavour in self.flavours if flavour not in self.runtime_images]
        if self.runtimes == "container" and missing:
            raise ValueError(f"runtime_images names no image for flavour {', '.join(missing)}")
        return self

    @field_validator("flavours")
    @classmethod
    def _some(cls, flavours: list[Flavour]) -> list[Flavour]:
        if not flavours:
            raise ValueError("at least one flavour is needed")
        return list(dict.fromkeys(flavours))
