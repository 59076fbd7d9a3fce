"""The node agent's settings: a YAML file, every field also by environment. Checked in full before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from tessera.config import ServiceConfig

MAX_RUN_FOLDER_CHARS = 60
"""Unix socket paths end at 108 bytes; what comes below the run folder takes up to 48."""

Flavour = Literal["aten", "ort"]


class NodeAgentConfig(ServiceConfig):
    """Addresses are HOST:PORT. `_s` seconds, `_ms` milliseconds, `_bytes` bytes."""

    service_name: str = "node-agent"
    node_id: str = Field("node-0", pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    trust_domain: str = Field("default", pattern=r"^[a-z0-9][a-z0-9._-]{0,127}$")
    address: str = "127.0.0.1:8020"
    start_address: str = "127.0.0.1:8060"
    """Where StartInstance is taken in frames."""
    relay_address: str = "127.0.0.1:8021"
    etcd_endpoints: list[str] = Field(default_factory=lambda: ["127.0.0.1:8090"], min_length=1)
    lease_ttl_s: float = Field(10.0, ge=1.0)
    repository_url: str
    state_folder: Path
    run_folder: Path
    """Sockets, and the store's mount point; short."""

    store_folder: Path | None = None
    """A folder that lies on a tmpfs already; None: one is mounted below the run folder, or made in /dev/shm where that is not allowed."""
    store_budget_bytes: int = Field(4 << 30, gt=0)
    may_mount: bool = True
    sharing: bool = True
    """Off: every runtime copies its tensors into private memory (the baseline of benchmarks)."""
    verify_on_bind: bool = False
    """On: a runtime hashes every blob it maps, at each load."""
    fetch_concurrency: int = Field(4, ge=1)

    flavours: list[Flavour] = Field(default=["ort", "aten"])
    warm_runtimes: int = Field(1, ge=0)
    """Empty runtimes that wait, per flavour."""
    max_instances_per_runtime: int = Field(64, ge=1)
    runtime_threads: int = Field(1, ge=1)
    runtime_workers: int = Field(2, ge=1)
    """Batches of different instances that one runtime runs at a time."""
    batch_delay_us: int = Field(0, ge=0, le=1_000_000)
    """How long the first request of a batch waits for others, at most half of what is left of its budget; 0: a batch is what came while
    the runtime was busy."""
    surplus_runtime_idle_s: float = Field(60.0, ge=0.0)
    orphan_s: float = Field(600.0, gt=0.0)
    """How long runtimes and relay live without an agent."""

    zygote_start_s: float = Field(120.0, gt=0.0)
    load_timeout_s: float = Field(120.0, gt=0.0)
    drain_ms: int = Field(5000, ge=0)
    adoption_grace_s: float = Field(60.0, ge=0.0)
    """An adopted instance counts as provisional this long."""
    tombstone_s: float = Field(60.0, ge=0.0)
    reconcile_s: float = Field(1.0, gt=0.0)
    report_s: float = Field(1.0, gt=0.0)
    poison_first_back_off_s: float = Field(0.5, gt=0.0)
    poison_longest_back_off_s: float = Field(60.0, gt=0.0)
    poison_forgive_s: float = Field(600.0, gt=0.0)
    on_stop: Literal["stop", "leave"] = "stop"
    """What a graceful stop does with runtimes, relay and store: take them down, or leave them to the next agent."""

    metrics_address: str = ""
    """Prometheus metrics over HTTP; empty: none."""

    @field_validator("run_folder")
    @classmethod
    def _short(cls, folder: Path) -> Path:
        if len(str(folder)) > MAX_RUN_FOLDER_CHARS:
            raise ValueError(f"{folder} has {len(str(folder))} characters: at most {MAX_RUN_FOLDER_CHARS}, for the sockets below it")
        return folder

    @field_validator("flavours")
    @classmethod
    def _some(cls, flavours: list[Flavour]) -> list[Flavour]:
        if not flavours:
            raise ValueError("at least one flavour is needed")
        return list(dict.fromkeys(flavours))
