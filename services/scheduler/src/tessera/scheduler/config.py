"""The scheduler's settings: a YAML file, every field also by environment. Checked in full before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from tessera.config import ServiceConfig

DomainName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,127}$")]


class SchedulerConfig(ServiceConfig):
    """Addresses are HOST:PORT. `_s` seconds, `_ms` milliseconds."""

    told_addresses: ClassVar[tuple[str, ...]] = ("address", "start_address")

    address: str = "127.0.0.1:8011"
    """Where it listens, and what gateways and agents read as the leader's address."""
    start_address: str = "127.0.0.1:8014"
    """Where StartInstance is taken in frames."""
    etcd_endpoints: list[str] = Field(default_factory=lambda: ["127.0.0.1:8090"], min_length=1)
    trust_domains: list[DomainName] = Field(default_factory=lambda: ["default"], min_length=1)
    repository_url: str = ""
    repository_options: dict[str, Any] = Field(default_factory=dict)
    """For fsspec, such as `endpoint_url` for s3://."""
    """Read for artifacts' blob lists, so that placement counts exact bytes; empty: records' sizes are used."""
    metrics_address: str = ""
    """Prometheus metrics over HTTP; empty: none."""

    lease_ttl_s: float = Field(5.0, ge=1.0)
    """A leader that was killed is replaced within this time."""
    instance_keep_alive_s: float = Field(600.0, gt=0.0)
    provisional_s: float = Field(30.0, ge=1.0)
    """How long an agent keeps an instance whose record is not in etcd, when the budget of its start is over."""
    node_lost_s: float = Field(30.0, gt=0.0)
    """After this long without lease and status stream a node's assignments are dropped."""
    settle_s: float = Field(2.0, ge=0.0)
    """How long a new leader waits for the nodes' reports before it starts anything."""
    patience_s: float = Field(5.0, ge=0.0)
    """How long a start waits for a node that does not report or whose lease is lost, before it is refused."""
    reconcile_s: float = Field(1.0, gt=0.0)
    start_attempts: int = Field(4, ge=1)
    least_start_budget_s: float = Field(10.0, gt=0.0)
    """What an agent gets at least: an instance that is late for one request is there for the next."""

    start_policy: str = "cheapest"
    placement_policy: str = "bytes-present"
    balance_policy: str = "none"
    """Where models live, which placement then goes by: `none`, or a balancer: `bytes-shared`, `k-medoids` (needs `tessera-pkg[kmedoids]`),
    `least-loaded`, `hash`."""
    balance_s: float = Field(600.0, gt=0.0)
    """How often everybody's home is found anew, with the demand since."""
    keep_alive_policy: str = "fixed"
    """`fixed`: `instance_keep_alive_s` for all. `histogram`: by how long each variant is usually left alone."""
    load_policy: str = "published"
    """`published`: overloaded at the profiled peak, interfered where runs are slow below it. `released`: the one flag of INFaaS's code."""
    node_provider: Literal["none", "local", "docker"] = "none"
    """Where nodes come from when there are too few. `local`: agents as processes of this machine, `docker`: as containers."""
    node_policy: str = "published"
    node_template: Path | None = None
    """For `local`: the settings of a node agent, of which new nodes are copies."""
    node_folder: Path | None = None
    """For `local`: where new nodes keep their files; every scheduler of the machine has the same."""
    node_like: str = Field("", pattern=r"^([a-zA-Z0-9][a-zA-Z0-9_.-]*)?$")
    """For `docker`: the name of a node agent's container, of which new nodes are copies; every scheduler of the cluster has the same."""
    engine_url: str = "unix:///var/run/docker.sock"
    """For `docker`: the engine that has it."""
    node_prefix: str = Field("extra", pattern=r"^[a-z0-9][a-z0-9._-]{0,40}$")
    most_added_nodes: int = Field(1, ge=1)
    node_period_s: float = Field(2.0, gt=0.0)
    """How often the pool is looked at."""
    autoscaling_policy: str = "tessera"
    """How many instances of which variant: `tessera` (cheapest set), `infaas` (published heuristic), `ilp` (solver), `none`."""
    starts_per_tick: int = Field(4, ge=1)
    """Starts that autoscaling begins in a second at most, all models together."""
    move_interfered: bool = True
    """An instance whose runs are slowed down is started on a less busy node, then ended."""
    fetch_ms_per_mib: float = Field(2.1, ge=0.0)
    learn_start_times: bool = True
    """What a start path is expected to take is corrected by what its starts took; else it is what the profile says, whatever they took."""
    transform_idle_s: float = Field(60.0, ge=0.0)
    """How long nobody has asked an `aten` instance that another one may be made of (published: 60 s); 0: none is."""
    explanations: int = Field(4096, ge=1)
    """Start requests that `ExplainStart` can still answer for."""
    artifact_cache: int = Field(4096, ge=1)
    """Artifacts whose blob lists are kept."""
    stop_grace_s: float = Field(5.0, ge=0.0)

    @model_validator(mode="after")
    def _provided(self) -> Self:
        if self.node_provider == "local" and (self.node_template is None or self.node_folder is None):
            raise ValueError("node_provider local needs node_template and node_folder")
        if self.node_provider == "docker" and not self.node_like:
            raise ValueError("node_provider docker needs node_like, the name of a node agent's container")
        return self
